"""What one subnet is worth: accuracy with the supernet's weights, operations, and time on this machine.

The functions run in worker processes. They are given plain values and read data and supernet from files, which each
process keeps once; every random choice is seeded from the run's seed and the subnet, so neither the number of workers
nor the order of the candidates changes a result.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.methods import candidates
from bitnas.methods.candidates import derive_seed, load_data, release_memory, single_threaded
from bitnas.methods.nasbnn.config import NasBnnSearchConfig
from bitnas.methods.nasbnn.description import Description
from bitnas.methods.nasbnn.space import SubnetSpace
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from bitnas.cost.agreement import Check
    from bitnas.data import Splits
    from bitnas.methods.nasbnn.supernet import Supernet
    from bitnas.models.nasbnn import SubnetConfig
    from bitnas.train import Recipe

SUPERNET = "supernet.safetensors"


def split_data(config: NasBnnSearchConfig) -> Splits:
    """The run's split; supernet and search see train and val only."""
    return candidates.split_data(config.data, config.seed, config.train_fraction, config.val_fraction)


def description(config: NasBnnSearchConfig) -> Description:
    """The space of the run, for the images and classes of its data."""
    dataset = load_data(config.data, config.seed)
    return Description.from_dict(config.space).for_data(dataset.input_size, dataset.num_classes)


def search_space(config: NasBnnSearchConfig, *, window: bool = True) -> SubnetSpace:
    """The run's subnets, those within its window of OPs permitted; all of them without `window`."""
    return SubnetSpace(
        description(config),
        weight_normalization=config.strategies["weight_normalization"],
        ops=(config.ops_low, config.ops_high) if window else None,
    )


def supernet_recipe(config: NasBnnSearchConfig) -> Recipe:
    """How the run's supernet is trained."""
    from bitnas.train import RECIPES

    recipe = RECIPES[config.recipe]
    return recipe if config.supernet_epochs is None else recipe.for_epochs(config.supernet_epochs)


def architecture_key(config: NasBnnSearchConfig, genome: Genome) -> str:
    """SHA-256 of the subnet; the key of its rows in the journal."""
    return search_space(config, window=False).subnet(genome).key()


@functools.lru_cache(maxsize=1)
def load_supernet(path: str, device: str) -> Supernet:
    """The supernet, read once per process."""
    from bitnas.methods.nasbnn import training

    return training.load_supernet(Path(path)).to(device)


@single_threaded
def evaluate_candidate(genome: Genome, settings: dict[str, Any], run_dir: str) -> dict[str, float]:
    """Judge one subnet on the validation split, with the supernet's weights and batch-norm statistics of its own.

    Args:
        genome: of the run's space.
        settings: `NasBnnSearchConfig.to_dict()`.
        run_dir: the folder that holds the supernet.

    Returns:
        accuracy (fraction, validation split), ops, flops, bops, memory_bits, params.
    """
    from bitnas import train
    from bitnas.methods.nasbnn import training

    config = NasBnnSearchConfig.from_dict(settings)
    dataset, split = load_data(config.data, config.seed), split_data(config)
    space = search_space(config, window=False)
    subnet = space.subnet(genome)
    seed = derive_seed(config.seed, "calibration", subnet.key())
    network = training.inherited(
        load_supernet(str(Path(run_dir) / SUPERNET), candidates.pick_device(config.device, seed)),
        subnet,
        dataset.subset(split.train),
        batches=config.calibration_batches,
        batch_size=config.calibration_size,
        seed=seed,
    )
    accuracy = train.evaluate(network, dataset.subset(split.val))
    del network
    release_memory()
    return {"accuracy": accuracy, **costs(space, genome)}


def costs(space: SubnetSpace, genome: Genome) -> dict[str, float]:
    """Operations and memory as `bitnas.count(rule="nasbnn")` has them, in closed form: counting the module would take
    as long as judging it."""
    found = space.cost(genome)
    stem_weights = 9 * space.description.input_size[0] * genome[0]  # of 8 bits; all that is not binary has 32
    return {
        "ops": float(found.ops),
        "flops": float(found.flops),
        "bops": float(found.bops),
        "memory_bits": found.binary_weights + 32 * (found.params - found.binary_weights) - 24 * stem_weights,
        "params": float(found.params),
    }


