"""Checks of constructor arguments, so that every layer and network refuses the same things in the same words."""

import math
from numbers import Integral, Real


def integer(name: str, value: object, least: int = 1) -> int:
    """`value` as an int. Raises TypeError if it is not an integer, ValueError if it is below `least`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: got {value!r}, wanted an integer")
    if value < least:
        raise ValueError(f"{name}: got {value}, wanted at least {least}")
    return int(value)


def pair(name: str, value: object, least: int) -> tuple[int, int]:
    """Two integers from one or two. Raises as `integer` does."""
    if not isinstance(value, (tuple, list)):
        value = (value, value)
    if len(value) != 2:
        raise ValueError(f"{name}: got {value!r}, wanted one integer or two")
    return integer(name, value[0], least), integer(name, value[1], least)


def positive_real(name: str, value: object) -> float:
    """`value` as a float. Raises TypeError if it is not a number, ValueError if it is not finite and above 0."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: got {value!r}, wanted a positive number")
    if not math.isfinite(value) or value <= 0:
        raise ValueError(f"{name}: got {value!r}, wanted a finite number above 0")
    return float(value)
