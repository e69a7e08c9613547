"""Layers of a few numbers per channel, against their formulas."""

import pytest
import torch
from torch.nn import functional as F

from bitnas.nn import ChannelBias, RPReLU, TileChannels
from bitnas.nn.channels import tile_channels


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3), (2, 5, 3, 4), (0, 5, 2, 2)])
def test_a_bias_is_added_per_channel(shape):
    layer, x = ChannelBias(5), torch.randn(shape)
    assert torch.equal(layer(x), x)  # first 0
    with torch.no_grad():
        layer.bias.normal_()
    y = layer(x)
    assert y.shape == x.shape
    for channel in range(5):
        assert torch.equal(y[:, channel], x[:, channel] + layer.bias[channel])
    y.sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((5,), float(x.numel() / 5)))


def test_rprelu_is_a_prelu_between_two_biases():
    layer, x = RPReLU(6), torch.randn(2, 6, 4, 3)
    assert torch.equal(layer(x), F.prelu(x, torch.full((6,), 0.25)))
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_()
    shift = [layer.before.bias.view(-1, 1, 1), layer.after.bias.view(-1, 1, 1)]
    inner = x + shift[0]
    wanted = torch.where(inner > 0, inner, layer.prelu.weight.view(-1, 1, 1) * inner) + shift[1]
    torch.testing.assert_close(layer(x), wanted)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 18


@pytest.mark.parametrize(("present", "wanted"), [(3, 3), (3, 4), (3, 6), (3, 8), (1, 5), (48, 96)])
@pytest.mark.parametrize("tail", [(), (4, 5)], ids=["rows", "images"])
def test_tiling_repeats_the_channels_in_their_order(present, wanted, tail):
    layer, x = TileChannels(present, wanted), torch.randn(2, present, *tail)
    y = layer(x)
    assert torch.equal(y, x[:, torch.arange(wanted) % present])
    assert torch.equal(tile_channels(x, wanted), y)
    assert not list(layer.parameters())


def test_tiling_keeps_channels_last():
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    assert tile_channels(x, 20).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: ChannelBias(0), ValueError, "channels: got 0"),
        (lambda: ChannelBias(2.0), TypeError, "channels: got 2.0"),
        (lambda: RPReLU(-1), ValueError, "channels: got -1"),
        (lambda: TileChannels(4, 3), ValueError, "out_channels: got 3, wanted at least in_channels=4"),
        (lambda: TileChannels(0, 3), ValueError, "in_channels: got 0"),
        (lambda: TileChannels(2, True), TypeError, "out_channels: got True"),
    ],
)
def test_bad_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()
