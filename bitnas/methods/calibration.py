"""Batch norm of a network whose weights come from a supernet, measured anew: what a supernet's own statistics are means
of fits none of its networks."""

from __future__ import annotations

import torch
from torch import nn

from bitnas.data import Source
from bitnas.data.source import checked_seed
from bitnas.train.average import MOST_BATCHES, measure_batch_norm


def recalibrate(network: nn.Module, data: Source, *, batches: int, batch_size: int, seed: int) -> None:
    """Replace the running statistics of every batch norm by plain means over batches; no weight changes.

    Args:
        network: on any device; its mode stays.
        data: `batches * batch_size` images of it are drawn, or all if it has fewer, and cut into batches of equal size
            within one image. Not augmented.
        batches: at most 100. batch_size: the most images in one. seed: decides which images.

    Lin et al. 2024 take 10 batches of 2048 images. Processes that train together share the batches. Raises ValueError
    for a number out of range or data without images.
    """
    if not 1 <= batches <= MOST_BATCHES:
        raise ValueError(f"batches: got {batches}, wanted 1 to {MOST_BATCHES}")
    if batch_size < 1:
        raise ValueError(f"batch_size: got {batch_size}, wanted at least 1")
    if not len(data):
        raise ValueError(f"data: {data.name} has no images")
    shuffle = torch.Generator().manual_seed(checked_seed(seed))
    drawn = torch.randperm(len(data), generator=shuffle)[: batches * batch_size]
    order = drawn.tensor_split(-(-len(drawn) // batch_size))
    device = next(network.parameters()).device
    measure_batch_norm(network, data, order, device)
