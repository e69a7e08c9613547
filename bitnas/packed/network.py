"""A frozen network: a straight line of steps over named values."""

from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn

from bitnas.packed.int8 import Int8Conv2d
from bitnas.packed.layers import Memory, PackedLayer, check_memory
from bitnas.packed.plan import make_plan
from bitnas.packed.steps import INPUT, Step, build_layer, input_count


class PackedNetwork(nn.Module):
    """A frozen network. Call it like the module it came from: float ``[N, C, H, W]`` in, float out.

    Args:
        steps: the lines in order; the last one is the output.
        layers: the layer of each step that has one.
        config: the description of the model it was frozen from (``model.config.to_dict()``), or None.
        memory: ``"fast"`` keeps the weights of binary layers laid out for the kernels, beside their bits; ``"bits"``
            keeps the bits alone, and every call lays them out anew.

    ``pixels`` is (mean, standard deviation) where the network also takes uint8 images, as (x / 255 - mean) / std; None
    where it does not.

    Several steps run as one where that is faster: hooks on a layer see only some of them. :meth:`values` sees all.

    Raises:
        ValueError: no steps, a name twice, a value used before it is made, the wrong number of inputs, another word for
        ``memory``.
    """

    def __init__(
        self,
        steps: Iterable[Step],
        layers: dict[str, nn.Module],
        config: dict[str, Any] | None = None,
        memory: Memory = "fast",
    ) -> None:
        super().__init__()
        check_memory(memory)
        self._memory: Memory = memory
        self.steps = tuple(steps)
        self.config = config
        known = {INPUT}
        for step in self.steps:
            if step.name in known or step.name in RESERVED or not step.name.replace("_", "").isalnum():
                raise ValueError(f"step name {step.name!r} is taken or not a plain word")
            wanted = input_count(step)
            if not step.inputs or (wanted is not None and len(step.inputs) != wanted):
                raise ValueError(
                    f"step {step.name!r}: {step.kind} reads {wanted or 'some'} value(s), got {step.inputs}"
                )
            for name in step.inputs:
                if name not in known:
                    raise ValueError(f"step {step.name!r} reads {name!r}, which no earlier step makes")
            known.add(step.name)
        if not self.steps:
            raise ValueError("a network needs at least one step")
        for name, layer in layers.items():
            self.add_module(name, layer)
            if isinstance(layer, PackedLayer):
                layer.memory = memory
                layer.prepare()
        self.pixels = self._find_pixels()
        self._plan = make_plan(self.steps, layers)
        self._lay_out()
        self.eval().requires_grad_(False)

    def _find_pixels(self) -> tuple[float, float] | None:
        """What all readers of the input take bytes for, if they do."""
        readers = [self._modules.get(step.name) for step in self.steps if INPUT in step.inputs]
        kinds = {reader.pixels if isinstance(reader, Int8Conv2d) else None for reader in readers}
        return kinds.pop() if len(kinds) == 1 else None

    @classmethod
    def from_description(cls, description: dict[str, Any], memory: Memory | None = None) -> "PackedNetwork":
        """The empty network that :meth:`describe` describes, unless ``memory`` says what to keep otherwise.

        Raises ValueError for anything malformed.
        """
        try:
            steps = [
                Step(str(s["name"]), str(s["kind"]), tuple(map(str, s["inputs"])), dict(s["arguments"]), s["source"])
                for s in description["steps"]
            ]
            config, said = description["config"], description.get("memory", "fast")  # older files do not say
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not a description of a frozen network: {error!r}") from error
        layers = {step.name: layer for step in steps if (layer := build_layer(step)) is not None}
        check_memory(said)
        return cls(steps, layers, config, memory or said)

    def describe(self) -> dict[str, Any]:
        """The network without its tensors, as JSON."""
        return {"steps": [asdict(step) for step in self.steps], "config": self.config, "memory": self._memory}

    def extra_repr(self) -> str:
        return f"memory={self._memory!r}"

    def forward(self, x: Tensor) -> Tensor:
        self._check_input(x)
        modules: dict[str, Any] = self._modules
        values = {INPUT: x}
        for call, done in self._plan:
            call.run(modules, values)
            for name in done:
                del values[name]
        return values[self.steps[-1].name]

    def _check_input(self, x: Tensor) -> None:
        if x.dtype == torch.float32 or (x.dtype == torch.uint8 and self.pixels is not None):
            return
        fix = "" if x.dtype != torch.uint8 else "; bitnas.freeze(model, pixels=(mean, std)) makes one that takes uint8"
        wanted = "float32" if self.pixels is None else "float32 or uint8"
        raise TypeError(f"x must be {wanted}, as the network was trained; got {x.dtype}{fix}")

    def values(self, x: Tensor) -> dict[str, Tensor]:
        """Every value of a forward pass by its name, the input included."""
        self._check_input(x)
        modules: dict[str, Any] = self._modules
        values = {INPUT: x}
        for call, _ in self._plan:
            call.trace(modules, values)
        return values

    def calls(self, x: Tensor) -> list[tuple[str, Callable[[], None]]]:
        """What a forward pass runs, in order: the first step of each call, and the call on the values it gets there."""
        modules: dict[str, Any] = self._modules
        values = self.values(x)
        return [
            (call.step, partial(call.run, modules, {name: values[name] for name in call.inputs}))
            for call, _ in self._plan
        ]

    def load_state_dict(self, *args: Any, **kwargs: Any) -> Any:
        result = super().load_state_dict(*args, **kwargs)
        self._lay_out()
        return result

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        self._lay_out()
        return self

    def _lay_out(self) -> None:
        if not any(tensor.is_meta for tensor in self.parameters()):
            for call, _ in self._plan:
                call.prepare(self._modules)

    def train(self, mode: bool = True) -> "PackedNetwork":
        """A frozen network only evaluates. Raises ValueError for ``train(True)``."""
        if mode:
            raise ValueError("a frozen network cannot be trained; train the model it was frozen from")
        return super().train(False)


# Names that a step cannot have, because a layer of that name would hide an attribute of the network.
RESERVED = frozenset({INPUT, "steps", "config", "pixels", "_plan", "_memory", *dir(PackedNetwork), *dir(nn.Module())})
