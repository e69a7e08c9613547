"""The layers a frozen network is made of. Buffers are canonical bits, so a state dict is the same on every machine.

What a kernel wants its weights to look like is made from them when a layer is built, loaded or moved, and never saved.
A layer is described by plain numbers and words (its ``spec``), from which an empty one can be built and then filled.
"""

import abc
from collections.abc import Sequence
from typing import Any, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bitnas import ops
from bitnas.nn.channels import tile_channels

Epilogue = Literal["int32", "float", "bits"]
Memory = Literal["fast", "bits"]
_ops = torch.ops.bitnas


def check_memory(memory: str) -> None:
    """Raises ValueError for a word that does not say what to keep in memory."""
    if memory not in get_args(Memory):
        raise ValueError(
            f"memory must be 'fast' (weights laid out once, beside their bits) or 'bits' (laid out anew in every "
            f"call), got {memory!r}"
        )


def _check_activations(activations: str) -> None:
    if activations not in ops.THRESHOLDS:
        raise ValueError(f"activations must be 'sign' or 'unit', got {activations!r}")


class PackedLayer(nn.Module):
    """A layer with a JSON description: ``type(layer)(**layer.spec)`` is an empty layer of the same shape."""

    spec: dict[str, Any]
    memory: Memory = "fast"

    def prepare(self) -> Self:
        """Lays out what the layer's kernel reads, if ``memory`` says to keep that."""
        return self

    def prepared_bytes(self) -> int:
        """What is kept beside the saved tensors, so that calls are fast."""
        return 0

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

        self._stacked: tuple[Tensor, Tensor] | None = None

    def stack(self, others: Sequence["Pack"]) -> None:
        """Keeps its cuts and those of ``others`` side by side, for a kernel that packs a value by all of them."""
        self._stacked = _stacked((self, *others))

    def stacked(self, others: Sequence["Pack"]) -> tuple[Tensor, Tensor]:
        """Threshold and direction, float32 ``[1 + len(others), channels]``. All have one per channel."""
        return _stacked((self, *others)) if self._stacked is None else self._stacked

    def prepared_bytes(self) -> int:
        return 0 if self._stacked is None else sum(tensor.nbytes for tensor in self._stacked)

    def cuts(self, channels: int) -> tuple[Tensor, Tensor]:
        """Threshold and direction of each channel: its own, or the plain binarizer's."""
        if self.spec["channels"] is not None:
            return self.threshold, self.direction
        return torch.full((channels,), self.plain_threshold), torch.ones(channels)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
            x = x.contiguous()
        if self.spec["channels"] is None:
            return _ops.pack.default(x, self.plain_threshold)
        return _ops.pack_channels.default(x, self._buffers["threshold"], self._buffers["direction"])


def _stacked(packs: Sequence[Pack]) -> tuple[Tensor, Tensor]:
    return torch.stack([pack.threshold for pack in packs]), torch.stack([pack.direction for pack in packs])


def pack_all(packs: Sequence[Pack], x: Tensor) -> tuple[Tensor, ...]:
    """What each of ``packs`` makes of one value; more than one must have a threshold per channel."""
    if len(packs) == 1:
        return (packs[0](x),)
    if x.dim() != 4 or not x.is_contiguous(memory_format=torch.channels_last):
        x = x.contiguous()
    return _ops.pack_channels.default(x, *packs[0].stacked(packs[1:])).unbind()


_TERMS: dict[Epilogue, tuple[str, ...]] = {"int32": (), "float": ("scale", "bias"), "bits": ("threshold", "flip")}


