"""What a search of NAS-BNN found, as figures and sentences: buckets of OPs, intervals, deployed subnets."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .findings import noisy
from .numbers import count, duration, percent, plural, points
from .records import Candidate, Network, Point, Run, number, setting

INHERITED, TUNED = "inherited", "fine-tuned"
_METRICS = {"ops": "ops", "flops": "flops", "bops": "bops", "memory": "memory_bits", "latency": "latency_us"}
_WORDS = {"ops": "OPs", "flops": "FLOPs", "bops": "BOPs", "memory_bits": "memory", "latency_us": "latency"}
_Z = 1.959963984540054


def binomial(accuracy: float | None, images: int | None) -> tuple[float, float] | None:
    """The 95 % score interval (Wilson 1927) of an accuracy on so many images; None where either is not known."""
    if accuracy is None or not images:
        return None
    scale = 1 + _Z**2 / images
    middle = (accuracy + _Z**2 / (2 * images)) / scale
    half = _Z / scale * math.sqrt(accuracy * (1 - accuracy) / images + _Z**2 / (4 * images**2))
    return max(0.0, min(accuracy, middle - half)), min(1.0, max(accuracy, middle + half))


def bucket_size(run: Run) -> float | None:
    """OPs of a bucket of the archive."""
    found = setting(run.config, "bucket")
    value = number({"bucket": found}, "bucket")
    return value if value is not None and value > 0 else None


def best_of_buckets(run: Run) -> list[tuple[int, Candidate]]:
    """The most accurate subnet of each bucket of OPs, in the order of the buckets."""
    bucket, best = bucket_size(run), dict[int, Candidate]()
    if bucket is None:
        return []
    for candidate in run.candidates:
        ops, accuracy = candidate.get("ops"), candidate.get("accuracy")
        if ops is None or accuracy is None or ops / bucket > 1e6:
            continue
        place = round(ops / bucket)
        if place not in best or accuracy > (best[place].get("accuracy") or 0.0):
            best[place] = candidate
    return sorted(best.items())


def is_archive(run: Run) -> bool:
    """Whether the run is the paper's search, which keeps the best of each bucket."""
    return bool(setting(run.config, "objectives") == ["archive"])


def costs(run: Run) -> list[str]:
    """What the front is drawn against, the costs that decided it first: latency where it was measured, and OPs."""
    points: list[Point] = [*run.front, *run.candidates]
    found = [cost for cost in ("latency_us", "ops") if any((point.get(cost) or 0) > 0 for point in points)]
    return sorted(found, key=lambda cost: cost not in deciding(run))


def deciding(run: Run) -> list[str]:
    """The costs by which the front was chosen; empty where the run does not say."""
    objectives = setting(run.config, "objectives")
    if is_archive(run):
        return ["ops", "latency_us"] if setting(run.config, "latency_budget") is not None else ["ops"]
    known = objectives if isinstance(objectives, list) else []
    return [_METRICS[name] for name in known if isinstance(name, str) and name in _METRICS]


def line_sentence(run: Run, cost: str) -> str:
    """Why members of the front may lie off the line that is drawn against a cost, or nothing where none can."""
    chosen = deciding(run)
    others = " and ".join(_WORDS[other] for other in chosen if other != cost)
    if not others:
        return ""
    if cost in chosen:
        return f"The front is that of {others} too, so the line need not pass through all of it."
    return f"The front was chosen by {others}, not by {_WORDS[cost]}, so the line need not pass through all of it."


def front_alone_timed(run: Run) -> bool:
    """Whether the front has latencies and nothing else that was evaluated has one."""
    timed = [p for p in run.front if (p.get("latency_us") or 0) > 0]
    return bool(timed) and not any((c.get("latency_us") or 0) > 0 for c in run.candidates)


def range_sentence(networks: Sequence[Network]) -> str:
    """From the cheapest to the most accurate network."""
    known = [n for n in networks if n.get("accuracy") is not None and n.get("ops") is not None]
    if not known:
        return ""
    cheap = min(known, key=lambda n: n.get("ops") or 0.0)
    good = max(known, key=lambda n: n.get("accuracy") or 0.0)
    if cheap is good:
        return f"It is {figures(cheap)}."
    return f"It runs from {figures(cheap)} to {figures(good)}."


def figures(network: Network) -> str:
    """ "91.2 % at 1.2 M OPs and 310 µs"."""
    time = network.get("latency_us")
    return f"{percent(network.get('accuracy'))} at {count(network.get('ops'))} OPs" + (
        f" and {duration(time)}" if time is not None else ""
    )


def headline(run: Run) -> str:
    """The result of the whole run in one or two sentences."""
    if not run.candidates:
        return "This run has not measured a subnet yet."
    done = f"{plural(len(run.candidates), 'subnet')} of one supernet measured"
    if not run.front:
        return f"{done}; the search is not finished."
    found = f"{done}, {len(run.front)} on the front. {range_sentence(run.front)}"
    networks = [n for n in run.networks if n.get("accuracy") is not None]
    if not networks:
        return f"{found} Accuracies are of inherited weights on the search's validation images."
    best = max(networks, key=lambda n: n.get("accuracy") or 0.0)
    interval = "" if best.interval is None else (
        f" (95 % interval {percent(best.interval[0])} to {percent(best.interval[1])})"
    )  # fmt: skip
    return (
        f"{done}, {len(run.front)} on the front. Deployed, {best.label} reaches {percent(best.get('accuracy'))}"
        f"{interval} on test images that neither supernet nor search has seen, with {count(best.get('ops'))} OPs in "
        f"{duration(best.get('latency_us'))}{' (timing noisy)' if noisy(best) else ''}.{_speed(best)}"
    )


def _speed(network: Network) -> str:
    packed, reference = network.get("latency_us"), network.get("float_latency_us")
    if not packed or not reference or noisy(network):
        return ""
    if packed <= reference:
        return f" Its float32 twin takes {reference / packed:.1f} times as long."
    return f" Its float32 twin is {packed / reference:.1f} times as fast."


def tuning_sentences(run: Run) -> list[str]:
    """What fine-tuning did to each deployed subnet, no more than its interval allows."""
    found = []
    for claim in run.claims:
        low, high, gain = (number(claim, name) for name in ("low", "high", "difference"))
        if gain is None or low is None or high is None:
            continue
        if low > 0:
            verdict = "fine-tuning gains accuracy"
        elif high < 0:
            verdict = "fine-tuning loses accuracy"
        else:
            verdict = "no difference can be told"
        found.append(
            f"Subnet {claim.get('pair')}: {verdict}, {points(gain)} points on the same test images "
            f"(95 % interval {points(low)} to {points(high)})."
        )
    return found


def validation_images(run: Run) -> int | None:
    """How many images the search judged by, where the run or its study says it."""
    found = setting(run.config, "val_images") or run.protocol.get("val_images")
    return found if isinstance(found, int) and not isinstance(found, bool) and 0 < found < 10**9 else None
