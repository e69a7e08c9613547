"""`bitnas train`: one network by name, trained, frozen, verified and saved, by one process or by those of torchrun.

A supernet is trained by the same command (`train_supernet.py`), which shares what is said here about data and recipe.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from ..data import Source
    from ..train import Epoch, Recipe
    from ..train.step import Passes

CHECKPOINT = "train.ckpt.safetensors"


def train(
    out: Annotated[Path, typer.Option(help="Folder for the weights, made if missing.")],
    model: Annotated[
        str | None,
        typer.Option(help="A name of bitnas.list_models(), or the .json file of an architecture. [vgg_small]"),
    ] = None,
    data: Annotated[str, typer.Option(help="Data set: a name, or a path that bitnas.data.load reads.")] = "digits",
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds the data set's files.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Height and width of an image, for folders and packed files.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that decode images; one for each core, up to 8.")] = None,
    ratios: Annotated[str | None, typer.Option(help="Width ratios with commas; one number stands for all.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Training recipe. Default: one that fits the data set.")] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs; milestones move with them. Default of this and the next: the recipe's.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step, of all processes together.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw.")] = None,
    momentum: Annotated[float | None, typer.Option(help="Of sgd.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of convolutions and linear layers.")] = None,
    schedule: Annotated[str | None, typer.Option(help="Of the rate: constant, cosine, or steps.")] = None,
    milestones: Annotated[
        str | None, typer.Option(help="For steps: epochs with commas, before which the rate drops.")
    ] = None,
    gamma: Annotated[float | None, typer.Option(help="For steps: factor of a drop.")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Epochs over which the rate rises from 0.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the target spread over all classes.")] = None,
    shift: Annotated[int | None, typer.Option(help="Move images at random by up to so many pixels.")] = None,
    flip: Annotated[
        bool | None, typer.Option("--flip/--no-flip", help="Mirror half of the images; not for text or signs.")
    ] = None,
    crop: Annotated[
        str | None, typer.Option(help="Cut out a random share of the area between two, such as 0.08,1; or none.")
    ] = None,
    clip_norm: Annotated[float | None, typer.Option(help="Longest gradient; 0 for any.")] = None,
    ema: Annotated[float | None, typer.Option(help="Decay of a moving average of the weights; 0 for none.")] = None,
    accumulate: Annotated[int | None, typer.Option(help="Micro-batches that a step is cut into.")] = None,
    precision: Annotated[str | None, typer.Option(help="float32, or on a GPU bfloat16 or float16.")] = None,
    sync_batch_norm: Annotated[
        bool | None, typer.Option("--sync-batch-norm", help="Batch norm over the images of all GPUs.")
    ] = None,
    keep: Annotated[str | None, typer.Option(help="Weights to end with: last, or best in validation.")] = None,
    val_share: Annotated[
        float | None,
        typer.Option(help="Share of the training images held out for validation. [0.25; 0.1 beside a test set]"),
    ] = None,
    base_width: Annotated[float | None, typer.Option(help="Multiplies every base width.")] = None,
    scheme: Annotated[str | None, typer.Option(help="How weights and activations become bits. [dorefa]")] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(help="A trained network (model.safetensors) whose outputs are learnt beside the labels."),
    ] = None,
    distill: Annotated[
        float | None, typer.Option(help="Share of the teacher in the loss, above 0 and at most 1. [0.5]")
    ] = None,
    auxiliary: Annotated[
        float | None, typer.Option(help="Weight of a second classifier, for networks of BARS; 0.4 is usual. [none]")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help="nasbnn trains a supernet instead of one network; --model and the like do not go with it."),
    ] = None,
    space: Annotated[
        str | None, typer.Option(help="Of a supernet: imagenet, cifar, small, or a .json file. Default: by the data.")
    ] = None,
    no_bi_teacher: Annotated[
        bool, typer.Option("--no-bi-teacher", help="Of a supernet: the teacher's weights are binary too.")
    ] = False,
    no_bi_transformation: Annotated[
        bool, typer.Option("--no-bi-transformation", help="Of a supernet: without matrices for its kernels.")
    ] = False,
    no_weight_normalization: Annotated[
        bool, typer.Option("--no-weight-normalization", help="Of a supernet: weights are not standardised.")
    ] = False,
    consistency: Annotated[
        float | None, typer.Option(help="Of a supernet: factor of the loss between binary and float weights. [0]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides the split, the first weights and the order of images.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. They are part of what a seed repeats.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")] = "auto",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints inside an epoch.")] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a network, freeze it, prove every integer of the frozen one equal, and save both.

    The same command goes on after a stop, from the last checkpoint. Several processes share the work when torchrun
    starts them: torchrun --nproc-per-node 2 -m bitnas train ... Writes DIR/model.safetensors (float),
    DIR/frozen.safetensors (packed), DIR/train.json, DIR/log.csv, and DIR/tensorboard if that is installed. With
    --method nasbnn: DIR/supernet.safetensors, and the accuracy of some of its subnets in DIR/train.json.
    """
    from .output import floats, integers, interruptible, print_json

    if method not in (None, "nasbnn"):
        raise ValueError(f"--method must be nasbnn, or left out to train one network, got {method!r}")
    of_networks = {
        "--model": model,
        "--ratios": ratios,
        "--base-width": base_width,
        "--scheme": scheme,
        "--teacher": teacher,
        "--distill": distill,
        "--auxiliary": auxiliary,
    }
    of_supernets = {
        "--space": space,
        "--no-bi-teacher": no_bi_teacher or None,
        "--no-bi-transformation": no_bi_transformation or None,
        "--no-weight-normalization": no_weight_normalization or None,
        "--consistency": consistency,
    }
    for option, value in (of_networks if method else of_supernets).items():
        if value is not None:
            raise ValueError(f"{option} {'does not go' if method else 'goes only'} with --method nasbnn")
    if distill is not None and teacher is None:
        raise ValueError(f"--distill {distill:g} needs a --teacher FILE")

    changes = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "momentum": momentum,
        "weight_decay": weight_decay,
        "schedule": schedule,
        "milestones": integers("--milestones", milestones),
        "gamma": gamma,
        "warmup_epochs": warmup_epochs,
        "label_smoothing": label_smoothing,
        "shift": shift,
        "flip": flip,
        "crop": None if crop == "none" else floats("--crop", crop),
        "clip_norm": clip_norm,
        "ema": ema,
        "accumulate": accumulate,
        "precision": precision,
        "sync_batch_norm": sync_batch_norm,
        "keep": keep,
    }
    code = floats("--ratios", ratios)
    common: dict[str, Any] = {
        "data": data,
        "data_options": {"root": data_root, "size": size, "workers": workers},
        "recipe": recipe,
        "changes": {
            name: value for name, value in changes.items() if value is not None or (name == "crop" and crop == "none")
        },
        "val_share": val_share,
        "seed": seed,
        "threads": threads,
        "device": device,
        "checkpoint_every": checkpoint_every,
    }
    with interruptible(f"finished steps are kept. To go on: {command_line()}"):
        if method:
            from . import train_supernet

            strategies = {
                "bi_teacher": not no_bi_teacher,
                "bi_transformation": not no_bi_transformation,
                "weight_normalization": not no_weight_normalization,
                "consistency": consistency or 0.0,
            }
            result = train_supernet.train_to_folder(out, space=space, strategies=strategies, **common)
        else:
            result = train_to_folder(
                out,
                model=model or "vgg_small",
                ratios=code[0] if code is not None and len(code) == 1 else code,
                base_width=base_width,
                scheme=scheme,
                teacher=teacher,
                distill=distill,
                auxiliary=auxiliary,
                **common,
            )
    if result is None:  # not the process that speaks
        return
    if json:
        print_json(result)
        return
    if method:
        _print_subnets(result, out)
        return
    from ..report import numbers

    checked = result["verified"]
    typer.echo(
        f"accuracy    {numbers.percent(result['accuracy'])} of {result['test_images']} test images "
        f"(95 % interval {numbers.percent(result['accuracy_low'])} to {numbers.percent(result['accuracy_high'])})\n"
        f"cost        {numbers.count(result['flops'])} FLOPs, {numbers.count(result['bops'])} BOPs\n"
        f"size        {numbers.size(result['packed_bytes'])} packed\n"
        f"verified    {'yes' if checked['ok'] else 'NO'}: {checked['dots_equal']:,} of {checked['dots']:,} "
        f"integers and "
        f"{checked['predictions_equal']:,} of {checked['predictions']:,} predictions equal\n"
        f"wrote       {out / 'frozen.safetensors'}"
    )
    if not checked["ok"]:
        raise typer.Exit(1)


