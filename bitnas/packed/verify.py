"""Does the frozen network compute what the trained one does? Counted, not assumed.

Integers are compared layer by layer on the frozen network's own inputs, so that each layer stands alone. Bits are
compared end to end: torch's batch norm rounds a value on the boundary its own way, and such a flip is reported, with
what becomes of it downstream, rather than hidden. An 8-bit layer is compared on its own input too: exactly where that
is bytes, within a bound that holds for every order of summation where it is floats.
"""

import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnas import ops, reference
from bitnas.nn import BinaryConv2d, BinaryLinear, LSQConv2d
from bitnas.packed.freeze import freeze
from bitnas.packed.int8 import Int8Conv2d
from bitnas.packed.layers import PackedConv2d, PackedConv2dAdd, PackedLinear
from bitnas.packed.network import PackedNetwork
from bitnas.packed.steps import Step, source_name

Binary = BinaryConv2d | BinaryLinear


@dataclass(frozen=True)
class LayerCheck:
    """One call of a binary layer: integer dots against float64 torch, what its real step emitted against the definition
    on those dots, and its input bits against the trained network's.

    ``name`` is the layer's path, with ``#2`` for the second time a forward pass calls it.
    """

    name: str
    dots: int
    dots_equal: int
    results: int
    results_equal: int
    bits: int
    bits_equal: int


