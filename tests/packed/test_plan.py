"""How a frozen network runs: whatever steps share a call or a block, every value is that of its step alone."""

import copy

import pytest
import torch
from definition import randomise
from modules import User, conv, images
from torch import nn

import bitnas
from bitnas.packed import plan
from bitnas.packed.steps import FUNCTIONS, INPUT


def step_by_step(frozen, x):
    """Every step by its own layer or function, in order; a float convolution of few channels as it is defined."""
    values = {INPUT: x}
    for step in frozen.steps:
        run = getattr(frozen, step.name, None) or FUNCTIONS[step.kind]
        if isinstance(run, nn.Conv2d) and run.in_channels <= 16 and run.groups == 1:
            run = Stem(run)
        arguments = {} if isinstance(run, nn.Module) else step.arguments
        values[step.name] = run(*[values[name] for name in step.inputs], **arguments)
    return values


class Stem(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        weight = self.conv.weight.permute(2, 3, 1, 0).contiguous()
        geometry = (*self.conv.stride, *self.conv.padding, False, 1, 1, 1, 1, 0, 0)
        y = torch.ops.bitnas.float_conv2d(x.contiguous(), weight, self.conv.bias, *geometry)
        wanted = self.conv(x)
        assert y.numel() == 0 or (y - wanted).abs().max() <= 1e-5 * wanted.abs().max()
        return y


def check(frozen, x):
    wanted = step_by_step(frozen, x)
    traced = frozen.values(x)
    assert traced.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(traced[name], value), name
    assert torch.equal(frozen(x), wanted[frozen.steps[-1].name])


def calls(frozen, kind):
    return [call for call, _ in frozen._plan if isinstance(call, kind)]


def stem_network(relu=True, pool=True):
    layers = [nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.BatchNorm2d(12)]
    layers += [nn.ReLU()] * relu + [nn.MaxPool2d(2)] * pool
    return randomise(nn.Sequential(*layers, conv(12, 9), nn.BatchNorm2d(9), conv(9, 4, scheme="dorefa")))


@pytest.mark.parametrize("name", ["vgg_small", "resnet18", "relu and pool", "relu", "pool", "neither"])
def test_a_stem_is_one_call(name, isa, threads):
    if name in ("vgg_small", "resnet18"):
        options = {} if name == "vgg_small" else {"stem": "imagenet"}
        model = bitnas.create_model(name, base_width=0.1, input_size=(3, 16, 16), num_classes=5, **options)
        randomise(model, 3)
    else:
        model = stem_network("relu" in name, "pool" in name)
    frozen = bitnas.freeze(model)
    (stem,) = calls(frozen, plan._Stem)
    assert stem.relu == ("relu" in name)
    # Without a ReLU before it, the pool of a value that is only binarized runs on bits.
    assert (stem.pool is not None) == (name in ("resnet18", "relu and pool"))
    assert len(stem.names) == (2 if name == "resnet18" else 1)  # there the shortcut reads the floats too
    with threads():
        for batch in (0, 1, 5):
            for layout in (torch.contiguous_format, torch.channels_last):
                check(frozen, images(batch, 3, 16, 16).contiguous(memory_format=layout))
    strided = images(2, 3, 16, 16).transpose(2, 3)
    assert torch.equal(frozen(strided), frozen(strided.contiguous()))


def test_a_stem_ends_where_others_read_it():
    def forward(m, x):
        y = m.stem(x)
        return m.c(m.pool(y)) + m.d(y).mean((2, 3), keepdim=True)

    layers = {"stem": nn.Conv2d(3, 8, 3, padding=1), "pool": nn.MaxPool2d(3, 1, 1), "c": conv(8, 4), "d": conv(8, 4)}
    frozen = bitnas.freeze(randomise(User(forward, **layers)))
    (stem,) = calls(frozen, plan._Stem)
    assert (stem.chain, stem.pool, stem.relu) == (("stem",), None, False)
    check(frozen, images(4, 3, 8, 8))


def test_a_stem_may_be_anywhere_and_may_be_the_output():
    frozen = bitnas.freeze(nn.Sequential(conv(), nn.Conv2d(8, 4, 1), nn.ReLU(), conv(4, 4)))
    assert [stem.chain for stem in calls(frozen, plan._Stem)] == [("1", "2")]
    check(frozen, images())
    frozen = bitnas.freeze(nn.Sequential(conv(), nn.Conv2d(8, 70, 3, stride=2), nn.MaxPool2d(2, ceil_mode=True)))
    assert [stem.chain for stem in calls(frozen, plan._Stem)] == [("1",)]
    check(frozen, images())


OTHER_CONVOLUTIONS = {
    "many channels": nn.Conv2d(24, 8, 3),
    "groups": nn.Conv2d(24, 8, 3, groups=8),
    "dilation": nn.Conv2d(24, 8, 3, dilation=2),
    "padding by a word": nn.Conv2d(24, 8, 3, padding="same"),
}


@pytest.mark.parametrize("name", OTHER_CONVOLUTIONS)
def test_other_float_convolutions_are_torchs(name):
    model = nn.Sequential(conv(3, 24), copy.deepcopy(OTHER_CONVOLUTIONS[name]), conv(8, 4))
    frozen = bitnas.freeze(model)
    assert not calls(frozen, plan._Stem)
    x = images()
    torch.testing.assert_close(frozen.values(x)["1"], frozen.get_submodule("1")(frozen.values(x)["0"]))
    assert bitnas.verify(model, frozen, x).ok


def prelu_network(slopes, residual, packs):
    def forward(m, x):
        y = m.bn(m.a(x))
        z = m.bn_b(m.b(y))
        z = m.prelu(z + y if residual else z)
        return m.c(z) + z if packs else z.mean((2, 3))

    layers = {"a": conv(3, 66), "bn": nn.BatchNorm2d(66), "b": conv(66, 66), "bn_b": nn.BatchNorm2d(66)}
    model = User(forward, prelu=nn.PReLU(slopes), c=conv(66, 66), **layers)
    randomise(model, 2)
    nn.init.uniform_(model.prelu.weight, -1, 1)
    return model


@pytest.mark.parametrize("packs", [False, True], ids=["floats", "floats and bits"])
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("slopes", [1, 66])
def test_a_prelu_runs_in_the_epilogue_before_it(slopes, residual, packs, isa):
    model = prelu_network(slopes, residual, packs)
    frozen = bitnas.freeze(model)
    fused = [call for call in calls(frozen, plan._BinaryConv2d) if call.prelu == "prelu"]
    assert len(fused) == 1
    assert bool(fused[0].packs) == packs
    x = images(2, 3, 7, 7)
    check(frozen, x)
    assert bitnas.verify(model, frozen, x).ok


def test_a_prelu_of_a_value_that_others_read_stays_a_step_of_its_own():
    def forward(m, x):
        y = m.a(x)
        return m.prelu(y) + y

    frozen = bitnas.freeze(User(forward, a=conv(), prelu=nn.PReLU(8)))
    assert not any(call.prelu for call in calls(frozen, plan._BinaryConv2d))
    check(frozen, images())


def test_a_prelu_at_the_end_and_a_residual_that_broadcasts():
    def forward(m, x):
        y = m.a(x)
        return m.prelu(m.b(y) + y.mean((2, 3), keepdim=True))

    frozen = bitnas.freeze(User(forward, a=conv(), b=conv(8, 8), prelu=nn.PReLU(8, init=-0.3)))
    assert [call.prelu for call in calls(frozen, plan._BinaryConv2d)] == [None, "prelu"]
    check(frozen, images())


def test_values_are_freed_after_their_last_reader():
    frozen = bitnas.freeze(bitnas.create_model("resnet18", base_width=0.1, input_size=(3, 16, 16), num_classes=5))
    live = {INPUT}
    for call, done in frozen._plan:
        assert set(call.inputs) <= live
        live |= set(call.names)
        assert set(done) <= live
        live -= set(done)
    assert live == {frozen.steps[-1].name}


def test_a_copy_runs_its_own_layers():
    frozen = bitnas.freeze(stem_network())
    x, copied = images(3, 3, 16, 16), copy.deepcopy(frozen)
    wanted = frozen(x)
    assert torch.equal(copied(x), wanted)
    copied.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in frozen.state_dict().items()})
    assert not torch.equal(copied(x), wanted)
    assert torch.equal(frozen(x), wanted)


