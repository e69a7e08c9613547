"""The two kinds of steps of a search: weights learn while choices are held, choices while weights are held.

First order: nothing is looked ahead. Each is a function of the supernet, a batch, the epoch and a seed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bitnas.methods.bars.choices import Choices
from bitnas.methods.bars.controller import Controller
from bitnas.methods.bars.description import Architecture
from bitnas.methods.bars.hessian import top_eigenvalue
from bitnas.methods.bars.regulariser import factor
from bitnas.methods.bars.relaxation import SOFTMAX, relax
from bitnas.methods.bars.supernet import Supernet
from bitnas.train.step import to_device


class Prices(Protocol):
    """What a network costs: of probabilities the mean, differentiable; of an architecture exactly."""

    @property
    def unit(self) -> str: ...

    def expected(self, probabilities: Choices) -> Tensor: ...

    def of(self, architecture: Architecture) -> float: ...


_EXPLODED = 5  # steps in a row whose loss is beyond `far_beyond_chance`: one alone may recover


def far_beyond_chance(classes: int) -> float:
    """A cross entropy that no training comes back from: 20 times that of guessing, and 20."""
    return 20 * math.log(classes) + 20


class NotFinite(ArithmeticError):
    """A number of a step is NaN or infinite, or far beyond what training ever has: `what`, and its `value`."""

    def __init__(self, what: str, value: float) -> None:
        super().__init__(f"{what} is {value}")
        self.what, self.value = what, value


class Steps:
    """The steps of one search. `prices` are those of the costs in the loss, and more if they are only watched."""

    def __init__(self, supernet: Supernet, controller: Controller, prices: Mapping[str, Prices]) -> None:
        self.supernet, self.controller, self.prices = supernet, controller, dict(prices)
        self.device = supernet.edges.device
        named = supernet.weight_parameters()
        decaying, others = ([p for p in named.values() if (p.ndim >= 2) == wanted] for wanted in (True, False))
        groups = [
            {"params": decaying, "weight_decay": controller.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        rate = controller.lr.at(0, controller.epochs)
        self.weights: torch.optim.Optimizer
        if controller.optimizer == "sgd":
            # Not fused: that one cannot have parameters of which some have a gradient for the first time later.
            self.weights = torch.optim.SGD(groups, lr=rate, momentum=controller.momentum, foreach=True)
        else:
            self.weights = torch.optim.Adam(groups, lr=rate, fused=True)
        self.searched = supernet.architecture_parameters()
        self.architecture = torch.optim.Adam(
            self.searched.values(),
            lr=controller.architecture_lr,
            betas=controller.architecture_betas,
            weight_decay=controller.architecture_decay,
        )
        self._beyond = 0  # steps of the weights in a row with a loss far beyond chance; a resume counts anew
        self._layers = [m for m in supernet.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]

    # ---- what the supernet mixes ----------------------------------------------------------------

    def choices(self, epoch: int, seed: int) -> Choices:
        """The weights of all choices in a step, drawn with `seed` where the relaxation draws."""
        net, settings = self.supernet, self.controller
        logits, alive = net.logits(), net.alive
        if epoch < settings.uniform_epochs:
            found = Choices(
                alive / alive.sum(-1, keepdim=True),
                *_uniform(logits.widths, *logits.depths),
            )
        else:
            chance = torch.Generator(self.device).manual_seed(seed)
            at = {"temperature": settings.temperature_edges.at(epoch, settings.epochs), "generator": chance}
            edges = relax(logits.edges, settings.micro, hard=settings.micro_hard, alive=alive, **at)  # type: ignore[arg-type]
            at["temperature"] = settings.temperature_layout.at(epoch, settings.epochs)
            widths, *depths = (
                relax(tensor, settings.macro, hard=settings.macro_hard, **at)  # type: ignore[arg-type]
                for tensor in (logits.widths, *logits.depths)
            )
            found = Choices(edges, widths, tuple(depths))
        return self._full(found)

    def _full(self, found: Choices) -> Choices:
        """With `full_start` the largest weight of each edge is 1; at first they all are."""
        if not self.controller.full_start:
            return found
        largest = found.edges.amax(-1, keepdim=True).clamp_min(torch.finfo(found.edges.dtype).tiny)
        return Choices(found.edges / largest, found.widths, found.depths)

    # ---- steps -----------------------------------------------------------------------------------

    def train_weights(self, images: Tensor, labels: Tensor, epoch: int, seed: int) -> tuple[float, int]:
        """One step of the weights; the sum of the losses, and how many images were classified right.

        Raises NotFinite, with the weights as they were.
        """
        x, y = to_device(images, self.device), to_device(labels, self.device)
        self.check_logits()
        with torch.no_grad():
            choices = self.choices(epoch, seed)
        self.weights.zero_grad()
        logits = self.supernet(x, choices)
        loss = F.cross_entropy(logits, y)
        loss.backward()
        parameters = [p for group in self.weights.param_groups for p in group["params"] if p.grad is not None]
        norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
        loss_value, norm_value, right = torch.stack(
            [loss.detach().double(), norm.double(), (logits.argmax(1) == y).sum()]
        ).tolist()
        for what, value in (("the loss of the weights", loss_value), ("the gradient of the weights", norm_value)):
            if not math.isfinite(value):
                raise NotFinite(what, value)
        settings = self.controller
        self._check_loss(loss_value, settings.lr.at(epoch, settings.epochs))
        if settings.clip_norm:
            nn.utils.clip_grads_with_norm_(parameters, settings.clip_norm, norm)
        for group in self.weights.param_groups:
            group["lr"] = settings.lr.at(epoch, settings.epochs)
        self.weights.step()
        return loss_value * len(y), int(right)

    def train_architecture(self, images: Tensor, labels: Tensor, epoch: int, seed: int) -> tuple[float, int]:
        """One step of the logits, which leaves weights and running statistics; the sum of the images' cross entropies
        before costs and entropies, and how many were classified right.

        Raises NotFinite; only where it names the logits have they changed.
        """
        x, y = to_device(images, self.device), to_device(labels, self.device)
        self.check_logits()
        with self._statistics_held():
            logits = self.supernet(x, self.choices(epoch, seed))
        loss = F.cross_entropy(logits, y)
        probabilities = self.supernet.probabilities()
        total = loss * self.factor(probabilities).to(loss) + self.entropy(probabilities, epoch)
        parameters = list(self.searched.values())
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
        loss_value, right = torch.stack([loss.detach().double(), (logits.argmax(1) == y).sum()]).tolist()
        if not math.isfinite(loss_value):
            raise NotFinite("the loss of the architecture", loss_value)
        for (name, parameter), gradient in zip(self.searched.items(), gradients, strict=True):
            if gradient is not None and not bool(torch.isfinite(gradient).all()):
                raise NotFinite(f"the gradient of the controller's logits ({name})", float(gradient.sum()))
            parameter.grad = gradient
        self.architecture.step()
        self.architecture.zero_grad()
        self.check_logits()
        return loss_value * len(y), int(right)

    def factor(self, probabilities: Choices) -> Tensor:
        """What the costs in the loss multiply it by, a float64 scalar. Raises NotFinite for a cost that is not."""
        product = torch.ones((), dtype=torch.float64)
        for name, budget in self.controller.budgets.items():
            cost = self.prices[name].expected(probabilities)
            if not math.isfinite(value := float(cost.detach())):
                raise NotFinite(f"the expected cost ({name})", value)
            product = product * factor(cost.cpu(), budget, below=self.controller.below, above=self.controller.above)
        return product

    def entropy(self, probabilities: Choices, epoch: int) -> Tensor:
        """The sum of the entropies of edges and of layout, each times its coefficient."""
        settings = self.controller
        edges, layout = (
            schedule.at(epoch, settings.epochs) for schedule in (settings.entropy_edges, settings.entropy_layout)
        )
        rest = (probabilities.widths, *probabilities.depths)
        total = edges * entropies(probabilities.edges).sum() if edges else probabilities.edges.new_zeros(())
        return total + layout * sum(entropies(tensor).sum() for tensor in rest) if layout else total

    def prune(self, epoch: int) -> None:
        """Drop the operations whose probability is below the epoch's threshold, but never an edge's likeliest."""
        threshold = self.controller.prune.at(epoch, self.controller.epochs)
        if not threshold:
            return
        with torch.no_grad():
            probabilities = self.supernet.probabilities().edges
            likeliest = torch.zeros_like(self.supernet.alive).scatter_(-1, probabilities.argmax(-1, keepdim=True), True)
            self.supernet.alive &= (probabilities >= threshold) | likeliest

    def curvature(self, images: Tensor, labels: Tensor, seed: int) -> float:
        """The largest eigenvalue of the Hessian of the loss on these images by all logits, at the softmax of them:
        without chance, costs and entropies. Raises NotFinite."""
        x, y = to_device(images, self.device), to_device(labels, self.device)
        parameters = list(self.searched.values())
        sizes = [parameter.numel() for parameter in parameters]

        def gradient(at: Tensor) -> Tensor:
            pieces = at.split(sizes)
            edges, widths, *depths = (
                piece.view(p.shape).requires_grad_() for piece, p in zip(pieces, parameters, strict=True)
            )
            relaxed = Choices(relax(edges, SOFTMAX, alive=self.supernet.alive), *_soft(widths, *depths))
            loss = F.cross_entropy(self.supernet(x, self._full(relaxed)), y)
            found = torch.autograd.grad(loss, [edges, widths, *depths], allow_unused=True, materialize_grads=True)
            return torch.cat([tensor.flatten() for tensor in found])

        at = torch.cat([parameter.detach().flatten() for parameter in parameters])
        with self._statistics_held():
            value = top_eigenvalue(gradient, at, generator=torch.Generator().manual_seed(seed))
        if not math.isfinite(value):
            raise NotFinite("the Hessian's eigenvalue", value)
        return value

    def _check_loss(self, loss: float, lr: float) -> None:
        """Raises NotFinite where the weights have exploded although every number is still finite."""
        classes = self.supernet.description.num_classes
        limit = far_beyond_chance(classes)
        self._beyond = self._beyond + 1 if loss > limit else 0
        if self._beyond >= _EXPLODED:
            what = f"the loss of the weights (above {limit:.3g} for {_EXPLODED} steps; guessing has "
            raise NotFinite(f"{what}{math.log(classes):.3g}; lr is {lr:g})", loss)

    def check_logits(self) -> None:
        """Raises NotFinite naming the logits that are not finite."""
        # One number for all of them: finite numbers as small as logits have a finite sum.
        if math.isfinite(float(torch.cat([p.detach().flatten() for p in self.searched.values()]).abs().max())):
            return
        for name, parameter in self.searched.items():
            if not bool(torch.isfinite(parameter).all()):
                raise NotFinite(f"the controller's logits ({name})", float(parameter.detach().sum()))

    @contextmanager
    def _statistics_held(self) -> Iterator[None]:
        """Batch norm by the batch, without a trace in the running statistics, which are of the weights' images."""
        momenta = [layer.momentum for layer in self._layers]
        for layer in self._layers:
            layer.momentum = 0.0
        try:
            yield
        finally:
            for layer, momentum in zip(self._layers, momenta, strict=True):
                layer.momentum = momentum


def entropies(probabilities: Tensor) -> Tensor:
    """Entropy in nats of each row; 0 log 0 is 0, with a gradient that is finite."""
    return -(probabilities * probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()).sum(-1)


def _uniform(widths: Tensor, *depths: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    even = [torch.full_like(tensor, 1 / tensor.shape[-1], requires_grad=False) for tensor in (widths, *depths)]
    return even[0], tuple(even[1:])


def _soft(widths: Tensor, *depths: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
    return relax(widths, SOFTMAX), tuple(relax(tensor, SOFTMAX) for tensor in depths)