@dataclass(frozen=True)
class StemCheck:
    """One call of a layer with 8-bit weights: its integers against the trained layer's, and what it gave on the frozen
    network's own input.

    ``exact``: the input is bytes, and ``results_good`` counts values equal to the definition on dot products in int64.
    Otherwise it counts those within (K + 4) * u * (|scale| * sum |w * x| + |bias|) of it in float64: K products a dot,
    u 2**-24, the rounding of float32 (2**-11 on a GPU where torch lets convolutions run in TF32). ``largest_error``:
    the largest distance from the definition.
    """

    name: str
    exact: bool
    weights: int
    weights_equal: int
    results: int
    results_good: int
    largest_error: float

    @property
    def ok(self) -> bool:
        return self.weights == self.weights_equal and self.results == self.results_good


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found.

    ``same_network``: freezing the model now gives this network, step for step and bit for bit. ``stem``: of the layers
    with 8-bit weights, if there are any. ``ok``: the same network, every integer equal, everything the binary layers
    emit as defined, and the stem within what :class:`StemCheck` says. Bits and predictions against the trained
    network's are counted beside it, since torch's own batch norm may round a value on the boundary the other way.
    """

    layers: tuple[LayerCheck, ...]
    max_logit_difference: float
    predictions: int
    predictions_equal: int
    same_network: bool
    stem: tuple[StemCheck, ...] = ()

    @property
    def dots(self) -> int:
        return sum(layer.dots for layer in self.layers)

    @property
    def dots_equal(self) -> int:
        return sum(layer.dots_equal for layer in self.layers)

    @property
    def results(self) -> int:
        return sum(layer.results for layer in self.layers)

    @property
    def results_equal(self) -> int:
        return sum(layer.results_equal for layer in self.layers)

    @property
    def bits(self) -> int:
        return sum(layer.bits for layer in self.layers)

    @property
    def bits_equal(self) -> int:
        return sum(layer.bits_equal for layer in self.layers)

    @property
    def ok(self) -> bool:
        binary = self.dots == self.dots_equal and self.results == self.results_equal
        return self.same_network and binary and all(check.ok for check in self.stem)

    def to_dict(self) -> dict[str, Any]:
        """Totals and layers as JSON."""
        names = [
            *("same_network", "dots", "dots_equal", "results", "results_equal", "bits", "bits_equal"),
            *("max_logit_difference", "predictions", "predictions_equal"),
        ]
        totals = {name: getattr(self, name) for name in names}
        lists = {"layers": [asdict(layer) for layer in self.layers], "stem": [asdict(check) for check in self.stem]}
        return {"ok": self.ok, **totals, **lists}

    def __str__(self) -> str:
        return (
            f"folded from this model {'yes' if self.same_network else 'NO: freezing it now gives another network'}\n"
            f"integer dot products  {_equal(self.dots_equal, self.dots)}\n"
            f"what the layers emit  {_equal(self.results_equal, self.results)}\n"
            f"{''.join(map(_stem_line, self.stem))}"
            f"activation bits       {self.bits_equal:,} of {self.bits:,} equal\n"
            f"predictions           {self.predictions_equal:,} of {self.predictions:,} equal\n"
            f"largest difference of a logit  {self.max_logit_difference:.3g}"
        )


def verify(model: nn.Module, frozen: PackedNetwork, x: Tensor) -> Verification:
    """Compares a trained model with its frozen network on a batch.

    Args:
        model: the module that was frozen (its evaluation behaviour is compared; its mode is left as it was).
        x: float32 ``[N, C, H, W]``, N at least 1, finite; or uint8, where the frozen network takes that. The trained
            one then gets (x / 255 - mean) / std.

    Raises:
        ValueError: an empty or non-finite batch, outputs that are not finite or not ``[N, classes, ...]``, or a binary
        layer of the model that the frozen network does not hold.
    """
    if x.numel() == 0 or not x.isfinite().all():
        raise ValueError(f"x must be a batch of at least one finite image, got shape {tuple(x.shape)}")
    stems: list[str] = []
    calls: list[tuple[str, Binary, Tensor]] = []
    hooks = []
    for path, module in model.named_modules():
        if isinstance(module, BinaryConv2d | BinaryLinear):
            hooks.append(module.register_forward_pre_hook(_recorder(path, calls)))
        elif isinstance(module, LSQConv2d):
            hooks.append(module.register_forward_pre_hook(_name_recorder(path, stems)))
    modes = {module: module.training for module in model.modules()}
    try:
        with torch.no_grad():
            values = frozen.values(x)
            logits = model.eval()(_floats(frozen, x))
    finally:
        for module, training in modes.items():
            module.training = training
        for hook in hooks:
            hook.remove()
    frozen_logits = values[frozen.steps[-1].name]
    if not (logits.isfinite().all() and frozen_logits.isfinite().all()):
        raise ValueError("the network gives logits that are not finite on this batch")
    if logits.dim() < 2:
        raise ValueError(f"the network must give [N, classes, ...], got shape {tuple(logits.shape)}")
    predictions_equal = logits.argmax(1) == frozen_logits.argmax(1)
    return Verification(
        tuple(_check(name, layer, frozen, bits, values) for name, layer, bits in calls),
        (logits - frozen_logits).abs().max().item(),
        predictions_equal.numel(),
        int(predictions_equal.sum()),
        _same(frozen, freeze(model, pixels=frozen.pixels)),
        tuple(_check_stem(name, model, frozen, values) for name in stems),
    )


def _floats(frozen: PackedNetwork, x: Tensor) -> Tensor:
    if x.dtype != torch.uint8 or frozen.pixels is None:
        return x
    mean, std = frozen.pixels
    return (x.float() / 255 - mean) / std


def _equal(equal: int, total: int) -> str:
    return f"{equal:,} of {total:,} equal{'' if equal == total else '  WRONG'}"


def _same(a: PackedNetwork, b: PackedNetwork) -> bool:
    """Whether two frozen networks have the same steps and the same tensors."""
    ours, theirs = a.state_dict(), b.state_dict()
    if a.steps != b.steps or ours.keys() != theirs.keys():
        return False
    return all(torch.equal(ours[name].cpu(), theirs[name].cpu()) for name in ours)


def _stem_line(check: StemCheck) -> str:
    kind = "equal" if check.exact else "within the rounding of float32"
    wrong = "" if check.ok else f"  WRONG ({check.weights_equal:,} of {check.weights:,} weights equal)"
    return f"8-bit layer {check.name:9} {check.results_good:,} of {check.results:,} {kind}{wrong}\n"


def _name_recorder(path: str, names: list[str]) -> Callable[..., None]:
    count = itertools.count(1)

    def record(layer: Any, args: tuple[Tensor, ...]) -> None:
        names.append(source_name(path, next(count)))

    return record


def _recorder(path: str, calls: list[tuple[str, Binary, Tensor]]) -> Callable[..., None]:
    """A hook that keeps the packed input of each call: the floats themselves may be overwritten in place later."""
    count = itertools.count(1)

    def record(layer: Any, args: tuple[Tensor, ...]) -> None:
        bits = ops.pack(args[0], activations=layer.input_binarizer.encoding)
        calls.append((source_name(path, next(count)), layer, bits))

    return record


def _check(name: str, layer: Binary, frozen: PackedNetwork, trained: Tensor, values: dict[str, Tensor]) -> LayerCheck:
    step, packed_layer = _find(name, frozen, PackedConv2d | PackedLinear, "binary")
    packed = values[step.inputs[0]]
    activations = layer.input_binarizer.encoding
    channels = layer.in_channels if isinstance(layer, BinaryConv2d) else layer.in_features
    bits = ops.unpack(packed, channels, activations=activations)
    weight = layer.binary_weight().double()
    if isinstance(layer, BinaryConv2d):
        expected = F.conv2d(bits.double(), weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
    else:
        expected = F.linear(bits.double(), weight)
    dots = packed_layer.dots(packed)
    differing = ops.unpack(packed ^ trained, channels, activations="unit").sum(dtype=torch.float64).item()
    emitted, defined = values[step.name], _emitted(packed_layer, expected)
    if isinstance(packed_layer, PackedConv2dAdd):
        defined = defined + packed_layer.whole(values[step.inputs[1]])
    return LayerCheck(
        name,
        dots.numel(),
        int((dots == expected).sum()),
        emitted.numel(),
        int((emitted == defined).sum()) if emitted.shape == defined.shape else 0,
        bits.numel(),
        bits.numel() - int(differing),
    )


def _find(name: str, frozen: PackedNetwork, kind: Any, word: str) -> tuple[Step, Any]:
    """The step that stands for a call of the trained model, and its layer, which must be of that kind."""
    step = next((step for step in frozen.steps if step.source == name), None)
    layer = frozen._modules.get(step.name) if step is not None else None
    if step is None or not isinstance(layer, kind):
        raise ValueError(f"the frozen network has no {word} layer {name}: it was frozen from another model")
    return step, layer


def _check_stem(name: str, model: nn.Module, frozen: PackedNetwork, values: dict[str, Tensor]) -> StemCheck:
    step, layer = _find(name, frozen, Int8Conv2d, "8-bit")
    trained = cast(LSQConv2d, model.get_submodule(name.split("#")[0]))
    x, given = values[step.inputs[0]], values[step.name]
    exact = x.dtype == torch.uint8
    read, scale = layer.read(x)
    weight, bias = layer.weight.double(), layer.bias.double().view(-1, 1, 1)
    geometry = (layer.stride, layer.padding, layer.spec["dilation"], layer.spec["groups"])
    dots = F.conv2d(read.double(), weight, None, *geometry)  # of bytes exact: all sums are below 2**53
    if exact:
        wanted = reference.affine(dots, scale, layer.bias).double()
        good = (given == wanted) & (layer.dots(x) == dots)
    else:
        gain = scale.double().view(-1, 1, 1)
        wanted = gain * dots + bias
        unit = 2.0**-11 if given.is_cuda and torch.backends.cudnn.allow_tf32 else 2.0**-24
        sizes = F.conv2d(read.double().abs(), weight.abs(), None, *geometry)
        bound = (weight[0].numel() + 4) * unit * (gain.abs() * sizes + bias.abs())
        good = (given.double() - wanted).abs() <= bound
    integers = trained.integer_weight().to(layer.weight.device)
    return StemCheck(
        name,
        exact,
        integers.numel(),
        int((integers == layer.weight).sum()),
        given.numel(),
        int(good.sum()),
        (given.double() - wanted).abs().max().item(),
    )


def _emitted(layer: PackedConv2d | PackedLinear, dots: Tensor) -> Tensor:
    """What the layer's epilogue must give for these dots, in plain torch."""
    if layer.epilogue == "bits":
        return reference.threshold_bits(dots, layer.threshold) ^ layer.flip
    if layer.epilogue == "int32":
        return dots.int()
    y = reference.affine(dots, layer.scale, layer.bias)
    return y.relu() if isinstance(layer, PackedConv2d) and layer.relu else y
