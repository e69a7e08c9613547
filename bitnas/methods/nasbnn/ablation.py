"""What each training strategy of NAS-BNN brings: supernets with and without it, judged by what their subnets inherit.

All supernets of a seed share split, batches and subnets, so that the differences are paired; seeds have
splits of their own.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnas.methods import candidates, trials
from bitnas.methods.intervals import corrected, paired_runs, said, spread
from bitnas.methods.nasbnn import evaluate, studies
from bitnas.methods.nasbnn.config import NasBnnSearchConfig, preset
from bitnas.methods.run_folder import Progress
from bitnas.search import Stage
from bitnas.search.space import Genome

NAME = "ablation"
STRATEGIES = ("bi_teacher", "bi_transformation", "weight_normalization")
WORDS = {
    "bi_teacher": "Bi-Teacher",
    "bi_transformation": "Bi-Transformation",
    "weight_normalization": "Weight Normalization",
}
# name -> strategies that are off
VARIANTS: dict[str, tuple[str, ...]] = {
    "all": (),
    **{f"without {WORDS[name]}": (name,) for name in STRATEGIES},
    "none": STRATEGIES,
}
GROUPS = ("smallest", "random", "biggest", "mean")


def ablation(
    out: str | os.PathLike[str],
    *,
    data: str = "digits",
    seeds: int | Sequence[int] = 3,
    subnets: int = 8,
    settings: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Inherited accuracy of the subnets of supernets trained with and without each strategy; writes `ablation.json`.

    Goes on where it was stopped, within a training too. Accuracy is measured on all images outside the train part.

    Args:
        out: folder, made if missing.
        data: a data set `bitnas.data.load` knows.
        seeds: how many, from 0, or which.
        subnets: random ones, beside the smallest and the biggest; the same for all variants of a seed.
        settings: of `NasBnnSearchConfig`, on top of the preset of the data set.
        workers: processes; None for the preset's.
        on_progress: called with {"event": "ablation_supernet" | "ablation_judged", "done", "total"}.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: a training failed.
        JournalMismatch: the folder holds a study of other settings.
    """
    numbers = trials.numbered(seeds)
    if isinstance(subnets, bool) or not isinstance(subnets, int) or subnets < 1:
        raise ValueError(f"subnets: got {subnets!r}, wanted an integer of at least 1")
    folder, notify, start = Path(out), on_progress or (lambda event: None), time.perf_counter()
    configs = {seed: preset(data, **{**(settings or {}), "seed": seed}) for seed in numbers}
    first = configs[numbers[0]]
    # Which seeds there are is no setting: a study can be continued with more of them.
    base = {"subnets": subnets, "settings": {k: v for k, v in first.to_dict().items() if k not in ("seed", "workers")}}
    shared = preset(data, **{**(settings or {}), "seed": 0})
    with studies.opened(folder, NAME, shared, base, workers) as (journal, pool):
        # Seed by seed: a study that is stopped early has whole seeds to compare.
        cells = [(seed, name) for seed in numbers for name in VARIANTS]
        arguments = {
            (seed, name): (
                {**configs[seed].to_dict(), "strategies": _strategies(configs[seed], name)},
                str(studies.supernet_path(folder, f"{seed}-{'-'.join(VARIANTS[name]) or 'all'}")),
            )
            for seed, name in cells
        }
        trials.measured(
            "ablation_supernet", [(f"{seed}/{name}", ()) for seed, name in cells],
            Stage("supernet", studies.make_supernet), journal, pool, notify, [arguments[cell] for cell in cells],
        )  # fmt: skip
        judged = trials.measured(
            "ablation_judged", [(f"{seed}/{name}", ()) for seed, name in cells],
            Stage("judged", judge), journal, pool, notify, [(*arguments[cell], subnets) for cell in cells],
        )  # fmt: skip
        found = {name: [groups(judged[f"{seed}/{name}"], subnets) for seed in numbers] for name in VARIANTS}
        cell = judged[f"{numbers[0]}/all"]
        ratio = cell["images"] / cell["train_images"]
        variants = [
            {
                "name": name,
                "strategies": _strategies(first, name),
                "accuracy": {
                    group: {
                        "mean": statistics.fmean(runs[group] for runs in found[name]),
                        "sd": spread([runs[group] for runs in found[name]]),
                        "runs": [runs[group] for runs in found[name]],
                    }
                    for group in GROUPS
                },
            }
            for name in VARIANTS
        ]
        differences = [
            _difference(name, group, found["all"], found[name], ratio)
            for name in VARIANTS
            if name != "all"
            for group in GROUPS
        ]
        judgements = corrected([one for one in differences if one["group"] == "mean"])
        differences = [one for one in differences if one["group"] != "mean"] + judgements
        return studies.write(
            folder,
            NAME,
            first,
            {
                "complete": True,
                "seeds": numbers,
                "images": int(cell["images"]),
                "variants": variants,
                "differences": differences,
                "verdicts": [verdict(one) for one in judgements],
                "protocol": _protocol(first, subnets),
                "settings": {"subnets": subnets},
                "seconds": time.perf_counter() - start,
            },
        )


