"""Reports of NAS-BNN: a search of subnets, and the studies of what the method claims."""

from __future__ import annotations

import json

import pytest
from folders import ablation_folder, against_folder, ranking_folder, subnet_folder, write_json
from report_page import page

from bitnas.report.load import load_run
from bitnas.report.subnets import best_of_buckets, binomial


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
    found = page(against_folder(tmp_path / "against"))
    assert "Three fronts under measured latency" in found.text
    assert "Which front is better?" in found.text
    assert "searched, fine-tuned" in found.text
    assert "Searched subnets (fine-tuned) have the better front than" in found.text


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
