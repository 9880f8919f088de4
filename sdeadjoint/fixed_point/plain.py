"""Plain iteration."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from .base import Derivative, Method, Seen, Stepper, check_counts, check_damping, wide


@dataclass(frozen=True)
class FixedPoint(Method):
    """Iterate ``x' = x + b (g(x) - x)``, b the damping.

    Converges where the eigenvalues of ``(1 - b) + b dg/dx`` are below 1 in absolute value, by the
    largest of them in each iteration. One update per iteration, no memory. Not for hard problems:
    ``Anderson`` costs the same calls.
    """

    damping: float = 1.0
    max_iterations: int = 200
    setback: ClassVar[float] = math.inf

    def __post_init__(self) -> None:
        check_damping(self.damping)
        check_counts(max_iterations=self.max_iterations)

    def start(self, x: Tensor, derivative: Derivative | None) -> Stepper:
        return _Plain(self.damping)


@dataclass(frozen=True)
class _Plain(Stepper):
    damping: float

    def step(self, seen: Seen) -> Tensor:
        return self.damping * seen.start_r.to(wide(seen.start_r))
