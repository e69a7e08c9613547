"""Files whose values were changed: a page or a refusal that names the file, never a crash."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import (
    CHECK,
    ablation_folder,
    add_summary,
    against_folder,
    claim_folder,
    ranking_folder,
    reproduction_folder,
    study_folder,
    subnet_folder,
    write_json,
)  # fmt: skip

from bitnas import report
from bitnas.files import CorruptFileError

NAMES = ("search.json", "front.json", "study.json", "reproduction.json", "claim.json", "config.json")
WRONG: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, -5.5, "x", "", [], {}, [1], ["a"], {"a": 1}, 10**400, float("nan"), float("inf"), [None],
)  # fmt: skip


def whole_folder(folder: Path) -> Path:
    """All that a folder can hold."""
    add_summary(study_folder(folder), source="table", check=CHECK, over=(5,))
    front = json.loads((folder / "front.json").read_text())
    write_json(folder / "front.json", [{**row, "searched_latency_us": 1.1 * row["latency_us"]} for row in front])
    return claim_folder(reproduction_folder(folder))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def damage(text: str, generator: random.Random) -> str:
    """The JSON with one member removed or replaced; every kind of member is as likely, however often it occurs."""
    value = json.loads(text)
    kinds: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
    for place in places(value):
        kinds.setdefault(tuple(key for key in place if isinstance(key, str)), []).append(place)
    place = generator.choice(kinds[generator.choice(list(kinds))])
    parent = value
    for key in place[:-1]:
        parent = parent[key]
    if generator.random() < 0.15:
        del parent[place[-1]]
    else:
        parent[place[-1]] = generator.choice(WRONG)
    return json.dumps(value)


def refusal(folder: Path) -> str | None:
    """Why the report refuses the folder, or None if it was built."""
    try:
        report.build(folder)
    except CorruptFileError as error:
        return str(error)
    return None


@pytest.mark.parametrize("times", [25, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", [whole_folder, subnet_folder])
def test_a_changed_value_gives_a_page_or_a_refusal(tmp_path, times, kind):
    folder, generator = kind(tmp_path / "run"), random.Random(times)
    outcomes = {"page": 0, "refused": 0}
    for _ in range(times):
        name = generator.choice([name for name in NAMES if (folder / name).exists()])
        before = (folder / name).read_text()
        (folder / name).write_text(damage(before, generator))
        refused = refusal(folder)
        assert refused is None or name in refused
        outcomes["page" if refused is None else "refused"] += 1
        (folder / name).write_text(before)
    assert min(outcomes.values()) > 0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("front.json", {"accuracy": 1.5}),
        ("front.json", {"latency_us": -3.0}),
        ("front.json", {"flops": "many"}),
        ("study.json", {"float_latency_us": 0}),
        ("study.json", {"layers": 3}),
    ],
)
def test_figures_that_no_network_can_have_are_refused(tmp_path, name, change):
    folder = study_folder(tmp_path / "run")
    content = json.loads((folder / name).read_text())
    (content if isinstance(content, list) else content["networks"])[0].update(change)
    write_json(folder / name, content)
    with pytest.raises(CorruptFileError, match=f"{name}: .*{next(iter(change))}"):
        report.build(folder)


@pytest.mark.parametrize("make", [ranking_folder, ablation_folder, against_folder])
def test_a_study_whose_values_were_changed_is_refused(tmp_path, make):
    """Its checksum vouches for all of it, so that not one changed value is shown."""
    folder, generator = make(tmp_path / "study"), random.Random(1)
    path = next(folder.glob("*.json"))
    text = path.read_text()
    report.build(folder)
    for _ in range(8):
        changed = damage(text, generator)
        if json.loads(changed) != json.loads(text):
            path.write_text(changed)
            with pytest.raises(CorruptFileError, match=path.name):
                report.build(folder)
    path.write_text(text.replace("-1", "-2", 1))
    with pytest.raises(CorruptFileError, match=path.name):
        report.build(folder)


@pytest.mark.parametrize(
    "change",
    [{"subnet": 3}, {"subnet": {"stem": 8}}, {"subnet": {"stem": 8, "blocks": [{"channels": "x", "kernel": 3}]}},
     {"subnet": {"stem": -8, "blocks": [{"channels": 8, "kernel": 3}]}}],
)  # fmt: skip
def test_what_is_no_subnet_is_refused(tmp_path, change):
    folder = subnet_folder(tmp_path / "run")
    for name in ("front.json", "search.json"):
        text = (folder / name).read_text()
        content = json.loads(text)
        (content if isinstance(content, list) else content["candidates"])[0].update(change)
        write_json(folder / name, content)
        with pytest.raises(CorruptFileError, match=f"{name}: subnet"):
            report.build(folder)
        (folder / name).write_text(text)


@pytest.mark.parametrize("text", ["", "epoch,loss\n0,\n", "a,b\n1,2\n", "epoch,loss,val_accuracy\n0,1.5,7\n", "\x00"])
def test_a_training_log_that_is_none_is_refused_or_left_out(tmp_path, text):
    folder = subnet_folder(tmp_path / "run")
    (folder / "supernet.csv").write_text(text)
    refused = refusal(folder)
    assert refused is None if text in ("", "\x00") else refused and "supernet.csv" in refused
