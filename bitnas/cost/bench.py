"""Binary convolution against what torch offers for the same layer, in one run: float32, bfloat16 and int8 on a CPU,
float32, bfloat16 and float16 on a GPU.

Every peer is the faster of the ways torch has to run it (eager channels_last, oneDNN with prepacked weights, each
quantized engine; cuDNN in either memory format, its algorithms searched). bitnas runs bits to bits, as inside a
network, and on a GPU bits to bfloat16 beside it. Results are checked once before anything is timed. Everything is timed
warm and cold, in turns (cpu_timing.py, cuda_timing.py).
"""

import csv
import functools
import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import resources
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnas import ops, reference
from bitnas.cost import cuda_timing, machine
from bitnas.cost.cpu_timing import Times, Way, time_ways
from bitnas.cost.latency import thread_count
from bitnas.cost.timing import Call, Timing, contenders, rounds_for

PEERS = ("float32", "bfloat16", "int8")
CUDA_PEERS = ("float32", "bfloat16", "float16")

# Asked for, but not there to compare with.
NO_CUDA_PEER = {"int8": "torch has no int8 convolution on CUDA"}

TO_BFLOAT16 = "bitnas_to_bfloat16"

# Peers of which every way is timed, slow or not: an engine may be asked for by name.
EVERY_WAY = ("int8",)


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
    def positions(self) -> int:
        """Output pixels of one image."""
        extent = self.dilation * (self.kernel - 1) + 1
        return math.prod((size + 2 * self.padding - extent) // self.stride + 1 for size in (self.h, self.w))

    @property
    def weights(self) -> int:
        """Elements of the weight."""
        return self.cout * self.cin // self.groups * self.kernel**2

    @property
    def macs(self) -> int:
        """Multiply-adds for one image."""
        return self.positions * self.weights

    def elements(self, batch: int) -> int:
        """Numbers that come in or go out at least once: activations, weights, results."""
        return batch * (self.cin * self.h * self.w + self.cout * self.positions) + self.weights

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


def _float_ways(x: Tensor, weight: Tensor, layer: Layer) -> dict[str, Way]:
    """Eager in channels_last, and oneDNN with its weight prepacked."""
    pairs = [[layer.padding] * 2, [layer.stride] * 2, [layer.dilation] * 2]
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    run = torch.ops.mkldnn._convolution_pointwise

    def operands() -> list[Tensor]:
        return [t.clone(memory_format=torch.channels_last) for t in (x, weight)]

    def eager() -> Call:
        return functools.partial(F.conv2d, *operands(), **layer.geometry)

    def onednn() -> Call:  # fails where this build has no oneDNN, or it cannot do this type on this CPU
        own, own_weight = operands()
        packed = reorder(own_weight.to_mkldnn(), *pairs, layer.groups, list(x.shape))
        return functools.partial(run, own, packed, None, *pairs, layer.groups, "none", [], "")

    reads = x.nbytes + weight.nbytes
    return {"eager": Way(eager, reads), "onednn": Way(onednn, reads)}


def _int8_ways(bits: Tensor, weight: Tensor, layer: Layer) -> dict[str, Way]:
    """Every quantized engine of this torch build. Activations are {0, 1} with the zero point 0 that a ReLU leaves:
    engines are slower with another."""
    pairs = [[layer.stride] * 2, [layer.padding] * 2, [layer.dilation] * 2]
    qx, qw = quantized_bits(bits.contiguous(memory_format=torch.channels_last), weight)

    def make(engine: str) -> Call:
        before = torch.backends.quantized.engine
        torch.backends.quantized.engine = engine
        try:
            packed = torch.ops.quantized.conv2d_prepack(qw, None, *pairs, layer.groups)
        finally:
            torch.backends.quantized.engine = before
        return functools.partial(torch.ops.quantized.conv2d, qx.clone(), packed, 8.0, 0)

    reads = bits.numel() + weight.numel()
    return {name: Way(functools.partial(make, name), reads) for name in quantized_engines()}


def quantized_bits(bits: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """{0, 1} activations and ±1 weights as torch's quint8 and, per channel, qint8."""
    scales, zeros = torch.ones(weight.shape[0]), torch.zeros(weight.shape[0], dtype=torch.long)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that these types will go one day
        qx = torch.quantize_per_tensor(bits, 1.0, 0, torch.quint8)
        return qx, torch.quantize_per_channel(weight, scales, zeros, 0, torch.qint8)


def quantized_engines() -> list[str]:
    """Those of this torch build that are for this processor and not another one's kernels."""
    return [name for name in ("onednn", "x86", "fbgemm") if name in torch.backends.quantized.supported_engines]


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


def layer_ways(layer: Layer, batch: int, against: Sequence[str]) -> tuple[dict[str, Way], str]:
    """Ours, found right on one image, and the peers'; and the name of our kernel."""
    x, weight = _random_operands(layer, batch)
    packed, packed_weight = ops.pack(x), ops.pack_weight(weight)
    threshold = torch.zeros(layer.cout, dtype=torch.int32)
    geometry, run = _flat_geometry(layer), torch.ops.bitnas.conv2d_bits.default

    def prepare(own_weight: Tensor) -> Tensor:
        sides = layer.stride, layer.stride, layer.dilation, layer.dilation
        return torch.ops.bitnas.prepare_weight(own_weight, layer.cin, layer.groups, *sides, batch * layer.positions)

    def bits() -> Callable[[], Tensor]:
        own_weight = packed_weight.clone()
        return functools.partial(run, packed.clone(), own_weight, prepare(own_weight), threshold, None, *geometry)

    dots = _dots_of_one_image(layer, x, weight)
    _check(layer, torch.equal(bits()()[:1], reference.threshold_bits(dots, threshold)))
    prepared = prepare(packed_weight)
    ways = {"bitnas": Way(bits, packed.nbytes + prepared.nbytes)}
    signs, weight_signs = (torch.where(t >= 0, 1.0, -1.0) for t in (x, weight))
    for peer in against:
        if peer == "int8":
            variants = _int8_ways(torch.clamp(signs, min=0), weight_signs, layer)
        else:
            dtype = getattr(torch, peer)
            variants = _float_ways(signs.to(dtype), weight_signs.to(dtype), layer)
        ways |= {f"{peer}/{variant}": way for variant, way in variants.items()}
    return ways, torch.ops.bitnas.prepared_kernel(prepared)


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


def _time_on_gpu(
    layer: Layer, batch: int, against: Sequence[str], seconds: float
) -> tuple[dict[str, Timing], dict[str, Timing]]:
    """Warm, cold."""
    search = {"enabled": True, "benchmark": True, "deterministic": False, "allow_tf32": False}
    with torch.backends.cudnn.flags(**search):
        made = _cuda_calls(layer, batch, against)
        found = contenders({name: functools.partial(_as_made, call) for name, call in made.items()}, wait=_wait_for_gpu)
        rounds = rounds_for(seconds, sum(one for _, one in found.values()))
        options = {"seconds": seconds / 2, "min_runs": rounds, "warmup": 0.02}
        timings = cuda_timing.time_replays({name: call for name, (call, _) in found.items()}, **options)
    torch.cuda.empty_cache()  # memory of the graphs, which nothing else would use again
    return {name: warm for name, (warm, _) in timings.items()}, {name: cold for name, (_, cold) in timings.items()}


def _as_made(call: Call) -> Call:
    return call


def _wait_for_gpu() -> None:
    torch.cuda.synchronize()


def _fastest(timings: Mapping[str, Timing]) -> dict[str, tuple[Timing, str]]:
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
    on_row: Callable[[dict[str, Any]], None] | None = None,
) -> dict[str, Any]:
    """Times every layer at every batch size and thread count: peers, thread counts, warm and cold caches in turns.

    Args:
        against: any of "float32", "bfloat16", "int8", or on a GPU "float32", "bfloat16", "float16"; all of these by
            default.
        seconds: time spent on one row (at least 10 rounds are taken, 3 where rounds are long).
        device: "cpu" or "cuda", the current GPU, where replayed graphs are timed.
        kernel: on a GPU, one of ``bitnas.ops.cuda_kernels()`` to use wherever it can compute the layer.
        progress: called with rows done, rows in all, and the row at hand.
        on_row: called with every row as soon as it is measured.

    Returns:
        ``{"device", "machine", "rows", "geomean_ratio", "geomean_cold_ratio", "losses", "seconds"}``. A row has
        ``"name"``, ``"batch"``, ``"threads"``, ``"isa"``, and by peer, of its fastest ``"variant"``: ``"ms"``,
        milliseconds with warm caches, ``"iqr_ms"`` their spread, ``"cold_ms"`` with cold ones (on a GPU the L2),
        ``"gops"``, 10^9 operations a second (a multiply-add is two); ``"noisy"``, peers whose median stayed uncertain.
        Means are geometric, over rows, of peer time / bitnas time. A peer that this processor cannot run is left out of
        the row, and its mean is None where no row has it. ``"losses"``: where a peer is faster, as
        ``{"name", "batch", "threads", "isa", "to", "ratio", "cold"}``. ``"seconds"``: how long all of it took.

        On a CPU rows also have ``"kernel"``, the name of ours, and ``"way_ms"`` and ``"way_cold_ms"``, the times of
        every way that was not left out as much slower than another: ``"float32/eager"``, ``"int8/onednn"``. All
        quantized engines are in it.

        On a GPU also in ``ms`` the layer with bfloat16 results, ``bitnas_to_bfloat16``, and
        ``"geomean_ratio_to_bfloat16"`` over it; ``"left_out"``, peers that torch does not have and why;
        ``"gpu_state"``, clocks and power right after the last row.

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
    cases = [(layer, batch) for batch in batches for layer in layers]
    where = device if on_gpu else f"{' and '.join(map(str, threads))} thread(s)"
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    try:
        for done, (layer, batch) in enumerate(cases):
            if progress is not None:
                progress(done, len(cases), f"{layer.name}, batch {batch}, {where}")
            with torch.inference_mode():
                if on_gpu:
                    found = _rows_of_gpu(layer, batch, against, seconds, kernel)
                else:
                    found = _rows_of_cpu(layer, batch, threads, against, seconds)
            rows += found
            if on_row is not None:
                for row in found:
                    on_row(row)
    finally:
        if on_gpu:
            ops.select_cuda_kernel("auto")
    if progress is not None:
        progress(len(cases), len(cases), "")
    result = {"device": device, "machine": machine.facts(), "rows": rows, **summary(rows, against)}
    result["seconds"] = time.perf_counter() - started
    if on_gpu:
        result |= {
            "geomean_ratio_to_bfloat16": _ratios(rows, against, ours=TO_BFLOAT16),
            "left_out": left_out,
            "gpu_state": machine.gpu_state(),
        }
    return result


def _rows_of_cpu(
    layer: Layer, batch: int, threads: Sequence[int], against: Sequence[str], seconds: float
) -> list[dict[str, Any]]:
    ways, kernel = layer_ways(layer, batch, against)
    times = time_ways(ways, threads=threads, seconds=seconds, keep=EVERY_WAY)
    return [
        {
            **{"name": layer.name, "batch": batch, "threads": count, "isa": ops.cpu_isa(), "kernel": kernel},
            **cpu_figures(2 * layer.macs * batch, times[count]),
        }
        for count in threads
    ]


def _rows_of_gpu(layer: Layer, batch: int, against: Sequence[str], seconds: float, kernel: str) -> list[dict[str, Any]]:
    with thread_count(1):
        timings, cold = _time_on_gpu(layer, batch, against, seconds)
    case = {"name": layer.name, "batch": batch, "threads": 1, "isa": kernel}
    return [{**case, **_figures(2 * layer.macs * batch, timings, cold)}]


def cpu_figures(operations: int, times: Mapping[str, Times]) -> dict[str, Any]:
    """What a row says beside its case: of every peer's fastest way, and the times of every way."""
    warm = {name: time.warm for name, time in times.items()}
    cold = {name: time.cold for name, time in times.items() if time.cold is not None}
    ways = {name: timing.median_us / 1e3 for name, timing in warm.items()}
    cold_ways = {name: timing.median_us / 1e3 for name, timing in cold.items()}
    return {**_figures(operations, warm, cold), "way_ms": ways, "way_cold_ms": cold_ways}


def _figures(operations: int, timings: Mapping[str, Timing], cold: Mapping[str, Timing]) -> dict[str, Any]:
    best = _fastest(timings)
    figures = {
        "ms": {peer: timing.median_us / 1e3 for peer, (timing, _) in best.items()},
        "iqr_ms": {peer: timing.iqr_us / 1e3 for peer, (timing, _) in best.items()},
        "gops": {peer: operations / timing.median_us / 1e3 for peer, (timing, _) in best.items()},
        "variant": {peer: variant for peer, (_, variant) in best.items() if variant},
        "noisy": [peer for peer, (timing, _) in best.items() if timing.noisy],
    }
    if cold:
        figures["cold_ms"] = {peer: timing.median_us / 1e3 for peer, (timing, _) in _fastest(cold).items()}
    return figures


def summary(rows: Sequence[dict[str, Any]], against: Sequence[str]) -> dict[str, Any]:
    """``"geomean_ratio"``, ``"geomean_cold_ratio"`` and ``"losses"`` of rows, as :func:`bench_layers` returns them."""
    return {
        "geomean_ratio": _ratios(rows, against),
        "geomean_cold_ratio": _ratios(rows, against, "cold_ms"),
        "losses": _losses(rows, against),
    }


def _ratios(
    rows: Sequence[dict[str, Any]], against: Sequence[str], figure: str = "ms", *, ours: str = "bitnas"
) -> dict[str, float | None]:
    """Geometric means over the rows that have the peer."""
    ratios: dict[str, list[float]] = {peer: [] for peer in against}
    for row in rows:
        times = row.get(figure, {})
        for peer in against:
            if peer in times and ours in times:
                ratios[peer].append(times[peer] / times[ours])
    return {peer: _geomean(found) for peer, found in ratios.items()}


def _losses(rows: Sequence[dict[str, Any]], against: Sequence[str]) -> list[dict[str, Any]]:
    losses = []
    for row in rows:
        case = {key: row[key] for key in ("name", "batch", "threads", "isa")}
        for figure in ("ms", "cold_ms"):
            times = row.get(figure, {})
            for peer in against:
                if peer in times and "bitnas" in times and times[peer] < times["bitnas"]:
                    ratio = times[peer] / times["bitnas"]
                    losses.append({**case, "to": peer, "ratio": ratio, "cold": figure == "cold_ms"})
    return losses
