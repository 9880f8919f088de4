"""Fixed points ``x = g(x)``, one per sample of a batch, by Anderson acceleration."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

Update = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``x -> (g(x) - x, error)``: of x's shape, and one number >= 0 per sample that says how far x is from a solution."""

DEPTH = 6  # differences remembered; more cost memory and gain little (4 to 12 were tried on the digits)
SETBACK = 10.0  # an error this many times the least so far is a wrong turn


class FixedPoint(NamedTuple):
    """What was found: for each sample the iterate of least error, and that error; how many updates were evaluated."""

    x: Tensor
    error: Tensor
    iterations: int


def fixed_point(update: Update, x: Tensor, *, tol: Tensor | float, max_iterations: int) -> FixedPoint:
    """Iterate from x until each sample's error is at most ``tol``, a number or one per sample, or the limit is reached.

    With ``r = g(x) - x``, and the last differences of iterates and of updates as columns of dX and dR, the next iterate
    is

        x + b r - (dX + b dR) c,        c = argmin |r - dR c|

    On linear problems with b = 1 this is GMRES: it converges where plain iteration (``x + r``) does not. Where the
    error jumps up, a sample forgets its past, halves its b and goes on from its best iterate. Samples never see each
    other: each has its own c, b and history, and stops changing when it is done.

    Memory: ``2 DEPTH + 4`` tensors like x. Source: Walker and Ni (2011), Algorithm AA; damping: the same, section 2.
    """
    shape, wide = x.shape, torch.promote_types(x.dtype, torch.float32)
    x = x.flatten(1)
    best, least = x, torch.full(shape[:1], math.inf, dtype=torch.float64, device=x.device)
    best_r, damping = torch.zeros_like(x), torch.ones(len(x), 1, dtype=wide, device=x.device)
    past: list[tuple[Tensor, Tensor]] = []
    last: tuple[Tensor, Tensor] | None = None
    for k in range(1, max_iterations + 1):
        r, error = update(x.reshape(shape))
        r, error = r.flatten(1), error.double()
        if last is not None:
            past = [*past, (x - last[0], r - last[1])][-DEPTH:]
        last = x, r
        better, lost = error < least, ~(error <= SETBACK * least)
        best, best_r = (torch.where(better[:, None], new, old) for new, old in ((x, best), (r, best_r)))
        least = torch.where(better, error, least)
        if bool((least <= tol).all()) or k == max_iterations:
            break
        past = [(dX.masked_fill(lost[:, None], 0), dR.masked_fill(lost[:, None], 0)) for dX, dR in past]
        damping = torch.where(lost[:, None], (damping / 2).clamp(min=1 / 16), damping)
        x, r = torch.where(lost[:, None], best, x), torch.where(lost[:, None], best_r, r)
        step = _mixed(r.to(wide), past, damping).to(x.dtype)
        x = torch.where((least <= tol)[:, None], best, x + step)
    return FixedPoint(best.reshape(shape), least, k)


def _mixed(r: Tensor, past: list[tuple[Tensor, Tensor]], damping: Tensor) -> Tensor:
    """``b r - (dX + b dR) c`` for each sample, (batch, numbers)."""
    if not past:
        return damping * r
    dX, dR = (torch.stack(columns, dim=2).to(r.dtype) for columns in zip(*past, strict=True))
    norms = torch.linalg.vector_norm(dR, dim=1, keepdim=True)
    inverse = torch.where(norms > 0, 1 / norms, 0)  # a forgotten column stays zero and gets no weight
    dX, dR = dX * inverse, dR * inverse
    gram = dR.mT @ dR
    # Columns that nearly repeat each other would get weights of round-off: they share one instead.
    ridge = 16 * torch.finfo(r.dtype).eps * torch.eye(gram.shape[-1], dtype=r.dtype, device=r.device)
    c = torch.linalg.solve(gram + ridge, dR.mT @ r[:, :, None])
    return damping * r - ((dX + damping[:, :, None] * dR) @ c)[:, :, 0]
