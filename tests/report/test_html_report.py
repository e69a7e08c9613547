"""The report of whole, unfinished and damaged run folders."""

from __future__ import annotations

import json
import re
import sqlite3

import pytest
from folders import (
    CHECK,
    add_summary,
    claim_folder,
    network,
    reproduction_folder,
    search_folder,
    study_folder,
    write_json,
)
from report_page import page

from bitnas import report
from bitnas.files import CorruptFileError, write_json_checked
from bitnas.search import Journal, Record
from bitnas.search.journal import JournalCorrupt


def test_a_whole_run_has_ten_sections_and_eight_figures_in_two_layouts(tmp_path):
    found = page(study_folder(tmp_path / "run"))
    assert found.tags.count("h2") == 10
    assert found.tags.count("figure") == 8
    assert found.tags.count("svg") == 16
    assert found.tags.count("figcaption") == 8


def test_a_run_whose_table_was_checked_has_two_more_figures(tmp_path):
    folder = add_summary(study_folder(tmp_path / "run"), source="table", check=CHECK)
    front = json.loads((folder / "front.json").read_text())
    write_json(folder / "front.json", [{**row, "searched_latency_us": 1.1 * row["latency_us"]} for row in front])
    found = page(folder)
    assert found.tags.count("figure") == 10
    assert "0.991" in found.text
    assert "was met" in found.text
    assert "all of it came out about 9 % faster than in the search" in found.text


def test_the_page_needs_no_network_and_no_script(tmp_path):
    claim_folder(reproduction_folder(add_summary(study_folder(tmp_path / "run"), check=CHECK)))
    found = page(tmp_path / "run")
    assert not {"script", "link", "img", "iframe", "object"} & set(found.tags)
    assert not {"src", "href", "srcset", "onload"} & {name for name, _ in found.attributes}
    text = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert "http" not in text
    assert "url(" not in text
    assert "@import" not in text


def test_building_again_gives_the_same_bytes_and_leaves_nothing_else(tmp_path):
    folder = study_folder(tmp_path / "run")
    before = {entry.name for entry in folder.iterdir()}
    first = report.build(folder).read_bytes()
    assert report.build(folder).read_bytes() == first
    assert {entry.name for entry in folder.iterdir()} == before | {"report.html"}


@pytest.mark.parametrize(
    ("gains", "sentence"),
    [
        ((0.021, 0.002, -0.003), "Searched widths beat uniform widths of equal FLOPs in 1 of 3 comparisons"),
        ((0.021, 0.012, -0.03), "In 1 the uniform widths win"),
        ((0.002, -0.001, 0.0), "The search did not beat uniform widths"),
        ((-0.02, -0.02, -0.02), "the uniform networks win every comparison"),
    ],
)
def test_the_headline_follows_the_intervals(tmp_path, gains, sentence):
    assert sentence in page(study_folder(tmp_path / "run", gains)).text


def test_the_gain_is_in_the_headline_with_its_interval(tmp_path):
    text = page(study_folder(tmp_path / "run")).text
    assert "+2.1 points" in text
    assert "+1.5 to +2.7" in text


def test_slow_layers_are_named(tmp_path):
    text = page(study_folder(tmp_path / "run")).text
    assert "packed is slower in conv6" in text
    assert "3.4× slower" in text


def test_the_pair_in_which_operations_mislead_is_stated(tmp_path):
    folder = search_folder(tmp_path / "run", latency=False)
    times = [10.0, 20.0, 90.0, 40.0, 50.0]
    networks = [
        network("searched", str(i), (1.0,) * 6, 0.9, ops=1e5 * i, latency_us=us, latency_iqr_us=2.0)
        for i, us in enumerate(times, 1)
    ]
    write_json(folder / "study.json", {"networks": networks, "claims": []})
    text = page(folder).text
    assert "40 % fewer OPs than another (300 k against 500 k) and yet takes 1.80 times as long" in text
    assert "is 0.70 over 5 networks" in text


def test_no_pair_misleads_when_time_follows_operations(tmp_path):
    folder = search_folder(tmp_path / "run", latency=False)
    networks = [network("searched", str(i), (1.0,) * 6, 0.9, ops=1e4 * i, latency_us=10.0 * i) for i in range(1, 6)]
    write_json(folder / "study.json", {"networks": networks, "claims": []})
    text = page(folder).text
    assert "No network with clearly fewer OPs takes clearly longer" in text
    assert "is 1.00 over 5 networks" in text


def test_failures_are_listed_with_reason_and_number(tmp_path):
    assert re.search(r"loss is not finite after epoch 1\s*2", page(search_folder(tmp_path / "run")).text)


def test_the_command_to_reproduce_is_quoted_for_a_shell(tmp_path):
    assert (
        "bitnas search --model vgg_small --data digits --seed 7 --out 'runs/one two'"
        in page(search_folder(tmp_path / "run")).text
    )


def test_only_a_configuration(tmp_path):
    write_json(tmp_path / "config.json", {})
    found = page(tmp_path)
    assert "has not measured a network yet" in found.text
    assert "figure" not in found.tags


def test_a_search_without_study(tmp_path):
    found = page(search_folder(tmp_path / "run"))
    assert "none has been retrained" in found.text
    assert found.tags.count("figure") == 5
    assert "The study of searched against uniform widths has not been run yet." in found.text


def test_a_search_without_latency(tmp_path):
    text = page(search_folder(tmp_path / "run", latency=False)).text
    assert "No latency was measured in this run" in text
    assert "OPs cannot be compared" in text


