"""`bitnas train`: one network by name, trained, frozen, verified and saved."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

MODEL_FORMAT = "bitnas-model-1"


def train(
    out: Annotated[Path, typer.Option(help="Folder for the weights, made if missing.")],
    model: Annotated[str, typer.Option(help="A name of bitnas.list_models().")] = "vgg_small",
    data: Annotated[str, typer.Option(help="Data set: digits, or the path of a .safetensors file.")] = "digits",
    ratios: Annotated[str | None, typer.Option(help="Width ratios with commas; one number stands for all.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs. Default: the recipe's.")] = None,
    recipe: Annotated[str | None, typer.Option(help="Training recipe. Default: that of the data set.")] = None,
    base_width: Annotated[float | None, typer.Option(help="Multiplies every base width.")] = None,
    scheme: Annotated[str, typer.Option(help="How weights and activations become bits.")] = "dorefa",
    seed: Annotated[int, typer.Option(help="Decides the split, the first weights and the order of images.")] = 0,
    threads: Annotated[int | None, typer.Option(help="Threads of torch. They are part of what a seed repeats.")] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a network, freeze it, prove every integer of the frozen one equal, and save both.

    The same command goes on after a stop. Writes DIR/model.safetensors (float), DIR/frozen.safetensors (packed) and
    DIR/train.json.
    """
    from .output import floats, interruptible, print_json

    again = shlex.join(["bitnas", *sys.argv[1:]])
    code = floats("--ratios", ratios)
    with interruptible(f"finished epochs are kept. To go on: {again}"):
        result = train_to_folder(
            out,
            model=model,
            data=data,
            ratios=code[0] if code is not None and len(code) == 1 else code,
            epochs=epochs,
            recipe=recipe,
            base_width=base_width,
            scheme=scheme,
            seed=seed,
            threads=threads,
        )
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
    ratios: float | tuple[float, ...] | None,
    epochs: int | None,
    recipe: str | None,
    base_width: float | None,
    scheme: str,
    seed: int,
    threads: int | None,
) -> dict[str, Any]:
    """Do the work of `bitnas train`; gives what it writes to `train.json`. Accuracy is a fraction, sizes are bytes."""
    import dataclasses

    import torch

    from .. import count, create_model, freeze, save, verify
    from .. import data as datasets
    from ..files import save_tensors, write_json_atomic
    from ..methods.width import preset
    from ..packed import packed_bytes
    from ..train import RECIPES, evaluate, fit
    from .progress import ProgressView

    defaults = preset(data)
    name = recipe or defaults.recipe
    if name not in RECIPES:
        raise ValueError(f"--recipe must be one of {', '.join(RECIPES)}, got {name!r}")
    settings = RECIPES[name] if epochs is None else dataclasses.replace(RECIPES[name], epochs=epochs)
    if threads is not None:
        if threads < 1:
            raise ValueError(f"--threads must be at least 1, got {threads}")
        torch.set_num_threads(threads)
    dataset = datasets.load(data, seed=seed)
    splits = dataset.split(seed=seed)
    torch.manual_seed(seed)
    network: nn.Module = create_model(
        model,
        ratios=ratios,
        num_classes=dataset.num_classes,
        input_size=dataset.input_size,
        base_width=defaults.base_width if base_width is None else base_width,
        scheme=scheme,
    )
    out.mkdir(parents=True, exist_ok=True)
    with ProgressView() as view:

        def on_epoch(epoch: Any) -> None:
            view.advance("training", epoch.epoch + 1, settings.epochs)
            view.say(
                f"epoch {epoch.epoch + 1}/{settings.epochs}  loss {epoch.loss:.4f}  validation "
                f"{100 * epoch.val_accuracy:.1f} %"
            )

        fit(
            network,
            dataset.subset(splits.train),
            settings,
            seed=seed,
            val=dataset.subset(splits.val),
            checkpoint=out / "train.ckpt.safetensors",
            on_epoch=on_epoch,
        )
    held_out = dataset.subset(splits.test)
    accuracy = evaluate(network, held_out)
    config: Any = network.config
    save_tensors(out / "model.safetensors", network.state_dict(), {"format": MODEL_FORMAT, "network": config.to_dict()})
    frozen = freeze(network)
    save(frozen, out / "frozen.safetensors")
    costs = count(network, dataset.input_size)
    low, high = wilson_interval(round(accuracy * len(held_out)), len(held_out))
    result = {
        "network": config.to_dict(),
        "data": data,
        "seed": seed,
        "recipe": {"name": name, **settings.to_dict()},
        "accuracy": accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "test_images": len(held_out),
        "flops": costs.flops,
        "bops": costs.bops,
        "macs": costs.macs,
        "packed_bytes": packed_bytes(frozen),
        "verified": verify(network, frozen, held_out.take(torch.arange(min(len(held_out), 1000)))).to_dict(),
    }
    write_json_atomic(out / "train.json", result)
    return result


def wilson_interval(right: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's 95 % score interval of a share (Wilson 1927): both ends, as fractions."""
    if total < 1 or not 0 <= right <= total:
        raise ValueError(f"right must be between 0 and total, and total at least 1, got {right} of {total}")
    share = right / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    half = z / (1 + z * z / total) * (share * (1 - share) / total + z * z / (4 * total * total)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)
