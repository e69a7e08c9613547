"""Networks of BARS as plain modules: ten edges, four groups in and out, a shortcut without parameters past every cell;
the published example counts exactly; files keep them, and what cannot be built is refused by name."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import bitnas
from bitnas.models import bars as networks
from bitnas.models.bars import EDGES, NODES, Bars, BarsCell, BarsConfig, Cell, canonical, live_nodes
from bitnas.models.operations import OPERATIONS, BinaryOperation, pool
from bitnas.nn import SCHEMES, FitChannels, JoinNodes
from bitnas.nn.cells import fit_channels, join_nodes

CONV = "binary_conv_3x3"
SOME = ("skip", CONV, "none", "none", "skip", "binary_conv_1x1", CONV, "none", "binary_dil_conv_3x3", "binary_conv_5x5")


def small(**changes):
    cells = (Cell(SOME, 4), Cell((CONV,) * 10, 6, 2), Cell(("skip",) * 10, 6), Cell(("none",) * 10, 5))
    return BarsConfig(**{"stem": 4, "width": 4, "cells": cells, "input_size": (2, 7, 5), "num_classes": 3, **changes})


def test_ten_edges_between_an_input_node_and_four_more():
    assert (len(EDGES), NODES) == (10, 4)
    assert set(EDGES) == {(s, t) for s in range(5) for t in range(5) if s < t}
    assert [target for _, target in EDGES] == sorted(target for _, target in EDGES)


@pytest.mark.parametrize("kind", ["binary", "float"])
@pytest.mark.parametrize(
    ("stride", "cin", "channels"), [(1, 4, 4), (1, 4, 7), (1, 6, 3), (2, 4, 8), (2, 3, 9), (2, 5, 1)]
)
def test_four_groups_in_and_out(stride, cin, channels, kind):
    x = torch.randn(2, 4 * cin, 7, 5)
    for edges in [SOME, (CONV,) * 10, ("skip",) * 10, ("none",) * 10]:
        y = BarsCell(cin, Cell(edges, channels, stride), kind, "bars")(x)
        assert y.shape == (2, 4 * channels, -(-7 // stride), -(-5 // stride))


@pytest.mark.parametrize(("stride", "channels"), [(1, 4), (2, 8), (2, 6), (2, 11)])
def test_the_shortcut_has_no_parameters_and_every_group_its_own(stride, channels):
    """A cell whose edges carry nothing is its shortcut: group g of the input, doubled in place at stride 2."""
    cell = BarsCell(4, Cell(("none",) * 10, channels, stride), "binary", "bars")
    assert not list(cell.parameters())
    x = torch.randn(2, 16, 6, 6)
    y = cell(x).unflatten(1, (4, channels))
    value = (x if stride == 1 else F.avg_pool2d(x, 2)).unflatten(1, (4, 4)).repeat_interleave(stride, 2)
    kept = min(channels, 4 * stride)
    assert torch.equal(y[:, :, :kept], value[:, :, :kept])
    assert not y[:, :, kept:].any()


def test_every_cell_lets_full_precision_past():
    """The gradient of the input through a cell of binary operations has the shortcut's part, where no sign is."""
    cell = BarsCell(4, Cell((CONV,) * 10, 8, 2), "binary", "bars")
    with torch.no_grad():
        cell.preprocess.bn.bias.fill_(9)  # beyond the sign's window: nothing comes back through the operations
    x = torch.randn(2, 16, 6, 6, requires_grad=True)
    cell(x).sum().backward()
    assert torch.allclose(x.grad, torch.full_like(x, 2 / 4))


