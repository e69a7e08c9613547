"""What one derived network is worth: accuracy, operations, and time on this machine.

The functions run in worker processes. They are given plain values and read data and supernet from files, which each
process keeps once; every random choice is seeded from the run's seed and the network, so neither the number of workers
nor the order of the candidates changes a result.
"""

from __future__ import annotations

import functools
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.files import CorruptFileError
from bitnas.methods import candidates, trials
from bitnas.methods.bars.config import BarsSearchConfig
from bitnas.methods.bars.description import Architecture, Description
from bitnas.methods.candidates import derive_seed, load_data, release_memory, single_threaded
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import nn

    from bitnas.cost.agreement import Check
    from bitnas.data import Source, Splits
    from bitnas.methods.bars.prices import FlopPrices
    from bitnas.methods.bars.supernet import Supernet
    from bitnas.models.bars import BarsConfig
    from bitnas.train import Recipe

SUPERNET = "supernet.safetensors"
FLOPS, LATENCY = "flops", "latency"


def split_data(config: BarsSearchConfig) -> Splits:
    """The run's split; supernet and search see train and val only."""
    return candidates.split_data(config.data, config.seed, config.train_fraction, config.val_fraction)


def halves(config: BarsSearchConfig) -> tuple[Source, Source]:
    """Of the train split, the images that train the weights, and those that train the architecture.

    Raises ValueError where none are left for one of them, or all images are of one class.
    """
    dataset = load_data(config.data, config.seed)
    candidates.check_classes(dataset)
    train = dataset.subset(split_data(config).train)
    parts = train.split(config.search_fraction, 1 - config.search_fraction, 0.0, derive_seed(config.seed, "halves"))
    for name, part in (("weights", parts.train), ("architecture", parts.val)):
        if not len(part):
            raise ValueError(
                f"search_fraction: got {config.search_fraction}, which leaves no images of {config.data} for the {name}"
            )
    return train.subset(parts.train), train.subset(parts.val)


def few_images(config: BarsSearchConfig) -> list[str]:
    """Warnings where what trains the architecture, or what judges, has hardly an image of some class."""
    val = load_data(config.data, config.seed).subset(split_data(config).val)
    return candidates.few_images({"the images that train the architecture": halves(config)[1], "the validation": val})


def description(config: BarsSearchConfig) -> Description:
    """The space of the run, for the images and classes of its data."""
    dataset = load_data(config.data, config.seed)
    return Description.from_dict(config.space).for_data(dataset.input_size, dataset.num_classes)


def network(config: BarsSearchConfig, genome: Sequence[float]) -> BarsConfig:
    """The network of a point of the run's space."""
    space = description(config)
    return space.network(space.architecture(genome))


def architecture_key(config: BarsSearchConfig, genome: Genome) -> str:
    """SHA-256 of the network; the key of its rows in the journal."""
    return network(config, genome).key()


def prices(config: BarsSearchConfig, table: str | None) -> Mapping[str, Any]:
    """The price lists that the loss may hold, by name: FLOPs always, a latency where the run has a device table."""
    from bitnas.methods.bars.prices import FlopPrices, LatencyPrices

    space = description(config)
    found: dict[str, Any] = {FLOPS: FlopPrices(space)}
    if config.latency_in_loss:
        found[LATENCY] = LatencyPrices(space, table, batch=config.latency_batch, threads=config.latency_threads)
    return found


@functools.lru_cache(maxsize=1)
def _flop_prices(space: Description) -> FlopPrices:
    from bitnas.methods.bars.prices import FlopPrices

    return FlopPrices(space)


def recipe(config: BarsSearchConfig) -> Recipe | None:
    """How derived networks are trained, or None for a run that judges them with the supernet's weights."""
    from bitnas.train import RECIPES

    return RECIPES[config.recipe].for_epochs(config.train_epochs) if config.train_epochs else None


def read_supernet(path: Path) -> Supernet:
    """The supernet of a run folder. Raises FileNotFoundError, or CorruptFileError with the way out."""
    from bitnas.methods.bars import training

    try:
        return training.load_supernet(path)
    except CorruptFileError as error:
        again = "Delete it and course.json, then `bitnas resume`: the same supernet is trained again"
        raise CorruptFileError(path, f"{error.reason.rstrip('.')}. {again}") from error


@functools.lru_cache(maxsize=1)
def load_supernet(path: str) -> Supernet:
    """The same, read once per process."""
    return read_supernet(Path(path))


def inherited(config: BarsSearchConfig, architecture: Architecture, path: str) -> nn.Module:
    """The network with the supernet's weights and batch norm measured on the images that trained these, in evaluation
    mode."""
    from bitnas.methods.calibration import recalibrate

    weights, _ = halves(config)
    supernet = load_supernet(path)
    key = supernet.description.network(architecture).key()
    seed = derive_seed(config.seed, "calibration", key)
    model = supernet.extract(architecture).eval().to(candidates.pick_device(config.device, seed))
    recalibrate(model, weights, batches=config.calibration_batches, batch_size=config.calibration_size, seed=seed)
    return model