class _PackedDot(PackedLayer, abc.ABC):
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

    @abc.abstractmethod
    def _prepare_arguments(self) -> tuple[int, ...]:
        """Of ``prepare_weight``, after the weight: input channels, groups, and what else its kernel is chosen by."""

    def check_tail(self, name: str) -> None:
        """Raises ValueError where the weight has ones past its last channel: they would count in every dot product."""
        in_channels, groups, *_ = self._prepare_arguments()
        channels = in_channels // groups
        if channels % 64 and (self.weight[..., -1] >> channels % 64).any():
            raise ValueError(f"{name}.weight has bits past its {channels} channels")

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_run"}  # operators are no data

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._run = self._operator()

    @abc.abstractmethod
    def _operator(self) -> Any:
        """What a call of the layer runs."""

    def prepare(self) -> Self:
        """Lays the weights out for the kernel of the device and instruction set they are on now, if that is kept."""
        keeps = self.memory == "fast" and self.weight.device.type in ("cpu", "cuda")
        self.prepared = _ops.prepare_weight(self.weight, *self._prepare_arguments()) if keeps else None
        return self

    def prepared_bytes(self) -> int:
        return 0 if self.prepared is None else self.prepared.nbytes

    def _operands(self) -> tuple[Tensor | None, ...]:
        """Weights and the epilogue's terms, from the dict: a buffer read as an attribute costs ten times more."""
        buffers = self._buffers
        return buffers["weight"], self.prepared, *[buffers[name] for name in _TERMS[self.epilogue]]


class PackedConv2d(_PackedDot):
    """Binary convolution of packed images, with its epilogue.

    ``"bits"``: packed ``[N, H', W', words]``, (dot >= threshold) XOR flip. ``"float"``: float32 scale * dot + bias,
    then ReLU where ``relu``. ``"int32"``: the dot. Both ``[N, out, H', W']`` in channels_last.
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
        relu: bool = False,
    ) -> None:
        if relu and epilogue != "float":
            raise ValueError(f"epilogue must be 'float' where a ReLU follows, got {epilogue!r}")
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
        if relu:
            self.spec["relu"] = True
        self.relu = relu
        self._geometry = (in_channels, *stride, *padding, *dilation, groups, self.unit)
        self._run = self._operator()

    def _operator(self) -> Any:
        return getattr(_ops, f"conv2d_{self.epilogue}").default

    def _prepare_arguments(self) -> tuple[int, ...]:
        spec = self.spec
        return spec["in_channels"], spec["groups"], *spec["stride"], *spec["dilation"]

    def forward(self, x: Tensor) -> Tensor:
        return self.floats(x) if self.relu else self._run(x, *self._operands(), *self._geometry)

    def prepare(self) -> Self:
        super().prepare()
        # A plain binarizer's threshold for every channel, for an epilogue that packs.
        if self.epilogue == "float":
            channels, device = self.spec["out_channels"], self.weight.device
            self._ones = torch.ones(channels, dtype=torch.float32, device=device)
            self._cuts = {value: torch.full_like(self._ones, value) for value in ops.THRESHOLDS.values()}
        return self

    def prepared_bytes(self) -> int:
        constants = [self._ones, *self._cuts.values()] if self.epilogue == "float" else []
        return super().prepared_bytes() + sum(tensor.nbytes for tensor in constants)

    def floats(self, x: Tensor, residual: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
        """What the layer gives, plus ``residual``, through a PReLU with ``slope``; epilogue ``"float"`` only.

        Args:
            residual: float32 of the output's shape. slope: float32 ``[out]``.
        """
        return self._run(x, *self._operands(), *self._geometry, residual, slope, None, self.relu)

    def floats_and_bits(
        self, packs: Sequence[Pack], x: Tensor, residual: Tensor | None = None, slope: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The same, and what each of ``packs`` makes of it; more than one must have a threshold per channel."""
        first = packs[0]
        cut: Tensor | None
        direction: Tensor | None
        if len(packs) > 1:
            cut, direction = first.stacked(packs[1:])
        elif first.spec["channels"] is None:
            cut, direction = self._cuts[first.plain_threshold], self._ones
        else:
            cut, direction = first._buffers["threshold"], first._buffers["direction"]
        floats, bits = _ops.conv2d_float_bits.default(
            x, *self._operands(), cut, direction, *self._geometry, residual, slope, None, self.relu
        )
        return floats, (bits,) if len(packs) == 1 else bits.unbind()

    def dots(self, x: Tensor) -> Tensor:
        """The int32 dot products behind the epilogue."""
        return _ops.conv2d_int32.default(x, self.weight, self.prepared, *self._geometry)


