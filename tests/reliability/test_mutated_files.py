"""Thousands of damaged files of every kind: each is refused by name, or loads exactly what was written."""

import random
from collections import Counter

import pytest
import torch

import bitnas
from bitnas import train
from bitnas.cost.call_times import Reading
from bitnas.cost.device_table import DeviceTable, TableWriter, Visit, latency_key
from bitnas.data import Dataset
from bitnas.files import CorruptFileError, load_tensors, read_json_checked, save_tensors, write_json_checked
from bitnas.methods.nasbnn.description import Description, Stage
from bitnas.methods.nasbnn.supernet import Supernet
from bitnas.methods.nasbnn.training import load_supernet, save_supernet
from bitnas.search import Journal, JournalCorrupt, JournalError, Record
from bitnas.search.journal import read_journal
from tests.reliability import mutations

META = {"seed": 0, "space": {"choices": [0.25, 1.0], "length": 6}}


def journal(folder):
    path = folder / "journal.sqlite"
    with Journal(path, meta=META) as opened:
        for index in range(12):
            opened.add(Record(key=f"{index:064x}", genome=(1.0, index / 3), metrics={"accuracy": index / 7}))

    def load():
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
        meta, records = read_journal(path)
        try:  # what may be read may also be gone on with
            Journal(path, meta=META).close()
        except JournalCorrupt:
            raise AssertionError("read, but not opened") from None
        return meta, records

    return (
        path,
        load,
        lambda new, old: new[0] == old[0] and new[1] == old[1][: len(new[1])],
    )  # rows may be lost at the end


def same_tensors(new, old):
    return (
        new[1:] == old[1:] and new[0].keys() == old[0].keys() and all(torch.equal(new[0][k], old[0][k]) for k in old[0])
    )


def parent(folder):
    path = folder / "parent.safetensors"
    model = bitnas.create_model("vgg_small", ratios=[0.25] * 6, input_size=(1, 8, 8), base_width=0.1)
    save_tensors(path, model.state_dict(), {"format": "bitnas-parent-1", "network": model.config.to_dict()})
    return path, lambda: load_tensors(path, expected_format="bitnas-parent-1"), same_tensors


def frozen(folder):
    path = folder / "network.safetensors"
    model = bitnas.create_model("vgg_small", ratios=[0.25] * 6, input_size=(1, 8, 8), base_width=0.1).eval()
    bitnas.save(bitnas.freeze(model), path)

    def load():
        network = bitnas.load(path)
        return dict(network.state_dict()), network.describe()

    return path, load, same_tensors


def checkpoint(folder):
    path = folder / "training.ckpt.safetensors"
    torch.manual_seed(0)
    data = Dataset(images=torch.randn(16, 1, 4, 4), labels=torch.arange(16) % 2, num_classes=2, name="noise")

    def make():
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))

    recipe = train.Recipe(epochs=2, batch_size=8, lr=0.1)
    model = make()
    train.fit(model, data, recipe, seed=0, checkpoint=path)

    def load():
        torch.manual_seed(1)
        again = make()
        history = train.fit(again, data, recipe, seed=0, checkpoint=path)
        return dict(again.state_dict()), [(epoch.epoch, epoch.loss) for epoch in history.epochs]

    return path, load, same_tensors


def config(folder):
    path = folder / "config.json"
    write_json_checked(
        path, {"method": "width", "seed": 0, "search": {"choices": [0.25, 1.0], "population": 8, "x": None}}
    )
    return path, lambda: read_json_checked(path), lambda new, old: repr(new) == repr(old)


def front(folder):
    path = folder / "front.json"
    write_json_checked(path, [{"ratios": [0.25, 1.0], "accuracy": 0.5 + i / 100, "flops": 10.0 * i} for i in range(5)])
    return path, lambda: read_json_checked(path), lambda new, old: new == old


def table(folder):
    path, key = folder / "latency.sqlite", latency_key(batch=1, threads=1)
    with TableWriter(path) as writer:
        for index in range(8):
            us = 10.0 + index / 7
            reading = Reading(us, us, us, us, us, us, 20, False)
            visit = Visit({"model": "m", "choices": [1.0]}, [index], 0, ("a",), (reading,), us, 5.0, 0.1, "2026-01-01")
            writer.add_visit(key, visit)

    def load():
        for rest in ("-wal", "-shm"):
            path.with_name(path.name + rest).unlink(missing_ok=True)
        found = DeviceTable.open(path)
        return found.devices(), found.visits(key)

    return path, load, lambda new, old: new[0] in (old[0], []) and new[1] == old[1][: len(new[1])]


def supernet(folder):
    path = folder / "supernet.safetensors"
    stage = Stage(channels=(4, 8), depths=(1, 2), kernels=(3, 5))
    space = Description(name="s", input_size=(1, 8, 8), num_classes=10, stem=(4,), stages=(stage,))
    save_supernet(Supernet(space), path, {"images": "0" * 64})

    def load():
        found = load_supernet(path)
        return dict(found.state_dict()), found.description, found.strategies

    return path, load, same_tensors


KINDS = [journal, parent, frozen, checkpoint, config, front, table, supernet]


def damage(folder, kind, count):
    """Load `count` damaged files; how many were refused and how many came out as they were."""
    path, load, same = kind(folder)
    whole, good = path.read_bytes(), load()
    rng, outcomes = random.Random(kind.__name__), Counter()
    for index in range(count):
        mutate = mutations.ALL[index % len(mutations.ALL)]
        data = mutate(whole, rng)
        path.write_bytes(data)
        try:
            found = load()
        except (CorruptFileError, JournalError) as error:
            assert str(path) in str(error)  # noqa: PT017
            outcomes["refused"] += 1
        else:
            assert same(found, good), f"{kind.__name__}, {mutate.__name__}, number {index}: loaded as something else"
            outcomes["equal"] += 1
    path.write_bytes(whole)
    assert same(load(), good)
    return outcomes


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damaged_files(tmp_path, kind):
    assert damage(tmp_path, kind, 60 if kind is checkpoint else 180)["refused"] > 20


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_ten_thousand_damaged_files(tmp_path, kind):
    """1,700 of each kind."""
    outcomes = damage(tmp_path, kind, 1700)
    print(kind.__name__, dict(outcomes))
