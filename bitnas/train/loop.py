"""The training loop: one readable function whose result depends on its arguments alone.

Everything random in a step is drawn from a seed made of the run's seed, the epoch and the step, and the learning rate
is a function of the step. So the state between two steps is the weights, the optimizer and a few sums, and a run that
is killed goes on from its checkpoint to the same bits.
"""

from __future__ import annotations

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from bitnas.data import Source
from bitnas.data.source import checked_seed
from bitnas.train import distributed
from bitnas.train.average import make_average, measure_batch_norm
from bitnas.train.checkpoint import Checkpoint, identity
from bitnas.train.history import Epoch, History
from bitnas.train.interrupt import Interrupt
from bitnas.train.log import Scalars, write_csv
from bitnas.train.recipe import Recipe
from bitnas.train.state import Position, State
from bitnas.train.step import Passes, Step, cross_entropy, make_optimizer, to_device


class NonFiniteError(ArithmeticError):
    """A network gave NaN or infinity."""


class TrainingDiverged(NonFiniteError):
    """The loss of a step was NaN or infinite. `epoch` counts from 0, `step` from 0 within the epoch."""

    def __init__(self, epoch: int, step: int, value: float) -> None:
        super().__init__(f"training diverged: the loss is {value} at epoch {epoch}, step {step}; try a lower lr")
        self.epoch, self.step, self.value = epoch, step, value

    def __reduce__(self) -> tuple[type[TrainingDiverged], tuple[int, int, float]]:
        """Rebuild from the arguments, so that the error survives the way back from a worker process."""
        return type(self), (self.epoch, self.step, self.value)


def fit(
    model: nn.Module,
    data: Source,
    recipe: Recipe,
    *,
    seed: int,
    val: Source | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: float = 60.0,
    log: str | os.PathLike[str] | None = None,
    tensorboard: str | os.PathLike[str] | None = None,
    on_epoch: Callable[[Epoch], None] | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
    passes: Passes = cross_entropy,
    judge: Callable[[nn.Module, Source], float] | None = None,
) -> History:
    """Train `model` in place, on the device it is on, and leave it in evaluation mode.

    On the CPU the weights depend on the arguments, `torch.get_num_threads()` and the number of processes alone, and are
    equal bit for bit in every run; torch's global random state is left as it was.

    Where processes train together (`bitnas.train.distributed`), each calls this with equal arguments and ends with
    equal weights. The images of a step are those of one process, cut into as many parts; batch norm sees one part, and
    its running statistics are those of the first process.

    Args:
        model: float `[N, C, H, W]` to logits `[N, classes]`.
        data: what to train on.
        recipe: what to do. With `ema` or `keep="best"` the model ends with the averaged or the best weights.
        seed: decides the order of the images, their augmentation and the model's own chance (dropout), not its
            first weights; at least 0 and below 2^63.
        val: images whose accuracy is measured after each epoch.
        checkpoint: a file, its folder made if missing, that is replaced after each epoch, within one when
            `checkpoint_every` has passed, and on Ctrl-C, which then takes effect at the end of the step (a second one
            at once). If the file is there already, training goes on after its last step and ends as if it had never
            stopped.
        checkpoint_every: seconds; longer where writing takes more than one 50th of that. 0 writes after every step.
        log: a CSV file, written anew after each epoch: a row for each, its columns the fields of `Epoch`.
        tensorboard: a folder of this run alone, for TensorBoard's scalars. Nothing is written without the package.
        on_epoch: called, in every process, after each epoch that is trained (and written), not for those read from the
            checkpoint.
        on_step: called after each step with the epoch, how many of its steps are done, and how many it has.
        passes: what a step computes, a generator function of (model, images, labels, recipe, chance) that gives losses
            and logits one after the other. Each loss goes backward before the next is asked for; the first is what the
            history shows. `chance` is a `random.Random` of the run's seed, the epoch and the step, alike in every
            process. A checkpoint knows the function by its name.
        judge: gives the validation accuracy of a model, in every process; `evaluate` if None. It must leave the model
            as it is.

    Raises:
        TrainingDiverged: a loss was not finite; the checkpoint still holds a step before.
        NonFiniteError: the logits of the validation images were not finite.
        CorruptFileError: the checkpoint is damaged, or is of another model, recipe, seed, data or number of processes.
        ValueError: the recipe asks for what this device or these data cannot give, or the processes' arguments differ.
        PeerLost: another process ended.
    """
    checked_seed(seed)
    steps = max(1, math.ceil(len(data) / recipe.batch_size))
    _check(model, data, recipe, val, steps, checkpoint_every)
    first = distributed.rank() == 0
    with ExitStack() as stack:
        run = {}
        if checkpoint is not None or distributed.process_count() > 1:
            name = None if passes is cross_entropy else f"{passes.__module__}.{passes.__qualname__}"
            run = identity(model, data, val, recipe, seed, name)
        distributed.check_agreement(run, "they were given other settings or other data", _device(model))
        distributed.copy_from_first(model.state_dict().values())
        if recipe.sync_batch_norm:
            stack.enter_context(distributed.synchronised_batch_norm(model))
        stack.enter_context(_channels_last(model))
        optimizer = make_optimizer(model, recipe)
        average = make_average(model, recipe)
        step = Step(model, optimizer, average, recipe, passes)
        state = State(model=model, optimizer=optimizer, scaler=step.scaler, average=average)
        saved = None if checkpoint is None else Checkpoint(checkpoint, run, checkpoint_every)
        if saved is not None:
            saved.restore(state)
        distributed.check_agreement(
            state.values(),
            f"{checkpoint} is not one file for both; put it where every machine sees it",
            step.device,
        )
        scalars = Scalars(tensorboard, state.history.epochs) if tensorboard is not None and first else None
        if scalars is not None:
            stack.callback(scalars.close)
        if log is not None and first:
            write_csv(log, state.history.epochs)
        while state.position.epoch < recipe.epochs:
            with torch.random.fork_rng([] if step.device.type == "cpu" else [step.device]):
                _train_epoch(state, step, data, recipe, seed, saved, on_step)
            record = _end_epoch(state, step, data, recipe, seed, val, judge or evaluate)
            if saved is not None:
                saved.write(state)
            if log is not None and first:
                write_csv(log, state.history.epochs)
            if scalars is not None:
                scalars.add(record)
            if on_epoch is not None:
                on_epoch(record)
        if state.best or average is not None:
            model.load_state_dict(state.best or state.weights())
    model.eval()
    return state.history


