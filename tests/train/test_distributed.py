"""Real processes that talk through gloo: what they see, what they end with, and how they end when one fails."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bitnas.data import Dataset
from bitnas.files import load_tensors, save_tensors
from bitnas.train import Recipe, distributed, evaluate, fit
from tests.interrupting import interrupted

PLAIN = Recipe(epochs=3, batch_size=32, lr=0.05, schedule="constant")
# Everything that has a state of its own.
RICH = Recipe(
    epochs=3, batch_size=30, lr=0.01, optimizer="adam", shift=1, flip=True, ema=0.9, accumulate=2, clip_norm=1.0,
    keep="best",
)  # fmt: skip


class Recorder(nn.Module):
    """A network without batch norm or dropout that remembers the images of its training steps."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
        self.seen: list[torch.Tensor] = []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.seen.append(x.detach().contiguous())
        return self.net(x)


def rich_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(64, 3)
    )


def rows(count: int = 150) -> Dataset:
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(count) % 3
    images = torch.rand(count, 1, 6, 6, generator=generator)
    images[torch.arange(count), 0, 2 * labels] += 0.7
    return Dataset(images=images, labels=labels, num_classes=3, name="rows")


def history_of(history: Any) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in epoch.items() if "seconds" not in name} for epoch in history.to_dict()["epochs"]
    ]


# ---- What a process does; each returns JSON values, tensors go to files ---------------------------------------------


def train_and_record(folder: Path) -> dict[str, Any]:
    net = Recorder()
    history = fit(net, rows(), PLAIN, seed=3, val=rows(100))
    save_tensors(folder / f"weights{distributed.rank()}", net.net.state_dict(), {"format": "test"})
    save_tensors(
        folder / f"seen{distributed.rank()}", {f"{i:03}": x for i, x in enumerate(net.seen)}, {"format": "test"}
    )
    return {
        "history": history_of(history),
        "accuracy": [evaluate(net, rows(100), batch_size=size) for size in (7, 200)],
    }


def train_rich(folder: Path, name: str, stop_at: int | None = None, kill_after: float | None = None) -> dict[str, Any]:
    steps = 0

    def on_step(*_: int) -> None:
        nonlocal steps
        steps += 1
        if steps == stop_at:
            raise InterruptedError("stopped by the test")
        if steps == 1 and kill_after is not None and distributed.rank() == 1:
            threading.Timer(kill_after, os.kill, (os.getpid(), signal.SIGKILL)).start()

    net = rich_net()
    history = fit(
        net, rows(), RICH, seed=3, val=rows(60), checkpoint=folder / name, checkpoint_every=0,
        log=folder / f"{name}.csv", on_step=on_step,
    )  # fmt: skip
    save_tensors(folder / f"{name}.weights{distributed.rank()}", net.state_dict(), {"format": "test"})
    return {"history": history_of(history)}


class Sometimes(nn.Module):
    """One of its layers is in every third step only, and one in none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net, self.rare, self.never = nn.Linear(36, 3), nn.Linear(36, 3), nn.Linear(36, 3)
        self.steps = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.steps += self.training
        x = x.flatten(1).to(self.net.weight.dtype)
        return self.net(x) + self.rare(x) if self.steps % 3 == 1 else self.net(x)


SOMETIMES = Recipe(epochs=3, batch_size=32, lr=0.05, schedule="constant", optimizer="adam", weight_decay=0.1)


def train_sometimes(folder: Path) -> dict[str, Any]:
    net = Sometimes().double()
    fit(net, rows(), SOMETIMES, seed=3)
    if distributed.process_count() > 1:
        save_tensors(folder / f"sometimes{distributed.rank()}", net.state_dict(), {"format": "test"})
    return {} if distributed.process_count() > 1 else net.state_dict()


def add_gradients(folder: Path) -> dict[str, Any]:
    """Of four parameters both processes have the first's gradient, one each the next two's, and none the last's."""
    given = [nn.Parameter(torch.zeros(2)) for _ in range(4)]
    for number, parameter in enumerate(given[:3]):
        if number in (0, 1 + distributed.rank()):
            parameter.grad = torch.full((2,), 1.0 + distributed.rank())
    total = distributed.GradientSum(given, 2)(torch.tensor([1.0, 2.0]))
    return {"numbers": total.tolist(), "sums": [p.grad if p.grad is None else p.grad.tolist() for p in given]}


