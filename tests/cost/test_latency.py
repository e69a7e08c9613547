"""Latency with an injected clock: what the numbers must be is then known exactly."""

import itertools
import json
import math
import random

import pytest
import torch
from torch import nn

import bitnas
from bitnas.cost import machine, measure_latency
from bitnas.cost.timing import summarize, time_call, time_interleaved
from bitnas.nn import BinaryConv2d


class World:
    """A clock in nanoseconds that only calls move. ``durations`` gives the microseconds of one call after another."""

    def __init__(self):
        self.now = 0
        self.calls = 0

    def clock(self):
        return self.now

    def call(self, durations):
        durations = iter(durations)

        def run(*_):
            self.calls += 1
            self.now += round(next(durations) * 1000)

        return run


@pytest.fixture
def world():
    return World()


def noise(seed, middle, spread):
    generator = random.Random(seed)
    while True:
        yield middle * generator.lognormvariate(0, spread)


# ---- the timer ----------------------------------------------------------------------


def test_a_stable_call(world):
    timing = time_call(world.call(itertools.repeat(1000)), clock=world.clock)
    assert (timing.median_us, timing.iqr_us, timing.noisy) == (1000, 0, False)
    assert (timing.low_us, timing.q1_us, timing.q3_us, timing.high_us) == (1000, 1000, 1000, 1000)
    assert timing.runs == 20  # stable at once: no more than asked for


def test_a_short_call_is_timed_many_times_at_once(world):
    timing = time_call(world.call(itertools.repeat(1)), clock=world.clock)
    assert timing.median_us == 1
    assert timing.runs == 20
    assert world.calls > 20 * 90  # about 100 us a sample, after 50 ms of warm-up


def test_warm_up_is_by_time(world):
    cold = itertools.chain(itertools.repeat(5000, 10), itertools.repeat(1000))
    timing = time_call(world.call(cold), warmup=0.05, clock=world.clock)
    assert timing.median_us == timing.high_us == 1000
    unwarmed = World()
    cold = itertools.chain(itertools.repeat(5000, 10), itertools.repeat(1000))
    assert time_call(unwarmed.call(cold), warmup=0, min_runs=9, clock=unwarmed.clock).q3_us == 5000


def test_a_noisy_call_runs_its_time_and_says_so(world):
    timing = time_call(world.call(noise(0, 1000, 0.8)), seconds=0.1, clock=world.clock)
    assert timing.noisy
    assert 20 <= timing.runs < 200
    assert timing.low_us < timing.median_us < timing.high_us
    assert timing.q1_us < timing.median_us < timing.q3_us
    assert world.now > 0.1e9


def test_a_slightly_noisy_call_repeats_until_stable(world):
    timing = time_call(world.call(noise(1, 1000, 0.1)), seconds=10, tolerance=0.02, clock=world.clock)
    assert not timing.noisy
    assert timing.runs > 20
    assert timing.median_us == pytest.approx(1000, rel=0.04)
    assert world.now < 10e9


def test_tolerance_decides_what_is_noisy():
    samples = [90.0, 110.0] * 20
    assert summarize(samples, tolerance=0.05).noisy
    assert not summarize(samples, tolerance=0.11).noisy


def test_rare_outliers_do_not_move_the_median(world):
    spikes = (50_000 if i % 10 == 9 else 1000 for i in itertools.count())
    timing = time_call(world.call(spikes), clock=world.clock, seconds=1)
    assert timing.median_us == 1000


def test_a_drifting_clock_meets_interleaved_calls_alike(world):
    slower = itertools.count(1000, 20)  # each call of either is 2 % of the first slower than the one before

    def pace(factor):
        while True:
            yield factor * next(slower)

    calls = {"a": world.call(pace(1)), "b": world.call(pace(2))}
    result = time_interleaved(calls, seconds=0.5, warmup=0, clock=world.clock)
    assert result["b"].median_us / result["a"].median_us == pytest.approx(2, rel=0.05)
    assert result["a"].noisy
    assert result["b"].noisy
    assert result["a"].runs == result["b"].runs


def test_at_least_min_runs_whatever_the_time(world):
    timing = time_call(world.call(noise(2, 1e6, 0.5)), seconds=0.01, min_runs=7, clock=world.clock)
    assert timing.runs == 7


