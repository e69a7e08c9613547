"""CIFAR-10 from both distributions, folders and archives, in the forms their makers wrote; small ones, same layout."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import torch

from bitnas import data
from bitnas.data import cifar10
from bitnas.files import CorruptFileError

COUNT = 40
CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
NAMES = [f"data_batch_{number}" for number in range(1, 6)] + ["test_batch"]


def contents() -> list[tuple[np.ndarray, list[int]]]:
    rng = np.random.default_rng(0)
    return [(rng.integers(0, 256, (COUNT, 3072), np.uint8), rng.integers(0, 10, COUNT).tolist()) for _ in NAMES]


CONTENTS = contents()


def python_files(protocol: int = 2, keys=str.encode) -> dict[str, bytes]:
    files = {
        name: pickle.dumps(
            {
                keys("batch_label"): keys(f"training batch {index + 1} of 5"),
                keys("labels"): labels,
                keys("data"): images,
                keys("filenames"): [keys(f"some_s_{row:06d}.png") for row in range(COUNT)],
            },
            protocol,
        )
        for index, (name, (images, labels)) in enumerate(zip(NAMES, CONTENTS, strict=True))
    }
    meta = {keys("num_cases_per_batch"): COUNT, keys("label_names"): [keys(n) for n in CLASSES], keys("num_vis"): 3072}
    return files | {"batches.meta": pickle.dumps(meta, protocol), "readme.html": b"<html>"}


def binary_files() -> dict[str, bytes]:
    files = {
        f"{name}.bin": b"".join(bytes([label]) + row.tobytes() for row, label in zip(images, labels, strict=True))
        for name, (images, labels) in zip(NAMES, CONTENTS, strict=True)
    }
    return files | {"batches.meta.txt": ("\n".join(CLASSES) + "\n\n").encode()}


def write(folder, files):
    folder.mkdir(parents=True)
    for name, blob in files.items():
        (folder / name).write_bytes(blob)


def archive(path, folder, files):
    with tarfile.open(path, "w:gz") as tar:
        entry = tarfile.TarInfo(folder)
        entry.type = tarfile.DIRTYPE
        tar.addfile(entry)
        for name, blob in files.items():
            entry = tarfile.TarInfo(f"{folder}/{name}")
            entry.size = len(blob)
            tar.addfile(entry, io.BytesIO(blob))


def check(dataset):
    assert dataset.images.shape == (6 * COUNT, 3, 32, 32)
    assert dataset.images.dtype == torch.uint8
    wanted = np.concatenate([images for images, _ in CONTENTS]).reshape(-1, 3, 32, 32)
    assert np.array_equal(dataset.images.numpy(), wanted)
    assert dataset.labels.tolist() == [label for _, labels in CONTENTS for label in labels]
    assert dataset.test.tolist() == list(range(5 * COUNT, 6 * COUNT))
    assert dataset.classes == tuple(CLASSES)
    batch = dataset.take(torch.tensor([0]))
    red = (wanted[0, 0] / 255 - 0.4914) / 0.2470
    assert np.allclose(batch[0, 0].numpy(), red, atol=1e-6)


@pytest.mark.parametrize("protocol", [2, 4, 5])
@pytest.mark.parametrize("keys", [str, str.encode])
def test_python_version(tmp_path, protocol, keys):
    write(tmp_path / "cifar-10-batches-py", python_files(protocol, keys))
    check(cifar10.read(tmp_path, _per_file=COUNT))
    check(cifar10.read(tmp_path / "cifar-10-batches-py", _per_file=COUNT))


def test_binary_version(tmp_path):
    write(tmp_path / "cifar-10-batches-bin", binary_files())
    check(cifar10.read(tmp_path, _per_file=COUNT))


@pytest.mark.parametrize(
    ("name", "folder", "files"),
    [
        ("cifar-10-python.tar.gz", "cifar-10-batches-py", python_files),
        ("cifar-10-binary.tar.gz", "cifar-10-batches-bin", binary_files),
    ],
)
def test_archives_are_read_in_place(tmp_path, name, folder, files):
    archive(tmp_path / name, folder, files())
    for root in (tmp_path, tmp_path / name):
        check(cifar10.read(root, _per_file=COUNT))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_where_the_files_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITNAS_DATA", str(tmp_path / "big"))
    with pytest.raises(FileNotFoundError) as error:
        data.load("cifar10")
    text = str(error.value)
    for wanted in (
        str(tmp_path / "big"),
        str(tmp_path / "data"),
        "cifar-10-batches-py",
        "cifar-10-binary.tar.gz",
        "BITNAS_DATA",
        "root=",
    ):
        assert wanted in text
    write(tmp_path / "data" / "cifar-10-batches-bin", binary_files())
    check(cifar10.read(None, _per_file=COUNT))
    write(tmp_path / "big" / "cifar-10-batches-py", python_files())
    (tmp_path / "data" / "cifar-10-batches-bin" / "test_batch.bin").unlink()
    check(cifar10.read(None, _per_file=COUNT))  # the variable comes first
    with pytest.raises(FileNotFoundError, match=r"test_batch\.bin not found; CIFAR-10 is data_batch_1\.bin"):
        cifar10.read(tmp_path / "data", _per_file=COUNT)


def test_the_full_size_is_asked_for(tmp_path):
    write(tmp_path / "cifar-10-batches-bin", binary_files())
    with pytest.raises(CorruptFileError, match=r"data_batch_1\.bin: wanted 10000 records of 3073 bytes"):
        data.load("cifar10", root=tmp_path)


def damaged(files, name, blob):
    return files | {name: blob}


PYTHON, BINARY = python_files(), binary_files()
FEW = pickle.dumps({b"data": CONTENTS[0][0][:-1], b"labels": CONTENTS[0][1]}, 2)
NARROW = pickle.dumps({b"data": CONTENTS[0][0][:, 1:].copy(), b"labels": CONTENTS[0][1]}, 2)
LABELS = pickle.dumps({b"data": CONTENTS[0][0], b"labels": [*CONTENTS[0][1][1:], 10]}, 2)
HUNDRED = pickle.dumps({b"data": CONTENTS[0][0], b"fine_labels": CONTENTS[0][1]}, 2)
META = pickle.dumps({b"label_names": [b"a"] * 100}, 2)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (damaged(PYTHON, "data_batch_1", FEW), r"data_batch_1: wanted 40 images .* got \(39, 3072\)"),
        (damaged(PYTHON, "data_batch_1", NARROW), r"wanted 40 images of 3072 bytes.* got \(40, 3071\)"),
        (damaged(PYTHON, "data_batch_1", LABELS), "labels must be integers, 0 to 9"),
        (damaged(PYTHON, "data_batch_1", HUNDRED), "wanted an array 'data' and a list 'labels'"),
        (damaged(PYTHON, "batches.meta", META), "names of 10 classes, got 100"),
        (damaged(PYTHON, "test_batch", PYTHON["test_batch"][:-9]), "test_batch: is not a readable pickle"),
        (damaged(PYTHON, "test_batch", b""), "test_batch: is not a readable pickle"),
        (damaged(PYTHON, "test_batch", b"\x80\x02]."), "wanted a dict, got list"),
        (damaged(PYTHON, "test_batch", b"cos\nsystem\n(S'true'\ntR."), "asks for os.system"),
        (damaged(BINARY, "test_batch.bin", BINARY["test_batch.bin"][:-1]), "wanted 40 records"),
        (
            damaged(BINARY, "test_batch.bin", b"\x0a" + BINARY["test_batch.bin"][1:]),
            "labels must be 0 to 9, got 0 to 10",
        ),
    ],
)
def test_damaged_files(tmp_path, files, message):
    write(tmp_path / "x", files)
    with pytest.raises(CorruptFileError, match=message):
        cifar10.read(tmp_path / "x", _per_file=COUNT)


def test_damaged_and_hostile_archives(tmp_path, monkeypatch):
    path = tmp_path / "cifar-10-python.tar.gz"
    archive(path, "../../etc", PYTHON)  # a path in an archive is never written to
    check(cifar10.read(path, _per_file=COUNT))
    whole = path.read_bytes()
    for blob in (whole[: len(whole) // 2], b"not a gzip file", whole[:200] + b"\0" * 50 + whole[250:]):
        path.write_bytes(blob)
        with pytest.raises(CorruptFileError, match="is not a readable .tar.gz"):
            cifar10.read(path, _per_file=COUNT)
    archive(path, "x", {"unrelated": bytes(300_000), **PYTHON})
    monkeypatch.setattr(cifar10, "_LARGEST_FILE", 200_000)
    with pytest.raises(CorruptFileError, match="x/unrelated: has 300000 bytes"):
        cifar10.read(path, _per_file=COUNT)
    archive(path, "x", {"unrelated": b""})
    with pytest.raises(FileNotFoundError, match="not found; CIFAR-10 is"):
        cifar10.read(path, _per_file=COUNT)


def test_few_per_class_keep_the_test_part(tmp_path, monkeypatch):
    write(tmp_path / "cifar-10-batches-bin", binary_files())
    monkeypatch.setattr(cifar10.read, "__kwdefaults__", {"_per_file": COUNT})
    whole = data.load("cifar10", root=tmp_path, seed=1)
    few = data.load("cifar10:8", root=tmp_path, seed=1)
    assert len(few) == 80 + COUNT
    assert few.test.tolist() == list(range(80, 80 + COUNT))
    assert torch.equal(few.images[few.test], whole.images[whole.test])
    assert torch.bincount(few.labels[:80]).tolist() == [8] * 10
    splits = few.split(0.6, 0.2, 0.2)
    assert [len(part) for part in splits] == [60, 20, COUNT]
    assert torch.equal(splits.test, few.test)
    for train, test in few.folds(5):
        assert not torch.isin(torch.cat([train, test]), few.test).any()
