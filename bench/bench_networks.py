"""Whole networks from float image to logits: frozen VGG-small and ResNet-18 against their twins in torch.

The twin is the network one would run instead: the same widths and strides, float convolutions with the batch norm
folded in, a ReLU where the binarizer was. Of each type the fastest of the ways torch has to run it counts: eager in
both memory formats, frozen TorchScript for oneDNN, torch.compile with constants folded (where there is a C++ compiler);
for int8, post-training quantization of the whole twin on every engine. Everything takes a float32 image in
channels_last and gives float32 logits, all in turns in one process, each after a run of its own that is not timed. Run
nothing else on the machine meanwhile.

Of the frozen network it also says where the time goes: binary layers with whatever their epilogues do, and the rest, by
kind. It is timed call by call for that, in runs of their own.
"""

import argparse
import copy
import statistics
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

import bitnas
from bitnas.cost import machine
from bitnas.cost.latency import thread_count
from bitnas.cost.timing import Timing, time_interleaved
from bitnas.files import write_json_atomic
from bitnas.packed import PackedNetwork, measure_memory

RESULTS = Path(__file__).parent / "results"

# Sizes of one image and of the batches.
NETWORKS = {"vgg_small": ((3, 32, 32), (1, 32)), "resnet18": ((3, 224, 224), (1, 8))}
PEERS = ("float32", "bfloat16", "int8")

BINARY = "binary layers"
KINDS = {
    "conv2d": BINARY,
    "conv2d_add": BINARY,
    "linear": BINARY,
    "float_conv2d": "float convolution",
    "pack": "pack",
    "max_pool2d": "pool",
    "float_max_pool2d": "pool",
    "float_adaptive_avg_pool2d": "pool",
    "affine": "affine",
    "float_relu": "activation",
    "flatten": "flatten",
    "float_linear": "classifier",
}
BETWEEN = "between calls"

Run = Callable[[], object]


class Block(nn.Module):
    """The twin of a residual block."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.conv1, self.conv2 = _float_conv(block.conv1), _float_conv(block.conv2)
        self.downsample = None if block.downsample is None else _float_conv(block.downsample.conv)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv2(self.relu1(self.conv1(x)))
        return self.relu2(y + (x if self.downsample is None else self.downsample(x)))


def twin(model: Any) -> nn.Module:
    """The float network of the same shape. Its weights are random: time is all it is asked for."""
    if hasattr(model, "layer1"):
        blocks = [Block(block) for stage in (model.layer1, model.layer2, model.layer3, model.layer4) for block in stage]
        head = [_float_conv(model.conv1), nn.ReLU(), model.maxpool, *blocks, nn.AdaptiveAvgPool2d(1)]
    else:
        head = []
        for i in range(1, 7):
            head += [_float_conv(getattr(model, f"conv{i}")), nn.ReLU()]
            head += [nn.MaxPool2d(2)] if hasattr(model, f"pool{i}") else []
    return copy.deepcopy(nn.Sequential(*head, nn.Flatten(), model.fc)).eval().requires_grad_(False)


def _float_conv(layer: Any) -> nn.Conv2d:
    return nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)


class _AsBfloat16(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.bfloat16()

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x.bfloat16()).float()


def _laid_out(network: nn.Module, peer: str, layout: torch.memory_format) -> nn.Module:
    laid: nn.Module = cast(Any, copy.deepcopy(network)).to(memory_format=layout)
    return (laid if peer == "float32" else _AsBfloat16(laid)).eval()


def _eager(network: nn.Module, peer: str, layout: torch.memory_format, x: Tensor) -> Run:
    return partial(_laid_out(network, peer, layout), x.contiguous(memory_format=layout))


def _script(network: nn.Module, peer: str, layout: torch.memory_format, x: Tensor) -> Run:
    """Frozen TorchScript, its convolutions given to oneDNN with prepacked weights."""
    x = x.contiguous(memory_format=layout)
    scripted = torch.jit.trace(_laid_out(network, peer, layout), x)
    scripted = torch.jit.optimize_for_inference(torch.jit.freeze(scripted))
    for _ in range(3):  # the first runs are profiled and compiled
        scripted(x)
    return partial(scripted, x)


def _compiled(network: nn.Module, peer: str, x: Tensor) -> Run:
    with torch._inductor.config.patch(freezing=True):
        compiled = torch.compile(_laid_out(network, peer, torch.channels_last), dynamic=False)
        compiled(x)
    return partial(compiled, x)


def _quantized(network: nn.Module, engine: str, scripted: bool, x: Tensor) -> Run:
    """Post-training quantization by the engine's own recipe, calibrated on noise: time is all it is asked for."""
    from torch.ao.quantization import get_default_qconfig_mapping, quantize_fx

    with _engine(engine):
        observed: Any = quantize_fx.prepare_fx(copy.deepcopy(network), get_default_qconfig_mapping(engine), (x,))
        for seed in range(4):
            observed(torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))
        quantized: Any = quantize_fx.convert_fx(observed)
        quantized = quantized.to(memory_format=torch.channels_last)
        if left := [name for name, module in quantized.named_modules() if type(module) in (nn.Conv2d, nn.Linear)]:
            raise RuntimeError(f"{engine} leaves {', '.join(left)} in float")
        if scripted:
            quantized = torch.jit.freeze(torch.jit.trace(quantized, x))
            for _ in range(3):
                quantized(x)

    def run() -> object:
        torch.backends.quantized.engine = engine
        return quantized(x)

    return run


