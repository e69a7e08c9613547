"""The layer bench: lists of shapes, and one tiny run that must be complete, finite and honest about failures."""

import json
import math
from dataclasses import astuple

import pytest
import torch

import bitnas
from bitnas import ops
from bitnas.cost import bench
from bitnas.cost.bench import Layer, bench_layers, read_shapes, shape_lists
from bitnas.nn import BinaryConv2d

HEADER = "name,cin,cout,h,w,kernel,stride,padding,dilation,groups"
TINY = Layer("tiny", 16, 32, 6, 5)


def written(tmp_path, text):
    path = tmp_path / "shapes.csv"
    path.write_text(text)
    return path


# ---- lists of shapes ------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "vgg_small"])
def test_shipped_lists_are_the_layers_of_the_networks(name):
    assert name in shape_lists()
    model = bitnas.create_model(name).to("meta").eval()
    found = set()

    def record(layer, args):
        size = (layer.in_channels, layer.out_channels, *args[0].shape[2:])
        found.add((*size, layer.kernel_size[0], layer.stride[0], layer.padding[0], layer.dilation[0], layer.groups))

    for layer in model.modules():
        if isinstance(layer, BinaryConv2d):
            layer.register_forward_pre_hook(record)
    model(torch.empty(1, *model.config.input_size, device="meta"))
    listed = [astuple(layer)[1:] for layer in read_shapes(name)]
    assert len(listed) == len(set(listed))
    assert set(listed) == found


def test_a_file_of_shapes(tmp_path):
    path = written(tmp_path, f"{HEADER}\na,8,16,7,9,5,2,4,2,4\nb,3,3,1,1,1,1,0,1,1\n")
    assert read_shapes(path) == [Layer("a", 8, 16, 7, 9, 5, 2, 4, 2, 4), Layer("b", 3, 3, 1, 1, 1, 1, 0, 1, 1)]
    assert read_shapes(str(path)) == read_shapes(path)


def test_columns_past_the_sizes_may_be_left_out(tmp_path):
    path = written(tmp_path, "cout,cin,name,h,w,stride\n16,8,a,7,9,2\n16,8,b,7,9,\n")
    assert read_shapes(path) == [Layer("a", 8, 16, 7, 9, stride=2), Layer("b", 8, 16, 7, 9)]


