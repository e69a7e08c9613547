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
from bitnas.cost.cpu_timing import Times, Way
from bitnas.cost.timing import summarize
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
        bench_layers([TINY], threads=(3 - before,), against=("int8",), seconds=0.01)
        assert torch.get_num_threads() == before
    assert torch.backends.quantized.engine == engine


def test_one_peer_or_none():
    assert bench_layers([TINY], against=("float32",), seconds=0.01)["geomean_ratio"].keys() == {"float32"}
    assert bench_layers([TINY], against=(), seconds=0.01)["rows"][0]["ms"].keys() == {"bitnas"}


def test_a_peer_that_this_cpu_cannot_run_is_left_out(monkeypatch):
    def cannot(*_):
        raise RuntimeError("needs the cpu support avx512bw")

    real = bench._float_ways
    monkeypatch.setattr(
        bench,
        "_float_ways",
        lambda x, weight, layer: {"eager": Way(cannot, 1)} if x.dtype == torch.bfloat16 else real(x, weight, layer),
    )
    result = bench_layers([TINY], seconds=0.01)
    assert "bfloat16" not in result["rows"][0]["ms"]
    assert result["geomean_ratio"]["bfloat16"] is None
    assert result["geomean_ratio"]["float32"] > 0


def test_every_engine_is_in_the_row_and_the_fastest_counts(monkeypatch):
    def takes(us):
        timing = summarize([us, us], 0.02)
        return Times(timing, summarize([2.0 * us], 0.02))

    times = {"bitnas": takes(10.0), "int8/onednn": takes(90.0), "int8/x86": takes(40.0)}
    monkeypatch.setattr(bench, "time_ways", lambda ways, *, threads, **_: dict.fromkeys(threads, times))
    seen = []
    result = bench_layers([TINY], threads=(1, 2), against=("int8",), on_row=seen.append)
    assert seen == result["rows"]
    assert [row["threads"] for row in seen] == [1, 2]
    row = seen[0]
    assert row["ms"] == {"bitnas": 0.01, "int8": 0.04}
    assert row["cold_ms"] == {"bitnas": 0.02, "int8": 0.08}
    assert row["iqr_ms"] == {"bitnas": 0, "int8": 0}
    assert row["variant"] == {"int8": "x86"}
    assert row["way_ms"] == {"bitnas": 0.01, "int8/onednn": 0.09, "int8/x86": 0.04}
    assert row["way_cold_ms"] == {"bitnas": 0.02, "int8/onednn": 0.18, "int8/x86": 0.08}
    assert row["kernel"] in torch.ops.bitnas.cpu_kernels().split(",")
    assert result["geomean_ratio"] == result["geomean_cold_ratio"] == {"int8": pytest.approx(4)}
    assert result["losses"] == []


def test_where_binary_loses_is_said():
    row = {"name": "a", "batch": 1, "threads": 2, "isa": "scalar"}
    row |= {"ms": {"bitnas": 2.0, "int8": 1.0, "float32": 4.0}, "cold_ms": {"bitnas": 5.0, "int8": 9.0, "float32": 4.0}}
    case = {"name": "a", "batch": 1, "threads": 2, "isa": "scalar"}
    assert bench.summary([row], ("float32", "int8"))["losses"] == [
        {**case, "to": "int8", "ratio": 0.5, "cold": False},
        {**case, "to": "float32", "ratio": 0.8, "cold": True},
    ]


@pytest.mark.parametrize("batch", [1, 3])
def test_all_ways_compute_the_layer(batch):
    """Every peer, on what it is given: ours and torch's eager float32 are the same convolution."""
    ways, _ = bench.layer_ways(Layer("strided", 70, 33, 9, 7, stride=2, groups=1), batch, bench.PEERS)
    assert {"bitnas", "float32/eager", "float32/onednn", "int8/onednn"} <= ways.keys()
    with torch.inference_mode():
        eager, prepacked = (ways[f"float32/{variant}"].make()() for variant in ("eager", "onednn"))
        bits = ops.unpack(ways["bitnas"].make()(), 33)
        engines = [ways[f"int8/{name}"].make()().dequantize() for name in bench.quantized_engines()]
    assert torch.equal(eager, prepacked)
    assert torch.equal(bits, torch.where(eager >= 0, 1.0, -1.0))
    assert all(torch.equal(engine, engines[0]) for engine in engines)


def test_bytes_and_operations():
    layer = Layer("a", 64, 128, 10, 12, stride=2)
    assert (layer.positions, layer.weights, layer.macs) == (30, 64 * 128 * 9, 30 * 64 * 128 * 9)
    assert layer.elements(3) == 3 * (64 * 120 + 128 * 30) + layer.weights


def test_the_list_of_products_is_named_after_their_sizes():
    layers = read_shapes("gemm")
    assert [layer.name for layer in layers] == [f"{layer.positions}x{layer.cout}x{layer.cin}" for layer in layers]
    assert all((layer.kernel, layer.stride, layer.padding, layer.groups) == (1, 1, 0, 1) for layer in layers)


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
