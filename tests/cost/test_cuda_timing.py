"""Timing on a GPU, with a GPU that only calls move: what the numbers must be is then known exactly."""

import itertools
import json
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from bitnas.cost import bench, cuda_timing, latency, machine, measure_latency
from bitnas.cost.bench import Layer, bench_layers
from bitnas.cost.timing import summarize

PROPERTIES = SimpleNamespace(
    name="NVIDIA Test",
    major=9,
    minor=0,
    multi_processor_count=132,
    total_memory=1 << 37,
    L2_cache_size=60 << 20,
    uuid="1234",
)


class Gpu:
    """A stream's own clock in nanoseconds; ``host`` is what the host's clock would say."""

    def __init__(self):
        self.now = 0
        self.host = 0
        self.log = []

    def work(self, name, nanoseconds, launch=0):
        """A call that queues work."""

        def call():
            self.log.append(name)
            self.now += nanoseconds
            self.host += launch or nanoseconds

        return call

    def clock(self):
        return self.host

    def event(self):
        return Event(self)


class Event:
    def __init__(self, gpu):
        self.gpu = gpu

    def record(self):
        self.stamp = self.gpu.now

    def synchronize(self):
        self.gpu.log.append("wait")

    def elapsed_time(self, end):
        return (end.stamp - self.stamp) / 1e6


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu()
    monkeypatch.setattr(cuda_timing, "_timing_event", made.event)
    return made


@pytest.fixture
def installed(gpu, monkeypatch):
    """The fake in all places where torch.cuda is asked. A captured call costs a tenth: no launches."""

    def capture(call, times=1):
        for _ in range(3):
            call()

        def replay():
            for _ in range(times):
                before = gpu.now
                call()
                gpu.now = before + (gpu.now - before) // 10

        return replay

    monkeypatch.setattr(cuda_timing, "capture", capture)
    monkeypatch.setattr(cuda_timing, "cache_flush", lambda: gpu.work("flush", 70_000))
    return gpu


# ---- the stopwatch ------------------------------------------------------------------


def test_calls_in_a_row_between_two_events(gpu):
    elapsed = cuda_timing.event_stopwatch()
    assert elapsed(gpu.work("a", 2500), 4) == pytest.approx(10_000)
    assert gpu.log == ["a", "a", "a", "a", "wait"]


def test_what_runs_before_each_call_does_not_count(gpu):
    elapsed = cuda_timing.event_stopwatch(gpu.work("flush", 70_000))
    assert elapsed(gpu.work("a", 2500), 3) == pytest.approx(7500)
    assert gpu.log == ["flush", "a"] * 3 + ["wait"]


def test_launches_beside_a_graph(installed):
    timings = cuda_timing.time_launch_and_graph(installed.work("a", 500_000), clock=installed.clock, seconds=0.1)
    assert timings["launch"].median_us == pytest.approx(500)
    assert timings["graph"].median_us == pytest.approx(50)
    assert timings["launch"].runs == timings["graph"].runs >= 20
    assert "flush" not in installed.log


def test_a_cold_cache_is_emptied_before_every_run(installed):
    call = installed.work("a", 500_000)
    timings = cuda_timing.time_launch_and_graph(call, cold_cache=True, clock=installed.clock, seconds=0.1)
    assert timings["launch"].median_us == pytest.approx(500)
    timed = installed.log[installed.log.index("flush") :]
    assert all(before == "flush" for before, name in itertools.pairwise(timed) if name == "a")


