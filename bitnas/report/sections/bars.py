"""A search by BARS: its front, the derived cells as graphs, and how the probabilities became what they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ...search.pareto import Objective, dominates, non_dominated
from .. import agreement, findings, numbers, subnets
from .. import bars_course as told
from ..cells import EDGES, NONE, SKIP, Architecture, Space, alive, colour, live_nodes, long_name, read_architecture
from ..figures import cells as drawings
from ..figures import probabilities as figures
from ..figures import supernet as planes
from ..figures.common import count_tick
from ..html import Section, bullets, details, figure, grid, note, paragraph, plain
from ..records import Candidate, Network, Run, number, setting

_MOST = 6  # networks whose cells are drawn


def title(run: Run) -> str:
    data = setting(run.config, "data")
    return f"BARS: cells and layout of a binary network{f' on {data}' if isinstance(data, str) else ''}"


def headline(run: Run) -> str:
    if not run.candidates:
        done = "is not finished" if not run.course else f"has done its {numbers.plural(len(run.course), 'epoch')}"
        return f"The search by gradient {done}; no derived network has been judged yet."
    done = f"{numbers.plural(len(run.candidates), 'network')} derived from one supernet and judged"
    if not run.front:
        return f"{done}; the search is not finished."
    found = f"{done}, {len(run.front)} on the front. {subnets.range_sentence(run.front)}"
    made = [network for network in run.networks if network.get("accuracy") is not None]
    if made:
        best = max(made, key=lambda network: network.get("accuracy") or 0.0)
        interval = "" if best.interval is None else (
            f" (95 % interval {numbers.percent(best.interval[0])} to {numbers.percent(best.interval[1])})"
        )  # fmt: skip
        return (
            f"{done}, {len(run.front)} on the front. Trained from scratch and frozen, {best.label} reaches "
            f"{numbers.percent(best.get('accuracy'))}{interval} on test images that neither supernet nor search has "
            f"seen, with {numbers.count(best.get('ops'))} OPs in {numbers.duration(best.get('latency_us'))}"
            f"{' (timing noisy)' if findings.noisy(best) else ''}."
        )
    return f"{found} Accuracies are {_judged(run)}, on the search's validation images."


def _judged(run: Run) -> str:
    epochs = setting(run.config, "train_epochs")
    if isinstance(epochs, int) and epochs:
        return f"of networks trained from scratch for {numbers.plural(epochs, 'epoch')}"
    return "of the supernet's own weights, batch norm measured anew"


def method(run: Run) -> Section:
    """What was searched, and with which guards."""
    assert run.space is not None
    space, known = run.space, setting(run.config, "controller")
    controller: dict[str, Any] = known if isinstance(known, dict) else {}
    epochs = number(controller, "epochs")
    text = (
        "One supernet holds every operation on every edge, every width and every depth. Weights and what is chosen are "
    )
    text += "trained by gradient in turns, on different images"
    text += f", for {numbers.plural(int(epochs), 'epoch')}" if epochs is not None else ""
    text += "; then the likeliest network is derived, and others are drawn by the probabilities."
    rows = [("layout", " ".join(space.layout)), ("operations", ", ".join(map(long_name, space.operations)))]
    rows += [("widths", ", ".join(f"{share:g}" for share in space.widths))]
    rows += [("topology groups", f"{space.topologies}, of {len(space.layout)} cells")]
    rows += [(words, value) for words, value in _guards(controller) if value]
    table = grid(["what", "in this search"], [[(name, ""), (value, "text")] for name, value in rows])
    return "What was searched", paragraph(text) + table


def _guards(controller: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for name, part in (("micro", "operations"), ("macro", "widths and depths")):
        kind = controller.get(name)
        if isinstance(kind, str):
            hard = ", straight-through" if controller.get(f"{name}_hard") is True else ""
            yield f"relaxation of {part}", f"{kind}{hard}"
    for name, words in (
        ("warmup_epochs", "warm-up epochs"),
        ("uniform_epochs", "uniform epochs"),
        ("every", "weight steps for each of the architecture"),
        ("prune", "pruned below a probability of"),
        ("temperature_edges", "temperature of operations"),
        ("temperature_layout", "temperature of widths and depths"),
        ("entropy_edges", "entropy weight of operations"),
        ("entropy_layout", "entropy weight of widths and depths"),
        ("hessian_every", "epochs between Hessian eigenvalues"),
    ):
        value = controller.get(name)
        off = 1 if name.startswith(("every", "temperature")) else 0
        yield words, "" if value in (None, off) else _schedule(value)
    yield "start", "every operation with weight 1" if controller.get("full_start") is True else ""
    cost = controller.get("cost")
    yield "cost in the loss", cost if isinstance(cost, str) else ""


def _schedule(value: Any) -> str:
    """A schedule in words: a number, or how it goes from one to another."""
    if not isinstance(value, dict):
        return plain(value)
    start, end, kind, steps = (value.get(name) for name in ("start", "end", "kind", "steps"))
    if isinstance(steps, list) and steps:
        return f"{kind}, from {plain(start)}; from epoch, value: {plain(steps)}"
    return f"{kind}, from {plain(start)}" + (f" to {plain(end)}" if end is not None else "")


def front(run: Run) -> Section:
    name = "The front: accuracy against cost"
    found, images = subnets.costs(run), subnets.validation_images(run)
    if not found:
        return name, note("No network has been derived and judged yet.")
    body = ""
    for cost in found:
        word = "latency" if run.predicted else "measured latency"
        caption = "Up and to the left is better; the dashed line is what can be had for a cost."
        caption += f" {subnets.range_sentence(run.front)}" if run.front and cost == found[0] else ""
        bars = [f"the 95 % interval of an accuracy on {images} images"] if images else []
        bars += ["what the latency is known to"] if cost == "latency_us" else []
        caption += f" Bars are {' and '.join(bars)}." if bars else ""
        if cost == "latency_us" and run.predicted:
            caption += (
                " The latencies of the small dots are predictions of a device table, those of the front measured."
            )
        if cost == "latency_us" and (shift := agreement.shift_sentence(run)):
            caption += f" {shift}"
        if line := subnets.line_sentence(run, cost):
            caption += f" {line}"
        if cost == "latency_us" and subnets.front_alone_timed(run):
            caption += (
                " Only the front was timed, when the search was over: how it stands against the other networks is to "
                "be seen against OPs."
            )
        body += "<h3>Against latency</h3>" if cost == "latency_us" else "<h3>Against OPs</h3>"
        body += figure(lambda w, c=cost, t=word: planes.plane(run, c, t, images, w), caption)  # type: ignore[misc]
    meaning = (
        f"Accuracies are {_judged(run)}, on the search's validation images. The front was picked on these images, "
    )
    meaning += "so its accuracies are a little too good; test images decide."
    return name, body + bullets(_left_out(run)) + note(meaning)


def _left_out(run: Run) -> list[str]:
    """Networks that exact latencies would put on the front, and because of which ones they are not there."""
    objectives, known = _objectives(run), run.candidates
    known = [c for c in known if all(c.get(objective.name) is not None for objective in objectives)]
    if not run.front or not any(objective.spread for objective in objectives):
        return []
    metrics = [{name: value for name in c.metrics if (value := c.get(name)) is not None} for c in known]
    vectors = [[objective.loss(m) for objective in objectives] for m in metrics]
    intervals = [[objective.interval(m) for objective in objectives] for m in metrics]

    def beaten(by: int, one: int) -> bool:
        pair = (by, one)
        own = {"vectors": [vectors[n] for n in pair], "intervals": [intervals[n] for n in pair]}
        return non_dominated(**own, objectives=objectives) == [0]  # type: ignore[arg-type]

    meet, later = [], []
    for one, candidate in enumerate(known):
        if candidate.label or any(dominates(vector, vectors[one]) for vector in vectors):
            continue
        better = [n for n in range(len(known)) if n != one and beaten(n, one)]
        if better:
            best = min(better, key=lambda n: (not known[n].label, vectors[n]))
            beside = f" ({known[best].label})" if known[best].label else ""
            meet.append(f"{_worth(candidate)}, beside {_worth(known[best])}{beside}")
        elif run.fronts and candidate.key in run.fronts[-1]:
            later.append(_worth(candidate))
    found = []
    if meet:
        found.append(
            f"{_were(len(meet))} left out of the front though faster by the numbers: the latency could not be told "
            f"apart from that of a better one: {_named(meet)}."
        )
    if later:
        found.append(
            f"{_were(len(later))} left out when the front was timed again, whole and in turns: its latency was then "
            f"worse, or could not be told apart from that of a better one: {_named(later)} (first latency)."
        )
    return found


def _objectives(run: Run) -> list[Objective]:
    """What decided the front, with the noise that it was allowed; empty where the run does not say."""
    wanted, noise = setting(run.config, "objectives"), setting(run.config, "latency_tolerance")
    margin, allowed = setting(run.config, "accuracy_tolerance"), {"noise": noise}
    tolerance = number({"margin": margin}, "margin") or 0.0
    costs = [
        Objective(
            name,
            relative_tolerance=max(0.0, number(allowed, "noise") or 0.0) if name == "latency_us" else 0.0,
            spread=("latency_low_us", "latency_high_us") if name == "latency_us" else None,
        )
        for name in subnets.deciding(run)
    ]
    accuracy = isinstance(wanted, list) and "accuracy" in wanted
    return [Objective("accuracy", maximize=True, tolerance=max(0.0, tolerance)), *costs] if accuracy else costs


def _were(count: int) -> str:
    return f"{numbers.plural(count, 'network')} {'was' if count == 1 else 'were'}"


def _named(texts: list[str]) -> str:
    return "; ".join(texts[:_MOST]) + (f"; {len(texts) - _MOST} more" if len(texts) > _MOST else "")


def _worth(candidate: Candidate) -> str:
    return f"{numbers.percent(candidate.get('accuracy'))} at {numbers.duration(candidate.get('latency_us'))}"


def deployed(run: Run) -> Section:
    name = "Deployed: trained from scratch and frozen"
    if not run.networks:
        return name, note("No network has been deployed yet: `bitnas resume --study` does it.")
    images = number(run.protocol, "test_images")
    caption = "Frozen networks: accuracy on test images that neither supernet nor search has seen"
    caption += f" ({images:.0f}), " if images else ", "
    caption += "with its 95 % interval, against the latency measured on this machine with its spread."
    noisy = [n.label for n in run.networks if n.get("latency_us") and findings.noisy(n)]
    caption += f" Timing noisy: {', '.join(noisy)}; other programs were using the machine." if noisy else ""
    body = figure(lambda w: planes.deployed(run.networks, w), caption, "No deployed network has a latency.")
    rows = [[(str(key), ""), (plain(value), "text")] for key, value in run.protocol.items()]
    return name, body + details("How they were made", grid(["step", "what"], rows))


def cells(run: Run) -> Section | None:
    """The most accurate network of the front as a row of cells and as graphs; the others folded."""
    ranked = sorted((n for n in run.front if n.architecture), key=lambda n: -(n.get("accuracy") or 0.0))
    if not ranked or run.space is None:
        return None
    space, best = run.space, ranked[0]
    body = paragraph(f"The most accurate of the front is {best.label}: {subnets.figures(best)}. {_likeliest(run)}")
    body += _network(run, best)
    for other in ranked[1:_MOST]:
        body += details(f"{other.label}: {subnets.figures(other)}", _network(run, other))
    if len(ranked) > _MOST:
        body += note(f"{len(ranked) - _MOST} more of the front are not drawn.")
    kind = "A float" if space.preprocess == "float" else "A binary"
    meaning = (
        f"A cell turns four groups of channels into four. {kind} 1 × 1 convolution makes node 0 of its input; a node "
        "is the sum of what its edges bring; nodes 1 to 4 side by side, with the shortcut added that has no "
        "parameters, are the output. In a reduction cell the edges out of node 0 and the shortcut halve the sides and "
        "double the channels."
    )
    return "The derived cells", body + note(meaning)


def _likeliest(run: Run) -> str:
    """Where the network of the largest probabilities ended."""
    known = [network for network in run.front if network.values.get("likeliest") is True]
    if known:
        return f"The likeliest network is {known[0].label}; the others were drawn by the probabilities."
    told_apart = any("likeliest" in network.values for network in run.front)
    return "The likeliest network is not on the front; these were drawn by the probabilities." if told_apart else ""


def _network(run: Run, network: Network) -> str:
    space = run.space
    assert space is not None
    architecture = read_architecture(run.folder / "front.json", network.architecture, space)
    made = network.values.get("network")
    body = ""
    if isinstance(made, dict):
        caption = "Cells from input to output, with the channels of a node (a cell has four) and the group whose "
        caption += f"operations it has. {_depth(space, architecture)}"
        body += figure(lambda w: drawings.row(space, architecture, made, w), caption)
    caption = f"An edge with none is not drawn{_nothing(architecture)}. {_habits(space, architecture)}"
    absent = "No cell is left in this network."
    return body + figure(lambda w: drawings.graphs(space, architecture, w), caption, absent)


def _depth(space: Space, architecture: Architecture) -> str:
    left = len(space.layout) - len(space.kept(architecture.depths))
    if not left:
        return f"All {len(space.layout)} cells of the layout are kept."
    return (
        f"{numbers.plural(left, 'cell')} of {len(space.layout)} in the layout {'is' if left == 1 else 'are'} left out."
    )


def _nothing(architecture: Architecture) -> str:
    dead = any(not all(live_nodes(cell)) for cell in architecture.cells)
    return "; what nothing reaches is dashed and grey" if dead else ""


def _habits(space: Space, architecture: Architecture) -> str:
    """How often each operation stands on an edge of the kept groups, dead edges not counted."""
    kept = set(space.kept(architecture.depths))
    groups = [group for group in range(space.topologies) if kept & set(space.places(group))]
    tally = dict.fromkeys(space.operations, 0)
    for group in groups:
        for name in alive(architecture.cells[group]):
            tally[name] += 1
    said = [f"{times} {long_name(name)}" for name, times in tally.items() if name != NONE]
    total = sum(times for name, times in tally.items() if name != NONE)
    return f"{total} of {10 * len(groups)} edges are drawn: {', '.join(said)}." if groups else ""


def training(run: Run) -> Section | None:
    """Probabilities over epochs, and what else was written down of each."""
    if run.space is None or not run.course:
        return None
    space, course = run.space, run.course
    epochs = [record["epoch"] + 1 for record in course]
    choices = [(colour(name, space.operations), long_name(name)) for name in space.operations]
    panels = [
        figures.Stack(
            f"Group {g} · {space.cells_of(g)}", told.mean_over_edges(course, g), f"Group {g} · {space.kind_of(g)}"
        )
        for g in range(space.topologies)
    ]
    caption = "Probability of each operation, the mean over the ten edges of a group of cells."
    body = bullets(told.sentences(run))
    body += figure(lambda w: figures.stacks(panels, choices, epochs, w), caption)
    for group in range(space.topologies):
        edges = [
            figures.Stack(f"{source} → {target}", [r["probabilities"]["edges"][group][n] for r in course])
            for n, (source, target) in enumerate(EDGES)
        ]
        drawn = figure(lambda w, e=edges: figures.stacks(e, choices, epochs, w, small=True), "One panel an edge.")  # type: ignore[misc]
        body += details(f"Group {group}, edge by edge ({space.cells_of(group)})", drawn)
    return "How the choices became firm", body + _layout(run, epochs) + _figures(run)


def _layout(run: Run, epochs: list[int]) -> str:
    """Widths of each width group and depths of each stage."""
    space, course, body = run.space, run.course, ""
    assert space is not None
    if len(space.widths) > 1:
        panels = [
            figures.Stack(space.sharing(group).capitalize(), [r["probabilities"]["widths"][group] for r in course])
            for group in range(max(space.width_of) + 1)
        ]
        choices = [(_level(n, len(space.widths)), f"{share:g}") for n, share in enumerate(space.widths)]
        caption = "Probability of each width, a share of all channels; cells of one panel have one width."
        body += "<h3>Widths</h3>" + figure(lambda w: figures.stacks(panels, choices, epochs, w), caption)
    searched = [stage for stage, depths in enumerate(space.depth_choices) if len(depths) > 1]
    if searched:
        depths = sorted({depth for stage in searched for depth in space.depth_choices[stage]})
        choices = [(_level(n, len(depths)), numbers.plural(depth, "cell")) for n, depth in enumerate(depths)]
        panels = [
            figures.Stack(
                f"Stage {stage + 1}: {_between(list(space.depth_choices[stage]))} cells",
                [[dict(zip(space.depth_choices[stage], r["probabilities"]["depths"][stage], strict=True)).get(d, 0.0)
                  for d in depths] for r in course],
            )
            for stage in searched
        ]  # fmt: skip
        caption = "Probability of keeping so many normal cells of a stage, from the first on."
        body += "<h3>Depths</h3>" + figure(lambda w: figures.stacks(panels, choices, epochs, w), caption)
    return body


def _between(members: list[int]) -> str:
    return f"{members[0]}" if len(members) == 1 else f"{members[0]} to {members[-1]}"


def _level(place: int, count: int) -> str:
    """Pale for little, strong for much."""
    return f"level level{round(3 * place / max(count - 1, 1))}"


def _figures(run: Run) -> str:
    course = run.course

    def text(value: float) -> str:
        return f"{value:.3g}"

    def share(value: float) -> str:
        return f"{100 * value:.0f} %"

    pair = (("float", "weights"), ("searched", "architecture"))
    panels = [
        figures.Lines(
            "loss", [(css, words, told.series(course, name))
                     for (css, words), name in zip(pair, ("loss", "arch_loss"), strict=True)], text),
        figures.Lines(
            "accuracy", [(css, words, told.series(course, name))
                         for (css, words), name in zip(pair, ("accuracy", "arch_accuracy"), strict=True)], share),
        figures.Lines(
            "entropy, nats", [("searched", "operations", told.series(course, "entropies", "edges")),
                              ("uniform", "widths and depths", told.series(course, "entropies", "layout"))], text),
    ]  # fmt: skip
    if run.space is not None and SKIP in run.space.operations:
        chance = (1 / len(run.space.operations), "by chance")
        panels.append(
            figures.Lines("edges whose likeliest operation is the skip",
                          [("op op-skip", "", told.skips(run.space, course))], share, chance)
        )  # fmt: skip
    limits = told.budgets(run)
    for name, (words, _, write) in told.COSTS.items():
        budget = (limits[name], "budget") if name in limits else None
        unit = write if name == "latency" else count_tick
        known = told.series(course, "expected", name)
        panels.append(figures.Lines(f"expected {words}", [("searched", "", known)], unit, budget, log=True))
    if limits:
        panels.append(figures.Lines("factor of the loss", [("searched", "", told.series(course, "factor"))], text))
    alive = [sum(record.get("alive") or ()) for record in course]
    if len(set(alive)) > 1:
        points = [(float(epoch), float(left)) for epoch, left in enumerate(alive, 1)]
        panels.append(figures.Lines("operations not pruned", [("searched", "", points)], text))
    panels.append(
        figures.Lines("largest eigenvalue of the Hessian", [("slow", "", told.series(course, "hessian"))], text)
    )
    caption = " ".join(f"A dotted line ends {words} (epoch {epoch:.0f})." for epoch, words in told.phases(run))
    drawn = figure(
        lambda w: figures.lines(panels, len(course), told.phases(run), w),
        f"Accuracies are the supernet's while it trains, each on the images that train its part. {caption}",
        "One epoch so far: nothing to draw a line of.",
    )
    return "<h3>Figures of the search</h3>" + drawn
