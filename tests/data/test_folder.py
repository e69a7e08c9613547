"""Folders of images: what is listed, what is refused, and batches that depend on nothing but what they are asked."""

import os
import re
import sys

import numpy as np
import pictures
import pytest
import torch

from bitnas import data
from bitnas.data import Augmentation, Dataset, folder, lazy
from bitnas.files import CorruptFileError


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures.folder(tmp_path_factory.mktemp("photos"))


def test_classes_labels_and_normalisation(photos):
    source = data.load(str(photos), size=32)
    assert (len(source), source.num_classes, source.input_size) == (15, 3, (3, 32, 32))
    assert source.labels.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    assert source.classes == ("class_0", "class_1", "class_2")
    assert source.test is None
    picture = pictures.smooth(40, 50, 102)  # class_1/2.jpg; its middle square is 35 of 40
    middle = picture[2:38, 7:43].mean((0, 1)) / 255
    found = source.take(torch.tensor([7]))[0].mean((1, 2)).numpy()
    assert np.allclose(found, (middle - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225], atol=0.05)
    assert data.load(photos.name, root=photos.parent).fingerprint() == data.load(str(photos)).fingerprint()


def test_sizes_that_suit_the_images(tmp_path, photos):
    assert data.load(str(photos)).input_size == (3, 40, 40)
    assert data.load(str(pictures.folder(tmp_path / "a", height=300, width=400, count=1))).input_size == (3, 224, 224)
    small = data.load(str(pictures.folder(tmp_path / "b", height=32, width=32, count=2, kind="PNG")))
    assert small.input_size == (3, 32, 32)
    memory = Dataset(
        images=torch.from_numpy(np.stack([pictures.smooth(32, 32, s) for s in (0, 1, 100, 101, 200, 201)])).permute(
            0, 3, 1, 2
        ),
        labels=small.labels,
        num_classes=3,
        name="memory",
        mean=lazy.MEAN[3],
        std=lazy.STD[3],
    )
    every = torch.arange(6)
    assert torch.equal(small.take(every), memory.take(every))
    # Shift and mirror are those of a data set in memory, bit for bit.
    for augmentation in (Augmentation(shift=3, flip=True), Augmentation(flip=True), Augmentation(shift=40)):
        (mine, _), (theirs, _) = (
            next(source.batches([every], augmentation=augmentation, seeds=[9])) for source in (small, memory)
        )
        assert torch.equal(mine, theirs)


def test_grey(photos):
    source = data.load(str(photos), channels=1, size=16)
    assert source.input_size == (1, 16, 16)
    assert source.take(torch.arange(3)).shape == (3, 1, 16, 16)
    with pytest.raises(ValueError, match="channels must be 1 .* got 4"):
        data.load(str(photos), channels=4)
    with pytest.raises(ValueError, match="^size of photos.* must be at least 1, got 0$"):
        data.load(str(photos), size=0)
    with pytest.raises(ValueError, match="^workers of photos.* must be at least 1, got 0$"):
        data.load(str(photos), workers=0)


def test_a_batch_depends_on_indices_augmentation_and_seed(photos):
    augmentation = Augmentation(crop=(0.08, 1), shift=2, flip=True)
    order = list(torch.randperm(15, generator=torch.Generator().manual_seed(0)).split(4))
    seeds = [5, 6, 7, 8]
    one = data.load(str(photos), size=24, workers=1)
    many = data.load(str(photos), size=24, workers=5)
    first = list(one.batches(order, augmentation=augmentation, seeds=seeds))
    second = list(many.batches(order, augmentation=augmentation, seeds=seeds))
    assert [len(labels) for _, labels in first] == [4, 4, 4, 3]
    for (x, y), (u, v), indices in zip(first, second, order, strict=True):
        assert torch.equal(x, u)
        assert torch.equal(y, v)
        assert torch.equal(y, one.labels[indices])
    # Alone, in a subset, in another order.
    (alone, _) = next(one.subset(order[2]).batches([torch.arange(4)], augmentation=augmentation, seeds=[7]))
    assert torch.equal(alone, first[2][0])
    (other, _) = next(one.batches([order[2]], augmentation=augmentation, seeds=[70]))
    assert not torch.equal(other, alone)
    with pytest.raises(ValueError, match="seeds: wanted one for each batch"):
        next(one.batches(order, augmentation=augmentation))


def test_stopping_early_ends_the_threads(photos):
    import threading

    before = threading.active_count()
    source = data.load(str(photos), workers=3)
    batches = source.batches(list(torch.arange(15).split(1)))
    next(batches)
    assert threading.active_count() > before
    batches.close()
    assert threading.active_count() == before
    assert list(source.batches([])) == []
    assert source.take(torch.arange(0)).shape == (0, 3, 40, 40)