def test_what_no_graph_can_hold_is_launched(installed, monkeypatch):
    def refuse(call, times=1):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(cuda_timing, "capture", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    timings = cuda_timing.time_launch_and_graph(installed.work("a", 1000), clock=installed.clock, seconds=0.01)
    assert list(timings) == ["launch"]


def test_an_error_of_the_call_itself_is_not_swallowed(installed):
    def fails():
        raise RuntimeError("no such layer")

    with pytest.raises(RuntimeError, match="no such layer"):
        cuda_timing.time_launch_and_graph(fails)


@pytest.mark.parametrize(("nanoseconds", "calls"), [(1000, 20), (30_000, 3), (5_000_000, 1)])
def test_short_calls_share_a_graph(installed, monkeypatch, nanoseconds, calls):
    captured = []
    right = cuda_timing.capture
    monkeypatch.setattr(cuda_timing, "capture", lambda call, n=1: captured.append(n) or right(call, n))
    call = installed.work("a", nanoseconds)
    warm, cold = cuda_timing.time_replays({"a": call}, clock=installed.clock, seconds=0.05, warmup=0.001)["a"]
    assert captured == ([calls] if calls == 1 else [calls, 1])
    assert warm.median_us == pytest.approx(nanoseconds / 1e4)  # of one call, and a graph's
    assert cold.median_us == pytest.approx(nanoseconds / 1e4)
    assert "flush" in installed.log


def test_a_timing_of_several_calls():
    timing = summarize([30.0, 60.0, 90.0], 0.02)
    one = timing.per(3)
    assert (one.median_us, one.q1_us, one.q3_us, one.low_us, one.high_us) == (20, 10, 30, 10, 30)
    assert (one.runs, one.noisy) == (3, timing.noisy)


# ---- measure_latency -------------------------------------------------------------------


class OnGpu(nn.Module):
    """Says that it is on a GPU; its work is the fake's."""

    def __init__(self, gpu):
        super().__init__()
        self.run = gpu.work("network", 800_000)

    def forward(self, x):
        self.run()


class CudaTensor(torch.Tensor):
    is_cuda = True


@pytest.fixture
def network(installed, monkeypatch):
    made = OnGpu(installed)
    monkeypatch.setattr(made, "state_dict", lambda: {"weight": torch.zeros(1).as_subclass(CudaTensor)})
    monkeypatch.setattr(torch.cuda, "device", lambda _: latency.thread_count(1))
    monkeypatch.setattr(machine, "gpu_state", lambda: {"sm_mhz": 1980.0})
    return made


def test_latency_on_a_gpu_is_the_graphs_beside_the_launches(network, installed):
    found = measure_latency(network, (3, 4, 4), batch=2, clock=installed.clock, seconds=0.1)
    assert (found.mode, found.median_us, found.launch_us) == ("graph", pytest.approx(80), pytest.approx(800))
    described = found.to_dict()
    json.dumps(described, allow_nan=False)
    assert described["mode"] == "graph"
    assert described["launch_us"] == pytest.approx(800)
    assert described["cold_cache"] is False
    assert described["machine"]["gpu_state"] == {"sm_mhz": 1980.0}
    assert "80.0 us per batch of 2 by graph on cpu, 800.0 us by launches" in str(found)


def test_latency_with_a_cold_cache(network, installed):
    found = measure_latency(network, (3, 4, 4), cold_cache=True, clock=installed.clock, seconds=0.1)
    assert found.cold_cache
    assert found.median_us == pytest.approx(80)
    assert "flush" in installed.log


def test_latency_of_what_no_graph_can_hold(network, installed, monkeypatch):
    def refuse(call, times=1):
        raise RuntimeError("cannot be captured")

    monkeypatch.setattr(cuda_timing, "capture", refuse)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    found = measure_latency(network, (3, 4, 4), clock=installed.clock, seconds=0.1)
    assert (found.mode, found.median_us) == ("launch", found.launch_us)


def test_a_cpu_has_no_cache_to_empty_and_no_launches():
    with pytest.raises(ValueError, match="cold_cache is for a network on a GPU, this one is on cpu"):
        measure_latency(nn.Identity(), (3, 4, 4), cold_cache=True)
    found = measure_latency(nn.Identity(), (3, 4, 4), seconds=0.01, warmup=0)
    assert (found.mode, found.launch_us, found.to_dict()["launch_us"]) == ("call", None, None)


# ---- the machine -------------------------------------------------------------------------

NVIDIA_SMI = """#!/bin/sh
test "$1" = --id=GPU-1234 || exit 6
case "$2" in
  --query-gpu=driver_version,*) echo "580.1, 1980, [N/A], 700.00" ;;
  --query-gpu=clocks.sm,*) echo "1755, 3201, 512.5, 61" ;;
esac
"""


@pytest.fixture
def one_gpu(monkeypatch, tmp_path):
    """torch finds a GPU, and nvidia-smi is a script."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: PROPERTIES)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    script = tmp_path / "nvidia-smi"
    script.write_text(NVIDIA_SMI)
    script.chmod(0o755)
    machine._gpu.cache_clear()
    yield script
    machine._gpu.cache_clear()


def test_facts_of_a_gpu(one_gpu):
    gpu = machine.facts()["gpu"]
    json.dumps(gpu, allow_nan=False)
    assert gpu["name"] == "NVIDIA Test"
    assert gpu["compute_capability"] == "9.0"
    assert (gpu["multiprocessors"], gpu["memory_bytes"], gpu["l2_bytes"]) == (132, 1 << 37, 60 << 20)
    assert gpu["driver"] == "580.1"
    assert gpu["clocks"] == {"sm_max_mhz": 1980, "memory_max_mhz": None}
    assert gpu["power_limit_w"] == 700
    assert machine.gpu_state() == {"sm_mhz": 1755, "memory_mhz": 3201, "power_w": 512.5, "temperature_c": 61}


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\necho garbage\n", None])
def test_a_gpu_without_a_useful_nvidia_smi(one_gpu, script):
    if script is None:
        one_gpu.unlink()
    else:
        one_gpu.write_text(script)
    gpu = machine.facts()["gpu"]
    assert gpu["name"] == "NVIDIA Test"
    assert (gpu["driver"], gpu["power_limit_w"]) == (None, None)
    assert set(machine.gpu_state().values()) == {None}


def test_why_there_is_no_gpu(monkeypatch):
    monkeypatch.setattr(torch.version, "cuda", None)
    assert machine.why_no_gpu() == "this torch is a CPU build"
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "CUDA 13.0 but finds no usable GPU" in machine.why_no_gpu()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: False)
    assert "without nvcc" in machine.why_no_gpu()
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda *_: True)
    assert machine.why_no_gpu() is None


# ---- layers ---------------------------------------------------------------------------------

TINY = Layer("tiny", 70, 34, 6, 5)


@pytest.fixture
def gpu_bench(monkeypatch, installed):
    """bench_layers as on a GPU: our layers are checked on CPU tensors, and the fake's clock says what calls take."""
    chosen = []
    microseconds = {"bitnas": 10, "bitnas_to_bfloat16": 20, "bfloat16/channels_last": 90, "bfloat16/contiguous": 120}
    right = bench.binary_calls

    def calls(layer, batch, against):
        ours = right(layer, batch, "cpu")
        variants = {f"{peer}/{form}": None for peer in against for form in ("channels_last", "contiguous")}
        return {name: installed.work(name, 1000 * microseconds.get(name, 200)) for name in [*ours, *variants]}

    monkeypatch.setattr(bench, "_cuda_calls", calls)
    monkeypatch.setattr(machine, "why_no_gpu", lambda: None)
    monkeypatch.setattr(machine, "gpu_state", lambda: {"sm_mhz": 1980.0})
    monkeypatch.setattr(bench.ops, "select_cuda_kernel", chosen.append)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: installed.now / 1e9)
    return chosen


