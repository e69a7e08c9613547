"""Whole or refused: every damage to a saved file raises CorruptFileError, and a failed write leaves the old file."""

import errno
import json
import os
import pickle
import random
import stat
import subprocess
import sys

import pytest
import safetensors.torch
import torch

from bitnas import files
from bitnas.files import (
    CorruptFileError,
    load_tensors,
    read_json_checked,
    save_tensors,
    write_bytes_atomic,
    write_json_atomic,
    write_json_checked,
)

FORMAT = "bitnas-test-1"


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "weight": torch.randn(7, 5, generator=generator),
        "half": torch.randn(3, 3, generator=generator).to(torch.bfloat16),
        "bits": torch.randint(-(2**62), 2**62, (4, 3), generator=generator),
        "scalar": torch.tensor(0.1, dtype=torch.float64),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
    }


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "net.safetensors"
    save_tensors(path, some_tensors(), {"format": FORMAT, "note": 'a"b\u00e9', "values": [0.1, 1e-300, 3]})
    return path


def refused(path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(CorruptFileError) as caught:
        load_tensors(path, expected_format=FORMAT)
    assert str(path) in str(caught.value)
    return caught.value.reason


def test_round_trip_keeps_every_bit(saved):
    tensors, metadata = load_tensors(saved, expected_format=FORMAT)
    expected = some_tensors()
    assert tensors.keys() == expected.keys()
    for name, tensor in expected.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)
    assert metadata == {"format": FORMAT, "note": 'a"b\u00e9', "values": [0.1, 1e-300, 3]}


def test_plain_safetensors_reader_opens_it(saved):
    assert torch.equal(safetensors.torch.load_file(saved)["weight"], some_tensors()["weight"])


def test_equal_input_gives_equal_bytes(saved, tmp_path):
    again = tmp_path / "again.safetensors"
    reordered = dict(reversed(some_tensors().items()))
    save_tensors(again, reordered, {"values": [0.1, 1e-300, 3], "note": 'a"b\u00e9', "format": FORMAT})
    assert again.read_bytes() == saved.read_bytes()


def test_no_tensors_and_non_contiguous_and_shared(tmp_path):
    path = tmp_path / "x"
    save_tensors(path, {}, {"format": FORMAT})
    assert load_tensors(path, expected_format=FORMAT) == ({}, {"format": FORMAT})
    base = torch.arange(6.0).reshape(2, 3)
    save_tensors(path, {"a": base.t(), "b": base, "c": base[1]}, {"format": FORMAT})
    tensors, _ = load_tensors(path, expected_format=FORMAT)
    assert torch.equal(tensors["a"], base.t())
    assert torch.equal(tensors["b"], base)
    assert torch.equal(tensors["c"], base[1])


def test_metadata_cannot_pose_as_the_digest(tmp_path):
    path = tmp_path / "x"
    metadata = {"format": FORMAT, "trap": '"sha256":"' + "0" * 64 + '"', "sha256": "0" * 64}
    save_tensors(path, {"sha256": torch.ones(2)}, metadata)
    tensors, back = load_tensors(path, expected_format=FORMAT)
    assert back == metadata
    assert torch.equal(tensors["sha256"], torch.ones(2))


def test_every_truncation_is_refused(saved):
    data = saved.read_bytes()
    for length in range(len(data)):
        refused(saved, data[:length])


def test_appended_bytes_are_refused(saved):
    data = saved.read_bytes()
    generator = random.Random(0)
    for count in (1, 2, 7, 8, 64, 4096):
        refused(saved, data + bytes(count))
        refused(saved, data + generator.randbytes(count))


def test_every_flipped_byte_is_refused(saved):
    """Every byte of header and payload with a random pattern, and every single bit of the first header entries."""
    data = saved.read_bytes()
    assert len(data) >= 500
    generator = random.Random(1)
    for position in range(len(data)):
        damaged = bytearray(data)
        damaged[position] ^= generator.randrange(1, 256)
        refused(saved, bytes(damaged))
    for position in range(8, 200):
        for bit in range(8):
            damaged = bytearray(data)
            damaged[position] ^= 1 << bit
            refused(saved, bytes(damaged))


def test_swapped_blocks_are_refused(saved):
    data = saved.read_bytes()
    refused(saved, data[-16:] + data[16:-16] + data[:16])
    refused(saved, data[:-32] + data[-16:] + data[-32:-16])


def test_huge_header_length_is_refused_without_allocating(saved):
    data = saved.read_bytes()
    reason = refused(saved, (2**63).to_bytes(8, "little") + data[8:])
    assert str(2**63) in reason


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b"{}",
        b"null",
        b'{"__metadata__":[]}',
        b'{"__metadata__":{}}',
        b'{"__metadata__":{"sha256":5}}',
        b"[" * 100_000,
    ],
)
def test_hostile_headers_are_refused(tmp_path, header):
    refused(tmp_path / "x", len(header).to_bytes(8, "little") + header)


def test_foreign_safetensors_are_refused(tmp_path):
    refused(tmp_path / "x", safetensors.torch.save({"a": torch.ones(2)}))


def test_a_pickle_is_refused(tmp_path):
    refused(tmp_path / "x", pickle.dumps({"a": 1}))


def test_wrong_format_is_refused(saved):
    with pytest.raises(CorruptFileError, match=r"format is 'bitnas-test-1', expected 'bitnas-other-1'"):
        load_tensors(saved, expected_format="bitnas-other-1")


