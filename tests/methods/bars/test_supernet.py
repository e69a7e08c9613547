"""The supernet computes the mixture that its definition says, and at the choices of a point that point's network."""

import copy
import dataclasses
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitnas.methods.bars.choices import Choices, one_hot
from bitnas.methods.bars.description import DESCRIPTIONS, Architecture, Description, cut
from bitnas.methods.bars.masked import _RULES, Fan, Kept, _MaskedWeight
from bitnas.methods.bars.relaxation import KINDS, relax
from bitnas.methods.bars.supernet import Supernet
from bitnas.models.bars import EDGES, Bars, canonical
from bitnas.models.operations import OPERATIONS, BinaryOperation
from bitnas.nn import BinaryConv2d
from bitnas.nn.binarizers import get_scheme

TINY = Description(name="tiny", layout="NNRN", channels=4, input_size=(2, 6, 6), num_classes=3)
SPACES = {
    "tiny": TINY,
    "all operations": dataclasses.replace(TINY, operations=tuple(OPERATIONS), channels=5, input_size=(2, 7, 5)),
    "cell widths": dataclasses.replace(TINY, width_groups="cell", channels=6),
    "shared cells, one width": dataclasses.replace(TINY, topology=(0, 0, 1, 0), widths=(1.0,)),
    "reductions only": dataclasses.replace(TINY, layout="RRR", topology=None, channels=2, width_groups="cell"),
    "ends with R": dataclasses.replace(TINY, layout="NRNR", topology=None, width_groups="cell"),
    "all cells kept": dataclasses.replace(TINY, least_depth=None),
    "no none": dataclasses.replace(TINY, operations=("skip", "binary_conv_3x3")),
    "bireal": dataclasses.replace(TINY, scheme="bireal"),
    "xnor": dataclasses.replace(TINY, scheme="xnor", width_groups="cell"),
}


def supernet(description, *, seed=0):
    """A supernet whose weights and statistics are all different from where they start."""
    torch.manual_seed(seed)
    net = Supernet(description)
    with torch.no_grad():
        for parameter in net.weight_parameters().values():
            parameter.add_(0.2 * torch.randn_like(parameter))
        for name, buffer in net.named_buffers():
            if "running" in name:
                buffer.copy_(torch.rand_like(buffer) + ("var" in name))
    return net


def images(description, count=4):
    return torch.randn(count, *description.input_size, generator=torch.Generator().manual_seed(7))


def points(description, count, seed=0):
    rng = random.Random(seed)
    return [description.biggest, *(description.random(rng) for _ in range(count))]


