"""Reports of BARS: a search by gradient, the studies of the method, and the methods against each other."""

from __future__ import annotations

import dataclasses
import json
import re
from random import Random

import pytest
from folders import bars_course, bars_folder, bars_study_folder, compare_folder, write_json
from report_page import page
from test_damaged import damage, refusal

from bitnas import report
from bitnas.files import CorruptFileError, read_json_checked, write_json_checked
from bitnas.methods.bars.description import DESCRIPTIONS, Description
from bitnas.models import bars as networks
from bitnas.report import bars_course as told
from bitnas.report import cells
from bitnas.report.figures import cells as drawings
from bitnas.report.load import load_run

CONFIG = "config.json"
SPACES = [
    *DESCRIPTIONS.values(),
    Description(name="one stage", layout="NNN", least_depth=1, channels=4, input_size=(1, 8, 8)),
    Description(
        name="shared",
        layout="NRRNN",
        topology=(0, 1, 1, 0, 0),
        operations=("skip", "binary_conv_1x1", "binary_dil_conv_3x3", "none"),
        width_groups="cell",
        least_depth=None,
        channels=8,
    ),
]


def space_of(description: Description) -> cells.Space:
    return cells.read_space("config.json", {"search": {"space": description.to_dict()}})


@pytest.mark.parametrize("description", SPACES, ids=lambda d: d.name)
def test_what_pictures_know_of_a_space_is_what_the_method_knows(description):
    space = space_of(description)
    assert cells.EDGES == networks.EDGES
    assert (space.stages, space.depth_choices) == (description.stages, description.depth_choices)
    assert space.stage_of == tuple(place.stage for place in description.places)
    assert space.width_of == tuple(place.width for place in description.places)
    assert space.topologies == description.topologies
    rng = Random(1)
    for _ in range(20):
        point = description.random(rng)
        found = cells.read_architecture("front.json", point.to_dict(), space)
        assert len(space.kept(found.depths)) == len(description.network(point).cells)
        for cell in point.cells:
            assert cells.live_nodes(cell) == networks.live_nodes(cell)
            assert cells.alive(cell) == networks.canonical(cell)


def test_names_of_operations():
    names = ("none", "skip", "binary_conv_3x3", "binary_dil_conv_5x5", "other_thing")
    assert [cells.short_name(name) for name in names] == ["none", "skip", "3×3", "5×5 d", "other_thing"]
    assert cells.long_name(names[3]) == "binary dilated 5×5"
    assert [cells.colour(name, names) for name in names] == ["op-none", "op-skip", "op-0", "op-1", "op-2"]


def edges_drawn(picture: str) -> list[str]:
    """What the edges of a picture say, such as "0 → 2: skip"."""
    return re.findall(r"<title>(\d → \d: [^<]*)</title>", picture)


def test_a_cell_is_drawn_edge_by_edge_and_nothing_out_of_a_dead_node():
    space = space_of(DESCRIPTIONS["small"])
    conv = "binary_conv_3x3"
    #       0>1    0>2    1>2    0>3   1>3     2>3    0>4  1>4    2>4   3>4
    cell = ("none", conv, conv, "skip", "skip", "none", conv, "none", "skip", conv)
    architecture = cells.Architecture((cell,) * 6, (1.0, 1.0, 1.0), (0, 0, 0))
    for width in (828, 356):
        picture = drawings.graphs(space, architecture, width)
        wanted = ["0 → 2: binary 3×3", "0 → 3: skip", "0 → 4: binary 3×3", "2 → 4: skip", "3 → 4: binary 3×3"]
        assert edges_drawn(picture) == wanted  # both reductions are of group 0, and no normal cell is kept
        assert picture.count("nothing reaches it") == 1
        assert "Group 0 · reduction, cells 3 and 6" in picture
    empty = cells.Architecture((("none",) * 10,) * 6, (1.0, 1.0, 1.0), (0, 0, 0))
    picture = drawings.graphs(space, empty, 828)
    assert edges_drawn(picture) == []
    assert "shortcut" in picture
    assert picture.count("nothing reaches it") == 5


