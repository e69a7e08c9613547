"""The 8-bit convolution of a frozen network: exact on bytes, within its bound on floats, refused where it cannot be."""

import copy

import pytest
import torch
import torch.nn.functional as F
from modules import User, conv
from torch import nn

import bitnas
from bitnas import reference
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.nn import LSQConv2d, RPReLU
from bitnas.packed import plan
from bitnas.packed.int8 import Int8Conv2d

PIXELS = (0.5, 0.5)


def pixels(*shape, seed=0):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(seed)).to(torch.uint8)


def stem(cin=3, cout=20, *, seed=0, act=True, **options):
    torch.manual_seed(seed)
    layers = [LSQConv2d(cin, cout, 3, **options), nn.BatchNorm2d(cout)]
    layers += [RPReLU(cout)] if act else []
    model = nn.Sequential(*layers, conv(cout, 7)).eval()
    with torch.no_grad():
        for module in model.modules():
            for tensor in module.parameters(recurse=False):
                if tensor.dim() == 1 and not isinstance(module, LSQConv2d):
                    tensor.normal_()
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return model


def defined(layer, x):
    """The definition in int64 and float32: v = 2 x - 510 mean, its dot product, one affine map."""
    v = 2 * x.long() - round(510 * layer.pixels[0])
    spec = layer.spec
    geometry = (spec["stride"], spec["padding"], spec["dilation"], spec["groups"])
    dots = F.conv2d(v.double(), layer.weight.double(), None, *geometry)
    assert (dots == dots.round()).all()
    return dots.long(), reference.affine(dots, layer.pixel_scale, layer.bias)


CASES = {
    "stride 2": {"stride": 2, "padding": 1},
    "no padding": {},
    "one channel": {"cin": 1, "padding": 1},
    "many channels": {"cin": 18, "padding": 1},
    "groups": {"cin": 4, "groups": 2, "padding": 1},
    "dilation": {"dilation": 2, "padding": 2},
}


@pytest.mark.parametrize("mean", [0.5, 0.0, 1.0])
@pytest.mark.parametrize("name", CASES)
def test_bytes_are_computed_in_exact_integers(name, mean, isa):
    model = stem(**CASES[name])
    frozen = bitnas.freeze(model, pixels=(mean, 0.25))
    assert frozen.pixels == (mean, 0.25)
    x = pixels(2, CASES[name].get("cin", 3), 11, 8)
    x[0] = 255  # the largest integers
    x[1, :, :4] = 0
    layer = frozen.get_submodule("0")
    assert isinstance(layer, Int8Conv2d)
    dots, wanted = defined(layer, x)
    assert torch.equal(layer.dots(x).long(), dots)
    values = frozen.values(x)
    assert torch.equal(values["0"], wanted)
    slope = model[2].prelu.weight.view(-1, 1, 1)
    assert torch.equal(values["2_prelu"], torch.where(wanted >= 0, wanted, wanted * slope))
    assert torch.equal(frozen(x), values[frozen.steps[-1].name])
    report = bitnas.verify(model, frozen, x)
    assert report.ok
    assert report.stem[0].exact
    assert report.stem[0].largest_error == 0
    # Against the trained module on the same images: near, and rounded otherwise only there.
    real = (x.float() / 255 - mean) / 0.25
    with torch.no_grad():
        torch.testing.assert_close(values["2_prelu"] + model[2].after.bias.view(-1, 1, 1), model[:3](real))
        torch.testing.assert_close(frozen.values(real)["2_prelu"], values["2_prelu"])


@pytest.mark.parametrize("name", CASES)
def test_floats_are_within_the_bound(name, isa):
    model = stem(**CASES[name])
    frozen = bitnas.freeze(model)
    x = torch.randn(2, CASES[name].get("cin", 3), 11, 8) * 3
    report = bitnas.verify(model, frozen, x)
    assert report.ok
    assert not report.stem[0].exact
    assert 0 < report.stem[0].largest_error < 1e-4
    with torch.no_grad():
        torch.testing.assert_close(
            frozen.values(x)["2_prelu"] + model[2].after.bias.view(-1, 1, 1), model[:3](x), rtol=1e-5, atol=1e-5
        )
    with torch.no_grad():
        frozen.get_submodule("0").scale.mul_(1 + 1e-4)
    assert not bitnas.verify(model, frozen, x).ok


