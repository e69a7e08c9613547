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
from bitnas.models.bars import EDGES, canonical
from bitnas.models.operations import NONE, SKIP
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
    # Besides: the preset, no guard, the classical search; but two more ways to have the weights ahead.
    assert variants.spared(base) == ["uniform phase", "delayed controller"]
    assert len(found) == 3 + len(variants.guards(controller, base.space["operations"])) - 2
    for name, variant in found.items():
        made = Controller.from_dict(variant.config(base).controller)
        changed = {key for key, value in made.to_dict().items() if value != controller.to_dict()[key]}
        assert changed <= set(variant.controller), name
        assert bool(changed) == (name != variants.PRESET), name
    bare = Controller.from_dict(found[variants.NO_GUARD].config(base).controller)
    assert not any(guard.used(bare) for guard in variants.guards(bare, base.space["operations"]))
    classical = Controller.from_dict(found[variants.CLASSICAL].config(base).controller)
    assert (classical.micro, classical.macro, classical.epochs) == ("softmax", "softmax", 2 * controller.epochs)
    assert not any(guard.used(classical) for guard in variants.guards(classical, ("skip",)) if guard.kind)


def test_no_variant_has_bernoulli_beside_none():
    """The logit of none would get no gradient from the loss, and its share at the end would be no collapse."""
    base = preset("digits")
    found = {variant.name: variant.config(base).controller["micro"] for variant in variants.of_guards(base)}
    assert set(found.values()) == {"gumbel", "softmax"}
    assert found["without Gumbel noise"] == found[variants.NO_GUARD] == found[variants.CLASSICAL] == "softmax"
    plan = module._Plan(
        "guards", base, tuple(variants.of_guards(base)), (0,), 1, module._recipe(base, 1), None, 0.1, ()
    )
    assert any(line.startswith("Bernoulli") for line in module._protocol(plan, [{"latency_us": 1.0}]))

    space = {**base.space, "operations": ["skip", "binary_conv_3x3"]}
    found = {
        v.name: v.config(base).controller["micro"] for v in variants.of_guards(dataclasses.replace(base, space=space))
    }
    assert found["without one operation for an edge"] == found[variants.NO_GUARD] == "bernoulli"


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


def test_edges_without_effect_do_not_differ():
    one = TINY.random(Random(0))
    cell, *others = one.cells
    edges = 10 * TINY.topologies
    assert variants.differing(one, one) == (0, edges)
    none = dataclasses.replace(one, cells=((NONE,) * 10, *others))
    used = [operation for operation in canonical(cell) if operation != NONE]
    assert variants.differing(one, none) == (len(used), edges)
    # Nothing reaches the second node, so what leaves it is as none.
    assert any(source == 2 for source, _ in EDGES)
    cut, other = (
        [NONE if end == 2 else dead if source == 2 else SKIP for source, end in EDGES] for dead in (NONE, SKIP)
    )
    pair = (dataclasses.replace(one, cells=(tuple(c), *others)) for c in (cut, other))
    assert variants.differing(*pair) == (0, edges)


class ByCells:
    """Prices by which a network takes the root of its FLOPs: shares of both ranges would not match."""

    unit = "us"

    def __init__(self, description):
        self.flops = FlopPrices(description)

    def of(self, architecture):
        return self.flops.of(architecture) ** 0.5


def test_budgets_in_the_loss_ask_for_the_same_networks():
    space = Description(name="small", layout="NNRNN", channels=8, input_size=(1, 8, 8))
    flops, latency = FlopPrices(space), ByCells(space)
    shares = {variants.SMALL: 0.1, variants.LARGE: 0.35}
    found = variants.matched(space, flops, latency, shares=shares, count=300, within=0.1, seed=0)
    rng = Random(1)
    costs = [flops.of(space.random(rng)) for _ in range(1000)]
    for own, share in zip(found, shares.values(), strict=True):
        assert own.networks > 1
        assert own.latency == pytest.approx(own.flops**0.5, rel=0.05)
        assert sum(cost < own.flops for cost in costs) / 1000 == pytest.approx(share, abs=0.07)
    settings = [variant.controller for variant in variants.of_cost(found)]
    assert [one.get("flops_budget") for one in settings[::2]] == [own.flops for own in found]
    assert [one.get("latency_budget") for one in settings[1::2]] == [own.latency for own in found]
    assert len({variant.name for variant in variants.of_cost(found)}) == 4


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
    for row in randoms:
        assert row["cost_ratio"] == row["loss_flops"] / own["loss_flops"]
        assert 0 < row["edges_differ"] <= row["edges"] == 10 * space.topologies
    differ = sum(row["edges_differ"] for row in randoms) / 2
    assert any(f"differ from it on {differ:.1f} of {row['edges']} edges" in line for line in found["protocol"])
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
    monkeypatch.setattr(variants, "of_guards", lambda base: [*every(base)[:2], *every(base)[-2:]])
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