def relaxed(net, kind, *, hard=False, temperature=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = net.logits()
    found = logits.map(lambda t: relax(t, kind, hard=hard, temperature=temperature, generator=generator))
    edges = relax(logits.edges, kind, hard=hard, temperature=temperature, generator=generator, alive=net.alive)
    return Choices(edges, found.widths, found.depths)


def soft(description, seed=0):
    torch.manual_seed(seed)
    shapes = one_hot(description, description.biggest)
    return shapes.map(lambda t: torch.randn_like(t).softmax(-1))


# ---- points -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPACES)
def test_the_choices_of_a_point_are_its_network_bit_for_bit(name):
    description = SPACES[name]
    net, x = supernet(description).eval(), images(description)
    for point in points(description, 6):
        network = net.extract(point)
        assert isinstance(network, Bars)
        assert network.config == description.network(point)
        with torch.no_grad():
            assert torch.equal(net(x, one_hot(description, point)), network(x))


@pytest.mark.parametrize("name", [name for name in SPACES if name != "shared cells, one width"])
def test_masked_widths_are_the_sliced_network(name):
    """With a gradient wanted, channels are masked and not cut. Binary sums are integers and equal; sums in full
    precision (stem, classifier) have zeros among their terms and round in another order, so float64 and a tolerance."""
    description = SPACES[name]
    net, x = supernet(description).eval().double(), images(description).double()
    for point in points(description, 2, seed=1):
        choices = one_hot(description, point).map(lambda t: t.double().requires_grad_())
        found = net(x, choices)
        assert (found - net.extract(point)(x)).abs().max() <= 1e-13
        found.square().sum().backward()
        assert choices.widths.grad.abs().sum() > 0


@pytest.mark.parametrize("kind", ["binary", "float"])
def test_one_batch_moves_a_point_as_it_moves_its_network(kind):
    """Training mode: logits, the gradient of every weight and the running statistics; cut and masked.

    Weights are ±1/4, so that scaled sums are exact: else rounding decides whether ReLU passes a sum of 0.
    """
    description = dataclasses.replace(TINY, preprocess=kind, width_groups="cell")
    x = images(description).double()
    for point in points(description, 1, seed=2):
        for needed in (False, True):
            net = supernet(description).double()
            with torch.no_grad():
                for module in net.modules():
                    if isinstance(module, BinaryConv2d):
                        module.weight.copy_(module.weight.sign() / 4)
            network = net.extract(point)
            choices = one_hot(description, point).map(lambda t, needed=needed: t.double().requires_grad_(needed))
            found, wanted = net(x, choices), network(x)
            assert (found - wanted).abs().max() <= 1e-10
            found.square().sum().backward()
            wanted.square().sum().backward()
            with torch.no_grad():
                for parameter in (*net.parameters(), *network.parameters()):
                    parameter.copy_(torch.zeros_like(parameter) if parameter.grad is None else parameter.grad)
            moved = net.extract(point).state_dict()
            for key, value in network.state_dict().items():
                if "num_batches" not in key:
                    assert (moved[key] - value).abs().max() <= 1e-9, key


def test_depth_is_the_plain_chain():
    """What a point of fewer cells computes is the rest of the deeper point's cells, one after the other."""
    net, x = supernet(TINY).eval(), images(TINY)
    whole = net.extract(TINY.biggest)
    for depths in [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]:
        cells = [*whole.cells[: depths[0]], whole.cells[2], *whole.cells[3 : 3 + depths[1]]]
        with torch.no_grad():
            state = whole.stem(x)
            for cell in cells:
                state = cell(state)
            wanted = whole.fc(whole.pool(state).flatten(1))
            point = dataclasses.replace(TINY.biggest, depths=depths)
            assert torch.equal(net(x, one_hot(TINY, point)), wanted)


def test_nothing_comes_from_a_node_that_nothing_reaches():
    none_into_1 = ("none", *["binary_conv_3x3"] * 9)
    point = Architecture((none_into_1, *[("skip",) * 10] * 3), (0.5, 1.0), (2, 1))
    assert canonical(none_into_1) != none_into_1
    net, x = supernet(TINY).eval(), images(TINY)
    choices = one_hot(TINY, point)
    network = net.extract(point)
    with torch.no_grad():
        assert torch.equal(net(x, choices), network(x))
    needed = choices.map(lambda t: t.clone().requires_grad_())
    assert torch.allclose(net(x, needed), network(x), atol=1e-6)


def test_a_cell_without_anything_is_its_shortcut():
    description = dataclasses.replace(TINY, widths=(1.0,))
    point = dataclasses.replace(description.biggest, cells=(("none",) * 10,) * 4)
    net, x = supernet(description).eval(), images(description)
    with torch.no_grad():
        state = net.stem(x)
        halved = F.avg_pool2d(state, 2).repeat_interleave(2, 1)
        wanted = net.fc(halved.mean((2, 3)))
        assert torch.allclose(net(x, one_hot(description, point)), wanted, atol=1e-6)
        assert torch.equal(net(x, one_hot(description, point)), net.extract(point)(x))


def test_extraction_copies_and_draws_nothing():
    net = supernet(TINY)
    before = torch.random.get_rng_state()
    network = net.extract(TINY.biggest)
    assert torch.equal(before, torch.random.get_rng_state())
    assert network.training
    assert not net.eval().extract(TINY.biggest).training
    own = {t.untyped_storage().data_ptr() for t in net.state_dict().values()}
    assert own.isdisjoint(t.untyped_storage().data_ptr() for t in network.state_dict().values())
    assert all(parameter.requires_grad for parameter in network.parameters())
    with pytest.raises(ValueError, match="widths"):
        net.extract(dataclasses.replace(TINY.biggest, widths=(0.3, 1.0)))


# ---- mixtures -----------------------------------------------------------------------------------


def by_hand(net, x, choices):
    """The supernet's definition, one operation after the other and no cut, in the supernet's mode."""
    description, names = net.description, net.description.operations

    def mask(group, channels, stride=1):
        prefixes = [[float(n < max(1, cut(r, channels) // stride)) for n in range(channels // stride)]
                    for r in description.widths]  # fmt: skip
        return choices.widths[group] @ torch.tensor(prefixes, dtype=x.dtype)

    def binary(z, bn, weight, m_in, m_out, stride, operation):
        bits = torch.where(bn(z) >= 0, 1.0, -1.0).to(z) * m_in.view(-1, 1, 1)
        both = m_out.view(-1, 1, 1, 1) * m_in.view(1, -1, 1, 1) * torch.ones_like(weight)
        if description.scheme in ("bars", "dorefa"):
            scale = (weight.abs() * both).sum() / both.sum()
        else:
            row = m_in.view(1, -1, 1, 1) * torch.ones_like(weight)
            scale = ((weight.abs() * row).sum((1, 2, 3)) / row.sum((1, 2, 3))).view(-1, 1, 1, 1)
        kernel = torch.where(weight >= 0, 1.0, -1.0).to(weight) * scale
        padding = operation.dilation * (operation.kernel // 2)
        return F.conv2d(bits, kernel, None, stride, padding, operation.dilation).relu()

    def layer(fan, number):
        bn = nn.BatchNorm2d(fan.bn.num_features // fan.count).to(x)
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(bn, name).data = getattr(fan.bn, name).detach().view(fan.count, -1)[number].clone()
        return bn.train(net.training), fan.conv.weight.detach().unflatten(0, (fan.count, -1))[number].clamp(-1, 1)

    state_mask = mask(description.places[0].width, description.channels).repeat(4)
    state = copy.deepcopy(net.stem)(x) * state_mask.view(-1, 1, 1)
    for stage, normal in enumerate(description.stages):
        passed = []
        reductions = [n for n, p in enumerate(description.places) if p.stage == stage and p.stride == 2]
        for number in [*reductions, *normal]:
            place, cell = description.places[number], net.cells[number]
            if place.stride == 1:
                passed.append((state, state_mask))
            wide, inner = mask(place.width, place.channels), mask(place.width, place.channels, place.stride)
            pre = cell.preprocess
            node = binary(state, copy.deepcopy(pre.bn), pre.conv.weight.detach().clamp(-1, 1), state_mask, inner, 1,
                          OPERATIONS["binary_conv_1x1"])  # fmt: skip
            nodes = [node * inner.view(-1, 1, 1)]
            for target in range(1, 5):
                total = 0.0
                for edge, (source, to) in enumerate(EDGES):
                    for n, name in enumerate(names if to == target else ()):
                        stride = place.stride if source == 0 else 1
                        if name == "skip":
                            value = nodes[source]
                            if stride == 2:
                                value = F.avg_pool2d(value, 2, ceil_mode=True, count_include_pad=False)
                                value = value.repeat_interleave(2, 1)
                        elif name == "none":
                            continue
                        else:
                            bn, weight = layer(cell.fans[f"{source}_{name}"], target - source - 1)
                            of_source = inner if source == 0 else wide
                            value = binary(nodes[source], bn, weight, of_source, wide, stride, OPERATIONS[name])
                        total = total + choices.edges[place.topology, edge, n] * value
                nodes.append(total * wide.view(-1, 1, 1))
            shortcut = state
            if place.stride == 2:
                shortcut = F.avg_pool2d(state, 2, ceil_mode=True, count_include_pad=False).repeat_interleave(2, 1)
            state_mask = wide.repeat(4)
            state = (shortcut + torch.cat(nodes[1:], 1)) * state_mask.view(-1, 1, 1)
        passed.append((state, state_mask))
        weights = choices.depths[stage]
        kept = [passed[depth] for depth in description.depth_choices[stage]]
        state = sum(p * s for p, (s, _) in zip(weights, kept, strict=True))
        state_mask = sum(p * m for p, (_, m) in zip(weights, kept, strict=True))
    return net.fc(state.mean((2, 3)))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("name", ["tiny", "all operations", "cell widths", "ends with R", "bireal", "xnor"])
def test_a_mixture_is_what_its_definition_says(name, training):
    description = SPACES[name]
    net = supernet(description).double().train(training)
    choices = soft(description).map(torch.Tensor.double)
    x = images(description).double()
    with torch.no_grad():
        wanted = by_hand(copy.deepcopy(net), x, choices)
        assert (net(x, choices) - wanted).abs().max() <= 1e-10


def test_gradients_by_weights_that_no_sign_follows_are_differences():
    """Edges into the last node, and the depth of the last stage: behind them nothing is binarized."""
    net, x = supernet(TINY).double().eval(), images(TINY).double()
    choices = soft(TINY).map(lambda t: t.double().requires_grad_())

    def loss(changed):
        return net(x, changed).logsumexp(-1).square().sum()

    by_edges, by_depth = torch.autograd.grad(loss(choices), (choices.edges, choices.depths[-1]))
    last, step = TINY.places[-1].topology, 1e-6
    for edge, (_, target) in enumerate(EDGES):
        for n in range(len(TINY.operations) if target == 4 else 0):
            moved = choices.map(lambda t: t.detach().clone())
            moved.edges[last, edge, n] += step
            found = (loss(moved) - loss(choices)).item() / step
            assert found == pytest.approx(by_edges[last, edge, n].item(), rel=1e-3, abs=1e-5)
    for n in range(2):
        moved = choices.map(lambda t: t.detach().clone())
        moved.depths[-1][n] += step
        assert (loss(moved) - loss(choices)).item() / step == pytest.approx(by_depth[n].item(), rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_the_gradient_of_a_loss_reaches_every_architecture_parameter(kind, hard):
    """Of hard draws several, since one draw leaves out cells. The weight of `none` is in no sum, so that it has a
    gradient only where weights compete: Bernoulli's do not, and its logit stays what the others are compared with."""
    net, x = supernet(TINY), images(TINY, 16)
    labels = torch.arange(16) % 3
    totals = {name: torch.zeros_like(p) for name, p in net.architecture_parameters().items()}
    for draw in range(8 if hard else 1):
        if hard:
            torch.manual_seed(draw)
            with torch.no_grad():
                for parameter in net.architecture_parameters().values():
                    parameter.copy_(torch.randn_like(parameter))
        edges = relaxed(net, kind, hard=hard, seed=draw).edges
        macro = relaxed(net, "softmax" if kind == "bernoulli" else kind, hard=hard and kind != "bernoulli", seed=draw)
        loss = F.cross_entropy(net(x, Choices(edges, macro.widths, macro.depths)), labels)
        for total, grad in zip(
            totals.values(), torch.autograd.grad(loss, list(net.architecture_parameters().values())), strict=True
        ):
            total += grad.abs()
    if kind == "bernoulli":
        none = TINY.operations.index("none")
        assert not totals["edges"][..., none].any()
        totals["edges"] = totals["edges"][..., none + 1 :]
    for name, total in totals.items():
        assert total.min() > 0, name


def test_a_step_in_training_reaches_every_weight():
    net, x = supernet(TINY), images(TINY, 8)
    before = {name: buffer.clone() for name, buffer in net.named_buffers() if "running" in name}
    net(x, net.probabilities().map(torch.Tensor.detach)).logsumexp(-1).square().sum().backward()
    for name, parameter in net.weight_parameters().items():
        assert parameter.grad.abs().sum() > 0, name
    assert all(parameter.grad is None for parameter in net.architecture_parameters().values())
    assert not any(torch.equal(buffer, before[name]) for name, buffer in net.named_buffers() if name in before)


def test_weights_of_bars_are_clamped_where_they_are():
    net = supernet(dataclasses.replace(TINY, widths=(0.5, 1.0)))
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, Fan | BinaryOperation):
                module.conv.weight.mul_(100)
    net(images(TINY), one_hot(net.description, net.description.biggest))
    for module in net.modules():
        if isinstance(module, Fan | BinaryOperation) and "binary_conv_3x3" in str(module):
            assert module.conv.weight.abs().max() == 1


# ---- what is not computed -----------------------------------------------------------------------


def computed(net, x, choices):
    """Which operations ran: (cell, fan, places of the operations in it)."""
    ran = []
    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: ran.extend((name, n) for n in inputs[1]))
        for name, module in net.named_modules()
        if isinstance(module, Fan)
    ]
    net(x, choices)
    for hook in hooks:
        hook.remove()
    return ran


def test_pruned_operations_are_zero_and_not_computed():
    net, x = supernet(TINY), images(TINY)
    convolution = TINY.operations.index("binary_conv_3x3")
    assert len(computed(net, x, net.probabilities())) == 4 * 10
    net.alive[1, 3:, convolution] = False
    net.alive[2, :, convolution] = False
    for kind in KINDS:
        for hard in (False, True):
            choices = relaxed(net, kind, hard=hard)
            assert not choices.edges[~net.alive].any()
            ran = computed(net, x, choices)
            cells = [TINY.places[int(name.split(".")[1])].topology for name, _ in ran]
            assert 2 not in cells
            assert cells.count(1) <= 3
    assert not net.probabilities().edges[~net.alive].any()
    assert torch.allclose(net.probabilities().edges.sum(-1), torch.ones(()))
    assert len(computed(net, x, net.probabilities())) == 20 + 3
    loss = net(x, net.probabilities()).square().sum()
    (grad,) = torch.autograd.grad(loss, net.edges)
    assert not grad[~net.alive].any()
    assert "alive" in net.state_dict()


def test_without_a_gradient_what_has_weight_zero_is_not_computed():
    net, x = supernet(TINY), images(TINY)
    point = dataclasses.replace(TINY.biggest, cells=(("skip",) * 9 + ("binary_conv_3x3",),) * 4, depths=(1, 0))
    choices = one_hot(TINY, point)
    assert computed(net, x, choices) == [("cells.0.fans.3_binary_conv_3x3", 0), ("cells.2.fans.3_binary_conv_3x3", 0)]
    needed = choices.map(lambda t: t.clone().requires_grad_())
    assert len(computed(net, x, needed)) == 40
    with torch.no_grad():
        assert len(computed(net, x, needed)) == 2


def test_choices_that_are_all_zero_are_refused():
    net, x = supernet(TINY), images(TINY)
    choices = soft(TINY)
    choices.widths[1] = 0
    with pytest.raises(ValueError, match=r"widths\[1\]: got weights that are all 0"):
        net(x, choices)
    choices = soft(TINY)
    choices.depths[0][:] = 0
    with pytest.raises(ValueError, match=r"depths\[0\]: got weights that are all 0"):
        net(x, choices)


def test_a_scheme_that_cannot_be_masked_is_refused():
    with pytest.raises(ValueError, match="scheme: got 'nasbnn', whose weights cannot be masked by width"):
        Supernet(dataclasses.replace(TINY, scheme="nasbnn"))


def test_parameters_are_those_of_the_description():
    net = Supernet(DESCRIPTIONS["cifar"])
    shapes = {name: tuple(p.shape) for name, p in net.architecture_parameters().items()}
    assert shapes == {"edges": (7, 10, 2), "widths": (3, 4), "depths.0": (3,), "depths.1": (3,), "depths.2": (3,)}
    assert not any(parameter.any() for parameter in net.architecture_parameters().values())
    assert net.alive.shape == net.edges.shape
    assert net.alive.all()
    assert set(net.weight_parameters()) | set(shapes) == set(dict(net.named_parameters()))
    biggest = net.extract(net.description.biggest)  # every edge has a convolution: it has all of the weights
    assert sum(p.numel() for p in net.weight_parameters().values()) == sum(p.numel() for p in biggest.parameters())


# ---- masked weights -----------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", _RULES)
def test_the_gradient_by_masks_is_exact(scheme):
    torch.manual_seed(0)
    w = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    masks = [torch.rand(n, dtype=torch.float64).add_(0.1).requires_grad_() for n in (4, 3)]
    assert torch.autograd.gradcheck(lambda i, o: _MaskedWeight.apply(w, i, o, _RULES[scheme]), masks)


@pytest.mark.parametrize("kept", [None, "a constant"])
@pytest.mark.parametrize("scheme", _RULES)
def test_the_gradient_by_one_mask_alone_is_exact(scheme, kept):
    """Where the other is not there, or needs no gradient."""
    torch.manual_seed(0)
    w = torch.randn(2, 3, 4, 2, 2, dtype=torch.float64)
    of_input, of_output = (torch.rand(n, dtype=torch.float64).add_(0.1) for n in (4, 3))
    other = (None, None) if kept is None else (of_input, of_output)
    own = of_input.clone().requires_grad_(), of_output.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda i: _MaskedWeight.apply(w, i, other[1], _RULES[scheme]), own[0])
    assert torch.autograd.gradcheck(lambda o: _MaskedWeight.apply(w, other[0], o, _RULES[scheme]), own[1])


@pytest.mark.parametrize("name", ["tiny", "cell widths", "bireal", "xnor"])
def test_a_gradient_by_depths_or_widths_alone_is_that_by_both(name):
    """One-hot widths that need no gradient are cut and leave no mask, but depths mix what is of several widths. Weights
    are ±1/4 and probabilities powers of 2: see `test_one_batch_moves_a_point_as_it_moves_its_network`."""
    description = SPACES[name]
    widths = [description.widths[-(number % 2)] for number in range(description.width_count)]
    x, point = images(description).double(), dataclasses.replace(description.biggest, widths=tuple(widths))
    held = one_hot(description, point).map(torch.Tensor.double)
    depths = tuple(torch.tensor({2: [0.5, 0.5], 3: [0.5, 0.25, 0.25]}[len(t)]).double() for t in held.depths)

    def gradients(by_widths, by_depths):
        widths = held.widths.clone().requires_grad_(by_widths)
        mixed = tuple(tensor.clone().requires_grad_(by_depths) for tensor in depths)
        net = supernet(description).double()
        with torch.no_grad():
            for module in net.modules():
                if isinstance(module, BinaryConv2d):
                    module.weight.copy_(module.weight.sign() / 4)
        net(x, Choices(held.edges, widths, mixed)).square().sum().backward()
        return widths.grad, [tensor.grad for tensor in mixed]

    both = gradients(True, True)
    widths, nothing = gradients(True, False)
    assert nothing == [None] * len(depths)
    assert torch.allclose(widths, both[0], rtol=1e-9, atol=1e-12)
    nothing, alone = gradients(False, True)
    assert nothing is None
    for found, wanted in zip(alone, both[1], strict=True):
        # What moves all of them alike is no choice: a mask that is always 1 is left out.
        found, wanted = found - found.mean(), wanted - wanted.mean()
        assert wanted.abs().sum() > 0
        assert torch.allclose(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("scheme", _RULES)
def test_the_gradient_by_kept_weights_is_the_schemes(scheme):
    torch.manual_seed(0)
    w = (0.8 * torch.randn(2, 4, 5, 3, 3, dtype=torch.float64)).requires_grad_()
    masks = [(torch.arange(n) < kept).double() for n, kept in ((5, 2), (4, 3))]
    found = _MaskedWeight.apply(w, *masks, _RULES[scheme])
    binarizer = get_scheme(scheme).weight()
    limited = w.detach().clamp(-1, 1) if scheme == "bars" else w.detach()
    if scheme == "bars":
        found = _MaskedWeight.apply(w.detach().clamp_(-1, 1).requires_grad_(), *masks, _RULES[scheme])
    sliced = [limited[n, :3, :2].clone().requires_grad_() for n in range(2)]
    wanted = [binarizer(each) for each in sliced]
    assert torch.allclose(found[:, :3, :2], torch.stack(wanted), rtol=1e-12)
    assert not found[:, :, 2:].any()
    if scheme != "bars":
        upstream = torch.randn_like(found)
        upstream[:, 3:] = 0  # the output's mask, applied to the node's sum
        (by_w,) = torch.autograd.grad(found, w, upstream)
        for n in range(2):
            (own,) = torch.autograd.grad(wanted[n], sliced[n], upstream[n, :3, :2])
            assert torch.allclose(by_w[n, :3, :2], own, rtol=1e-12)
        assert not by_w[:, :, 2:].any()
        assert not by_w[:, 3:].any()


def test_kept_rows_are_the_mask_of_each_group():
    mask = torch.tensor([1.0, 0.5])
    assert torch.equal(Kept(2, mask).rows(3), torch.tensor([1.0, 0.5, 1.0, 0.5, 1.0, 0.5]))
    assert Kept(2).rows(3) is None