def train_to_folder(
    out: Path,
    *,
    model: str,
    data: str,
    data_options: Mapping[str, Any],
    ratios: float | tuple[float, ...] | None,
    recipe: str | None,
    changes: Mapping[str, Any],
    val_share: float | None,
    base_width: float | None,
    scheme: str | None,
    teacher: Path | None,
    distill: float | None,
    auxiliary: float | None,
    seed: int,
    threads: int | None,
    device: str,
    checkpoint_every: float,
) -> dict[str, Any] | None:
    """Do the work of `bitnas train`; gives what it writes to `train.json`, and None in all processes but the first.

    Accuracy is a fraction, sizes are bytes. `changes` are settings of the recipe, `data_options` of `bitnas.data.load`.
    """
    from contextlib import nullcontext

    import torch

    from .. import __version__
    from .. import data as datasets
    from ..data.check import class_names, preprocessing
    from ..methods.width import preset
    from ..train import RECIPES, distributed, evaluate, fit, folder

    defaults = preset(data)
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    use_threads(threads)
    place = distributed.local_device(device)
    with distributed.joined(place):
        first, processes = distributed.rank() == 0, distributed.process_count()
        dataset = datasets.load(data, seed=seed, **data_options)
        # Presets know data sets by name; of the others, large images are cropped as ImageNet's are.
        large = defaults.recipe == "shen2019-cifar10" and min(dataset.input_size[1:]) > 64
        name = recipe or ("shen2019-imagenet" if large else defaults.recipe)
        settings = changed_recipe(RECIPES[name], changes)
        share = validation_share(dataset, val_share)
        parts = data_parts(dataset, share, seed)
        torch.manual_seed(seed)
        network = _network(model, dataset, ratios, base_width, defaults.base_width, scheme, auxiliary)
        config: Any = network.config
        passes, taught = _passes(teacher, distill, auxiliary, dataset)
        with folder.locked(out) if first else nullcontext():
            if first:
                folder.claim(
                    out,
                    {
                        "network": config.to_dict(),
                        "data": data,
                        "seed": seed,
                        "val_share": val_share,
                        "processes": processes,
                        "recipe": {"name": name, **settings.to_dict()},
                        **taught,
                    },
                    {"bitnas": __version__, "torch": torch.__version__, "command": command_line()},
                    out / CHECKPOINT,
                )
            if first:
                lines = [
                    network_line(config, data, dataset, parts),
                    recipe_line(name, RECIPES[name], settings, len(parts["train"]), place.type, processes),
                    *(f"{name} {value}" for name, value in taught.items()),
                    *(f"note: {note}" for note in dataset.notes),
                ]
                say(lines, settings, len(parts["train"]))
            with progress(settings.epochs, speak=first) as (on_epoch, on_step):
                fit(
                    network.to(place),
                    parts["train"],
                    settings,
                    seed=seed,
                    val=parts.get("val"),
                    checkpoint=out / CHECKPOINT,
                    checkpoint_every=checkpoint_every,
                    log=out / "log.csv",
                    tensorboard=out / "tensorboard",
                    on_epoch=on_epoch,
                    on_step=on_step,
                    passes=passes,
                )
            accuracy = evaluate(network, parts["test"])
            if not first:
                return None
            return _finish(
                network.to("cpu"),
                parts["test"],
                accuracy,
                out,
                {
                    "network": config.to_dict(),
                    "data": data,
                    "classes": class_names(dataset),
                    "preprocessing": preprocessing(dataset),
                    "parts": {part: len(parts[part]) if part in parts else 0 for part in ("train", "val", "test")},
                    "val_share": share,
                    "seed": seed,
                    "recipe": {"name": name, **settings.to_dict()},
                    "processes": processes,
                    "threads": torch.get_num_threads(),
                    "notes": list(dataset.notes),
                    **taught,
                },
            )