def test_a_run_on_a_gpu(gpu_bench):
    result = bench_layers([TINY], batches=(1, 2), device="cuda", kernel="mma_64x64", seconds=0.01)
    json.dumps(result, allow_nan=False)
    assert result["device"] == "cuda"
    assert [(row["batch"], row["isa"]) for row in result["rows"]] == [(1, "mma_64x64"), (2, "mma_64x64")]
    row = result["rows"][1]
    # A captured call of the fake takes a tenth.
    assert row["ms"] == pytest.approx(
        {"bitnas": 1e-3, "bitnas_to_bfloat16": 2e-3, "bfloat16": 9e-3, "float32": 20e-3, "float16": 20e-3}
    )
    assert row["cold_ms"].keys() == row["ms"].keys()
    assert row["variant"]["bfloat16"] == "channels_last"
    assert row["gops"]["bitnas"] == pytest.approx(2 * 2 * TINY.macs / 1e-3 / 1e6)
    assert result["geomean_ratio"] == pytest.approx({"float32": 20, "bfloat16": 9, "float16": 20})
    assert result["geomean_ratio_to_bfloat16"] == pytest.approx({"float32": 10, "bfloat16": 4.5, "float16": 10})
    assert result["left_out"] == {}
    assert result["gpu_state"] == {"sm_mhz": 1980.0}
    assert gpu_bench == ["mma_64x64", "auto"]


def test_int8_is_left_out_with_a_reason(gpu_bench):
    result = bench_layers([TINY], device="cuda", against=("bfloat16", "int8"), seconds=0.01)
    assert result["geomean_ratio"].keys() == {"bfloat16"}
    assert result["left_out"] == {"int8": "torch has no int8 convolution on CUDA"}


def test_the_choice_of_kernels_is_put_back_after_an_error(gpu_bench, monkeypatch):
    def fails(*_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(bench, "_cuda_calls", fails)
    with pytest.raises(RuntimeError, match="out of memory"):
        bench_layers([TINY], device="cuda", kernel="popc", seconds=0.01)
    assert gpu_bench == ["popc", "auto"]


def test_layers_for_a_gpu_are_checked_before_they_are_timed(monkeypatch):
    for layer in (TINY, Layer("grouped", 8, 16, 5, 5, stride=2, groups=2)):
        calls = bench.binary_calls(layer, 3, "cpu")
        assert {name: call().dtype for name, call in calls.items()} == {
            "bitnas": torch.int64,
            "bitnas_to_bfloat16": torch.bfloat16,
        }
    right = bench.reference.affine
    monkeypatch.setattr(bench.reference, "affine", lambda *terms: right(*terms) + 1)
    with pytest.raises(RuntimeError, match="layer 'tiny': bitnas and torch disagree"):
        bench.binary_calls(TINY, 3, "cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "tpu"}, "device must be 'cpu' or 'cuda', got 'tpu'"),
        ({"device": "cuda", "threads": (2,)}, r"threads are the CPU's; on cuda it must be \(1,\), got \(2,\)"),
        ({"device": "cuda", "against": ("float64",)}, "'float64' is not one of float32, bfloat16, float16"),
        ({"kernel": "popc"}, "kernel='popc' is for device='cuda'"),
        ({"against": ("float16",)}, "'float16' is not one of float32, bfloat16, int8"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        bench_layers([TINY], **options)


def test_no_gpu_is_said_in_one_line(monkeypatch):
    monkeypatch.setattr(machine, "why_no_gpu", lambda: "this torch is a CPU build")
    with pytest.raises(RuntimeError, match="device='cuda': this torch is a CPU build"):
        bench_layers([TINY], device="cuda")
