"""What one candidate is worth: accuracy after a short training, operations, and time on this machine.

The training functions run in worker processes. They are given plain values and read data and parent from files, which
each process keeps once; every random choice is seeded from the run's seed and the architecture, so neither the number
of workers nor the order of the candidates changes a result.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnas.methods.width.config import WidthSearchConfig
from bitnas.search.evolution import penalised_accuracy
from bitnas.search.space import Genome

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor, nn

    from bitnas.data import Dataset, Splits
    from bitnas.models import ModelConfig

PARENT_FORMAT = "bitnas-parent-1"


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
def load_data(name: str, seed: int) -> Dataset:
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
        accuracy (fraction, validation split), fitness (percent points), and the costs.
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
    recipe = dataclasses.replace(train.RECIPES[config.recipe], epochs=config.epochs)
    train.fit(model, dataset.subset(split.train), recipe, seed=seed)
    accuracy = train.evaluate(model, dataset.subset(split.val))
    del model
    release_memory()
    found = costs(config, network)
    fitness = penalised_accuracy(accuracy, found["flops"] / unit_flops(config), penalty=config.fitness_lambda)
    return {"accuracy": accuracy, "fitness": fitness, **found}


def time_candidate(genome: Genome, settings: dict[str, Any]) -> dict[str, float]:
    """Latency of the frozen network, in us per batch, with this process alone on the machine.

    The kernels take the same time whatever the bits are, so the network has random weights.
    """
    from bitnas.cost import measure_latency
    from bitnas.packed import freeze

    config = WidthSearchConfig.from_dict(settings)
    network = network_config(config, genome)
    model = make_network(network, derive_seed(config.seed, "latency", network.key())).eval()
    latency = measure_latency(
        freeze(model), network.input_size, batch=config.latency_batch, threads=config.latency_threads
    )
    return {
        "latency_us": latency.median_us,
        "latency_iqr_us": latency.iqr_us,
        "latency_noisy": float(latency.noisy),
        "latency_runs": float(latency.runs),
    }