def _network(
    model: str,
    dataset: Source,
    ratios: float | tuple[float, ...] | None,
    base_width: float | None,
    usual_base_width: float,
    scheme: str | None,
    auxiliary: float | None,
) -> nn.Module:
    """The network that is trained: by name for these data, or an architecture that must be for them."""
    import dataclasses

    from .. import create_model
    from ..models import create_model_from_config

    if not model.endswith(".json"):
        if auxiliary is not None:
            raise ValueError(f"--auxiliary {auxiliary:g} needs an architecture of BARS, --model FILE.json, got {model}")
        return create_model(
            model,
            ratios=ratios,
            num_classes=dataset.num_classes,
            input_size=dataset.input_size,
            base_width=usual_base_width if base_width is None else base_width,
            scheme=scheme or "dorefa",
        )
    for option, value in (("--ratios", ratios), ("--base-width", base_width), ("--scheme", scheme)):
        if value is not None:
            raise ValueError(f"{option} does not go with --model {model}: an architecture says everything itself")
    network = create_model(model)
    config: Any = network.config
    if (tuple(config.input_size), config.num_classes) != (dataset.input_size, dataset.num_classes):
        raise ValueError(
            f"--model {model} is for {tuple(config.input_size)} images of {config.num_classes} classes, and "
            f"{dataset.name} has {dataset.input_size} of {dataset.num_classes}"
        )
    if auxiliary is None:
        return network
    if not hasattr(config, "auxiliary"):
        raise ValueError(f"--auxiliary {auxiliary:g} needs an architecture of BARS, got one of {config.name}")
    if config.auxiliary is None:  # behind two thirds of the cells, as DARTS and its heirs have it
        config = dataclasses.replace(config, auxiliary=2 * len(config.cells) // 3)
    return create_model_from_config(config)


def _passes(
    teacher: Path | None, distill: float | None, auxiliary: float | None, dataset: Source
) -> tuple[Passes, dict[str, Any]]:
    """What a step computes, and the settings that say so; none for plain cross entropy."""
    from .. import load_model
    from ..train.distill import Distillation
    from ..train.distill import auxiliary as with_auxiliary
    from ..train.step import cross_entropy

    if auxiliary is not None and not 0 < auxiliary < float("inf"):
        raise ValueError(f"--auxiliary must be finite and above 0, got {auxiliary}")
    if teacher is None:
        if auxiliary is None:
            return cross_entropy, {}
        return with_auxiliary(auxiliary), {"auxiliary": auxiliary}
    weight = 0.5 if distill is None else distill
    if not 0 < weight <= 1:
        raise ValueError(f"--distill must be above 0 and at most 1, got {weight}")
    network = load_model(teacher)
    config: Any = network.config
    if (tuple(config.input_size), config.num_classes) != (dataset.input_size, dataset.num_classes):
        raise ValueError(
            f"--teacher {teacher} is for {tuple(config.input_size)} images of {config.num_classes} classes, and "
            f"{dataset.name} has {dataset.input_size} of {dataset.num_classes}"
        )
    passes = Distillation(network, weight, auxiliary=auxiliary or 0.0)
    facts = {"teacher": f"{config.name} {passes.digest}", "distill": weight}
    return passes, facts if auxiliary is None else {**facts, "auxiliary": auxiliary}


def changed_recipe(recipe: Recipe, changes: Mapping[str, Any]) -> Recipe:
    """The recipe with the settings that were asked for: its milestones move with the epochs, and a schedule brings or
    drops them.
    """
    import dataclasses

    changes = dict(changes)
    recipe = recipe.for_epochs(changes.pop("epochs", recipe.epochs))
    if "milestones" in changes:
        changes.setdefault("schedule", "steps")
    elif changes.get("schedule", "steps") != "steps":
        changes["milestones"] = ()
    return dataclasses.replace(recipe, **changes)


def use_threads(threads: int | None) -> None:
    """What --threads asks for."""
    import torch

    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)


