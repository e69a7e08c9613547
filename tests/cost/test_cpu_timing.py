"""Warm and cold times: how many copies are gone through, in which order and on how many threads things are called."""

import itertools

import pytest
import torch

from bitnas.cost import cpu_timing
from bitnas.cost.cpu_timing import Way, cache_bytes, cold_copies, time_ways
from bitnas.cost.timing import contenders, rounds_for, time_interleaved

L2 = 1 << 20


class World:
    """A clock, and calls that take what they are told: more where their operands were not read just before."""

    def __init__(self):
        self.now = 0
        self.log = []
        self.cached = None

    def clock(self):
        return self.now

    def perf_counter(self):
        return self.now / 1e9

    def way(self, name, us, *, cold_us=0, reads=L2 // 8, **options):
        def make():
            operand = object()
            self.log.append(("make", name, torch.get_num_threads()))

            def call():
                self.log.append((name, operand, torch.get_num_threads()))
                self.now += int(1000 * (us + (cold_us if self.cached is not operand else 0)))
                self.cached = operand

            return call

        return Way(make, reads, **options)

    def calls(self, name):
        return [entry for entry in self.log if entry[0] == name]


@pytest.fixture
def world(monkeypatch):
    made = World()
    monkeypatch.setattr(cpu_timing, "cache_bytes", lambda level: L2 if level == 2 else None)
    monkeypatch.setattr(cpu_timing.time, "perf_counter", made.perf_counter)
    monkeypatch.setattr(cpu_timing.time, "sleep", lambda seconds: made.log.append(("sleep", seconds, None)))
    return made


# ---- copies -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("reads", "threads", "copies"),
    [
        (3 * L2, 1, 1),
        (3 * L2 + 1, 1, 1),
        (3 * L2, 2, 2),
        (L2, 1, 3),
        (L2 - 1, 1, 4),
        (L2 // 8, 1, 24),
        (L2 // 8, 2, 48),
        (3 * L2 // 512, 1, 512),
        (3 * L2 // 512 - 1, 1, None),
        (0, 1, None),
    ],
)
def test_copies_exceed_the_l2_several_times_over(world, reads, threads, copies):
    assert cold_copies(reads, threads) == copies


def test_an_unknown_cache_is_taken_for_one_mebibyte(world, monkeypatch):
    monkeypatch.setattr(cpu_timing, "cache_bytes", lambda _: None)
    assert cold_copies(1 << 20, 1) == 3


def test_cache_sizes_of_this_machine(tmp_path, monkeypatch):
    for index, (level, kind, size) in enumerate([(1, "Instruction", 64), (1, "Data", 48), (2, "Unified", 2048)]):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        for name, value in {"level": level, "type": kind, "size": f"{size}K"}.items():
            (folder / name).write_text(f"{value}\n")
    (tmp_path / "index3").mkdir()
    monkeypatch.setattr(cpu_timing, "_CACHES", tmp_path)
    assert (cache_bytes(1), cache_bytes(2)) == (48 << 10, 2 << 20)


def test_cache_sizes_without_sysfs(tmp_path, monkeypatch):
    monkeypatch.setattr(cpu_timing, "_CACHES", tmp_path / "absent")
    assert cache_bytes(2) is None


# ---- times --------------------------------------------------------------------------------------


def test_warm_and_cold(world, threads):
    ways = {"bitnas": world.way("bitnas", 10, cold_us=5), "float32/eager": world.way("float32", 40, cold_us=10)}
    found = time_ways(ways, seconds=0.05, clock=world.clock)
    assert found.keys() == {1}
    assert [(times.warm.median_us, times.cold.median_us) for times in found[1].values()] == [(10, 15), (40, 50)]
    assert list(found[1]) == ["bitnas", "float32/eager"]


def test_cold_calls_go_through_all_copies_before_they_meet_one_again(world):
    time_ways({"bitnas": world.way("bitnas", 10)}, seconds=0.01, clock=world.clock)
    assert len([entry for entry in world.log if entry[0] == "make"]) == 1 + 24
    operands = [operand for _, operand, _ in world.calls("bitnas")]
    warm = operands[0]
    cold = [operand for operand in operands if operand is not warm]
    assert len(set(cold)) == 24
    for operand in set(cold):
        places = [place for place, other in enumerate(cold) if other is operand]
        assert {b - a for a, b in itertools.pairwise(places)} == {24}


def test_operands_that_evict_themselves_are_timed_once(world):
    found = time_ways({"bitnas": world.way("bitnas", 10, reads=3 * L2)}, seconds=0.01, clock=world.clock)
    assert found[1]["bitnas"].cold is found[1]["bitnas"].warm
    assert len([entry for entry in world.log if entry[0] == "make"]) == 1


def test_operands_that_are_always_in_the_cache_have_no_cold_time(world):
    found = time_ways({"bitnas": world.way("bitnas", 10, reads=100)}, seconds=0.01, clock=world.clock)
    assert found[1]["bitnas"].cold is None


def test_a_long_call_is_made_no_more_often_than_it_must(world):
    """Once to get ready, which tells its length, and three times."""
    time_ways({"bitnas": world.way("bitnas", 200_000, reads=3 * L2)}, seconds=0.01, clock=world.clock)
    assert len(world.calls("bitnas")) == 1 + 3


def test_every_thread_count_has_calls_of_its_own_and_takes_turns(world):
    before = torch.get_num_threads()
    ways = {"bitnas": world.way("bitnas", 10), "numkong": world.way("numkong", 20, most_threads=1)}
    found = time_ways(ways, threads=(1, 2), seconds=0.01, clock=world.clock)
    assert torch.get_num_threads() == before
    assert found[1].keys() == {"bitnas", "numkong"}
    assert found[2].keys() == {"bitnas"}
    made = [entry[1:] for entry in world.log if entry[0] == "make"]
    assert made.count(("bitnas", 1)) == 1 + 24
    assert made.count(("bitnas", 2)) == 1 + 48
    owner = {}
    for _, operand, threads in world.calls("bitnas"):
        assert owner.setdefault(operand, threads) == threads  # what was laid out for two threads runs on two
    last_make = max(place for place, entry in enumerate(world.log) if entry[0] == "make")
    turns = [threads for name, _, threads in world.log[last_make + 1 :] if name == "bitnas"]
    assert len(list(itertools.groupby(turns))) >= 6
    assert {entry[0] for entry in world.log} >= {"sleep"}


def test_threads_are_put_back_after_an_error(world):
    def fails():
        raise ValueError("no")

    before = torch.get_num_threads()
    with pytest.raises(ValueError, match="no"):
        time_ways({"bitnas": Way(fails, L2)}, threads=(3 - before,), clock=world.clock)
    assert torch.get_num_threads() == before


# ---- contenders ---------------------------------------------------------------------------------


def test_ways_that_are_slow_are_dropped_unless_their_peer_is_to_be_kept(world):
    ways = {"bitnas": 1, "int8/x86": 2, "int8/onednn": 3.9, "int8/fbgemm": 4.1}
    makers = {name: world.way(name, 1e6 * seconds).make for name, seconds in ways.items()}
    found = {name: seconds for name, (_, seconds) in contenders(makers).items()}
    assert found == pytest.approx({"bitnas": 1, "int8/x86": 2, "int8/onednn": 3.9})
    assert contenders(makers, keep=("int8",)).keys() == ways.keys()


def test_one_hiccup_rules_nothing_out(world):
    lengths = itertools.chain([9, 9, 1], itertools.repeat(9))

    def hiccups():
        world.now += next(lengths) * 1_000_000

    makers = {"int8/a": lambda: hiccups, "int8/b": world.way("b", 1100).make}
    assert contenders(makers).keys() == {"int8/a", "int8/b"}


def test_what_fails_is_left_out_but_never_ours(world):
    def fails():
        raise RuntimeError("needs the cpu support avx512bw")

    assert contenders({"bfloat16/eager": lambda: fails, "bfloat16/onednn": fails}) == {}
    with pytest.raises(RuntimeError, match="avx512bw"):
        contenders({"bitnas": fails})


def test_rounds():
    assert rounds_for(1.0, 0.01) == 10
    assert rounds_for(1.0, 0.4) == 5
    assert rounds_for(0.1, 9) == 3


def test_a_known_call_gets_no_warm_up(world):
    calls = {name: world.way(name, 10).make() for name in ("a", "b")}
    result = time_interleaved(calls, known={"a": 10e-6}, warmup=0, min_runs=3, seconds=0.001, clock=world.clock)
    assert result["a"].median_us == result["b"].median_us == 10
    assert len(world.calls("b")) == len(world.calls("a")) + 2
