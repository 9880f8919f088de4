"""Adjoint Matching: a regression on lean adjoints, whose minimiser samples the tilted law."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..arguments import is_integer
from ..diffusion.denoiser import Denoiser
from ..diffusion.equation import Diffusion
from ..diffusion.frames import Frame
from .path import check_like, equation_of, plain, states_of


def adjoint_matching_loss(
    denoiser: Denoiser,
    base: Denoiser,
    trajectory: Tensor,
    adjoints: Tensor,
    *,
    frame: Frame,
    grid: Tensor | Sequence[float],
    cond: Mapping[str, Any] | None = None,
    steps: Sequence[int] | None = None,
    guided: bool | None = None,
) -> Tensor:
    """Return the Adjoint Matching loss of each sample, (batch,).

        loss = sa.adjoint_matching_loss(tuned, base, path, adjoints, frame=frame, grid=grid).mean()

    A step of Euler's method in the frame is ``y' = y + ds F(y) + sqrt(dnu) e`` with e standard
    normal, so that a denoiser other than the base shifts e by the control ``u_n``. Each step's
    share is

        1/2 |u_n + sqrt(dnu) w_{n+1} a_{n+1}|^2,    u_n = ds (F - F_base)(s_n, y_n) / sqrt(dnu)

    with ``w a`` the adjoint in the frame. Summed over the steps it is the discrete form, exact for
    Euler's steps, of ``1/2 int |u + sigma^T a|^2 dt``. Where ``L = -reward`` and the start is
    forgotten (``eta = 1``; see ``memoryless_deficit``) its minimiser samples the law
    ``p_base e^reward / Z``, up to the error of the grid.

    Args:
        denoiser: the one that is tuned; the gradient reaches its parameters, and tensors in cond
            through it.
        base: the one it started from, a constant.
        trajectory: (steps + 1, batch, ...), of ``denoiser``, a constant.
        adjoints: ``lean_adjoint(base, trajectory, ...)``, a constant.
        frame: with eta > 0; 1 for the right law.
        grid, cond: as for ``sample``.
        steps: those of 0 .. N - 1 whose shares are added; None for all. Scale by ``N / len(steps)``
            for an unbiased sum of a random subset.
        guided: needed if one of the denoisers has guidance: whether to take each with its own.

    A last step to sigma = 0 has no noise and no control: it has no share. Both networks are
    evaluated at the start of each step, whatever solver made the trajectory.

    Cost: one evaluation of each network per step. Memory: the graphs of the steps that were chosen;
    add up gradients of a few steps at a time where they are too large.
    Errors: ``ValueError`` for eta = 0, for steps that do not exist, and for shapes that do not fit.
    Source: Domingo-Enrich et al. (ICLR 2025).
    """
    own = equation_of("denoiser", denoiser, frame, grid, cond, guided)
    other = equation_of("base", base, frame, grid, cond, guided)
    if own.noise_clock is None:
        raise ValueError(
            f"frame: {frame!r} has no noise, and so no control; pass Frame(..., eta=1.0), the "
            "memoryless one"
        )
    states = states_of(own, trajectory)
    check_like("adjoints", adjoints, trajectory, "what lean_adjoint returns, like the trajectory")
    targets = plain(adjoints)
    own, other = own.starting_at(states[0]), other.starting_at(states[0])
    total = torch.zeros(states.shape[1], dtype=_wide(states), device=states.device)
    for n in _chosen(own, steps):
        total = total + _share(own, other, n, states[n], targets[n + 1])
    return total.to(states.dtype)


def _share(own: Diffusion, other: Diffusion, n: int, x: Tensor, a: Tensor) -> Tensor:
    """One step's share of the loss, (batch,)."""
    assert own.noise_clock is not None
    s, ds = own.clocks[n], own.clocks[n + 1] - own.clocks[n]
    root = math.sqrt(own.noise_clock[n + 1] - own.noise_clock[n])
    y = own.enter(x, n)
    with torch.no_grad():
        before = other.drift(n)(s, y)
    change = own.drift(n)(s, y).to(_wide(x)) - before.to(_wide(x))
    off = (ds / root) * change + (root * own.weights[n + 1]) * a.to(_wide(x))
    return off.square().reshape(len(x), -1).sum(1) / 2


def _chosen(equation: Diffusion, steps: Sequence[int] | None) -> list[int]:
    """The steps that have a share."""
    controlled = equation.steps - equation.projects
    if steps is None:
        return list(range(controlled))
    if not isinstance(steps, Iterable):
        raise TypeError(f"steps: got {steps!r}; pass a list of steps, such as [0, 3]")
    chosen = steps.tolist() if isinstance(steps, Tensor) else list(steps)
    for n in chosen:
        if not is_integer(n, 0) or n >= controlled:
            raise ValueError(
                f"steps: got {n!r}; pass integers from 0 to {controlled - 1}, the steps that have "
                "noise"
            )
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(f"steps: got {chosen}; pass at least one step, and each once")
    return chosen


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)
