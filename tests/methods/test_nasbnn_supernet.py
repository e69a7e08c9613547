"""The supernet is what the paper says (slices, transforms, a teacher with float weights), and a subnet is extracted bit
for bit."""

import copy
import dataclasses
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitnas.methods.nasbnn.description import DESCRIPTIONS, Description, Stage
from bitnas.methods.nasbnn.elastic import Cut, cut_all, transformed
from bitnas.methods.nasbnn.supernet import Strategies, Supernet
from bitnas.models.nasbnn import Block, NasBnn
from bitnas.nn.binarizers import NasBnnWeight, sign

TINY = Description(
    name="tiny",
    input_size=(2, 7, 7),
    num_classes=3,
    stem=(4, 6),
    stages=(
        Stage(channels=(8, 12), depths=(1, 2), kernels=(1, 3), groups=(1, 2)),
        Stage(channels=(12, 24), depths=(1, 2), kernels=(3, 5, 7), groups=(2, 4), groups_1x1=2, stride=2),
    ),
)
PLAIN = Strategies(bi_transformation=False, weight_normalization=False)


def supernet(description=TINY, strategies=None, *, noise=0.1, seed=0):
    """A supernet whose tensors are all different from where they start."""
    torch.manual_seed(seed)
    found = Supernet(description, strategies)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    for name, buffer in found.named_buffers():
        if buffer.is_floating_point():
            buffer.copy_(torch.rand_like(buffer) + ("var" in name))
    return found


def subnets(net, count, seed=0):
    rng = random.Random(seed)
    return [net.biggest, net.smallest, *(net.space.subnet(net.space.random(rng)) for _ in range(count))]


def test_the_papers_supernet_has_its_parameters():
    with torch.device("meta"):
        net = Supernet(DESCRIPTIONS["imagenet"])
    assert sum(parameter.numel() for parameter in net.parameters()) == 66_508_159
    assert sum(parameter.numel() for parameter in net.transforms.parameters()) == 12_951