@contextmanager
def _engine(name: str) -> Iterator[None]:
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def peers(network: nn.Module, x: Tensor, against: list[str]) -> tuple[dict[str, Run], dict[str, str]]:
    """Every way that works here, as ``peer/variant``, and why others do not."""
    torch._dynamo.reset()  # forgets what it compiled for the networks before, of which it keeps only so many
    makers: dict[str, Callable[[], Run]] = {}
    for peer in against:
        if peer == "int8":
            for engine in ("x86", "onednn", "fbgemm"):
                makers[f"int8/{engine}"] = partial(_quantized, network, engine, False, x)
                makers[f"int8/{engine} script"] = partial(_quantized, network, engine, True, x)
            continue
        for layout in (torch.channels_last, torch.contiguous_format):
            name = f"{peer}/{str(layout).removeprefix('torch.').removesuffix('_format')}"
            makers[name] = partial(_eager, network, peer, layout, x)
            makers[f"{name} script"] = partial(_script, network, peer, layout, x)
        makers[f"{peer}/compiled"] = partial(_compiled, network, peer, x)
    calls, failed = {}, {}
    for name, make in makers.items():
        try:
            calls[name] = make()
        except Exception as error:  # whatever a compiler or an engine that this machine lacks raises
            failed[name] = " ".join(str(error).split())[:200]
    return calls, failed


def contenders(calls: dict[str, Run]) -> tuple[dict[str, Run], float]:
    """Without ways that take much longer than the best of the same peer; and about how long one round takes."""
    seconds = {}
    for name, call in calls.items():
        call()
        seconds[name] = min(_seconds(call) for _ in range(5))
    best: dict[str, float] = defaultdict(lambda: float("inf"))
    for name, duration in seconds.items():
        best[name.partition("/")[0]] = min(best[name.partition("/")[0]], duration)
    kept = {name: call for name, call in calls.items() if seconds[name] <= 1.25 * best[name.partition("/")[0]]}
    return kept, sum(seconds[name] for name in kept)


def _after_one_more(call: Run, times: int) -> float:
    """A stopwatch, in nanoseconds. The call before it, which is not timed, has the caches to itself again."""
    call()
    begin = time.perf_counter_ns()
    for _ in range(times):
        call()
    return time.perf_counter_ns() - begin


def _seconds(call: Run) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def parts(frozen: PackedNetwork, x: Tensor, seconds: float) -> dict[str, float]:
    """Microseconds of one forward pass by kind of call: medians of many passes, each call timed in its place."""
    kinds = {step.name: KINDS.get(step.kind, step.kind) for step in frozen.steps}
    passes: list[dict[str, float]] = []
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds or len(passes) < 10:
        spent: dict[str, float] = defaultdict(float)
        start = time.perf_counter()
        _timed_pass(frozen, x, kinds, spent)
        spent[BETWEEN] = time.perf_counter() - start - sum(spent.values())
        passes.append(spent)
    names = {name for spent in passes for name in spent}
    return {name: 1e6 * statistics.median(spent[name] for spent in passes) for name in sorted(names)}


def _timed_pass(frozen: PackedNetwork, x: Tensor, kinds: dict[str, str], spent: dict[str, float]) -> None:
    modules: dict[str, Any] = frozen._modules

    values = {"input": x}
    for call, done in frozen._plan:
        start = time.perf_counter()
        call.run(modules, values)
        spent[kinds[call.step]] += time.perf_counter() - start
        for name in done:
            del values[name]


def outside(spent: dict[str, float]) -> float:
    """The share of a forward pass that is not spent in binary layers."""
    return 1 - spent[BINARY] / sum(spent.values())


def trained(name: str) -> nn.Module:
    """The network with weights and statistics as training could leave them."""
    torch.manual_seed(0)
    model = bitnas.create_model(name).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 50)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


