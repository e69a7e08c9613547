"""Binary convolution against what torch offers for the same layer, in one run: float32, bfloat16 and int8 on a CPU,
float32, bfloat16 and float16 on a GPU.

Every peer is the faster of the ways torch has to run it (eager channels_last, oneDNN with prepacked weights, each
quantized engine; cuDNN in either memory format, its algorithms searched). bitnas runs bits to bits, as inside a
network, and on a GPU bits to bfloat16 beside it. Results are checked once before anything is timed.
"""

import csv
import functools
import math
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnas import ops, reference
from bitnas.cost import cuda_timing, machine
from bitnas.cost.latency import thread_count
from bitnas.cost.timing import Call, Timing, time_interleaved

PEERS = ("float32", "bfloat16", "int8")
CUDA_PEERS = ("float32", "bfloat16", "float16")

# Asked for, but not there to compare with.
NO_CUDA_PEER = {"int8": "torch has no int8 convolution on CUDA"}

TO_BFLOAT16 = "bitnas_to_bfloat16"


@dataclass(frozen=True)
class Layer:
    """A convolution to time. Sizes in channels and pixels."""

    name: str
    cin: int
    cout: int
    h: int
    w: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    dilation: int = 1
    groups: int = 1

    def __post_init__(self) -> None:
        for f in fields(self)[1:]:
            value, least = getattr(self, f.name), 0 if f.name == "padding" else 1
            if value < least:
                raise ValueError(f"layer {self.name!r}: {f.name} must be at least {least}, got {value}")
        if self.cin % self.groups or self.cout % self.groups:
            raise ValueError(
                f"layer {self.name!r}: groups={self.groups} must divide cin={self.cin} and cout={self.cout}"
            )
        extent = self.dilation * (self.kernel - 1) + 1
        if extent > min(self.h, self.w) + 2 * self.padding:
            raise ValueError(f"layer {self.name!r}: a kernel of {extent} pixels is larger than the padded image")

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        extent = self.dilation * (self.kernel - 1) + 1
        out_h, out_w = ((size + 2 * self.padding - extent) // self.stride + 1 for size in (self.h, self.w))
        return out_h * out_w * self.cout * self.cin // self.groups * self.kernel**2

    @property
    def geometry(self) -> dict[str, Any]:
        return {"stride": self.stride, "padding": self.padding, "dilation": self.dilation, "groups": self.groups}


def shape_lists() -> list[str]:
    """Names of the layer lists that come with bitnas."""
    return sorted(f.name.removesuffix(".csv") for f in resources.files("bitnas.cost").joinpath("shapes").iterdir())


def read_shapes(path_or_name: str | Path) -> list[Layer]:
    """Layers of a CSV file with columns name,cin,cout,h,w,kernel,stride,padding,dilation,groups; or a shipped list.

    Raises:
        ValueError: an unknown name, a missing or unknown column, a bad value; names file and line.
    """
    if str(path_or_name) in shape_lists():
        text = resources.files("bitnas.cost").joinpath("shapes", f"{path_or_name}.csv").read_text()
    elif Path(path_or_name).is_file():
        text = Path(path_or_name).read_text()
    else:
        raise ValueError(f"shapes {str(path_or_name)!r} is neither a file nor one of {', '.join(shape_lists())}")
    rows = csv.DictReader(text.splitlines())
    known = [f.name for f in fields(Layer)]
    columns = rows.fieldnames or []
    if unknown := [c for c in columns if c not in known]:
        raise ValueError(f"{path_or_name}: unknown column {unknown[0]!r}; columns are {','.join(known)}")
    if missing := [c for c in known[:5] if c not in columns]:
        raise ValueError(f"{path_or_name}: column {missing[0]!r} is missing; columns are {','.join(known)}")
    layers = []
    for line, row in enumerate(rows, start=2):
        try:
            layers.append(
                Layer(row["name"], **{k: int(v) for k, v in row.items() if k != "name" and v not in (None, "")})
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path_or_name}, line {line}: {error}") from error
    if not layers:
        raise ValueError(f"{path_or_name}: holds no layer")
    return layers


def _float_peer(x: Tensor, weight: Tensor, layer: Layer) -> dict[str, Call]:
    """Eager in channels_last, and oneDNN with its weight prepacked."""
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    pairs = [[layer.padding] * 2, [layer.stride] * 2, [layer.dilation] * 2]
    calls: dict[str, Call] = {"eager": lambda: F.conv2d(x, weight, **layer.geometry)}
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    try:
        packed = reorder(weight.to_mkldnn(), *pairs, layer.groups, list(x.shape))
    except RuntimeError:  # no oneDNN in this build, or not for this type on this CPU
        return calls
    run = torch.ops.mkldnn._convolution_pointwise
    calls["onednn"] = lambda: run(x, packed, None, *pairs, layer.groups, "none", [], "")
    return calls


def _int8_peer(x: Tensor, weight: Tensor, layer: Layer) -> dict[str, Call]:
    """Every quantized engine of this torch build, on values of the same ±1."""
    calls: dict[str, Call] = {}
    before = torch.backends.quantized.engine
    pairs = [[layer.stride] * 2, [layer.padding] * 2, [layer.dilation] * 2]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        qx = torch.quantize_per_tensor(x, 1.0, 1, torch.quint8).contiguous(memory_format=torch.channels_last)
        scales, zeros = torch.ones(layer.cout), torch.zeros(layer.cout, dtype=torch.long)
        qw = torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)
        for engine in ("onednn", "x86", "fbgemm"):
            if engine in torch.backends.quantized.supported_engines:
                torch.backends.quantized.engine = engine
                packed = torch.ops.quantized.conv2d_prepack(qw, None, *pairs, layer.groups)
                calls[engine] = functools.partial(torch.ops.quantized.conv2d, qx, packed, 8.0, 128)
    torch.backends.quantized.engine = before
    return calls