def test_a_row_shows_channels_and_what_was_left_out():
    description = DESCRIPTIONS["small"]
    point = dataclasses.replace(description.biggest, depths=(1, 2, 0), widths=(0.5, 1.0, 0.25))
    network = description.network(point).to_dict()
    architecture = cells.read_architecture("front.json", point.to_dict(), space_of(description))
    picture = drawings.row(space_of(description), architecture, network, 828)
    said = re.findall(r"<title>(?:cell \d, group \d|stem): ([^<]*)</title>", picture)
    kept = [f"4 × {cell['channels']} channels" for cell in network["cells"]]
    assert said == ["4 × 4 channels", kept[0], "left out", *kept[1:], "left out"]


def test_a_search_shows_front_cells_and_how_choices_became_firm(tmp_path):
    found = page(bars_folder(tmp_path / "run"))
    for title in (
        "BARS: cells and layout of a binary network on digits",
        "What was searched",
        "The front: accuracy against cost",
        "Deployed: trained from scratch and frozen",
        "The derived cells",
        "How the choices became firm",
        "What failed, and why",
        "All results",
        "How to reproduce this",
    ):
        assert title in found.text, title
    assert "5 networks derived from one supernet and judged, 5 on the front." in found.text
    assert "All 60 edges are decided" in found.text
    assert "The expected FLOPs ended at 300 k, 0.750 times the budget of 400 k: the budget holds." in found.text
    assert "2 of 5 within the budget" not in found.text
    assert "have 70.0 k to 420 k FLOPs by the same count, 4 of 5 within the budget." in found.text
    assert "6 of 180 operations were pruned, the first in epoch 6." in found.text
    assert "The largest eigenvalue of the Hessian was 0.800 in epoch 4 and 1.20 in epoch 8." in found.text
    assert "bitnas latency build --method bars --space small --data digits --batch 32 --threads 1" in found.text
    assert "killed after the time limit of 60 s" in found.text
    assert "ratios" not in found.text
    assert found.tags.count("svg") % 2 == 0


def on_the_front(folder, *keep):
    """The page's text where the search has put these alone on its front, counted from the most accurate."""
    rows = json.loads((folder / "front.json").read_text())
    write_json(folder / "front.json", [rows[place] for place in keep])
    return page(folder).text


def wider(summary):
    """The second most accurate of five: its latency is not to be told from that of the first, 5 % above it."""
    first, second = summary["candidates"][5]["metrics"], summary["candidates"][4]["metrics"]
    second["accuracy"] = first["accuracy"] - 1 / 360
    second["latency_us"] = first["latency_us"] / 1.05
    second["latency_low_us"], second["latency_high_us"] = 0.97 * second["latency_us"], 1.03 * second["latency_us"]


def test_what_noise_left_out_of_the_front_is_named(tmp_path):
    folder = bars_folder(tmp_path / "run")
    assert "left out of the front" not in page(folder).text
    change_json(folder / "search.json", wider)
    text = on_the_front(folder, 0, 2, 3, 4)
    assert (
        "1 network was left out of the front though faster by the numbers: the latency could not be told apart" in text
    )
    assert "from that of a better one: 84.7 % at 429 µs, beside 85.0 % at 450 µs (front 1)." in text


def test_what_left_the_front_when_it_was_timed_again_is_named(tmp_path):
    text = on_the_front(bars_folder(tmp_path / "run"), 0, 1, 3, 4)
    assert "1 network was left out when the front was timed again" in text
    assert "better one: 79.0 % at 350 µs (first latency)." in text
    assert "though faster by the numbers" not in text


def test_a_supernet_at_chance_is_named(tmp_path):
    folder = bars_folder(tmp_path / "run")
    course = read_json_checked(folder / "course.json")
    assert "ended at chance" not in page(folder).text
    for accuracy, told_so in ((0.149, True), (0.151, False)):
        course[-1]["accuracy"] = accuracy
        write_json_checked(folder / "course.json", course)
        said = "The supernet ended at chance: it classifies 14.9 % of its training images right, guessing has 10.0 %."
        assert (said in page(folder).text) is told_so


def change_json(path, change):
    value = json.loads(path.read_text())
    change(value)
    write_json(path, value)


