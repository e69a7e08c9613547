"""What a cost does to the loss of the architecture: it multiplies, so that it scales with the error that it trades for.

A cost below its budget is free by default; a sum would go on pushing a network that is small enough already.
"""

from __future__ import annotations

import torch
from torch import Tensor


def factor(cost: Tensor, budget: float, *, below: float = 0.0, above: float = 1.0) -> Tensor:
    """`(cost / budget) ** e` with `e = below` up to the budget and `e = above` beyond it; 1 at the budget.

    Zhao et al. 2020 (BARS), as in the authors' public code: below 0, above 1.

    Args:
        cost: a scalar of any float dtype, at least 0, in the budget's unit; the result has its dtype and its gradient.
        budget: above 0.
        below, above: exponents of at least 0.

    Raises ValueError naming the argument.
    """
    if not 0 < budget < float("inf"):
        raise ValueError(f"budget: got {budget}, wanted a finite number above 0")
    for name, exponent in (("below", below), ("above", above)):
        if not 0 <= exponent < float("inf"):
            raise ValueError(f"{name}: got {exponent}, wanted a finite exponent of at least 0")
    exponent = above if bool(cost > budget) else below
    if not exponent:
        # Not x ** 0, whose gradient at 0 is not a number. NaN passes through.
        return torch.ones_like(cost) + 0 * cost
    return (cost / budget) ** exponent