def evaluate(model: nn.Module, data: Source, *, batch_size: int = 256) -> float:
    """The share of the images that `model` classifies right, in evaluation mode; its mode is put back after.

    Processes that train together share the batches, so each must call this; the result is that of one process.

    Raises NonFiniteError if a logit is NaN or infinite.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    device = _device(model)
    was_training = model.training
    model.eval()
    batches = distributed.share(torch.arange(len(data)).split(batch_size))
    correct = torch.zeros((), dtype=torch.int64, device=device)
    bad: list[int] = [0, 0, 0]  # images with a logit that is not finite; the first and last of their batch
    try:
        with torch.no_grad():
            for indices, (x, y) in zip(batches, data.batches(batches), strict=True):
                logits = model(to_device(x, device))
                if not torch.isfinite(logits).all():
                    bad = [int((~torch.isfinite(logits)).any(1).sum()), int(indices[0]), int(indices[-1])]
                    break
                correct += (logits.argmax(1) == to_device(y, device)).sum()
    finally:
        model.train(was_training)
    own = torch.zeros(distributed.process_count(), 4, dtype=torch.int64, device=device)
    own[distributed.rank()] = torch.tensor([int(correct), *bad], device=device)
    found = distributed.add_up(own).tolist()
    for _, count, first, last in found:
        if count:
            raise NonFiniteError(f"the logits of {count} of the images {first} to {last} are NaN or infinite")
    return sum(right for right, *_ in found) / len(data)


def _check(
    model: nn.Module, data: Source, recipe: Recipe, val: Source | None, steps: int, checkpoint_every: float
) -> None:
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ValueError(f"model: got a {type(model).__name__} without a parameter to train")
    if recipe.keep == "best" and val is None:
        raise ValueError("keep 'best' needs validation images: give val, or use keep 'last'")
    if len(data) == 0:
        raise ValueError(f"data: {data.name} has no images")
    if len(data) // steps < distributed.process_count():
        raise ValueError(
            f"batch_size must be at least the number of processes, {distributed.process_count()}, for each to have an "
            f"image; got {recipe.batch_size}, and {len(data)} images in {steps} steps"
        )
    if not checkpoint_every >= 0:
        raise ValueError(f"checkpoint_every must be at least 0 seconds, got {checkpoint_every}")


def _train_epoch(
    state: State,
    step: Step,
    data: Source,
    recipe: Recipe,
    seed: int,
    saved: Checkpoint | None,
    on_step: Callable[[int, int, int], None] | None,
) -> None:
    """The steps of the current epoch that are not done yet."""
    position, clock = state.position, time.perf_counter
    state.model.train()
    order = _order(data, recipe, seed, position.epoch)
    steps, order = len(order), order[position.step :]
    own = (distributed.rank(),) if distributed.rank() else ()  # the first process draws as a single one does
    seeds = [_seeds(seed, position.epoch, 2, number, *own) for number in range(position.step, steps)]
    batches = data.batches(
        [distributed.part(indices) for indices in order],
        augmentation=recipe.augmentation,
        seeds=[seed_of_images for seed_of_images, _ in seeds],
    )
    interrupt = Interrupt()
    with interrupt.held(saved is not None):
        start = clock()
        batch = next(batches, None)
        position.data_seconds += clock() - start
        for indices, (_, seed_of_model) in zip(order, seeds, strict=True):
            assert batch is not None
            _seed_layers(seed_of_model, step.device)
            seed_of_passes = _seeds(seed, position.epoch, 3, position.step)[2]
            numbers = step.gradients(*batch, whole=len(indices), stop=lambda: interrupt.pressed, seed=seed_of_passes)
            waiting = clock()
            batch = next(batches, None)  # while a GPU computes
            position.data_seconds += clock() - waiting
            loss, correct, *stops = numbers.tolist()
            if not math.isfinite(loss):
                raise TrainingDiverged(position.epoch, position.step, loss / len(indices))
            step.update(recipe.learning_rate(position.epoch * steps + position.step, steps))
            position.step += 1
            position.loss += loss
            position.correct += int(correct)
            stop = any(stops) if stops else interrupt.pressed
            start, before = clock(), start
            position.seconds += start - before
            if saved is not None and (stop or saved.due()):
                saved.write(state)
            if stop:
                raise KeyboardInterrupt
            if on_step is not None:
                on_step(position.epoch, position.step, steps)
    if interrupt.pressed and saved is not None:  # while the last step ended
        saved.write(state)
        raise KeyboardInterrupt


def _end_epoch(
    state: State,
    step: Step,
    data: Source,
    recipe: Recipe,
    seed: int,
    val: Source | None,
    judge: Callable[[nn.Module, Source], float],
) -> Epoch:
    """Validate, note the epoch in the history, and go to the start of the next one."""
    start, done, images = time.perf_counter(), state.position, len(data)
    distributed.copy_from_first(state.model.buffers())
    order = _order(data, recipe, seed, done.epoch)
    if state.average is not None:
        distributed.copy_from_first(state.average.module.buffers())
        measure_batch_norm(state.average.module, data, order, step.device)
    accuracy = None if val is None else judge(state.judged, val)
    if recipe.keep == "best" and accuracy is not None:
        best = state.history.best
        if best is None or accuracy > (best.val_accuracy or 0.0):
            state.best = state.weights()
    record = Epoch(
        epoch=done.epoch,
        loss=done.loss / images,
        train_accuracy=done.correct / images,
        val_accuracy=accuracy,
        lr=recipe.learning_rate((done.epoch + 1) * len(order) - 1, len(order)),
        seconds=done.seconds + time.perf_counter() - start,
        data_seconds=done.data_seconds,
    )
    state.history.epochs.append(record)
    state.position = Position(epoch=done.epoch + 1)
    return record


def _seed_layers(seed: int, device: torch.device) -> None:
    """Seed the generators that layers such as dropout draw from.

    `torch.manual_seed` seeds those of all kinds of devices, and in a process without GPUs formats a stack for each
    kind: 0.3 ms a step (AMD EPYC, Zen 4).
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.default_generators[device.index or 0].manual_seed(seed)


def _order(data: Source, recipe: Recipe, seed: int, epoch: int) -> tuple[Tensor, ...]:
    """The images of each step of an epoch."""
    shuffle = torch.Generator().manual_seed(_seeds(seed, epoch, 1)[0])
    # Equal steps rather than full ones and a rest: batch norm never sees a tiny batch.
    return torch.randperm(len(data), generator=shuffle).tensor_split(math.ceil(len(data) / recipe.batch_size))


def _seeds(seed: int, epoch: int, count: int, *step: int) -> list[int]:
    return [int(word) for word in np.random.SeedSequence([seed, epoch, *step]).generate_state(count)]


@contextmanager
def _channels_last(model: nn.Module) -> Iterator[None]:
    """Train with channels last, and leave the weights contiguous and without gradients.

    VGG-small at a quarter of its widths, 8x8 images, batches of 64: 16.9 ms instead of 22.8 ms a step (AMD EPYC, Zen 4,
    one thread).
    """
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    try:
        yield
    finally:
        model.zero_grad()
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]


def _device(model: nn.Module) -> torch.device:
    tensor = next(itertools.chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device