def test_a_stem_is_one_call_with_its_prelu_and_packing(isa, threads):
    model = stem(padding=1)
    for frozen in (bitnas.freeze(model, pixels=PIXELS), bitnas.freeze(model, pixels=PIXELS, memory="bits")):
        call = frozen._plan[0].call
        assert isinstance(call, plan._Stem)
        assert call.covers == ("0", "2_prelu", "2_after_pack")
        assert len(frozen._plan) == 2
        for x in (pixels(1, 3, 9, 9), torch.randn(1, 3, 9, 9), pixels(2, 9, 9, 3).permute(0, 3, 1, 2)):
            with threads():
                assert torch.equal(frozen(x), frozen.values(x)[frozen.steps[-1].name])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bitnas.freeze(stem(), pixels=(0.4914, 0.2)), r"mean of 0\.4914.*510 times"),
        (lambda: bitnas.freeze(stem(), pixels=(0.5, 0.0)), "deviation above 0"),
        (lambda: bitnas.freeze(stem(), pixels=(0.5,)), r"got \(0\.5,\)"),
        (lambda: bitnas.freeze(stem(), pixels=0.5), r"got 0\.5"),
        (lambda: bitnas.freeze(nn.Sequential(conv()), pixels=PIXELS), "not read by 8-bit convolutions"),
        (lambda: bitnas.freeze(stem(cin=400), pixels=PIXELS), r"reach \d+, wanted less than 2\*\*24"),
        (lambda: bitnas.freeze(stem(padding="same")), "padding 'same'"),
    ],
)
def test_what_pixels_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_input_that_others_read_too_takes_no_bytes():
    model = User(lambda m, x: m.a(x) + x, a=LSQConv2d(3, 3, 3, padding=1))
    assert bitnas.freeze(model).pixels is None
    with pytest.raises(ValueError, match="alone"):
        bitnas.freeze(model, pixels=PIXELS)


def test_two_readers_of_the_pixels():
    model = User(lambda m, x: m.a(x) + m.b(x), a=LSQConv2d(3, 4, 3), b=LSQConv2d(3, 4, 3)).eval()
    frozen, x = bitnas.freeze(model, pixels=PIXELS), pixels(2, 3, 6, 6)
    report = bitnas.verify(model, frozen, x)
    assert all(check.ok and check.exact for check in report.stem)
    assert [check.name for check in report.stem] == ["a", "b"]


def test_inputs_of_other_kinds_are_refused():
    frozen = bitnas.freeze(stem(), pixels=PIXELS)
    with pytest.raises(TypeError, match=r"float32 or uint8.*torch\.float64"):
        frozen(torch.zeros(1, 3, 8, 8, dtype=torch.float64))
    plain = bitnas.freeze(stem())
    for run in (plain, plain.values):
        with pytest.raises(TypeError, match=r"must be float32.*got torch\.uint8; bitnas\.freeze\(model, pixels="):
            run(pixels(1, 3, 8, 8))


def test_an_empty_batch_and_a_deep_copy():
    frozen = bitnas.freeze(stem(), pixels=PIXELS)
    assert frozen(pixels(0, 3, 8, 8)).shape == (0, 7, 6, 6)
    copied, x = copy.deepcopy(frozen), pixels(2, 3, 8, 8)
    wanted = frozen(x)
    copied.load_state_dict({name: torch.zeros_like(tensor) for name, tensor in frozen.state_dict().items()})
    assert torch.equal(frozen(x), wanted)
    assert torch.equal(copied.values(x)["0"], torch.zeros(2, 20, 6, 6))


def test_a_layer_alone_and_one_read_twice():
    torch.manual_seed(0)
    alone = nn.Sequential(LSQConv2d(3, 5, 3)).eval()
    x = torch.randn(2, 3, 7, 7)
    torch.testing.assert_close(bitnas.freeze(alone)(x), alone(x))
    twice = User(lambda m, x: m.bn(m.a(x)) + m.a(x), a=LSQConv2d(3, 5, 3), bn=nn.BatchNorm2d(5)).eval()
    frozen = bitnas.freeze(twice)
    torch.testing.assert_close(frozen(x), twice(x))
    assert [step.source for step in frozen.steps if step.kind == "int8_conv2d"] == ["a", "a#2"]


# ---- files ---------------------------------------------------------------------


@pytest.fixture
def path(tmp_path):
    bitnas.save(bitnas.freeze(stem(), pixels=PIXELS), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def test_a_file_holds_int8_and_pixels(path):
    tensors, metadata = load_tensors(path, expected_format="bitnas.packed/1")
    assert tensors["0.weight"].dtype == torch.int8
    assert metadata["steps"][0]["arguments"]["pixels"] == list(PIXELS)
    report = bitnas.packed.measure_memory(bitnas.load(path))
    assert report.layers[0].kind == "int8_conv2d"
    assert report.layers[0].prepared == 20 * 27 * 4
    assert bitnas.packed.measure_memory(bitnas.load(path, memory="bits")).layers[0].prepared == 0


DAMAGE = {
    "weights of another type": lambda t, m: t.update({"0.weight": t["0.weight"].float()}),
    "no scale": lambda t, m: t.pop("0.pixel_scale"),
    "another mean": lambda t, m: m["steps"][0]["arguments"].update(pixels=[0.4914, 0.5]),
    "words for pixels": lambda t, m: m["steps"][0]["arguments"].update(pixels="half"),
    "no pixels": lambda t, m: m["steps"][0]["arguments"].update(pixels=None),
    "no groups": lambda t, m: m["steps"][0]["arguments"].update(groups=0),
    "no stride": lambda t, m: m["steps"][0]["arguments"].pop("stride"),
    "too many channels": lambda t, m: m["steps"][0]["arguments"].update(out_channels=2**40),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_files_are_refused(name, path):
    tensors, metadata = load_tensors(path, expected_format="bitnas.packed/1")
    DAMAGE[name](tensors, metadata)
    save_tensors(path, tensors, metadata)
    with pytest.raises(CorruptFileError):
        bitnas.load(path)
