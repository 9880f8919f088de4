"""The outcome of a solve."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ..fixed_point import Found, Method


class EquilibriumWarning(UserWarning):
    """Some samples did not reach the tolerance: the result is not what was asked for."""


class Report(NamedTuple):
    """The outcome of one solve; ``watch`` is called with it.

    Args:
        phase: ``"forward"``, or ``"backward"`` for the linear system of an implicit gradient.
        residual: per sample, (batch,), float64: ``|f(z) - z| / |f(z)|``, or ``|J^T u + g - u| /
            |g|``.
        iterations: per sample, (batch,), int64: updates until it was done.
        calls: evaluations of f in this phase, for the whole batch, those that record a graph
            included.
        products: products with ``df/dz`` or with its transpose.
    """

    phase: str
    residual: Tensor
    iterations: Tensor
    calls: int
    products: int


Watch = Callable[[Report], object]


def warn_unless_reached(
    found: Found, tol: float, method: Method, what: str, remedy: str, stacklevel: int
) -> None:
    """Warn if a sample's error is above the tolerance: ``what`` was not reached."""
    missed = found.error > tol
    if not bool(missed.any()):
        return
    warnings.warn(
        f"equilibria: {what} was not reached by {int(missed.sum())} of {len(missed)} samples "
        f"within tol={tol:.2g} after {found.iterations} iterations of {method!r}: the largest "
        f"relative residual is {found.error.max().item():.2g}, of sample "
        f"{int(found.error.argmax())}; pass {remedy}",
        EquilibriumWarning,
        stacklevel=stacklevel + 1,
    )