BAD = {
    "not a number": ("a,8,many,7,7,3,1,1,1,1", "line 3: .*many"),
    "too few fields": ("a,8", "line 3"),
    "too many fields": ("a,8,16,7,7,3,1,1,1,1,9", "line 3"),
    "zero channels": ("a,0,16,7,7,3,1,1,1,1", "line 3: layer 'a': cin must be at least 1, got 0"),
    "negative padding": ("a,8,16,7,7,3,1,-1,1,1", "line 3: layer 'a': padding must be at least 0, got -1"),
    "groups": ("a,8,16,7,7,3,1,1,1,3", "line 3: layer 'a': groups=3 must divide cin=8 and cout=16"),
    "kernel": ("a,8,16,7,4,5,1,0,1,1", "line 3: layer 'a': a kernel of 5 pixels is larger"),
    "dilated kernel": ("a,8,16,7,7,3,1,0,4,1", "line 3: layer 'a': a kernel of 9 pixels is larger"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_line_is_named(name, tmp_path):
    line, message = BAD[name]
    path = written(tmp_path, f"{HEADER}\ngood,8,16,7,7,3,1,1,1,1\n{line}\n")
    with pytest.raises(ValueError, match=message) as caught:
        read_shapes(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{HEADER},colour\na,8,16,7,7,3,1,1,1,1,red\n", "unknown column 'colour'; columns are name,cin"),
        ("name,cin,cout,h\na,8,16,7\n", "column 'w' is missing"),
        (f"{HEADER}\n", "holds no layer"),
        ("", "column 'name' is missing"),
    ],
)
def test_a_bad_file_is_named(text, message, tmp_path):
    path = written(tmp_path, text)
    with pytest.raises(ValueError, match=message) as caught:
        read_shapes(path)
    assert str(path) in str(caught.value)


def test_an_unknown_list():
    with pytest.raises(ValueError, match="'alexnet' is neither a file nor one of .*resnet18, vgg_small"):
        read_shapes("alexnet")


def test_multiply_adds():
    assert read_shapes("resnet18")[0].macs == 64 * 64 * 9 * 56 * 56
    assert Layer("a", 8, 16, 7, 9, kernel=3, stride=2, padding=1, groups=4).macs == 4 * 5 * 16 * 2 * 9
    assert Layer("a", 4, 4, 7, 7, kernel=3, padding=0, dilation=3).macs == 1 * 1 * 4 * 4 * 9


# ---- a run --------------------------------------------------------------------------


def test_a_run_has_every_figure():
    rows_seen = []
    result = bench_layers(
        [TINY, Layer("grouped", 8, 16, 5, 5, stride=2, groups=2)],
        batches=(1, 2),
        threads=(1,),
        seconds=0.01,
        progress=lambda done, total, what: rows_seen.append((done, total, what)),
    )
    json.dumps(result, allow_nan=False)
    assert result.keys() >= {"machine", "rows", "geomean_ratio"}
    assert [(row["name"], row["batch"]) for row in result["rows"]] == [
        ("tiny", 1), ("grouped", 1), ("tiny", 2), ("grouped", 2),
    ]  # fmt: skip
    for row in result["rows"]:
        assert row.keys() >= {"name", "batch", "threads", "isa", "ms", "gops"}
        assert (row["threads"], row["isa"]) == (1, ops.cpu_isa())
        assert {"bitnas", "float32", "int8"} <= row["ms"].keys() <= {"bitnas", *bench.PEERS}
        assert row["ms"].keys() == row["gops"].keys()
        assert all(math.isfinite(value) and value > 0 for value in [*row["ms"].values(), *row["gops"].values()])
        assert set(row["noisy"]) <= row["ms"].keys()
    first = result["rows"][0]
    assert first["gops"]["float32"] == pytest.approx(2 * TINY.macs / first["ms"]["float32"] / 1e6)
    for peer, ratio in result["geomean_ratio"].items():
        ratios = [row["ms"][peer] / row["ms"]["bitnas"] for row in result["rows"]]
        assert ratio == pytest.approx(math.prod(ratios) ** 0.25)
    assert rows_seen[0] == (0, 4, "tiny, batch 1, 1 thread(s)")
    assert rows_seen[-1] == (4, 4, "")


def test_threads_and_engine_are_put_back(threads):
    engine = torch.backends.quantized.engine
    with threads() as before:
        bench_layers([TINY], threads=(3 - before,), seconds=0.01)
        assert torch.get_num_threads() == before
    assert torch.backends.quantized.engine == engine


def test_one_peer_or_none():
    assert bench_layers([TINY], against=("float32",), seconds=0.01)["geomean_ratio"].keys() == {"float32"}
    assert bench_layers([TINY], against=(), seconds=0.01)["rows"][0]["ms"].keys() == {"bitnas"}


def test_a_peer_that_this_cpu_cannot_run_is_left_out(monkeypatch):
    def cannot(*_):
        raise RuntimeError("needs the cpu support avx512bw")

    real = bench._float_peer
    monkeypatch.setattr(
        bench,
        "_float_peer",
        lambda x, weight, layer: {"eager": cannot} if x.dtype == torch.bfloat16 else real(x, weight, layer),
    )
    result = bench_layers([TINY], seconds=0.01)
    assert "bfloat16" not in result["rows"][0]["ms"]
    assert result["geomean_ratio"]["bfloat16"] is None
    assert result["geomean_ratio"]["float32"] > 0


def test_ways_that_are_slow_are_dropped(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def takes(seconds):
        def call():
            now[0] += seconds

        return call

    calls = {"bitnas": takes(1), "int8/x86": takes(2), "int8/onednn": takes(3.9), "int8/fbgemm": takes(4.1)}
    kept, seconds = bench._contenders(calls)
    assert list(kept) == ["bitnas", "int8/x86", "int8/onednn"]
    assert seconds == pytest.approx(6.9)


def test_a_wrong_result_is_never_timed(monkeypatch):
    monkeypatch.setattr(bench.reference, "threshold_bits", lambda dots, threshold: torch.zeros(1, dtype=torch.int64))
    with pytest.raises(RuntimeError, match="layer 'tiny': bitnas and torch disagree"):
        bench_layers([TINY], seconds=0.01)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"against": ("float64",)}, "against: 'float64' is not one of float32, bfloat16, int8"),
        ({"batches": (1, 0)}, "batches and threads of at least 1"),
        ({"batches": ()}, "batches and threads of at least 1"),
        ({"threads": (0,)}, "batches and threads of at least 1"),
        ({"threads": ()}, "batches and threads of at least 1"),
        ({"layers": []}, "needs layers"),
        ({"seconds": 0}, "seconds must be positive, got 0"),
        ({"seconds": math.nan}, "seconds must be positive, got nan"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        bench_layers(**{"layers": [TINY], **options})
