"""The report of whole, unfinished and damaged run folders."""

from __future__ import annotations

import json
import re
import sqlite3
from html.parser import HTMLParser
from pathlib import Path

import pytest
from folders import CONFIG, network, search_folder, study_folder, write_json

from bitnas import report
from bitnas.files import CorruptFileError
from bitnas.search.journal import JournalCorrupt

_VOID = {"meta", "br", "hr", "img", "link", "line", "path", "rect", "polyline"}


class _Page(HTMLParser):
    """Checks that every element is closed in order, and collects text, tags and attributes."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs
        if tag not in _VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += attrs

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.text += data


def page(folder: Path) -> _Page:
    found = _Page(report.build(folder).read_text(encoding="utf-8"))
    assert found.open == []
    return found


def test_a_whole_run_has_eight_sections_and_six_figures_in_two_layouts(tmp_path):
    found = page(study_folder(tmp_path / "run"))
    assert found.tags.count("h2") == 8
    assert found.tags.count("figure") == 6
    assert found.tags.count("svg") == 12
    assert found.tags.count("figcaption") == 6


def test_the_page_needs_no_network_and_no_script(tmp_path):
    found = page(study_folder(tmp_path / "run"))
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
    assert found.tags.count("figure") == 3
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
    evil = "<script>alert('x')</script>\"><img src=x>"
    folder = study_folder(tmp_path / "run")
    config = {**CONFIG, "machine": {evil: evil}, "command": evil, "versions": {evil: [evil]}, "seed": evil}
    config["search"] = {"model": evil, "data": evil}
    write_json(folder / "config.json", config)
    networks = []
    for kind in ("searched", "uniform"):
        made = network(kind, evil, (1.0,) * 6, 0.9, label=evil)
        made["layers"][0]["name"] = evil
        networks.append(made)
    write_json(
        folder / "study.json",
        {"networks": networks, "claims": [{"outcome": "failed", "verdict": evil}], "protocol": {evil: evil}},
    )
    found = page(folder)
    assert not {"script", "img"} & set(found.tags)
    assert "alert('x')" in found.text


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
    ],
)
def test_a_damaged_file_is_named(tmp_path, name, content):
    folder = study_folder(tmp_path / "run")
    (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(CorruptFileError, match=name):
        report.build(folder)
    assert not (folder / "report.html").exists()


def test_a_damaged_journal_is_refused(tmp_path):
    folder = search_folder(tmp_path / "run")
    with sqlite3.connect(folder / "journal.sqlite") as db:
        db.execute("UPDATE evaluations SET reason = 'edited' WHERE sequence = 3")
    db.close()
    with pytest.raises(JournalCorrupt, match=r"journal\.sqlite"):
        report.build(folder)
