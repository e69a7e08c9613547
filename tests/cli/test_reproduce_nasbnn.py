"""`bitnas reproduce nasbnn` with a study: what it takes, what it refuses, what it prints."""

from __future__ import annotations

import json

import pytest


def test_options_that_a_study_does_not_take_are_refused(run, tmp_path):
    for arguments, word in (
        (["--ranking"], "need --out"),
        (["--ranking", "--seeds", "2", "--out", str(tmp_path)], "--seeds says nothing about --ranking"),
        (["--ablation", "--repeats", "2", "--out", str(tmp_path)], "--repeats says nothing about --ablation"),
        (["--ranking", "--repeats", "1", "--out", str(tmp_path)], "repeats: got 1, wanted an integer of at least 2"),
    ):
        code, _, err = run("reproduce", "nasbnn", *arguments)
        assert code == 2
        assert word in err
        assert len(err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("option", ["epochs", "seeds", "repeats"])
def test_the_help_of_an_option_names_the_studies_that_take_it(option):
    from typing import get_type_hints

    from bitnas.cli.reproduce import reproduce
    from bitnas.cli.reproduce_nasbnn import _OPTIONS

    words = get_type_hints(reproduce, include_extras=True)[option].__metadata__[0].help
    assert {study for study in _OPTIONS if f"--{study}" in words} == {s for s, own in _OPTIONS.items() if option in own}


@pytest.mark.slow
def test_a_ranking_is_shown_goes_on_and_has_a_report(run, tmp_path):
    command = ["reproduce", "nasbnn", "--ranking", "--data", "digits:20", "--epochs", "1", "--repeats", "2"]
    command += ["--workers", "2", "--out", str(tmp_path)]
    code, out, _ = run(*command)
    assert code == 0
    assert "24 subnets, 80 unseen images" in out
    assert "two trainings alone agree" in out
    assert (tmp_path / "report.html").exists()
    code, out, _ = run(*command, "--json")
    assert code == 0
    found = json.loads(out)
    assert found["correlations"] == json.loads((tmp_path / "ranking.json").read_text())["correlations"]


def test_every_row_of_the_ranks_is_printed():
    """Those with an interval and the one with a p of permutations."""
    import random

    from bitnas.cli.reproduce_nasbnn import _TABLES
    from bitnas.methods.nasbnn import ranking

    rng, rows = random.Random(0), []
    for _ in range(24):
        ops, quality = rng.uniform(1e3, 1e5), rng.random()
        runs = [quality + rng.gauss(0, 0.05) for _ in range(2)]
        rows.append(
            {"inherited": quality, "inherited_val": quality, "ops": ops, "alone": sum(runs) / 2, "alone_test": runs[0],
             "alone_runs": runs, "alone_sd": 0.05}
        )  # fmt: skip
    found = ranking.correlations(rows, resamples=50)
    *_, (_, _, ranks) = _TABLES["ranking"]({"subnets": rows, "images": 100, "correlations": found})
    printed = {row[0]: row[2] for row in ranks}
    assert len(printed) == sum(one is not None for one in found.values())
    assert printed["beside ops"].startswith("p ")
    assert " to " in printed["inherited"]
