"""Binary layers: exact dots in evaluation mode, the scheme's gradient in training mode, refusal of bad arguments."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitnas.nn import SCHEMES, BinaryConv2d, BinaryLinear, get_scheme, sign

CONVOLUTIONS = [
    {"in_channels": 5, "out_channels": 7, "kernel_size": 3, "padding": 1},
    {"in_channels": 6, "out_channels": 4, "kernel_size": (3, 1), "stride": (2, 1), "groups": 2, "bias": True},
    {"in_channels": 65, "out_channels": 3, "kernel_size": 2, "padding": (2, 1), "dilation": (1, 2)},
    {"in_channels": 1, "out_channels": 1, "kernel_size": 1},
]


def binarized(x: torch.Tensor, encoding: str) -> torch.Tensor:
    return (x > 0.5).double() if encoding == "unit" else torch.where(x >= 0, 1.0, -1.0).double()


def randomised(layer: BinaryConv2d | BinaryLinear) -> BinaryConv2d | BinaryLinear:
    if layer.bias is not None:
        nn.init.normal_(layer.bias)
    return layer


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("arguments", CONVOLUTIONS)
def test_convolution_in_evaluation_is_an_exact_dot_then_a_scale(arguments, scheme):
    layer = randomised(BinaryConv2d(**arguments, scheme=scheme)).eval()
    x = torch.randn(2, layer.in_channels, 6, 7)
    q = binarized(x, layer.input_binarizer.encoding)
    dot = F.conv2d(q, layer.binary_weight().double(), None, layer.stride, layer.padding, layer.dilation, layer.groups)
    assert torch.equal(dot, dot.round())
    expected = dot.float() * layer.weight_scale().float().view(-1, 1, 1)
    if layer.bias is not None:
        expected = expected + layer.bias.view(-1, 1, 1)
    assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("arguments", CONVOLUTIONS)
def test_training_computes_the_same_function(arguments, scheme):
    layer = randomised(BinaryConv2d(**arguments, scheme=scheme))
    x = torch.randn(2, layer.in_channels, 6, 7)
    torch.testing.assert_close(layer.train()(x), layer.eval()(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_linear(scheme):
    layer = randomised(BinaryLinear(70, 9, bias=True, scheme=scheme))
    x = torch.randn(3, 4, 70)
    dot = binarized(x, layer.input_binarizer.encoding) @ layer.binary_weight().double().T
    expected = dot.float() * layer.weight_scale().float() + layer.bias
    torch.testing.assert_close(layer.train()(x), expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(layer.eval()(x), expected)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_training_gradients_are_those_of_the_binarizers(scheme):
    layer = BinaryConv2d(3, 4, 3, padding=1, scheme=scheme)
    x = torch.randn(2, 3, 5, 5, requires_grad=True)
    upstream = torch.randn(2, 4, 5, 5)
    layer(x).backward(upstream)
    chosen = get_scheme(scheme)
    x2, w2 = x.detach().clone().requires_grad_(), layer.weight.detach().clone().requires_grad_()
    F.conv2d(chosen.activation()(x2), chosen.weight()(w2), padding=1).backward(upstream)
    torch.testing.assert_close(x.grad, x2.grad)
    torch.testing.assert_close(layer.weight.grad, w2.grad)
    assert layer.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scale_is_float64_per_channel(scheme):
    layer = BinaryConv2d(3, 5, 3, scheme=scheme)
    scale, w = layer.weight_scale(), layer.weight.detach().double()
    if scheme == "nasbnn":
        rows = w.flatten(1)
        w = ((rows - rows.mean(1, keepdim=True)) / rows.std(1, keepdim=True)).view(w.shape)
    expected = w.abs().mean().expand(5) if scheme in ("dorefa", "bars") else w.abs().mean(dim=(1, 2, 3))
    assert scale.dtype == torch.float64
    assert scale.shape == (5,)
    assert not scale.requires_grad
    torch.testing.assert_close(scale, expected)


def test_binary_weight_of_zero_is_plus_one():
    layer = BinaryConv2d(2, 1, 1)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.0, -0.5]).view(1, 2, 1, 1))
    assert layer.binary_weight().flatten().tolist() == [1, -1]
    assert not layer.binary_weight().requires_grad


def test_padded_taps_contribute_nothing():
    """A one-pixel image under a padded 3x3 kernel sees the centre tap alone, in either encoding."""
    for scheme in SCHEMES:
        layer = BinaryConv2d(4, 3, 3, padding=1, scheme=scheme).eval()
        x = torch.randn(1, 4, 1, 1)
        q = binarized(x, layer.input_binarizer.encoding).flatten()
        dot = layer.binary_weight()[:, :, 1, 1].double() @ q
        assert torch.equal(layer(x).flatten(), dot.float() * layer.weight_scale().float())


def test_empty_batch():
    assert BinaryConv2d(3, 4, 3).eval()(torch.empty(0, 3, 5, 5)).shape == (0, 4, 3, 3)
    assert BinaryLinear(3, 4).eval()(torch.empty(0, 3)).shape == (0, 4)


def test_initial_weights_have_unit_fan_in_variance_and_a_gradient():
    torch.manual_seed(0)
    w = BinaryConv2d(64, 64, 3).weight
    assert w.var().item() * 64 * 9 == pytest.approx(1, rel=0.05)
    assert BinaryConv2d(1, 64, 1).weight.abs().max() <= 1


def test_deepcopy_and_state_dict():
    layer = BinaryConv2d(3, 4, 3, bias=True)
    other = copy.deepcopy(layer)
    assert list(layer.state_dict()) == ["weight", "bias"]
    with torch.no_grad():
        other.weight.neg_()
    assert torch.equal(other.binary_weight(), -layer.binary_weight())


class _LeafTracer(torch.fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, (BinaryConv2d, BinaryLinear)) or super().is_leaf_module(m, module_qualified_name)


def small_network() -> nn.Module:
    return nn.Sequential(BinaryConv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), BinaryLinear(36, 2)).eval()


def test_fx_traces_layers_as_leaves():
    model = small_network()
    graph = _LeafTracer().trace(model)
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["0", "1", "2", "3"]
    x = torch.randn(2, 3, 5, 5)
    assert torch.equal(torch.fx.GraphModule(model, graph)(x), model(x))


@pytest.mark.parametrize("training", [False, True])
def test_export_with_a_dynamic_batch(training):
    model = nn.Sequential(BinaryConv2d(3, 4, 3, scheme="bireal"), nn.Flatten(), BinaryLinear(36, 2, scheme="xnor"))
    model.train(training)
    x = torch.randn(2, 3, 5, 5)
    exported = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    x = torch.randn(5, 3, 5, 5)
    assert torch.equal(exported.module()(x), model(x))


def test_repr_says_what_matters():
    text = repr(BinaryConv2d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2, scheme="xnor"))
    for part in (
        "4, 6",
        "kernel_size=(3, 3)",
        "stride=(2, 2)",
        "padding=(1, 1)",
        "dilation=(2, 2)",
        "groups=2",
        "xnor",
    ):
        assert part in text
    assert "8, 2, bias=False, scheme='dorefa'" in repr(BinaryLinear(8, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"in_channels": 0}, ValueError, "in_channels: got 0"),
        ({"out_channels": 0}, ValueError, "out_channels: got 0"),
        ({"out_channels": 2.0}, TypeError, "out_channels: got 2.0"),
        ({"kernel_size": 0}, ValueError, "kernel_size: got 0"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size: got"),
        ({"stride": (1, 0)}, ValueError, "stride: got 0"),
        ({"padding": -1}, ValueError, "padding: got -1"),
        ({"padding": "same"}, TypeError, "padding: got 'same'"),
        ({"dilation": 0}, ValueError, "dilation: got 0"),
        ({"groups": 3}, ValueError, "groups: got 3"),
        ({"groups": 0}, ValueError, "groups: got 0"),
        ({"scheme": "none"}, ValueError, "scheme: got 'none'"),
    ],
)
def test_bad_convolution_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        BinaryConv2d(**{"in_channels": 4, "out_channels": 4, "kernel_size": 3, **arguments})


def test_bad_linear_arguments():
    with pytest.raises(ValueError, match="in_features: got 0"):
        BinaryLinear(0, 3)
    with pytest.raises(TypeError, match="out_features: got True"):
        BinaryLinear(3, True)


def test_sign_of_weight_is_what_evaluation_uses():
    layer = BinaryConv2d(2, 2, 1)
    assert torch.equal(layer.binary_weight(), sign(layer.weight.detach()))
