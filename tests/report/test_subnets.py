"""Reports of NAS-BNN: a search of subnets, and the studies of what the method claims."""

from __future__ import annotations

import json
import re

import pytest
from folders import ablation_folder, against_folder, ranking_folder, subnet_folder, write_json
from report_page import page

from bitnas.report.figures.supernet import curves, drawn
from bitnas.report.load import load_run
from bitnas.report.subnets import best_of_buckets, binomial
from bitnas.report.supernet_log import read_log


def test_a_search_shows_front_archive_training_subnets_and_what_was_deployed(tmp_path):
    found = page(subnet_folder(tmp_path / "run"))
    for title in (
        "NAS-BNN: subnets of a binary supernet on digits",
        "The front: accuracy against cost",
        "Deployed: inherited weights and fine-tuned ones",
        "What the subnets look like",
        "The archive by OPs",
        "Training of the supernet",
        "The course of the search",
        "How true are the latencies?",
        "All results",
        "How to reproduce this",
    ):
        assert title in found.text, title
    assert "Deployed, B fine-tuned reaches" in found.text
    assert "Subnet A: fine-tuning gains accuracy, +4.0 points" in found.text
    assert "8 epochs; the loss ended at 0.250." in found.text
    assert "killed after the time limit of 60 s" in found.text
    assert "the 95 % interval of an accuracy on 360 images" in found.text
    assert "bitnas latency build --method nasbnn --space small --data digits" in found.text
    assert "ratios" not in found.text
    assert found.tags.count("svg") % 2 == 0


def test_a_search_without_latency_or_study_says_so(tmp_path):
    found = page(subnet_folder(tmp_path / "run", latency=False, archive=True, study=False))
    assert "No subnet has been deployed yet: bitnas resume --study does it." in found.text
    assert "Against OPs" in found.text
    assert "Against latency" not in found.text
    assert "The search keeps the most accurate subnet of each" in found.text
    assert "Accuracy that can be had for a given OPs after each generation." in found.text


def test_a_search_that_has_just_begun_has_a_page(tmp_path):
    folder = subnet_folder(tmp_path / "run", study=False)
    for name in ("front.json", "search.json", "supernet.csv"):
        (folder / name).unlink()
    assert "This run has not measured a subnet yet." in page(folder).text


def test_the_archive_keeps_the_best_of_each_bucket(tmp_path):
    run = load_run(subnet_folder(tmp_path / "run"))
    best = best_of_buckets(run)
    for place, candidate in best:
        inside = [c for c in run.candidates if round(c.metrics["ops"] / 2e3) == place]
        assert candidate.metrics["accuracy"] == max(c.metrics["accuracy"] for c in inside)
    assert [place for place, _ in best] == sorted({round(c.metrics["ops"] / 2e3) for c in run.candidates})


def test_the_interval_of_an_accuracy_is_wilsons():
    low, high = binomial(0.8, 10) or (0.0, 0.0)
    assert (round(low, 4), round(high, 4)) == (0.4902, 0.9433)
    assert binomial(0.8, None) is None
    assert binomial(None, 10) is None


def test_a_ranking_shows_its_correlations_and_every_subnet(tmp_path):
    found = page(ranking_folder(tmp_path / "ranking"))
    assert "Do a supernet's subnets rank like the same subnets trained alone? (digits)" in found.text
    assert "Inherited accuracy ranks the subnets like training them alone" in found.text
    assert "one training alone, with another" in found.text
    assert "12 subnets from the smallest to the biggest, judged on 719 images" in found.text
    assert "the same, both without what a smooth function of OPs explains" in found.text
    assert re.search(r"p 0\.\d{3}", found.text)
    assert "expected" not in found.text
    assert "Imaginary CPU <5>" in found.text


@pytest.mark.parametrize("seeds", [1, 3])
def test_an_ablation_shows_every_variant_with_its_interval(tmp_path, seeds):
    found = page(ablation_folder(tmp_path / "ablation", seeds))
    assert "What the training strategies of NAS-BNN bring (digits)" in found.text
    for name in ("Bi-Teacher", "Bi-Transformation", "Weight Normalization"):
        assert f"without {name}" in found.text
        assert f"{name} brings accuracy" in found.text or seeds == 1
    assert ("decides nothing" in found.text) == (seeds == 1)


def test_three_fronts_stand_in_one_plane_with_what_can_be_told(tmp_path):
    found = page(against_folder(tmp_path / "against", seeds=3))
    assert "Three fronts under measured latency" in found.text
    assert "Which front is better?" in found.text
    assert "searched, fine-tuned" in found.text
    assert "Searched subnets (fine-tuned) have the better front than" in found.text
    # An interval beyond 0 is not enough where four are looked at.
    text = page(against_folder(tmp_path / "fewer", seeds=2)).text
    assert "95 % interval +0.9 to +12.8, 2 seeds, p 0.17 among 4 verdicts" in text
    assert "have the better front than" not in text


def test_studies_in_one_folder_share_a_page_and_may_lie_in_a_run_folder(tmp_path):
    folder = ablation_folder(ranking_folder(tmp_path / "both"))
    text = page(folder).text
    assert "Studies of NAS-BNN" in text
    subnet_folder(folder)
    text = page(folder).text
    assert "NAS-BNN: subnets of a binary supernet on digits" in text
    assert "Inherited accuracy against training alone" in text


