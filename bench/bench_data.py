"""What an image costs before a network sees it: read from a folder, from a packed file, and by a plain Pillow loop.

    python bench/bench_data.py [--images 400] [--workers 1] [--json]

The pictures are made here (enlarged digits under coloured noise, 500x375, JPEG of quality 90), all ways take turns, and
each is timed in seconds and in processor time, which other programs disturb less.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits

from bitnas import data
from bitnas.cost import machine
from bitnas.data import packed_file
from bitnas.data.lazy import LazySource

WIDTH, HEIGHT, SIZE, BATCH, ROUNDS = 500, 375, 224, 50, 5
MEAN, STD = (np.array(values, dtype=np.float32) for values in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))


def make_pictures(folder: Path, count: int) -> None:
    """`count` JPEGs in ten folders of classes."""
    digits, rng = load_digits(), np.random.default_rng(0)
    for index in range(count):
        digit = Image.fromarray((15 * digits.images[index]).astype(np.uint8)).resize(
            (WIDTH, HEIGHT), Image.Resampling.BICUBIC
        )
        noise = Image.fromarray(rng.integers(0, 256, (HEIGHT // 6, WIDTH // 6, 3), dtype=np.uint8))
        grain = rng.normal(0, 6, (HEIGHT, WIDTH, 3))
        smooth = np.asarray(noise.resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC))
        pixels = 0.6 * np.asarray(digit)[..., None] + 0.35 * smooth + grain
        place = folder / str(digits.target[index])
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{index}.jpg", quality=90)


def plain_loop(paths: list[Path]) -> None:
    """What one would write: open, resize the short side to 256, crop the middle, normalise."""
    for path in paths:
        image = Image.open(path).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BILINEAR)
        left, top = (image.width - SIZE) // 2, (image.height - SIZE) // 2
        pixels = np.asarray(image.crop((left, top, left + SIZE, top + SIZE)), dtype=np.float32)
        torch.from_numpy(((pixels / 255 - MEAN) / STD).transpose(2, 0, 1).copy())


def read_all(source: data.Source, augmentation: data.Augmentation | None) -> None:
    """Every image of a source once."""
    order = torch.arange(len(source)).split(BATCH)
    for images, _ in source.batches(order, augmentation=augmentation, seeds=range(len(order))):
        assert images.shape[1:] == (3, SIZE, SIZE)


def measure(count: int, workers: int) -> dict[str, dict[str, float]]:
    """Milliseconds of processor time for an image, and images a second, of each way: medians over the rounds."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder, packed = Path(name) / "pictures", Path(name) / "packed.safetensors"
        make_pictures(folder, count)
        source = data.load(str(folder), workers=workers)
        assert isinstance(source, LazySource)
        packed_file.write(source, packed)
        mapped = data.load(str(packed), workers=workers)
        paths = sorted(folder.rglob("*.jpg"))
        training = data.Augmentation(crop=(0.08, 1.0), flip=True)
        ways: dict[str, Callable[[], None]] = {
            "plain Pillow loop": lambda: plain_loop(paths),
            "folder, evaluation": lambda: read_all(source, None),
            "folder, random crop and flip": lambda: read_all(source, training),
            "packed, evaluation": lambda: read_all(mapped, None),
            "packed, random crop and flip": lambda: read_all(mapped, training),
        }
        taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(ROUNDS):
            for way, call in ways.items():
                wall, processor = time.perf_counter(), time.process_time()
                call()
                taken[way].append((time.perf_counter() - wall, time.process_time() - processor))
    return {
        way: {
            "processor_ms": 1e3 * statistics.median(processor for _, processor in times) / count,
            "images_per_second": count / statistics.median(wall for wall, _ in times),
        }
        for way, times in taken.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--workers", type=int, default=1, help="threads that decode")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not 10 <= options.images <= 1797:
        parser.error(f"--images must be from 10 to 1797, got {options.images}")
    rows = measure(options.images, options.workers)
    if options.json:
        print(json.dumps({"machine": machine.facts(), "workers": options.workers, "rows": rows}, indent=2))
        return
    for way, row in rows.items():
        print(f"{way:30}  {row['processor_ms']:6.2f} ms of processor  {row['images_per_second']:7.0f} images/s")


if __name__ == "__main__":
    main()