def test_a_study_with_holes(tmp_path):
    folder = search_folder(tmp_path / "run")
    hole = dict.fromkeys(network("searched", "A", (1.0,) * 6, 0.9)) | {"kind": "searched", "pair": "A"}
    bare = {"label": "u", "kind": "uniform", "pair": "A", "accuracy": 0.9}
    write_json(folder / "study.json", {"networks": [hole, bare, {}], "claims": [{}]})
    assert "no verdict" in page(folder).text


def test_a_pair_that_could_not_be_compared_is_listed(tmp_path):
    folder = study_folder(tmp_path / "run")
    study = json.loads((folder / "study.json").read_text())
    del study["networks"][0]
    study["claims"][0] |= {"outcome": "failed", "verdict": "not compared, a training failed: out of time"}
    write_json(folder / "study.json", study)
    assert "searched A and uniform A: not compared, a training failed: out of time." in page(folder).text


def test_one_candidate_and_equal_values(tmp_path):
    folder = search_folder(tmp_path / "run", generations=1)
    networks = [
        network(kind, "A", (1.0,) * 6, 1.0, accuracy_low=1.0, accuracy_high=1.0) for kind in ("searched", "uniform")
    ]
    write_json(folder / "study.json", {"networks": networks, "claims": []})
    found = page(folder)
    assert "nan" not in "".join(value or "" for _, value in found.attributes)
    assert "This run cannot tell them apart" in found.text


def test_everything_from_files_is_escaped(tmp_path):
    """Every string of every file replaced by one that would run if it were not escaped."""
    evil = "<script>alert('x')</script>\"><img src=x>"
    keep = {"kind", "status", "pair", "folder", "source", "genome", "key"}

    def poison(value, name=""):
        if isinstance(value, dict):
            return {key: poison(item, key) for key, item in value.items()} | {evil: evil}
        if isinstance(value, list):
            return [poison(item, name) for item in value]
        return evil if isinstance(value, str) and name not in keep else value

    folder = add_summary(study_folder(tmp_path / "run"), source="table", check=CHECK, over=(5,))
    claim_folder(reproduction_folder(folder))
    for path in (*folder.glob("*.json"), folder / "seed-0" / "config.json"):
        write_json(path, poison(json.loads(path.read_text())))
    found = page(folder)
    assert not {"script", "img"} & set(found.tags)
    assert found.text.count("alert('x')") > 100


def test_a_file_with_a_checksum_is_read_and_the_checksum_not_shown(tmp_path):
    folder = search_folder(tmp_path / "run")
    for name in ("front.json", "config.json"):
        write_json_checked(folder / name, json.loads((folder / name).read_text()))
    assert "sha256" not in page(folder).text
    (folder / "front.json").write_text((folder / "front.json").read_text().replace("0.9", "0.8", 1))
    with pytest.raises(CorruptFileError, match=r"front\.json"):
        report.build(folder)


def test_stages_after_the_search_are_no_candidates_and_no_failures(tmp_path):
    folder = search_folder(tmp_path / "run")
    before = page(folder).text
    with Journal(folder / "journal.sqlite", meta={"seed": 7}) as journal:
        fields = {"genome": (1.0,) * 6, "generation": 0}
        journal.add(Record.failure("lost the clock", key=f"{4:064x}", stage="front-latency", **fields))
        journal.add(Record.of({"accuracy": 1.0}, key="x/runoff/0", stage="claim-runoff", **fields))
        journal.add(Record.of({"latency_us": 9.0}, key="unit", stage="latency", **fields))
    assert page(folder).text == before


def test_a_missing_folder_and_a_folder_without_configuration(tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        report.build(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r"not a run folder: it holds no config\.json"):
        report.build(tmp_path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("config.json", "{"),
        ("config.json", "[]"),
        ("config.json", b"\xff\xfe"),
        ("front.json", "{}"),
        ("front.json", "[1]"),
        ("study.json", '{"networks": 3}'),
        ("study.json", '{"networks": [], "claims": ["yes"]}'),
        ("study.json", '{"networks": [{"widths": "wide"}]}'),
        ("front.json", '[{"ratios": [1, null]}]'),
        ("front.json", '[{"accuracy": 1, "sha256": "00"}]'),
        ("search.json", "["),
        ("search.json", "[]"),
        ("search.json", '{"candidates": [{"ratios": [1], "status": "fine", "generation": 0}]}'),
        ("search.json", '{"candidates": [{"ratios": [1], "status": "ok", "generation": -1}]}'),
        ("search.json", '{"fronts": [1]}'),
        ("search.json", '{"latency": {"table_check": {"pairs": [[1, 0]]}}}'),
        ("reproduction.json", '{"tables": [{"rows": [{"flops": 3}]}]}'),
        ("reproduction.json", "3"),
        ("claim.json", '{"runs": [{"seed": 1}]}'),
        ("claim.json", '{"runs": {}}'),
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    folder = study_folder(tmp_path / "run")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorruptFileError, match=re.escape(name)):
        report.build(folder)
    assert not (folder / "report.html").exists()


def test_a_damaged_journal_is_refused(tmp_path):
    folder = search_folder(tmp_path / "run")
    with sqlite3.connect(folder / "journal.sqlite") as db:
        db.execute("UPDATE evaluations SET reason = 'edited' WHERE sequence = 3")
    db.close()
    with pytest.raises(JournalCorrupt, match=r"journal\.sqlite"):
        report.build(folder)
