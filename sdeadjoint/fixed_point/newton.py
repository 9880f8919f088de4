"""Newton's method without matrices."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import Derivative, Method, Seen, Stepper, check_counts, first_damping
from .krylov import gmres

LOOSEST = 0.1  # linear systems are solved at least this well
SPARE = 0.5  # and no better than this part of what is missing
LEAST_DAMPING = 2.0**-20


@dataclass(frozen=True)
class Newton(Method):
    """Iterate ``x' = x + b d``, ``(1 - dg/dx) d = g(x) - x`` (Newton's method, matrix-free).

    The linear system is solved by GMRES, which takes products ``dg/dx v``.
    An error that rises is a wrong turn: the sample goes back and halves its step b, which doubles
    again with each success. A system is solved to the relative accuracy of x itself, so that near
    the solution the error is squared by each iteration. On linear problems one iteration is enough
    if ``krylov`` is, and further ones are restarts.

    An iteration costs one update and up to ``krylov`` products. Memory: ``krylov + 6`` tensors like
    x. Converges from near a solution where ``1 - dg/dx`` is regular, also where plain iteration
    diverges. Source: Knoll and Keyes (2004); the accuracy of the linear systems: Eisenstat and
    Walker (1996).

    Args:
        krylov: products per iteration at most.
        max_iterations: updates at most.
    """

    krylov: int = 30
    max_iterations: int = 50
    setback: ClassVar[float] = 1.0

    def __post_init__(self) -> None:
        check_counts(krylov=self.krylov, max_iterations=self.max_iterations)

    def start(self, x: Tensor, derivative: Derivative | None) -> Stepper:
        if derivative is None:
            raise TypeError(
                "method: Newton() needs the derivative of the update; pass Anderson() or Broyden()"
            )
        return _Directed(self.krylov, derivative, first_damping(x, 1.0))


class _Directed(Stepper):
    def __init__(self, krylov: int, derivative: Derivative, damping: Tensor) -> None:
        self.krylov, self.derivative, self.damping = krylov, derivative, damping
        self.direction: Tensor | None = None

    def step(self, seen: Seen) -> Tensor:
        lost = seen.lost[:, None]
        changed = torch.where(lost, self.damping / 2, (2 * self.damping).clamp(max=1))
        self.damping = changed.clamp(min=LEAST_DAMPING)
        fresh = seen.active & ~seen.lost  # the others' directions are known, or not needed
        r = torch.where(fresh[:, None], seen.start_r, 0).to(self.damping.dtype)

        def apply(v: Tensor) -> Tensor:
            pushed = self.derivative.push(seen.start, v.to(seen.start.dtype))
            return v - pushed.to(v.dtype)

        found = gmres(apply, r, tol=self._accuracy(seen), limit=self.krylov).x
        if self.direction is not None:
            found = torch.where(fresh[:, None], found, self.direction)
        self.direction = found
        return self.damping * found

    def _accuracy(self, seen: Seen) -> Tensor:
        """How well to solve the linear systems, (batch,)."""
        needed = SPARE * seen.tol / seen.error
        if self.derivative.linear:
            return needed
        return torch.maximum(needed, seen.error.clamp(max=LOOSEST))
