"""Binary convolution against what torch offers for the same layer: float32, bfloat16 and int8, in one run.

Every peer is the faster of the ways torch has to run it (eager channels_last, oneDNN with prepacked weights, each
quantized engine). bitnas runs bits to bits, as inside a network. Results are checked once before anything is timed.
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
from bitnas.cost import machine
from bitnas.cost.latency import thread_count
from bitnas.cost.timing import time_interleaved

PEERS = ("float32", "bfloat16", "int8")


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


def _float_peer(x: Tensor, weight: Tensor, layer: Layer) -> dict[str, Callable[[], object]]:
    """Eager in channels_last, and oneDNN with its weight prepacked."""
    x, weight = (t.contiguous(memory_format=torch.channels_last) for t in (x, weight))
    pairs = [[layer.padding] * 2, [layer.stride] * 2, [layer.dilation] * 2]
    calls: dict[str, Callable[[], object]] = {"eager": lambda: F.conv2d(x, weight, **layer.geometry)}
    reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight
    try:
        packed = reorder(weight.to_mkldnn(), *pairs, layer.groups, list(x.shape))
    except RuntimeError:  # no oneDNN in this build, or not for this type on this CPU
        return calls
    run = torch.ops.mkldnn._convolution_pointwise
    calls["onednn"] = lambda: run(x, packed, None, *pairs, layer.groups, "none", [], "")
    return calls


def _int8_peer(x: Tensor, weight: Tensor, layer: Layer) -> dict[str, Callable[[], object]]:
    """Every quantized engine of this torch build, on values of the same ±1."""
    calls: dict[str, Callable[[], object]] = {}
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


def _calls(layer: Layer, batch: int, against: Sequence[str]) -> dict[str, Callable[[], object]]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(batch, layer.cin, layer.h, layer.w, generator=generator)
    weight = torch.randn(layer.cout, layer.cin // layer.groups, layer.kernel, layer.kernel, generator=generator)
    packed, packed_weight = ops.pack(x), ops.pack_weight(weight)
    prepared = torch.ops.bitnas.prepare_weight(packed_weight, layer.cin, layer.groups)
    threshold = torch.zeros(layer.cout, dtype=torch.int32)
    sides = [value for value in (layer.stride, layer.padding, layer.dilation) for _ in range(2)]
    run = torch.ops.bitnas.conv2d_bits.default

    def bits() -> Tensor:
        return run(packed, packed_weight, prepared, threshold, None, layer.cin, *sides, layer.groups, False)

    signs = [torch.where(t >= 0, 1.0, -1.0) for t in (x, weight)]
    dots = F.conv2d(signs[0][:1], signs[1], **layer.geometry)
    if not torch.equal(bits()[:1], reference.threshold_bits(dots, threshold)):
        raise RuntimeError(f"layer {layer.name!r}: bitnas and torch disagree; please report this shape")
    calls: dict[str, Callable[[], object]] = {"bitnas": bits}
    for peer in against:
        if peer == "int8":
            variants = _int8_peer(signs[0], signs[1], layer)
        else:
            dtype = getattr(torch, peer)
            variants = _float_peer(signs[0].to(dtype), signs[1].to(dtype), layer)
        calls |= {f"{peer}/{variant}": call for variant, call in variants.items()}
    return calls


def _contenders(calls: dict[str, Callable[[], object]]) -> tuple[dict[str, Callable[[], object]], float]:
    """Without the ways that fail on this machine, or take over twice as long as the best of the same peer.

    Returns:
        what is left, and about how many seconds one round of it takes.
    """
    seconds: dict[str, float] = {}
    for name, call in calls.items():
        try:
            call()
            start = time.perf_counter()
            call()
            seconds[name] = time.perf_counter() - start
        except RuntimeError:  # a type or engine that this CPU has no instructions for
            if name == "bitnas":
                raise
    best: dict[str, float] = {}
    for name, duration in seconds.items():
        peer = name.partition("/")[0]
        best[peer] = min(best.get(peer, math.inf), duration)
    kept = {name: calls[name] for name in seconds if seconds[name] <= 2 * best[name.partition("/")[0]]}
    return kept, sum(seconds[name] for name in kept)


def _geomean(values: Sequence[float]) -> float | None:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else None


def bench_layers(
    layers: Sequence[Layer],
    *,
    batches: Sequence[int] = (1,),
    threads: Sequence[int] = (1,),
    against: Sequence[str] = PEERS,
    seconds: float = 0.5,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Times every layer at every batch size and thread count, peers interleaved.

    Args:
        against: any of "float32", "bfloat16", "int8".
        seconds: time spent on one row (at least 10 rounds are taken, 3 where rounds are long).
        progress: called with rows done, rows in all, and the row at hand.

    Returns:
        ``{"machine", "rows", "geomean_ratio"}``, rows of ``{"name", "batch", "threads", "isa", "ms", "gops", ...}``:
        milliseconds, 10^9 operations a second (a multiply-add is two), the fastest variant of each peer, and the
        geometric mean over rows of peer time / bitnas time. A peer that this CPU cannot run is left out of the row, and
        its mean is None where no row has it.

    Raises:
        ValueError: an unknown peer, an empty list, a batch or thread count below 1.
    """
    if unknown := [peer for peer in against if peer not in PEERS]:
        raise ValueError(f"against: {unknown[0]!r} is not one of {', '.join(PEERS)}")
    if not layers or not batches or not threads or min(*batches, *threads) < 1:
        raise ValueError(
            f"needs layers, and batches and threads of at least 1; got {len(layers)} layers, batches {tuple(batches)} "
            f"and threads {tuple(threads)}"
        )
    if not 0 < seconds < math.inf:
        raise ValueError(f"seconds must be positive, got {seconds}")
    cases = [(layer, batch, count) for count in threads for batch in batches for layer in layers]
    rows: list[dict[str, Any]] = []
    for done, (layer, batch, count) in enumerate(cases):
        if progress is not None:
            progress(done, len(cases), f"{layer.name}, batch {batch}, {count} thread(s)")
        with thread_count(count), torch.inference_mode():
            calls, round_seconds = _contenders(_calls(layer, batch, against))
            rounds = max(3, min(10, int(2 * seconds / round_seconds)))
            timings = time_interleaved(calls, seconds=seconds, min_runs=rounds, warmup=0.02)
        best: dict[str, tuple[float, str, bool]] = {}
        for name, timing in timings.items():
            peer, _, variant = name.partition("/")
            best[peer] = min(best.get(peer, (math.inf, "", False)), (timing.median_us, variant, timing.noisy))
        rows.append(
            {
                "name": layer.name,
                "batch": batch,
                "threads": count,
                "isa": ops.cpu_isa(),
                "ms": {peer: us / 1e3 for peer, (us, _, _) in best.items()},
                "gops": {peer: 2 * layer.macs * batch / us / 1e3 for peer, (us, _, _) in best.items()},
                "variant": {peer: variant for peer, (_, variant, _) in best.items() if variant},
                "noisy": [peer for peer, (_, _, noisy) in best.items() if noisy],
            }
        )
    if progress is not None:
        progress(len(cases), len(cases), "")
    ratios = {
        peer: _geomean([row["ms"][peer] / row["ms"]["bitnas"] for row in rows if peer in row["ms"]]) for peer in against
    }
    return {"machine": machine.facts(), "rows": rows, "geomean_ratio": ratios}