def _channels_last(x: Tensor) -> Tensor:
    kept = x.is_contiguous(memory_format=torch.channels_last)
    return x if kept else x.contiguous(memory_format=torch.channels_last)


class PackedConv2dAdd(PackedConv2d):
    """A binary convolution whose float epilogue adds another value: the end of a residual block, in one kernel.

    ``residual_channels``: what is added has so many, fewer than the output, and they repeat.
    """

    def __init__(self, *, residual_channels: int | None = None, **spec: Any) -> None:
        super().__init__(**spec)
        self.residual_channels = self.spec["out_channels"]
        if residual_channels is not None:
            if not 0 < residual_channels < self.residual_channels:
                raise ValueError(
                    f"residual_channels must be fewer than out_channels={self.residual_channels}, got "
                    f"{residual_channels}"
                )
            self.residual_channels = residual_channels
            self.spec["residual_channels"] = residual_channels
        if self.epilogue != "float":
            raise ValueError(f"epilogue must be 'float' where something is added, got {self.epilogue!r}")
        spec = self.spec
        extents = [d * (k - 1) + 1 for d, k in zip(spec["dilation"], spec["kernel_size"], strict=True)]
        self._known: tuple[Any, ...] = ()  # shapes and type that a call was seen to fuse
        # Of each side: what the window takes off, and the stride.
        self._sides = [(e - 2 * p, s) for e, p, s in zip(extents, spec["padding"], spec["stride"], strict=True)]
        self._out_channels = spec["out_channels"]

    def forward(self, x: Tensor, other: Tensor) -> Tensor:  # type: ignore[override]
        return self.floats(x, other)

    def floats(self, x: Tensor, residual: Tensor | None = None, slope: Tensor | None = None) -> Tensor:
        assert residual is not None
        if self._fuses(x, residual):
            return super().floats(x, _channels_last(residual), slope)
        y = super().floats(x) + self.whole(residual)  # by torch's rules of broadcasting
        return y if slope is None else F.prelu(y, slope)

    def floats_and_bits(
        self, packs: Sequence[Pack], x: Tensor, residual: Tensor | None = None, slope: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        assert residual is not None
        if self._fuses(x, residual):
            return super().floats_and_bits(packs, x, _channels_last(residual), slope)
        y = self.floats(x, residual, slope)
        return y, pack_all(packs, y)

    def _fuses(self, x: Tensor, residual: Tensor) -> bool:
        given = (x.shape, residual.shape, residual.dtype)
        if given == self._known:
            return True
        _, height, width, _ = x.shape
        (cut_h, stride_h), (cut_w, stride_w) = self._sides
        sides = (height - cut_h) // stride_h + 1, (width - cut_w) // stride_w + 1
        fits = [(x.shape[0], channels, *sides) for channels in (self._out_channels, self.residual_channels)]
        if residual.shape not in fits or residual.dtype != torch.float32:
            return False
        self._known = given
        return True

    def whole(self, residual: Tensor) -> Tensor:
        """What is added, in as many channels as the output has."""
        tiles = residual.dim() == 4 and residual.shape[1] == self.residual_channels < self._out_channels
        return tile_channels(residual, self._out_channels) if tiles else residual


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
        self._run = self._operator()

    def _operator(self) -> Any:
        return getattr(_ops, f"linear_{self.epilogue}").default

    def _prepare_arguments(self) -> tuple[int, ...]:
        return self.spec["in_features"], 1

    def forward(self, x: Tensor) -> Tensor:
        return self._run(x, *self._operands(), self.spec["in_features"], self.unit)

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
