"""The step of a supernet against the four plain passes that it consists of, in turns, on one thread.

    python bench/bench_supernet.py [--space small] [--batch 64] [--steps 30] [--json]

Plain: the same four subnets as modules of their own, each forward and backward on its own tensors, the biggest with
float weights; then an optimizer step on tensors as large as the supernet's. The supernet's step slices, transforms and
adds the gradients up besides.
"""

import argparse
import json
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnas.cost import machine
from bitnas.methods.nasbnn import description
from bitnas.methods.nasbnn.passes import sandwich
from bitnas.methods.nasbnn.supernet import Supernet
from bitnas.models.nasbnn import NasBnn
from bitnas.nn import BinaryConv2d
from bitnas.train import RECIPES
from bitnas.train.step import Step, make_optimizer

RECIPE = RECIPES["nasbnn-imagenet"]


class FloatConv2d(nn.Module):
    """A binary convolution with its standardised float weights, as the teacher has it."""

    def __init__(self, layer: BinaryConv2d) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        conv = self.layer
        weight = conv.weight_binarizer.latent(conv.weight)
        return F.conv2d(conv.input_binarizer(x), weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)


def with_float_weights(network: NasBnn) -> NasBnn:
    """The network with every binary convolution's weights as they are before the sign."""
    for block in network.blocks:
        for name in ("conv1", "conv2"):
            setattr(block, name, FloatConv2d(getattr(block, name)))
    return network


def plain_passes(networks: list[NasBnn], x: Tensor, y: Tensor) -> None:
    """What `sandwich` computes, on modules of their own."""
    teacher, *students = networks
    for network in networks:
        network.zero_grad()
    logits = teacher(x)
    target = logits.detach().softmax(1)
    F.cross_entropy(logits, y, label_smoothing=RECIPE.label_smoothing).backward()
    for student in students:
        F.cross_entropy(student(x), target).backward()


def measure(space: description.Description, batch: int, steps: int) -> dict[str, Any]:
    """Medians over `steps` steps, in ms: wall and processor time of both, and of the parts of the plain step."""
    torch.manual_seed(0)
    supernet = Supernet(space).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    twin = Supernet(space).train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(batch, *space.input_size)
    y = torch.randint(space.num_classes, (batch,))
    step = Step(supernet, make_optimizer(supernet, RECIPE), None, RECIPE, sandwich)
    optimizer = make_optimizer(twin, RECIPE)
    for parameter in twin.parameters():
        parameter.grad = torch.zeros_like(parameter)
    clocks: tuple[Callable[[], float], ...] = (time.perf_counter, time.process_time)
    found: dict[str, list[list[float]]] = {"supernet": [], "plain": []}
    for number in range(-3, steps):
        chance = random.Random(number)
        drawn = [supernet.space.subnet(supernet.space.random(chance)) for _ in range(2)]
        networks = [supernet.extract(subnet) for subnet in (supernet.biggest, supernet.smallest, *drawn)]
        for network in networks:
            network.to(memory_format=torch.channels_last)  # as `fit` does
        with_float_weights(networks[0])

        def plain(networks: list[NasBnn] = networks) -> None:
            plain_passes(networks, x, y)
            optimizer.step()

        def whole(number: int = number) -> None:
            step.gradients(x, y, batch, lambda: False, number)
            step.update(RECIPE.lr)

        for name, run in (("supernet", whole), ("plain", plain))[:: 1 if number % 2 else -1]:
            start = [clock() for clock in clocks]
            run()
            if number >= 0:
                found[name].append([1000 * (clock() - began) for clock, began in zip(clocks, start, strict=True)])
    ratios = [[a / b for a, b in zip(*pair, strict=True)] for pair in zip(*found.values(), strict=True)]
    result: dict[str, Any] = {"space": space.name, "batch": batch, "steps": steps}
    for name, rows in found.items():
        for clock, column in zip(("ms", "cpu_ms"), zip(*rows, strict=True), strict=True):
            result[f"{name}_{clock}"] = statistics.median(column)
    result["ratio"], result["cpu_ratio"] = (statistics.median(column) for column in zip(*ratios, strict=True))
    result["parameters"] = sum(parameter.numel() for parameter in supernet.parameters())
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--space", default="small", help="a name, or a .json file")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(description.load(arguments.space), arguments.batch, arguments.steps)
    result["machine"] = machine.facts()
    if arguments.json:
        print(json.dumps(result, indent=2))
        return
    print(f"{result['space']}, batch {result['batch']}, {result['parameters']:,} parameters, {result['steps']} steps")
    for name in ("supernet", "plain"):
        print(f"{name:9} {result[f'{name}_ms']:8.1f} ms   processor time {result[f'{name}_cpu_ms']:8.1f} ms")
    print(f"ratio     {result['ratio']:8.3f}      processor time {result['cpu_ratio']:8.3f}   (medians of pairs)")


if __name__ == "__main__":
    main()
