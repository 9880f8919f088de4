"""The iteration itself: who is done, whose best iterate was which, who took a wrong turn."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .anderson import Anderson
from .base import Derivative, Found, Method, Seen, Update


def fixed_point(
    update: Update,
    x: Tensor,
    *,
    tol: Tensor | float,
    max_iterations: int | None = None,
    method: Method = Anderson(),  # noqa: B008 (frozen)
    derivative: Derivative | None = None,
) -> Found:
    """Iterate from x until each sample's error is at most ``tol``, or the limit is reached.

    Where the error jumps up, by the method's ``setback``, or is not a number, a sample goes on from
    its best iterate, more carefully. Samples never see each other, and a sample stops changing when
    it is done.

    Args:
        update: ``x -> (g(x) - x, error)``.
        x: where to start, (batch, ...).
        tol: a number, or one per sample.
        max_iterations: updates at most; None for the method's own limit.
        method: how to step.
        derivative: of g, for methods that need it.
    """
    shape, limit = x.shape, max_iterations or method.max_iterations
    x = x.reshape(len(x), -1)
    stepper = method.start(x, None if derivative is None else _flat(derivative, shape))
    best, best_r = x, torch.zeros_like(x)
    least = torch.full(shape[:1], math.inf, dtype=torch.float64, device=x.device)
    counts = torch.zeros(shape[:1], dtype=torch.int64, device=x.device)
    for k in range(1, limit + 1):
        counts = torch.where(least <= tol, counts, k)
        r, error = update(x.reshape(shape))
        r, error = r.reshape(x.shape), error.double()
        better, lost = error < least, ~(error <= method.setback * least)
        best, best_r = (
            torch.where(better[:, None], new, old) for new, old in ((x, best), (r, best_r))
        )
        least = torch.where(better, error, least)
        if bool((least <= tol).all()) or k == limit:
            break
        start, start_r = (
            torch.where(lost[:, None], kept, new) for kept, new in ((best, x), (best_r, r))
        )
        seen = Seen(x, r, start, start_r, torch.where(lost, least, error), tol, lost, least > tol)
        x = torch.where((least <= tol)[:, None], best, start + stepper.step(seen).to(x.dtype))
    return Found(best.reshape(shape), least, k, best_r.reshape(shape), counts)


def _flat(derivative: Derivative, shape: torch.Size) -> Derivative:
    """The derivative for states (batch, numbers)."""

    def push(x: Tensor, v: Tensor) -> Tensor:
        return derivative.push(x.reshape(shape), v.reshape(shape)).reshape(x.shape)

    return Derivative(push, derivative.linear)