def by_hand(whole, out, inp, groups, kernel):
    """The slice of a grouped convolution's weight, element by element."""
    width, margin = inp // groups, (whole.shape[2] - kernel) // 2
    slices = whole.shape[1] // width
    found = torch.empty(out, width, kernel, kernel)
    for o in range(out):
        start = (o // (out // groups)) % slices * width
        for i in range(width):
            for y in range(kernel):
                for x in range(kernel):
                    found[o, i, y, x] = whole[o, start + i, y + margin, x + margin]
    return found


@pytest.mark.parametrize(
    ("most", "fewest_groups", "out", "inp", "groups"),
    [
        (12, 1, 12, 12, 1),  # all of it
        (12, 1, 8, 8, 1),
        (12, 1, 8, 8, 2),  # two slices of the prefix
        (12, 2, 12, 12, 4),  # two slices for four groups
        (12, 2, 8, 8, 4),  # three slices for four groups: the last takes the first again
        (16, 4, 8, 8, 8),
        (24, 2, 24, 24, 4),
        (12, 2, 12, 12, 2),  # one slice for two groups
    ],
)
@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_slices_and_their_gradients_against_loops(most, fewest_groups, out, inp, groups, kernel, memory_format):
    whole = nn.Parameter(torch.randn(most, most // fewest_groups, 5, 5).to(memory_format=memory_format))
    cut = Cut((out, inp // groups, kernel, kernel), groups)
    found = cut_all({whole: cut})[whole]
    expected = by_hand(whole.detach(), out, inp, groups, kernel)
    assert found.is_contiguous()
    assert torch.equal(found, expected)

    reference = whole.detach().clone().requires_grad_()
    places = by_hand(torch.arange(whole.numel()).view(whole.shape).float(), out, inp, groups, kernel).long()
    by_places = reference.flatten()[places]
    for factor in (1.0, 3.0):  # the second pass adds to the gradient of the first
        weights = torch.randn(found.shape)
        (factor * weights * cut_all({whole: cut})[whole]).sum().backward()
        (factor * weights * by_places).sum().backward(retain_graph=True)
    assert torch.allclose(whole.grad, reference.grad, atol=1e-6)
    assert whole.grad.stride() == whole.stride()


def test_vectors_are_prefixes_and_frozen_parameters_stay_so():
    vector, frozen = nn.Parameter(torch.randn(6)), nn.Parameter(torch.randn(6), requires_grad=False)
    of = cut_all({vector: Cut((4,)), frozen: Cut((6,))})
    assert torch.equal(of[vector], vector[:4])
    (of[vector] * of[frozen][:4]).sum().backward()
    assert torch.equal(vector.grad, torch.cat([frozen[:4], torch.zeros(2)]))
    assert frozen.grad is None
    with torch.no_grad():
        assert not cut_all({vector: Cut((4,))})[vector].requires_grad


@pytest.mark.parametrize("strategies", [Strategies(), PLAIN, Strategies(weight_normalization=False)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_an_extracted_subnet_gives_the_bits_of_the_pass(strategies, memory_format):
    net = supernet(strategies=strategies).to(memory_format=memory_format)
    x = torch.randn(6, *TINY.input_size)
    for subnet in subnets(net, 5):
        for training in (False, True):
            net.train(training)
            alone = net.extract(subnet)
            assert isinstance(alone, NasBnn)
            assert alone.config == subnet
            assert alone.training == training
            assert torch.equal(net(x, subnet), alone(x))
            # The pass moved the statistics of the channels that it used, as the module moved its own.
            again = net.extract(subnet)
            assert all(torch.equal(a, b) for a, b in zip(again.buffers(), alone.buffers(), strict=True))
    assert torch.equal(net(x), net(x, net.biggest))


@pytest.mark.parametrize("name", ["small", pytest.param("cifar", marks=pytest.mark.slow)])
def test_the_spaces_of_the_package_extract_bit_for_bit(name):
    net = supernet(DESCRIPTIONS[name]).eval()
    x = torch.randn(2, *net.description.input_size)
    for subnet in subnets(net, 2, seed=1):
        assert torch.equal(net(x, subnet), net.extract(subnet)(x))


def test_an_extracted_subnet_is_a_copy():
    net = supernet()
    state = torch.get_rng_state()
    alone = net.extract(net.biggest)
    assert torch.equal(torch.get_rng_state(), state)
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        for tensor in (*alone.parameters(), *alone.buffers()):
            tensor.zero_()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in alone.parameters())


def test_gradients_of_a_pass_are_those_of_the_extracted_module():
    """Without transforms the supernet's gradients are the module's, in their places, and 0 elsewhere."""
    net = supernet(strategies=Strategies(bi_transformation=False)).train()
    subnet = net.smallest
    alone = net.extract(subnet)
    x, y = torch.randn(6, *TINY.input_size), torch.arange(6) % 3
    F.cross_entropy(alone(x), y).backward()
    F.cross_entropy(net(x, subnet), y).backward()
    gradients = {name: parameter.grad for name, parameter in alone.named_parameters()}
    assert torch.equal(net.network.stem_bn.weight.grad[:4], gradients["stem_bn.weight"])
    assert not net.network.stem_bn.weight.grad[4:].any()
    assert torch.equal(net.network.fc.weight.grad[:, :12], gradients["fc.weight"])
    whole = net.network.blocks[0].conv2.weight.grad
    assert torch.allclose(whole[:8, :4], gradients["blocks.0.conv2.weight"])
    assert not whole[8:].any()
    # Two groups of two channels each lie on the diagonal of a weight for four; 1 of 3 x 3 taps.
    whole, own = net.network.blocks[0].conv1.weight.grad, gradients["blocks.0.conv1.weight"]
    assert torch.allclose(whole[:2, :2, 1:2, 1:2], own[:2])
    assert torch.allclose(whole[2:4, 2:4, 1:2, 1:2], own[2:4])
    assert whole.count_nonzero() <= own.numel()
    assert net.network.blocks[1].conv1.weight.grad is None  # the smallest is one block deep here


def test_the_gradients_of_passes_add_up():
    net = supernet().train()
    x = torch.randn(5, *TINY.input_size)
    chosen = subnets(net, 3)
    separate = []
    for subnet in chosen:
        net.zero_grad()
        net(x, subnet).square().sum().backward()
        separate.append({name: p.grad.clone() for name, p in net.named_parameters() if p.grad is not None})
    net.zero_grad()
    for subnet in chosen:
        net(x, subnet).square().sum().backward()
    for name, parameter in net.named_parameters():
        if parameter.grad is None:
            assert not any(name in gradients for gradients in separate)
            continue
        expected = sum(gradients[name] for gradients in separate if name in gradients)
        assert torch.allclose(parameter.grad, expected, rtol=1e-4, atol=1e-5), name


def test_identity_transforms_leave_the_centre_of_the_kernel():
    torch.manual_seed(0)
    with_matrices = Supernet(DESCRIPTIONS["small"]).eval()
    without = Supernet(DESCRIPTIONS["small"], Strategies(bi_transformation=False)).eval()
    without.load_state_dict(with_matrices.state_dict(), strict=False)
    x = torch.randn(4, 1, 8, 8)
    for subnet in subnets(with_matrices, 6):
        assert torch.equal(with_matrices(x, subnet), without(x, subnet))
    blocks = [dataclasses.replace(block, kernel=3) for block in with_matrices.biggest.blocks]
    alone = with_matrices.extract(dataclasses.replace(with_matrices.biggest, blocks=tuple(blocks)))
    for block, whole in zip(alone.blocks[2:], with_matrices.network.blocks[2:], strict=True):
        assert whole.conv1.kernel_size == (5, 5)
        assert torch.equal(block.conv1.weight, whole.conv1.weight[..., 1:4, 1:4])


def test_which_matrix_makes_which_kernel():
    """Largest kernel: its own matrix. Smaller ones: a chain from the centre of the largest but one, untransformed."""
    torch.manual_seed(0)
    matrices = {side: torch.randn(side * side, side * side) for side in (7, 5, 3)}
    weight = torch.randn(4, 2, 7, 7)

    def by_rows(w, side):
        return torch.stack([matrices[side] @ row for row in w.reshape(-1, side * side)]).view(4, 2, side, side)

    largest = transformed(weight, 7, {7: matrices[7]})
    assert torch.allclose(largest, by_rows(weight, 7), atol=1e-4)
    five = by_rows(weight[..., 1:6, 1:6], 5)
    assert torch.allclose(transformed(weight[..., 1:6, 1:6], 5, {5: matrices[5]}), five, atol=1e-4)
    three = by_rows(five[..., 1:4, 1:4], 3)
    chain = {5: matrices[5], 3: matrices[3]}
    assert torch.allclose(transformed(weight[..., 1:6, 1:6], 3, chain), three, atol=1e-3)
    assert torch.allclose(transformed(weight[..., 1:6, 1:6], 1, chain), three[..., 1:2, 1:2], atol=1e-3)
    # The supernet hands over the matrices of the chain and no other.
    net = supernet()
    first = net.transforms[2]
    for kernel, used in ((7, {"7"}), (5, {"5"}), (3, {"5", "3"})):
        net.zero_grad()
        blocks = [*net.biggest.blocks[:2], dataclasses.replace(net.biggest.blocks[2], kernel=kernel)]
        subnet = dataclasses.replace(net.biggest, blocks=(*blocks, net.biggest.blocks[3]))
        net.train()(torch.randn(4, *TINY.input_size), subnet).square().sum().backward()
        assert {side for side, matrix in first.items() if matrix.grad is not None} == used
        assert all(first[side].grad.any() for side in used)


def test_layers_of_one_kernel_have_one_matrix_and_pointwise_ones_none():
    net = Supernet(DESCRIPTIONS["small"])
    assert [sorted(matrices) for matrices in net.transforms] == [["3"]] * 2 + [["3", "5"]] * 5
    assert all(torch.equal(matrix, torch.eye(len(matrix))) for matrix in net.transforms.parameters())
    assert not list(Supernet(DESCRIPTIONS["small"], Strategies(bi_transformation=False)).transforms.parameters())


def test_the_teacher_has_float_weights_and_binary_activations(monkeypatch):
    net = supernet().train()
    seen = []
    convolve = F.conv2d

    def spy(x, weight, *args, **kwargs):
        seen.append((x.detach(), weight.detach()))
        return convolve(x, weight, *args, **kwargs)

    monkeypatch.setattr(F, "conv2d", spy)
    net(torch.randn(4, *TINY.input_size), teacher=True).sum().backward()
    layers = [layer for block in net.network.blocks for layer in (block.conv1, block.conv2)]
    assert len(seen) == 1 + len(layers)
    for (x, weight), layer in zip(seen[1:], layers, strict=True):
        assert set(x.unique().tolist()) <= {-1.0, 1.0}
        assert torch.equal(weight, NasBnnWeight().latent(layer.weight.detach()))  # neither transformed nor scaled
        assert not torch.equal(weight.abs(), weight.abs().mean().expand_as(weight))
        assert layer.weight.grad.any()
    assert all(matrix.grad is None for matrix in net.transforms.parameters())


def test_a_students_gradients_reach_the_matrices():
    net = supernet().train()
    net(torch.randn(4, *TINY.input_size)).square().sum().backward()
    largest = [matrices[max(matrices, key=int)] for matrices in net.transforms]
    assert all(matrix.grad is not None and matrix.grad.any() for matrix in largest)


def test_student_weights_are_signs(monkeypatch):
    net = supernet().train()
    seen = []
    convolve = F.conv2d

    def spy(x, weight, *args, **kwargs):
        seen.append(weight.detach())
        return convolve(x, weight, *args, **kwargs)

    monkeypatch.setattr(F, "conv2d", spy)
    net(torch.randn(4, *TINY.input_size))
    block = net.network.blocks[2]
    kernel = transformed(block.conv1.weight, 7, {7: net.transforms[2]["7"]})
    latent = NasBnnWeight().latent(kernel)
    expected = sign(latent) * latent.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    assert torch.equal(seen[5], expected)  # after the stem and two blocks


def test_switches_change_what_they_say():
    x = torch.randn(4, *TINY.input_size)
    nets = [
        supernet(strategies=strategies, noise=0.0).eval()
        for strategies in (Strategies(), Strategies(weight_normalization=False))
    ]
    assert nets[0].biggest.scheme == "nasbnn"
    assert nets[1].biggest.scheme == nets[1].extract(nets[1].smallest).blocks[0].conv1.scheme == "bireal"
    nets[1].load_state_dict(nets[0].state_dict())
    assert not torch.equal(nets[0](x), nets[1](x))
    assert not torch.equal(nets[0](x, teacher=True), nets[1](x, teacher=True))
    assert not torch.equal(nets[0](x, teacher=True), nets[0](x))


def test_distances_between_binary_and_float_weights():
    net = supernet(strategies=Strategies(consistency=0.1)).train()
    subnet, distances = net.biggest, []
    net(torch.randn(4, *TINY.input_size), subnet, distances=distances)
    assert len(distances) == 2 * len(subnet.blocks)
    latent = NasBnnWeight().latent(net.extract(subnet).blocks[0].conv2.weight.detach())
    scale = latent.abs().flatten(1).mean(1).view(-1, 1, 1, 1)
    floats = latent / latent.flatten(1).square().mean(1).view(-1, 1, 1, 1)
    assert torch.allclose(distances[1], (sign(latent) / scale - floats).square().mean())
    sum(distances).backward()
    assert net.network.blocks[0].conv1.weight.grad.any()
    assert net.transforms[2]["7"].grad.any()


@pytest.mark.parametrize("normalised", [True, False])
@pytest.mark.parametrize("value", [0.0, 0.1])
def test_distances_of_a_filter_without_variance_are_finite(normalised, value):
    net = supernet(strategies=Strategies(weight_normalization=normalised, consistency=0.1)).train()
    weight = net.network.blocks[0].conv2.weight
    distances = [[], []]
    with torch.no_grad():
        weight[1] = value
    net(torch.randn(4, *TINY.input_size), net.biggest, distances=distances[0])
    sum(distances[0]).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters() if parameter.grad is not None)
    with torch.no_grad():  # where all weights are equal binary and float ones are, too: no distance
        weight[:] = value
    net(torch.randn(4, *TINY.input_size), net.biggest, distances=distances[1])
    assert 0 < distances[0][1] < 100
    assert distances[1][1] < 1e-6


def test_subnets_of_other_spaces_are_refused():
    net = supernet()
    for change in ({"num_classes": 4}, {"stem": 5}, {"weight_normalization": False}):
        with pytest.raises(ValueError, match=r"wanted"):
            net(torch.randn(2, *TINY.input_size), dataclasses.replace(net.smallest, **change))
    with pytest.raises(ValueError, match="do not fit the stages"):
        net.extract(dataclasses.replace(net.smallest, blocks=(*net.smallest.blocks, Block(24, 9, 2, 2))))


def test_strategies_as_data():
    chosen = Strategies(bi_teacher=False, consistency=0.1)
    assert Strategies.from_dict(chosen.to_dict()) == chosen
    assert Strategies.from_dict({}) == Strategies()
    with pytest.raises(ValueError, match="unknown fields"):
        Strategies.from_dict({"teacher": True})
    with pytest.raises(TypeError, match="bi_teacher: got 1, wanted True or False"):
        Strategies(bi_teacher=1)
    with pytest.raises(ValueError, match="consistency: got -1"):
        Strategies(consistency=-1)
