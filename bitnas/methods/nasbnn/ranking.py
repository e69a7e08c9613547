"""Do inherited weights rank subnets as training them alone does? Nothing in a search by a supernet holds otherwise.

Beside the answer stands what it must be judged by: how well OPs alone rank the same subnets, what inherited weights
know beside OPs, and how well one training from scratch ranks them like another. The last is a reference and no bound:
two noisy trainings agree less with each other than either does with a ranking without noise.
"""

from __future__ import annotations

import itertools
import math
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bitnas.methods import candidates, trials
from bitnas.methods.intervals import Interval, bootstrap, kendall, kendall_beside, spearman, spread
from bitnas.methods.nasbnn import evaluate, studies
from bitnas.methods.nasbnn.config import NasBnnSearchConfig, preset
from bitnas.methods.run_folder import Progress
from bitnas.search import Stage
from bitnas.search.space import Genome

NAME = "ranking"
EPOCHS = {"digits": 10}  # of a training from scratch; elsewhere the recipe's


def ranking(
    out: str | os.PathLike[str],
    *,
    data: str = "digits",
    subnets: int = 24,
    repeats: int = 2,
    epochs: int | None = None,
    settings: Mapping[str, Any] | None = None,
    workers: int | str | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Kendall's tau between inherited accuracy and accuracy after training from scratch; writes `ranking.json`.

    Goes on where it was stopped. Both accuracies are measured on all images that no training saw (the validation and
    the test part).

    Args:
        out: folder, made if missing.
        data: a data set `bitnas.data.load` knows.
        subnets: how many, spread over the OPs of the space; at least 3.
        repeats: trainings of each from scratch; at least 2, for the noise.
        epochs: of each; None for `EPOCHS`, or the recipe's.
        settings: of `NasBnnSearchConfig`, on top of the preset of the data set.
        workers: processes; None for the preset's.
        on_progress: called with {"event": "ranking_supernet" | "ranking_inherited" | "ranking_alone", "done", "total"}.

    Raises:
        ValueError: an argument is out of range.
        RuntimeError: a training failed.
        JournalMismatch: the folder holds a study of other settings.
    """
    for name, value, low in (("subnets", subnets, 3), ("repeats", repeats, 2), ("epochs", epochs or 1, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < low:
            raise ValueError(f"{name}: got {value!r}, wanted an integer of at least {low}")
    folder, notify, start = Path(out), on_progress or (lambda event: None), time.perf_counter()
    config = preset(data, **(settings or {}))
    if epochs is None:
        epochs = EPOCHS.get(Path(data).stem, studies.recipe_of(config).epochs)
    given = {"subnets": subnets, "repeats": repeats, "epochs": epochs}
    with studies.opened(folder, NAME, config, given, workers) as (journal, pool):
        values, path = config.to_dict(), str(studies.supernet_path(folder, NAME))
        trials.measured(
            "ranking_supernet", [("supernet", ())], Stage("supernet", studies.make_supernet), journal, pool, notify,
            [(values, path)],
        )  # fmt: skip
        space = evaluate.search_space(config, window=False)
        genomes = {space.subnet(genome).key(): genome for genome in studies.spread(space, subnets, config.seed)}
        inherited = trials.measured(
            "ranking_inherited", list(genomes.items()), Stage("inherited", judge_inherited), journal, pool, notify,
            [(values, path)] * len(genomes),
        )  # fmt: skip
        # Repeat by repeat: a study that is stopped early has all subnets once rather than some of them thrice.
        tasks = [(f"{key}/{epochs}/{repeat}", key, repeat) for repeat in range(repeats) for key in genomes]
        alone = trials.measured(
            "ranking_alone", [(task, genomes[key]) for task, key, _ in tasks], Stage("alone", train_alone), journal,
            pool, notify, [(values, epochs, repeat) for _, _, repeat in tasks],
        )  # fmt: skip
        rows: list[dict[str, Any]] = []
        for key, genome in genomes.items():
            subnet, own = space.subnet(genome), space.cost(genome)
            trained = [alone[f"{key}/{epochs}/{repeat}"] for repeat in range(repeats)]
            rows.append(
                {
                    "key": key,
                    "subnet": subnet.to_dict(),
                    "ops": float(own.ops),
                    "bops": float(own.bops),
                    "params": float(own.params),
                    "inherited": _held(inherited[key]),
                    "inherited_val": _share(inherited[key], "val"),
                    "alone": statistics.fmean(map(_held, trained)),
                    "alone_runs": [_held(one) for one in trained],
                    "alone_sd": spread([_held(one) for one in trained]),
                    "alone_test": statistics.fmean(_share(one, "test") for one in trained),
                }
            )
        first = next(iter(inherited.values()))
        found = correlations(rows, seed=config.seed)
        return studies.write(
            folder,
            NAME,
            config,
            {
                "complete": True,
                "subnets": rows,
                "images": int(first["val_images"] + first["test_images"]),
                "correlations": found,
                "verdicts": verdicts(found),
                "largest_gap": studies.largest_gap([row["ops"] for row in rows]),
                "protocol": _protocol(config, subnets, repeats, epochs, rows),
                "settings": given,
                "seconds": time.perf_counter() - start,
            },
        )


@candidates.single_threaded
def judge_inherited(genome: Genome, settings: dict[str, Any], path: str) -> dict[str, float]:
    """The subnet with inherited weights, batch norm measured on the train part; images right in val and test."""
    config = NasBnnSearchConfig.from_dict(settings)
    subnet = evaluate.search_space(config, window=False).subnet(genome)
    found = studies.counted(config, studies.inherit(config, subnet, path, trials.parts(config).train))
    candidates.release_memory()
    return found


@candidates.single_threaded
def train_alone(genome: Genome, settings: dict[str, Any], epochs: int, repeat: int) -> dict[str, float]:
    """The same subnet from random weights, trained on the train part with the supernet's recipe and plain labels."""
    from bitnas import train

    config = NasBnnSearchConfig.from_dict(settings)
    subnet = evaluate.search_space(config, window=False).subnet(genome)
    seed = candidates.derive_seed(config.seed, "alone", subnet.key(), repeat)
    model = trials.make_network(subnet, seed)
    train.fit(model, trials.parts(config).train, studies.recipe_of(config, epochs), seed=seed)
    found = studies.counted(config, model)
    candidates.release_memory()
    return found


def correlations(rows: Sequence[Mapping[str, Any]], *, resamples: int = 2000, seed: int = 0) -> dict[str, Any]:
    """Rank correlations of the rows, each with its 95 % bootstrap interval over subnets; None where undefined.

    Returns:
        inherited, ops: tau with the mean accuracy after training alone, with Spearman's rho beside;
        inherited_once: tau with a single training alone, mean over the repeats;
        repeats: tau between two trainings alone, mean over their pairs: a reference for `inherited_once`, no bound;
        beyond_ops: tau of inherited minus tau of OPs, over the same resamplings;
        beside_ops: tau of inherited accuracy and mean accuracy alone once a smooth function of log OPs is taken out of
            both, with the p-value of permutations in place of an interval: what inherited weights know of subnets
            beside their size (`intervals.kendall_beside`);
        disjoint: tau between inherited accuracy on the validation and mean accuracy alone on the test images.
    """
    alone = [row["alone"] for row in rows]
    runs = list(zip(*(row["alone_runs"] for row in rows), strict=True))
    own, ops = [row["inherited"] for row in rows], [row["ops"] for row in rows]

    def tau(a: Sequence[float], b: Sequence[float]) -> Callable[[Sequence[int]], float | None]:
        return lambda chosen: kendall([a[i] for i in chosen], [b[i] for i in chosen])

    def mean(statistics_: Sequence[Callable[[Sequence[int]], float | None]]) -> Callable[..., float | None]:
        def of(chosen: Sequence[int]) -> float | None:
            found = [value for value in (one(chosen) for one in statistics_) if value is not None]
            return statistics.fmean(found) if found else None

        return of

    def beyond(chosen: Sequence[int]) -> float | None:
        first, second = tau(own, alone)(chosen), tau(ops, alone)(chosen)
        return None if first is None or second is None else first - second

    wanted = {
        "inherited": tau(own, alone),
        "ops": tau(ops, alone),
        "inherited_once": mean([tau(own, run) for run in runs]),
        "repeats": mean([tau(a, b) for a, b in itertools.combinations(runs, 2)]),
        "beyond_ops": beyond,
        "disjoint": tau([row["inherited_val"] for row in rows], [row["alone_test"] for row in rows]),
    }
    found = {
        name: _interval(bootstrap(statistic, len(rows), repeats=resamples, seed=seed))
        for name, statistic in wanted.items()
    }
    beside = kendall_beside(own, alone, [math.log(value) for value in ops], repeats=resamples, seed=seed)
    found["beside_ops"] = None if beside is None else {"mean": beside.tau, "p": beside.p}
    for name, values in (("inherited", own), ("ops", ops)):
        if (one := found[name]) is not None:
            one["spearman"] = spearman(values, alone)
    return found


def verdicts(found: Mapping[str, Any]) -> list[str]:
    """What the correlations allow to say."""
    own, beyond, once, agreement = (found[name] for name in ("inherited", "beyond_ops", "inherited_once", "repeats"))
    if own is None:
        return ["All subnets are equally accurate, so nothing can be ranked."]
    text = f"tau {own['mean']:.2f}, 95 % interval {own['low']:.2f} to {own['high']:.2f}"
    said = [
        f"Inherited accuracy ranks the subnets like training them alone ({text})."
        if own["low"] > 0
        else f"It cannot be told that inherited accuracy ranks the subnets like training them alone ({text})."
    ]
    if beyond is not None and found["ops"] is not None:
        text = f"tau {found['ops']['mean']:.2f}; difference {beyond['mean']:+.2f}, {beyond['low']:+.2f} to "
        text += f"{beyond['high']:+.2f}"
        if beyond["low"] > 0:
            said.append(f"It ranks better than OPs alone do ({text}).")
        elif beyond["high"] < 0:
            said.append(f"OPs alone rank better than it does ({text}).")
        else:
            said.append(f"Whether it ranks better than OPs alone do cannot be told ({text}).")
    if (rest := found["beside_ops"]) is not None:
        text = f"tau {rest['mean']:+.2f} of what a smooth function of OPs leaves of both, p {_p(rest['p'])}"
        knows = "knows" if rest["p"] <= 0.05 and rest["mean"] > 0 else "cannot be told to know"
        said.append(f"Beside their OPs it {knows} what tells subnets apart ({text}).")
    if once is not None and agreement is not None:
        said.append(
            f"Against a single training alone its tau is {once['mean']:.2f}, against their mean {own['mean']:.2f}; two "
            f"trainings alone agree with {agreement['mean']:.2f}, a reference and no bound, since both are noisy."
        )
    return said


def _protocol(
    config: NasBnnSearchConfig, subnets: int, repeats: int, epochs: int, rows: Sequence[Mapping[str, Any]]
) -> list[str]:
    ops = [row["ops"] for row in rows]
    equal = (max(ops) / min(ops)) ** (1 / (len(ops) - 1))
    return [
        f"one supernet, {studies.recipe_of(config).epochs} epochs on the train part; its subnets inherit weights, and "
        "batch norm is measured anew on train images",
        f"{subnets} subnets, the smallest, the biggest and others drawn at equal steps of log OPs between them: OPs of "
        f"neighbours differ at most by a factor of {studies.largest_gap(ops):.3f}, where equal steps are {equal:.3f}",
        f"each is also trained from scratch {repeats} times, {epochs} epochs of the same recipe on the same images, "
        "with labels instead of a teacher",
        "accuracy: on all images outside the train part, the same for both; `disjoint` takes the validation part for "
        "inherited accuracy and the test part for training alone",
        "intervals: 95 %, percentiles of 2,000 resamplings of the subnets; they hold for subnets spread like these, "
        "whose range of OPs is the whole space",
        "beside OPs: a polynomial in log OPs, of the degree that predicts left-out subnets best, is taken out of both "
        "accuracies; p is two-sided, of 2,000 permutations of what is left, and 0.05 is asked for",
    ]


def _p(value: float) -> str:
    return "below 0.001" if value < 0.001 else f"{value:.3f}"


def _interval(found: Interval | None) -> dict[str, Any] | None:
    return None if found is None else {"mean": found.mean, "low": found.low, "high": found.high}


def _share(metrics: Mapping[str, float], part: str) -> float:
    return metrics[f"{part}_correct"] / metrics[f"{part}_images"]


def _held(metrics: Mapping[str, float]) -> float:
    return (metrics["val_correct"] + metrics["test_correct"]) / (metrics["val_images"] + metrics["test_images"])