def test_a_search_whose_networks_are_not_judged_yet_has_a_page(tmp_path):
    folder = bars_folder(tmp_path / "run", judged=False)
    assert "The search by gradient has done its 8 epochs; no derived network has been judged yet." in page(folder).text
    (folder / "course.json").unlink()
    text = page(folder).text
    assert "The search by gradient is not finished" in text
    assert "How the choices became firm" not in text


@pytest.mark.parametrize(("favourite", "collapsed"), [("skip", True), ("binary_conv_3x3", False)])
def test_whether_skips_took_over_is_said(tmp_path, favourite, collapsed):
    text = page(bars_folder(tmp_path / "run", space="cifar", favourite=favourite, judged=False)).text
    assert ("Skips took over, from 50 % of the edges in the first epoch to 100 %" in text) == collapsed
    assert ("Skips did not take over: they are the likeliest operation from 50 %" in text) != collapsed


def test_undecided_edges_are_named():
    description = DESCRIPTIONS["small"]
    space = space_of(description)
    last = bars_course(description, 4, favourite="skip")[-1]
    assert told.undecided(space, last) == []
    last["probabilities"]["edges"][1][3] = [0.4, 0.35, 0.25]
    assert told.undecided(space, last) == [(1, (0, 3))]
    assert told._decided(space, last).startswith("1 of 60 edges was still undecided at the end")
    assert "(group 1: 0→3)" in told._decided(space, last)
    first = bars_course(description, 4)[0]
    assert told._decided(space, first).startswith("None of the 60 edges was decided")
    assert told._layout(space, first) == "No width and no depth was decided at the end."
    last["probabilities"]["widths"][1] = [0.25] * 4
    assert told._layout(space, last) == "Of widths and depths still undecided: the width of cells 2 to 4."


def test_a_course_of_one_epoch_and_of_one_operation_has_a_page(tmp_path):
    page(bars_folder(tmp_path / "one", epochs=3))
    description = dataclasses.replace(DESCRIPTIONS["small"], operations=("binary_conv_3x3",), least_depth=None)
    path = tmp_path / "space.json"
    write_json(path, description.to_dict())
    text = page(bars_folder(tmp_path / "run", space=str(path), epochs=3)).text
    assert "edges are decided" not in text
    assert "All widths and depths are decided." in text


@pytest.mark.parametrize("times", [25, pytest.param(600, marks=pytest.mark.slow)])
def test_a_changed_value_gives_a_page_or_a_refusal(tmp_path, times):
    folder, generator = bars_folder(tmp_path / "run", epochs=3), Random(times)
    names, refused = ("search.json", "front.json", CONFIG, "course.json"), 0
    for _ in range(times):
        name = generator.choice(names)
        before = (folder / name).read_text()
        (folder / name).write_text(damage(before, generator))
        why = refusal(folder)
        # An architecture that is whole may be refused because the space is another one now.
        assert why is None or name in why or (name == CONFIG and "front.json" in why) or "config.json" in why
        refused += why is not None
        (folder / name).write_text(before)
    assert 0 < refused < times


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"architecture": {"cells": [], "widths": [1.0], "depths": []}}, "architecture"),
        ({"architecture": 3}, "architecture"),
        ({"network": {"width": 4, "cells": []}}, "network"),
    ],
)
def test_what_is_no_network_of_the_space_is_refused(tmp_path, change, said):
    folder = bars_folder(tmp_path / "run", epochs=3)
    rows = json.loads((folder / "front.json").read_text())
    write_json(folder / "front.json", [{**rows[0], **change}])
    with pytest.raises(CorruptFileError, match=f"front.json: {said}"):
        report.build(folder)


def test_a_course_of_another_space_or_without_its_checksum_is_refused(tmp_path):
    folder = bars_folder(tmp_path / "run", epochs=3)
    whole = read_json_checked(folder / "course.json")
    write_json_checked(folder / "course.json", bars_course(DESCRIPTIONS["cifar"], 3))
    with pytest.raises(CorruptFileError, match="record 0: expected epoch 0 of the space"):
        report.build(folder)
    write_json(folder / "course.json", whole)
    with pytest.raises(CorruptFileError, match="course.json"):
        report.build(folder)