def validation_share(dataset: Source, val_share: float | None) -> float:
    """The part of the images outside the test part that validates."""
    share = val_share if val_share is not None else 0.25 if dataset.test is None else 0.1
    if not 0 <= share < 1:
        raise ValueError(f"--val-share must be at least 0 and below 1, got {share}")
    return share


def data_parts(dataset: Source, val_share: float, seed: int) -> dict[str, Source]:
    """The data set's train, val and test parts by name; without val if it gets no image."""
    splits = dataset.split(0.8 * (1 - val_share), 0.8 * val_share, 0.2, seed=seed)
    if not len(splits.test):
        raise ValueError(
            f"{dataset.name}: "
            + ("its test part holds no image" if dataset.test is not None else "a fifth of its images is the test part")
            + f", got {len(dataset)} images; give more"
        )
    if not len(splits.train):
        raise ValueError(
            f"{dataset.name}: of {len(dataset)} images, {len(splits.test)} are for the test and {len(splits.val)} for "
            f"validation, none is left to train on; give more, or a --val-share below {val_share:g}"
        )
    return {name: dataset.subset(part) for name, part in splits._asdict().items() if len(part)}


def network_line(config: Any, data: str, dataset: Source, parts: Mapping[str, Source]) -> str:
    """What is trained on what."""
    shape = f"architecture {config.key()[:12]}"
    if hasattr(config, "ratios"):
        ratios = ",".join(f"{ratio:g}" for ratio in config.ratios)
        shape = f"base width {config.base_width:g}, ratios {ratios}"
    return f"{config.name}  {shape}, on {data}: {parts_line(dataset, parts)}"


