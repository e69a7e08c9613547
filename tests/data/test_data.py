"""The data are what they claim to be, splits are exact partitions, and bad data are refused by name."""

import gzip
import importlib.util
import subprocess
import sys

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnas import data
from bitnas.data import Dataset, digits, random_flip, random_shift


@pytest.fixture(scope="module")
def digits_set() -> Dataset:
    return data.load("digits")


def test_digits_equal_scikit_learns(digits_set):
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    assert torch.equal(digits_set.images.double(), torch.from_numpy(pixels / 16).reshape(-1, 1, 8, 8))
    assert torch.equal(digits_set.labels, torch.from_numpy(labels))
    assert (len(digits_set), digits_set.num_classes, digits_set.input_size) == (1797, 10, (1, 8, 8))
    assert digits_set.name == "digits"


def test_digits_do_not_import_scikit_learn():
    code = "import sys, bitnas.data; bitnas.data.load('digits'); sys.exit('sklearn' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_digits_fall_back_to_the_package(digits_set, monkeypatch):
    monkeypatch.setattr(digits, "_FILE", "moved.csv.gz")
    assert torch.equal(data.load("digits").images, digits_set.images)


def test_digits_without_scikit_learn_say_how_to_get_it(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="pip install scikit-learn"):
        data.load("digits")


def test_digits_from_a_folder_and_damaged(tmp_path, digits_set):
    bundled = digits._bundled_file()
    assert bundled is not None
    content = bundled.read_bytes()
    copy = tmp_path / "digits.csv.gz"
    copy.write_bytes(content)
    assert torch.equal(data.load("digits", root=tmp_path).images, digits_set.images)

    lines = gzip.decompress(content).decode().splitlines()
    fewer = gzip.compress("\n".join(lines[:-1]).encode())
    brighter = gzip.compress("\n".join(["99" + lines[0][1:], *lines[1:]]).encode())
    words = gzip.compress(b"a,b\n")
    for damaged in (content[: len(content) // 2], b"not gzip", fewer, brighter, words):
        copy.write_bytes(damaged)
        with pytest.raises(ValueError, match="digits"):
            data.load("digits", root=tmp_path)


def test_split_is_a_stratified_partition(digits_set):
    splits = digits_set.split(seed=3)
    assert torch.equal(torch.cat(splits).sort().values, torch.arange(1797))
    assert [len(part) for part in splits] == [1078, 360, 359]
    share = torch.bincount(digits_set.labels) / 1797
    for part in splits:
        assert torch.equal(part, part.sort().values)
        counts = torch.bincount(digits_set.labels[part], minlength=10)
        assert (counts - share * len(part)).abs().max() < 2


def test_split_depends_on_the_seed_alone(digits_set):
    first = digits_set.split(seed=1)
    torch.manual_seed(99)
    assert all(torch.equal(a, b) for a, b in zip(first, digits_set.split(seed=1), strict=True))
    assert not torch.equal(first.test, digits_set.split(seed=2).test)
    assert torch.equal(data.load("digits", seed=1).split().test, first.test)
    assert torch.equal(digits_set.split().test, digits_set.split(seed=0).test)


def test_fold_tests_cover_the_data_once(digits_set):
    folds = digits_set.folds(5, seed=0)
    assert torch.equal(torch.cat([test for _, test in folds]).sort().values, torch.arange(1797))
    share = torch.bincount(digits_set.labels) / 5
    for train, test in folds:
        assert torch.equal(torch.cat([train, test]).sort().values, torch.arange(1797))
        assert len(test) in (359, 360)
        assert (torch.bincount(digits_set.labels[test], minlength=10) - share).abs().max() <= 1


@settings(max_examples=200, deadline=None)
@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=40),
    cuts=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    seed=st.integers(0, 2**31),
)
def test_any_split_and_folds_are_partitions(labels, cuts, seed):
    dataset = Dataset(images=torch.zeros(len(labels), 1, 1, 1), labels=torch.tensor(labels), num_classes=5, name="x")
    low, high = min(cuts) / 100, max(cuts) / 100
    splits = dataset.split(low, high - low, 1 - high, seed=seed)
    assert torch.equal(torch.cat(splits).sort().values, torch.arange(len(labels)))
    assert abs(len(splits.train) - low * len(labels)) <= 0.5 + 1e-9
    for label in range(5):
        count = labels.count(label)
        assert abs(int((dataset.labels[splits.train] == label).sum()) - low * count) <= 1 + 1e-9
    if len(labels) >= 2:
        tests = [test for _, test in dataset.folds(2, seed)]
        assert torch.equal(torch.cat(tests).sort().values, torch.arange(len(labels)))


