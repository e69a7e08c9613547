"""The search by BARS on the real digits, small: one folder, every kind of stop, and the same result."""

import dataclasses
import json
import math
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import safetensors.torch
import torch

import bitnas.methods.bars as bars
from bitnas.cost import count
from bitnas.files import CorruptFileError, load_tensors, read_json_checked, save_tensors
from bitnas.methods import nasbnn
from bitnas.methods.bars import evaluate
from bitnas.methods.bars.course import at_chance
from bitnas.methods.bars.deploy import deploy
from bitnas.methods.bars.description import Architecture
from bitnas.methods.bars.training import FORMAT, SearchDiverged, load_supernet
from bitnas.methods.run_folder import read_front
from bitnas.models import create_model
from bitnas.search import JournalCorrupt, JournalLocked, SearchFailed
from bitnas.search.journal import read_journal
from tests.methods.bars.tiny import SPACE, TINY

ROOT = Path(__file__).parents[3]
SAME = ("architecture", "network", "genome", "accuracy", "ops", "bops", "flops", "memory_bits", "params", "loss_flops")
SAME += ("key", "likeliest")


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "whole"
    torch.set_num_threads(1)
    return bars.search(TINY, folder)


def candidates(folder):
    """What was judged, without what a clock decides."""
    found = json.loads((Path(folder) / "search.json").read_text())["candidates"]
    kept = ("key", "genome", "architecture", "network", "status", "reason", "generation")
    clocks = [{name: one[name] for name in kept} for one in found]
    metrics = [{n: v for n, v in one["metrics"].items() if not n.startswith("latency_")} for one in found]
    return list(zip(clocks, metrics, strict=True))


def course(folder):
    return [{**record, "seconds": 0} for record in read_json_checked(Path(folder) / "course.json")]


def supernet(folder):
    return (Path(folder) / "supernet.safetensors").read_bytes()


def same(folder, other):
    return (
        candidates(folder) == candidates(other)
        and course(folder) == course(other)
        and supernet(folder) == supernet(other)
    )


def test_folder_holds_what_it_should(finished):
    names = {path.name for path in finished.folder.iterdir()}
    wanted = {"config.json", "journal.sqlite", "supernet.safetensors", "course.json", "search.json", "front.json"}
    assert wanted <= names
    assert "supernet.ckpt.safetensors" not in names
    written = json.loads((finished.folder / "config.json").read_text())
    assert written["method"] == "bars"
    assert written["search"] == json.loads(json.dumps(TINY.to_dict()))
    assert [record["epoch"] for record in course(finished.folder)] == [0, 1]


def test_rows_say_what_the_networks_are(finished):
    front = read_front(finished.folder)
    assert front == finished.front
    space = evaluate.description(TINY)
    for number, row in enumerate(front, 1):
        architecture = Architecture.from_dict(row["architecture"])
        assert space.genome(architecture) == tuple(row["genome"])
        assert row["file"] == f"networks/front-{number}.json"
        model = create_model(finished.folder / row["file"])
        assert model.config.to_dict() == row["network"]
        assert model.config.key() == row["key"]
        counted = count(model, rule="mac")
        for name in ("ops", "flops", "bops", "memory_bits", "params"):
            assert row[name] == getattr(counted, name), name
        assert 0 <= row["accuracy"] <= 1
        assert row["latency_us"] > 0
        assert all(math.isfinite(value) for value in row.values() if isinstance(value, float))
    assert [row["accuracy"] for row in front] == sorted((row["accuracy"] for row in front), reverse=True)


def test_what_is_judged_is_derived_from_the_probabilities(finished):
    written = json.loads((finished.folder / "search.json").read_text())
    assert len(written["candidates"]) == TINY.samples
    probabilities = load_supernet(finished.folder / "supernet.safetensors").probabilities()
    space = evaluate.description(TINY)
    first = Architecture.from_dict(written["candidates"][0]["architecture"])
    operations = [[space.operations[n] for n in cell] for cell in probabilities.edges.argmax(-1).tolist()]
    assert [list(cell) for cell in first.cells] == operations
    assert written["likeliest"] == written["candidates"][0]["key"]


