"""What a long command shows on stderr: bars where there is a terminal, and one line per milestone everywhere."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from .output import console


class ProgressView:
    """Context manager to be passed as `on_progress`. It knows the events of `bitnas.methods`; one it does not
    know moves a bar if it carries `done` and `total`, and is otherwise left alone.
    """

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._console = console(stderr=True)
        self._bars = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._bar: Any = None
        self._name = ""
        self._generation = ""

    def __enter__(self) -> ProgressView:
        self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bars.stop()

    def say(self, text: str) -> None:
        """One line on stderr, above the bar."""
        self._console.print(text, markup=False)

    def advance(self, name: str, done: int, total: int) -> None:
        """Show `done` of `total` steps of what `name` says."""
        if name != self._name:
            if self._bar is not None:
                self._bars.remove_task(self._bar)
            self._bar, self._name = self._bars.add_task(name, total=total), name
        self._bars.update(self._bar, completed=done, total=total)

    def __call__(self, event: dict[str, Any]) -> None:
        """Take one event."""
        kind = str(event.get("event", ""))
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(event)
        elif "done" in event and "total" in event:
            self.advance(kind.replace("_", " "), int(event["done"]), int(event["total"]))

    def _on_search_start(self, event: dict[str, Any]) -> None:
        self.say(
            f"search of {event['generations']} generations of {event['population']} for "
            f"{', '.join(event['objectives'])} "
            f"in {event['folder']}"
        )

    def _on_parent_start(self, event: dict[str, Any]) -> None:
        self.advance("training the widest network", 0, event["epochs"])

    def _on_parent_epoch(self, event: dict[str, Any]) -> None:
        self.advance("training the widest network", event["epoch"] + 1, event["epochs"])

    def _on_parent_end(self, event: dict[str, Any]) -> None:
        self.say(f"widest network trained: {_percent(event['accuracy'])} on the validation split")

    def _on_supernet_start(self, event: dict[str, Any]) -> None:
        self.advance("training the supernet", 0, event["epochs"])

    def _on_supernet_step(self, event: dict[str, Any]) -> None:
        name = f"training the supernet, epoch {event['epoch'] + 1}/{event['epochs']}"
        self.advance(name, event["step"], event["steps"])

    def _on_supernet_epoch(self, event: dict[str, Any]) -> None:
        if (event["epoch"] + 1) % max(1, event["epochs"] // 10) == 0:
            self.say(
                f"supernet, epoch {event['epoch'] + 1}/{event['epochs']}: loss {event['loss']:.3f}, biggest subnet "
                f"{_percent(event['accuracy'])} on the validation split"
            )

    def _on_supernet_end(self, event: dict[str, Any]) -> None:
        if event["given"]:
            self.say("supernet given, and copied into the folder")
        else:
            self.say(f"supernet trained: biggest subnet {_percent(event['accuracy'])} on the validation split")

    def _on_derive_start(self, event: dict[str, Any]) -> None:
        self.say(
            f"search by gradient in {event['folder']}: a supernet of {event['epochs']} epochs, then {event['samples']} "
            f"networks judged by {', '.join(event['objectives'])}"
        )

    def _on_architecture_epoch(self, event: dict[str, Any]) -> None:
        if (event["epoch"] + 1) % max(1, event["epochs"] // 10) == 0 or event["epoch"] + 1 == event["epochs"]:
            self.say(_epoch_of_architecture(event))

    def _on_architecture_end(self, event: dict[str, Any]) -> None:
        self.say(
            f"supernet trained for {event['epochs']} epochs; the likeliest operation of {_percent(event['skips'])} of "
            "the edges is a skip"
        )

    def _on_derived(self, event: dict[str, Any]) -> None:
        self.say(f"{event['networks']} networks derived from its probabilities")

    def _on_generation_start(self, event: dict[str, Any]) -> None:
        self._generation = f"generation {event['generation'] + 1}/{event['generations']}"

    def _on_evaluated(self, event: dict[str, Any]) -> None:
        self.advance(f"{self._generation}: {event['stage']}", event["done"], event["total"])
        if event["status"] == "failed" and not event["replayed"]:
            self.say(f"candidate {event['key'][:12]} failed: {event['reason']}")

    def _on_warning(self, event: dict[str, Any]) -> None:
        self.say(f"warning: {event['message']}")

    def _on_front_timing(self, event: dict[str, Any]) -> None:
        self.say(f"measuring the front, {event['networks']} networks in turns, with the machine to itself")

    def _on_generation_end(self, event: dict[str, Any]) -> None:
        best = ", ".join(f"best {name} {_metric(name, value)}" for name, value in event.get("best", {}).items())
        said = ((event["failed"], "failed"), (event.get("rejected"), "over the budget"))
        lost = " and ".join(f"{number} {word}" for number, word in said if number)
        lost = f" (of its own {event['asked']}, {lost})" if lost else ""
        front = f"{event['front']} on the front{'; ' if best else ''}{best}"
        self.say(f"{self._generation}: {event['evaluated']} evaluated so far{lost}, {front}")

    def _on_study_start(self, event: dict[str, Any]) -> None:
        self.say(
            f"study: {event['networks']} networks from scratch, {event['epochs']} epochs in each of "
            f"{event['folds']} folds"
        )

    def _on_study_training(self, event: dict[str, Any]) -> None:
        self.advance("retraining beside uniform widths", event["done"], event["total"])
        if event["status"] == "failed" and not event["replayed"]:
            self.say(f"training of {event['label']} failed: {event['reason']}")

    def _on_study_network(self, event: dict[str, Any]) -> None:
        self.say(f"{event['label']}: {_percent(event['accuracy'])}, frozen, verified and timed")


def _epoch_of_architecture(event: dict[str, Any]) -> str:
    """An epoch of a search by gradient in a line."""
    from ..report import numbers

    words = [f"epoch {event['epoch'] + 1}/{event['epochs']}: loss {event['loss']:.3f}"]
    if event["arch_loss"] is not None:
        words.append(f"architecture's {event['arch_loss']:.3f}")
    units = {"flops": ("FLOPs", numbers.count), "latency": ("latency", numbers.duration)}
    for name, value in event["expected"].items():
        word, shown = units[name]
        budget = f" of {shown(event['budgets'][name])}" if name in event["budgets"] else ""
        words.append(f"expected {word} {shown(value)}{budget}")
    words.append(f"entropy {event['entropies']['edges']:.2f} of edges, {event['entropies']['layout']:.2f} of layout")
    words.append(f"skips {_percent(event['skips'])}")
    return ", ".join(words)


def _metric(name: str, value: float) -> str:
    from ..report import numbers

    if name == "accuracy":
        return numbers.percent(value)
    if name.endswith("_us"):
        return numbers.duration(value)
    return f"{value:.2f}" if name == "fitness" else numbers.count(value)


def _percent(value: float | None) -> str:
    from ..report import numbers

    return numbers.percent(value)