def test_the_real_training_writes_what_the_report_reads(tmp_path):
    from bitnas import data
    from bitnas.methods.bars.controller import Controller
    from bitnas.methods.bars.course import save_course
    from bitnas.methods.bars.prices import FlopPrices
    from bitnas.methods.bars.training import train

    description = Description(name="tiny", layout="NRN", channels=4, input_size=(1, 8, 8))
    path = tmp_path / "space.json"
    write_json(path, description.to_dict())
    folder = bars_folder(tmp_path / "run", space=str(path), epochs=4)
    parts = data.load("digits:4").split(0.5, 0.5, 0.0, 0)
    images = data.load("digits:4")
    controller = Controller(epochs=2, batch_size=20, cost="flops", flops_budget=1e6)
    _, course = train(
        description, controller, images.subset(parts.train), images.subset(parts.val), seed=0,
        prices={"flops": FlopPrices(description)},
    )  # fmt: skip
    save_course(course, folder / "course.json")
    run = load_run(folder)
    assert [record["epoch"] for record in run.course] == [0, 1]
    assert told.series(run.course, "expected", "flops")[-1][1] == course[-1]["expected"]["flops"]
    assert {"hessian", "alive", "factor", "loss", "accuracy", "arch_loss", "arch_accuracy"} <= course[-1].keys()
    assert told.series(run.course, "entropies", "edges")
    text = page(folder).text
    assert "The expected FLOPs ended at" in text


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("cells", "BARS: searched cells against random ones (digits)"),
        ("guards", "BARS: with and without each guard against collapse (digits)"),
        ("cost", "BARS: FLOPs or latency in the loss (digits)"),
        ("parts", "BARS: cells alone, layout alone, and both (digits)"),
    ],
)
def test_a_study_shows_its_networks_and_what_it_decides(tmp_path, name, title):
    folder = bars_study_folder(tmp_path / "study", name)
    found, text = read_json_checked(folder / f"{name}.json"), page(folder).text
    assert title in text
    assert all(verdict in text for verdict in found["verdicts"])
    assert all(variant["says"] in text for variant in found["variants"])
    assert "Imaginary CPU <5>" in text


def test_a_guard_without_which_searches_collapse_is_named(tmp_path):
    text = page(bars_study_folder(tmp_path / "study", "guards", collapsed="no guard")).text
    assert "On average more than half of the edges end without a convolution in: no guard (90 %)." in text
    text = page(bars_study_folder(tmp_path / "calm", "guards")).text
    assert "In no variant do more than half of the edges end without a convolution." in text


def test_studies_of_bars_share_a_page(tmp_path):
    for name in ("cells", "cost"):
        bars_study_folder(tmp_path / "both", name)
    assert "Studies of BARS" in page(tmp_path / "both").text
    compare_folder(tmp_path / "both")
    assert "Studies of several methods" in page(tmp_path / "both").text


@pytest.mark.parametrize("trained", [True, False])
def test_methods_stand_in_one_plane(tmp_path, trained):
    folder = compare_folder(tmp_path / "compare", trained=trained)
    found, read = read_json_checked(folder / "compare.json"), page(folder)
    assert "Methods under measured latency (digits)" in read.text
    assert "12 networks of 3 methods." in read.text
    assert all(verdict in read.text for verdict in found["verdicts"])
    for name in ("width evolution", "NAS-BNN", "BARS"):
        assert name in read.text
    assert ("Nothing was retrained" in read.text) != trained
    html = (folder / "report.html").read_text()
    plane = html[html.index("Accuracy against measured latency, by method") :].partition("</svg>")[0]
    assert plane.count("methodline") == 3
    assert [plane.count(f'class="op {css}"') - 1 for css in ("uniform", "searched", "op-1")] == [4, 4, 4]


@pytest.mark.parametrize("make", [bars_study_folder, compare_folder])
def test_a_study_whose_values_were_changed_is_refused(tmp_path, make):
    folder = make(tmp_path / "study")
    path = next(folder.glob("*.json"))
    path.write_text(path.read_text().replace('"digits"', '"digitz"', 1))
    with pytest.raises(CorruptFileError, match=path.name):
        report.build(folder)