def test_zero_parts_are_empty(digits_set):
    splits = digits_set.split(0.8, 0.0, 0.2)
    assert [len(part) for part in splits] == [1438, 0, 359]


def test_subset(digits_set):
    chosen = torch.tensor([5, 3])
    part = digits_set.subset(chosen)
    assert torch.equal(part.images, digits_set.images[chosen])
    assert part.labels.tolist() == digits_set.labels[chosen].tolist()
    assert part.num_classes == 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": 0.5}, r"train \+ val \+ test must be 1"),
        ({"train": -0.1, "val": 0.9}, "train must be a fraction"),
        ({"test": float("nan")}, "test must be a fraction"),
    ],
)
def test_bad_fractions(digits_set, options, message):
    with pytest.raises(ValueError, match=message):
        digits_set.split(**options)


@pytest.mark.parametrize("k", [1, 0, 1798])
def test_bad_fold_count(digits_set, k):
    with pytest.raises(ValueError, match=r"k must be in \[2, 1797\]"):
        digits_set.folds(k)


IMAGES = torch.rand(4, 3, 5, 5)
LABELS = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("images", "labels", "error", "message"),
    [
        (IMAGES.double(), LABELS, TypeError, "images of own must be float32 or uint8, got torch.float64"),
        (IMAGES, LABELS.int(), TypeError, "labels of own must be int64, got torch.int32"),
        (IMAGES[0], LABELS, ValueError, r"non-empty \[N, C, H, W\], got \(3, 5, 5\)"),
        (IMAGES[:0], LABELS[:0], ValueError, "non-empty"),
        (IMAGES, LABELS[:3], ValueError, r"must be \(4,\), one for each image, got \(3,\)"),
        (IMAGES, LABELS - 1, ValueError, r"must be in \[0, 2\), got \[-1, 1\]"),
        (IMAGES / 0, LABELS, ValueError, "must be finite, got 300 NaN or infinite"),
        (
            torch.zeros(4, 16, 12, 3),
            LABELS,
            ValueError,
            r"must be \[N, C, H, W\], got \[4, 16, 12, 3\], .* channels last; images.permute\(0, 3, 1, 2\)",
        ),
        (torch.zeros(4, 8, 8, 1), LABELS, ValueError, "look like channels last"),
    ],
)
def test_bad_user_data(tmp_path, images, labels, error, message):
    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file({"images": images.contiguous(), "labels": labels.contiguous()}, path)
    with pytest.raises(error, match=message):
        data.load(str(path))


def test_user_data(tmp_path):
    safetensors.torch.save_file({"images": IMAGES, "labels": LABELS}, tmp_path / "own.safetensors")
    for dataset in (data.load(str(tmp_path / "own.safetensors")), data.load("own.safetensors", root=tmp_path)):
        assert torch.equal(dataset.images, IMAGES)
        assert torch.equal(dataset.labels, LABELS)
        assert (dataset.num_classes, dataset.input_size, dataset.name) == (3, (3, 5, 5), "own")
        assert dataset.notes == ()


@pytest.mark.parametrize("shape", [(4, 8, 4, 4), (4, 1, 3, 3), (4, 3, 2, 1)])
def test_small_images_are_not_taken_for_channels_last(tmp_path, shape):
    safetensors.torch.save_file({"images": torch.rand(shape), "labels": LABELS}, tmp_path / "own.safetensors")
    assert data.load(str(tmp_path / "own.safetensors")).input_size == shape[1:]


@pytest.mark.parametrize(
    ("labels", "note"),
    [
        ([1, 2, 3, 2], "no image has the label 0: labels that count from 1 make a class too many; subtract 1"),
        ([0, 4, 2, 2], "no image has the label 1, 3"),
    ],
)
def test_labels_that_leave_classes_empty_are_noted(tmp_path, labels, note):
    safetensors.torch.save_file({"images": IMAGES, "labels": torch.tensor(labels)}, tmp_path / "own.safetensors")
    assert data.load(str(tmp_path / "own.safetensors")).notes == (note,)


