"""A supernet and its architecture from images to files: weights on one half of them, architecture on the other.

All chance is drawn from the seed, the epoch and the step, as in `bitnas.train`, so the state between two steps is
tensors, two optimizers and a few sums, and a search that is killed goes on to the same bits.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bitnas.data import Source
from bitnas.data.source import checked_seed
from bitnas.files import CorruptFileError, load_tensors, save_tensors
from bitnas.methods.bars.choices import Choices
from bitnas.methods.bars.controller import Controller
from bitnas.methods.bars.course import Course, load_course, rounded, save_course, share_of_skips
from bitnas.methods.bars.description import Architecture, Description
from bitnas.methods.bars.steps import NotFinite, Prices, Steps, entropies
from bitnas.methods.bars.supernet import Supernet
from bitnas.models.bars import EDGES
from bitnas.train import NonFiniteError, distributed
from bitnas.train.checkpoint import Checkpoint
from bitnas.train.interrupt import Interrupt
from bitnas.train.state import Position, State

__all__ = [
    "Course",
    "SearchDiverged",
    "least_cost",
    "load_course",
    "load_supernet",
    "save_course",
    "save_supernet",
    "share_of_skips",
    "train",
]

FORMAT = "bitnas-bars-supernet-1"
HESSIAN = "hessian"
_EXPECTED = "the expected cost"


class SearchDiverged(NonFiniteError):
    """A number of the search is NaN or infinite. `epoch` and `step` within it count from 0; `kept` is the checkpoint of
    a step before, None if there is none."""

    def __init__(self, epoch: int, step: int, what: str, value: float, kept: Path | None = None) -> None:
        if what.startswith(_EXPECTED):
            fix = "other prices (a device table that is built anew)"
        elif "controller" in what:
            fix = "a lower architecture_lr or a higher temperature (bitnas search --controller FILE.json)"
        else:
            fix = "a lower lr (bitnas search --controller FILE.json)"
        super().__init__(
            f"the search diverged: {what} is {value} at epoch {epoch}, step {step}; "
            f"{'no checkpoint was written before' if kept is None else f'{kept} holds a step before'}. "
            f"A resume with the same settings diverges again: start anew, in another folder, with {fix}"
        )
        self.epoch, self.step, self.what, self.value, self.kept = epoch, step, what, value, kept

    def __reduce__(self) -> tuple[type[SearchDiverged], tuple[int, int, str, float, Path | None]]:
        """Rebuild from the arguments, so that the error survives the way back from a worker process."""
        return type(self), (self.epoch, self.step, self.what, self.value, self.kept)


class _Chance(IntEnum):
    """What a seed is for; part of what it is made of."""

    ORDER, ARCHITECTURE_ORDER, IMAGES, ARCHITECTURE_IMAGES, CHOICES, ARCHITECTURE_CHOICES, HESSIAN = range(7)


@dataclass(kw_only=True)
class _SearchState(State):
    """A training's state, with the architecture's optimizer, its sums of the current epoch, and the course."""

    architecture: torch.optim.Optimizer
    course: Course = field(default_factory=list)
    arch_loss: float = 0.0
    arch_correct: int = 0
    arch_images: int = 0
    arch_steps: int = 0

    def tensors(self) -> dict[str, Tensor]:
        own = State(model=self.model, optimizer=self.architecture).tensors()
        optimizer = {f"architecture.{name}": t for name, t in own.items() if name.startswith("optimizer.")}
        return super().tensors() | optimizer

    def values(self) -> dict[str, Any]:
        return super().values() | {"course": self.course, "architecture": self._sums()}

    def load(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        prefix = "architecture.optimizer."
        super().load({name: t for name, t in tensors.items() if not name.startswith(prefix)}, values)
        own = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        State(model=self.model, optimizer=self.architecture)._load_optimizer(own)
        self.course = list(values["course"])
        self.arch_loss, self.arch_correct, self.arch_images, self.arch_steps = values["architecture"]

    def next_epoch(self) -> None:
        self.position = Position(epoch=self.position.epoch + 1)
        self.arch_loss, self.arch_correct, self.arch_images, self.arch_steps = 0.0, 0, 0, 0

    def _sums(self) -> list[float]:
        return [self.arch_loss, self.arch_correct, self.arch_images, self.arch_steps]


def train(
    description: Description,
    controller: Controller,
    data: Source,
    val: Source,
    *,
    seed: int,
    prices: Mapping[str, Prices] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    on_epoch: Callable[[dict[str, Any]], None] | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
    device: torch.device | str = "cpu",
) -> tuple[Supernet, Course]:
    """Search by gradient: a new supernet whose weights and architecture are trained in turns (first-order bilevel).

    On the CPU the result depends on the arguments and `torch.get_num_threads()` alone, and is equal bit for bit in
    every run, stopped and resumed or not; torch's global random state is left as it was.

    Args:
        description: the space. Its input size and classes must be those of `data`.
        controller: how.
        data: what trains the weights. val: what trains the architecture; not the same images.
        seed: decides the first weights too; at least 0 and below 2^63.
        prices: price lists by name, `"flops"` and `"latency"`. Those of the costs in the loss must be there; the
            expected costs of all are in the course.
        checkpoint: a file, replaced after each epoch, within one when `checkpoint_every` seconds have passed, and on
            Ctrl-C, which takes effect at the end of the step (a second one at once). If it is there already, the search
            goes on after its last step.
        on_epoch: called with the record of each epoch that is trained. on_step: called after each step of the weights
            with the epoch, how many of its steps are done, and how many it has.
        device: where the supernet trains.

    Returns:
        The supernet, in evaluation mode, on `device`, and the course. Its running statistics are of the mixture, so a
        network that is extracted from it has to be recalibrated.

    Raises:
        SearchDiverged: a loss, an expected cost or the controller is not finite; the checkpoint, if one was written,
            holds a step before.
        ValueError: the arguments do not go together, or a budget is below the cheapest network.
        CorruptFileError: the checkpoint is damaged, or of another search.
    """
    checked_seed(seed)
    prices = dict(prices or {})
    _check(description, controller, data, val, prices)
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)
        supernet = Supernet(description)
    supernet = supernet.to(device).train()
    steps = Steps(supernet, controller, prices)
    state = _SearchState(model=supernet, optimizer=steps.weights, architecture=steps.architecture)
    saved = None
    if checkpoint is not None:
        saved = Checkpoint(
            Path(checkpoint), _identity(description, controller, data, val, seed, prices), checkpoint_every
        )
        saved.restore(state)
    while state.position.epoch < controller.epochs and not (state.course and state.course[-1]["stopped"]):
        interrupt = Interrupt()
        with interrupt.held(saved is not None):
            try:
                _train_epoch(state, steps, data, val, seed, saved, interrupt, on_step)
                record = _end_epoch(state, steps, data, val, seed)
                if saved is not None:
                    _write(saved, state)
            except NotFinite as error:
                at, kept = state.position, saved.path if saved is not None and saved.path.exists() else None
                raise SearchDiverged(at.epoch, at.step, error.what, error.value, kept) from error
            if interrupt.pressed:
                raise KeyboardInterrupt
        if on_epoch is not None:
            on_epoch(record)
    supernet.zero_grad()
    return supernet.eval(), state.course


def _train_epoch(
    state: _SearchState,
    steps: Steps,
    data: Source,
    val: Source,
    seed: int,
    saved: Checkpoint | None,
    interrupt: Interrupt,
    on_step: Callable[[int, int, int], None] | None,
) -> None:
    """The steps of the current epoch that are not done yet: of the architecture if it is due, then of the weights."""
    position, controller = state.position, steps.controller
    epoch, first = position.epoch, position.step
    order = _order(len(data), controller.batch_size, _seed(seed, epoch, 0, _Chance.ORDER))
    count = len(order)
    due = set(_due(controller, epoch, count))
    batches = _batches(data, controller, order[first:], seed, epoch, range(first, count), _Chance.IMAGES)
    searching = [step for step in range(first, count) if step in due]
    pieces = _order(len(val), controller.batch_size, _seed(seed, epoch, 0, _Chance.ARCHITECTURE_ORDER))
    every = _every(controller, epoch)
    own = _batches(
        val, controller, [pieces[step // every % len(pieces)] for step in searching], seed, epoch, searching,
        _Chance.ARCHITECTURE_IMAGES,
    )  # fmt: skip
    start = time.perf_counter()
    for step in range(first, count):
        if step in due:
            images, labels = next(own)
            loss, right = steps.train_architecture(
                images, labels, epoch, _seed(seed, epoch, step, _Chance.ARCHITECTURE_CHOICES)
            )
            state.arch_loss += loss
            state.arch_correct += right
            state.arch_images += len(labels)
            state.arch_steps += 1
        images, labels = next(batches)
        loss, right = steps.train_weights(images, labels, epoch, _seed(seed, epoch, step, _Chance.CHOICES))
        position.step += 1
        position.loss += loss
        position.correct += right
        start, before = time.perf_counter(), start
        position.seconds += start - before
        if saved is not None and (interrupt.pressed or saved.due()):
            _write(saved, state)
        if interrupt.pressed:
            raise KeyboardInterrupt
        if on_step is not None:
            on_step(epoch, position.step, count)


def _end_epoch(state: _SearchState, steps: Steps, data: Source, val: Source, seed: int) -> dict[str, Any]:
    """Prune, measure, note the epoch in the course, and go to the start of the next one."""
    start, done = time.perf_counter(), state.position
    controller, epoch = steps.controller, done.epoch
    if epoch >= controller.first_architecture_epoch:
        steps.prune(epoch)
    hessian = _curvature(steps, val, seed, epoch)
    with torch.no_grad():
        probabilities = steps.supernet.probabilities()
        costs = {name: float(steps.prices[name].expected(probabilities)) for name in steps.prices}
        for name, value in costs.items():
            if not math.isfinite(value):
                raise NotFinite(f"{_EXPECTED} ({name})", value)
        multiplier = float(steps.factor(probabilities))
        layout = torch.cat([entropies(t).flatten() for t in (probabilities.widths, *probabilities.depths)])
        edges = entropies(probabilities.edges)
    record = {
        "epoch": epoch,
        "loss": done.loss / len(data),
        "accuracy": done.correct / len(data),
        "arch_loss": state.arch_loss / state.arch_images if state.arch_images else None,
        "arch_accuracy": state.arch_correct / state.arch_images if state.arch_images else None,
        "arch_steps": state.arch_steps,
        "expected": costs,
        "factor": multiplier,
        "entropies": {"edges": float(edges.mean()), "layout": float(layout.mean())},
        "temperatures": {
            "edges": controller.temperature_edges.at(epoch, controller.epochs),
            "layout": controller.temperature_layout.at(epoch, controller.epochs),
        },
        "lr": controller.lr.at(epoch, controller.epochs),
        "hessian": hessian,
        "alive": steps.supernet.alive.sum((1, 2)).tolist(),
        "skips": share_of_skips(steps.supernet.description, probabilities),
        "probabilities": rounded(probabilities),
        "stopped": HESSIAN if _grew(state.course, hessian, controller.hessian_stop) else None,
        "seconds": done.seconds + time.perf_counter() - start,
    }
    state.course.append(record)
    state.next_epoch()
    return record


def _write(saved: Checkpoint, state: _SearchState) -> None:
    """Write a checkpoint, unless a step has just made a weight infinite: the one before is worth more."""
    finite = [bool(torch.isfinite(parameter).all()) for parameter in state.model.parameters()]
    if not all(finite):
        where = next(name for (name, _), good in zip(state.model.named_parameters(), finite, strict=True) if not good)
        raise NotFinite(f"a value of the weights ({where})", math.inf)
    saved.write(state)


def _curvature(steps: Steps, val: Source, seed: int, epoch: int) -> float | None:
    """The eigenvalue on the same images every time, a batch of them, where it is due; not before it is moving:
    what weights learn until then sharpens the loss too, and says nothing of it."""
    controller = steps.controller
    if not controller.hessian_every or (epoch + 1) % controller.hessian_every:
        return None
    if epoch < controller.first_architecture_epoch:
        return None
    indices = _order(len(val), controller.batch_size, _seed(seed, 0, 0, _Chance.HESSIAN))[0]
    images, labels = next(iter(val.batches([indices])))
    return steps.curvature(images, labels, _seed(seed, epoch, 1, _Chance.HESSIAN))


def _grew(course: Course, hessian: float | None, limit: float | None) -> bool:
    """Whether the eigenvalue is above `limit` times the mean magnitude of the earlier ones."""
    earlier = [abs(record["hessian"]) for record in course if record["hessian"] is not None]
    return None not in (hessian, limit) and bool(earlier) and hessian > limit * sum(earlier) / len(earlier)


def _every(controller: Controller, epoch: int) -> int:
    return round(controller.every.at(epoch, controller.epochs))


def _due(controller: Controller, epoch: int, count: int) -> range:
    """The steps of an epoch that the architecture takes too."""
    return range(0) if epoch < controller.first_architecture_epoch else range(0, count, _every(controller, epoch))


def _order(images: int, batch_size: int, seed: int) -> tuple[Tensor, ...]:
    """The images of each step. Equal steps rather than full ones and a rest: batch norm never sees a tiny batch."""
    shuffle = torch.Generator().manual_seed(seed)
    return torch.randperm(images, generator=shuffle).tensor_split(math.ceil(images / batch_size))


def _batches(
    source: Source,
    controller: Controller,
    order: Sequence[Tensor],
    seed: int,
    epoch: int,
    numbers: Sequence[int],
    what: _Chance,
) -> Iterator[tuple[Tensor, Tensor]]:
    seeds = [_seed(seed, epoch, number, what) for number in numbers]
    return source.batches(order, augmentation=controller.augmentation, seeds=seeds)


def _seed(seed: int, epoch: int, step: int, what: _Chance) -> int:
    return int(np.random.SeedSequence([seed, epoch, step, int(what)]).generate_state(1)[0])


# ---- before it begins ---------------------------------------------------------------------------


def least_cost(description: Description, prices: Prices) -> float:
    """The cost of the cheapest network among those of one operation everywhere and one width, of least or most depth.

    With prices that grow with what there is to do this is the cheapest of the space.
    """
    depths = ([min(c) for c in description.depth_choices], [max(c) for c in description.depth_choices])
    return min(
        prices.of(
            Architecture(((name,) * len(EDGES),) * description.topologies, (share,) * description.width_count, tuple(d))
        )
        for name, share, d in itertools.product(description.operations, description.widths, depths)
    )


def _check(
    description: Description, controller: Controller, data: Source, val: Source, prices: Mapping[str, Prices]
) -> None:
    if distributed.process_count() > 1:
        raise ValueError("a search by gradient runs in one process; start it without torchrun")
    for name, source in (("data", data), ("val", val)):
        if not len(source):
            raise ValueError(f"{name}: {source.name} has no images")
        if (description.input_size, description.num_classes) != (source.input_size, source.num_classes):
            raise ValueError(
                f"description: {description.name} is for {description.input_size} images of {description.num_classes} "
                f"classes, and {name}, {source.name}, has {source.input_size} of {source.num_classes}; use "
                "description.for_data"
            )
    if data is val or data.fingerprint() == val.fingerprint():
        raise ValueError("val: got the images of data; the architecture needs others than the weights, split them")
    for name, budget in controller.budgets.items():
        if name not in prices:
            raise ValueError(f"prices: got {sorted(prices)}, wanted a price list {name!r} for cost {controller.cost!r}")
        least = least_cost(description, prices[name])
        if budget < least:
            raise ValueError(
                f"{name}_budget: got {budget:g} {prices[name].unit}, but the cheapest network of {description.name} "
                f"has {least:,.6g}; wanted at least that, or a space with cheaper networks"
            )


def _identity(
    description: Description,
    controller: Controller,
    data: Source,
    val: Source,
    seed: int,
    prices: Mapping[str, Prices],
) -> dict[str, Any]:
    """What tells one search from another, as JSON values."""
    even = Choices(
        torch.full((description.topologies, len(EDGES), len(description.operations)), 1 / len(description.operations)),
        torch.full((description.width_count, len(description.widths)), 1 / len(description.widths)),
        tuple(torch.full((len(choices),), 1 / len(choices)) for choices in description.depth_choices),
    )
    return {
        "method": "bars",
        "seed": seed,
        "space": description.to_dict(),
        "controller": controller.to_dict(),
        "data": data.fingerprint(),
        "validation data": val.fingerprint(),
        "prices": {name: float(prices[name].expected(even)) for name in sorted(prices)},
    }


# ---- files --------------------------------------------------------------------------------------


def save_supernet(supernet: Supernet, path: str | os.PathLike[str], facts: Mapping[str, Any] | None = None) -> None:
    """Write a supernet, atomically, with a SHA-256; its folder must exist. `facts` are JSON values kept with it."""
    metadata = {**(facts or {}), "format": FORMAT, "space": supernet.description.to_dict()}
    save_tensors(path, supernet.state_dict(), metadata)


def load_supernet(path: str | os.PathLike[str]) -> Supernet:
    """The supernet that `save_supernet` wrote, on the CPU, in evaluation mode.

    Raises FileNotFoundError if there is none, CorruptFileError if it is damaged or no supernet of this version.
    """
    tensors, metadata = load_tensors(path, expected_format=FORMAT)
    try:
        with torch.random.fork_rng([]):
            supernet = Supernet(Description.from_dict(metadata["space"]))
        supernet.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptFileError(path, f"is no supernet of this version of bitnas ({error})") from error
    return supernet.eval()