def _cudnn_peer(x: Tensor, weight: Tensor, layer: Layer) -> dict[str, Call]:
    """Both memory formats, on the GPU."""
    formats = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
    calls: dict[str, Call] = {}
    for name, memory_format in formats.items():
        operands = [t.cuda().contiguous(memory_format=memory_format) for t in (x, weight)]
        calls[name] = functools.partial(F.conv2d, *operands, **layer.geometry)
    return calls


def _random_operands(layer: Layer, batch: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, layer.cin, layer.h, layer.w, generator=generator)
    weight = torch.randn(layer.cout, layer.cin // layer.groups, layer.kernel, layer.kernel, generator=generator)
    return x, weight


def _check(layer: Layer, ok: bool) -> None:
    if not ok:
        raise RuntimeError(f"layer {layer.name!r}: bitnas and torch disagree; please report this shape")


def _dots_of_one_image(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    x, weight = (torch.where(t >= 0, 1.0, -1.0) for t in (x[:1], weight))
    return F.conv2d(x, weight, **layer.geometry)


def _flat_geometry(layer: Layer) -> tuple[Any, ...]:
    """As the private operators take it."""
    sides = [value for value in (layer.stride, layer.padding, layer.dilation) for _ in range(2)]
    return layer.cin, *sides, layer.groups, False


def _calls(layer: Layer, batch: int, against: Sequence[str]) -> dict[str, Call]:
    x, weight = _random_operands(layer, batch)
    packed, packed_weight = ops.pack(x), ops.pack_weight(weight)
    prepared = torch.ops.bitnas.prepare_weight(packed_weight, layer.cin, layer.groups)
    threshold = torch.zeros(layer.cout, dtype=torch.int32)
    geometry, run = _flat_geometry(layer), torch.ops.bitnas.conv2d_bits.default

    def bits() -> Tensor:
        return run(packed, packed_weight, prepared, threshold, None, *geometry)

    dots = _dots_of_one_image(layer, x, weight)
    _check(layer, torch.equal(bits()[:1], reference.threshold_bits(dots, threshold)))
    calls: dict[str, Call] = {"bitnas": bits}
    signs = [torch.where(t >= 0, 1.0, -1.0) for t in (x, weight)]
    for peer in against:
        if peer == "int8":
            variants = _int8_peer(signs[0], signs[1], layer)
        else:
            dtype = getattr(torch, peer)
            variants = _float_peer(signs[0].to(dtype), signs[1].to(dtype), layer)
        calls |= {f"{peer}/{variant}": call for variant, call in variants.items()}
    return calls


def binary_calls(layer: Layer, batch: int, device: str = "cuda") -> dict[str, Callable[[], Tensor]]:
    """The layer on a GPU, bits to bits and bits to bfloat16. Both have been found equal to the CPU's kernels on the
    whole batch, and to plain torch on one image."""
    x, weight = _random_operands(layer, batch)
    packed, packed_weight = ops.pack(x), ops.pack_weight(weight)
    threshold = torch.zeros(layer.cout, dtype=torch.int32)
    scale, bias = torch.randn(2, layer.cout, generator=torch.Generator().manual_seed(1))
    geometry = _flat_geometry(layer)
    operands = [packed.to(device), packed_weight.to(device)]
    operands.append(torch.ops.bitnas.prepare_weight(operands[1], layer.cin, layer.groups))
    on_device = [t.to(device) for t in (threshold, scale, bias)]
    conv2d_bits, conv2d_float = torch.ops.bitnas.conv2d_bits.default, torch.ops.bitnas.conv2d_float.default

    def bits() -> Tensor:
        return conv2d_bits(*operands, on_device[0], None, *geometry)

    def floats() -> Tensor:
        return conv2d_float(*operands, *on_device[1:], *geometry, dtype=torch.bfloat16)

    dots = _dots_of_one_image(layer, x, weight)
    _check(layer, torch.equal(bits()[:1].cpu(), reference.threshold_bits(dots, threshold)))
    _check(layer, torch.equal(floats()[:1].cpu(), reference.affine(dots, scale, bias).bfloat16()))
    same = conv2d_bits(packed, packed_weight, None, threshold, None, *geometry)
    _check(layer, torch.equal(bits().cpu(), same))
    floats_same = conv2d_float(packed, packed_weight, None, scale, bias, *geometry, dtype=torch.bfloat16)
    _check(layer, torch.equal(floats().cpu(), floats_same))
    return {"bitnas": bits, TO_BFLOAT16: floats}


def _cuda_calls(layer: Layer, batch: int, against: Sequence[str]) -> dict[str, Call]:
    calls: dict[str, Call] = {**binary_calls(layer, batch)}
    # Ordinary values for the peers: a GPU draws less power for ±1, and clocks higher.
    x, weight = _random_operands(layer, batch)
    for peer in against:
        dtype = getattr(torch, peer)
        variants = _cudnn_peer(x.to(dtype), weight.to(dtype), layer)
        calls |= {f"{peer}/{variant}": call for variant, call in variants.items()}
    return calls


def _seconds(call: Call, wait: Call) -> float:
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def _contenders(calls: dict[str, Call], wait: Call = lambda: None) -> tuple[dict[str, Call], float]:
    """Without the ways that fail on this machine, or take over twice as long as the best of the same peer.

    Args:
        wait: returns when what was called has finished.

    Returns:
        what is left, and about how many seconds one round of it takes.
    """
    seconds: dict[str, float] = {}
    for name, call in calls.items():
        try:
            call()
            wait()
            seconds[name] = min(_seconds(call, wait) for _ in range(3))  # one hiccup must not rule a way out
        except RuntimeError:  # a type or engine that this processor has no instructions for
            if name.startswith("bitnas"):
                raise
    best: dict[str, float] = {}
    for name, duration in seconds.items():
        peer = name.partition("/")[0]
        best[peer] = min(best.get(peer, math.inf), duration)
    kept = {name: calls[name] for name in seconds if seconds[name] <= 2 * best[name.partition("/")[0]]}
    return kept, sum(seconds[name] for name in kept)


def _rounds(seconds: float, round_seconds: float) -> int:
    return max(3, min(10, int(2 * seconds / round_seconds)))


def _time_on_cpu(layer: Layer, batch: int, against: Sequence[str], seconds: float) -> dict[str, Timing]:
    calls, round_seconds = _contenders(_calls(layer, batch, against))
    return time_interleaved(calls, seconds=seconds, min_runs=_rounds(seconds, round_seconds), warmup=0.02)


def _time_on_gpu(
    layer: Layer, batch: int, against: Sequence[str], seconds: float
) -> tuple[dict[str, Timing], dict[str, Timing]]:
    """Warm, cold."""
    search = {"enabled": True, "benchmark": True, "deterministic": False, "allow_tf32": False}
    with torch.backends.cudnn.flags(**search):
        calls, round_seconds = _contenders(_cuda_calls(layer, batch, against), torch.cuda.synchronize)
        options = {"seconds": seconds / 2, "min_runs": _rounds(seconds, round_seconds), "warmup": 0.02}
        timings = cuda_timing.time_replays(calls, **options)
    torch.cuda.empty_cache()  # memory of the graphs, which nothing else would use again
    return {name: warm for name, (warm, _) in timings.items()}, {name: cold for name, (_, cold) in timings.items()}


def _fastest(timings: dict[str, Timing]) -> dict[str, tuple[Timing, str]]:
    """Of each peer the fastest variant, and its name."""
    best: dict[str, tuple[Timing, str]] = {}
    for name, timing in timings.items():
        peer, _, variant = name.partition("/")
        if peer not in best or timing.median_us < best[peer][0].median_us:
            best[peer] = timing, variant
    return best


def _geomean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def bench_layers(
    layers: Sequence[Layer],
    *,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    against: Sequence[str] | None = None,
    seconds: float = 0.5,
    device: str = "cpu",
    kernel: str = "auto",
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Times every layer at every batch size and thread count, peers interleaved.

    Args:
        against: any of "float32", "bfloat16", "int8", or on a GPU "float32", "bfloat16", "float16"; all of these by
            default.
        seconds: time spent on one row (at least 10 rounds are taken, 3 where rounds are long).
        device: "cpu" or "cuda", the current GPU, where replayed graphs are timed.
        kernel: on a GPU, one of ``bitnas.ops.cuda_kernels()`` to use wherever it can compute the layer.
        progress: called with rows done, rows in all, and the row at hand.

    Returns:
        ``{"device", "machine", "rows", "geomean_ratio"}``, rows of ``{"name", "batch", "threads", "isa", "ms", "gops",
        ...}``: milliseconds, 10^9 operations a second (a multiply-add is two), the fastest variant of each peer, and
        the geometric mean over rows of peer time / bitnas time. A peer that this processor cannot run is left out of
        the row, and its mean is None where no row has it.

        On a GPU also ``"cold_ms"``, every call with a cold L2; in ``ms`` the layer with bfloat16 results,
        ``bitnas_to_bfloat16``, and ``"geomean_ratio_to_bfloat16"`` over it; ``"left_out"``, peers that torch does not
        have and why; ``"gpu_state"``, clocks and power right after the last row.

    Raises:
        ValueError: an unknown peer or device, an empty list, a batch or thread count below 1; thread counts or a kernel
        where they mean nothing. RuntimeError: no usable GPU.
    """
    if device not in ("cpu", "cuda"):
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")
    on_gpu = device == "cuda"
    known = CUDA_PEERS if on_gpu else PEERS
    left_out = {peer: why for peer, why in NO_CUDA_PEER.items() if on_gpu and against is not None and peer in against}
    against = [peer for peer in (known if against is None else against) if peer not in left_out]
    if unknown := [peer for peer in against if peer not in known]:
        raise ValueError(f"against: {unknown[0]!r} is not one of {', '.join(known)}")
    if not layers or not batches or not threads or min(*batches, *threads) < 1:
        raise ValueError(
            f"needs layers, and batches and threads of at least 1; got {len(layers)} layers, batches {tuple(batches)} "
            f"and threads {tuple(threads)}"
        )
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive, got {seconds}")
    if on_gpu and tuple(threads) != (1,):
        raise ValueError(f"threads are the CPU's; on {device} it must be (1,), got {tuple(threads)}")
    if not on_gpu and kernel != "auto":
        raise ValueError(f"kernel={kernel!r} is for device='cuda'; select_cpu_isa chooses those of a CPU")
    if on_gpu and (why := machine.why_no_gpu()):
        raise RuntimeError(f"device='cuda': {why}")
    if on_gpu:
        ops.select_cuda_kernel(kernel)
    cases = [(layer, batch, count) for count in threads for batch in batches for layer in layers]
    rows: list[dict[str, Any]] = []
    try:
        for done, (layer, batch, count) in enumerate(cases):
            if progress is not None:
                where = f"{count} thread(s)" if not on_gpu else device
                progress(done, len(cases), f"{layer.name}, batch {batch}, {where}")
            cold: dict[str, Timing] = {}
            with thread_count(count), torch.inference_mode():
                if on_gpu:
                    timings, cold = _time_on_gpu(layer, batch, against, seconds)
                else:
                    timings = _time_on_cpu(layer, batch, against, seconds)
            case = {"name": layer.name, "batch": batch, "threads": count, "isa": kernel if on_gpu else ops.cpu_isa()}
            rows.append({**case, **_figures(2 * layer.macs * batch, timings, cold)})
    finally:
        if on_gpu:
            ops.select_cuda_kernel("auto")
    if progress is not None:
        progress(len(cases), len(cases), "")
    result = {"device": device, "machine": machine.facts(), "rows": rows, "geomean_ratio": _ratios(rows, against)}
    if on_gpu:
        result |= {
            "geomean_ratio_to_bfloat16": _ratios(rows, against, TO_BFLOAT16),
            "left_out": left_out,
            "gpu_state": machine.gpu_state(),
        }
    return result


def _figures(operations: int, timings: dict[str, Timing], cold: dict[str, Timing]) -> dict[str, Any]:
    """What a row says beside its case."""
    best = _fastest(timings)
    figures = {
        "ms": {peer: timing.median_us / 1e3 for peer, (timing, _) in best.items()},
        "gops": {peer: operations / timing.median_us / 1e3 for peer, (timing, _) in best.items()},
        "variant": {peer: variant for peer, (_, variant) in best.items() if variant},
        "noisy": [peer for peer, (timing, _) in best.items() if timing.noisy],
    }
    if cold:
        figures["cold_ms"] = {peer: timing.median_us / 1e3 for peer, (timing, _) in _fastest(cold).items()}
    return figures


def _ratios(rows: Sequence[dict[str, Any]], against: Sequence[str], ours: str = "bitnas") -> dict[str, float | None]:
    """Geometric means over the rows that have the peer."""
    return {
        peer: _geomean([row["ms"][peer] / row["ms"][ours] for row in rows if peer in row["ms"]]) for peer in against
    }
