"""What one candidate is worth: accuracy after a short training, operations, and time on this machine.

The training functions run in worker processes. They are given plain values and read data and parent from files, which
each process keeps once; every random choice is seeded from the run's seed and the architecture, so neither the number
of workers nor the order of the candidates changes a result.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.methods.width.config import WidthSearchConfig
from bitnas.search.evolution import penalised_accuracy
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor, nn

    from bitnas.cost.agreement import Check
    from bitnas.cost.timing import Timing
    from bitnas.data import Source, Splits
    from bitnas.models import ModelConfig

PARENT_FORMAT = "bitnas-parent-1"

# A latency is measured until its median's 95 % interval is under 2 % of it, or for so many seconds: in the search,
# where it is put in proportion to a reference, and at the end.
_HALF_INTERVAL, _SEARCH_SECONDS, _FRONT_SECONDS = 0.01, 0.5, 1.0


def single_threaded(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with torch on one thread, in a worker or not: sums depend on the number of threads."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        from bitnas.cost.latency import thread_count

        with thread_count(1):
            return function(*args, **kwargs)

    return run


def start_worker() -> None:
    """One thread per process: the processes are what uses the cores."""
    import torch

    torch.set_num_threads(1)


def release_memory() -> None:
    """Give freed memory back to the system, where the C library can (glibc); a wide network leaves 130 MB otherwise."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


@functools.lru_cache(maxsize=1)
def load_data(name: str, seed: int) -> Source:
    """The data set, read once per process."""
    from bitnas import data

    return data.load(name, seed=seed)


def split_data(config: WidthSearchConfig) -> Splits:
    """The run's split; parent and search see train and val only."""
    test = 1 - config.train_fraction - config.val_fraction
    return load_data(config.data, config.seed).split(config.train_fraction, config.val_fraction, test)


def network_config(config: WidthSearchConfig, ratios: Genome | float) -> ModelConfig:
    """The network that a width code stands for in this run."""
    from bitnas.models import make_config

    dataset = load_data(config.data, config.seed)
    return make_config(
        config.model,
        ratios=ratios,
        num_classes=dataset.num_classes,
        input_size=dataset.input_size,
        base_width=config.base_width,
        scheme=config.scheme,
    )


def architecture_key(config: WidthSearchConfig, ratios: Genome) -> str:
    """SHA-256 of the network; the key of its rows in the journal."""
    return network_config(config, ratios).key()


def derive_seed(*parts: object) -> int:
    """A seed of 31 bits from whatever names the task."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:4]) >> 1


def make_network(network: ModelConfig, seed: int) -> nn.Module:
    """The network with random weights that the seed decides; torch's global random state is left as it was."""
    import torch

    from bitnas.models import create_model_from_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create_model_from_config(network)


def costs(config: WidthSearchConfig, network: ModelConfig) -> dict[str, float]:
    """Operations and memory by the run's counting rule; no weights are allocated."""
    from bitnas.cost import count

    options = network.to_dict()
    counted = count(options.pop("name"), rule=config.counting_rule, **options)
    return {
        "flops": float(counted.flops),
        "ops": float(counted.ops),
        "bops": float(counted.bops),
        "macs": float(counted.macs),
        "params": float(counted.params),
        "memory_bits": float(counted.memory_bits),
    }


@functools.lru_cache(maxsize=1)
def unit_flops(config: WidthSearchConfig) -> float:
    """FLOPs of the un-widened network (every ratio 1), the paper's unit of F."""
    return costs(config, network_config(config, 1.0))["flops"]


@functools.lru_cache(maxsize=1)
def load_parent(path: str) -> Mapping[str, Tensor]:
    """The parent's tensors, read once per process."""
    from bitnas.files import load_tensors

    return load_tensors(path, expected_format=PARENT_FORMAT)[0]


