"""The largest eigenvalue of the Hessian of the architecture's loss: where it grows fast, a search is about to collapse.

Products with the Hessian are differences of gradients. A second derivative would be that of the pseudo-gradients, which
are no derivatives of anything; a difference over a finite step is what the architecture feels when it moves.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

STEP = 0.05  # in logits: a change that a few steps of the architecture make


def top_eigenvalue(
    gradient: Callable[[Tensor], Tensor],
    at: Tensor,
    *,
    generator: torch.Generator,
    iterations: int = 10,
    tolerance: float = 0.01,
    step: float = STEP,
) -> float:
    """The largest eigenvalue of the Hessian (what Zela et al. 2020, section 4, watch), by Lanczos' iteration.

    That is power iteration which keeps every direction it has had: as many products give a better estimate, and one of
    the largest eigenvalue also where a negative one is larger in magnitude.

    Args:
        gradient: of the loss, float `[n]` to float `[n]`; called twice for each iteration.
        at: float `[n]`, where.
        generator: of the first direction, on the CPU.
        iterations: at most so many; ends when an estimate differs from the one before by less than `tolerance` of it.
        step: of the central difference (g(at + step v) - g(at - step v)) / (2 step) along a unit v, which is exact for
            a loss that is quadratic there.

    Returns 0.0 where the loss has no curvature, NaN where a gradient is not finite.
    """
    v = torch.randn(at.shape, generator=generator, dtype=torch.float64)
    directions = [v / v.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    value = 0.0
    for _ in range(min(iterations, len(at))):
        v = directions[-1].to(at)
        product = ((gradient(at + step * v) - gradient(at - step * v)) / (2 * step)).double().cpu()
        if not bool(torch.isfinite(product).all()):
            return float("nan")
        diagonal.append(float(directions[-1] @ product))
        tridiagonal = torch.diag(torch.tensor(diagonal))
        if beside:
            off = torch.tensor(beside)
            tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
        before, value = value, float(torch.linalg.eigvalsh(tridiagonal.double())[-1])
        size = float(product.norm())
        for _ in range(2):  # once leaves what rounding brings back
            for direction in directions:
                product = product - (direction @ product) * direction
        length = float(product.norm())
        if length <= 1e-6 * size or (len(diagonal) > 2 and abs(value - before) < tolerance * abs(value)):
            break
        beside.append(length)
        directions.append(product / length)
    return value
