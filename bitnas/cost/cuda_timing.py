"""Timing on a GPU: its own events instead of the host's clock, replayed graphs, and a cold cache where one is wanted.

Work on a GPU is queued, so a host's clock sees how fast calls are queued. Events are stamps that the GPU takes between
pieces of work. A graph is a queue made once and replayed whole: what a network costs without the host's launches.
"""

from collections.abc import Mapping
from typing import Any

import torch

from bitnas.cost.timing import Call, Stopwatch, Timing, time_interleaved

# Calls in one graph: short ones would measure the replay's own start instead.
_MOST_CALLS = 20
_GRAPH_NS = 100_000

# Of the L2's size: enough to evict it whatever the hash of addresses to slices is.
_FLUSH = 4


def _timing_event() -> Any:
    return torch.cuda.Event(enable_timing=True)


def event_stopwatch(before: Call | None = None) -> Stopwatch:
    """Times what calls put on the current stream.

    Args:
        before: queued ahead of every call, outside of its time (:func:`cache_flush`). Without it the calls follow one
            another, between two events.
    """

    def span(call: Call, times: int) -> tuple[Any, Any]:
        begin, end = _timing_event(), _timing_event()
        begin.record()
        for _ in range(times):
            call()
        end.record()
        return begin, end

    def elapsed(call: Call, times: int) -> float:
        if before is None:
            spans = [span(call, times)]
        else:
            spans = []
            for _ in range(times):
                before()
                spans.append(span(call, 1))
        spans[-1][1].synchronize()
        return sum(begin.elapsed_time(end) for begin, end in spans) * 1e6

    return elapsed


def cache_flush() -> Call:
    """Writes a buffer larger than the current GPU's L2, which leaves nothing else in it."""
    size = _FLUSH * torch.cuda.get_device_properties(torch.cuda.current_device()).L2_cache_size
    return torch.empty(size, dtype=torch.uint8, device="cuda").zero_


def capture(call: Call, times: int = 1) -> Call:
    """So many calls in a row as a graph; returns what replays it.

    The call is made a few times first: libraries choose their algorithms and workspaces in the first calls, which no
    graph can hold. Results of a replay stay in the graph's own memory.

    Raises:
        RuntimeError: the call waits for the GPU, or does something else that cannot be captured.
    """
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(times):
            call()
    return graph.replay


def time_launch_and_graph(call: Call, *, cold_cache: bool = False, **options: Any) -> dict[str, Timing]:
    """A call launched from the host (``"launch"``) and replayed from a graph (``"graph"``), in turns.

    ``"graph"`` is missing where the call cannot be captured. Options are :func:`bitnas.cost.timing.time_interleaved`'s.
    """
    calls = {"launch": call}
    call()  # what the call itself raises is its caller's
    try:
        calls["graph"] = capture(call)
    except RuntimeError:
        torch.cuda.synchronize()
    stopwatch = event_stopwatch(cache_flush() if cold_cache else None)
    return time_interleaved(calls, stopwatch=stopwatch, **options)


def time_replays(calls: Mapping[str, Call], **options: Any) -> dict[str, tuple[Timing, Timing]]:
    """Calls replayed from graphs, in turns: in a row (the L2 holds what fits), and each with a cold L2.

    Returns:
        (warm, cold) per name, of one call. Options are :func:`bitnas.cost.timing.time_interleaved`'s.
    """
    stopwatch = event_stopwatch()
    counts = {}
    for name, call in calls.items():
        call()
        counts[name] = max(1, min(_MOST_CALLS, int(_GRAPH_NS / max(1, stopwatch(call, 1)))))
    rows = {name: capture(call, counts[name]) for name, call in calls.items()}
    warm = time_interleaved(rows, stopwatch=stopwatch, **options)
    single = {name: rows[name] if counts[name] == 1 else capture(call) for name, call in calls.items()}
    cold = time_interleaved(single, stopwatch=event_stopwatch(cache_flush()), **options)
    return {name: (warm[name].per(counts[name]), cold[name]) for name in calls}
