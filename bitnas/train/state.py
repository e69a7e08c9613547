"""All that a training is between two steps, as named tensors and JSON values.

No generator's state is among it: what is random in a step is drawn from the seed, the epoch and the step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from bitnas.train.history import Epoch, History


@dataclass(kw_only=True)
class Position:
    """Where in the run: `step` steps of epoch `epoch` are done. The rest are that epoch's sums so far."""

    epoch: int = 0
    step: int = 0
    loss: float = 0.0
    correct: int = 0
    seconds: float = 0.0
    data_seconds: float = 0.0


@dataclass(kw_only=True)
class State:
    """Model, optimizer, loss scale, moving average, the best weights so far, history and position."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler | None = None
    average: AveragedModel | None = None
    best: dict[str, Tensor] = field(default_factory=dict)
    history: History = field(default_factory=History)
    position: Position = field(default_factory=Position)

    @property
    def judged(self) -> nn.Module:
        """The network that is validated and kept: the moving average if there is one."""
        return self.model if self.average is None else self.average.module

    def weights(self) -> dict[str, Tensor]:
        """A copy of the judged network's parameters and buffers. An average of integers is none: the model's stand."""
        own = self.model.state_dict()
        judged = self.judged.state_dict()
        return {
            name: (judged[name] if judged[name].is_floating_point() else value).clone() for name, value in own.items()
        }

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor, by a name that says whose it is."""
        found = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        for index, values in self.optimizer.state_dict()["state"].items():
            for name, value in values.items():
                if isinstance(value, Tensor):
                    found[f"optimizer.{index}.{name}"] = value
        if self.average is not None:
            found |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        return found | {f"best.{name}": tensor for name, tensor in self.best.items()}

    def values(self) -> dict[str, Any]:
        """Everything that is no tensor, as JSON values."""
        return {
            "epochs": [asdict(epoch) for epoch in self.history.epochs],
            "position": asdict(self.position),
            "scaler": None if self.scaler is None else self.scaler.state_dict(),
        }

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """The inverse of `tensors` and `values`, in place."""
        parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}, "best": {}}
        for name, tensor in tensors.items():
            owner, rest = name.split(".", 1)
            parts[owner][rest] = tensor
        self.model.load_state_dict(parts["model"])
        self._load_optimizer(parts["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(parts["average"])
        device = next(iter(self.model.parameters())).device
        self.best = {name: tensor.to(device) for name, tensor in parts["best"].items()}
        if self.scaler is not None:
            self.scaler.load_state_dict(values["scaler"])
        self.history.epochs = [Epoch(**epoch) for epoch in values["epochs"]]
        self.position = Position(**values["position"])

    def _load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        state: dict[int, dict[str, Tensor]] = {}
        for name, tensor in tensors.items():
            index, key = name.split(".", 1)
            state.setdefault(int(index), {})[key] = tensor
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})
        # The file holds contiguous tensors; fused optimizers walk parameter and state in the order of memory.
        for parameter, values in self.optimizer.state.items():
            for name, value in values.items():
                if value.shape == parameter.shape:
                    values[name] = torch.empty_like(parameter).copy_(value)