class Together(nn.BatchNorm2d):
    """Waits for the other processes in each forward pass of training, as nn.SyncBatchNorm does, which wants GPUs."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            distributed.add_up(torch.zeros(1))
        return super().forward(x)


def train_together(folder: Path, images: int) -> dict[str, Any]:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 4, 3), Together(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    fit(net, rows(images), Recipe(epochs=1, batch_size=20, lr=0.1, ema=0.5), seed=3)
    save_tensors(folder / f"{images}.{distributed.rank()}", net.state_dict(), {"format": "test"})
    return {}


def train_otherwise(folder: Path, what: str) -> dict[str, Any]:
    rank = distributed.rank()
    data, recipe, seed = rows(), PLAIN, 0
    if what == "seed":
        seed = rank
    elif what == "data":
        data = rows(150 + rank)
    elif what == "nan":
        data.images[17] = float("nan")
    elif what == "nan in validation":
        val = rows()
        val.images[103] = float("nan")
        fit(Recorder(), data, PLAIN, seed=0, val=val)
    elif what == "sync_batch_norm":
        recipe = dataclasses.replace(PLAIN, sync_batch_norm=True)
    elif what == "checkpoint":
        fit(rich_net(), data, recipe, seed=seed, checkpoint=folder / f"of{rank}")
        Path(folder / "of1").unlink(missing_ok=True)
        fit(rich_net(), data, recipe, seed=seed, checkpoint=folder / f"of{rank}")
    elif what == "tiny steps":
        recipe = dataclasses.replace(PLAIN, batch_size=1)
    elif what == "hang" and rank == 1:
        time.sleep(60)
    fit(rich_net(), data, recipe, seed=seed)
    return {}


# ---- Processes ------------------------------------------------------------------------------------------------------


def child(task: Callable[..., dict[str, Any]], arguments: tuple[Any, ...], folder: Path, env: dict[str, str]) -> None:
    os.environ.update(env)
    torch.set_num_threads(1)
    try:
        with distributed.joined(torch.device("cpu"), timeout_s=float(env["TEST_TIMEOUT_S"])):
            result = task(folder, *arguments)
    except Exception as error:
        result = {"error": type(error).__name__, "message": str(error)}
    (folder / f"result{env['RANK']}.json").write_text(json.dumps(result))


def run(folder: Path, task: Callable[..., dict[str, Any]], *arguments: Any, count: int = 2, wait_s: float = 60) -> Any:
    """What each process gave, None for one that was killed. The rest are killed when the first has long ended."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "torch._dynamo", "bitnas.data", "bitnas.models", "bitnas.train", __name__])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder.mkdir(exist_ok=True)
    processes = []
    for rank in range(count):
        (folder / f"result{rank}.json").unlink(missing_ok=True)
        env = {
            "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port), "TEST_TIMEOUT_S": str(wait_s),
        }  # fmt: skip
        processes.append(context.Process(target=child, args=(task, arguments, folder, env)))
        processes[-1].start()
    processes[0].join(60)
    for process in processes[1:]:
        process.join(1 if wait_s < 5 else 5)
        if process.is_alive():
            process.kill()
            process.join()
    results = [folder / f"result{rank}.json" for rank in range(count)]
    return [json.loads(result.read_text()) if result.exists() else None for result in results]


def tensors(path: Path) -> dict[str, torch.Tensor]:
    return load_tensors(path, expected_format="test")[0]


# ---- Tests ----------------------------------------------------------------------------------------------------------


def test_two_processes_see_the_images_of_one_and_end_with_its_weights(tmp_path):
    net = Recorder()
    history = fit(net, rows(), PLAIN, seed=3, val=rows(100))
    found = run(tmp_path, train_and_record)
    assert found[0] == found[1]
    seen = [[x for _, x in sorted(tensors(tmp_path / f"seen{rank}").items())] for rank in range(2)]
    assert len(seen[0]) == len(seen[1]) == len(net.seen) == 15
    for whole, *parts in zip(net.seen, *seen, strict=True):
        assert torch.equal(whole, torch.cat(parts))
        assert abs(len(parts[0]) - len(parts[1])) <= 1
    weights = [tensors(tmp_path / f"weights{rank}") for rank in range(2)]
    for name, value in net.net.state_dict().items():
        assert torch.equal(weights[0][name], weights[1][name])
        assert torch.allclose(weights[0][name], value, atol=1e-5)
    for one, two in zip(history_of(history), found[0]["history"], strict=True):
        assert one == pytest.approx(two, abs=1e-4)
    assert found[0]["accuracy"] == [evaluate(net, rows(100))] * 2


def test_a_gradient_that_no_process_has_stays_missing(tmp_path):
    assert run(tmp_path, add_gradients) == [{"numbers": [2, 4], "sums": [[3, 3], [1, 1], [2, 2], None]}] * 2


