"""The studies of BARS in a tiny space: what is compared, that nothing is done twice, and what may be said of it."""

from __future__ import annotations

import dataclasses
from random import Random

import pytest

from bitnas.files import read_json_checked
from bitnas.methods import candidates
from bitnas.methods.bars import comparisons, study_tasks, variants
from bitnas.methods.bars import study as module
from bitnas.methods.bars.config import preset
from bitnas.methods.bars.controller import Controller
from bitnas.methods.bars.description import Description
from bitnas.methods.bars.prices import FlopPrices
from bitnas.methods.bars.study import study
from bitnas.search import Stage
from bitnas.search.journal import JournalMismatch

DATA = "digits:20"
TINY = Description(name="tiny", layout="NRN", channels=4, input_size=(1, 8, 8))
QUICK = {"space": TINY, "latency_batch": 1, "workers": 0}
OPTIONS = {"data": DATA, "seeds": 1, "epochs": 1, "search_epochs": 2, "settings": QUICK}


@pytest.fixture(autouse=True)
def quick_timings(monkeypatch):
    monkeypatch.setattr(candidates, "FRONT_SECONDS", 0.01)


# ---- variants -----------------------------------------------------------------------------------


def test_each_guard_is_taken_away_or_added_alone():
    controller = Controller(warmup_epochs=3, full_start=True)
    base = dataclasses.replace(preset(DATA), controller=controller.to_dict())
    found = {variant.name: variant for variant in variants.of_guards(base)}
    used = {"warm-up", "full start", "one operation for an edge", "entropy"} - {"one operation for an edge"}
    assert {name.removeprefix("without ") for name in found if name.startswith("without")} == used
    assert len(found) == 2 + len(variants.guards(controller))
    for name, variant in found.items():
        made = Controller.from_dict(variant.config(base).controller)
        changed = {key for key, value in made.to_dict().items() if value != controller.to_dict()[key]}
        assert changed <= set(variant.controller), name
        assert bool(changed) == (name != variants.PRESET), name
    bare = Controller.from_dict(found[variants.NO_GUARD].config(base).controller)
    assert not any(guard.used(bare) for guard in variants.guards(bare))


def test_a_shorter_search_keeps_the_shares_of_its_phases():
    long = Controller(
        epochs=50,
        warmup_epochs=10,
        hessian_every=5,
        prune={"kind": "steps", "start": 0.0, "steps": [[20, 0.01], [40, 0.02]]},
        temperature_edges={"kind": "linear", "start": 5.0, "end": 1.0, "from": 10, "to": 40},
    ).to_dict()
    short = Controller.from_dict(variants.for_epochs(long, 5))
    assert (short.epochs, short.warmup_epochs, short.hessian_every) == (5, 1, 1)
    assert short.prune.steps == ((2, 0.01), (4, 0.02))
    assert (short.temperature_edges.first, short.temperature_edges.last) == (1, 4)
    Controller.from_dict(variants.for_epochs(long, 1))
    assert variants.for_epochs(long, 50) == long


def test_parts_hold_the_other_part_still():
    base = preset("digits")
    micro, macro, joint = (variant.config(base) for variant in variants.of_parts(base, 1e5))
    cells, layout, both = (Description.from_dict(config.space) for config in (micro, macro, joint))
    assert (cells.widths, {len(choices) for choices in cells.depth_choices}) == ((1.0,), {1})
    assert cells.operations == both.operations
    assert layout.operations == ("binary_conv_3x3",)
    assert (layout.widths, layout.depth_choices) == (both.widths, both.depth_choices)
    assert {config.controller["flops_budget"] for config in (micro, macro, joint)} == {1e5}


def test_random_cells_of_equal_cost_differ_in_their_cells_alone():
    space = Description(name="small", layout="NNRNN", channels=8, input_size=(1, 8, 8))
    prices, own = FlopPrices(space), space.random(Random(1))
    drawn = variants.equal_cost(space, own, prices, 6, seed=0, within=0.05)
    assert drawn == variants.equal_cost(space, own, prices, 6, seed=0, within=0.05)
    assert len({space.network(one).key() for one in (own, *drawn)}) == 7
    for one in drawn:
        assert (one.widths, one.depths) == (own.widths, own.depths)
        assert abs(prices.of(one) / prices.of(own) - 1) <= 0.05
    # Far from where the walk began: of 50 edges a draw shares about a third.
    shared = [sum(a == b for x, y in zip(one.cells, own.cells, strict=True) for a, b in zip(x, y, strict=True))
              for one in drawn]  # fmt: skip
    edges = 10 * space.topologies
    assert sum(shared) / len(shared) < 0.75 * edges