def test_train_and_val(tmp_path, monkeypatch):
    root = tmp_path / "imagenet"
    for part, count in (("train", 5), ("val", 2)):
        for index, name in enumerate(("n01440764", "n01443537")):
            for number in range(count):
                path = root / part / name / f"{name}_{number}.JPEG"
                pictures.write(path, pictures.smooth(30, 30, 10 * index + number), "JPEG")
    source = data.load("imagenet", root=root, size=24)
    assert source.name == "imagenet"
    assert source.labels.tolist() == [0] * 5 + [1] * 5 + [0, 0, 1, 1]
    assert source.test.tolist() == [10, 11, 12, 13]
    monkeypatch.setenv("BITNAS_DATA", str(tmp_path))
    few = data.load("imagenet:3", size=24)
    assert len(few) == 6 + 4
    assert few.test.tolist() == [6, 7, 8, 9]
    assert torch.equal(few.take(few.test), source.take(source.test))
    splits = few.split(0.5, 0.5, 0.0)
    assert [len(part) for part in splits] == [3, 3, 4]
    assert torch.equal(data.load(str(root)).labels, source.labels)  # the same by its path
    monkeypatch.setenv("BITNAS_DATA", str(tmp_path / "train"))
    with pytest.raises(FileNotFoundError, match="ImageNet was not found in .*train and val"):
        data.load("imagenet")
    pictures.write(root / "val" / "new" / "a.png", pictures.smooth(9, 9))
    with pytest.raises(ValueError, match="val/ has classes that train/ lacks: new"):
        data.load("imagenet", root=root)


@pytest.mark.parametrize(
    ("names", "test", "note"),
    [
        (("Train", "Test"), 6, ()),
        (("training", "validation"), 6, ()),
        (("train", "valid"), 6, ()),
        (
            ("TRAIN", "Val", "test"),
            6,
            ("test/ is the test part; the images of Val/ are training images, as those of TRAIN/",),
        ),
        (("train",), None, ()),
    ],
)
def test_parts_by_any_of_their_names(tmp_path, names, test, note):
    for count, name in zip((4, 3, 3) if len(names) == 3 else (4, 3), names, strict=False):
        pictures.folder(tmp_path / name, classes=2, count=count)
    source = data.load(str(tmp_path))
    assert source.classes == ("class_0", "class_1")
    assert (None if source.test is None else len(source.test)) == test
    assert len(source) == {1: 8, 2: 14, 3: 20}[len(names)]
    assert source.notes == note
    if test:
        last = source.store.table.name(int(source.test[0]))
        assert last.startswith(names[-1].encode())


def test_images_without_labels_beside_the_parts_are_left_out_and_named(tmp_path):
    for part in ("train", "val"):
        pictures.folder(tmp_path / part, classes=2, count=2)
    pictures.write(tmp_path / "test" / "1.jpg", pictures.smooth(9, 9), "JPEG")
    source = data.load(str(tmp_path))
    assert (len(source), len(source.test)) == (8, 4)
    assert source.notes == ("test/ is left out: its images are in no class folders",)


@pytest.mark.parametrize(
    ("filled", "message"),
    [
        (["train", "test"], "test/, train/: these are parts of a data set, not classes"),
        (["val/a", "test/a"], "test/, val/: these are parts of a data set, not classes"),
        (["train/a", "train/b", "Train/a"], "Train/, train/ are the same part; join them or move one away"),
        (["train/a", "train/b", "val/a", "valid/b"], "val/, valid/ are the same part"),
        (["train/a", "train/b", "test/a", "test/b", "val"], "val/ has no class folders; sort its images"),
        (
            ["train/freight", "train/tram", "bus", "car/red"],
            "train/ has class folders, so the images in bus/, car/ beside it would be left out. Move those away; or, "
            "if train is itself a class",
        ),
        (["train/a", "train/b", "test/a", "test/b", "val/a", "val/new"], "val/ has classes that train/ lacks: new/"),
    ],
)
def test_parts_that_leave_something_open_are_refused(tmp_path, filled, message):
    for folder_ in filled:
        pictures.write(tmp_path / folder_ / "1.jpg", pictures.smooth(9, 9), "JPEG")
    with pytest.raises(ValueError, match=re.escape(message)):
        data.load(str(tmp_path))


def test_a_class_may_be_called_train(tmp_path):
    for name in ("train", "bus", "tram"):
        pictures.write(tmp_path / name / "1.jpg", pictures.smooth(9, 9), "JPEG")
    assert data.load(str(tmp_path)).classes == ("bus", "train", "tram")


