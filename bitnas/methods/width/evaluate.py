"""What one candidate is worth: accuracy after a short training, operations, and time on this machine.

The training functions run in worker processes. They are given plain values and read data and parent from files, which
each process keeps once; every random choice is seeded from the run's seed and the architecture, so neither the number
of workers nor the order of the candidates changes a result.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.methods import candidates
from bitnas.methods.candidates import derive_seed, load_data, release_memory, single_threaded
from bitnas.methods.width.config import WidthSearchConfig
from bitnas.search.evolution import penalised_accuracy
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from bitnas.cost.agreement import Check
    from bitnas.data import Splits
    from bitnas.models import ModelConfig

PARENT_FORMAT = "bitnas-parent-1"


def split_data(config: WidthSearchConfig) -> Splits:
    """The run's split; parent and search see train and val only."""
    return candidates.split_data(config.data, config.seed, config.train_fraction, config.val_fraction)


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
    return candidates.pick_device(config.device, seed)


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


def reference(config: WidthSearchConfig) -> Genome:
    """The un-widened network: the unit of FLOPs and latency, and what candidates are timed beside."""
    from bitnas.models import num_ratios

    return (1.0,) * num_ratios(config.model)


def time_candidate(genome: Genome, settings: dict[str, Any], reference_us: float) -> dict[str, float]:
    """Latency of the frozen network, in us per batch, with this process alone on the machine.

    Args:
        genome: its ratios.
        settings: `WidthSearchConfig.to_dict()`.
        reference_us: what the un-widened network took when the search began.

    Returns:
        See `bitnas.methods.candidates.in_proportion`; the reference is the un-widened network.
    """
    config = WidthSearchConfig.from_dict(settings)
    return _in_proportion([genome], config, reference_us, candidates.SEARCH_SECONDS)[0]


def time_front(genomes: Sequence[Genome], settings: dict[str, Any], reference_us: float) -> list[dict[str, float]]:
    """The same of several networks, timed longer and in turns with each other: what disturbs one meets all alike."""
    return _in_proportion(genomes, WidthSearchConfig.from_dict(settings), reference_us, candidates.FRONT_SECONDS)


def _in_proportion(
    genomes: Sequence[Genome], config: WidthSearchConfig, reference_us: float, seconds: float
) -> list[dict[str, float]]:
    networks = (_random_network(config, genome) for genome in genomes)
    return candidates.in_proportion(networks, _random_network(config, reference(config)), config, reference_us, seconds)


def time_alone(genome: Genome, settings: dict[str, Any]) -> dict[str, float]:
    """Latency and interval of one network as the clock has it; see `time_candidate`."""
    config = WidthSearchConfig.from_dict(settings)
    return candidates.alone(_random_network(config, genome), config)


def _random_network(config: WidthSearchConfig, genome: Genome) -> nn.Module:
    network = network_config(config, genome)
    return make_network(network, derive_seed(config.seed, "latency", network.key()))


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
    """The same latency from the device table; see `bitnas.methods.candidates.predicted`."""
    from bitnas.methods.width import latency

    config = WidthSearchConfig.from_dict(settings)
    found = latency.predict(
        network_config(config, genome),
        table=table,
        batch=config.latency_batch,
        threads=config.latency_threads,
    )
    assert found.latency_us is not None
    return candidates.predicted(found.latency_us, config, table_check(config, table))