def _strategies(config: NasBnnSearchConfig, name: str) -> dict[str, Any]:
    """What `Strategies.to_dict()` is for a variant."""
    return {**config.strategies, **dict.fromkeys(VARIANTS[name], False)}


@candidates.single_threaded
def judge(genome: Genome, settings: dict[str, Any], path: str, subnets: int) -> dict[str, float]:
    """Inherited accuracy of the smallest, the biggest and random subnets of a supernet.

    Returns:
        smallest, biggest, random.0 ... (fractions right of the images outside the train part), images, train_images.
    """
    config = NasBnnSearchConfig.from_dict(settings)
    own, space = trials.parts(config), evaluate.search_space(config, window=False)
    chosen = studies.random_subnets(space, subnets, candidates.derive_seed(config.seed, "ablation"))
    named = {"smallest": space.smallest, "biggest": space.biggest}
    named |= {f"random.{index}": genome for index, genome in enumerate(chosen)}
    found = {}
    for name, one in named.items():
        right = trials.predictions(studies.inherit(config, space.subnet(one), path, own.train), own.held)
        found[name] = sum(right) / len(right)
    candidates.release_memory()
    return {**found, "images": float(len(own.held)), "train_images": float(len(own.train))}


def groups(metrics: Mapping[str, float], subnets: int) -> dict[str, float]:
    """Accuracy of the smallest, the biggest, the mean of the random ones, and the mean of all."""
    drawn = [metrics[f"random.{index}"] for index in range(subnets)]
    smallest, biggest = metrics["smallest"], metrics["biggest"]
    return {
        "smallest": smallest,
        "biggest": biggest,
        "random": statistics.fmean(drawn),
        "mean": statistics.fmean([smallest, biggest, *drawn]),
    }


def _difference(
    name: str, group: str, whole: Sequence[Mapping[str, float]], without: Sequence[Mapping[str, float]], ratio: float
) -> dict[str, Any]:
    """All strategies minus the variant, paired over seeds."""
    runs = [a[group] - b[group] for a, b in zip(whole, without, strict=True)]
    return {"variant": name, "group": group, **paired_runs(runs, ratio)}


def verdict(difference: Mapping[str, Any]) -> str:
    """What a difference of all strategies to a variant, `corrected`, allows to say."""
    name, mean = difference["variant"], 100 * difference["mean"]
    what = "All strategies together" if name == "none" else name.removeprefix("without ")
    if "low" not in difference:
        return f"{what}: {mean:+.1f} points with one seed, which decides nothing."
    text = said(difference, f"{mean:+.1f} points")
    verb = "bring" if name == "none" else "brings"
    match difference["outcome"]:
        case "better":
            return f"{what} {verb} accuracy ({text})."
        case "worse":
            return f"{what} {'cost' if name == 'none' else 'costs'} accuracy here ({text})."
    return f"{what}: no difference can be told ({text})."


def _protocol(config: NasBnnSearchConfig, subnets: int) -> list[str]:
    return [
        f"each supernet: {studies.recipe_of(config).epochs} epochs on the train part; within a seed the same split, "
        "batches and subnets for all variants",
        f"judged: the smallest, the biggest and {subnets} random subnets, weights inherited, batch norm measured anew, "
        "on all images outside the train part",
        "without Bi-Teacher the biggest binary subnet learns from labels and teaches the others; without "
        "Bi-Transformation small kernels are the plain centre of large ones; without Weight Normalization weights are "
        "not standardised",
        "interval: 95 %, t over the seeds of paired differences, corrected for images that their splits share (Nadeau "
        "and Bengio 2003)",
        f"verdicts: of the mean over subnets, {len(VARIANTS) - 1} in all; their p is corrected for that (Holm 1979), "
        "the intervals, each 95 % by itself, are not",
    ]
