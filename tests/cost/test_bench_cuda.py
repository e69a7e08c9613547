"""What the GPU benchmark computes beside its times: checks, goals, tables. Tensors are the CPU's and small."""

import shutil
import subprocess
from pathlib import Path

import bench_cuda
import cuda_gemm
import cuda_goals
import cuda_trunk
import pytest
import torch
from cuda_gemm import Gemm
from cuda_goals import goals_table, judge
from cuda_trunk import FloatTrunk, Trunk

from bitnas import ops, reference
from bitnas.cost.bench import Layer
from bitnas.cost.timing import summarize

# ---- goals -------------------------------------------------------------------------


def readings(*, gemm_ms=0.1, cublas_ms=1.5, packing_ms=0.15, bf16_ms=0.08, trunk_ms=0.5, one_ms=0.05):
    """A file of results, with figures that reach every goal unless told otherwise."""
    ms = {"bitnas_to_bfloat16": gemm_ms, "bitnas_packing_to_bfloat16": packing_ms, "cublas_bfloat16": cublas_ms}
    pops = {name: 2 * 8192**3 / time / 1e12 for name, time in ms.items()}
    layer = {"batch": 256, "ms": {"bitnas": 0.005, "bitnas_to_bfloat16": 0.008, "bfloat16": bf16_ms}}
    trunk = [{"batch": 256, "graph_ms": trunk_ms}, {"batch": 1, "graph_ms": one_ms}]
    return {
        "gemm": {"rows": [{"m": 8192, "n": 8192, "k": 8192, "ms": ms, "pops": pops}]},
        "conv": {"resnet18": {"rows": [{"name": "stage1", **layer}, {"name": "stage3", **layer}]}},
        "trunk": {"rows": [{**row, "what": "convolutions"} for row in trunk]},
    }


def verdicts(results):
    return [row["verdict"] for row in judge(results)]


def test_goals_that_are_reached():
    assert verdicts(readings()) == ["reached"] * 8
    rows = judge(readings())
    assert rows[0]["value"] == pytest.approx(10.995, rel=1e-3)
    assert [row["value"] for row in rows[1:]] == pytest.approx([15, 10, 10, 10, 16, 0.5, 50])
    assert (rows[6]["wanted"], rows[6]["reading"]) == ("<= 0.6 ms", "0.5 ms")


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({"gemm_ms": 0.14}, [0]),
        ({"cublas_ms": 0.9}, [1, 2]),
        ({"packing_ms": 0.2}, [2]),
        ({"bf16_ms": 0.06}, [3]),
        ({"bf16_ms": 0.019}, [3, 4, 5]),
        ({"trunk_ms": 0.61}, [6]),
        ({"one_ms": 0.061}, [7]),
    ],
)
def test_goals_that_are_not_reached(changed, missed):
    found = verdicts(readings(**changed))
    assert [i for i, verdict in enumerate(found) if verdict == "not reached"] == missed


def test_nothing_is_claimed_that_was_not_measured():
    assert verdicts({}) == ["not measured"] * 8
    assert all(row["reading"] == "-" for row in judge({}))
    partly = readings()
    del partly["conv"], partly["gemm"]["rows"][0]["ms"]["cublas_bfloat16"]
    partly["trunk"]["rows"][0]["batch"] = 64
    assert verdicts(partly) == ["reached", *["not measured"] * 6, "reached"]
    assert "not measured" in goals_table({})


def test_tables_line_up():
    text = cuda_goals.table(["name", "us"], [["a", "1.5"], ["longer", "10.25"]])
    assert text.splitlines() == ["name       us", "------  -----", "a         1.5", "longer  10.25"]


# ---- matrix products ------------------------------------------------------------------