@pytest.mark.parametrize("stride", [1, 2])
def test_a_cell_is_its_formula(stride):
    torch.manual_seed(0)
    channels = 4 * stride
    cell = BarsCell(4, Cell(SOME, channels, stride), "binary", "bars").eval()
    x = torch.randn(2, 16, 7, 5)
    with torch.no_grad():
        first = cell.preprocess(x)
        nodes = [first]
        for target in range(1, 5):
            total = torch.zeros(2, channels, -(-7 // stride), -(-5 // stride))
            for (source, to), operation in zip(EDGES, SOME, strict=True):
                if to == target and operation == "skip":
                    value = nodes[source]
                    if source == 0 and stride == 2:
                        value = F.avg_pool2d(value, 2, ceil_mode=True, count_include_pad=False).repeat_interleave(2, 1)
                    total += value
                elif to == target and operation != "none":
                    total += cell.edges[f"{source}_{to}"](nodes[source])
            nodes.append(total)
        wanted = cell.shortcut(x).repeat_interleave(stride, 1) + torch.cat(nodes[1:], 1)
        assert torch.allclose(cell(x), wanted, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize("name", [name for name, operation in OPERATIONS.items() if operation.kernel])
def test_an_operation_is_batch_norm_sign_convolution_relu(name, size):
    torch.manual_seed(0)
    operation = OPERATIONS[name]
    for stride in (1, 2):
        made = operation.make(3, 5, stride, "bars")
        x = torch.randn(4, 3, *size)
        weight = made.conv.weight.detach()
        bits = torch.where(F.batch_norm(x, None, None, training=True) >= 0, 1.0, -1.0) if size != (1, 1) else None
        y = made(x)
        assert y.shape == (4, 5, *(-(-side // stride) for side in size))
        if bits is not None:
            kernel = torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean()
            margin = operation.dilation * (operation.kernel // 2)
            wanted = F.conv2d(bits, kernel, None, stride, margin, operation.dilation).relu()
            assert torch.allclose(y, wanted, atol=1e-5)
        assert operation.macs(3, 5, y[0, 0].numel()) == weight.numel() * y[0, 0].numel()


def test_nothing_but_the_ends_is_in_full_precision():
    model = Bars(small())
    floats = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert floats == ["stem.conv", "stem.widen", "fc"]
    interim = Bars(small(preprocess="float"))
    floats = [name for name, m in interim.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert floats == ["stem.conv", "stem.widen", *(f"cells.{n}.preprocess.1" for n in range(3)), "fc"]


def worked_example():
    """The authors' counter is known by this one: NNRNNRNN of 16 channels, all edges binary 3 x 3."""
    sizes = [(16, 1), (16, 1), (32, 2), (32, 1), (32, 1), (64, 2), (64, 1), (64, 1)]
    cells = tuple(Cell((CONV,) * 10, channels, stride) for channels, stride in sizes)
    return BarsConfig(16, 16, cells, preprocess="float")


def test_the_worked_example_counts_exactly():
    with torch.device("meta"):
        model = Bars(worked_example())
    count = bitnas.count(model, (3, 32, 32), rule="bars")
    assert (count.flops, count.ops - count.flops) == (19_764_224, 358_612_992)
    binary = sum(m.weight.numel() for m in model.modules() if isinstance(m, bitnas.nn.BinaryConv2d))
    floats = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear))
    assert binary == 1_336_320
    assert floats + model.fc.bias.numel() == 52_154
    mac = bitnas.count(model, (3, 32, 32), rule="mac")
    assert (2 * mac.flops, 2 * mac.bops) == (count.flops, count.ops - count.flops)


def test_what_nothing_reaches_is_dead():
    assert live_nodes(("none",) * 10) == (True, False, False, False, False)
    assert live_nodes((CONV,) * 10) == (True,) * 5
    edges = ("none", CONV, "skip", *["none"] * 7)
    assert live_nodes(edges) == (True, False, True, False, False)
    assert canonical(edges) == ("none", CONV, "none", *["none"] * 7)
    assert canonical(canonical(edges)) == canonical(edges)
    with pytest.raises(ValueError, match="nothing reaches node 1; wanted 'none'"):
        Cell(edges, 4)


def test_a_file_keeps_a_network(tmp_path):
    config = small()
    assert BarsConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    (tmp_path / "arch.json").write_text(json.dumps(config.to_dict()))
    model = bitnas.create_model(str(tmp_path / "arch.json"))
    assert isinstance(model, Bars)
    assert model.config == config
    assert model(torch.randn(2, 2, 7, 5)).shape == (2, 3)
    assert config.key() == small().key() != small(width=5).key()
    assert config.entering == (4, 4, 6, 6)


def test_an_auxiliary_classifier_reads_its_cell():
    model = Bars(small(auxiliary=1)).eval()
    x = torch.randn(2, 2, 7, 5)
    first, second = model.both(x)
    assert torch.equal(first, model(x))
    state = model.cells[1](model.cells[0](model.stem(x)))
    assert torch.equal(second, model.auxiliary(state.mean((2, 3)))) or torch.allclose(
        second, model.auxiliary(state.mean((2, 3))), atol=1e-6
    )
    with pytest.raises(ValueError, match="auxiliary: this network has no second classifier"):
        Bars(small()).both(x)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"stem": 0}, "stem: got 0"),
        ({"preprocess": "half"}, "preprocess: got 'half', wanted binary or float"),
        ({"stem_stride": 3}, "stem_stride: got 3, wanted 1, 2 or 4"),
        ({"scheme": "ternary"}, "scheme: got 'ternary'"),
        ({"input_size": (3, 32)}, "input_size: got \\(3, 32\\)"),
        ({"cells": ()}, "cells: got \\(\\), wanted at least one cell"),
        ({"cells": [{"edges": [CONV] * 9, "channels": 4}]}, "cells\\[0\\].edges: got .* wanted 10 operations"),
        ({"cells": [{"edges": ["pool"] * 10, "channels": 4}]}, "cells\\[0\\].edges: got 'pool', wanted one of none"),
        ({"cells": [{"edges": [CONV] * 10, "channels": 4, "stride": 3}]}, "cells\\[0\\].stride: got 3, wanted 1 or 2"),
        ({"cells": [{"edges": [CONV] * 10, "width": 4}]}, "cells\\[0\\]: .* unknown fields \\['width'\\]"),
        ({"cells": [{"edges": SOME, "channels": 10**9}]}, "cells\\[0\\].channels: got 1000000000, with which the"),
        ({"cells": (Cell(("none",) * 10, 10**9, 2),)}, "cells\\[0\\].channels: .* at most 1e\\+09 in all"),
        ({"stem": 10**9}, "stem: got 1000000000, with which the network has .* weights"),
        ({"width": 10**9}, "width: got 1000000000"),
        ({"num_classes": 10**9}, "num_classes: got 1000000000"),
        ({"input_size": (10**9, 7, 5)}, "input_size: got 1000000000"),
        ({"auxiliary": 4}, "auxiliary: got 4, wanted None or the index of a cell"),
    ],
)  # fmt: skip
def test_what_cannot_be_built_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        small(**change)


def test_the_weights_are_counted_before_they_are_made(monkeypatch):
    for config in (small(), small(auxiliary=1, preprocess="float")):
        made = Bars(config)
        weights = sum(p.numel() for p in made.parameters() if p.ndim > 1)
        with monkeypatch.context() as patch:
            patch.setattr(networks, "MOST_PARAMETERS", weights)
            dataclasses.replace(config)
            patch.setattr(networks, "MOST_PARAMETERS", weights - 1)
            with pytest.raises(ValueError, match=r"cells\[1\].channels: got 6"):
                dataclasses.replace(config)


def test_unknown_and_missing_fields_are_named():
    with pytest.raises(ValueError, match="unknown fields \\['depth'\\], missing fields \\['cells'\\]"):
        BarsConfig.from_dict({"stem": 4, "width": 4, "depth": 1})
    with pytest.raises(ValueError, match="name: got 'vgg', wanted 'bars'"):
        BarsConfig.from_dict({**small().to_dict(), "name": "vgg"})


# ---- parts --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("channels", "groups", "repeat"), [(12, 4, 1), (4, 4, 1), (24, 4, 2), (8, 2, 3), (20, 4, 2), (3, 1, 1)]
)
def test_fit_channels_by_hand(channels, groups, repeat):
    x = torch.randn(2, 12, 3, 2)
    wanted = torch.zeros(2, channels, 3, 2)
    for group in range(groups):
        for n in range(min(channels // groups, 12 // groups * repeat)):
            wanted[:, group * (channels // groups) + n] = x[:, group * (12 // groups) + n // repeat]
    assert torch.equal(fit_channels(x, channels, groups, repeat), wanted)
    assert torch.equal(FitChannels(12, channels, groups, repeat)(x), wanted)


def test_the_prefix_of_fitted_channels_is_the_fitted_prefix():
    x = torch.randn(2, 16, 3, 3)
    narrow = x.unflatten(1, (4, 4))[:, :, :3].flatten(1, 2)
    wide = fit_channels(x, 32, 4, 2).unflatten(1, (4, 8))
    assert torch.equal(fit_channels(narrow, 24, 4, 2).unflatten(1, (4, 6)), wide[:, :, :6])


def test_join_nodes_adds_each_to_its_group():
    shortcut, a, b = torch.randn(2, 8, 3, 3), torch.randn(2, 3, 3, 3), torch.randn(2, 3, 3, 3)
    join = JoinNodes(8, 3, (False, True, False, True))
    wanted = fit_channels(shortcut, 12, 4)
    before = shortcut.clone()
    wanted = torch.cat([wanted[:, :3], wanted[:, 3:6] + a, wanted[:, 6:9], wanted[:, 9:] + b], 1)
    assert torch.equal(join(shortcut, a, b), wanted)
    assert torch.equal(shortcut, before)
    assert join.out_channels == 12
    with pytest.raises(ValueError, match="nodes: got 1, wanted the 2 that are live"):
        join_nodes(shortcut, a, channels=3, live=join.live)
    with pytest.raises(TypeError, match="live: got"):
        JoinNodes(8, 3, (1, 0))
    with pytest.raises(ValueError, match="in_channels: got 7, wanted a multiple of the 4 nodes"):
        JoinNodes(7, 3, (True,) * 4)
    with pytest.raises(ValueError, match="groups: got 3, wanted a divisor of in_channels=8"):
        FitChannels(8, 6, 3)


def test_a_pooled_value_is_the_mean_of_what_is_there():
    x = torch.arange(15.0).view(1, 1, 3, 5)
    assert pool(1)(x) is x
    assert torch.equal(pool(2)(x), torch.tensor([[[[3.0, 5, 6.5], [10.5, 12.5, 14]]]]))


def test_bars_signs_pass_a_gradient_below_1_3():
    x = torch.tensor([-2.0, -1.3, -1.2999, -1.0, -0.0, 0.0, 0.7, 1.2999, 1.3, 5.0], requires_grad=True)
    y = SCHEMES["bars"].activation()(x)
    assert y.tolist() == [-1, -1, -1, -1, 1, 1, 1, 1, 1, 1]
    (y * torch.arange(1.0, 11.0)).sum().backward()
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 6, 7, 8, 0, 0]


def test_bars_weights_are_clamped_in_place_and_have_one_scale():
    w = nn.Parameter(torch.tensor([[3.0, -0.5], [0.25, -2.0]]))
    binarizer = SCHEMES["bars"].weight()
    assert binarizer.scale(w).item() == pytest.approx((1 + 0.5 + 0.25 + 1) / 4)  # clamped, also before a step has
    b = binarizer(w)
    assert torch.equal(w.detach(), torch.tensor([[1.0, -0.5], [0.25, -1.0]]))
    assert torch.equal(b.detach(), 0.6875 * torch.tensor([[1.0, -1.0], [1.0, -1.0]]))
    b.backward(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    assert torch.equal(w.grad, torch.tensor([[1.0, 2.0], [3.0, 4.0]]))


def test_a_step_in_training_reaches_every_parameter():
    model = Bars(dataclasses.replace(worked_example(), stem=4, width=2, cells=small().cells, preprocess="binary"))
    model(torch.randn(8, 3, 32, 32)).logsumexp(-1).sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name
    assert any(isinstance(module, BinaryOperation) for module in model.modules())
