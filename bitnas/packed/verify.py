"""Does the frozen network compute what the trained one does? Counted, not assumed.

Integers are compared layer by layer on the frozen network's own inputs, so that each layer stands alone. Bits are
compared end to end: torch's batch norm rounds a value on the boundary its own way, and such a flip is reported, with
what becomes of it downstream, rather than hidden.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnas import ops
from bitnas.nn import BinaryConv2d, BinaryLinear
from bitnas.packed.layers import PackedConv2d, PackedLinear
from bitnas.packed.network import PackedNetwork


@dataclass(frozen=True)
class LayerCheck:
    """One binary layer: integer dots against float64 torch, and its input bits against the trained network's."""

    name: str
    dots: int
    dots_equal: int
    bits: int
    bits_equal: int


@dataclass(frozen=True)
class Verification:
    """What :func:`verify` found. ``ok``: every integer equal."""

    layers: tuple[LayerCheck, ...]
    max_logit_difference: float
    predictions: int
    predictions_equal: int

    @property
    def dots(self) -> int:
        return sum(layer.dots for layer in self.layers)

    @property
    def dots_equal(self) -> int:
        return sum(layer.dots_equal for layer in self.layers)

    @property
    def bits(self) -> int:
        return sum(layer.bits for layer in self.layers)

    @property
    def bits_equal(self) -> int:
        return sum(layer.bits_equal for layer in self.layers)

    @property
    def ok(self) -> bool:
        return self.dots == self.dots_equal

    def to_dict(self) -> dict[str, Any]:
        """Totals and layers as JSON."""
        names = ("dots", "dots_equal", "bits", "bits_equal", "max_logit_difference", "predictions", "predictions_equal")
        totals = {name: getattr(self, name) for name in names}
        return {"ok": self.ok, **totals, "layers": [asdict(layer) for layer in self.layers]}

    def __str__(self) -> str:
        return (
            f"integer dot products  {self.dots_equal:,} of {self.dots:,} equal{'' if self.ok else '  WRONG'}\n"
            f"activation bits       {self.bits_equal:,} of {self.bits:,} equal\n"
            f"predictions           {self.predictions_equal:,} of {self.predictions:,} equal\n"
            f"largest difference of a logit  {self.max_logit_difference:.3g}"
        )


def verify(model: nn.Module, frozen: PackedNetwork, x: Tensor) -> Verification:
    """Compares a trained model with its frozen network on a batch.

    Args:
        model: the module that was frozen (its evaluation behaviour is compared; its mode is left as it was).
        x: float32 ``[N, C, H, W]``, N at least 1, finite.

    Raises:
        ValueError: an empty or non-finite batch, non-finite logits, or a binary layer of the model that the frozen
        network does not hold.
    """
    if x.numel() == 0 or not x.isfinite().all():
        raise ValueError(f"x must be a batch of at least one finite image, got shape {tuple(x.shape)}")
    inputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, args, __, name=name: inputs.__setitem__(name, args[0]))
        for name, layer in model.named_modules()
        if isinstance(layer, BinaryConv2d | BinaryLinear)
    ]
    was_training = model.training
    try:
        with torch.no_grad():
            logits = model.eval()(x)
            values = frozen.values(x)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    frozen_logits = values[frozen.steps[-1].name]
    if not (logits.isfinite().all() and frozen_logits.isfinite().all()):
        raise ValueError("the network gives logits that are not finite on this batch")
    return Verification(
        tuple(_check(name, model.get_submodule(name), frozen, inputs[name], values) for name in inputs),
        (logits - frozen_logits).abs().max().item(),
        len(x),
        int((logits.argmax(1) == frozen_logits.argmax(1)).sum()),
    )


def _check(name: str, layer: nn.Module, frozen: PackedNetwork, trained_input: Tensor, values: dict[str, Tensor]) -> LayerCheck:
    step = next((step for step in frozen.steps if step.name == name.replace(".", "_")), None)
    packed_layer = frozen._modules.get(step.name) if step is not None else None
    if step is None or not isinstance(packed_layer, PackedConv2d | PackedLinear):
        raise ValueError(f"the frozen network has no binary layer {name}: it was frozen from another model")
    assert isinstance(layer, BinaryConv2d | BinaryLinear)
    packed = values[step.inputs[0]]
    activations = layer.input_binarizer.encoding
    channels = layer.in_channels if isinstance(layer, BinaryConv2d) else layer.in_features
    dots = packed_layer.dots(packed)
    bits = ops.unpack(packed, channels, activations=activations).double()
    with torch.no_grad():
        weight = layer.binary_weight().double()
        if isinstance(layer, BinaryConv2d):
            expected = F.conv2d(bits, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups)
        else:
            expected = F.linear(bits, weight)
    trained_bits = ops.pack(trained_input, activations=activations)
    differing = ops.unpack(packed ^ trained_bits, channels, activations="unit").sum().item()
    total = trained_input.numel()
    return LayerCheck(name, dots.numel(), int((dots == expected).sum()), total, total - int(differing))
