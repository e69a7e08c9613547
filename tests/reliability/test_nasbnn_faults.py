"""A search by NAS-BNN whose candidates are killed, hang and take all memory: each is a record, the others are fine."""

import dataclasses

import pytest

import bitnas.methods.nasbnn as nasbnn
from bitnas.methods.nasbnn import evaluate
from bitnas.methods.nasbnn.search import _strategy
from bitnas.search.journal import read_journal
from tests.methods.test_nasbnn_search import TINY
from tests.reliability import faulty_subnets


@pytest.mark.slow
def test_candidates_that_end_badly_cost_nobody_else(tmp_path, monkeypatch):
    config = dataclasses.replace(TINY, generations=1, workers=1, timeout=20.0, memory_limit=1.5)
    good = nasbnn.search(dataclasses.replace(TINY, generations=1), tmp_path / "good")
    folder = tmp_path / "run"
    first = _strategy(config, evaluate.search_space(config)).ask()
    monkeypatch.setattr(evaluate, "evaluate_candidate", faulty_subnets.judge)

    def places(event):
        (folder / "places.txt").write_text("\n".join(repr(list(genome)) for genome in first))

    nasbnn.search(config, folder, supernet=tmp_path / "good" / "supernet.safetensors", on_progress=places)
    found = {r.genome: r for r in read_journal(folder / "journal.sqlite")[1] if r.stage == "inherit"}
    expected = {r.genome: r for r in read_journal(good.folder / "journal.sqlite")[1] if r.stage == "inherit"}
    for place, genome in enumerate(first):
        if place in faulty_subnets.FAULTS:
            assert found[genome].status == "failed"
            assert found[genome].reason.startswith(faulty_subnets.FAULTS[place][1]), found[genome].reason
        else:
            assert found[genome].metrics == expected[genome].metrics
