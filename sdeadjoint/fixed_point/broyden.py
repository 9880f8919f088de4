"""Broyden's method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .base import (
    Derivative,
    Method,
    Seen,
    Stepper,
    check_counts,
    check_damping,
    first_damping,
    halved,
)


@dataclass(frozen=True)
class Broyden(Method):
    """Iterate ``x' = x - B r``, ``r = g(x) - x``, and correct ``B ~ (dr/dx)^-1`` by each step.

        B' = B + (dx - B dr) (dx^T B) / (dx^T B dr),        B_0 = -b

    ("good" Broyden, the inverse updated by Sherman and Morrison's formula, so that B is a sum of
    products of vectors). Locally it converges faster than linearly; on a linear problem of n
    numbers it needs at most 2 n steps (Gay, 1979), between which errors may be large: only a very
    large one is a wrong turn, after which a sample forgets its corrections, halves its b and goes
    on from its best iterate. After ``memory`` corrections all start again from ``-b``.

    One update per iteration. Memory: ``2 memory + 6`` tensors like x. Source: Kelley, Iterative
    Methods for Linear and Nonlinear Equations (1995), chapter 7. Not where few iterations are
    enough anyway: ``Anderson`` remembers less.

    Args:
        memory: corrections remembered.
        damping: b at the start.
        max_iterations: updates at most.
    """

    memory: int = 30
    damping: float = 1.0
    max_iterations: int = 100
    setback: ClassVar[float] = 1e4

    def __post_init__(self) -> None:
        check_damping(self.damping)
        check_counts(memory=self.memory, max_iterations=self.max_iterations)

    def start(self, x: Tensor, derivative: Derivative | None) -> Stepper:
        return _Corrected(self.memory, first_damping(x, self.damping))


class _Corrected(Stepper):
    def __init__(self, memory: int, damping: Tensor) -> None:
        self.memory, self.damping = memory, damping
        self.corrections: list[tuple[Tensor, Tensor]] = []  # (u, v): B = -b + sum u v^T
        self.last: tuple[Tensor, Tensor] | None = None

    def step(self, seen: Seen) -> Tensor:
        x, r = (value.to(self.damping.dtype) for value in (seen.x, seen.r))
        if self.last is not None:
            if len(self.corrections) == self.memory:
                self.corrections = []
            self.corrections.append(self._correction(x - self.last[0], r - self.last[1]))
        lost = seen.lost[:, None]
        self.corrections = [
            (u.masked_fill(lost, 0), v.masked_fill(lost, 0)) for u, v in self.corrections
        ]
        self.damping = halved(self.damping, seen.lost)
        start, r = (value.to(self.damping.dtype) for value in (seen.start, seen.start_r))
        self.last = start, r
        return -self._apply(r)

    def _apply(self, r: Tensor) -> Tensor:
        """``B r``."""
        out = -self.damping * r
        for u, v in self.corrections:
            out = out + u * _dot(v, r)
        return out

    def _correction(self, dx: Tensor, dr: Tensor) -> tuple[Tensor, Tensor]:
        """``(dx - B dr) / (dx^T B dr)`` and ``dx^T B``; zeros where that divides by round-off."""
        v = -self.damping * dx
        for u, w in self.corrections:
            v = v + w * _dot(u, dx)
        moved = self._apply(dr)
        pivot = _dot(v, dr)
        size = torch.linalg.vector_norm(v, dim=1, keepdim=True) * torch.linalg.vector_norm(
            dr, dim=1, keepdim=True
        )
        sound = pivot.abs() > 16 * torch.finfo(dx.dtype).eps * size
        u = torch.where(sound, (dx - moved) / torch.where(sound, pivot, 1), 0)
        return u, torch.where(sound, v, 0)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of samples, (batch, 1)."""
    return (a * b).sum(1, keepdim=True)
