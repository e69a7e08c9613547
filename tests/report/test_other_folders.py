"""The report of a reproduction, of a claim, and of what their real writers leave."""

from __future__ import annotations

import json
import math

import pytest
from folders import add_summary, claim_folder, reproduction_folder, search_folder, write_json
from report_page import page

from bitnas.report.equal_cost import uniform_of
from bitnas.report.load import load_run
from bitnas.search import NSGA2, Journal, Stage, WidthSpace, run_search


def test_a_reproduction_has_a_page_of_its_own(tmp_path):
    found = page(reproduction_folder(tmp_path / "rep"))
    assert "A paper (arXiv 1234.5678): printed and recomputed" in found.text
    assert "Of 7 printed figures 4 were recomputed: 3 are equal to the last printed digit" in found.text
    assert "1 differs. Found in the paper: 1 misprint." in found.text
    assert "Table 1: vgg_small on CIFAR-10" in found.text
    assert "≠\u00a053.7 [1]" in found.text
    assert "printed 53.6, the quotient is 53.7" in found.text
    assert "net auto is printed as no less accurate than net x2 and is 3.0 times as fast." in found.text
    assert found.text.index("This speed-up is a misprint.") < found.text.index("That one follows.")
    assert "bitnas reproduce shen2019 --out DIR --table 1" in found.text
    assert "The study of" not in found.text


def test_a_reproduction_by_noisy_timings_says_so(tmp_path):
    folder = reproduction_folder(tmp_path / "rep")
    result = json.loads((folder / "reproduction.json").read_text())
    result["tables"][0]["rows"][1]["latency"]["noisy"] = True
    write_json(folder / "reproduction.json", {**result, "complete": False})
    text = page(folder).text
    assert "by these noisy timings" in text
    assert "bitnas reproduce --retime" in text
    assert "not finished" in text


@pytest.mark.slow
def test_the_real_tables_are_shown_row_by_row(tmp_path):
    from bitnas.methods.width.reproduce import reproduce

    result = reproduce(tmp_path, tables=(1,), latency=False)
    found = page(tmp_path)
    for row in result["tables"][0]["rows"]:
        assert row["label"] in found.text
        assert f"{row['flops']['ours']:,.0f}" in found.text
    for finding in result["findings"]:
        assert finding["statement"] in found.text


@pytest.mark.parametrize(
    ("differences", "outcome", "sentence"),
    [
        ((0.02, 0.03, 0.025), "better", "Searched widths beat uniform widths of equal FLOPs: over 3 seeds"),
        ((-0.02, -0.03, -0.025), "worse", "Uniform widths beat searched widths of equal FLOPs: over 3 seeds"),
        ((0.01, -0.01, 0.0), "undecided", "It cannot be told whether"),
        ((0.01,), "better", "1 seed so far: too few for a verdict."),
    ],
)
def test_a_claim_has_a_page_of_its_own(tmp_path, differences, outcome, sentence):
    found = page(claim_folder(tmp_path / "claim", differences, outcome))
    assert "Do searched widths beat uniform ones on digits?" in found.text
    assert sentence in found.text
    assert f"{40 * len(differences)} networks were searched" in found.text
    assert found.tags.count("svg") == 4
    assert "Imaginary CPU <5>" in found.text  # the machine, from the first seed's own folder
    assert f"--claim --data digits --seeds {len(differences)} --epochs 20 --out DIR" in found.text


def test_a_claim_of_unequal_cost_is_called_unfair(tmp_path):
    folder = claim_folder(tmp_path / "claim")
    assert "no fair comparison" not in page(folder).text
    result = json.loads((folder / "claim.json").read_text())
    result["runs"][1]["flops_ratio"] = 1.2
    write_json(folder / "claim.json", result)
    assert "costs over 2 % more in seed 1 (1.20×): no fair comparison." in page(folder).text
    result["runs"][1]["flops_ratio"] = 0.9
    write_json(folder / "claim.json", result)
    text = page(folder).text
    assert "costs over 2 % less in seed 1 (0.90×): that is to its disadvantage." in text
    assert "no fair comparison" not in text