def test_two_processes_pass_over_the_parameters_that_one_passes_over(tmp_path):
    alone = train_sometimes(tmp_path)
    assert run(tmp_path, train_sometimes) == [{}, {}]
    assert torch.equal(alone["never.weight"], Sometimes().double().never.weight)
    for rank in range(2):
        for name, value in tensors(tmp_path / f"sometimes{rank}").items():
            torch.testing.assert_close(value, alone[name], rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("count", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_stopped_processes_go_on_to_the_same_bits(tmp_path, count):
    whole = run(tmp_path, train_rich, "whole", count=count)
    for stop_at in (1, 4, 5):  # in the first epoch of five steps, then in the second, then at its end
        stopped = run(tmp_path, train_rich, "resumed", stop_at, count=count)
        assert {result["error"] for result in stopped} == {"InterruptedError"}
    resumed = run(tmp_path, train_rich, "resumed", count=count)
    assert resumed == whole
    expected = (tmp_path / "whole.weights0").read_bytes()
    for rank in range(count):
        assert (tmp_path / f"whole.weights{rank}").read_bytes() == expected
        assert (tmp_path / f"resumed.weights{rank}").read_bytes() == expected
    assert len((tmp_path / "resumed.csv").read_text().splitlines()) == 1 + RICH.epochs


def test_a_killed_process_ends_the_others_and_the_next_run_goes_on(tmp_path):
    whole = run(tmp_path, train_rich, "whole")
    start = time.monotonic()
    for kill_after in (0.0, 0.02):
        left, killed = run(tmp_path, train_rich, "resumed", None, kill_after)
        assert killed is None
        assert left["error"] == "PeerLost"
        assert "another process of this training ended or hangs (noticed by process 0" in left["message"]
    assert time.monotonic() - start < 30
    assert run(tmp_path, train_rich, "resumed") == whole
    assert (tmp_path / "resumed.weights0").read_bytes() == (tmp_path / "whole.weights0").read_bytes()


@pytest.mark.parametrize(
    ("what", "error", "message"),
    [
        ("seed", "ValueError", "process 1 and process 0 differ: they were given other settings or other data"),
        ("data", "ValueError", "process 1 and process 0 differ: they were given other settings or other data"),
        ("checkpoint", "ValueError", "is not one file for both; put it where every machine sees it"),
        ("nan", "TrainingDiverged", "the loss is nan at epoch 0, step"),
        ("nan in validation", "NonFiniteError", "of the images 0 to 149 are NaN or infinite"),
        ("sync_batch_norm", "ValueError", "sync_batch_norm needs GPUs"),
        ("tiny steps", "ValueError", "batch_size must be at least the number of processes, 2"),
    ],
)
def test_every_process_says_what_is_wrong(tmp_path, what, error, message):
    for result in run(tmp_path, train_otherwise, what):
        assert result["error"] == error
        assert message in result["message"]


def test_a_process_that_hangs_is_given_up(tmp_path):
    start = time.monotonic()
    waiting, hanging = run(tmp_path, train_otherwise, "hang", wait_s=1)
    assert waiting["error"] == "PeerLost"
    assert hanging is None
    assert time.monotonic() - start < 30


@pytest.mark.parametrize("images", [60, 20])
def test_processes_measure_as_many_batches_each(tmp_path, images):
    """Three batches for two processes, and one."""
    assert run(tmp_path, train_together, images, wait_s=10) == [{}, {}]
    first, second = (tensors(tmp_path / f"{images}.{rank}") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert (first["1.running_var"] > 0).all()
    assert not torch.equal(first["1.running_var"], torch.ones(4))


def test_checkpoints_of_another_number_of_processes_are_refused(tmp_path):
    run(tmp_path, train_rich, "run", 4)
    with pytest.raises(ValueError, match=r"another processes \(2, here 1\)"):
        fit(rich_net(), rows(), RICH, seed=3, val=rows(60), checkpoint=tmp_path / "run")


def test_a_gpu_for_each_process_or_a_clear_message(monkeypatch):
    assert distributed.local_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device must be one of 'auto', 'cpu', 'cuda', got 'tpu'"):
        distributed.local_device("tpu")
    for name in distributed._LAUNCHED_WITH:
        monkeypatch.setenv(name, "999")
    message = "process 999 of this machine wants" if torch.cuda.is_available() else "there is no GPU here"
    with pytest.raises(ValueError, match=f"device 'cuda': {message}"):
        distributed.local_device("cuda")


@pytest.mark.slow
def test_torchrun_ctrl_c_and_the_same_command(tmp_path):
    """The whole command line: two processes, Ctrl-C, and on to what an uninterrupted run gives."""

    def command(out: str, epochs: int) -> list[str]:
        return [
            sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", "-m",
            "bitnas", "train", "--out", str(tmp_path / out), "--base-width", "0.06", "--epochs", str(epochs),
            "--device", "cpu", "--json",
        ]  # fmt: skip

    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    code, out, err = interrupted(command("stopped", 12), "epoch 2/", env=environment)
    assert code != 0
    assert out == ""
    assert err.count("stopped; finished steps are kept. To go on: torchrun --nproc-per-node 2 -m bitnas train") == 1
    results = []
    for name in ("stopped", "whole"):
        done = subprocess.run(command(name, 12), env=environment, capture_output=True, text=True, check=True)
        results.append(json.loads(done.stdout))
        assert results[-1]["verified"]["ok"]
    assert results[0] == results[1]
    frozen = [(tmp_path / name / "frozen.safetensors").read_bytes() for name in ("stopped", "whole")]
    assert frozen[0] == frozen[1]
