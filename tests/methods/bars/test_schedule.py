"""A schedule is what it says in every epoch, survives JSON, and refuses what is none."""

import json
import math

import pytest

from bitnas.methods.bars.schedule import Schedule

SHAPES = [
    (0.3, [0.3] * 5),
    ({"kind": "linear", "start": 5.0, "end": 1.0}, [5.0, 4.0, 3.0, 2.0, 1.0]),
    ({"kind": "linear", "start": 0.0, "end": 1.0, "from": 1, "to": 3}, [0.0, 0.0, 0.5, 1.0, 1.0]),
    ({"kind": "cosine", "start": 1.0, "end": 0.0}, [(1 + math.cos(math.pi * n / 4)) / 2 for n in range(5)]),
    ({"kind": "exponential", "start": 16.0, "end": 1.0}, [16.0, 8.0, 4.0, 2.0, 1.0]),
    ({"kind": "steps", "start": 3.0, "steps": [[2, 2.0], [4, 0.5]]}, [3.0, 3.0, 2.0, 2.0, 0.5]),
]


@pytest.mark.parametrize(("value", "wanted"), SHAPES)
def test_every_epoch(value, wanted):
    schedule = Schedule.from_json(value)
    assert [schedule.at(epoch, 5) for epoch in range(5)] == pytest.approx(wanted, abs=1e-12)
    assert schedule.to_json() == value
    assert Schedule.from_json(json.loads(json.dumps(schedule.to_json()))) == schedule
    low, high = min(schedule.values), max(schedule.values)
    assert all(low <= schedule.at(epoch, 50) <= high for epoch in range(50))


def test_ends_are_exact_and_a_single_epoch_has_the_start():
    cosine = Schedule(kind="cosine", start=0.01, end=1e-4)
    assert (cosine.at(0, 50), cosine.at(49, 50), cosine.at(0, 1)) == (0.01, 1e-4, 0.01)
    late = Schedule(kind="linear", start=1.0, end=0.0, first=9)
    assert [late.at(epoch, 3) for epoch in range(3)] == [1.0] * 3


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"kind": "sine", "start": 1}, "kind: got 'sine', wanted one of constant, linear"),
        ({"kind": "linear", "start": 1}, "end: got None for 'linear', wanted it for"),
        ({"kind": "constant", "start": 1, "end": 2}, "end: got 2 for 'constant'"),
        ({"kind": "exponential", "start": 1, "end": 0}, "start, end: got 1 and 0, wanted both above 0"),
        ({"kind": "linear", "start": 1, "end": 0, "from": 3, "to": 3}, "to: got 3, wanted an epoch after from 3"),
        ({"kind": "linear", "start": 1, "end": 0, "from": -1}, "from: got -1"),
        ({"kind": "constant", "start": 1, "to": 4}, "from, to: got 0, 4 for 'constant'"),
        ({"kind": "steps", "start": 1}, "steps: got .. for 'steps'"),
        ({"kind": "linear", "start": 1, "end": 0, "steps": [[1, 2]]}, "steps: got .* for 'linear'"),
        ({"kind": "steps", "start": 1, "steps": [[3, 0], [2, 1]]}, "steps: got epochs .3, 2., wanted them to increase"),
        ({"kind": "steps", "start": 1, "steps": [3]}, "steps: got 3, wanted a pair"),
        ({"start": 1}, "schedule: got .*wanted kind, start"),
        ({"kind": "constant", "start": 1, "till": 4}, "schedule: got .*till"),
        ("fast", "start: got 'fast', wanted a number"),
        (True, "start: got True, wanted a number"),
        (float("nan"), "start: got nan, wanted a finite number"),
    ],
)
def test_what_is_no_schedule_is_refused(value, message):
    with pytest.raises((TypeError, ValueError), match=message):
        Schedule.from_json(value)


def test_an_epoch_outside_the_run_is_refused():
    for epoch in (-1, 5):
        with pytest.raises(ValueError, match=f"epoch: got {epoch}, wanted 0 to 4"):
            Schedule(start=1.0).at(epoch, 5)