def test_float_convolutions_are_laid_out_for_the_processor_and_saved_as_ever(tmp_path):
    frozen = bitnas.freeze(stem_network())
    stem = frozen.get_submodule("0")
    assert stem.weight.permute(2, 3, 1, 0).is_contiguous()
    bitnas.save(frozen, tmp_path / "net.safetensors")
    loaded = bitnas.load(tmp_path / "net.safetensors")
    assert loaded.get_submodule("0").weight.permute(2, 3, 1, 0).is_contiguous()
    loaded.load_state_dict({name: tensor.clone() for name, tensor in frozen.state_dict().items()}, assign=True)
    assert loaded.get_submodule("0").weight.permute(2, 3, 1, 0).is_contiguous()
    x = images(3, 3, 16, 16)
    assert torch.equal(loaded(x), frozen(x))


def test_a_pooling_function_survives_a_file(tmp_path):
    layers = {"a": conv(), "b": conv(8, 4)}
    model = User(lambda m, x: m.b(torch.nn.functional.max_pool2d(m.a(x), 3, 2, padding=1)), **layers)
    frozen, x = bitnas.freeze(model.eval()), images()
    torch.testing.assert_close(frozen(x), model(x))
    bitnas.save(frozen, tmp_path / "net.safetensors")
    loaded = bitnas.load(tmp_path / "net.safetensors")
    assert loaded.steps == frozen.steps
    assert torch.equal(loaded(x), frozen(x))


def test_each_call_of_a_pass_by_itself():
    frozen, x = bitnas.freeze(randomise(stem_network(True, True))), images(2, 3, 16, 16)
    made = frozen.calls(x)
    steps = [step.name for step in frozen.steps]
    assert [name for name, _ in made] == sorted({name for name, _ in made}, key=steps.index)
    for _, call in made:
        call()
    _, values = made[-1][1].args
    assert torch.equal(values[steps[-1]], frozen(x))
