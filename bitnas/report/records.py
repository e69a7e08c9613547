"""What a run folder says, as plain records: every number may be missing, and none is invented.

A metric that was not measured is None here, so that whoever writes about it has to say so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cells import Space

SEARCHED, UNIFORM = "searched", "uniform"
_BEYOND = 1e18  # operations, bits or us; also keeps axes from overflowing


@dataclass(frozen=True)
class Network:
    """One retrained network of the study, or one of the search front. `values` is its JSON object."""

    values: Mapping[str, Any]

    @property
    def label(self) -> str:
        return str(self.values.get("label", "")) or "network"

    @property
    def kind(self) -> str:
        return str(self.values.get("kind", SEARCHED))

    @property
    def pair(self) -> str:
        return str(self.values.get("pair", ""))

    @property
    def key(self) -> str:
        return str(self.values.get("key", ""))

    @property
    def ratios(self) -> tuple[float, ...]:
        return tuple(float(ratio) for ratio in self.values.get("ratios") or ())

    @property
    def subnet(self) -> Mapping[str, Any] | None:
        """Stem and blocks of a subnet of NAS-BNN; None for any other network."""
        found = self.values.get("subnet")
        return found if isinstance(found, Mapping) else None

    @property
    def architecture(self) -> Mapping[str, Any] | None:
        """Cells, widths and depths of a network of BARS; None for any other."""
        found = self.values.get("architecture")
        return found if isinstance(found, Mapping) else None

    @property
    def widths(self) -> list[int]:
        """Channels of each searched layer, in order."""
        return [int(width) for width in self.values.get("widths") or ()]

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Per-layer latency: `name`, `packed_us`, `float_us`, `macs`, `binary`."""
        return [layer for layer in self.values.get("layers") or () if isinstance(layer, dict)]

    def get(self, name: str) -> float | None:
        """A finite number, or None where it was not measured."""
        return number(self.values, name)

    @property
    def interval(self) -> tuple[float, float] | None:
        """Both ends of the accuracy interval, as fractions."""
        low, high = self.get("accuracy_low"), self.get("accuracy_high")
        return None if low is None or high is None else (low, high)

    @property
    def verified(self) -> bool | None:
        """Whether the frozen network was proved equal to the trained one; None if that was not tried."""
        found = self.values.get("verified")
        if isinstance(found, dict):
            found = found.get("ok")
        return found if isinstance(found, bool) else None


@dataclass(frozen=True)
class Candidate:
    """One evaluation of the search that succeeded. `label` is its name on the front, if it is there."""

    ratios: tuple[float, ...]
    metrics: Mapping[str, Any]
    generation: int | None
    key: str = ""
    label: str = ""
    subnet: Mapping[str, Any] | None = None
    architecture: Mapping[str, Any] | None = None

    def get(self, name: str) -> float | None:
        return number(self.metrics, name)


Point = Network | Candidate


@dataclass(frozen=True)
class Dropped:
    """One evaluation of the search that failed or was beyond a limit, with the reason that was recorded."""

    ratios: tuple[float, ...]
    reason: str
    generation: int | None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    subnet: Mapping[str, Any] | None = None
    architecture: Mapping[str, Any] | None = None

    def get(self, name: str) -> float | None:
        return number(self.metrics, name)


@dataclass(frozen=True)
class TableCheck:
    """How predictions of a device table agreed with whole networks it had not seen. Errors are shares of the measured
    latency; `pairs` are (predicted, measured) in us; `met` is whether the table reached its goal."""

    values: Mapping[str, Any]
    pairs: Sequence[tuple[float, float]]

    def get(self, name: str) -> float | None:
        return number(self.values, name)

    @property
    def met(self) -> bool | None:
        found = self.values.get("goal_met", self.values.get("good"))
        return found if isinstance(found, bool) else None

    @property
    def date(self) -> str:
        """Day of the check, as recorded."""
        return str(self.values.get("date") or "").partition("T")[0]


