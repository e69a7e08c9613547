"""A packed file gives what the folder gives, appears only when it is whole, and is refused when it is not."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pictures
import pytest
import safetensors.numpy
import torch

from bitnas import data
from bitnas.data import Augmentation, packed_file, tensor_file
from bitnas.data.augment import crop_box, resize
from bitnas.files import CorruptFileError, load_tensors, save_tensors


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return pictures.folder(tmp_path_factory.mktemp("photos"), kind="PNG")


@pytest.fixture(scope="module")
def packed(photos, tmp_path_factory):
    path = tmp_path_factory.mktemp("packed") / "photos.safetensors"
    result = packed_file.write(data.load(str(photos), size=28), path)
    assert result["images"] == 15
    assert result["skipped"] == []
    assert result["bytes"] == path.stat().st_size
    return path


def test_the_file_is_one_of_the_package_and_of_safetensors(packed):
    tensors, facts = load_tensors(packed, expected_format="bitnas-images-1")
    assert tensors["images"].shape == (15, 3, 32, 32)
    assert facts["classes"] == ["class_0", "class_1", "class_2"]
    plain = safetensors.numpy.load_file(packed)
    assert np.array_equal(plain["images"], tensors["images"].numpy())
    assert plain["labels"].tolist() == [0] * 5 + [1] * 5 + [2] * 5
    middle = pictures.smooth(40, 50, 3)[:, 5:45]
    oracle = resize(torch.from_numpy(middle).permute(2, 0, 1).contiguous(), 32, 32)
    assert (tensors["images"][3].int() - oracle.int()).abs().max() <= 1


def test_it_is_mapped_and_gives_nearly_the_folders_images(packed, photos):
    source, straight = data.load(str(packed)), data.load(str(photos), size=28)
    assert isinstance(source.store.images, np.memmap)
    assert source.input_size == (3, 28, 28)
    assert (source.name, source.classes, source.mean) == (straight.name, straight.classes, straight.mean)
    every = torch.arange(15)
    assert torch.equal(source.labels, straight.labels)
    difference = (source.take(every) - straight.take(every)).abs() * 0.225 * 255
    assert difference.max() <= 3  # levels: resized once or twice
    exact = torch.from_numpy(np.array(source.store.images[:, :, 2:30, 2:30]))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (source.mean, source.std))
    assert torch.equal(source.take(every), (exact.float() / 255 - mean) / std)
    assert data.load(str(packed), size=14).take(every).shape == (15, 3, 14, 14)
    assert data.load(f"{packed}:2").labels.tolist() == [0, 0, 1, 1, 2, 2]
    with pytest.raises(ValueError, match=r"size must be in \[1, 32\]"):
        data.load(str(packed), size=33)
    with pytest.raises(ValueError, match="channels=1: .* takes no channels"):
        data.load(str(packed), channels=1)


def test_crops_are_those_of_tensors(packed):
    source = data.load(str(packed), workers=3)
    augmentation = Augmentation(crop=(0.1, 0.8))
    (batch, _) = next(source.batches([torch.tensor([4, 9])], augmentation=augmentation, seeds=[3]))
    draws = torch.rand(2, 22, generator=torch.Generator().manual_seed(3), dtype=torch.float64).numpy()
    for image, number, row in zip(batch, (4, 9), draws, strict=True):
        top, left, h, w = crop_box(32, 32, (0.1, 0.8), row)
        part = torch.from_numpy(np.array(source.store.images[number, :, top : top + h, left : left + w]))
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (source.mean, source.std))
        assert torch.equal(image, (resize(part, 28, 28).float() / 255 - mean) / std)


def test_test_part_subset_and_bad_files(tmp_path):
    for part, count in (("train", 4), ("val", 3)):
        pictures.folder(tmp_path / "a" / part, count=count, classes=2, kind="PNG")
    for name in ("train/class_0/1.png", "val/class_1/0.png"):
        path = tmp_path / "a" / name
        path.write_bytes(path.read_bytes()[:60])
    source = data.load(str(tmp_path / "a"), size=28)
    out = tmp_path / "a.safetensors"
    with pytest.raises(CorruptFileError, match=r"train/class_0/1\.png: cannot be decoded"):
        packed_file.write(source, out)
    assert not out.exists()
    result = packed_file.write(source, out, skip_bad=True)
    assert result["skipped"] == ["train/class_0/1.png", "val/class_1/0.png"]
    again = data.load(str(out))
    assert again.labels.tolist() == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 1, 1]
    assert again.test.tolist() == [7, 8, 9, 10, 11]
    assert again.skipped == 2
    few = packed_file.write(
        data.load(f"{tmp_path / 'a'}:3", size=28, seed=1), tmp_path / "b.safetensors", skip_bad=True
    )
    assert few["images"] in (9, 10, 11)
    assert data.load(str(tmp_path / "b.safetensors")).test is not None
    with pytest.raises(ValueError, match="side must be at least 28"):
        packed_file.write(source, out, side=27, skip_bad=True)


def test_damage_is_found(packed, tmp_path):
    blob = packed.read_bytes()
    start = blob.index(b"class_1")
    copy = tmp_path / "a.safetensors"
    damaged = {
        "pixel": blob[:-5000] + bytes([blob[-5000] ^ 1]) + blob[-4999:],
        "label": blob[:-1] + bytes([blob[-1] ^ 1]),
        "name": blob[:start] + b"klass_1" + blob[start + 7 :],
        "cut": blob[:-8],
        "longer": blob + bytes(8),
        "header": blob[:300],
        "format": blob.replace(b"bitnas-images-1", b"bitnas-images-2"),
        "shape": blob.replace(b"[15,3,32,32]", b"[15,3,32,16]"),
    }
    for kind, contents in damaged.items():
        copy.write_bytes(contents)
        with pytest.raises(CorruptFileError, match=r"a\.safetensors: ") as error:
            data.load(str(copy))
        assert kind != "pixel" or "SHA-256 does not match" in str(error.value)
    copy.write_bytes(blob)
    assert data.load(str(copy)).fingerprint() == data.load(str(packed)).fingerprint()


def test_no_flipped_bit_of_the_header_makes_it_a_file_that_nobody_checks(packed, tmp_path):
    blob = bytearray(packed.read_bytes())
    key = blob.index(b'"sha256"')
    end = 8 + len(blob[8 : 8 + int.from_bytes(blob[:8], "little")].rstrip())
    flips = [(place, place % 8) for place in range(end)]
    flips += [(place, bit) for place in range(key, key + 8) for bit in range(8)]
    copy = tmp_path / "a.safetensors"
    for place, bit in flips:
        blob[place] ^= 1 << bit
        copy.write_bytes(blob)
        with pytest.raises(CorruptFileError):
            data.load(str(copy))
        blob[place] ^= 1 << bit


def test_the_reader_of_tensors_takes_no_file_of_bitnas(packed, tmp_path):
    with pytest.raises(CorruptFileError, match="is a file that bitnas wrote, and is damaged or of another kind"):
        tensor_file.read(packed)
    other = tmp_path / "a.safetensors"
    save_tensors(other, {"images": torch.rand(4, 1, 2, 2), "labels": torch.arange(4)}, {"format": "bitnas-model-1"})
    with pytest.raises(CorruptFileError, match="its format is 'bitnas-model-1', expected 'bitnas-images-1'"):
        data.load(str(other))


def test_a_writer_that_comes_as_another_one_ends_leaves_its_file_alone(photos, packed, tmp_path, monkeypatch):
    """The other one renames its whole file between this one's opening and locking of PATH.part."""
    out, part = tmp_path / "a.safetensors", tmp_path / "a.safetensors.part"
    part.write_bytes(packed.read_bytes())
    lock, seen = fcntl.flock, []

    def late(file, how):
        if not seen:
            os.replace(part, out)
        seen.append(os.fstat(file.fileno()).st_ino)
        lock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with packed_file._only_writer(part) as file:
        assert os.fstat(file.fileno()).st_size == 0
        assert out.read_bytes() == packed.read_bytes()
    assert len(set(seen)) == 2