def test_products_are_checked_and_called():
    gemm = Gemm(20, 33, 130, device="cpu")
    results = {name: call() for name, call in gemm.binary_calls().items()}
    assert results["bitnas_to_int32"].dtype == torch.int32
    assert torch.equal(results["bitnas_to_bfloat16"], results["bitnas_packing_to_bfloat16"])
    assert results["bitnas_to_bits"].shape == (20, 1)
    gemm = Gemm(32, 40, 128, device="cpu")
    peers = {name: call() for name, call in gemm.peers().items()}
    assert torch.equal(peers["torch_int8"], gemm.int32())
    assert peers["cublas_bfloat16"].shape == (32, 40)


@pytest.mark.parametrize("epilogue", ["int32", "bfloat16", "bits"])
def test_a_wrong_product_is_never_timed(monkeypatch, epilogue):
    gemm = Gemm(20, 33, 130, device="cpu")
    method = {"int32": "int32", "bfloat16": "floats", "bits": "bits"}[epilogue]
    right = getattr(gemm, method)

    def wrong(*arguments):
        out = right(*arguments)
        out[-1, -1] += 1
        return out

    monkeypatch.setattr(gemm, method, wrong)
    with pytest.raises(RuntimeError, match=f"GEMM 20 x 33 x 130 to {epilogue}: wrong results"):
        gemm.binary_calls()


def test_a_missing_baseline_says_why(monkeypatch):
    gemm, left_out = Gemm(20, 33, 130, device="cpu"), {}

    def missing(*_):
        raise ImportError("No module named 'cupy'")

    monkeypatch.setattr(cuda_gemm, "textbook_call", missing)
    assert list(cuda_gemm.popcount_calls(gemm, left_out)) == ["popc_to_int32"]
    assert left_out == {"textbook_xor_popcount": "cupy is not installed"}

    def broken(*_):
        raise OSError("libnvrtc.so: cannot open shared object file")

    monkeypatch.setattr(cuda_gemm, "textbook_call", broken)
    cuda_gemm.popcount_calls(gemm, left_out)
    assert left_out["textbook_xor_popcount"] == "cupy: OSError: libnvrtc.so: cannot open shared object file"


def test_rows_of_products(monkeypatch, capsys):
    def measure(calls):
        return {name: (summarize([100.0 + i], 0.02), summarize([200.0], 0.02)) for i, name in enumerate(calls)}

    monkeypatch.setattr(cuda_gemm, "Gemm", lambda m, n, k: Gemm(m, n, k, device="cpu"))
    monkeypatch.setattr(cuda_gemm, "popcount_calls", lambda *_: {})
    [row] = cuda_gemm.gemm(measure, [(32, 40, 128)])["rows"]
    assert row["ms"]["bitnas_to_bfloat16"] == 0.1
    assert row["cold_ms"]["cublas_bfloat16"] == 0.2
    assert row["pops"]["bitnas_to_bfloat16"] == pytest.approx(2 * 32 * 40 * 128 / 100e-6 / 1e15)
    assert "32 x 40 x 128" in capsys.readouterr().out


# ---- the trunk -----------------------------------------------------------------------------

WIDTHS = (64, 70, 128, 130)


@pytest.fixture
def trunk():
    return Trunk("cpu", WIDTHS)


def test_the_trunk_is_sixteen_convolutions_of_four_stages(trunk):
    assert [conv.out_channels for conv in trunk.convs] == [width for width in WIDTHS for _ in range(4)]
    assert [i for i, conv in enumerate(trunk.convs) if conv.stride == 2] == [4, 8, 12] == list(trunk.shortcut_weights)
    full = Trunk("cpu")
    assert len(full.convs) == 16
    assert (full.convs[0].channels, full.convs[15].out_channels) == (64, 512)