def test_a_folder_of_everything_has_the_sections_of_all(tmp_path):
    folder = add_summary(search_folder(tmp_path / "run"))
    claim_folder(reproduction_folder(folder))
    found = page(folder)
    assert "Width search of a binary vgg_small on digits" in found.text
    assert "Searched against uniform widths, seed by seed" in found.text
    assert "Table 1: vgg_small on CIFAR-10" in found.text


def test_the_loop_of_the_search_writes_what_the_report_reads(tmp_path):
    """search.json by its real writer, of a search with a failure and a limit in every generation."""
    from bitnas.methods.width import WidthSearchConfig
    from bitnas.methods.width.search import summary

    config = WidthSearchConfig(objectives=("accuracy", "latency"), population=6, generations=3)
    write_json(tmp_path / "config.json", {"search": config.to_dict()})
    space = WidthSpace((0.5, 1.0, 2.0, 4.0), 3)
    with Journal(tmp_path / "journal.sqlite", meta={}) as journal:
        result = run_search(
            NSGA2(space, objectives=2, population=6, seed=1),
            [Stage("train", _measure)],
            config.search_objectives(),
            journal,
            generations=3,
            limit=lambda metrics: "beyond 8 us" if metrics["latency_us"] > 8 else None,
            on_generation=summary(tmp_path, config, None).write,
        )
    run = load_run(tmp_path)
    status = [candidate.status for candidate in {c.key: c for c in result.candidates}.values()]
    assert [len(run.candidates), len(run.failures), len(run.rejected)] == [
        status.count(name) for name in ("ok", "failed", "rejected")
    ]
    assert min(len(run.failures), len(run.rejected)) > 0
    assert len(run.fronts) == 3
    assert set(run.fronts[-1]) == {candidate.key for candidate in result.front}
    text = page(tmp_path).text
    assert "the narrow ones break" in text
    assert "beyond 8 us" in text


def _measure(genome: tuple[float, ...]) -> dict[str, float]:
    if genome[0] == 0.5:
        raise ArithmeticError("the narrow ones break")
    return {"accuracy": 1 - 0.1 / math.prod(genome), "latency_us": sum(genome), "flops": 9 * sum(genome), "ops": 1.0}


def test_the_uniform_network_of_equal_cost_is_read_off_those_measured(tmp_path):
    """FLOPs of a uniform network are 30 m + 5 m^2 here; at 81.25 that is m = 2.5."""
    folder = search_folder(tmp_path / "run", generations=1)
    candidates = [
        {
            "key": str(m),
            "ratios": [m, m],
            "status": "ok",
            "generation": 0,
            "metrics": {"accuracy": 0.9, "flops": 30 * m + 5 * m * m},
        }
        for m in (1.0, 2.0, 4.0)
    ]
    write_json(folder / "search.json", {"candidates": candidates})
    row = {"ratios": [4.0, 1.0], "widths": [32, 16], "flops": 30 * 2.5 + 5 * 2.5**2, "accuracy": 0.95}
    other = {**row, "ratios": [1.0, 2.0], "widths": [8, 32]}
    write_json(folder / "front.json", [row, other, {**row, "flops": 1e6}])
    run = load_run(folder)
    partner = uniform_of(run, run.front[0])
    assert partner.widths == [20, 40]
    assert partner.label == "uniform × 2.50"
    assert uniform_of(run, run.front[2]) is None
    assert "uniform × 2.50" in page(folder).text
    named = {**row, "uniform": {"multiplier": 2.4, "widths": [19, 38], "flops": 80.0}}
    write_json(folder / "front.json", [named])
    run = load_run(folder)
    assert uniform_of(run, run.front[0]).widths == [19, 38]
