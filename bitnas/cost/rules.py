"""How the papers turn layers into one figure, as arithmetic on plain records.

The papers disagree on what an operation is (a multiply-add is one or two), on what a binary one weighs and on what is
free. Each convention is one `Rule`, so that a figure can be compared with the paper it is meant for. All arithmetic is
on integers and exact fractions: a total is an int unless it truly has a fractional part.
"""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from typing import Any, Literal

Kind = Literal["conv", "linear", "batch_norm", "norm", "activation", "pool", "embedding", "other"]


@dataclass(frozen=True)
class Layer:
    """One layer of a network for one input image.

    `outputs` is the number of output elements and `reads` the number of input elements a pooling layer reads (with
    repeats, so k*k per output). `macs` are multiply-adds, `binary` says whether they are one bit by one bit. `weights`
    are the elements of the weight, `biases` those of its bias, `params` all parameters of the layer, these included.
    `ops` and `memory_bits` are what a rule says of the layer: 0 until `price` has filled them.
    """

    name: str
    kind: Kind
    output_shape: tuple[int, ...]
    outputs: int
    macs: int = 0
    binary: bool = False
    weights: int = 0
    weight_bits: int = 32
    biases: int = 0
    params: int = 0
    reads: int = 0
    ops: int | float = 0
    memory_bits: int = 0

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "output_shape": list(self.output_shape)}


@dataclass(frozen=True)
class Totals:
    """Figures of a whole network; `bitnas.cost.Count` says what each means."""

    macs: int
    bops: int
    flops: int | float
    ops: int | float
    memory_bits: int
    params: int


@dataclass(frozen=True)
class Rule:
    """One paper's convention.

    `float_ops(layer, full_precision)` are the full-precision operations of a layer; `binary_weight` is what one binary
    multiply-add adds to the single figure; `flops_are_ops` says that the paper prints that single figure as FLOPs;
    `weights_only` that its memory is that of convolution and linear weights, without biases and batch norm; `network`
    that it was made for one network.
    """

    float_ops: Callable[[Layer, bool], int]
    binary_weight: Fraction = Fraction(1, 64)
    flops_are_ops: bool = False
    weights_only: bool = False
    network: str | None = None


def _float_macs(layer: Layer, full_precision: bool) -> int:
    return 0 if layer.binary else layer.macs


def _shen2019_table1(layer: Layer, full_precision: bool) -> int:
    """Multiply-adds, and in a binary network one operation per output of the first convolution."""
    first = layer.kind == "conv" and not layer.binary and not full_precision
    return _float_macs(layer, full_precision) + (layer.outputs if first else 0)


def _shen2019_table2(layer: Layer, full_precision: bool) -> int:
    """Multiply-adds and biases, one operation per batch norm output, one per element that pooling reads.

    The full-precision network has a ReLU after each batch norm that is not on a shortcut, one operation per output; the
    binary one has none but the last, which is not counted.
    """
    if layer.kind == "batch_norm":
        has_relu = full_precision and "downsample" not in layer.name
        return layer.outputs * (2 if has_relu else 1)
    if layer.kind == "pool":
        return layer.reads
    return 0 if layer.binary else layer.macs + layer.biases


def _nasbnn(layer: Layer, full_precision: bool) -> int:
    """Multiply-adds, an eighth of them under 8-bit weights, and the classifier's bias; all else is free."""
    macs = _float_macs(layer, full_precision)
    if layer.weight_bits == 8:
        macs //= 8
    return macs + (layer.biases if layer.kind == "linear" and not layer.binary else 0)


def _bars(layer: Layer, full_precision: bool) -> int:
    return 2 * _float_macs(layer, full_precision)