def test_the_trunk_in_plain_torch(trunk):
    """Every layer from the floats before it, in float64 and the rounding of the definition."""
    x, signs = cuda_trunk.inputs(2, 64, 16)
    floats, bits = x, signs
    for i, conv in enumerate(trunk.convs):
        residual = trunk.shortcut(i, floats) if i in trunk.shortcut_weights else floats
        values = ops.unpack(conv.weight.flatten(0, 2), conv.channels).unflatten(0, conv.weight.shape[:3]).movedim(-1, 1)
        dots = torch.nn.functional.conv2d(
            torch.where(floats >= 0, 1.0, -1.0).double(), values.double(), None, conv.stride, 1
        )
        expected = reference.float_epilogue(dots, conv.scale, conv.bias, residual, None, torch.bfloat16)
        floats, bits = conv(bits, residual)
        assert torch.equal(floats, expected), i
        assert torch.equal(bits, ops.pack(floats)), i
    assert floats.shape == (2, 130, 2, 2)
    got = trunk(x, signs)
    assert torch.equal(got[0], floats)
    assert torch.equal(got[1], bits)


def test_shortcuts_that_were_computed_before_change_nothing(trunk):
    x, signs = cuda_trunk.inputs(1, 64, 16)
    values = trunk.shortcut_values(x, signs)
    assert list(values) == [4, 8, 12]
    expected, got = trunk(x, signs), trunk(x, signs, cuda_trunk.given(values))
    assert all(torch.equal(one, other) for one, other in zip(expected, got, strict=True))


def test_a_wrong_trunk_is_never_timed(trunk):
    x, signs = cuda_trunk.inputs(9, 64, 16)
    values = trunk.shortcut_values(x, signs)
    cuda_trunk.check(trunk, Trunk("cpu", WIDTHS), x, signs, values)
    trunk.convs[2].bias[5] += 1
    with pytest.raises(RuntimeError, match="trunk at batch 9: wrong results"):
        cuda_trunk.check(trunk, Trunk("cpu", WIDTHS), x, signs, values)


def test_the_float_trunk_has_the_same_shapes(trunk):
    x, signs = cuda_trunk.inputs(1, 64, 16)
    out = FloatTrunk(trunk, "cpu")(x)
    assert out.shape == trunk(x, signs)[0].shape
    assert out.isfinite().all()


def test_rows_of_the_trunk(monkeypatch, capsys):
    """With a timer that makes each call once; CPU tensors in place of the GPU's."""
    right = Trunk

    class OnCpu(right):
        def __init__(self, device):
            super().__init__("cpu", WIDTHS)

    def time(call, *, cold_cache, seconds):
        call()
        return {"launch": summarize([300.0 + cold_cache], 0.02), "graph": summarize([100.0 + cold_cache], 0.02)}

    monkeypatch.setattr(cuda_trunk, "Trunk", OnCpu)
    monkeypatch.setattr(cuda_trunk, "FloatTrunk", lambda trunk, device: FloatTrunk(trunk, "cpu"))
    monkeypatch.setattr(torch.Tensor, "cuda", lambda self: self)
    monkeypatch.setattr(cuda_trunk.cuda_timing, "time_launch_and_graph", time)
    rows = cuda_trunk.trunk(1.0, batches=(1, 2), size=16)["rows"]
    assert [(row["batch"], row["what"]) for row in rows][:4] == [
        (1, "convolutions"), (1, "with shortcuts"), (1, "float, cuDNN bfloat16"), (2, "convolutions"),
    ]  # fmt: skip
    assert (rows[0]["graph_ms"], rows[0]["launch_ms"], rows[0]["cold_graph_ms"]) == (0.1, 0.3, 0.101)
    assert rows[0]["noisy"] == []
    assert "with shortcuts" in capsys.readouterr().out


# ---- layers, kernels, peaks -------------------------------------------------------------------------


def test_cells_of_layers():
    ms = {"bitnas": 0.01, "bitnas_to_bfloat16": 0.02, "bfloat16": 0.1}
    [cells] = bench_cuda.conv_cells([{"name": "a", "batch": 8, "ms": ms}], ["bfloat16", "float16"])
    assert cells == ["a", "8", "10.0", "20.0", "100.0  10.0x   5.0x", "-"]