# ---- studies ------------------------------------------------------------------------------------


def test_a_study_measures_every_network_and_is_made_once(tmp_path, monkeypatch):
    events = []
    options = {**OPTIONS, "randoms": 2}
    # A searched network with operations, whatever two epochs derive: half of its edges convolve.
    space = module.evaluate.description(module._base(DATA, QUICK, 2))
    genome = space.genome(space.random(Random(4)))
    monkeypatch.setattr(study_tasks, "genome_of", lambda metrics: genome)
    found = study("cells", tmp_path, **options, on_progress=events.append)
    assert events[0]["event"] == "study_plan"
    assert (events[0]["searches"], events[0]["trainings"]) == (1, 3)
    assert {e["event"] for e in events[1:]} == {"variant_search", "variant_training", "variant_timing"}
    assert found == read_json_checked(tmp_path / "cells.json")
    own, *randoms = found["runs"]
    assert (own["kind"], [row["kind"] for row in randoms]) == ("searched", ["random"] * 2)
    assert (len(own["course"]), own["epochs"]) == (2, 2)
    for row in found["runs"]:
        assert row["verified"]["dots_equal"]
        assert row["latency_us"] > 0
        assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
        assert (tmp_path / row["file"]).exists()
        assert abs(row["loss_flops"] / own["loss_flops"] - 1) <= module.WITHIN
    (comparison,) = found["comparisons"]
    mean = sum(row["accuracy"] for row in randoms) / 2
    assert comparison["difference"] == pytest.approx(own["accuracy"] - mean)
    assert len(comparison["images"]) == 2
    assert "one seed, which decides nothing" in comparison["verdict"]

    def refuse(*_, **__):
        raise AssertionError("made again")

    monkeypatch.setattr(study_tasks, "search_one", refuse)
    monkeypatch.setattr(study_tasks, "train_one", refuse)
    monkeypatch.setattr(module, "Stage", lambda name, *_, **kw: Stage(name, refuse, **kw))
    again = study("cells", tmp_path, **options)
    assert again["runs"] == found["runs"]
    with pytest.raises(JournalMismatch):
        study("cells", tmp_path, **{**options, "search_epochs": 3})


def test_studies_in_a_folder_share_what_they_have_in_common(tmp_path, monkeypatch):
    """The base of the guards is the search of the cells; a lost course is made again, and says the same."""
    every = variants.of_guards
    monkeypatch.setattr(variants, "of_guards", lambda base: [*every(base)[:2], every(base)[-1]])
    first = study("cells", tmp_path, **OPTIONS)
    (course,) = (tmp_path / "courses").glob("*.json")
    before = [row["course"] for row in first["runs"] if row["kind"] == "searched"]
    course.unlink()
    events = []
    guards = study("guards", tmp_path, **OPTIONS, on_progress=events.append)
    replayed = [e for e in events if e["event"] == "variant_search" and e["replayed"]]
    assert len(replayed) == 1
    preset_row, *_ = guards["runs"]
    assert [preset_row["course"]] == before
    assert preset_row["accuracy"] == first["runs"][0]["accuracy"]
    assert {row["variant"] for row in guards["runs"]} == {variant["name"] for variant in guards["variants"]}
    assert sum("end as skips" in verdict for verdict in guards["verdicts"]) == len(guards["variants"])


def test_a_search_stopped_within_its_training_goes_on(tmp_path, monkeypatch):
    from bitnas.methods.bars import training

    config = module._base(DATA, QUICK, 2).to_dict()
    whole, stopped = tmp_path / "whole.json", tmp_path / "stopped.json"
    genome = study_tasks.search_one((), config, str(whole))
    real = training.train

    def interrupted(*args, **options):
        def stop(record):
            raise KeyboardInterrupt

        return real(*args, **options, on_epoch=stop)

    monkeypatch.setattr(training, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        study_tasks.search_one((), config, str(stopped))
    monkeypatch.setattr(training, "train", real)
    assert stopped.with_suffix(".ckpt.safetensors").exists()
    assert study_tasks.search_one((), config, str(stopped)) == genome
    courses = [study_tasks.course_of(config, str(path)) for path in (whole, stopped)]
    assert [[{**r, "seconds": 0} for r in course] for course in courses] == [
        [{**r, "seconds": 0} for r in courses[0]]
    ] * 2
    assert not stopped.with_suffix(".ckpt.safetensors").exists()


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("topology", {}, "study: got 'topology', wanted one of cells, guards, cost, parts"),
        ("cells", {"randoms": 0}, "randoms: got 0"),
        ("cells", {"seeds": []}, "seeds: got"),
        ("cost", {"share": 1.5}, "share: got 1.5"),
    ],
)
def test_wrong_arguments_are_named_before_anything_is_made(tmp_path, name, options, message):
    with pytest.raises(ValueError, match=message):
        study(name, tmp_path / "new", **{**OPTIONS, **options})
    assert not (tmp_path / "new").exists()