def test_statistics():
    timing = summarize([5.0, 1.0, 3.0, 2.0, 4.0], 0.02)
    assert (timing.median_us, timing.q1_us, timing.q3_us) == (3, 1.5, 4.5)
    assert summarize([7.0], 0.02).to_dict()["iqr_us"] == 0
    assert summarize([1.0, 2.0], 0.02).median_us == 1.5


def test_the_interval_holds_the_true_median_about_95_times_in_100():
    generator = random.Random(0)
    held = 0
    for _ in range(400):
        timing = summarize([generator.lognormvariate(0, 1) for _ in range(50)], 0.02)
        held += timing.low_us <= 1 <= timing.high_us
    assert 0.92 <= held / 400 <= 0.99


# ---- measure_latency ------------------------------------------------------------------


class Clocked(nn.Module):
    def __init__(self, world, microseconds):
        super().__init__()
        self.run = world.call(itertools.repeat(microseconds))
        self.seen = []

    def forward(self, x):
        self.seen.append((tuple(x.shape), x.dtype, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        self.run()


def test_measure_latency_with_a_fake_clock(world):
    network = Clocked(world, 1234)
    latency = measure_latency(network, (3, 8, 9), batch=5, clock=world.clock)
    assert (latency.median_us, latency.iqr_us, latency.noisy, latency.runs) == (1234, 0, False, 20)
    assert set(network.seen) == {((5, 3, 8, 9), torch.float32, 1, True)}
    described = latency.to_dict()
    json.dumps(described, allow_nan=False)
    assert described.keys() >= {"median_us", "iqr_us", "runs", "noisy", "batch", "threads", "input_size", "machine"}
    assert (described["batch"], described["threads"], described["input_size"]) == (5, 1, [3, 8, 9])
    assert described["machine"] == {**machine.facts(), "device": "cpu"}
    assert str(latency) == "1234.0 us per batch of 5 on 1 thread(s) (IQR 0.0 us, 20 runs)"


def test_a_noisy_latency_says_so(world):
    network = Clocked(world, 0)
    network.run = world.call(noise(0, 1000, 1.0))
    assert str(measure_latency(network, (1, 1, 1), seconds=0.05, clock=world.clock)).endswith("runs, noisy)")


def test_threads_are_set_and_put_back(world, threads):
    network = Clocked(world, 1000)
    with threads() as before:
        measure_latency(network, (1, 2, 2), threads=3 - before, clock=world.clock)
        assert {seen[2] for seen in network.seen} == {3 - before}
        assert torch.get_num_threads() == before


def test_threads_are_put_back_after_an_error(threads):
    class Fails(nn.Module):
        def forward(self, x):
            raise RuntimeError("no such network")

    with threads() as before:
        with pytest.raises(RuntimeError, match="no such network"):
            measure_latency(Fails(), (1, 2, 2), threads=3 - before)
        assert torch.get_num_threads() == before
    assert not torch.is_inference_mode_enabled()


@pytest.mark.parametrize("options", [{"batch": 0}, {"threads": 0}, {"input_size": (3, 0, 8)}, {"input_size": ()}])
def test_sizes_below_one(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} must be at least 1, got 0"):
        measure_latency(nn.Identity(), **{"input_size": (3, 8, 8), **options})


def test_the_mode_of_a_float_network_is_left_alone():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).train()
    measure_latency(network, (3, 8, 8), batch=2, seconds=0.01, warmup=0)
    assert network.training


def test_a_real_measurement():
    frozen = bitnas.freeze(nn.Sequential(BinaryConv2d(16, 32, 3, padding=1)))
    latency = measure_latency(frozen, (16, 8, 8), seconds=0.05)
    assert 0 < latency.median_us < 1e6
    assert math.isfinite(latency.iqr_us)
    assert latency.runs >= 5  # of twenty and more, those that were not interrupted
    assert latency.machine["isa"] in latency.machine["isas"]
    assert latency.machine["cores"] >= 1


def test_machine_facts_follow_the_instruction_set(isa):
    facts = machine.facts()
    assert facts["isa"] == isa
    json.dumps(facts, allow_nan=False)
    assert facts.keys() >= {"cpu", "architecture", "cores", "os", "torch", "bitnas", "kernel_version", "isas", "isa"}
    facts["cpu"] = "changed by a caller"
    assert machine.facts()["cpu"] != "changed by a caller"
