"""`bitnas count --frozen`: what the layers of a frozen network take in memory."""

import json

import pytest

import bitnas
from bitnas.packed import measure_memory


@pytest.mark.parametrize("memory", ["fast", "bits"])
def test_count_prints_the_memory_of_every_layer(run, memory):
    code, out, _ = run("count", "vgg_small", "--base-width", "0.2", "--frozen", "--memory", memory, "--json")
    assert code == 0
    frozen = bitnas.freeze(bitnas.create_model("vgg_small", base_width=0.2), memory=memory)
    assert json.loads(out)["frozen_memory"] == measure_memory(frozen).to_dict()
    code, out, _ = run("count", "vgg_small", "--base-width", "0.2", "--frozen", "--memory", memory)
    assert code == 0
    conv3 = next(line.split() for line in out.splitlines() if line.startswith("conv3") and "conv2d" in line)
    layer = next(layer for layer in measure_memory(frozen).layers if layer.name == "conv3")
    assert conv3[1:] == ["conv2d", f"{layer.saved:,}", f"{layer.prepared:,}"]


def test_memory_is_asked_for_in_the_right_words(run):
    code, _, err = run("count", "vgg_small", "--frozen", "--memory", "small")
    assert code == 2
    assert "memory must be 'fast'" in err
    assert "got 'small'" in err
    code, _, err = run("count", "vgg_small", "--memory", "bits")
    assert code == 2
    assert "--memory=bits is for --frozen" in err