RULES: dict[str, Rule] = {
    "mac": Rule(_float_macs),
    "shen2019-table1": Rule(_shen2019_table1, flops_are_ops=True, weights_only=True, network="vgg_small"),
    "shen2019-table2": Rule(_shen2019_table2, flops_are_ops=True, weights_only=True, network="resnet18"),
    "nasbnn": Rule(_nasbnn),
    "bars": Rule(_bars, binary_weight=Fraction(2)),
}
"""Rules by name, each for any network unless said.

`mac`: FLOPs are full-precision multiply-adds; OPs = FLOPs + BOPs / 64.
`shen2019-table1`, `shen2019-table2` (Shen et al. 2019, tables 1 and 2): one figure, binary multiply-adds divided by 64,
with the extra terms that reproduce the printed rows of VGG-small and of ResNet-18; memory in bits of weights alone.
`nasbnn` (Lin et al. 2024): OPs = FLOPs + BOPs / 64, an 8-bit stem divided by 8, the classifier's bias counted.
`bars` (Zhao et al. 2020): two operations per multiply-add. FLOPs are those in full precision; the paper's BiOPs are
`ops - flops`, never divided.
"""

_BY_NETWORK: dict[str | None, str] = {rule.network: name for name, rule in RULES.items() if rule.network}
RULE_NAMES = (*RULES, "shen2019")


def resolve(rule: str, network: str | None) -> str:
    """The full name of a rule for a network, given by its registered name (None for any other module).

    `"shen2019"` picks its table by the network. Raises ValueError for an unknown rule, and for a rule that was made for
    another network.
    """
    if rule not in RULE_NAMES:
        raise ValueError(f"rule: got {rule!r}, wanted one of {', '.join(map(repr, RULE_NAMES))}")
    if rule == "shen2019":
        if network in _BY_NETWORK:
            return _BY_NETWORK[network]
        made_for = " and ".join(map(str, _BY_NETWORK))
    elif RULES[rule].network in (None, network):
        return rule
    else:
        made_for = str(RULES[rule].network)
    this = network or "a module that is not one of bitnas.models"
    raise ValueError(f"rule: {rule!r} counts only {made_for}, got {this}; use 'mac' for any network")


def price(
    layers: Iterable[Layer],
    rule: str,
    *,
    full_precision: bool = False,
    weight_bases: int = 1,
    activation_bases: int = 1,
) -> tuple[tuple[Layer, ...], Totals]:
    """Layers with `ops` and `memory_bits` filled in, and their totals, by a rule of `RULES`.

    `full_precision` counts every binary layer as one of 32 bits. `weight_bases` and `activation_bases` count each
    binary layer as that many binary layers (their product in multiply-adds, the first in bits per weight), as in
    ABC-Net (Lin et al. 2017). Raises ValueError for a number of bases below 1, or bases of a full-precision network.
    """
    for argument, bases in (("weight_bases", weight_bases), ("activation_bases", activation_bases)):
        if not isinstance(bases, int) or bases < 1:
            raise ValueError(f"{argument}: got {bases!r}, wanted an integer of at least 1")
    if full_precision and (weight_bases, activation_bases) != (1, 1):
        raise ValueError("full_precision: a full-precision network has no weight_bases or activation_bases")
    chosen = RULES[rule]

    def prepare(layer: Layer) -> Layer:
        if not layer.binary:
            return layer
        if full_precision:
            return replace(layer, binary=False, weight_bits=32)
        return replace(layer, macs=layer.macs * weight_bases * activation_bases, weight_bits=weight_bases)

    def ops(layer: Layer) -> Fraction:
        binary = layer.macs * chosen.binary_weight if layer.binary else Fraction(0)
        return chosen.float_ops(layer, full_precision) + binary

    def memory_bits(layer: Layer) -> int:
        others = 0 if chosen.weights_only else 32 * (layer.params - layer.weights)
        return layer.weights * layer.weight_bits + others

    prepared = [prepare(layer) for layer in layers]
    priced = tuple(replace(layer, ops=_number(ops(layer)), memory_bits=memory_bits(layer)) for layer in prepared)
    total_ops = sum(map(ops, prepared), Fraction(0))
    float_ops = sum(chosen.float_ops(layer, full_precision) for layer in prepared)
    totals = Totals(
        macs=sum(layer.macs for layer in prepared if not layer.binary),
        bops=sum(layer.macs for layer in prepared if layer.binary),
        flops=_number(total_ops) if chosen.flops_are_ops else float_ops,
        ops=_number(total_ops),
        memory_bits=sum(layer.memory_bits for layer in priced),
        params=sum(layer.params for layer in prepared),
    )
    return priced, totals


def _number(value: Fraction) -> int | float:
    return value.numerator if value.denominator == 1 else float(value)