def reference(config: NasBnnSearchConfig) -> Genome:
    """The subnet that candidates are timed beside: the middle of every choice, which is also the table's reference.

    The smallest one is mostly calls and would not show a machine whose memory has become slow; the biggest takes
    several times as long as a candidate.
    """
    from bitnas.methods.nasbnn.latency import LatencySpace

    return LatencySpace(description(config), config.strategies["weight_normalization"]).reference


def time_candidate(genome: Genome, settings: dict[str, Any], reference_us: float) -> dict[str, float]:
    """Latency of the frozen subnet, in us per batch, with this process alone on the machine.

    Args:
        genome: of the run's space.
        settings: `NasBnnSearchConfig.to_dict()`.
        reference_us: what the reference took when the search began.

    Returns:
        See `bitnas.methods.candidates.in_proportion`; the reference is the subnet of the middle choices.
    """
    config = NasBnnSearchConfig.from_dict(settings)
    return _in_proportion([genome], config, reference_us, candidates.SEARCH_SECONDS)[0]


def time_front(genomes: Sequence[Genome], settings: dict[str, Any], reference_us: float) -> list[dict[str, float]]:
    """The same of several subnets, timed longer and in turns with each other: what disturbs one meets all alike."""
    return _in_proportion(genomes, NasBnnSearchConfig.from_dict(settings), reference_us, candidates.FRONT_SECONDS)


def _in_proportion(
    genomes: Sequence[Genome], config: NasBnnSearchConfig, reference_us: float, seconds: float
) -> list[dict[str, float]]:
    space = search_space(config, window=False)
    networks = (_random_network(config, space.subnet(genome)) for genome in genomes)
    unit = _random_network(config, space.subnet(reference(config)))
    return candidates.in_proportion(networks, unit, config, reference_us, seconds)


def time_alone(genome: Genome, settings: dict[str, Any]) -> dict[str, float]:
    """Latency and interval of one subnet as the clock has it; see `time_candidate`."""
    config = NasBnnSearchConfig.from_dict(settings)
    return candidates.alone(_random_network(config, search_space(config, window=False).subnet(genome)), config)


def _random_network(config: NasBnnSearchConfig, subnet: SubnetConfig) -> nn.Module:
    """The kernels take the same time whatever the bits are."""
    import torch

    from bitnas.models import create_model_from_config

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "latency", subnet.key()))
        return create_model_from_config(subnet)


def table_check(config: NasBnnSearchConfig, table: str | None) -> Check | None:
    """How well the device table was found to agree with whole subnets of this run's space, if it was checked.

    Raises ValueError if the table was not built for this space on this device.
    """
    from bitnas.cost.device_table import default_table
    from bitnas.methods.nasbnn import latency

    space = description(config)
    where: dict[str, Any] = {"table": table, "batch": config.latency_batch, "threads": config.latency_threads}
    if not latency.built(space, **where):
        raise ValueError(
            f"latency_table: {table or default_table()} was not built for this run's subnets on this device; run "
            f"`bitnas latency build --method nasbnn` for space {space.name}, input size {space.input_size}, "
            f"{space.num_classes} classes, batch {config.latency_batch} and {config.latency_threads} threads"
        )
    return latency.last_check(space, **where)


def predict_candidate(genome: Genome, settings: dict[str, Any], table: str) -> dict[str, float]:
    """The same latency from the device table; see `bitnas.methods.candidates.predicted`."""
    from bitnas.methods.nasbnn import latency

    config = NasBnnSearchConfig.from_dict(settings)
    found = latency.predict(
        search_space(config, window=False).subnet(genome),
        table=table,
        batch=config.latency_batch,
        threads=config.latency_threads,
    )
    assert found.latency_us is not None
    return candidates.predicted(found.latency_us, config, table_check(config, table))
