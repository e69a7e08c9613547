"""Cells of BARS frozen: all integers equal on every instruction set, the calls that plan.py promises, files."""

import dataclasses
import functools
import json
import random
from collections import Counter

import pytest
import torch
from cells import random_cell, random_network, trained
from modules import User, conv, images
from torch import nn

import bitnas
from bitnas.models.bars import EDGES, BarsConfig, Cell, live_nodes
from bitnas.models.operations import NONE, OPERATIONS, SKIP
from bitnas.nn import SCHEMES, FitChannels, JoinNodes
from bitnas.packed import plan
from bitnas.packed.calls import call_signatures
from bitnas.packed.steps import FUNCTIONS

CONV = "binary_conv_3x3"


def cells_of(*edges, **options):
    """A network with these cells, of 6 channels."""
    return BarsConfig(5, 6, tuple(Cell(e, 6) for e in edges), num_classes=7, input_size=(3, 9, 7), **options)


def input_of(config, images=2, seed=0):
    return torch.randn(images, *config.input_size, generator=torch.Generator().manual_seed(seed))


def check(config, batch=2, seed=0):
    model, x = trained(config, seed), input_of(config, batch, seed)
    frozen = bitnas.freeze(model)
    report = bitnas.verify(model, frozen, x)
    assert report.ok, report
    assert len(report.layers) == sum(s.kind in ("conv2d", "conv2d_add") for s in frozen.steps)
    assert report.bits_equal >= 0.999 * report.bits
    if report.bits_equal == report.bits:
        assert report.max_logit_difference < 1e-4
    check_calls(frozen, x)
    return model, frozen


def check_calls(frozen, x):
    """What the calls give is what each step gives alone; of float convolutions, within the rounding of float32."""
    values = frozen.values(x)
    assert torch.equal(frozen(x), values[frozen.steps[-1].name])
    for step in frozen.steps:
        inputs = [values[name] for name in step.inputs]
        layer = frozen._modules.get(step.name)
        alone = layer(*inputs) if layer is not None else FUNCTIONS[step.kind](*inputs, **step.arguments)
        if step.kind == "float_conv2d":
            torch.testing.assert_close(values[step.name], alone, rtol=1e-5, atol=1e-5)
        else:
            assert torch.equal(values[step.name], alone), (step.name, step.kind)


def of_every_kind():
    for seed, (preprocess, stride, size) in enumerate(
        [("binary", 1, (3, 9, 7)), ("float", 1, (1, 8, 8)), ("binary", 2, (3, 16, 16)), ("float", 4, (3, 33, 17))]
    ):
        yield random_network(seed, preprocess=preprocess, stem_stride=stride, input_size=size)


def test_random_networks():
    for seed, config in enumerate(of_every_kind()):
        check(config, seed=seed)


@pytest.mark.slow
@pytest.mark.parametrize("preprocess", ["binary", "float"])
def test_more_random_networks(preprocess):
    for seed in range(60):
        size = random.Random(seed).choice([(3, 32, 32), (3, 9, 7), (1, 8, 8), (3, 17, 40)])
        check(random_network(seed, preprocess=preprocess, input_size=size), 1 + seed % 3, seed)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme(scheme):
    config = random_network(1, scheme=scheme, input_size=(3, 8, 9))
    x = input_of(config)
    model = trained(config)
    frozen = bitnas.freeze(model)
    assert bitnas.verify(model, frozen, x).ok
    check_calls(frozen, x)


def test_every_instruction_set_and_both_memories(isa, threads):
    config = random_network(2, input_size=(3, 9, 7))
    model, x = trained(config), input_of(config)
    frozen, lean = bitnas.freeze(model), bitnas.freeze(model, memory="bits")
    with threads():
        assert bitnas.verify(model, frozen, x).ok
        values = frozen.values(x)
        assert torch.equal(frozen(x), values[frozen.steps[-1].name])
        kept = lean.values(x)
    for name, value in kept.items():
        assert torch.equal(value, values[name]), name


def test_logits_are_the_same_on_every_instruction_set(isa):
    config = random_network(2, input_size=(3, 9, 7))
    model, x = trained(config), input_of(config, 3)
    before = bitnas.ops.cpu_isa()
    bitnas.ops.select_cpu_isa("scalar")
    wanted = bitnas.freeze(model)(x)
    bitnas.ops.select_cpu_isa(before)
    assert torch.equal(bitnas.freeze(model)(x), wanted)


def test_a_file_and_what_was_frozen_from_it(tmp_path):
    config = random_network(3, input_size=(3, 9, 7), auxiliary=1)
    model, frozen = check(config)
    bitnas.save(frozen, tmp_path / "net.safetensors")
    x = input_of(config)
    for memory in ("fast", "bits"):
        loaded = bitnas.load(tmp_path / "net.safetensors", memory=memory)
        assert loaded.steps == frozen.steps
        assert bitnas.create_model(loaded.config).config == config
        assert torch.equal(loaded(x), frozen(x))
        assert bitnas.verify(model, loaded, x).ok
    assert not bitnas.verify(trained(config, 1), loaded, x).ok


