"""How far latencies can be trusted: the check of a table, and one measurement against another."""

from __future__ import annotations

import json

import pytest
from folders import CHECK, add_summary, search_folder, write_json
from report_page import page

from bitnas.report import agreement


def test_a_shift_that_all_share_is_told_apart_from_scatter():
    found = agreement.agree([(110.0, 100.0), (220.0, 200.0), (336.6, 300.0)])
    assert found.networks == 3
    assert found.bias == pytest.approx(0.10)
    assert found.median == pytest.approx(0.10)
    assert found.worst == pytest.approx(0.122)
    assert found.scatter == pytest.approx(0.0, abs=1e-12)
    assert found.worst_scatter == pytest.approx(0.02)
    assert found.rank == pytest.approx(1.0)
    assert agreement.agree([]) is None


def test_a_run_with_latency_and_no_table_says_how_to_get_a_check(tmp_path):
    folder = search_folder(tmp_path / "run")
    for text in (page(folder).text, page(add_summary(folder)).text):
        assert "There is no device table in this run" in text
        assert "bitnas latency build --model vgg_small --data digits --batch 32\n" in text
        assert "bitnas latency check --model vgg_small --data digits --batch 32" in text


def test_a_table_that_was_never_checked_is_told(tmp_path):
    text = page(add_summary(search_folder(tmp_path / "run"), source="table")).text
    assert "never checked against whole networks" in text
    assert "predicted latency" in text
    assert "bitnas latency check --model" in text
    assert "bitnas latency build" not in text


@pytest.mark.parametrize("name", ["goal_met", "good"])
def test_a_table_that_missed_its_goal_is_a_warning(tmp_path, name):
    check = {key: value for key, value in CHECK.items() if key != "goal_met"} | {name: False}
    found = page(add_summary(search_folder(tmp_path / "run"), source="table", check=check))
    assert "NOT met" in found.text
    assert "may have thrown away networks" in found.text
    assert ("class", "warning") in found.attributes
    assert "21.0 %" in found.text  # the worst error
    assert "0.8 %" in found.text  # of measuring twice


def test_a_run_without_latency_has_no_such_section(tmp_path):
    assert "How true are the latencies?" not in page(search_folder(tmp_path / "run", latency=False)).text


@pytest.mark.parametrize(("factor", "words"), [(0.8, "25 % slower"), (1.25, "20 % faster"), (1.01, None)])
def test_the_second_timing_of_the_front_is_set_beside_the_first(tmp_path, factor, words):
    folder = add_summary(search_folder(tmp_path / "run"))
    front = json.loads((folder / "front.json").read_text())
    write_json(folder / "front.json", [{**row, "searched_latency_us": factor * row["latency_us"]} for row in front])
    text = page(folder).text
    assert "should be read as equally fast" in text
    assert ("Compare dots with dots" in text) == (words is not None)
    assert words is None or words in text