@single_threaded
def evaluate_candidate(genome: Genome, settings: dict[str, Any], run_dir: str) -> dict[str, float]:
    """Judge one derived network on the validation split: trained from scratch on the train split, or with the
    supernet's weights where the settings have no epochs for that.

    Args:
        genome: of the run's space.
        settings: `BarsSearchConfig.to_dict()`.
        run_dir: the folder that holds the supernet.

    Returns:
        accuracy (fraction, validation split); ops, flops, bops, memory_bits, params by rule mac; loss_flops, what the
        loss counts (rule bars, without stem and classifier).
    """
    from bitnas import train

    config = BarsSearchConfig.from_dict(settings)
    dataset, split = load_data(config.data, config.seed), split_data(config)
    space = description(config)
    architecture = space.architecture(genome)
    training = recipe(config)
    if training is None:
        model = inherited(config, architecture, str(Path(run_dir) / SUPERNET))
    else:
        chosen = space.network(architecture)
        seed = derive_seed(config.seed, "train", chosen.key())
        model = trials.make_network(chosen, seed).to(candidates.pick_device(config.device, seed))
        train.fit(model, dataset.subset(split.train), training, seed=seed)
    accuracy = train.evaluate(model, dataset.subset(split.val))
    del model
    release_memory()
    return {"accuracy": accuracy, **costs(space, architecture)}


def costs(space: Description, architecture: Architecture) -> dict[str, float]:
    """Operations and memory by rule mac, and what the loss counts, in closed form."""
    from bitnas.methods.bars import cost

    found = {name: float(value) for name, value in cost.costs(space, architecture).items()}
    return {**found, "loss_flops": _flop_prices(space).of(architecture)}


def reference(config: BarsSearchConfig) -> Genome:
    """The network that candidates are timed beside, which is also the table's reference: small ones are mostly calls
    and would not show a machine whose memory has become slow."""
    from bitnas.methods.bars.latency import LatencySpace

    return LatencySpace(description(config)).reference


def time_candidate(genome: Genome, settings: dict[str, Any], reference_us: float) -> dict[str, float]:
    """Latency of the frozen network, in us per batch, with this process alone on the machine.

    Args:
        genome: of the run's space.
        settings: `BarsSearchConfig.to_dict()`.
        reference_us: what the reference took when the search began.

    Returns:
        See `bitnas.methods.candidates.in_proportion`.
    """
    config = BarsSearchConfig.from_dict(settings)
    return _in_proportion([genome], config, reference_us, candidates.SEARCH_SECONDS)[0]


def time_front(genomes: Sequence[Genome], settings: dict[str, Any], reference_us: float) -> list[dict[str, float]]:
    """The same of several networks, timed longer and in turns with each other: what disturbs one meets all alike."""
    return _in_proportion(genomes, BarsSearchConfig.from_dict(settings), reference_us, candidates.FRONT_SECONDS)


def _in_proportion(
    genomes: Sequence[Genome], config: BarsSearchConfig, reference_us: float, seconds: float
) -> list[dict[str, float]]:
    networks = (_random_network(config, genome) for genome in genomes)
    unit = _random_network(config, reference(config))
    return candidates.in_proportion(networks, unit, config, reference_us, seconds)


def time_alone(genome: Genome, settings: dict[str, Any]) -> dict[str, float]:
    """Latency and interval of one network as the clock has it; see `time_candidate`."""
    config = BarsSearchConfig.from_dict(settings)
    return candidates.alone(_random_network(config, genome), config)


def _random_network(config: BarsSearchConfig, genome: Genome) -> nn.Module:
    """The kernels take the same time whatever the bits are."""
    chosen = network(config, genome)
    return trials.make_network(chosen, derive_seed(config.seed, "latency", chosen.key()))


def table_check(config: BarsSearchConfig, table: str | None) -> Check | None:
    """How well the device table was found to agree with whole networks of this run's space, if it was checked.

    Raises FileNotFoundError where there is none, ValueError if it was not built for this space on this device; both
    say how to build one.
    """
    from bitnas.cost.device_table import default_table
    from bitnas.methods.bars import latency

    space = description(config)
    where: dict[str, Any] = {"table": table, "batch": config.latency_batch, "threads": config.latency_threads}
    try:
        built = latency.built(space, **where)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {_how_to_build(config, space)}") from error
    if not built:
        raise ValueError(
            f"latency_table: {table or default_table()} was not built for this run's networks on this device. "
            f"{_how_to_build(config, space)}"
        )
    return latency.last_check(space, **where)


def _how_to_build(config: BarsSearchConfig, space: Description) -> str:
    from bitnas.methods.bars.description import DESCRIPTIONS

    known = DESCRIPTIONS.get(space.name)
    own = known is not None and known.for_data(space.input_size, space.num_classes) == space
    table = "" if config.latency_table is None else f" --table {shlex.quote(str(config.latency_table))}"
    return (
        f"Run: bitnas latency build --method bars --space {space.name if own else 'FILE.json'} --data "
        f"{shlex.quote(config.data)} --batch {config.latency_batch} --threads {config.latency_threads}{table}"
        + ("" if own else f", with the file of the space {space.name}")
    )


def predict_candidate(genome: Genome, settings: dict[str, Any], table: str) -> dict[str, float]:
    """The same latency from the device table; see `bitnas.methods.candidates.predicted`."""
    from bitnas.methods.bars import latency

    config = BarsSearchConfig.from_dict(settings)
    found = latency.predict(
        network(config, genome), table=table, batch=config.latency_batch, threads=config.latency_threads
    )
    assert found.latency_us is not None
    return candidates.predicted(found.latency_us, config, table_check(config, table))
