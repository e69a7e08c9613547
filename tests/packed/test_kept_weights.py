"""One-bit weights alone, or laid out beside their bits: the same results, and bytes that add up."""

import copy

import pytest
import torch
from definition import randomise
from torch import nn

import bitnas
from bitnas import ops
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.nn import BinaryConv2d, BinaryLinear
from bitnas.packed import PackedNetwork, measure_memory, packed_bytes
from bitnas.packed.layers import PackedConv2d, PackedLinear

FORMAT = "bitnas.packed/1"


def images(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def small_vgg():
    torch.manual_seed(0)
    return randomise(bitnas.create_model("vgg_small", base_width=0.3, input_size=(3, 16, 16)), 4)


def small_resnet():
    torch.manual_seed(0)
    model = bitnas.create_model("resnet18", base_width=0.2, input_size=(3, 32, 32), num_classes=7, stem="imagenet")
    return randomise(model, 5)


def linear_stack():
    layers = (BinaryLinear(70, 130, scheme="xnor"), nn.BatchNorm1d(130), BinaryLinear(130, 65, scheme="dorefa"))
    return randomise(nn.Sequential(*layers), 1)


MODELS = {"vgg_small": (small_vgg, (5, 3, 16, 16)), "resnet18": (small_resnet, (3, 3, 32, 32))}
MODELS["linear"] = (linear_stack, (5, 70))


def binary_layers(frozen):
    return [layer for layer in frozen.children() if isinstance(layer, PackedConv2d | PackedLinear)]


def prepared(frozen):
    return [layer.prepared for layer in binary_layers(frozen)]


@pytest.mark.parametrize("name", MODELS)
def test_bits_alone_give_the_same_results(name, isa, threads, tmp_path):
    make, shape = MODELS[name]
    model, x = make(), images(*shape)
    fast, bits = bitnas.freeze(model), bitnas.freeze(model, memory="bits")
    assert all(tensor is not None for tensor in prepared(fast))
    assert all(tensor is None for tensor in prepared(bits))
    assert fast.state_dict().keys() == bits.state_dict().keys()
    assert all(torch.equal(fast.state_dict()[key], tensor) for key, tensor in bits.state_dict().items())
    path = tmp_path / "bits.safetensors"
    bitnas.save(bits, path)
    with threads():
        wanted, loaded = fast.values(x), bitnas.load(path)
        assert all(torch.equal(wanted[key], value) for key, value in bits.values(x).items())
        assert torch.equal(bits(x), fast(x))
        assert torch.equal(loaded(x), fast(x))
    assert all(tensor is None for tensor in prepared(loaded))
    if x.dim() == 4:
        assert bitnas.verify(model, bits, x).ok


def test_the_choice_survives_copies_moves_and_new_weights():
    bits = bitnas.freeze(small_vgg(), memory="bits")
    copied = copy.deepcopy(bits).to("cpu")
    copied.load_state_dict(bits.state_dict())
    assert all(tensor is None for tensor in prepared(copied))
    assert "memory='bits'" in repr(copied)
    assert "memory='fast'" in repr(bitnas.freeze(small_vgg()))


def test_a_file_says_what_to_keep_and_load_may_say_otherwise(tmp_path):
    x, path = images(2, 3, 16, 16), tmp_path / "net.safetensors"
    for saved in ("fast", "bits"):
        frozen = bitnas.freeze(small_vgg(), memory=saved)
        bitnas.save(frozen, path)
        assert bitnas.load(path).describe() == frozen.describe()
        for wanted in ("fast", "bits"):
            loaded = bitnas.load(path, memory=wanted)
            assert loaded.describe()["memory"] == wanted
            assert all((tensor is None) == (wanted == "bits") for tensor in prepared(loaded))
            assert torch.equal(loaded(x), frozen(x))


def rewritten(path, change):
    tensors, metadata = load_tensors(path, expected_format=FORMAT)
    change(metadata)
    save_tensors(path, tensors, metadata)


def test_files_of_before_there_was_a_choice_are_loaded_as_fast(tmp_path):
    path = tmp_path / "net.safetensors"
    bitnas.save(bitnas.freeze(small_vgg()), path)
    rewritten(path, lambda metadata: metadata.pop("memory"))
    assert bitnas.load(path).describe()["memory"] == "fast"


@pytest.mark.parametrize("word", ["slow", "", None, 3, ["bits"]])
def test_other_words_are_refused(word, tmp_path):
    path = tmp_path / "net.safetensors"
    bitnas.save(bitnas.freeze(small_vgg()), path)
    rewritten(path, lambda metadata: metadata.update(memory=word))
    for options in ({}, {"memory": "fast"}):
        with pytest.raises(CorruptFileError, match="memory must be 'fast' .* or 'bits' .* got") as caught:
            bitnas.load(path, **options)
        assert repr(word) in str(caught.value)
    with pytest.raises(ValueError, match="memory must be 'fast'"):
        bitnas.freeze(small_vgg(), memory=word)
    if word is not None:
        with pytest.raises(ValueError, match="memory must be 'fast'"):
            bitnas.load(tmp_path / "there is no such file", memory=word)


@pytest.mark.parametrize("memory", ["fast", "bits"])
@pytest.mark.parametrize("name", MODELS)
def test_the_report_adds_up(name, memory, isa):
    frozen = bitnas.freeze(MODELS[name][0](), memory=memory)
    report = measure_memory(frozen)
    assert report.memory == memory
    assert report.saved == packed_bytes(frozen) == sum(tensor.nbytes for tensor in frozen.state_dict().values())
    # Everything a layer holds is counted: its buffers, its parameters, and tensors that are plain attributes.
    held = 0
    for layer in binary_layers(frozen):
        for value in vars(layer).values():
            tensors = value.values() if isinstance(value, dict) else [value]
            held += sum(tensor.nbytes for tensor in tensors if isinstance(tensor, torch.Tensor))
    in_binary_layers = sum(tensor.nbytes for layer in binary_layers(frozen) for tensor in layer.buffers())
    assert report.prepared == held - in_binary_layers
    assert report.total == report.saved + report.prepared
    assert report.float_layers == sum(
        tensor.nbytes
        for layer in frozen.children()
        if isinstance(layer, nn.Conv2d | nn.Linear)
        for tensor in layer.parameters()
    )
    for layer in report.layers:
        assert layer.saved == sum(t.nbytes for t in frozen.get_submodule(layer.name).state_dict().values())
    assert report.to_dict()["total"] == sum(layer["saved"] + layer["prepared"] for layer in report.to_dict()["layers"])
    laid_out = sum(tensor.nbytes for tensor in prepared(frozen) if tensor is not None)
    assert (laid_out > 0) == (memory == "fast")
    assert laid_out <= report.prepared < report.saved + laid_out
    assert f"{report.prepared:,}" in str(report).splitlines()[-1]


def test_only_frozen_networks_are_measured():
    with pytest.raises(TypeError, match="frozen must be what bitnas.freeze returns, got Linear"):
        measure_memory(nn.Linear(2, 2))


@pytest.mark.parametrize("memory", ["fast", "bits"])
@pytest.mark.parametrize("name", MODELS)
def test_a_network_runs_under_another_instruction_set_than_it_was_frozen_for(name, memory, isa):
    make, shape = MODELS[name]
    x, model = images(*shape), make()
    frozen = bitnas.freeze(model, memory=memory)
    wanted, before = frozen.values(x), ops.cpu_isa()
    try:
        for other in ops.cpu_isas():
            ops.select_cpu_isa(other)
            values = frozen.values(x)
            assert all(torch.equal(wanted[key], value) for key, value in values.items()), other
    finally:
        ops.select_cpu_isa(before)


@pytest.mark.parametrize("damage", ["empty", "cut", "noise", "another layer's", "other dtype"])
def test_prepared_weights_that_do_not_fit_are_made_anew(damage):
    """What another machine or version prepared: the kernel sees it, and falls back on the bits."""
    frozen, x = bitnas.freeze(small_vgg()), images(2, 3, 16, 16)
    wanted, layer = frozen(x), frozen.conv3
    good = layer.prepared
    layer.prepared = {
        "empty": good[:0],
        "cut": good[: good.numel() // 2].clone(),
        "noise": torch.randint(0, 256, good.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0)),
        "another layer's": frozen.conv4.prepared,
        "other dtype": good.to(torch.int32),
    }[damage]
    assert torch.equal(frozen(x), wanted)


def test_a_binary_layer_alone_keeps_what_it_is_told():
    model = nn.Sequential(BinaryConv2d(70, 20, 3, padding=1, scheme="xnor"))
    x = images(2, 70, 5, 5)
    bits = bitnas.freeze(model, memory="bits")
    assert measure_memory(bits).prepared == bits.get_submodule("0").prepared_bytes() == 3 * 20 * 4
    assert torch.equal(bits(x), bitnas.freeze(model)(x))
    assert isinstance(PackedNetwork.from_description(bits.describe(), "fast"), PackedNetwork)
