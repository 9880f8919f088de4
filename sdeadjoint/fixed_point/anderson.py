"""Anderson acceleration."""

from __future__ import annotations

from dataclasses import dataclass

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
class Anderson(Method):
    """Mix the last iterates so that the residual ``r = g(x) - x`` is least (Anderson acceleration).

        x' = x + b r - (dX + b dR) c,        c = argmin |r - dR c|

    The columns of dX and dR are the last differences of iterates and of r.

    On linear problems with b = 1 this is GMRES: it converges where plain iteration (``x + r``) does
    not. Where the error jumps up, a sample forgets its past, halves its b and goes on from its best
    iterate.

    One update per iteration. Memory: ``2 memory + 4`` tensors like x. Source: Walker and Ni (2011),
    Algorithm AA; damping: the same, section 2.

    Args:
        memory: differences remembered; more cost memory and gain little (4 to 12 were tried on the
            digits).
        damping: b at the start.
        max_iterations: updates at most.
    """

    memory: int = 6
    damping: float = 1.0
    max_iterations: int = 100

    def __post_init__(self) -> None:
        check_damping(self.damping)
        check_counts(memory=self.memory, max_iterations=self.max_iterations)

    def start(self, x: Tensor, derivative: Derivative | None) -> Stepper:
        return _Accelerated(self.memory, first_damping(x, self.damping))


class _Accelerated(Stepper):
    def __init__(self, memory: int, damping: Tensor) -> None:
        self.memory, self.damping = memory, damping
        self.past: list[tuple[Tensor, Tensor]] = []
        self.last: tuple[Tensor, Tensor] | None = None

    def step(self, seen: Seen) -> Tensor:
        if self.last is not None:
            self.past.append((seen.x - self.last[0], seen.r - self.last[1]))
        self.last = seen.x, seen.r
        kept, lost = self.past[-self.memory :], seen.lost[:, None]
        self.past = [(dX.masked_fill(lost, 0), dR.masked_fill(lost, 0)) for dX, dR in kept]
        self.damping = halved(self.damping, seen.lost)
        return mixed(seen.start_r.to(self.damping.dtype), self.past, self.damping)


def mixed(r: Tensor, past: list[tuple[Tensor, Tensor]], damping: Tensor) -> Tensor:
    """``b r - (dX + b dR) c`` for each sample, (batch, numbers)."""
    if not past:
        return damping * r
    dX, dR = (torch.stack(columns, dim=2).to(r.dtype) for columns in zip(*past, strict=True))
    norms = torch.linalg.vector_norm(dR, dim=1, keepdim=True)
    inverse = torch.where(
        norms > 0, 1 / norms, 0
    )  # a forgotten column stays zero and gets no weight
    dX, dR = dX * inverse, dR * inverse
    gram = dR.mT @ dR
    # Columns that nearly repeat each other would get weights of round-off: they share one instead.
    ridge = (
        16 * torch.finfo(r.dtype).eps * torch.eye(gram.shape[-1], dtype=r.dtype, device=r.device)
    )
    c = torch.linalg.solve(gram + ridge, dR.mT @ r[:, :, None])
    return damping * r - ((dX + damping[:, :, None] * dR) @ c)[:, :, 0]