def made_up(variant, seed, wrong, latency=100.0, skips=0.1, flops=1e5):
    """A run that has so many of 200 images wrong."""
    right = [n >= wrong for n in range(200)]
    return {
        "variant": variant, "seed": seed, "label": variant, "right": right, "accuracy": sum(right) / 200,
        "test_images": 200, "train_images": 800, "latency_us": latency, "operations": 7e7, "skips": skips,
        "loss_flops": flops,
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


def test_flops_are_those_of_the_cells_where_these_have_any():
    """Stem and classifier, which no variant changes, would hide most of a difference."""
    rows = [made_up(variants.SEARCHED, seed, 10 + seed, flops=1e5) for seed in range(2)]
    rows += [made_up(variants.RANDOM, seed, 20, flops=2e5) for seed in range(2)]
    (found,) = comparisons.compared("cells", rows, [])
    assert found["flops_ratio"] == pytest.approx(0.5)
    assert "at 0.50x the FLOPs of the cells and 1.00x the latency" in found["verdict"]
    (found,) = comparisons.compared("cells", [*rows[:3], {**rows[3], "loss_flops": 0.0}], [])
    assert found["flops_ratio"] is None
    assert "at 1.00x the latency" in found["verdict"]


def of_cost(small=20, large=10):
    """Latency in the loss: at the small budget half the latency, at the large one the same, and so many wrong."""
    rows = []
    for seed in range(3):
        for budget, wrong, fast, slow in ((variants.SMALL, small, 50, 100), (variants.LARGE, large, 200, 200)):
            by_latency, by_flops = (variants.at(kind, budget) for kind in (variants.IN_LATENCY, variants.IN_FLOPS))
            rows.append(made_up(by_latency, seed, wrong + seed, latency=fast + 0.5 * seed))
            rows.append(made_up(by_flops, seed, 20, latency=slow + 2 * seed))
    return rows


def test_costs_are_compared_on_both_axes_at_each_budget():
    found = {(one["what"], one["first"]): one for one in comparisons.compared("cost", of_cost(), [])}
    small, large = (variants.at(variants.IN_LATENCY, budget) for budget in (variants.SMALL, variants.LARGE))
    assert list(found) == [
        ("latency", small), ("latency", large), ("accuracy", small), ("accuracy", large), ("area", variants.IN_LATENCY)
    ]  # fmt: skip
    faster = found["latency", small]
    assert faster["difference"] == pytest.approx(-0.5, abs=0.01)
    assert faster["latency_ratio"] == pytest.approx(0.5, abs=0.01)
    assert faster["accuracy_difference"] == pytest.approx(-0.005)
    assert "faster (-50." in faster["verdict"]
    assert "at 1.00x the FLOPs of the cells and -0.5 points of accuracy" in faster["verdict"]
    assert found["accuracy", small]["outcome"] == "undecided"
    assert "0.50x the latency" in found["accuracy", small]["verdict"]
    assert found["accuracy", large]["difference"] == pytest.approx(0.045)
    area = found["area", variants.IN_LATENCY]
    assert area["difference"] > 0
    assert "cannot be told apart in the area under accuracy against latency (+" in area["verdict"]
    assert "of one verdict)" in area["verdict"]


def test_the_area_of_two_networks_by_hand():
    rows = [row for row in of_cost() if row["seed"] == 0]
    area = comparisons.compared("cost", rows, [])[-1]
    width, height = area["reference"]["latency_us"], 1 - area["reference"]["accuracy"]
    floor = 1 - height
    one = (200 - 50) * (0.9 - floor) + (width - 200) * (0.95 - floor)
    other = (200 - 100) * (0.9 - floor) + (width - 200) * (0.9 - floor)
    assert area["difference"] == pytest.approx((one - other) / (width * height))
    assert "which decides nothing" in area["verdict"]


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
