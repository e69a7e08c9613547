"""Frozen networks as files: the same bytes, the same outputs, and everything damaged or malformed refused by name."""

import copy
import random

import pytest
import torch
from definition import randomise
from torch import nn

import bitnas
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.nn import BinaryConv2d
from bitnas.packed import PackedNetwork, packed_bytes

FORMAT = "bitnas.packed/1"


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def small_vgg():
    torch.manual_seed(0)
    return randomise(bitnas.create_model("vgg_small", base_width=0.1, input_size=(3, 8, 8)), 2)


@pytest.fixture(scope="module")
def frozen():
    return bitnas.freeze(small_vgg())


@pytest.fixture
def path(frozen, tmp_path):
    bitnas.save(frozen, tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"


def refused(path, match=None):
    with pytest.raises(CorruptFileError, match=match) as caught:
        bitnas.load(path)
    assert str(path) in str(caught.value)


# ---- round trips ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["vgg_small", "resnet18"])
@pytest.mark.parametrize("scheme", ["dorefa", "xnor"])
def test_round_trip(name, scheme, tmp_path):
    model = bitnas.create_model(name, base_width=0.15, input_size=(3, 16, 16), num_classes=7, scheme=scheme)
    frozen = bitnas.freeze(randomise(model, 3))
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    bitnas.save(frozen, first)
    loaded = bitnas.load(first)
    bitnas.save(loaded, second)
    assert first.read_bytes() == second.read_bytes()
    assert loaded.config == model.config.to_dict()
    assert loaded.steps == frozen.steps
    x = images(3, 3, 16, 16)
    assert torch.equal(loaded(x), frozen(x))
    assert bitnas.verify(model, loaded, x).ok
    assert torch.equal(copy.deepcopy(loaded)(x), frozen(x))


def test_a_file_is_the_same_whatever_instruction_set_wrote_it(isa, tmp_path, path):
    bitnas.save(bitnas.freeze(small_vgg()), tmp_path / f"{isa}.safetensors")
    assert (tmp_path / f"{isa}.safetensors").read_bytes() == path.read_bytes()


def test_vgg_small_is_under_a_megabyte(tmp_path):
    frozen = bitnas.freeze(bitnas.create_model("vgg_small"))
    bitnas.save(frozen, tmp_path / "vgg.safetensors")
    size = (tmp_path / "vgg.safetensors").stat().st_size
    assert size < 1_000_000
    binary_bits = 9 * (128 * 128 + 128 * 256 + 256 * 256 + 256 * 512 + 512 * 512)
    float_bytes = 4 * (3 * 9 * 128 + 8192 * 10 + 10)
    assert packed_bytes(frozen) > binary_bits // 8 + float_bytes
    assert packed_bytes(frozen) < 1.02 * (binary_bits // 8 + float_bytes)
    assert packed_bytes(frozen) < size < packed_bytes(frozen) + 10_000


def test_what_cannot_be_saved_or_found(tmp_path):
    with pytest.raises(TypeError, match="frozen must be what bitnas.freeze returns, got Linear"):
        bitnas.save(nn.Linear(2, 2), tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        bitnas.load(tmp_path / "missing.safetensors")


# ---- damage -----------------------------------------------------------------------


def test_every_truncation_is_refused(path):
    whole = path.read_bytes()
    for length in [*range(0, 300, 7), *range(300, len(whole), len(whole) // 40), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refused(path)
    path.write_bytes(whole + b"\0")
    refused(path)


def test_every_flipped_bit_is_refused(path):
    whole = path.read_bytes()
    positions = random.Random(0).sample(range(len(whole)), 150)
    for position in [*range(0, 200, 3), *positions, len(whole) - 1]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << (position % 8)
        path.write_bytes(damaged)
        refused(path)


def test_metadata_of_another_network_is_refused(frozen, path, tmp_path):
    other = bitnas.freeze(nn.Sequential(BinaryConv2d(3, 4, 3)))
    tensors, _ = load_tensors(path, expected_format=FORMAT)
    swapped = tmp_path / "swapped.safetensors"
    bitnas.save(other, swapped)
    _, metadata = load_tensors(swapped, expected_format=FORMAT)
    save_tensors(swapped, tensors, metadata)
    refused(swapped, "does not describe a network")


def test_another_kind_of_file_is_refused(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"")
    refused(path)
    path.write_bytes(b"PK\x03\x04 not a network" * 20)
    refused(path)
    save_tensors(path, {"weight": torch.zeros(3)}, {"format": "bitnas.checkpoint/1"})
    refused(path, "its format is 'bitnas.checkpoint/1', expected 'bitnas.packed/1'")


# ---- whole files that make no sense ---------------------------------------------------


@pytest.fixture
def craft(tmp_path):
    """Writes a small network's file after a change to its tensors or its description; gives the path."""
    network = bitnas.freeze(nn.Sequential(BinaryConv2d(3, 4, 3, scheme="xnor"), nn.Hardtanh(), nn.Conv2d(4, 2, 1)))
    path = tmp_path / "crafted.safetensors"
    bitnas.save(network, path)
    tensors, metadata = load_tensors(path, expected_format=FORMAT)

    def write(change):
        change(tensors, metadata)
        save_tensors(path, tensors, metadata)
        return path

    return write


def test_the_crafted_file_is_good_when_nothing_is_changed(craft):
    assert bitnas.load(craft(lambda tensors, metadata: None))(images(1, 3, 5, 5)).shape == (1, 2, 3, 3)


def set_step(index, **values):
    return lambda tensors, metadata: metadata["steps"][index].update(values)


def set_argument(index, **values):
    return lambda tensors, metadata: metadata["steps"][index]["arguments"].update(values)


def set_tensor(name, value):
    return lambda tensors, metadata: tensors.__setitem__(name, value)


def drop_key(key):
    return lambda tensors, metadata: metadata.pop(key)


# Steps: 0 packs the input, 1 is the binary convolution, 2 the clipping, 3 the float convolution.
MALFORMED = {
    "unknown kind": (set_step(1, kind="system"), "unknown kind 'system'"),
    "kind of no text": (set_step(1, kind=None), "unknown kind"),
    "forward reference": (set_step(1, inputs=["2"]), "'0' reads '2', which no earlier step makes"),
    "cycle": (set_step(1, inputs=["0"]), "'0' reads '0', which no earlier step makes"),
    "name twice": (set_step(2, name="0"), "'0' is taken"),
    "name of a method": (set_step(1, name="forward"), "'forward' is taken"),
    "name of an attribute": (set_step(1, name="_modules"), "'_modules' is taken"),
    "dotted name": (set_step(1, name="a.b"), "not a plain word"),
    "no inputs": (set_step(1, inputs=[]), "reads 1"),
    "two inputs": (set_step(1, inputs=["input", "input"]), "reads 1"),
    "one term": (set_step(2, kind="add", arguments={}), "reads 2"),
    "nothing joined": (set_step(2, kind="cat", inputs=[], arguments={}), "reads some"),
    "no steps": (lambda tensors, metadata: metadata.update(steps=[]), "at least one step"),
    "steps of another type": (lambda tensors, metadata: metadata.update(steps=7), "not a description"),
    "a step of another type": (lambda tensors, metadata: metadata.update(steps=["pack"]), "not a description"),
    "no step list": (drop_key("steps"), "not a description"),
    "no conventions": (drop_key("conventions"), "other bit conventions: None"),
    "other conventions": (
        lambda tensors, metadata: metadata["conventions"].update(padding="plus one"), "other bit conventions",
    ),
    "huge": (set_argument(1, out_channels=10**12), "size mismatch|Shape mismatch|cannot be built"),
    "huge input": (set_argument(1, in_channels=10**15), "size mismatch"),
    "huge float layer": (set_argument(3, out_channels=10**12), "size mismatch"),
    "beyond 64 bits": (set_argument(1, out_channels=10**30), "cannot be built"),
    "huge kernel": (set_argument(1, kernel_size=[10**9, 10**9]), "size mismatch|cannot be built"),
    "negative": (set_argument(1, out_channels=-4), "cannot be built"),
    "zero groups": (set_argument(1, groups=0), "cannot be built"),
    "groups that do not divide": (set_argument(1, groups=3), "does not describe"),
    "zero channels": (set_argument(1, in_channels=0), "does not describe"),
    "channels of text": (set_argument(1, out_channels="four"), "cannot be built"),
    "unknown encoding": (set_argument(1, activations="ternary"), "activations must be 'sign' or 'unit', got 'ternary'"),
    "unknown packing": (set_argument(0, activations="ternary"), "activations must be 'sign' or 'unit', got 'ternary'"),
    "unknown epilogue": (set_argument(1, epilogue="run"), "epilogue must be"),
    "unknown argument": (set_argument(1, hook="x"), "cannot be built"),
    "kernel of one number": (set_argument(1, kernel_size=3), "cannot be built"),
    "shape": (set_tensor("0.weight", torch.zeros(4, 3, 3, 2, dtype=torch.int64)), "size mismatch"),
    "dtype": (set_tensor("0.weight", torch.zeros(4, 3, 3, 1)), "0.weight is torch.float32, expected torch.int64"),
    "float64": (set_tensor("0.scale", torch.zeros(4, dtype=torch.float64)), "0.scale is torch.float64"),
    "missing tensor": (lambda tensors, metadata: tensors.pop("0.bias"), "0.bias"),
    "tensor too many": (set_tensor("0.extra", torch.zeros(1)), "0.extra"),
    "tail bits": (set_tensor("0.weight", torch.full((4, 3, 3, 1), -1)), "0.weight has bits past its 3 channels"),
}  # fmt: skip


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed(name, craft):
    change, message = MALFORMED[name]
    refused(craft(change), message)


@pytest.mark.parametrize("value", [None, 3, [], {"steps": None}, {"steps": [{}], "config": None}])
def test_descriptions_of_the_wrong_shape(value):
    with pytest.raises(ValueError, match="not a description"):
        PackedNetwork.from_description(value)


def test_a_step_list_thousands_deep_is_refused_or_loaded_but_never_crashes(craft):
    nested = []
    for _ in range(300):
        nested = [nested]
    refused(craft(set_argument(1, kernel_size=nested)), "cannot be built")
