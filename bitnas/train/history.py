"""What a training says of itself, epoch by epoch."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """What one epoch gave, over the images of all processes.

    Attributes:
        epoch: counted from 0.
        loss, train_accuracy: means over the images, each in the training step that saw it.
        val_accuracy: fraction of the validation images, or None; of the averaged weights where the recipe has `ema`.
        lr: the learning rate of the last step.
        seconds: time it took, without that between a stop and the next start.
        data_seconds: how much of it the training waited for images.
    """

    epoch: int
    loss: float
    train_accuracy: float
    val_accuracy: float | None
    lr: float
    seconds: float
    data_seconds: float = 0.0


@dataclass(kw_only=True)
class History:
    """The epochs of a run, in order. `seconds` and `data_seconds` alone differ between two equal runs."""

    epochs: list[Epoch] = field(default_factory=list)

    @property
    def best(self) -> Epoch | None:
        """The first epoch of the highest validation accuracy, or None if nothing was validated."""
        judged = [epoch for epoch in self.epochs if epoch.val_accuracy is not None]
        return max(judged, key=lambda epoch: epoch.val_accuracy or 0.0, default=None)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return asdict(self)
