"""The layers a frozen network is made of. Buffers are canonical bits, so a state dict is the same on every machine.

What a kernel wants its weights to look like is made from them when a layer is built, loaded or moved, and never saved.
A layer is described by plain numbers and words (its ``spec``), from which an empty one can be built and then filled.
"""

from typing import Any, Literal, Self

import torch
from torch import Tensor, nn

from bitnas import ops

Epilogue = Literal["int32", "float", "bits"]
_ops = torch.ops.bitnas


def _check_activations(activations: str) -> None:
    if activations not in ops.THRESHOLDS:
        raise ValueError(f"activations must be 'sign' or 'unit', got {activations!r}")


class PackedLayer(nn.Module):
    """A layer with a JSON description: ``type(layer)(**layer.spec)`` is an empty layer of the same shape."""

    spec: dict[str, Any]

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value!r}" for key, value in self.spec.items())


class Pack(PackedLayer):
    """Float ``[N, C, H, W]`` or ``[M, C]`` to bits, against one threshold or, with ``channels``, one per channel.

    Per channel: bit = direction * x >= threshold, which is a batch norm folded into the binarizer behind it.
    """

    threshold: Tensor
    direction: Tensor

    def __init__(self, *, activations: ops.Activations, channels: int | None = None) -> None:
        super().__init__()
        _check_activations(activations)
        self.spec = {"activations": activations, "channels": channels}
        self.plain_threshold = ops.THRESHOLDS[activations]
        if channels is not None:
            self.register_buffer("threshold", torch.zeros(channels))
            self.register_buffer("direction", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous()
        if self.spec["channels"] is None:
            return _ops.pack.default(x, self.plain_threshold)
        return _ops.pack_channels.default(x, self.threshold, self.direction)


class _PackedDot(PackedLayer):
    """What the convolution and the linear layer share: packed weights, their prepared form, the epilogue's terms."""

    weight: Tensor
    scale: Tensor
    bias: Tensor
    threshold: Tensor
    flip: Tensor
    prepared: Tensor | None

    def __init__(self, weight_shape: tuple[int, ...], epilogue: Epilogue, activations: ops.Activations) -> None:
        super().__init__()
        if epilogue not in ("int32", "float", "bits"):
            raise ValueError(f"epilogue must be 'int32', 'float' or 'bits', got {epilogue!r}")
        _check_activations(activations)
        out = weight_shape[0]
        self.register_buffer("weight", torch.zeros(weight_shape, dtype=torch.int64))
        if epilogue == "float":
            self.register_buffer("scale", torch.ones(out))
            self.register_buffer("bias", torch.zeros(out))
        elif epilogue == "bits":
            self.register_buffer("threshold", torch.zeros(out, dtype=torch.int32))
            self.register_buffer("flip", torch.zeros(ops.words_for(out), dtype=torch.int64))
        self.epilogue: Epilogue = epilogue
        self.unit = activations == "unit"
        self.prepared = None

    def _prepare_arguments(self) -> tuple[int, int]:
        raise NotImplementedError

    def check_tail(self, name: str) -> None:
        """Raises ValueError where the weight has ones past its last channel: they would count in every dot product."""
        in_channels, groups = self._prepare_arguments()
        channels = in_channels // groups
        if channels % 64 and (self.weight[..., -1] >> channels % 64).any():
            raise ValueError(f"{name}.weight has bits past its {channels} channels")

    def prepare(self) -> Self:
        """Lays the weights out for the kernel of the device and instruction set they are on now."""
        on_device = self.weight.device.type in ("cpu", "cuda")
        self.prepared = _ops.prepare_weight(self.weight, *self._prepare_arguments()) if on_device else None
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, tensor in self.named_buffers(recurse=False):
            if tensor.is_floating_point() and tensor.dtype != torch.float32:
                raise TypeError(
                    f"{name} of a frozen layer must stay float32, got {tensor.dtype}; the rest is bits already"
                )
        return self.prepare()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self.prepare()

    def _terms(self) -> tuple[Tensor, ...]:
        if self.epilogue == "float":
            return self.scale, self.bias
        return (self.threshold, self.flip) if self.epilogue == "bits" else ()


class PackedConv2d(_PackedDot):
    """Binary convolution of packed images, with its epilogue.

    ``"bits"``: packed ``[N, H', W', words]``, (dot >= threshold) XOR flip. ``"float"``: float32 scale * dot + bias,
    ``"int32"``: the dot; both ``[N, out, H', W']`` in channels_last.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        dilation: tuple[int, int],
        groups: int,
        activations: ops.Activations,
        epilogue: Epilogue,
    ) -> None:
        super().__init__((out_channels, *kernel_size, ops.words_for(in_channels // groups)), epilogue, activations)
        self.spec = {
            "in_channels": in_channels,
            "out_channels": out_channels,
            "kernel_size": tuple(kernel_size),
            "stride": tuple(stride),
            "padding": tuple(padding),
            "dilation": tuple(dilation),
            "groups": groups,
            "activations": activations,
            "epilogue": epilogue,
        }
        self._geometry = (in_channels, *stride, *padding, *dilation, groups, self.unit)
        self._run = getattr(_ops, f"conv2d_{epilogue}").default

    def _prepare_arguments(self) -> tuple[int, int]:
        return self.spec["in_channels"], self.spec["groups"]

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, self.weight, self.prepared, *self._terms(), *self._geometry)

    def prepare(self) -> Self:
        super().prepare()
        # A plain binarizer's threshold for every channel, for an epilogue that packs.
        if self.epilogue == "float":
            channels, device = self.spec["out_channels"], self.weight.device
            self._ones = torch.ones(channels, dtype=torch.float32, device=device)
            self._cuts = {value: torch.full_like(self._ones, value) for value in ops.THRESHOLDS.values()}
        return self

    def run_and_pack(self, pack: Pack, x: Tensor) -> tuple[Tensor, Tensor]:
        """The floats, and what ``pack`` makes of them; epilogue ``"float"`` only."""
        return self._float_bits(pack, x, None)

    def _float_bits(self, pack: Pack, x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor]:
        if pack.spec["channels"] is None:
            cut, direction = self._cuts[pack.plain_threshold], self._ones
        else:
            cut, direction = pack.threshold, pack.direction
        return _ops.conv2d_float_bits.default(
            x, self.weight, self.prepared, self.scale, self.bias, cut, direction, *self._geometry, residual
        )

    def dots(self, x: Tensor) -> Tensor:
        """The int32 dot products behind the epilogue."""
        return _ops.conv2d_int32.default(x, self.weight, self.prepared, *self._geometry)


class PackedConv2dAdd(PackedConv2d):
    """A binary convolution whose float epilogue adds another value: the end of a residual block, in one kernel."""

    def __init__(self, **spec: Any) -> None:
        super().__init__(**spec)
        if self.epilogue != "float":
            raise ValueError(f"epilogue must be 'float' where something is added, got {self.epilogue!r}")

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        if not self._fuses(x, other):
            return super().forward(x) + other  # by torch's rules of broadcasting
        other = other.contiguous(memory_format=torch.channels_last)
        return self._run(x, self.weight, self.prepared, *self._terms(), *self._geometry, other)

    def run_and_pack(self, pack: Pack, x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        if not self._fuses(x, other):
            y = super().forward(x) + other
            return y, pack(y)
        return self._float_bits(pack, x, other.contiguous(memory_format=torch.channels_last))

    def _fuses(self, x: Tensor, other: Tensor) -> bool:
        return other.dtype == torch.float32 and other.shape == self._out_shape(x)

    def _out_shape(self, x: Tensor) -> tuple[int, ...]:
        spec = self.spec
        sides = [
            (x.shape[1 + i] + 2 * spec["padding"][i] - spec["dilation"][i] * (spec["kernel_size"][i] - 1) - 1)
            // spec["stride"][i]
            + 1
            for i in range(2)
        ]
        return (x.shape[0], spec["out_channels"], *sides)


class PackedLinear(_PackedDot):
    """Binary linear layer on packed rows ``[M, words]``; epilogues as in :class:`PackedConv2d`."""

    def __init__(
        self, *, in_features: int, out_features: int, activations: ops.Activations, epilogue: Epilogue
    ) -> None:
        super().__init__((out_features, ops.words_for(in_features)), epilogue, activations)
        self.spec = {
            "in_features": in_features,
            "out_features": out_features,
            "activations": activations,
            "epilogue": epilogue,
        }
        self._run = getattr(_ops, f"linear_{epilogue}").default

    def _prepare_arguments(self) -> tuple[int, int]:
        return self.spec["in_features"], 1

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, self.weight, self.prepared, *self._terms(), self.spec["in_features"], self.unit)

    def dots(self, x: Tensor) -> Tensor:
        """The int32 dot products behind the epilogue."""
        return _ops.linear_int32.default(x, self.weight, self.prepared, self.spec["in_features"], self.unit)


class PackedMaxPool2d(PackedLayer):
    """Max pooling of packed images (an OR), then XOR ``flip`` for thresholds that run the other way."""

    def __init__(
        self,
        *,
        channels: int,
        kernel_size: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        flips: bool = False,
    ) -> None:
        super().__init__()
        self.spec = {
            "channels": channels,
            "kernel_size": tuple(kernel_size),
            "stride": tuple(stride),
            "padding": tuple(padding),
            "flips": flips,
        }
        self.register_buffer("flip", torch.zeros(ops.words_for(channels), dtype=torch.int64) if flips else None)
        self._geometry = (*kernel_size, *stride, *padding)

    def forward(self, x: Tensor) -> Tensor:
        return _ops.max_pool2d_bits.default(x, self.flip, *self._geometry)


class Affine(PackedLayer):
    """scale * x + bias per channel, float32, two roundings: a batch norm on pooled integers."""

    scale: Tensor
    bias: Tensor

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.spec = {"channels": channels}
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (-1, *[1] * (x.dim() - 2))
        return x * self.scale.view(shape) + self.bias.view(shape)