def test_an_accuracy_is_that_of_the_inherited_network(finished):
    """By another way than the search's: extracted, and its statistics those of one batch of the weights' images."""
    from bitnas import train

    row = json.loads((finished.folder / "search.json").read_text())["candidates"][0]
    network = load_supernet(finished.folder / "supernet.safetensors").extract(
        Architecture.from_dict(row["architecture"])
    )
    weights, _ = evaluate.halves(TINY)
    seed = evaluate.derive_seed(0, "calibration", row["key"])
    drawn = torch.randperm(len(weights), generator=torch.Generator().manual_seed(seed))[:128]
    norms = [module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = 1.0  # one batch: its own statistics
    network.eval()
    for norm in norms:
        norm.train()
    with torch.no_grad():
        network(weights.take(drawn))
    data = evaluate.load_data("digits", 0)
    assert train.evaluate(network.eval(), data.subset(evaluate.split_data(TINY).val)) == row["metrics"]["accuracy"]


def test_the_halves_are_disjoint_parts_of_the_train_split():
    data, split = evaluate.load_data("digits", 0), evaluate.split_data(TINY)
    weights, architecture = evaluate.halves(TINY)
    assert abs(len(weights) - len(architecture)) <= 1
    assert len(weights) + len(architecture) == len(split.train)

    def images(source):
        return {image.numpy().tobytes() for image in source.take(torch.arange(len(source)))}

    known = images(data.subset(split.train))
    assert images(weights) <= known
    assert images(architecture) <= known
    # A few digits are there twice, pixel by pixel.
    assert len(images(weights) & images(architecture)) <= len(split.train) - len(known)


def test_resuming_a_finished_search_changes_no_byte(finished):
    before = (finished.folder / "front.json").read_bytes()
    replayed = []
    result = bars.resume(
        finished.folder, on_progress=lambda e: e["event"] == "evaluated" and replayed.append(e["replayed"])
    )
    assert replayed
    assert all(replayed)
    assert result == finished
    assert (finished.folder / "front.json").read_bytes() == before


@pytest.mark.slow
def test_workers_do_not_change_the_result(finished, tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("config.json", "supernet.safetensors", "course.json"):
        shutil.copy(finished.folder / name, folder / name)
    bars.resume(folder, workers=1)
    assert same(folder, finished.folder)


class Stop(Exception):
    pass


def stop_after(number, name):
    seen = []

    def progress(event):
        seen.append(event["event"])
        if seen.count(name) == number:
            raise Stop

    return progress


@pytest.mark.parametrize(
    ("number", "name"), [(3, "supernet_step"), (1, "architecture_epoch"), (1, "derived"), (2, "evaluated")]
)
def test_stopped_anywhere_it_resumes_to_the_same(finished, tmp_path, number, name):
    with pytest.raises(Stop):
        bars.search(TINY, tmp_path / "run", on_progress=stop_after(number, name))
    bars.resume(tmp_path / "run")
    assert same(tmp_path / "run", finished.folder)


KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from bitnas.methods import bars, candidates
from tests.methods.bars.tiny import TINY
candidates.SEARCH_SECONDS = candidates.FRONT_SECONDS = 0.02
seen = []
def progress(event):
    seen.append(event["event"])
    if seen.count(sys.argv[2]) == int(sys.argv[3]):
        os.kill(os.getpid(), signal.SIGKILL)
bars.search(TINY, sys.argv[1], on_progress=progress)
"""


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("supernet_step", 4),
        pytest.param("architecture_epoch", 2, marks=pytest.mark.slow),
        pytest.param("architecture_end", 1, marks=pytest.mark.slow),
        pytest.param("evaluated", 2, marks=pytest.mark.slow),
        pytest.param("evaluated", 3, marks=pytest.mark.slow),
        pytest.param("front_timing", 1, marks=pytest.mark.slow),
        pytest.param("search_end", 1, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_stage_it_resumes_to_the_same(finished, tmp_path, name, number):
    folder = tmp_path / "run"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(folder), name, str(number)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        timeout=120,
        capture_output=True,
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    bars.resume(folder)
    assert same(folder, finished.folder)


def test_networks_can_be_trained_from_scratch(finished, tmp_path):
    """A training that another way repeats, and what is named in the journal."""
    from bitnas import train
    from bitnas.methods.trials import make_network
    from bitnas.models.bars import BarsConfig
    from bitnas.train import RECIPES

    config = dataclasses.replace(TINY, train_epochs=1, samples=1)
    result = bars.search(config, tmp_path / "run")
    (row,) = result.front
    network = BarsConfig.from_dict(row["network"])
    data, split = evaluate.load_data("digits", 0), evaluate.split_data(config)
    seed = evaluate.derive_seed(0, "train", row["key"])
    model = make_network(network, seed)
    train.fit(model, data.subset(split.train), RECIPES["digits"].for_epochs(1), seed=seed)
    assert train.evaluate(model, data.subset(split.val)) == row["accuracy"]
    stages = {record.stage for record in read_journal(tmp_path / "run" / "journal.sqlite")[1]}
    assert stages == {"supernet", "train", "front-latency", "reference-latency"}
    assert supernet(tmp_path / "run") == supernet(finished.folder)


def test_measured_latency_takes_part(finished, tmp_path):
    folder = tmp_path / "run"
    stages = []
    result = bars.search(
        dataclasses.replace(TINY, objectives=("accuracy", "latency"), samples=2),
        folder,
        on_progress=lambda event: stages.append(event["stage"]) if event["event"] == "evaluated" else None,
    )
    assert stages == ["latency"] * 2 + ["inherit"] * 2
    assert all(0.2 < row["searched_latency_us"] / row["latency_us"] < 5 for row in result.front)
    assert supernet(folder) == supernet(finished.folder)


def test_a_missing_device_table_is_named_with_the_command_that_builds_it(tmp_path):
    controller = {**TINY.controller, "cost": "latency", "latency_budget": 1e6}
    config = dataclasses.replace(TINY, controller=controller, latency_table=str(tmp_path / "t.sqlite"))
    build = (
        r"bitnas latency build --method bars --space FILE.json --data digits --batch 1 --threads 1 --table .*t\.sqlite"
    )
    build += ", with the file of the space tiny"
    with pytest.raises(FileNotFoundError, match=r"t\.sqlite: no such latency table.*" + build):
        bars.search(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_command_that_builds_a_missing_table_is_whole(tmp_path):
    """It can be pasted: what builds the table then finds the space, the images, the batch and the file."""
    table = tmp_path / "a table.sqlite"
    controller = {**TINY.controller, "cost": "latency", "latency_budget": 1e6}
    config = dataclasses.replace(TINY, space="small", controller=controller, latency_batch=3, latency_table=str(table))
    with pytest.raises(FileNotFoundError) as caught:
        bars.search(config, tmp_path / "run")
    command = shlex.split(str(caught.value).partition("Run: ")[2])
    assert command[:3] == ["bitnas", "latency", "build"]
    assert dict(zip(command[3::2], command[4::2], strict=True)) == {
        "--method": "bars",
        "--space": "small",
        "--data": "digits",
        "--batch": "3",
        "--threads": "1",
        "--table": str(table),
    }


@pytest.mark.slow
def test_a_device_table_is_read_by_the_loss_and_by_the_search(tmp_path):
    from bitnas.methods.bars import latency

    table = tmp_path / "t.sqlite"
    controller = {**TINY.controller, "cost": "both", "flops_budget": 1e4, "latency_budget": 1e6}
    config = dataclasses.replace(
        TINY,
        controller=controller,
        objectives=("accuracy", "latency"),
        latency_source="table",
        latency_table=str(table),
        samples=2,
    )
    latency.build(latency.LatencySpace(evaluate.description(TINY)), table, rounds=1, seconds=0.01)
    with pytest.raises(ValueError, match=r"was not built for this run's networks .*--batch 3 --threads 1 --table"):
        bars.search(dataclasses.replace(config, latency_batch=3), tmp_path / "run")
    poor = dataclasses.replace(config, controller={**controller, "latency_budget": 1e-3})
    with pytest.raises(
        ValueError, match=r"controller.latency_budget \(--latency-budget\): got 0.001 us, but the cheap"
    ):
        bars.search(poor, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    events = []
    result = bars.search(config, tmp_path / "run", on_progress=events.append)
    warnings = [event["message"] for event in events if event["event"] == "warning"]
    assert warnings == ["the latency table was never checked; run `bitnas latency check`"]
    for record in course(tmp_path / "run"):
        assert record["expected"]["latency"] > 0
        assert record["factor"] == max(1, record["expected"]["flops"] / 1e4)
    stages = {record.stage for record in read_journal(tmp_path / "run" / "journal.sqlite")[1]}
    assert stages == {"supernet", "predicted-latency", "inherit", "front-latency", "reference-latency"}
    for row in result.front:
        predicted = evaluate.predict_candidate(
            row["genome"], config.to_dict(), str(tmp_path / "run" / "latency.sqlite")
        )
        assert row["searched_latency_us"] == predicted["latency_us"]
    table.unlink()
    assert bars.resume(tmp_path / "run") == result


def test_damaged_files_are_refused_by_name(finished, tmp_path):
    damage = {
        "journal.sqlite": (b"accuracy", JournalCorrupt),
        "config.json": (b"accuracy", CorruptFileError),
        "course.json": (b"probabilities", CorruptFileError),
        "supernet.safetensors": (b"edges", CorruptFileError),
    }
    for name, (word, error) in damage.items():
        folder = tmp_path / name.split(".")[0]
        shutil.copytree(finished.folder, folder)
        data = bytearray((folder / name).read_bytes())
        at = data.index(word)
        data[at : at + 4] = b"\xff\x00\xff\x00"
        (folder / name).write_bytes(data)
        with pytest.raises(error, match=name):
            bars.resume(folder)


def test_a_lost_supernet_is_trained_again_and_a_swapped_one_refused(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    path = folder / "supernet.safetensors"
    (folder / "course.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"course.json is missing. Delete supernet.safetensors too, then"):
        bars.resume(folder)
    path.unlink()
    assert bars.resume(folder) == dataclasses.replace(finished, folder=folder)
    assert same(folder, finished.folder)
    tensors, facts = load_tensors(path, expected_format=FORMAT)
    save_tensors(path, {**tensors, "widths": tensors["widths"] + torch.tensor([1.0, 0.0])}, facts)
    with pytest.raises(CorruptFileError, match="is not the supernet that this search derived from. Delete it and"):
        bars.resume(folder)


def test_a_damaged_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(Stop):
        bars.search(TINY, tmp_path / "run", on_progress=stop_after(1, "architecture_epoch"))
    path = tmp_path / "run" / "supernet.ckpt.safetensors"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptFileError, match=r"supernet\.ckpt\.safetensors"):
        bars.resume(tmp_path / "run")


def test_other_settings_folders_and_methods_are_refused(finished, tmp_path):
    with pytest.raises(FileExistsError, match=r"samples is 3 there and 4 here"):
        bars.search(dataclasses.replace(TINY, samples=4), finished.folder)
    other = dataclasses.replace(TINY, controller={**TINY.controller, "entropy_edges": 0.5})
    with pytest.raises(FileExistsError, match=r"controller.entropy_edges is .* there and 0.5 here"):
        bars.search(other, finished.folder)
    with pytest.raises(ValueError, match="holds a search by method bars, wanted nasbnn"):
        nasbnn.resume(finished.folder)
    with pytest.raises(ValueError, match="generations: got 2, but BARS derives its networks at once; .*--samples"):
        bars.resume(finished.folder, generations=2)
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="not empty"):
        bars.search(TINY, tmp_path)
    with pytest.raises(FileNotFoundError, match="not a run folder"):
        bars.resume(tmp_path)


def test_a_second_search_on_the_folder_is_refused(finished, tmp_path):
    shutil.copytree(finished.folder, tmp_path / "run")
    caught = []

    def progress(event):
        if event["event"] == "generation_start" and not caught:
            with pytest.raises(JournalLocked, match="another process") as error:
                bars.resume(tmp_path / "run")
            caught.append(error)

    bars.resume(tmp_path / "run", on_progress=progress)
    assert caught


NO_NONE = {**SPACE, "operations": ["binary_conv_1x1", "binary_conv_3x3"]}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"recipe": "none"}, "recipe: got 'none', wanted one of"),
        ({"latency_threads": 10_000}, "latency_threads: got 10000, wanted at most"),
        ({"search_fraction": 1e-6}, "search_fraction: got 1e-06, which leaves no images of digits for the weights"),
        (
            {"space": NO_NONE, "controller": {**TINY.controller, "cost": "flops", "flops_budget": 1000}},
            r"controller.flops_budget \(--flops-budget\): got 1000 FLOPs, but the cheapest network of space tiny on "
            r"digits has [\d,]+; wanted at least that",
        ),
    ],
)
def test_impossible_settings_are_refused_before_anything_is_made(tmp_path, settings, message):
    with pytest.raises(ValueError, match=message):
        bars.search(dataclasses.replace(TINY, **settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_none_under_bernoulli_is_warned_of(tmp_path):
    said = []

    def progress(event):
        if event["event"] == "warning":
            said.append(event["message"])
        if event["event"] == "supernet_start":
            raise Stop

    config = dataclasses.replace(TINY, controller={**TINY.controller, "micro": "bernoulli"})
    with pytest.raises(Stop):
        bars.search(config, tmp_path / "run", on_progress=progress)
    assert said
    assert said[0].startswith("micro is 'bernoulli' and 'none' is among the operations")


def test_a_search_that_diverges_says_where_and_loses_nothing(tmp_path):
    """Rates so high that a number overflows; the checkpoint of the last good epoch is there, if there was one."""
    controller = {**TINY.controller, "optimizer": "sgd", "lr": 1e30, "epochs": 3}
    config = dataclasses.replace(TINY, controller=controller)
    with pytest.raises(SearchDiverged, match=r"at epoch 0, step \d+; no checkpoint was written before"):
        bars.search(config, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").is_file()
    assert not (tmp_path / "run" / "supernet.safetensors").exists()


def test_weights_that_explode_end_the_search_though_every_number_is_finite(tmp_path):
    controller = {**TINY.controller, "lr": 1e9}
    words = r"the loss of the weights \(above 66\.1 for 5 steps; guessing has 2\.3; lr is 1e\+09\) is .* at epoch \d+"
    with pytest.raises(SearchDiverged, match=rf"the search diverged: {words}, step \d+; .* lower lr"):
        bars.search(dataclasses.replace(TINY, controller=controller), tmp_path / "run")
    assert not (tmp_path / "run" / "supernet.safetensors").exists()


def own_images(path, labels):
    images = torch.randint(0, 256, (len(labels), 1, 8, 8), dtype=torch.uint8)
    safetensors.torch.save_file({"images": images, "labels": torch.tensor(labels)}, path)
    return str(path)


def test_images_of_one_class_are_refused(tmp_path):
    config = dataclasses.replace(TINY, data=own_images(tmp_path / "one.safetensors", [1] * 60))
    with pytest.raises(ValueError, match=r"data: all 60 images of .* are of class 1; wanted two classes and more"):
        bars.search(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_classes_with_hardly_an_image_are_warned_of(tmp_path):
    data = own_images(tmp_path / "few.safetensors", [0, 1] * 100 + [2] * 5)
    config = dataclasses.replace(TINY, data=data, train_fraction=0.6, val_fraction=0.2)
    said = evaluate.few_images(config)
    assert len(said) == 2
    assert said[0].startswith("the images that train the architecture: of 1 of 3 classes there are fewer than 2 images")
    assert said[1].startswith("the validation: of 1 of 3 classes there are fewer than 2 images (2; ")
    assert evaluate.few_images(TINY) == []


def test_a_damaged_supernet_says_the_way_out_and_it_works(finished, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished.folder, folder)
    path = folder / "supernet.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 255
    path.write_bytes(data)
    with pytest.raises(
        CorruptFileError, match=r"supernet.safetensors: .*\. Delete it and course.json, then `bitnas res"
    ):
        evaluate.read_supernet(path)
    path.unlink()
    (folder / "course.json").unlink()
    assert bars.resume(folder) == dataclasses.replace(finished, folder=folder)


def test_a_supernet_at_chance_is_told(finished):
    known = course(finished.folder)
    assert at_chance([*known, {**known[-1], "accuracy": 0.16}], 10) is None
    said = at_chance([*known, {**known[-1], "accuracy": 0.149}], 10)
    assert said.startswith("the supernet ended at chance: it classifies 14.9 % of its training images right, guessing")
    assert at_chance([{"accuracy": 0.55, "lr": 0.1}], 2)
    assert at_chance([{"accuracy": 0.56, "lr": 0.1}], 2) is None
    assert at_chance([{"accuracy": 0.002, "lr": 0.1}], 1000) is None


def test_a_failed_network_is_a_record_and_never_kept(finished, tmp_path, monkeypatch):
    shutil.copytree(finished.folder, tmp_path / "run", ignore=shutil.ignore_patterns("journal*", "front.json"))
    real, seen = evaluate.evaluate_candidate, []

    def judged(genome, settings, run_dir):
        seen.append(genome)
        return {"accuracy": float("nan")} if len(seen) == 1 else real(genome, settings, run_dir)

    monkeypatch.setattr(evaluate, "evaluate_candidate", judged)
    result = bars.resume(tmp_path / "run")
    assert result.history[0]["failed"] == 1
    assert list(seen[0]) not in [row["genome"] for row in result.front]

    (tmp_path / "run" / "journal.sqlite").unlink()
    (tmp_path / "run" / "front.json").unlink()
    monkeypatch.setattr(evaluate, "evaluate_candidate", lambda genome, settings, run_dir: {"accuracy": float("nan")})
    with pytest.raises(SearchFailed, match="all 3 candidates of the first generation failed"):
        bars.resume(tmp_path / "run")


def test_members_of_the_front_are_trained_frozen_and_verified(finished, tmp_path):
    import bitnas

    with pytest.raises(FileNotFoundError, match=r"holds no front.json: its search has not finished"):
        deploy(_begun(finished.folder, tmp_path / "begun"))
    shutil.copytree(finished.folder, tmp_path / "run")
    found = deploy(tmp_path / "run", picks=1, epochs=1)
    (row,) = found["networks"]
    assert row["verified"]["ok"]
    assert row["verified"]["dots"] == row["verified"]["dots_equal"] > 0
    frozen = bitnas.load(tmp_path / "run" / row["file"])
    assert frozen(torch.zeros(2, 1, 8, 8)).shape == (2, 10)
    assert create_model(tmp_path / "run" / row["architecture_file"]).config.to_dict() == row["network"]
    assert row["accuracy_low"] <= row["accuracy"] <= row["accuracy_high"]
    assert deploy(tmp_path / "run", picks=1, epochs=1) == found  # from the journal
    assert read_json_checked(tmp_path / "run" / "study.json") == json.loads(json.dumps(found))
    with pytest.raises(ValueError, match="picks: got 0"):
        deploy(tmp_path / "run", picks=0)


def _begun(source, folder):
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    return folder
