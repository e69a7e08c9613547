"""Random resized crops are boxes of the announced size and place, and chance is what the generator says."""

import numpy as np
import pytest
import torch

from bitnas.data import Augmentation, random_flip, random_resized_crop, random_shift
from bitnas.data.augment import crop_box, resize


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (500, 375), (32, 32), (1, 1), (3, 400), (400, 3)])
@pytest.mark.parametrize("share", [(0.08, 1.0), (0.5, 0.5), (1.0, 1.0)])
def test_a_box_lies_in_the_image_and_has_the_proportions(height, width, share):
    draws = torch.rand(300, 22, generator=generator(), dtype=torch.float64).numpy()
    boxes = [crop_box(height, width, share, row) for row in draws]
    for top, left, h, w in boxes:
        assert top >= 0
        assert left >= 0
        assert 1 <= h <= height - top
        assert 1 <= w <= width - left
    if min(height, width) > 100:
        aspects = np.array([w / h for _, _, h, w in boxes])
        shares = np.array([h * w / (height * width) for _, _, h, w in boxes])
        assert 0.74 < aspects.min() < aspects.max() < 1.35
        if share == (0.08, 1.0):
            assert 0.075 < shares.min() < 0.15
            assert shares.max() > 0.85
            assert 0.4 < shares.mean() < 0.6
            assert len({top for top, *_ in boxes}) > 100  # places differ too
        elif share == (0.5, 0.5):
            assert np.abs(shares - 0.5).max() < 0.01
    if height == width and share == (1.0, 1.0):
        whole = [row for row in boxes if row == (0, 0, height, width)]
        assert len(whole) == len(boxes)


def test_a_crop_is_the_box_resized():
    ramp = torch.arange(40.0).expand(1, 30, 40)
    images = torch.cat([ramp, torch.arange(30.0)[:, None].expand(1, 30, 40)]).repeat(20, 1, 1, 1)
    made = random_resized_crop(images, (0.2, 0.6), generator=generator(1))
    draws = torch.rand(20, 22, generator=generator(1), dtype=torch.float64).numpy()
    assert made.shape == images.shape
    for image, row in zip(made, draws, strict=True):
        top, left, h, w = crop_box(30, 40, (0.2, 0.6), row)
        # Bilinear sampling of a ramp, away from the box's edges, is the ramp.
        column = left - 0.5 + (torch.arange(40) + 0.5) * w / 40
        assert torch.allclose(image[0, 15, 5:35], column[5:35], atol=1e-3)
        line = top - 0.5 + (torch.arange(30) + 0.5) * h / 30
        assert torch.allclose(image[1, 5:25, 20], line[5:25], atol=1e-3)


def test_bytes_stay_bytes_and_whole_images_stay_as_they_are():
    images = torch.randint(0, 256, (5, 3, 16, 16), dtype=torch.uint8)
    assert random_resized_crop(images, (0.1, 1), generator=generator()).dtype == torch.uint8
    assert torch.equal(random_resized_crop(images, (1, 1), generator=generator()), images)
    assert resize(images[0], 16, 16) is not None
    assert resize(images[0], 4, 7).shape == (3, 4, 7)


def test_steps_come_in_order_from_one_generator():
    images = torch.rand(50, 1, 12, 12)
    together = Augmentation(crop=(0.3, 0.9), shift=2, flip=True)(images, generator=generator(5))
    chance = generator(5)
    apart = random_resized_crop(images, (0.3, 0.9), generator=chance)
    apart = random_flip(random_shift(apart, 2, generator=chance), generator=chance)
    assert torch.equal(together, apart)
    assert torch.equal(Augmentation()(images, generator=generator()), images)
    # Without a crop the chance is what it was before there were crops.
    chance = generator(5)
    plain = random_flip(random_shift(images, 2, generator=chance), generator=chance)
    assert torch.equal(Augmentation(shift=2, flip=True)(images, generator=generator(5)), plain)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"crop": (0.0, 1.0)}, ValueError, "0 < low <= high <= 1, got"),
        ({"crop": (0.5, 0.2)}, ValueError, "0 < low <= high <= 1, got"),
        ({"crop": (0.5, 1.2)}, ValueError, "0 < low <= high <= 1, got"),
        ({"crop": (float("nan"), 1)}, ValueError, "0 < low <= high <= 1, got"),
        ({"crop": 0.5}, TypeError, "two shares of the area"),
        ({"crop": (0.1, 0.2, 0.3)}, TypeError, "two shares of the area"),
        ({"shift": -1}, ValueError, "shift must be at least 0, got -1"),
        ({"shift": 1.5}, TypeError, "shift must be an integer, got 1.5"),
        ({"flip": 1}, TypeError, "flip must be True or False, got 1"),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        Augmentation(**settings)


def test_a_crop_from_json_is_a_pair():
    assert Augmentation(crop=[0.08, 1]).crop == (0.08, 1.0)  # type: ignore[arg-type]
