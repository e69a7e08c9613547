"""`bitnas train`: one network by name, trained, frozen, verified and saved, by one process or by those of torchrun."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from ..data import Source
    from ..train import Epoch, Recipe

MODEL_FORMAT = "bitnas-model-1"
CHECKPOINT = "train.ckpt.safetensors"


def train(
    out: Annotated[Path, typer.Option(help="Folder for the weights, made if missing.")],
    model: Annotated[str, typer.Option(help="A name of bitnas.list_models(), or of a published code.")] = "vgg_small",
    data: Annotated[str, typer.Option(help="Data set: a name, or a path that bitnas.data.load reads.")] = "digits",
    data_root: Annotated[Path | None, typer.Option(help="Folder that holds the data set's files.")] = None,
    size: Annotated[
        int | None, typer.Option(help="Height and width of an image, for folders and packed files.")
    ] = None,
    workers: Annotated[int | None, typer.Option(help="Threads that decode images; one for each core, up to 8.")] = None,
    ratios: Annotated[str | None, typer.Option(help="Width ratios with commas; one number stands for all.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Training recipe. Default: one that fits the data set.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs. Default of this and the next: the recipe's.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step, of all processes together.")] = None,
    lr: Annotated[float | None, typer.Option(help="The highest learning rate.")] = None,
    optimizer: Annotated[str | None, typer.Option(help="sgd, adam or adamw.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of convolutions and linear layers.")] = None,
    warmup_epochs: Annotated[float | None, typer.Option(help="Epochs over which the rate rises from 0.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Share of the target spread over all classes.")] = None,
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
    scheme: Annotated[str, typer.Option(help="How weights and activations become bits.")] = "dorefa",
    seed: Annotated[int, typer.Option(help="Decides the split, the first weights and the order of images.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. They are part of what a seed repeats.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda, or auto: a GPU if there is one.")] = "auto",
    checkpoint_every: Annotated[float, typer.Option(help="Seconds between checkpoints inside an epoch.")] = 60.0,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a network, freeze it, prove every integer of the frozen one equal, and save both.

    The same command goes on after a stop, from the last checkpoint. Several processes share the work when torchrun
    starts them: torchrun --nproc-per-node 2 -m bitnas train ... Writes DIR/model.safetensors (float),
    DIR/frozen.safetensors (packed), DIR/train.json, DIR/log.csv, and DIR/tensorboard if that is installed.
    """
    from .output import floats, interruptible, print_json

    changes = {
        "epochs": epochs,
        "batch_size": batch_size,
        "lr": lr,
        "optimizer": optimizer,
        "weight_decay": weight_decay,
        "warmup_epochs": warmup_epochs,
        "label_smoothing": label_smoothing,
        "clip_norm": clip_norm,
        "ema": ema,
        "accumulate": accumulate,
        "precision": precision,
        "sync_batch_norm": sync_batch_norm,
        "keep": keep,
    }
    code = floats("--ratios", ratios)
    with interruptible(f"finished steps are kept. To go on: {_command()}"):
        result = train_to_folder(
            out,
            model=model,
            data=data,
            data_options={"root": data_root, "size": size, "workers": workers},
            ratios=code[0] if code is not None and len(code) == 1 else code,
            recipe=recipe,
            changes={name: value for name, value in changes.items() if value is not None},
            val_share=val_share,
            base_width=base_width,
            scheme=scheme,
            seed=seed,
            threads=threads,
            device=device,
            checkpoint_every=checkpoint_every,
        )
    if result is None:  # not the process that speaks
        return
    if json:
        print_json(result)
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
    scheme: str,
    seed: int,
    threads: int | None,
    device: str,
    checkpoint_every: float,
) -> dict[str, Any] | None:
    """Do the work of `bitnas train`; gives what it writes to `train.json`, and None in all processes but the first.

    Accuracy is a fraction, sizes are bytes. `changes` are settings of the recipe, `data_options` of `bitnas.data.load`.
    """
    import dataclasses
    from contextlib import nullcontext

    import torch

    from .. import __version__, create_model
    from .. import data as datasets
    from ..methods.width import preset
    from ..train import RECIPES, distributed, evaluate, folder

    defaults = preset(data)
    if recipe is not None and recipe not in RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}, got {recipe!r}")
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    place = distributed.local_device(device)
    with distributed.joined(place):
        first, processes = distributed.rank() == 0, distributed.process_count()
        dataset = datasets.load(data, seed=seed, **data_options)
        # Presets know data sets by name; of the others, large images are cropped as ImageNet's are.
        large = defaults.recipe == "shen2019-cifar10" and min(dataset.input_size[1:]) > 64
        name = recipe or ("shen2019-imagenet" if large else defaults.recipe)
        settings = dataclasses.replace(RECIPES[name], **changes)
        parts = _parts(dataset, val_share, seed)
        torch.manual_seed(seed)
        network: nn.Module = create_model(
            model,
            ratios=ratios,
            num_classes=dataset.num_classes,
            input_size=dataset.input_size,
            base_width=defaults.base_width if base_width is None else base_width,
            scheme=scheme,
        )
        config: Any = network.config
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
                    },
                    {"bitnas": __version__, "torch": torch.__version__, "command": _command()},
                    out / CHECKPOINT,
                )
            _fit(network.to(place), parts, settings, out, seed=seed, checkpoint_every=checkpoint_every, speak=first)
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
                    "seed": seed,
                    "recipe": {"name": name, **settings.to_dict()},
                    "processes": processes,
                },
            )


def _parts(dataset: Source, val_share: float | None, seed: int) -> dict[str, Source]:
    """The data set's train, val and test parts by name; without val if its share is 0."""
    if val_share is None and dataset.test is None:
        splits = dataset.split(seed=seed)
    else:
        share = 0.1 if val_share is None else val_share
        if not 0 <= share < 1:
            raise ValueError(f"--val-share must be at least 0 and below 1, got {share}")
        splits = dataset.split(0.8 * (1 - share), 0.8 * share, 0.2, seed=seed)
    return {name: dataset.subset(part) for name, part in splits._asdict().items() if len(part)}


def _fit(
    network: nn.Module,
    parts: Mapping[str, Source],
    settings: Recipe,
    out: Path,
    *,
    seed: int,
    checkpoint_every: float,
    speak: bool,
) -> None:
    import time

    from ..train import fit
    from .progress import ProgressView

    with ProgressView() as view:
        shown, spent = time.monotonic(), []

        def on_step(epoch: int, done: int, steps: int) -> None:
            nonlocal shown
            if speak and time.monotonic() - shown > 0.2:
                shown = time.monotonic()
                view.advance(f"epoch {epoch + 1}/{settings.epochs}", done, steps)

        def on_epoch(epoch: Epoch) -> None:
            spent.append(epoch.seconds)
            if speak:
                left = (settings.epochs - epoch.epoch - 1) * sum(spent) / len(spent)
                view.say(epoch_line(epoch, settings.epochs, left))

        fit(
            network,
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
        )


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
    from ..files import save_tensors, write_json_atomic
    from ..packed import packed_bytes

    save_tensors(out / "model.safetensors", network.state_dict(), {"format": MODEL_FORMAT, "network": facts["network"]})
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


def _command() -> str:
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