def parts_line(dataset: Source, parts: Mapping[str, Source]) -> str:
    """How many images each part has, and what they are."""
    words = {"train": "to train on", "val": "to validate", "test": "to test"}
    sizes = ", ".join(f"{len(parts[name]):,} {use}" for name, use in words.items() if name in parts)
    shape = "x".join(map(str, dataset.input_size))
    return f"{sizes}; {shape} in {dataset.num_classes} classes"


def recipe_line(name: str, known: Recipe, recipe: Recipe, images: int, device: str, processes: int) -> str:
    """How it is trained: what the recipe's name does not say by itself, and milestones that moved with the epochs."""
    import math

    import torch

    schedule = recipe.schedule
    if recipe.milestones:
        schedule = f"x{recipe.gamma:g} at epoch {', '.join(map(str, recipe.milestones))}"
    if recipe.epochs != known.epochs and known.milestones and recipe.milestones != known.milestones:
        schedule += f" (for {', '.join(map(str, known.milestones))} of {known.epochs})"
    steps = math.ceil(images / recipe.batch_size)
    words = [
        f"{recipe.epochs} epoch{'s'[: recipe.epochs > 1]} of {steps:,} step{'s'[: steps > 1]} of up to "
        f"{recipe.batch_size} images",
        f"{recipe.optimizer} {recipe.lr:g}",
        schedule,
        *(f"{setting} {getattr(recipe, setting):g}" for setting in ("warmup_epochs", "ema", "shift")
          if getattr(recipe, setting)),
        *(["flip"] if recipe.flip else []),
        *([f"crop {recipe.crop[0]:g} to {recipe.crop[1]:g}"] if recipe.crop else []),
    ]  # fmt: skip
    threads = torch.get_num_threads()
    place = f"{threads} thread{'s'[: threads > 1]} on {device}" + (f", {processes} processes" if processes > 1 else "")
    return f"recipe {name}: {', '.join(words)}; {place}"


def say(lines: list[str], recipe: Recipe, images: int) -> None:
    """What is known before the first step, on stderr."""
    import math

    from ..train.average import too_long
    from .output import console

    warning = too_long(recipe, recipe.epochs * math.ceil(images / recipe.batch_size))
    for line in [*lines, *([f"warning: {warning}"] if warning else [])]:
        console(stderr=True).print(line, markup=False)


