"""Distillation and an auxiliary classifier are passes of `fit`: their losses are those of the papers, their settings
part of the run, and `bitnas train` has them as options."""

import dataclasses
import json
import random

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bitnas import cli, create_model, load_model
from bitnas.files import CorruptFileError
from bitnas.models import save_model
from bitnas.models.bars import Bars, BarsConfig, Cell
from bitnas.train import Distillation, Recipe, auxiliary, evaluate, fit

RECIPE = Recipe(epochs=3, batch_size=30, lr=0.01, optimizer="adam", label_smoothing=0.1)


def bars(size=(1, 6, 6), classes=3, second=0):
    cells = tuple(Cell(("binary_conv_3x3", *["skip"] * 9), 4, stride) for stride in (1, 2, 1))
    return BarsConfig(4, 4, (dataclasses.replace(cells[0], channels=2), *cells[1:]), num_classes=classes,
                      input_size=size, auxiliary=second)  # fmt: skip


def only(passes, net, problem, recipe=RECIPE):
    """The one loss and the logits of a step."""
    ((loss, logits),) = passes(net, problem.images[:30], problem.labels[:30], recipe, random.Random(0))
    return loss, logits


@pytest.mark.parametrize(("weight", "temperature"), [(0.5, 4.0), (0.9, 1.0), (1.0, 2.0)])
def test_the_loss_of_a_student(make_net, problem, weight, temperature):
    student, teacher = make_net(0).eval(), make_net(1)
    loss, logits = only(Distillation(teacher, weight, temperature), student, problem)
    x, y = problem.images[:30], problem.labels[:30]
    wanted = student(x)
    with torch.no_grad():
        target = (teacher.eval()(x) / temperature).softmax(1)
    soft = -(target * (wanted / temperature).log_softmax(1)).sum(1).mean()
    soft = soft + (target * target.log()).sum(1).mean()
    hard = F.cross_entropy(wanted, y, label_smoothing=0.1)
    assert torch.equal(logits, wanted)
    assert torch.allclose(loss, (1 - weight) * hard + weight * temperature**2 * soft, atol=1e-5)


def test_the_teacher_stays_as_it_is(make_net, problem):
    teacher, student = make_net(1).train(), make_net(0)
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    passes = Distillation(teacher, 0.7)
    loss, _ = only(passes, student, problem)
    loss.backward()
    assert all(torch.equal(before[name], tensor) for name, tensor in teacher.state_dict().items())
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert not passes.teacher.training  # a copy, without dropout
    assert torch.equal(only(passes, student.eval(), problem)[0], only(passes, student.eval(), problem)[0])
    with torch.no_grad():
        own = passes.teacher(problem.images[:30])
    student.load_state_dict(teacher.state_dict())
    loss, logits = only(Distillation(teacher, 1.0), student.eval(), problem)
    assert torch.equal(logits, own)
    assert abs(float(loss.detach())) < 1e-6  # nothing to learn of itself


def test_a_student_learns_from_the_teacher_alone(make_net, problem):
    teacher = make_net(1)
    fit(teacher, problem, dataclasses.replace(RECIPE, epochs=8), seed=0)
    assert evaluate(teacher, problem) > 0.9
    wrong = dataclasses.replace(problem, labels=(problem.labels + 1) % 3)
    student = make_net(0)
    fit(student, wrong, dataclasses.replace(RECIPE, epochs=8), seed=0, passes=Distillation(teacher, 1.0))
    assert evaluate(student, problem) > 0.9  # the labels were wrong, and did not count


def test_the_auxiliary_classifier_has_its_share(problem):
    torch.manual_seed(0)
    net = Bars(bars()).eval()
    loss, logits = only(auxiliary(0.4), net, problem)
    x, y = problem.images[:30], problem.labels[:30]
    first, second = net.both(x)
    losses = [F.cross_entropy(given, y, label_smoothing=0.1) for given in (first, second)]
    assert torch.equal(logits, first)
    assert torch.allclose(loss, losses[0] + 0.4 * losses[1])
    loss.backward()
    assert net.auxiliary.weight.grad.abs().sum() > 0
    both, _ = only(Distillation(net, 0.25, 2.0, auxiliary=0.4), net, problem)
    assert torch.allclose(both, 0.75 * losses[0] + 0.4 * losses[1], atol=1e-5)


def test_checkpoints_know_the_settings(tmp_path, make_net, problem):
    path = tmp_path / "run.safetensors"
    teacher, other = make_net(1), make_net(2)
    one = dataclasses.replace(RECIPE, epochs=1)
    history = fit(make_net(0), problem, one, seed=0, checkpoint=path, passes=Distillation(teacher, 0.5))
    again = fit(make_net(0), problem, one, seed=0, checkpoint=path, passes=Distillation(make_net(1), 0.5))
    assert again == history
    for passes in (Distillation(other, 0.5), Distillation(teacher, 0.6), Distillation(teacher, 0.5, 2.0),
                   Distillation(teacher, 0.5, auxiliary=0.1), auxiliary(0.4)):  # fmt: skip
        with pytest.raises(CorruptFileError, match="another passes"):
            fit(make_net(0), problem, one, seed=0, checkpoint=path, passes=passes)