def test_other_weights_in_a_frozen_network():
    """What a call keeps of several packings follows the layers."""
    config = random_network(0, input_size=(3, 9, 7))
    one, other = (bitnas.freeze(trained(config, seed)) for seed in (0, 1))
    x = input_of(config)
    one.load_state_dict(other.state_dict())
    assert torch.equal(one(x), other(x))


def test_the_second_classifier_is_not_frozen():
    config = random_network(3, input_size=(3, 9, 7))
    plain = bitnas.freeze(trained(config))
    with_another = bitnas.freeze(trained(dataclasses.replace(config, auxiliary=1)))
    assert with_another.steps == plain.steps
    assert not any("auxiliary" in name for name in with_another.state_dict())


def test_empty_cells_pass_their_input_on():
    dead = (NONE,) * 10
    model, frozen = check(cells_of(dead, dead))
    kinds = Counter(step.kind for step in frozen.steps)
    assert kinds["join_nodes"] == 2
    assert not kinds["pack"]
    x = input_of(model.config)
    assert torch.allclose(frozen(x), model.fc(model.stem(x).mean((2, 3))), atol=1e-5)


def test_a_node_that_nothing_reaches_is_not_joined():
    edges = [NONE] * 10
    edges[EDGES.index((0, 2))] = CONV
    _, frozen = check(cells_of(edges))
    (join,) = (step for step in frozen.steps if step.kind == "join_nodes")
    assert join.arguments["live"] == (False, True, False, False)
    assert len(join.inputs) == 2


def expected_calls(config):
    """Calls of the cells by the rules in plan.py, by what they cover."""
    found = Counter()
    live_cells = [any(live_nodes(cell.edges)[1:]) for cell in config.cells]
    binary = config.preprocess == "binary"
    for i, cell in enumerate(config.cells):
        into = {t: [(s, op) for (s, to), op in zip(EDGES, cell.edges, strict=True) if to == t] for t in range(1, 5)}
        # The value that each node is: of a node that is one skip alone, the source's.
        value, halved = {0: "n0"}, cell.stride == 2
        for t, edges in into.items():
            terms = [(s, op) for s, op in edges if op != NONE]
            alone = len(terms) == 1 and terms[0][1] == SKIP
            value[t] = f"n{t}" if not alone else "half" if halved and terms[0][0] == 0 else value[terms[0][0]]
        packs = Counter(value[s] for (s, _), op in zip(EDGES, cell.edges, strict=True) if op not in (NONE, SKIP))
        if live_cells[i]:
            skipped = any(s == 0 and op == SKIP for edges in into.values() for s, op in edges)
            if not binary:
                found["pack"] += min(1, packs["n0"]) * (cell.inner > 0)
            elif packs["n0"] == 1 and not skipped:
                found["bits"] += 1
            else:
                found["conv2d" + "+pack" * packs["n0"]] += 1
            if halved and skipped:
                found["fit" + "+pack" * packs["half"]] += 1
        for t, edges in into.items():
            skips = sum(op == SKIP for _, op in edges)
            convs = sum(op not in (NONE, SKIP) for _, op in edges)
            found["add"] += max(0, skips - 1)
            for k in range(convs):
                kind = "conv2d" if skips == 0 and k == 0 else "conv2d_add"
                found[kind + "+pack" * (packs[f"n{t}"] if k + 1 == convs else 0)] += 1
            if convs == 0 and skips > 1 and packs[f"n{t}"]:
                found["pack"] += 1
        follows = binary and i + 1 < len(config.cells) and live_cells[i + 1]
        found["join" + "+pack" * follows] += 1
    return +found


def names_of(frozen):
    kinds = {step.name: step.kind for step in frozen.steps}
    words = {"join_nodes": "join", "fit_channels": "fit"}
    found = Counter()
    for call, _ in frozen._plan:
        covered = [kinds[name] for name in call.covers if kinds[name] != "float_avg_pool2d"]
        if call.step.startswith("cells"):
            layer = frozen._modules.get(call.step)
            covered[0] = "bits" if getattr(layer, "epilogue", "") == "bits" else words.get(covered[0], covered[0])
            found["pack" if covered[0] == "pack" else "+".join(covered)] += 1
        elif covered == ["add"] or covered[0] == "join_nodes":
            found["add"] += 1
    return +found