def measure(name: str, batch: int, threads: int, against: list[str], seconds: float) -> dict[str, Any]:
    size = NETWORKS[name][0]
    model = trained(name)
    image = torch.randn(batch, *size, generator=torch.Generator().manual_seed(1))
    image = image.contiguous(memory_format=torch.channels_last)
    frozen, bits = bitnas.freeze(model), bitnas.freeze(model, memory="bits")
    if not bitnas.verify(model, frozen, image[:1]).ok or not torch.equal(frozen(image), bits(image)):
        raise RuntimeError(f"{name}: the frozen network is not what it is defined to be; please report this")
    calls: dict[str, Run] = {"bitnas": lambda: frozen(image), "bitnas_bits": lambda: bits(image)}
    others, failed = peers(twin(model), image, against)
    kept, round_seconds = contenders({**calls, **others})
    runs = max(5, min(50, int(seconds / round_seconds)))
    timings = time_interleaved(kept, seconds=seconds, min_runs=runs, warmup=0.1, stopwatch=_after_one_more)
    spent = parts(frozen, image, seconds / 4)
    best: dict[str, tuple[Timing, str]] = {}
    for variant, timing in timings.items():
        peer, _, way = variant.partition("/")
        if peer not in best or timing.median_us < best[peer][0].median_us:
            best[peer] = timing, way
    memory = {word: measure_memory(network) for word, network in (("fast", frozen), ("bits", bits))}
    return {
        "network": name,
        "batch": batch,
        "threads": threads,
        "isa": machine.facts()["isa"],
        "ms": {peer: timing.median_us / 1e3 for peer, (timing, _) in best.items()},
        "iqr_ms": {peer: timing.iqr_us / 1e3 for peer, (timing, _) in best.items()},
        "variant": {peer: way for peer, (_, way) in best.items() if way},
        "noisy": [peer for peer, (timing, _) in best.items() if timing.noisy],
        "failed": failed,
        "parts_us": spent,
        "outside_share": outside(spent),
        "memory_bytes": {word: {"saved": m.saved, "prepared": m.prepared} for word, m in memory.items()},
    }


def show(row: dict[str, Any]) -> None:
    ours = row["ms"]["bitnas"]
    print(f"\n{row['network']}, batch {row['batch']}, {row['threads']} thread(s), {row['isa']} kernels")
    for peer, ms in row["ms"].items():
        ratio = "" if peer == "bitnas" else f"{ms / ours:6.2f}x"
        noise = "  noisy" if peer in row["noisy"] else ""
        print(f"  {peer:14}{ms:10.3f} ms {ratio:8} {row['variant'].get(peer, '')}{noise}")
    for name, why in row["failed"].items():
        print(f"  {name} left out: {why}")
    total = sum(row["parts_us"].values())
    print(f"  outside binary layers: {100 * row['outside_share']:.1f} %")
    for kind, us in sorted(row["parts_us"].items(), key=lambda item: -item[1]):
        print(f"    {kind:20}{us:10.1f} us {100 * us / total:6.1f} %")
    for word, m in row["memory_bytes"].items():
        print(f"  memory={word!r}: {m['saved']:,} bytes saved, {m['prepared']:,} prepared beside")


def main() -> None:
    from cpu_runs import slug

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", default=",".join(NETWORKS), help="names with commas between them")
    parser.add_argument("--threads", default="1", help="thread counts with commas between them")
    parser.add_argument("--against", default=",".join(PEERS), help="peers with commas between them; '' for none")
    parser.add_argument("--seconds", type=float, default=20, help="time spent on each row")
    parser.add_argument("--quick", action="store_true", help="a second for each row of batch 1; writes nothing")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for <machine>-networks.json")
    options = parser.parse_args()
    against = [peer for peer in options.against.split(",") if peer]
    warnings.simplefilter("ignore")  # deprecations of the peers
    rows = []
    with torch.inference_mode():
        for threads in map(int, options.threads.split(",")):
            for name in options.networks.split(","):
                for batch in NETWORKS[name][1][: 1 if options.quick else None]:
                    with thread_count(threads):
                        rows.append(measure(name, batch, threads, against, 1 if options.quick else options.seconds))
                    show(rows[-1])
    if not options.quick:
        options.out.mkdir(parents=True, exist_ok=True)
        path = options.out / f"{slug(machine.facts())}-networks.json"
        write_json_atomic(path, {"command": sys.argv, "machine": machine.facts(), "rows": rows})
        print(f"\nwritten to {path}")


if __name__ == "__main__":
    main()
