"""A small problem that a network learns in a second, and a small network of the kinds of layers that matter."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from bitnas.data import Dataset


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def problem() -> Dataset:
    """150 images `[150, 1, 6, 6]` of 3 classes: noise, and a bright row that tells the class."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(150) % 3
    images = torch.rand(150, 1, 6, 6, generator=generator)
    images[torch.arange(150), 0, 2 * labels] += 0.7
    return Dataset(images=images, labels=labels, num_classes=3, name="rows")


@pytest.fixture
def make_net() -> Callable[[], nn.Module]:
    def make(seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(8 * 36, 3),
        )

    return make