def test_a_packing_that_is_stopped_goes_on(photos, packed, tmp_path, monkeypatch):
    source, out = data.load(str(photos), size=28), tmp_path / "a.safetensors"
    monkeypatch.setattr(packed_file, "_BATCH", 2)

    def stop(done, total):
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packed_file.write(source, out, on_progress=stop)
    assert not out.exists()
    assert json.loads((tmp_path / "a.safetensors.part.json").read_text())["kept"] == [6]
    seen = []
    packed_file.write(source, out, on_progress=lambda done, total: seen.append(done))
    assert seen[0] == 8
    assert out.read_bytes() == packed.read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
    # Another job, a note that promises too much, and a damaged note begin anew.
    for note in ("kept", "side", None):
        with pytest.raises(KeyboardInterrupt):
            packed_file.write(source, out, on_progress=stop)
        notes = tmp_path / "a.safetensors.part.json"
        value = json.loads(notes.read_text())
        value.update({"kept": [12]} if note == "kept" else {"side": 99})
        notes.write_text(json.dumps(value) if note else "{")
        seen.clear()
        packed_file.write(source, out, on_progress=lambda done, total: seen.append(done))
        assert seen[0] == 2
        assert out.read_bytes() == packed.read_bytes()


KILLED = """
import os, sys, time
from pathlib import Path
from bitnas import data
from bitnas.data import packed_file
packed_file._BATCH, packed_file._SYNC_EVERY = 1, 1
source = data.load(sys.argv[1], size=28, workers=1)
print("ready", flush=True)
packed_file.write(source, Path(sys.argv[2]), on_progress=lambda done, total: time.sleep(0.02))
"""


def test_a_packing_that_is_killed_goes_on(photos, packed, tmp_path):
    out = tmp_path / "a.safetensors"
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(photos), str(out)], stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    notes = tmp_path / "a.safetensors.part.json"
    end = time.monotonic() + 20
    while not notes.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.005)
    time.sleep(0.05)
    with pytest.raises(BlockingIOError, match="another process is packing"):
        packed_file.write(data.load(str(photos), size=28), out)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    seen = []
    packed_file.write(data.load(str(photos), size=28), out, on_progress=lambda done, total: seen.append(done))
    assert out.read_bytes() == packed.read_bytes()
    assert os.listdir(tmp_path) == ["a.safetensors"]
