"""Counting a network: what `bitnas.count` does and gives back.

Reading a module needs torch and lives in `bitnas.cost.walk`; this file loads it only when asked to count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bitnas.cost import rules

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class Count:
    """Cost of one forward pass of one input, by a rule of `bitnas.cost.rules`.

    Attributes:
        macs: multiply-adds in full precision.
        bops: multiply-adds of one bit by one bit.
        flops: what the paper of the rule prints as FLOPs.
        ops: full precision and binary work in one figure (BOPs / 64 except for `bars`).
        memory_bits: parameters as stored: one bit for a binary weight, 32 for the others (for `shen2019` only the
            weights of convolutions and linear layers).
        params: number of parameters of the module; buffers such as running means are not among them.
        layers: one `rules.Layer` per call of a layer, in the order of the calls. Their `ops` and `memory_bits` add up
            to the totals.
        uncounted: modules that hold parameters or buffers and whose operations are not in the totals, name to reason.
            Their parameters are in the totals.

    An operation written as a function in a `forward` (`F.conv2d`, a matrix product) has no module and is not seen.
    """

    model: str
    rule: str
    input_size: tuple[int, ...]
    macs: int
    bops: int
    flops: int | float
    ops: int | float
    memory_bits: int
    params: int
    layers: tuple[rules.Layer, ...] = field(repr=False)
    uncounted: Mapping[str, str] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "model": self.model,
            "rule": self.rule,
            "input_size": list(self.input_size),
            "macs": self.macs,
            "bops": self.bops,
            "flops": self.flops,
            "ops": self.ops,
            "memory_bits": self.memory_bits,
            "params": self.params,
            "layers": [layer.to_dict() for layer in self.layers],
            "uncounted": dict(self.uncounted),
        }

    def __str__(self) -> str:
        header = ("name", "kind", "output", "MACs", "bits/weight", "params", "memory bits")
        rows = [header, *map(_row, self.layers)]
        columns = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [
            "  ".join(_align(cell, n, i) for i, (cell, n) in enumerate(zip(row, columns, strict=True))).rstrip()
            for row in rows
        ]
        lines.insert(1, "-" * max(map(len, lines)))
        size = "x".join(map(str, self.input_size))
        lines += [
            lines[1],
            f"{self.model}, input {size}, rule {self.rule}",
            f"MACs {self.macs:,}   BOPs {self.bops:,}   FLOPs {self.flops:,}   OPs {self.ops:,}",
            f"params {self.params:,}   memory {self.memory_bits:,} bits ({self.memory_bits / 8e6:,.3f} MB)",
        ]
        lines += [f"not counted: {name or 'the module itself'} ({why})" for name, why in self.uncounted.items()]
        return "\n".join(lines)


def count(
    model: nn.Module | str,
    input_size: Iterable[int] | None = None,
    rule: str = "mac",
    *,
    full_precision: bool = False,
    weight_bases: int = 1,
    activation_bases: int = 1,
    **model_options: Any,
) -> Count:
    """Count the cost of one input through a network, layer by layer.

    Args:
        model: any `nn.Module` with one tensor argument, or a name of `bitnas.list_models()`, built from
            `model_options` (see `bitnas.create_model`) without allocating it.
        input_size: the shape of one input without the batch, `(C, H, W)`. None for that of the model's config.
        rule: a name of `bitnas.cost.rules.RULE_NAMES`: `mac` for any module, `shen2019` (or `shen2019-table1`,
            `shen2019-table2`) for vgg_small and resnet18, `nasbnn`, `bars`.
        full_precision: count binary layers as layers of 32 bits.
        weight_bases, activation_bases: count each binary layer as that many, as ABC-Net has them.

    The module is read in evaluation mode on tensors without storage, so a large network takes no memory and no time;
    a module that cannot run so is run once on a batch of one zero input. It is left as it was.

    Raises ValueError for a rule that does not fit the network, a missing input size, or one the network cannot run on.
    """
    from bitnas.cost import walk  # torch is loaded only here

    module, label, network, size = walk.open_model(model, input_size, model_options)
    rule = rules.resolve(rule, network)
    layers, uncounted = walk.read_layers(module, size)
    priced, totals = rules.price(
        layers,
        rule,
        full_precision=full_precision,
        weight_bases=weight_bases,
        activation_bases=activation_bases,
    )
    return Count(
        model=label,
        rule=rule,
        input_size=size,
        macs=totals.macs,
        bops=totals.bops,
        flops=totals.flops,
        ops=totals.ops,
        memory_bits=totals.memory_bits,
        params=totals.params,
        layers=priced,
        uncounted=uncounted,
    )


def _row(layer: rules.Layer) -> tuple[str, ...]:
    shape = "x".join(map(str, layer.output_shape))
    bits = str(layer.weight_bits) if layer.weights else ""
    figures = (f"{n:,}" if n else "" for n in (layer.params, layer.memory_bits))
    return (layer.name, layer.kind, shape, f"{layer.macs:,}" if layer.macs else "", bits, *figures)


def _align(cell: str, width: int, column: int) -> str:
    return cell.ljust(width) if column < 3 else cell.rjust(width)