# ---- what may be said ---------------------------------------------------------------------------


def made_up(variant, seed, wrong, latency=100.0, skips=0.1, operations=1e5):
    """A run that has so many of 200 images wrong."""
    right = [n >= wrong for n in range(200)]
    return {
        "variant": variant, "seed": seed, "label": variant, "right": right, "accuracy": sum(right) / 200,
        "test_images": 200, "train_images": 800, "latency_us": latency, "operations": operations, "skips": skips,
        "none": 0.0, "key": f"{variant}{seed}",
    }  # fmt: skip


def test_verdicts_say_what_three_seeds_allow():
    rows = [made_up(variants.SEARCHED, seed, 10) for seed in range(3)]
    rows += [made_up(variants.RANDOM, seed, 50 + seed) for seed in range(3)]
    (found,) = comparisons.compared("cells", rows, [])
    assert found["outcome"] == "better"
    assert found["difference"] == pytest.approx(0.205)
    assert found["low"] > 0
    assert found["verdict"].startswith("Searched cells against random cells: more accurate (+20.5 points")
    assert comparisons.described("cells", rows)[0].startswith("Searched cells beat 3 of 3")

    noisy = [made_up(variants.SEARCHED, seed, 10 + 20 * seed) for seed in range(3)]
    noisy += [made_up(variants.RANDOM, seed, 30 - 5 * seed) for seed in range(3)]
    (found,) = comparisons.compared("cells", noisy, [])
    assert found["outcome"] == "undecided"
    assert "cannot be told apart in accuracy" in found["verdict"]
    (found,) = comparisons.compared("cells", rows[:1] + rows[3:4], [])
    assert "outcome" not in found
    assert "one seed, which decides nothing" in found["verdict"]


def test_latencies_are_compared_as_ratios():
    rows = [made_up(variants.IN_LATENCY, seed, 20, latency=50 + seed) for seed in range(3)]
    rows += [made_up(variants.IN_FLOPS, seed, 20, latency=100 + 2 * seed) for seed in range(3)]
    latency, accuracy = comparisons.compared("cost", rows, [])
    assert (latency["what"], accuracy["what"]) == ("latency", "accuracy")
    assert latency["difference"] == pytest.approx(-0.5)
    assert latency["latency_ratio"] == pytest.approx(0.5)
    assert "faster (-50.0 % of its latency" in latency["verdict"]
    assert accuracy["difference"] == 0
    assert accuracy["outcome"] == "undecided"


def test_collapse_is_said_and_equal_networks_are_not_compared():
    names = [variants.PRESET, "without entropy", variants.NO_GUARD]
    rows = [
        made_up(name, seed, 20, skips=0.9 if name == variants.NO_GUARD else 0.1) for name in names for seed in (0, 1)
    ]
    for row in rows:
        if row["variant"] == "without entropy":
            row["key"] = f"{variants.PRESET}{row['seed']}"
    said = comparisons.described("guards", rows)
    assert said[2].startswith("No guard: 90 % of the edges end as skips, 0 % as none; more than half of the edges")
    assert said[2].endswith("compute nothing with 2 of 2 seeds.")
    assert "more than half" not in said[0]
    found = comparisons.compared("guards", rows, names)
    assert [(one["second"], one["what"]) for one in found] == [
        ("without entropy", "accuracy"),
        (variants.NO_GUARD, "accuracy"),
        (variants.NO_GUARD, "free"),
    ]
    assert found[0]["verdict"] == "The preset against without entropy: the same networks with every seed."
    assert found[2]["difference"] == pytest.approx(-0.8)
