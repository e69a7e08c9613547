"""`bitnas data` as a user meets it."""

import json

import pictures
import pytest
import safetensors.torch
import torch

from bitnas import cli, data


@pytest.fixture
def run(capsys):
    """The command in this process: (exit code, stdout, stderr)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["data", *arguments])
        captured = capsys.readouterr()
        return stop.value.code, captured.out, captured.err

    return call


def test_list(run):
    code, out, _ = run("list")
    assert code == 0
    assert all(name in out for name in data.list_datasets())
    code, out, _ = run("list", "--json")
    assert sorted(json.loads(out)["names"]) == data.list_datasets()


@pytest.mark.parametrize("command", ["list", "check", "pack"])
def test_help(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0
    assert "--json" in out


def test_check_counts_and_lists_bad_files(run, tmp_path):
    root = pictures.folder(tmp_path / "photos")
    pictures.write(root / "class_0" / "grey.png", pictures.smooth(20, 70)[:, :, 0])
    code, out, _ = run("check", str(root))
    assert (code, "16" in out, "JPEG 15, PNG 1" in out, "RGB 15, L 1" in out) == (0, True, True, True)
    assert "named       class_0, class_1, class_2\n" in out

    path = root / "class_1" / "2.jpeg"
    path.write_bytes(path.read_bytes()[:-50])
    (root / "class_2" / "zero.png").write_bytes(b"")
    (root / "class_2" / "Thumbs.db").write_bytes(b"x")
    code, out, _ = run("check", str(root), "--json")
    found = json.loads(out)
    assert code == 1
    assert found["images"] == 15
    assert found["classes"] == {"class_0": 6, "class_1": 4, "class_2": 5}
    assert [bad["file"] for bad in found["bad"]] == ["class_1/2.jpeg", "class_2/zero.png"]
    assert "truncated" in found["bad"][0]["reason"]
    assert found["ignored"] == ["class_2/Thumbs.db"]
    assert (found["height"], found["width"]) == ([20, 40, 40], [50, 50, 70])
    code, out, _ = run("check", str(root), "--headers", "--json")
    assert [bad["file"] for bad in json.loads(out)["bad"]] == ["class_2/zero.png"]

    with pytest.raises(ValueError, match="1 files cannot be read"):
        data.load(str(root))
    code, out, _ = run("check", str(root), "--skip-bad")
    assert code == 0
    assert "left out from now on" in out
    source = data.load(str(root))
    assert (len(source), source.skipped) == (15, 2)
    assert source.take(torch.arange(15)).isfinite().all()
    code, out, _ = run("check", str(root), "--json")
    assert (code, json.loads(out)["skipped"]) == (0, 2)


def test_check_of_tensors_and_names(run, tmp_path):
    code, out, _ = run("check", "digits", "--json")
    assert (code, json.loads(out)["images"], len(json.loads(out)["classes"])) == (0, 1797, 10)
    path = tmp_path / "own.safetensors"
    safetensors.torch.save_file({"images": torch.rand(3, 1, 2, 2), "labels": torch.tensor([0, 2, 2])}, path)
    code, out, _ = run("check", str(path), "--json")
    assert (code, json.loads(out)["empty_classes"]) == (1, ["1"])
    code, out, _ = run("check", str(path))
    assert "channels    1\n" in out
    assert "note        no image has the label 1\n" in out
    code, _, err = run("check", "nothing")
    assert code == 2
    assert err.startswith("error: name must be one of cifar10, digits, imagenet")


def test_pack(run, tmp_path):
    root, out = pictures.folder(tmp_path / "photos"), tmp_path / "p.safetensors"
    code, text, _ = run("pack", str(root), "--out", str(out), "--per-class", "2", "--input-size", "14", "--json")
    assert code == 0
    result = json.loads(text)
    assert result["images"] == 6
    source = data.load(str(out))
    assert source.input_size == (3, 14, 14)
    assert source.store.images.shape == (6, 3, 16, 16)
    assert source.fingerprint() == data.load(str(out)).fingerprint()
    code, text, _ = run("check", str(out), "--json")
    assert (code, json.loads(text)["images"]) == (0, 6)
    code, _, err = run("pack", "digits", "--out", str(out))
    assert (code, "in memory" in err) == (2, True)
    code, _, err = run("pack", str(root), "--out", str(tmp_path / "p.bin"))
    assert (code, "must end in .safetensors" in err) == (2, True)
