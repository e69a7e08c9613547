"""Files whose values were changed: a page or a refusal that names the file, never a crash."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from folders import CHECK, add_summary, claim_folder, reproduction_folder, study_folder, write_json

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
def test_a_changed_value_gives_a_page_or_a_refusal(tmp_path, times):
    folder, generator = whole_folder(tmp_path / "run"), random.Random(times)
    outcomes = {"page": 0, "refused": 0}
    for _ in range(times):
        name = generator.choice(NAMES)
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
