"""Whole BARS networks from float image to logits, frozen, against their float32 twins in torch, in turns.

    python bench/bench_cells.py [--batch 1,32] [--threads 1] [--random 2] [--seconds 10] [--json]

The twin has the same cells with float convolutions where the binary ones were, batch norm folded in, and a ReLU behind
each; torch runs it eagerly, and of both memory formats the faster counts. The networks are the worked example of Zhao
et al. 2020 (BARS) with either preprocess (CIFAR images, 16 channels, layout NNRNNRNN, a binary 3 x 3 convolution on
every edge), and random cells of the same layout. Run nothing else on the machine meanwhile.
"""

import argparse
import copy
import json
import random
import sys
from statistics import median
from time import perf_counter_ns
from typing import Any

import torch
from torch import Tensor, nn

import bitnas
from bitnas.cost import machine
from bitnas.cost.latency import thread_count
from bitnas.cost.timing import time_interleaved
from bitnas.models.bars import EDGES, PREPROCESS, Bars, BarsConfig, Cell, canonical
from bitnas.models.operations import NONE, SKIP, BinaryOperation
from bitnas.packed import PackedNetwork
from bitnas.packed.calls import timed_pass

LAYOUT = "NNRNNRNN"
CHANNELS = 16
CONV = "binary_conv_3x3"


def layout(edges: list[tuple[str, ...]], preprocess: str) -> BarsConfig:
    """The worked example's shape with these cells."""
    channels, cells = CHANNELS, []
    for kind, cell in zip(LAYOUT, edges, strict=True):
        channels *= 2 if kind == "R" else 1
        cells.append(Cell(cell, channels, 2 if kind == "R" else 1))
    return BarsConfig(CHANNELS, CHANNELS, tuple(cells), preprocess)


def networks(count: int) -> dict[str, BarsConfig]:
    """The worked example, and `count` random networks, each with either preprocess."""
    named = {}
    for preprocess in PREPROCESS:
        named[f"worked example, {preprocess} preprocess"] = layout([(CONV,) * len(EDGES)] * len(LAYOUT), preprocess)
        for seed in range(count):
            draw = random.Random(seed)
            cells = [canonical([draw.choice((NONE, SKIP, CONV)) for _ in EDGES]) for _ in LAYOUT]
            named[f"random {seed}, {preprocess} preprocess"] = layout(cells, preprocess)
    return named


def trained(config: BarsConfig) -> Bars:
    """The network with weights and statistics as training could leave them."""
    torch.manual_seed(0)
    model = Bars(config).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return model


class FloatOperation(nn.Module):
    """The twin of a `BinaryOperation`."""

    def __init__(self, operation: BinaryOperation) -> None:
        super().__init__()
        conv = operation.conv
        self.conv = _float_conv(conv)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).relu_()


def _float_conv(layer: Any) -> nn.Conv2d:
    sizes = layer.in_channels, layer.out_channels, layer.kernel_size
    return nn.Conv2d(*sizes, layer.stride, layer.padding, layer.dilation)


def twin(model: Bars) -> nn.Module:
    """The float network of the same shape. Its weights are random: time is all it is asked for."""
    made = copy.deepcopy(model)
    for parent in list(made.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, BinaryOperation):
                parent._modules[name] = FloatOperation(child)
            elif isinstance(child, nn.BatchNorm2d):
                parent._modules[name] = nn.Identity()
            elif type(child) is nn.Conv2d:
                parent._modules[name] = _float_conv(child)
    return made.eval().requires_grad_(False)


def _laid_out(network: nn.Module, memory_format: torch.memory_format) -> nn.Module:
    return network.to(memory_format=memory_format)  # type: ignore[call-overload]


def measure(name: str, config: BarsConfig, batch: int, threads: int, seconds: float) -> dict[str, Any]:
    """Medians of a forward pass, in milliseconds, and by how much the frozen network is faster."""
    model = trained(config)
    image = torch.randn(batch, *config.input_size, generator=torch.Generator().manual_seed(1))
    image = image.contiguous(memory_format=torch.channels_last)
    frozen = bitnas.freeze(model)
    if not bitnas.verify(model, frozen, image[:1]).ok:
        raise RuntimeError(f"{name}: the frozen network is not what it is defined to be; please report this")
    calls: dict[str, Any] = {"bitnas": lambda: frozen(image)}
    for word, memory_format in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        network = _laid_out(twin(model), memory_format)
        x = image.contiguous(memory_format=memory_format)
        calls[f"float32/{word}"] = lambda network=network, x=x: network(x)
    timings = time_interleaved(calls, seconds=seconds, min_runs=5, warmup=0.2)
    way, best = min(((n, t) for n, t in timings.items() if n != "bitnas"), key=lambda item: item[1].median_us)
    ours = timings["bitnas"]
    return {
        "network": name,
        "batch": batch,
        "threads": threads,
        "isa": machine.facts()["isa"],
        "calls": len(frozen._plan),
        "ms": {"bitnas": ours.median_us / 1e3, "float32": best.median_us / 1e3},
        "iqr_ms": {"bitnas": ours.iqr_us / 1e3, "float32": best.iqr_us / 1e3},
        "variant": way.partition("/")[2],
        "ratio": best.median_us / ours.median_us,
        "noisy": ours.noisy or best.noisy,
        "parts": parts(frozen, image) if batch == 1 else None,
    }


def parts(frozen: PackedNetwork, x: Tensor, passes: int = 30) -> list[dict[str, Any]]:
    """Calls of a forward pass by what they cover: how many, and the sum of their medians in microseconds."""
    kinds = {step.name: step.kind for step in frozen.steps}
    readings = [timed_pass(frozen, x, perf_counter_ns) for _ in range(passes)]
    spent: dict[str, list[float]] = {}
    for i, (call, _) in enumerate(frozen._plan):
        words = "+".join(kinds[name] for name in call.covers)
        spent.setdefault(words, []).append(median(reading[i + 1] - reading[i] for reading in readings) / 1e3)
    rows = [{"covers": words, "calls": len(us), "us": sum(us)} for words, us in spent.items()]
    return sorted(rows, key=lambda row: -row["us"])


def show(row: dict[str, Any]) -> None:
    noise = "  noisy" if row["noisy"] else ""
    print(
        f"{row['network']:36} batch {row['batch']:3}  {row['calls']:4} calls  {row['ms']['bitnas']:9.3f} ms  float32 "
        f"{row['ms']['float32']:9.3f} ms ({row['variant']})  {row['ratio']:5.2f}x{noise}"
    )
    for part in (row["parts"] or [])[:6]:
        print(f"    {part['us']:9.1f} us in {part['calls']:3} x {part['covers']}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", default="1,32", help="batch sizes with commas between them")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--random", type=int, default=2, help="how many random networks beside the worked example")
    parser.add_argument("--seconds", type=float, default=10, help="time spent on each row")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    rows = []
    with torch.inference_mode(), thread_count(options.threads):
        for name, config in networks(options.random).items():
            for batch in map(int, options.batch.split(",")):
                rows.append(measure(name, config, batch, options.threads, options.seconds))
                if not options.json:
                    show(rows[-1])
    if options.json:
        print(json.dumps({"command": sys.argv, "machine": machine.facts(), "rows": rows}, indent=1))


if __name__ == "__main__":
    main()