def test_stopped_inside_an_epoch_ends_the_same(tmp_path, make_net, problem):
    def stop(epoch, done, steps):
        if (epoch, done) == (1, 2):
            raise InterruptedError

    path, passes = tmp_path / "run.safetensors", Distillation(make_net(1), 0.5)
    with pytest.raises(InterruptedError):
        fit(make_net(0), problem, RECIPE, seed=0, checkpoint=path, checkpoint_every=0, on_step=stop, passes=passes)
    resumed, whole = make_net(5), make_net(0)
    fit(resumed, problem, RECIPE, seed=0, checkpoint=path, passes=passes)
    fit(whole, problem, RECIPE, seed=0, passes=passes)
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_what_makes_no_sense_is_refused(make_net, problem):
    net = make_net(0)
    for make, error, message in (
        (lambda: Distillation("vgg"), TypeError, "teacher: got a str, wanted a module"),
        (lambda: Distillation(net, 0.0), ValueError, "weight: got 0.0, wanted above 0 and at most 1"),
        (lambda: Distillation(net, 1.5), ValueError, "weight: got 1.5"),
        (lambda: Distillation(net, 0.5, 0.0), ValueError, "temperature: got 0.0"),
        (lambda: Distillation(net, 0.5, auxiliary=-1.0), ValueError, "auxiliary: got -1.0"),
        (lambda: auxiliary(0.0), ValueError, "weight: got 0.0, wanted a finite number above 0"),
        (lambda: auxiliary(True), TypeError, "weight: got True"),
        (lambda: only(auxiliary(0.4), net, problem), TypeError, "a Sequential has no second classifier"),
        (lambda: only(auxiliary(0.4), Bars(bars(second=None)), problem), ValueError, "no second classifier"),
        (lambda: only(Distillation(nn.Sequential(*net, nn.Linear(3, 4))), net, problem), ValueError,
         "teacher: it gives 4 classes and the network 3"),
    ):  # fmt: skip
        with pytest.raises(error, match=message):
            make()


# ---- bitnas train ----------------------------------------------------------------------------------------------------


def command(capsys, *arguments):
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", "--epochs", "1", "--device", "cpu", *map(str, arguments)])
    captured = capsys.readouterr()
    return stop.value.code, captured.out, captured.err


def test_the_command_teaches_an_architecture(capsys, tmp_path):
    architecture, teacher = tmp_path / "arch.json", tmp_path / "teacher.safetensors"
    architecture.write_text(json.dumps(bars((1, 8, 8), 10, None).to_dict()))
    torch.manual_seed(0)
    save_model(create_model("vgg_small", num_classes=10, input_size=(1, 8, 8), base_width=0.05), teacher)
    options = ["--model", architecture, "--teacher", teacher, "--distill", 0.7, "--auxiliary", 0.4]
    code, out, err = command(capsys, "--out", tmp_path / "run", "--json", *options)
    assert code == 0, err
    result = json.loads(out)
    settings = json.loads((tmp_path / "run/settings.json").read_text())["settings"]
    for found in (result, settings):
        assert (found["distill"], found["auxiliary"], found["network"]["auxiliary"]) == (0.7, 0.4, 2)
        assert found["teacher"].startswith("vgg_small ")
    assert result["verified"]["ok"]
    assert load_model(tmp_path / "run/model.safetensors").config.auxiliary == 2
    assert "teacher vgg_small" in err
    options[5] = 0.6
    code, _, err = command(capsys, "--out", tmp_path / "run", *options)
    assert code == 2
    assert "distill 0.7 there, 0.6 here" in err


def test_the_command_refuses_what_does_not_go_together(capsys, tmp_path):
    architecture, teacher = tmp_path / "arch.json", tmp_path / "teacher.safetensors"
    architecture.write_text(json.dumps(bars((3, 8, 8), 10).to_dict()))
    torch.manual_seed(0)
    save_model(create_model("vgg_small", num_classes=10, input_size=(3, 8, 8), base_width=0.05), teacher)
    for options, message in (
        (["--distill", 0.5], "--distill 0.5 needs a --teacher FILE"),
        (["--auxiliary", 0.4], "--auxiliary 0.4 needs an architecture of BARS"),
        (["--teacher", teacher], "is for (3, 8, 8) images of 10 classes, and digits has (1, 8, 8)"),
        (["--teacher", teacher, "--distill", 2], "--distill must be above 0 and at most 1, got 2"),
        (["--teacher", tmp_path / "no"], "no"),
        (["--model", architecture], "is for (3, 8, 8) images of 10 classes"),
        (["--model", architecture, "--scheme", "xnor"], "--scheme does not go with --model"),
        (["--method", "nasbnn", "--auxiliary", 0.4], "--auxiliary does not go with --method nasbnn"),
    ):
        code, out, err = command(capsys, "--out", tmp_path / "run", *options)
        assert (code, out) == (2, ""), options
        assert message in " ".join(err.split()), err