@dataclass(frozen=True)
class Run:
    """A run folder in memory; what has not been written yet is empty.

    Attributes:
        config: of the search; empty in a folder that holds only a reproduction or a claim.
        fronts: keys of the networks on the front after each generation.
        latency_source: "measured" or "table", what the search selected by; None if it is not recorded.
        reproduction, claim: `reproduction.json` and `claim.json`.
        claim_config: configuration of the claim's first search.
        supernet_log: rows of `supernet.csv`, one for each epoch of the supernet's training.
        ranking, ablation, against: the studies of NAS-BNN, as their files hold them.
        space: of a search by BARS.
        course: one record for each epoch of its search by gradient.
        cell_studies: its studies, by name, as their files hold them.
        comparison: `compare.json`, the methods against each other.
    """

    folder: Path
    config: dict[str, Any] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    failures: list[Dropped] = field(default_factory=list)
    rejected: list[Dropped] = field(default_factory=list)
    fronts: list[list[str]] = field(default_factory=list)
    latency_source: str | None = None
    table_check: TableCheck | None = None
    front: list[Network] = field(default_factory=list)
    networks: list[Network] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    overall: dict[str, Any] = field(default_factory=dict)
    protocol: dict[str, Any] = field(default_factory=dict)
    reproduction: dict[str, Any] = field(default_factory=dict)
    claim: dict[str, Any] = field(default_factory=dict)
    claim_config: dict[str, Any] = field(default_factory=dict)
    supernet_log: list[dict[str, float]] = field(default_factory=list)
    ranking: dict[str, Any] = field(default_factory=dict)
    ablation: dict[str, Any] = field(default_factory=dict)
    against: dict[str, Any] = field(default_factory=dict)
    space: Space | None = None
    course: list[dict[str, Any]] = field(default_factory=list)
    cell_studies: dict[str, dict[str, Any]] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)

    @property
    def of_subnets(self) -> bool:
        """Whether this is a search of NAS-BNN, whose networks are subnets of one supernet."""
        return self.config.get("method") == "nasbnn"

    @property
    def of_cells(self) -> bool:
        """Whether this is a search by BARS, whose networks are derived from probabilities."""
        return self.config.get("method") == "bars"

    @property
    def derived(self) -> bool:
        """Whether networks have architectures of their own, not ratios, and are deployed."""
        return self.of_subnets or self.of_cells

    def pairs(self) -> list[tuple[Network, Network]]:
        """(searched, uniform) of equal cost, in the order of the study."""
        uniform = {network.pair: network for network in self.networks if network.kind == UNIFORM}
        return [
            (network, uniform[network.pair])
            for network in self.networks
            if network.kind == SEARCHED and network.pair in uniform
        ]

    @property
    def predicted(self) -> bool:
        """Whether the latencies the search selected by were added up from a table."""
        return self.latency_source == "table"


def number(record: Mapping[str, Any], name: str) -> float | None:
    """`record[name]` if it is a finite number, and not one that no figure of a network can reach; otherwise None."""
    value = record.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        found = float(value)
    except OverflowError:  # an integer beyond any float
        return None
    return found if abs(found) < _BEYOND else None


def setting(config: Any, name: str) -> Any:
    """A setting of a configuration, wherever in it the name stands first; None if it does not."""
    if not isinstance(config, dict):
        return None
    if name in config:
        return config[name]
    return next((found for found in (setting(value, name) for value in config.values()) if found is not None), None)


def latency_interval(point: Point) -> tuple[float, float]:
    """What a latency is known to, in us: the measured interval, else as far as half the interquartile range to both
    sides, and never less than 1 %, by which two runs of one network differ on a quiet machine."""
    middle = point.get("latency_us") or 0.0
    low, high = point.get("latency_low_us"), point.get("latency_high_us")
    if low is not None and high is not None and low <= middle <= high:
        return low, high
    half = max((point.get("latency_iqr_us") or 0.0) / 2, 0.01 * middle)
    return middle - half, middle + half


def code(point: Point | Dropped) -> str:
    """What tells a network from others, in one line: its ratios, the blocks of a subnet, or depths and widths."""
    if point.subnet is not None:
        return subnet_code(point.subnet)
    if point.architecture is not None:
        return architecture_code(point.architecture)
    ratios = point.ratios
    if isinstance(point, Network) and point.kind == UNIFORM and len(set(ratios)) == 1:
        return f"× {ratios[0]:.3g}"
    return ", ".join(f"{ratio:.3g}" for ratio in ratios)


def name_of(point: Point) -> str:
    """What the report calls a network: its label, else its ratios."""
    return point.label if point.label and point.label != "network" else f"[{code(point)}]"


def subnet_code(subnet: Mapping[str, Any]) -> str:
    """Channels of the stem, then channels/kernel/groups of each block; a bar before a block that halves the resolution,
    as in the tables of NAS-BNN."""
    words = [f"{subnet['stem']} |"]
    for index, block in enumerate(subnet["blocks"]):
        words += ["|"] if index and block.get("stride") == 2 else []
        words.append(f"{block['channels']}/{block['kernel']}/{block.get('groups', 1)}")
    return " ".join(words)


def architecture_code(architecture: Mapping[str, Any]) -> str:
    """What tells a network of BARS from others at a glance; its cells are drawn."""
    widths = ", ".join(f"{share:.3g}" for share in architecture["widths"])
    return f"depths {', '.join(map(str, architecture['depths']))} · widths {widths}"