def test_an_unfinished_comparison_says_so(tmp_path):
    from bitnas.files import read_json_checked, write_json_checked

    folder = against_folder(tmp_path / "against", seeds=1)
    found = read_json_checked(folder / "against.json")
    write_json_checked(folder / "against.json", {**found, "complete": False})
    assert "The study is not finished." in page(folder).text


def test_a_failed_training_of_a_deployed_subnet_is_named(tmp_path):
    folder = subnet_folder(tmp_path / "run")
    study = json.loads((folder / "study.json").read_text())
    study["claims"][0] |= {"outcome": "failed", "verdict": "not compared, a training failed: killed"}
    del study["claims"][0]["difference"]
    write_json(folder / "study.json", study)
    assert "A fine-tuned and A inherited: not compared, a training failed: killed." in page(folder).text


def change(folder, name, edit):
    found = json.loads((folder / name).read_text())
    edit(found)
    write_json(folder / name, found)


def only_the_front_timed(folder, objectives):
    """What a search leaves that had no use for latency: the front alone is timed, at the end."""
    change(folder, "config.json", lambda config: config["search"].update(objectives=objectives))
    change(folder, "search.json", lambda found: [c["metrics"].pop("latency_us", 0) for c in found["candidates"]])
    return folder


@pytest.mark.parametrize(
    ("objectives", "said", "order"),
    [
        (["archive"], ["The front was chosen by OPs, not by latency,"], ("Against OPs", "Against latency")),
        (["accuracy", "flops"], ["The front was chosen by FLOPs, not by OPs,",
                                 "The front was chosen by FLOPs, not by latency,"], ("Against latency", "Against OPs")),
    ],
)  # fmt: skip
def test_the_line_is_explained_by_what_chose_the_front(tmp_path, objectives, said, order):
    text = page(only_the_front_timed(subnet_folder(tmp_path / "run", study=False), objectives)).text
    assert "The front is that of" not in text
    assert text.count("the line need not pass through all of it") == len(said)
    assert all(sentence in text for sentence in said)
    assert "Only the front was timed, when the search was over" in text
    assert text.index(order[0]) < text.index(order[1])


@pytest.mark.parametrize("budget", [False, True])
def test_a_front_of_several_costs_is_explained_under_each(tmp_path, budget):
    folder = subnet_folder(tmp_path / "run", archive=budget)
    if budget:
        change(folder, "config.json", lambda config: config["search"].update(latency_budget=900.0))
    text = page(folder).text
    assert "The front is that of latency too, so the line need not pass" in text
    assert "The front is that of OPs too, so the line need not pass" in text
    assert "Only the front was timed" not in text


def test_ops_are_set_against_the_latencies_of_the_front_where_no_others_are(tmp_path):
    folder = only_the_front_timed(subnet_folder(tmp_path / "run", archive=True), ["archive"])
    front = json.loads((folder / "front.json").read_text())
    text = page(folder).text
    assert "cannot be compared with it" not in text
    assert f"over {len(front)} networks. " in text
    assert "These are the networks of the front alone" in text
    change(folder, "front.json", lambda rows: rows.__delitem__(slice(1, None)))
    (folder / "study.json").unlink()
    assert "Only front 1 has a latency: with one network OPs cannot be compared with it." in page(folder).text


def test_a_noisy_timing_gives_no_factor_and_is_called_noisy(tmp_path):
    folder = subnet_folder(tmp_path / "run")
    calm = page(folder).text
    assert "Its float32 twin" in calm
    assert "oisy" not in calm
    for noise in ({"latency_noisy": True}, {"float_latency_us": 4e3, "float_latency_iqr_us": 3e3}):
        change(folder, "study.json", lambda found, noise=noise: [n.update(noise) for n in found["networks"]])
        text = page(folder).text
        assert "(timing noisy)." in text
        assert "measured latency (timing noisy)" in text
        assert "Timing noisy: A, B." in text
        assert "Its float32 twin" not in text
        change(folder, "study.json", lambda found: [n.update(latency_noisy=False) for n in found["networks"]])


def test_one_epoch_is_a_sentence_and_more_are_a_figure_of_epochs(tmp_path):
    folder = subnet_folder(tmp_path / "run")
    rows = (folder / "supernet.csv").read_text().splitlines()
    (folder / "supernet.csv").write_text("\n".join(rows[:2]) + "\n")
    found = page(folder)
    assert "1 epoch; the loss ended at 2.000. Validation accuracy ended at 50.0 %. It took 2.50 s." in found.text
    assert "Course of the supernet's training" not in (folder / "report.html").read_text()
    (folder / "supernet.csv").write_text("\n".join(rows[:3]) + "\n")
    drawing = curves(read_log(folder / "supernet.csv"), 1000) or ""
    assert [word for word in re.findall(r'"middle">([^<]*)</text>', drawing) if word] == ["1", "2"]


def test_subnets_are_drawn_in_the_order_of_their_numbers(tmp_path):
    run = load_run(subnet_folder(tmp_path / "run"))
    numbers = [int(network.label.removeprefix("front ")) for network in drawn(run.front)]
    assert numbers == sorted(numbers)
    assert {numbers[0], numbers[-1]} == {1, len(run.front)}
    assert [n.label for n in drawn(run.front[::-1])] == [f"front {i}" for i in numbers[::-1]]