@single_threaded
def train_candidate(genome: Genome, settings: dict[str, Any], run_dir: str) -> dict[str, float]:
    """Train one candidate on the train split and measure it on the validation split.

    Args:
        genome: its ratios.
        settings: `WidthSearchConfig.to_dict()`.
        run_dir: the run folder, which holds the parent.

    Returns:
        accuracy (fraction, validation split), and the costs.
    """
    from bitnas import train

    config = WidthSearchConfig.from_dict(settings)
    dataset, split = load_data(config.data, config.seed), split_data(config)
    network = network_config(config, genome)
    seed = derive_seed(config.seed, "candidate", network.key())
    model = make_network(network, seed)
    if config.inherit:
        from bitnas.methods.width.inherit import inherit

        inherit(model, load_parent(str(Path(run_dir) / "parent.safetensors")))
    model.to(training_device(config, seed))
    recipe = train.RECIPES[config.recipe].for_epochs(config.epochs)
    train.fit(model, dataset.subset(split.train), recipe, seed=seed)
    accuracy = train.evaluate(model, dataset.subset(split.val))
    del model
    release_memory()
    return {"accuracy": accuracy, **costs(config, network)}


def training_device(config: WidthSearchConfig, seed: int) -> str:
    """Where a network is trained; the seed spreads candidates over several GPUs."""
    import torch

    if config.device == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        raise RuntimeError("device: got 'cuda', but torch finds no GPU here; use 'cpu'")
    return f"cuda:{seed % torch.cuda.device_count()}"


def derived(config: WidthSearchConfig, metrics: Mapping[str, float], unit_latency: float | None) -> dict[str, float]:
    """The fitness of what was measured; with a latency term also the interval that its noise leaves.

    Args:
        metrics: accuracy, flops, and with a latency term latency_us and its interval.
        unit_latency: us of the un-widened network, measured in the same way; None without a latency term.
    """
    relative_flops = metrics["flops"] / unit_flops(config)

    def fitness(latency: float) -> float:
        return penalised_accuracy(
            metrics["accuracy"],
            relative_flops,
            penalty=config.fitness_lambda,
            relative_latency=latency / unit_latency if unit_latency else 0.0,
            latency_penalty=config.latency_weight if unit_latency else 0.0,
        )

    if unit_latency is None:
        return {"fitness": fitness(0.0)}
    slow, fast = metrics["latency_high_us"], metrics["latency_low_us"]
    return {"fitness": fitness(metrics["latency_us"]), "fitness_low": fitness(slow), "fitness_high": fitness(fast)}


def beyond_budget(config: WidthSearchConfig, metrics: Mapping[str, float]) -> str | None:
    """Why a candidate is beyond the latency budget, or None: only a latency whose whole interval is above counts."""
    budget = config.latency_budget
    if budget is None or metrics.get("latency_low_us", 0.0) <= budget:
        return None
    return f"its latency of {metrics['latency_us']:.1f} us is over the budget of {budget:g} us"


def reference(config: WidthSearchConfig) -> Genome:
    """The un-widened network: the unit of FLOPs and latency, and what candidates are timed beside."""
    from bitnas.models import num_ratios

    return (1.0,) * num_ratios(config.model)


def time_candidate(genome: Genome, settings: dict[str, Any], reference_us: float) -> dict[str, float]:
    """Latency of the frozen network, in us per batch, with this process alone on the machine.

    It is timed in turns with the un-widened network, and put in proportion: what a machine that has become slower or
    faster since does to both says nothing of the candidate. The kernels take the same time whatever the bits are, so
    networks have random weights.

    Args:
        genome: its ratios.
        settings: `WidthSearchConfig.to_dict()`.
        reference_us: what the un-widened network took when the search began.

    Returns:
        latency_us, its interval latency_low_us and latency_high_us (never narrower than the run's latency_tolerance),
        latency_iqr_us, latency_noisy (0 or 1), latency_runs; latency_drift, how much slower the un-widened network was
        than at the beginning, as a factor.
    """
    return _in_proportion([genome], WidthSearchConfig.from_dict(settings), reference_us, _SEARCH_SECONDS)[0]


def time_front(genomes: Sequence[Genome], settings: dict[str, Any], reference_us: float) -> list[dict[str, float]]:
    """The same of several networks, timed longer and in turns with each other: what disturbs one meets all alike."""
    return _in_proportion(genomes, WidthSearchConfig.from_dict(settings), reference_us, _FRONT_SECONDS)