def test_a_flat_val_folder_is_refused(tmp_path):
    pictures.folder(tmp_path / "train")
    pictures.write(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG", pictures.smooth(9, 9), "JPEG")
    with pytest.raises(ValueError, match="val/ has no class folders; sort its images"):
        data.load(str(tmp_path))


def test_odd_names_links_and_files_that_are_no_images(tmp_path):
    root = pictures.folder(tmp_path / "a b", classes=2, count=1, kind="PNG")
    picture = pictures.smooth(40, 50)
    names = ["mit Leerzeichen.png", "日本.PNG", "new\nline.png", "quote\"'.png", "no_ending", "wrong.JPG"]
    for name in names:
        pictures.write(root / "class_0" / name, picture)
    if sys.platform == "linux":
        raw = os.path.join(os.fsencode(root), b"class_0", b"\xff\xfe.png")
        with open(raw, "wb") as file:
            file.write(pictures.encoded(picture, "PNG"))
        names.append("raw")
    pictures.write(root / "class_1" / "deeper" / "down" / "a.png", picture)
    for name in ("Thumbs.db", ".DS_Store", "._a.png", "notes.txt"):
        (root / "class_1" / name).write_bytes(b"\xd0\xcf\x11\xe0 nothing")
    (root / ".git").mkdir()
    (root / "__MACOSX").mkdir()
    (root / "class_1" / "link.png").symlink_to(root / "class_0" / "0.png")
    (root / "class_1" / "round").symlink_to(root / "class_1")
    (root / "class_2").symlink_to(root / "class_0")
    source = data.load(str(root))
    assert torch.bincount(source.labels).tolist() == [1 + len(names), 3, 1 + len(names)]
    images = source.take(torch.arange(len(source)))
    same = source.store.table.names.count(b"wrong.JPG")
    assert same == 2
    assert torch.equal(images[source.labels == 0], images[source.labels == 2])
    found = folder.scan(root)
    assert sorted(found.ignored) == [b"class_1/Thumbs.db", b"class_1/notes.txt"]
    assert source.classes == ("class_0", "class_1", "class_2")


def test_files_that_cannot_be_read_are_refused_together(tmp_path):
    root = pictures.folder(tmp_path / "a")
    (root / "class_0" / "zero.jpg").write_bytes(b"")
    (root / "class_1" / "gone.jpg").symlink_to(tmp_path / "nowhere")
    os.mkfifo(root / "class_2" / "pipe.jpg")
    with pytest.raises(ValueError, match="3 files cannot be read") as error:
        data.load(str(root))
    for wanted in (
        "class_0/zero.jpg is empty",
        "class_1/gone.jpg is a broken link",
        "pipe.jpg is not a file",
        "--skip-bad",
    ):
        assert wanted in str(error.value)


def test_a_damaged_file_is_named_when_it_is_decoded(tmp_path):
    root = pictures.folder(tmp_path / "a")
    path = root / "class_1" / "3.jpeg"
    path.write_bytes(path.read_bytes()[:-100])
    source = data.load(str(root))
    with pytest.raises(CorruptFileError, match=r"class_1/3\.jpeg: cannot be decoded \(image file is truncated"):
        list(source.batches(list(torch.arange(15).split(4))))
    source.take(torch.arange(8))


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda root: root.mkdir(), ValueError, "wanted a folder of images for each of two or more classes, .* got 0"),
        (lambda root: pictures.folder(root, classes=1), ValueError, "got 1 folders"),
        (lambda root: pictures.write(root / "a.png", pictures.smooth(9, 9)), ValueError, "got 0 folders"),
        (
            lambda root: (pictures.folder(root), (root / "empty").mkdir(), (root / "void").mkdir()),
            ValueError,
            "no images in the class folders empty, void",
        ),
        (
            lambda root: (pictures.folder(root), (root / "bitnas-skip.json").write_text("{}")),
            CorruptFileError,
            "is not a list of files to skip",
        ),
    ],
)
def test_folders_that_are_no_data_set(tmp_path, make, error, message):
    make(tmp_path / "a")
    with pytest.raises(error, match=message):
        data.load(str(tmp_path / "a"))


def test_a_fingerprint_sees_names_sizes_and_contents(tmp_path):
    root = pictures.folder(tmp_path / "a", kind="BMP")
    prints = [data.load(str(root)).fingerprint()]
    copy = pictures.folder(tmp_path / "b", kind="BMP")
    assert data.load(str(copy)).fingerprint() == prints[0]  # dates and places do not count
    path = root / "class_0" / "0.bmp"
    blob = bytearray(path.read_bytes())
    blob[-1] ^= 255
    path.write_bytes(blob)
    prints.append(data.load(str(root)).fingerprint())
    path.rename(root / "class_1" / "0 again.bmp")
    prints.append(data.load(str(root)).fingerprint())
    prints += [data.load(str(root), **{key: value}).fingerprint() for key, value in (("size", 16), ("channels", 1))]
    prints.append(data.load(str(root)).subset(torch.arange(3)).fingerprint())
    assert len(set(prints)) == len(prints)


def test_training_on_a_folder(photos):
    from bitnas.train import Recipe, evaluate, fit

    source = data.load(str(photos), size=8)
    recipe = Recipe(epochs=2, batch_size=4, lr=0.01, flip=True, shift=1)
    results = []
    for workers in (1, 4):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 3))
        part = data.load(str(photos), size=8, workers=workers).subset(torch.arange(15))
        fit(network, part, recipe, seed=1)
        results.append(network[1].weight.detach().clone())
        assert 0 <= evaluate(network, source, batch_size=4) <= 1
    assert torch.equal(*results)
