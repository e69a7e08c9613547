"""Calls timed in place, with a clock that only calls move: what each must be is then known exactly."""

import itertools
import random

import pytest
import torch
from torch import nn

import bitnas
from bitnas.cost.call_times import time_calls
from bitnas.cost.timing import time_call, time_interleaved, undisturbed
from bitnas.nn import BinaryConv2d
from bitnas.packed.calls import call_signatures, timed_pass


class World:
    """A clock in nanoseconds. Each call of the network takes what ``cost`` says, by its place in the pass."""

    def __init__(self, network, cost):
        self.now, self.passes, self.switches = 0, 0, 0
        self.cost = cost
        for index, (call, _) in enumerate(network._plan):
            object.__setattr__(call, "run", self._wrapped(index, call.run))

    def _wrapped(self, index, run):
        def timed(modules, values):
            self.passes += index == 0
            self.now += round(1000 * self.cost(index, self.passes))
            run(modules, values)

        return timed

    def clock(self):
        return self.now

    def preempted(self):
        return self.switches


@pytest.fixture
def network():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), BinaryConv2d(8, 16, 3, padding=1), nn.BatchNorm2d(16), nn.MaxPool2d(2),
        BinaryConv2d(16, 16, 3, padding=1), nn.Flatten(), nn.Linear(16 * 9, 4),
    )  # fmt: skip
    return bitnas.freeze(model.eval())


X = torch.zeros(2, 3, 8, 8)


def test_each_call_takes_its_own_time(network):
    calls = len(network._plan)
    world = World(network, lambda index, _: 100 * (index + 1))
    times = time_calls(network, X, clock=world.clock, preempted=world.preempted)
    assert [call.us for call in times.calls] == [100 * (i + 1) for i in range(calls)]
    assert times.rest.us == 0
    assert times.whole.us == sum(call.us for call in times.calls)
    assert not any(call.noisy for call in times.calls)
    assert times.noisy == 0
    assert times.calls[0].runs >= 20


def test_a_pass_in_place_computes_what_forward_does(network):
    seen = []
    x = torch.rand(2, 3, 8, 8)
    last = network.steps[-1].name
    network._modules[last].register_forward_hook(lambda _, __, output: seen.append(output))
    readings = timed_pass(network, x, itertools.count().__next__)
    assert readings == list(range(len(network._plan) + 1))
    assert torch.equal(seen[0], network(x))


def test_calls_add_up_to_a_typical_pass_though_noise_is_skewed(network):
    generator = random.Random(0)
    costs = [1000 + generator.expovariate(1 / 50) for _ in range(100_000)]
    world = World(network, lambda index, number: costs[7 * number + index])
    times = time_calls(network, X, seconds=8, extra=1, clock=world.clock, preempted=world.preempted)
    assert sum(call.us for call in times.calls) == pytest.approx(times.whole.us, rel=0.003)
    assert sum(call.median_us for call in times.calls) < 0.994 * times.whole.us


def test_passes_that_lost_the_cpu_are_left_out(network):
    world = World(network, lambda index, _: 100)
    plain = world.cost

    def sometimes(index, number):
        away = index == 1 and number % 3 == 0
        world.switches += away
        return 50_000 if away else plain(index, number)

    world.cost = sometimes
    times = time_calls(network, X, seconds=2, clock=world.clock, preempted=world.preempted)
    assert {call.us for call in times.calls} == {100}
    assert {call.high_us for call in times.calls} == {100}


def test_where_every_pass_loses_the_cpu_the_calls_that_did_not_count(network):
    world = World(network, lambda index, number: 100)

    def once_a_pass(index, number):
        world.switches += index == number % 5
        return 5000 if index == number % 5 else 100

    world.cost = once_a_pass
    times = time_calls(network, X, seconds=0.1, clock=world.clock, preempted=world.preempted)
    assert {call.us for call in times.calls} == {100}
    assert times.whole.us > 5000


def test_where_passes_differ_much_the_first_quartiles_count(network):
    generator = random.Random(0)
    costs = [100 + (generator.expovariate(1 / 400) if generator.random() < 0.5 else 0) for _ in range(100_000)]
    world = World(network, lambda index, number: costs[7 * number + index])
    times = time_calls(network, X, seconds=0.5, extra=1, clock=world.clock, preempted=world.preempted)
    assert {call.us for call in times.calls} == {100}
    assert times.noisy > 0


def test_hard_calls_get_more_time_but_not_for_ever(network):
    generator = random.Random(0)
    costs = [generator.lognormvariate(0, 1) * 1000 for _ in range(100_000)]
    world = World(network, lambda index, number: costs[7 * number + index])
    times = time_calls(network, X, seconds=0.5, extra=3, clock=world.clock, preempted=world.preempted)
    assert 1.5 <= times.seconds < 3
    assert times.noisy > 0.9


def test_too_few_undisturbed_samples_are_not_trusted():
    assert undisturbed([1, 2, 3, 4, 5, 6], [True, False, False, False, False, False]) == [2, 3, 4, 5, 6]
    assert undisturbed([1, 2, 3], [True, False, False]) == [1, 2, 3]
    assert undisturbed(range(40), [i > 4 for i in range(40)]) == list(range(5))
    assert undisturbed(range(40), [i > 3 for i in range(40)]) == list(range(40))


def test_the_timer_leaves_out_disturbed_samples_too():
    now, switches, calls = [0], [0], itertools.count(1)

    def call():
        away = next(calls) % 4 == 0
        switches[0] += away
        now[0] += 9_000_000 if away else 1_000_000

    timing = time_interleaved({"a": call}, clock=lambda: now[0], preempted=lambda: switches[0])["a"]
    assert (timing.median_us, timing.high_us, timing.runs) == (1000, 1000, 15)


@pytest.mark.parametrize(("every", "runs"), [(3, 5), (1000, 40)])
def test_the_timer_goes_on_for_a_while_until_a_few_samples_are_undisturbed(every, runs):
    """One sample in so many is; a sample takes 10 ms, and 100 ms are asked for."""
    state = {"now": 0, "reads": 0, "switches": 0}

    def call():
        state["now"] += 10_000_000

    def preempted():  # read before and after each sample
        state["reads"] += 1
        state["switches"] += state["reads"] % 2 == 0 and state["reads"] // 2 % every != 0
        return state["switches"]

    options = {"seconds": 0.1, "min_runs": 5, "warmup": 0, "clock": lambda: state["now"], "preempted": preempted}
    assert time_call(call, **options).runs == runs


def test_a_real_network(network):
    times = time_calls(network, X, warmup=0, seconds=0.02)
    assert len(times.calls) == len(network._plan)
    assert all(call.us > 0 for call in times.calls)
    assert sum(call.us for call in times.calls) < 1e5


def test_a_gpu_is_refused_by_name(network):
    with pytest.raises(ValueError, match="CPU only"):
        time_calls(network, torch.empty(1, 3, 8, 8, device="meta"))


def test_signatures_say_what_a_call_does_and_reads(network):
    signatures = call_signatures(network.steps, (2, 3, 8, 8))
    assert len(signatures) == len(network._plan) + 1
    assert len(set(signatures)) == len(signatures)
    assert '"epilogue":"bits"' in signatures[1]
    assert '"shape":[2,6,6,1]' in signatures[1]
    assert signatures[-1] == f'{{"calls":{len(network._plan)},"does":"pass"}}'
    assert call_signatures(network.steps, (1, 3, 8, 8))[:-1] != signatures[:-1]
    with pytest.raises(RuntimeError):
        call_signatures(network.steps, (2, 4, 8, 8))