def _in_proportion(
    genomes: Sequence[Genome], config: WidthSearchConfig, reference_us: float, seconds: float
) -> list[dict[str, float]]:
    *timings, unit = _timings([*genomes, reference(config)], config, seconds)
    drift = unit.median_us / reference_us
    share = (unit.high_us - unit.low_us) / (2 * unit.median_us)
    found = []
    for own in timings:
        metrics = _latency(own, config, share)
        scaled = {name: value / drift for name, value in metrics.items() if name.endswith("_us")}
        noisy = float(own.noisy or unit.noisy)
        found.append({**metrics, **scaled, "latency_noisy": noisy, "latency_drift": drift})
    return found


def time_alone(genome: Genome, settings: dict[str, Any]) -> dict[str, float]:
    """Latency and interval of one network as the clock has it; see `time_candidate`."""
    config = WidthSearchConfig.from_dict(settings)
    return _latency(_timings([genome], config, _FRONT_SECONDS)[0], config)


def _timings(genomes: Sequence[Genome], config: WidthSearchConfig, seconds: float) -> list[Timing]:
    """Of networks in turns, for up to so many seconds each."""
    import torch

    from bitnas.cost.exclusive import exclusive
    from bitnas.cost.latency import thread_count
    from bitnas.cost.timing import time_interleaved, times_preempted
    from bitnas.packed import freeze

    networks = [network_config(config, genome) for genome in genomes]
    frozen = [freeze(make_network(net, derive_seed(config.seed, "latency", net.key())).eval()) for net in networks]
    x = torch.rand((config.latency_batch, *networks[0].input_size), generator=torch.Generator().manual_seed(0))
    calls = {index: functools.partial(network, x) for index, network in enumerate(frozen)}
    with exclusive(), thread_count(config.latency_threads), torch.inference_mode():
        timings = time_interleaved(
            calls, seconds=seconds * len(calls), tolerance=_HALF_INTERVAL, preempted=times_preempted
        )
    del frozen, calls
    release_memory()
    return [timings[index] for index in range(len(genomes))]


def _latency(timing: Timing, config: WidthSearchConfig, share: float = 0.0) -> dict[str, float]:
    """A timing as metrics; `share` of the median is unknown besides."""
    unknown = share * timing.median_us
    margin = 0.5 * config.latency_tolerance * timing.median_us
    return {
        "latency_us": timing.median_us,
        "latency_low_us": min(timing.low_us - unknown, timing.median_us - margin),
        "latency_high_us": max(timing.high_us + unknown, timing.median_us + margin),
        "latency_iqr_us": timing.iqr_us,
        "latency_noisy": float(timing.noisy),
        "latency_runs": float(timing.runs),
    }


def table_check(config: WidthSearchConfig, table: str | None) -> Check | None:
    """How well the device table was found to agree with whole networks of this run's space, if it was checked.

    Raises ValueError if the table was not built for this space on this device.
    """
    from bitnas.cost.device_table import default_table
    from bitnas.methods.width import latency

    unit = network_config(config, 1.0)
    where: dict[str, Any] = {
        "table": table,
        "batch": config.latency_batch,
        "threads": config.latency_threads,
    }
    if not latency.built(unit, config.choices, **where):
        raise ValueError(
            f"latency_table: {table or default_table()} was not built for this run's networks on this "
            f"device; run `bitnas latency build` for {config.model}, input size {unit.input_size}, "
            f"{unit.num_classes} classes, base width {config.base_width}, choices {list(config.choices)}, batch "
            f"{config.latency_batch} and {config.latency_threads} threads"
        )
    return latency.last_check(unit, config.choices, **where)


def predict_candidate(genome: Genome, settings: dict[str, Any], table: str) -> dict[str, float]:
    """The same latency from the device table, with the interval that its errors leave between networks.

    That is what nineteen in twenty of the table's check stayed below, without the bias that all share; never narrower
    than the run's latency_tolerance. `latency_predicted` is 1.
    """
    from bitnas.methods.width import latency

    config = WidthSearchConfig.from_dict(settings)
    found = latency.predict(
        network_config(config, genome),
        table=table,
        batch=config.latency_batch,
        threads=config.latency_threads,
    )
    assert found.latency_us is not None
    check = table_check(config, table)
    share = max(0.5 * config.latency_tolerance, check.scatter_95 if check else 0.0)
    return {
        "latency_us": found.latency_us,
        "latency_low_us": (1 - share) * found.latency_us,
        "latency_high_us": (1 + share) * found.latency_us,
        "latency_predicted": 1.0,
    }