@contextmanager
def progress(epochs: int, *, speak: bool) -> Iterator[tuple[Callable[[Epoch], None], Callable[[int, int, int], None]]]:
    """What `fit` is given as `on_epoch` and `on_step`; silent unless this process is to `speak`."""
    import time

    from .progress import ProgressView

    with ProgressView() as view:
        shown, spent = time.monotonic(), []

        def on_step(epoch: int, done: int, steps: int) -> None:
            nonlocal shown
            if speak and time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                view.advance(f"epoch {epoch + 1}/{epochs}", done, steps)

        def on_epoch(epoch: Epoch) -> None:
            spent.append(epoch.seconds)
            if speak:
                left = (epochs - epoch.epoch - 1) * sum(spent) / len(spent)
                view.say(epoch_line(epoch, epochs, left))

        yield on_epoch, on_step


def epoch_line(epoch: Epoch, epochs: int, left_s: float) -> str:
    """One line about an epoch, with the time the others will take."""
    words = [f"epoch {epoch.epoch + 1}/{epochs}", f"loss {epoch.loss:.4f}", f"train {100 * epoch.train_accuracy:.1f} %"]
    if epoch.val_accuracy is not None:
        words.append(f"validation {100 * epoch.val_accuracy:.1f} %")
    waited = 100 * epoch.data_seconds / max(epoch.seconds, 1e-9)
    words.append(f"{_time(epoch.seconds)}, {waited:.0f} % of it waiting for images")
    return "  ".join(words) + (f"  {_time(left_s)} left" if epoch.epoch + 1 < epochs else "")


def _time(seconds: float) -> str:
    """ "4.2 s", "3 min 05 s", "2 h 14 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def _finish(network: nn.Module, test: Source, accuracy: float, out: Path, facts: Mapping[str, Any]) -> dict[str, Any]:
    """Save the trained network, freeze, verify and count it, and write `train.json`."""
    import torch

    from .. import count, freeze, save, verify
    from ..files import write_json_atomic
    from ..models import save_model
    from ..packed import packed_bytes

    kept = {name: facts[name] for name in ("data", "classes", "preprocessing")}
    save_model(network, out / "model.safetensors", kept)
    frozen = freeze(network)
    save(frozen, out / "frozen.safetensors")
    costs = count(network, test.input_size)
    low, high = wilson_interval(round(accuracy * len(test)), len(test))
    result = {
        **facts,
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "test_images": len(test),
        "flops": costs.flops,
        "bops": costs.bops,
        "macs": costs.macs,
        "packed_bytes": packed_bytes(frozen),
        "verified": verify(network, frozen, test.take(torch.arange(min(len(test), 1000)))).to_dict(),
    }
    write_json_atomic(out / "train.json", result)
    return result


def _print_subnets(result: Mapping[str, Any], out: Path) -> None:
    from ..report import numbers

    images = result["accuracy_images"]
    typer.echo(
        f"{result['parameters']:,} parameters; subnets on {images} {result['accuracy_on']} images, recalibrated:"
    )
    for row in result["subnets"]:
        low, high = wilson_interval(round(row["accuracy"] * images), images)
        typer.echo(
            f"{row['label']:9} {numbers.percent(row['accuracy'])} (95 % interval {numbers.percent(low)} to "
            f"{numbers.percent(high)}), {numbers.count(row['ops'])} OPs"
        )
    typer.echo(f"wrote     {out / 'supernet.safetensors'}")


def command_line() -> str:
    """What a person types to start this again."""
    again = shlex.join(["bitnas", *sys.argv[1:]])
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return again
    if os.environ.get("GROUP_WORLD_SIZE", "1") != "1":
        return f"the same torchrun command on every machine (-m {again})"
    return f"torchrun --nproc-per-node {os.environ.get('LOCAL_WORLD_SIZE', '1')} -m {again}"


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927): both ends, as fractions."""
    if total < 1 or not 0 <= right <= total:
        raise ValueError(f"right must be between 0 and total, and total at least 1, got {right} of {total}")
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