def test_shapes_of_the_kernel_table(monkeypatch):
    monkeypatch.setattr(bench_cuda, "KERNEL_GEMMS", [(3, 5, 70)])
    monkeypatch.setattr(bench_cuda, "Gemm", lambda m, n, k: Gemm(m, n, k, device="cpu"))
    monkeypatch.setattr(
        bench_cuda, "read_shapes", lambda _: [Layer("a", 64, 64, 6, 6), Layer("b", 64, 8, 6, 6, 1, 1, 0)]
    )
    right = bench_cuda.binary_calls
    monkeypatch.setattr(bench_cuda, "binary_calls", lambda layer, batch: right(layer, batch, "cpu"))
    cases = list(bench_cuda.kernel_cases(batches=(1,)))
    assert [name for name, _, _ in cases][:2] == ["3 x 5 x 70 to bfloat16", "resnet18 a, batch 1, to bits"]
    assert [matrix for _, matrix, _ in cases] == [True, False, True, False, True]
    assert cases[0][2]().dtype == torch.bfloat16


def test_the_loss_of_a_choice():
    found = bench_cuda.loss({"auto": 1.2, "popc": 5.0, "mma_64x64": 1.0})
    assert found == {"fastest": "mma_64x64", "loss": 1.2}


def test_every_kernel_is_timed_where_it_computes(monkeypatch, capsys):
    selected = []
    layer = Layer("square", 64, 64, 6, 6)
    product = Gemm(20, 33, 128, device="cpu").binary_calls()["bitnas_to_bfloat16"]
    cases = [("product", True, product), ("convolution", False, bench_cuda.binary_calls(layer, 1, "cpu")["bitnas"])]
    monkeypatch.setattr(bench_cuda, "kernel_cases", lambda: iter(cases))
    monkeypatch.setattr(ops, "cuda_kernels", lambda: ["popc", "mma_64x64", "wgmma_128x128"])
    monkeypatch.setattr(ops, "select_cuda_kernel", selected.append)
    times = {"auto": 110.0, "popc": 500.0, "mma_64x64": 100.0, "wgmma_128x128": 109.0}

    def measure(calls):
        for call in calls.values():
            call()
        return {name: (summarize([times[name]], 0.02), summarize([times[name]], 0.02)) for name in calls}

    rows = bench_cuda.kernels(measure)["rows"]
    assert [list(row["ms"]) for row in rows] == [
        ["auto", "popc", "mma_64x64", "wgmma_128x128"],
        ["auto", "popc", "mma_64x64"],
    ]
    assert [(row["fastest"], row["loss"]) for row in rows] == [("mma_64x64", pytest.approx(1.1))] * 2
    assert selected.count("auto") == len(selected) // 2
    out = capsys.readouterr().out
    assert "0 of 2 shapes: the chosen kernel is the fastest" in out
    assert "another kernel is faster" in out


def test_matrix_products_among_the_layers():
    assert bench_cuda.is_matrix(Layer("a", 64, 64, 6, 6, kernel=1, padding=0))
    assert not bench_cuda.is_matrix(Layer("b", 64, 64, 6, 6, kernel=1, stride=2, padding=0))
    assert not bench_cuda.is_matrix(Layer("c", 64, 64, 6, 6))


@pytest.mark.parametrize(
    ("capability", "target"), [((9, 0), "compute_90a,code=sm_90a"), ((12, 0), "compute_120,code=sm_120")]
)
def test_the_command_that_compiles_the_peaks(capability, target):
    command = bench_cuda.compile_command("nvcc", capability, Path("out"))
    assert f"-gencode=arch={target}" in command
    assert Path(command[-3]).is_file()


@pytest.mark.skipif(bench_cuda.find_nvcc() is None, reason="nvcc is not here: bench/cuda_peaks.cu is not compiled")
@pytest.mark.parametrize("capability", [pytest.param((8, 0), marks=pytest.mark.slow), (9, 0)])
def test_the_peaks_compile(capability, tmp_path):
    command = bench_cuda.compile_command(bench_cuda.find_nvcc(), capability, tmp_path / "peaks")
    done = subprocess.run([*command, "--Werror=all-warnings"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert shutil.which(str(tmp_path / "peaks"))
