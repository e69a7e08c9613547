"""Training shared by processes that torchrun started. With one process every function here does nothing.

Gradients are summed in one flat tensor of a fixed order. DistributedDataParallel regroups its buckets after the first
step, and rings of three or more processes then add in another order than a resumed run does, so it cannot repeat bits.
The same tensor carries loss and counts, so every process sees a diverged step, or a Ctrl-C, at the same step.
"""

from __future__ import annotations

import datetime
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

# Longer than any wait for a slow process that is alive: reading a data set, writing a checkpoint.
TIMEOUT_S = 600.0
_LAUNCHED_WITH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class PeerLost(RuntimeError):
    """Another process of the training ended or hangs, so this one cannot go on."""


def launched() -> bool:
    """True in a process that torchrun started."""
    return all(name in os.environ for name in _LAUNCHED_WITH)


def rank() -> int:
    """This process's number; 0 writes files and speaks."""
    return dist.get_rank() if _active() else 0


def process_count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if _active() else 1


def local_device(kind: str) -> torch.device:
    """`"cpu"`, `"cuda"`, or `"auto"` (a GPU if there is one) as this process's device: one GPU for each local rank.

    Raises ValueError for another kind, or if there is no GPU for this process.
    """
    if kind not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be one of 'auto', 'cpu', 'cuda', got {kind!r}")
    if kind == "cpu" or (kind == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    index, there = int(os.environ["LOCAL_RANK"]) if launched() else 0, torch.cuda.device_count()
    if not there:
        raise ValueError("device 'cuda': there is no GPU here that torch can use; ask for device 'cpu'")
    if index >= there:
        raise ValueError(
            f"device 'cuda': process {index} of this machine wants a GPU of its own, but there are {there}; "
            f"start at most {there} processes, or ask for device 'cpu'"
        )
    return torch.device("cuda", index)


@contextmanager
def joined(device: torch.device, *, timeout_s: float = TIMEOUT_S) -> Iterator[None]:
    """Join the processes that torchrun started, for the duration of the block; gloo on a CPU, NCCL on GPUs.

    Does nothing in a process that torchrun did not start. A process that waits longer than `timeout_s` raises PeerLost.
    """
    if not launched() or _active():
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    with _explained("joining"):
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=datetime.timedelta(seconds=timeout_s),
            device_id=device if device.type == "cuda" else None,
        )
    yield
    # Not after an error: the others may be waiting, and it is the end of this process that tells them.
    dist.destroy_process_group()


def part(indices: Tensor) -> Tensor:
    """This process's part of a step's images; the parts differ by at most one image."""
    return indices if process_count() == 1 else indices.tensor_split(process_count())[rank()]


def share(items: Sequence[Any]) -> Sequence[Any]:
    """Every n-th item, for work that is divided into whole items."""
    return items if process_count() == 1 else items[rank() :: process_count()]


def add_up(tensor: Tensor) -> Tensor:
    """The sum over the processes, in place."""
    if process_count() > 1:
        with _explained("adding up"):
            dist.all_reduce(tensor)
    return tensor


def copy_from_first(tensors: Iterable[Tensor]) -> None:
    """Overwrite tensors with those of process 0."""
    if process_count() > 1:
        with _explained("copying"):
            for tensor in tensors:
                whole = tensor.detach().contiguous()
                dist.broadcast(whole, 0)
                if whole.data_ptr() != tensor.data_ptr():
                    tensor.detach().copy_(whole)


def check_agreement(value: Any, problem: str, device: torch.device) -> None:
    """Raise ValueError with `problem` in every process unless all hold the same `value` (JSON)."""
    if process_count() == 1:
        return
    digest = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()
    mine = torch.tensor(list(digest), dtype=torch.uint8, device=device)
    found = [torch.empty_like(mine) for _ in range(process_count())]
    with _explained("comparing"):
        dist.all_gather(found, mine)
    differing = [number for number, other in enumerate(found) if not torch.equal(other, found[0])]
    if differing:
        raise ValueError(f"process {', '.join(map(str, differing))} and process 0 differ: {problem}")


class GradientSum:
    """Adds up the gradients of `parameters` over the processes, and a few numbers with them."""

    def __init__(self, parameters: Sequence[nn.Parameter], numbers: int) -> None:
        self.parameters = parameters
        sizes = [parameter.numel() for parameter in parameters]
        kind = torch.float64 if any(parameter.dtype == torch.float64 for parameter in parameters) else torch.float32
        device = parameters[0].device if parameters else torch.device("cpu")
        self.flat = torch.zeros(sum(sizes) + numbers + len(sizes), dtype=kind, device=device)
        *pieces, self.numbers, self.present = self.flat.split([*sizes, numbers, len(sizes)])
        self.views = [piece.view(p.shape) for piece, p in zip(pieces, parameters, strict=True)]

    def __call__(self, numbers: Tensor) -> Tensor:
        """Replace every gradient by its sum, and return the sum of `numbers`.

        A missing gradient counts as 0. One that no process has stays missing: an optimizer passes over it, where it
        would move the parameter by its momentum for a gradient of 0.
        """
        there = [parameter.grad is not None for parameter in self.parameters]
        for parameter, view, given in zip(self.parameters, self.views, there, strict=True):
            view.copy_(parameter.grad) if given else view.zero_()
        self.numbers.copy_(numbers)
        self.present.copy_(torch.tensor(there, dtype=self.flat.dtype))
        add_up(self.flat)
        # Whose gradients are all there need not look, which on a GPU would be a wait.
        anywhere = there if all(there) else [count > 0 for count in self.present.tolist()]
        for parameter, view, given in zip(self.parameters, self.views, anywhere, strict=True):
            if not given:
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter)
            parameter.grad.copy_(view)
        return self.numbers


@contextmanager
def synchronised_batch_norm(model: nn.Module) -> Iterator[None]:
    """Batch norm over the images of all processes while the block runs; then the model's own layers are back.

    Parameters and statistics are the same tensors before and after. Raises ValueError on a CPU, where torch has none.
    """
    if process_count() == 1:
        yield
        return
    owners = [
        (owner, name, layer)
        for owner in model.modules()
        for name, layer in owner.named_children()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm)
    ]
    if any(layer.weight is not None and layer.weight.device.type != "cuda" for _, _, layer in owners):
        raise ValueError("sync_batch_norm needs GPUs, this model is on a CPU; leave it out, or use device 'cuda'")
    try:
        for owner, name, layer in owners:
            setattr(owner, name, nn.SyncBatchNorm.convert_sync_batchnorm(layer))
        yield
    finally:
        for owner, name, layer in owners:
            layer.train(owner.training)
            setattr(owner, name, layer)


def _active() -> bool:
    return dist.is_available() and dist.is_initialized()


@contextmanager
def _explained(action: str) -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise PeerLost(
            f"another process of this training ended or hangs (noticed by process {os.environ.get('RANK', '?')} while "
            f"{action}). If its own message is about the settings or the data, mend those; else the same command goes "
            "on from the last checkpoint"
        ) from error
