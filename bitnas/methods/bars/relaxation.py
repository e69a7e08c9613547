"""From logits to weights of choices: soft or sampled, so that a loss can be differentiated by what is chosen.

Zhao et al. 2020 (BARS) relax topology and layout each in a way of its own; here a way is a name, and the same function
serves both. Noise comes from a generator that the caller owns, so that a search can be resumed to the same draws.
"""

from typing import Any

import torch
from torch import Tensor

SOFTMAX, GUMBEL, BERNOULLI = "softmax", "gumbel", "bernoulli"
KINDS = (SOFTMAX, GUMBEL, BERNOULLI)


class _StraightThrough(torch.autograd.Function):
    """`hard` forward, the gradient of `soft` backward. `hard - soft.detach() + soft` would not be exactly 0 or 1."""

    @staticmethod
    def forward(soft: Tensor, hard: Tensor) -> Tensor:
        return hard.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None


def relax(
    logits: Tensor,
    kind: str,
    *,
    temperature: float = 1.0,
    hard: bool = False,
    generator: torch.Generator | None = None,
    alive: Tensor | None = None,
) -> Tensor:
    """Weights of choices, differentiable by the logits.

    Args:
        logits: float `[..., choices]`.
        kind: `"softmax"`: softmax(logits / temperature), nothing drawn. `"gumbel"`: the same of logits + Gumbel noise
            (Jang et al. 2017), whose argmax is a draw from softmax(logits). `"bernoulli"`: each choice on its own,
            sigmoid((logits + logistic noise) / temperature) (Maddison et al. 2017), which is above 1/2 with
            probability sigmoid(logit).
        temperature: above 0; the lower, the nearer to 0 and 1.
        hard: exactly 1.0 and 0.0 forward, the soft weights' gradient backward: of softmax and gumbel the largest
            weight, of bernoulli those above 1/2, maybe none.
        generator: of the noise, on the logits' device; None: torch's own.
        alive: bool `[..., choices]`: where False, a choice is out: its weight is exactly 0, without a gradient.

    Returns:
        Shape and dtype of `logits`. Weights of softmax and gumbel add up to 1, those of bernoulli need not.

    Raises ValueError for an unknown kind, a temperature that is not a positive number, or a row with nothing alive.
    """
    if kind not in KINDS:
        raise ValueError(f"kind: got {kind!r}, wanted one of {', '.join(map(repr, KINDS))}")
    if not 0 < temperature < float("inf"):
        raise ValueError(f"temperature: got {temperature!r}, wanted a positive finite number")
    if alive is not None and not bool(alive.any(-1).all()):
        raise ValueError("alive: got a row of choices that are all out, wanted at least one alive in each")
    if kind == BERNOULLI:
        soft = torch.sigmoid((logits + _gumbel(logits, generator) - _gumbel(logits, generator)) / temperature)
        if alive is not None:
            soft = soft * alive
        return _StraightThrough.apply(soft, (soft > 0.5).to(soft.dtype)) if hard else soft
    if kind == GUMBEL:
        logits = logits + _gumbel(logits, generator)
    if alive is not None:
        logits = logits.masked_fill(~alive, -torch.inf)
    soft = torch.softmax(logits / temperature, -1)
    if not hard:
        return soft
    return _StraightThrough.apply(soft, torch.zeros_like(soft).scatter_(-1, soft.argmax(-1, keepdim=True), 1.0))


def _gumbel(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Gumbel(0, 1) noise; the difference of two is logistic."""
    noise = torch.empty_like(like, requires_grad=False).exponential_(generator=generator)
    return -noise.clamp_min_(torch.finfo(like.dtype).tiny).log_()
