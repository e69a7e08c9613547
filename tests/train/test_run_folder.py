"""One folder: one process at a time, one run."""

import json
import os
import subprocess
import sys

import pytest

from bitnas.files import CorruptFileError
from bitnas.train.folder import FolderInUse, OtherSettings, claim, locked

SETTINGS = {"seed": 0, "recipe": {"lr": 0.1, "milestones": (1, 2)}}


HOLDER = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
file.write("12345")
file.flush()
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_process_is_refused_until_the_first_is_dead(tmp_path):
    folder = tmp_path / "made" / "here"
    with locked(folder), pytest.raises(FolderInUse, match=f"another process .pid {os.getpid()}.. Wait"), locked(folder):
        pass
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder / "train.lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(FolderInUse, match="here is in use by another process .pid 12345.. Wait"), locked(folder):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with locked(folder):
        pass


def test_the_lock_is_given_back_after_an_error(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass


def test_a_folder_keeps_its_settings_once_there_is_something_to_lose(tmp_path):
    checkpoint = tmp_path / "checkpoint"
    claim(tmp_path, {"seed": 7}, {}, checkpoint)
    claim(tmp_path, SETTINGS, {"torch": "1"}, checkpoint)
    checkpoint.touch()
    claim(tmp_path, SETTINGS, {"torch": "2"}, checkpoint)
    assert json.loads((tmp_path / "settings.json").read_text())["made_with"] == {"torch": "1"}
    message = (
        "belongs to a training with other settings: recipe.lr 0.1 there, 0.2 here; recipe.ema None there, 0.9 here"
    )
    with pytest.raises(OtherSettings, match=message):
        claim(tmp_path, {"seed": 0, "recipe": {"lr": 0.2, "milestones": (1, 2), "ema": 0.9}}, {}, checkpoint)
    with pytest.raises(OtherSettings, match="seed 0 there, None here"):
        claim(tmp_path, {"recipe": SETTINGS["recipe"]}, {}, checkpoint)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"settings": 3}'])
def test_damaged_settings_are_refused(tmp_path, text):
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(CorruptFileError, match="settings.json: is not the settings of a training"):
        claim(tmp_path, SETTINGS, {}, tmp_path / "settings.json")