def test_the_calls_of_a_cell():
    draw = random.Random(0)
    for seed in range(10):
        operations = draw.choice(((NONE, SKIP, CONV), (NONE, NONE, SKIP, CONV), tuple(OPERATIONS)))
        strides = draw.choice(((1, 1), (1, 2), (2, 1)))
        cells = tuple(random_cell(draw, 4 * stride, stride, operations) for stride in strides)
        config = BarsConfig(4, 4, cells, num_classes=3, input_size=(1, 6, 6))
        frozen = bitnas.freeze(trained(config, seed))
        assert names_of(frozen) == expected_calls(config), config
        assert len(call_signatures(frozen.steps, (1, 1, 6, 6))) == len(frozen._plan) + 1


def test_no_pass_over_floats_between_the_binary_layers():
    frozen = bitnas.freeze(trained(cells_of(*[(CONV,) * 10] * 2)))
    kinds = {step.name: step.kind for step in frozen.steps}
    firsts = Counter(kinds[call.covers[0]] for call, _ in frozen._plan)
    assert firsts == {
        "float_conv2d": 2, "conv2d": 2 * 5, "conv2d_add": 2 * 6, "join_nodes": 2,
        "float_adaptive_avg_pool2d": 1, "flatten": 1, "float_linear": 1,
    }  # fmt: skip


def test_a_relu_folds_into_an_integer_threshold():
    edges = [NONE] * 10
    edges[EDGES.index((0, 1))] = CONV  # alone reads node 0
    _, frozen = check(cells_of(edges, edges), 4)
    assert [step.arguments["epilogue"] for step in frozen.steps if step.kind == "conv2d"] == ["bits", "float"] * 2


@pytest.mark.parametrize("reader", ["sum", "relu", "bias"])
def test_other_networks_with_a_relu_behind_a_binary_convolution(reader):
    def forward(m, x):
        y = m.act(m.bn(m.a(x)))
        if reader == "sum":
            return m.act(m.b(x)) + y
        return m.b2(y) + y if reader == "bias" else m.act(y)

    model = User(forward, a=conv(), bn=nn.BatchNorm2d(8), act=nn.ReLU(), b=conv(), b2=conv(8, 8)).eval()
    frozen = bitnas.freeze(model)
    report = bitnas.verify(model, frozen, images())
    assert report.ok, report
    check_calls(frozen, images())
    assert not any(step.kind == "float_relu" for step in frozen.steps) or reader == "relu"


def test_fitting_alone():
    layers = {"a": conv(3, 8), "fit": FitChannels(8, 12, groups=2, repeat=2), "b": conv(12, 4)}
    model = User(lambda m, x: m.b(m.fit(m.a(x))), **layers).eval()
    frozen = bitnas.freeze(model)
    assert bitnas.verify(model, frozen, images()).ok
    check_calls(frozen, images())


def test_more_nodes_than_the_operator_takes():
    live = (True,) * 9
    join = JoinNodes(9, 2, live)
    model = User(lambda m, x: m.join(m.a(x), *[m.b(x)] * 9), a=conv(3, 9), b=conv(3, 2), join=join).eval()
    frozen = bitnas.freeze(model)
    assert not any(isinstance(call, plan._Join) for call, _ in frozen._plan)
    assert torch.allclose(frozen(images()), model(images()), atol=1e-5)


def test_a_wrong_number_of_nodes_in_a_file_is_refused():
    _, frozen = check(cells_of((CONV,) * 10))
    description = json.loads(json.dumps(frozen.describe()))
    step = next(step for step in description["steps"] if step["kind"] == "join_nodes")
    step["inputs"] = step["inputs"][:-1]
    with pytest.raises(ValueError, match="join_nodes reads 5 value"):
        bitnas.packed.PackedNetwork.from_description(description)


@pytest.mark.parametrize(
    "wrong", [{"live": 3}, {"live": []}, {"live": [1, 0, 1, 0]}, {"channels": -4}, {"repeat": 2.5}, {"more": 1}]
)
def test_a_malformed_end_of_a_cell_is_refused(wrong):
    frozen = bitnas.freeze(trained(cells_of((CONV,) * 10)))
    description = json.loads(json.dumps(frozen.describe()))
    step = next(step for step in description["steps"] if step["kind"] == "join_nodes")
    step["arguments"].update(wrong)
    with pytest.raises(ValueError, match="join_nodes wants channels, live, repeat"):
        bitnas.packed.PackedNetwork.from_description(description)


def test_a_relu_needs_a_float_epilogue():
    layer = functools.partial(
        bitnas.packed.layers.PackedConv2d, in_channels=3, out_channels=4, kernel_size=(1, 1), stride=(1, 1),
        padding=(0, 0), dilation=(1, 1), groups=1, activations="sign",
    )  # fmt: skip
    assert layer(epilogue="float", relu=True).spec["relu"] is True
    with pytest.raises(ValueError, match="epilogue must be 'float' where a ReLU follows, got 'bits'"):
        layer(epilogue="bits", relu=True)