def test_missing_file_is_not_called_corrupt(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "absent", expected_format=FORMAT)


def test_bad_arguments(tmp_path):
    path = tmp_path / "x"
    with pytest.raises(ValueError, match=r"metadata\['format'\]"):
        save_tensors(path, {}, {})
    with pytest.raises(ValueError, match=r"metadata\['format'\]"):
        save_tensors(path, {}, {"format": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        save_tensors(path, {}, {"format": FORMAT, "x": float("nan")})
    with pytest.raises(TypeError, match=r"tensors\['a'\] must be a torch.Tensor, got list"):
        save_tensors(path, {"a": [1]}, {"format": FORMAT})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_atomic(path, {"x": float("inf")})
    assert list(tmp_path.iterdir()) == []


def test_json_and_permissions(tmp_path):
    path = tmp_path / "x.json"
    write_json_atomic(path, {"b": 1, "a": 0.1})
    assert json.loads(path.read_text()) == {"b": 1, "a": 0.1}
    assert path.read_text().endswith("}\n")
    path.chmod(0o640)
    write_json_atomic(path, [])
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.json"]


@pytest.mark.parametrize("value", [{"b": 1, "a": [0.1, -0.0, None, "é"]}, [{"a": 1}, {"sha": 2}]])
def test_checked_json_comes_back_and_other_programs_read_it(tmp_path, value):
    path = tmp_path / "x.json"
    write_json_checked(path, value)
    assert read_json_checked(path) == value
    plain = json.loads(path.read_text())
    holder = plain if isinstance(plain, dict) else plain[-1]
    assert len(holder.pop("sha256")) == 64
    assert plain == value
    path.write_text(json.dumps(json.loads(path.read_text()), separators=(",", ":")))  # formatting is free
    assert read_json_checked(path) == value


def test_edited_json_is_refused_and_says_how_to_go_on(tmp_path):
    path = tmp_path / "config.json"
    write_json_checked(path, {"seed": 0, "rate": 0.5})
    whole = path.read_text()
    edited = [whole.replace('"seed": 0', '"seed": 1'), whole.replace("0.5", "0.50001"), whole.replace("rate", "rats")]
    for text in [*edited, whole.replace("0.5", "NaN"), "{}", "[]", "7", "", "[" * 100_000, '{"seed": 0, "rate": 0.5}']:
        assert text != whole
        path.write_text(text)
        with pytest.raises(CorruptFileError, match=r"config\.json: .*Use a new folder$"):
            read_json_checked(path, fix="Use a new folder")
    path.write_bytes(b"\xff" + whole.encode())
    with pytest.raises(CorruptFileError):
        read_json_checked(path)


def test_what_cannot_be_checked_is_not_written(tmp_path):
    path = tmp_path / "x.json"
    for value in ({}, [], [{"a": 1}, 2], "text"):
        with pytest.raises(TypeError, match="wanted an object"):
            write_json_checked(path, value)
    with pytest.raises(ValueError, match="'sha256'"):
        write_json_checked(path, {"sha256": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json_checked(path, {"a": float("nan")})
    assert not path.exists()


STEPS = ["open", "write", "flush", "fsync", "replace", "folder fsync"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO], ids=["full", "broken"])
@pytest.mark.parametrize("step", STEPS)
def test_a_fault_at_each_step_of_a_write_leaves_a_whole_file(tmp_path, monkeypatch, step, code):
    """Old contents up to the rename, new ones after it; the same write succeeds once the disk works again."""
    path = tmp_path / "x.json"
    write_json_checked(path, {"version": 1})
    fault = OSError(code, os.strerror(code))
    real_open, real_fsync, synced = open, os.fsync, []

    class Faulty:
        def __init__(self, file):
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            if step == "write":
                self.file.write(data[: len(data) // 2])
                raise fault
            return self.file.write(data)

        def flush(self):
            if step == "flush":
                raise fault
            self.file.flush()

    def faulty_open(name, mode="r", *rest, **more):
        if step == "open" and "x" in mode:
            raise fault
        return Faulty(real_open(name, mode, *rest, **more)) if "x" in mode else real_open(name, mode, *rest, **more)

    def faulty_fsync(descriptor):
        synced.append(descriptor)
        if (step, len(synced)) in (("fsync", 1), ("folder fsync", 2)):
            raise fault
        real_fsync(descriptor)

    def faulty_replace(*_):
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr("builtins.open", faulty_open)
        patch.setattr(files.os, "fsync", faulty_fsync)
        if step == "replace":
            patch.setattr(files.os, "replace", faulty_replace)
        with pytest.raises(OSError, match=os.strerror(code)):
            write_json_checked(path, {"version": 2})
    assert read_json_checked(path) == {"version": 2 if step == "folder fsync" else 1}
    assert os.listdir(tmp_path) == ["x.json"]
    write_json_checked(path, {"version": 3})
    assert read_json_checked(path) == {"version": 3}


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failing_disk_leaves_the_old_file(tmp_path, monkeypatch, step):
    path = tmp_path / "x"
    write_bytes_atomic(path, b"old")

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, step, fail)
    with pytest.raises(OSError, match="No space left"):
        write_bytes_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["x"]


def test_error_survives_pickling_between_processes():
    error = pickle.loads(pickle.dumps(CorruptFileError("a/b", "is cut short")))
    assert str(error) == "a/b: is cut short"


def test_import_needs_no_torch():
    code = "import sys, bitnas.files; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