@pytest.mark.parametrize(
    ("seed", "error", "message"),
    [
        (-1, ValueError, "seed must be at least 0 and below 2.63, got -1"),
        (1 << 63, ValueError, "seed must be at least 0 and below"),
        (1.5, TypeError, "seed must be an integer, got 1.5"),
    ],
)
def test_bad_seeds(digits_set, seed, error, message):
    with pytest.raises(error, match=message):
        data.load("digits", seed=seed)
    with pytest.raises(error, match=message):
        digits_set.split(seed=seed)


def test_user_data_refusals(tmp_path):
    path = tmp_path / "own.safetensors"
    with pytest.raises(FileNotFoundError, match=r"own\.safetensors"):
        data.load(str(path))
    safetensors.torch.save_file({"images": IMAGES}, path)
    with pytest.raises(ValueError, match=r"own.safetensors: .*labels is missing; found images"):
        data.load(str(path))
    content = path.read_bytes()
    for damaged in (b"", content[:20], content[:-1], content + b"x"):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"own\.safetensors: is not a readable"):
            data.load(str(path))


def test_user_data_of_bytes_become_shares_of_one(tmp_path):
    images = torch.randint(0, 256, (4, 3, 5, 5), dtype=torch.uint8)
    safetensors.torch.save_file({"images": images, "labels": LABELS}, tmp_path / "own.safetensors")
    dataset = data.load(str(tmp_path / "own.safetensors"))
    assert torch.equal(dataset.take(torch.tensor([2, 0])), images[[2, 0]].float() / 255)


def test_unknown_name():
    with pytest.raises(
        ValueError, match=r"name must be one of cifar10, digits, imagenet, or the path of .*got 'mnist'"
    ):
        data.load("mnist")
    with pytest.raises(ValueError, match=r"got 'some/where', which is no folder"):
        data.load("some/where")
    assert data.list_datasets() == ["cifar10", "digits", "imagenet"]


def test_a_number_after_the_name_keeps_so_many_of_each_class(digits_set):
    few = data.load("digits:50", seed=3)
    assert torch.bincount(few.labels).tolist() == [50] * 10
    assert torch.equal(few.images, digits_set.images[digits_set.per_class(50, seed=3)])
    assert data.load("digits", per_class=50, seed=3).fingerprint() == few.fingerprint()
    assert data.load("digits:50", seed=4).fingerprint() != few.fingerprint()
    assert len(few.split().train) == 300
    with pytest.raises(ValueError, match="after the colon of 'digits:many' wanted a number"):
        data.load("digits:many")
    with pytest.raises(ValueError, match="count: got 999, but class 0 of digits has 178 images"):
        data.load("digits:999")


def test_a_path_that_holds_a_colon_is_a_path(tmp_path):
    safetensors.torch.save_file({"images": IMAGES, "labels": LABELS}, tmp_path / "own:2.safetensors")
    assert len(data.load(str(tmp_path / "own:2.safetensors"))) == 4
    assert data.load("own:2.safetensors:1", root=tmp_path).labels.tolist() == [0, 1, 2]


def test_an_option_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="size=32: digits takes no size; its images are already decoded"):
        data.load("digits", size=32)


def test_dataset_needs_two_classes():
    with pytest.raises(ValueError, match="num_classes of x must be at least 2, got 1"):
        Dataset(images=IMAGES, labels=LABELS * 0, num_classes=1, name="x")


def test_shift_is_pad_and_crop():
    images = torch.rand(500, 2, 4, 6) + 1
    shifted = random_shift(images, 1, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1))
    seen = set()
    for index in range(len(images)):
        places = [
            (row, column)
            for row in range(3)
            for column in range(3)
            if torch.equal(shifted[index], padded[index, :, row : row + 4, column : column + 6])
        ]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) == 9
    again = random_shift(images, 1, generator=torch.Generator().manual_seed(0))
    assert torch.equal(shifted, again)
    assert random_shift(images, 0, generator=torch.Generator()) is images
    with pytest.raises(ValueError, match="pixels must be at least 0, got -1"):
        random_shift(images, -1, generator=torch.Generator())


def test_flip_mirrors_about_half():
    images = torch.rand(400, 3, 4, 5)
    flipped = random_flip(images, generator=torch.Generator().manual_seed(0))
    kept = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(-1)).flatten(1).all(1)
    assert bool((kept ^ mirrored).all())
    assert 150 < int(mirrored.sum()) < 250
