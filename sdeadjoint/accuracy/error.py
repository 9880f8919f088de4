"""An estimate of a gradient's error against the equation's gradient, from refined grids."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ..adjoints import Adjoint, Checkpoint
from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import Frame
from ..gradient_check.call import Call, Loss
from ..gradient_check.check import in_double
from ..noise import Noise
from ..solvers import ShARK, Solver
from .refine import check_noise, dense, refined
from .result import ErrorRow, GradientError


def gradient_error(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    loss: Loss,
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver,
    noise: Noise | None = None,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
) -> GradientError:
    """Estimate how far the gradient of ``loss(sample(...))`` is from that of the equation's solution.

        found = sa.gradient_error(denoiser, x_T, loss=loss, frame=frame, grid=grid, solver=solver)
        found.relative           # 0.071: this gradient is 7 % from that of the equation
        print(found)

    The gradient of a discrete sampler is exact for the sampler. By D2 and D3 of
    ``theory/discrete_adjoint.md`` it tends to that of the equation ``dy = F ds + dB`` with the solver's
    order p. So gradients on grids whose steps are cut in 2 and in 4 equal parts of lambda, ``g_2`` and
    ``g_4``, tell what is missing in ``g_1``:

        error = g_4 - g_1 + (g_4 - g_2) / (2^p - 1)        without noise, by the same solver
        error = g_4 - g_1                                  on an SDE, g_4 by ShARK on the same path

    Args:
        denoiser, x_T, frame, grid, solver, noise, cond: as for ``sample``. Gradients of everything
            that requires one are looked at: x_T, cond, parameters. ``Scheduled`` slots are repeated
            on the parts of their step.
        adjoint: of the gradient that is judged; any one, the continuous ones too. Refined gradients
            are exact ones, by ``Checkpoint()``.
        loss: from the sample to one number. It gets a float64 sample on refined grids.
        noise: for eta > 0 a path that does not depend on the grid,
            ``BrownianPath(seed, refinable=True)``.

    Returns a ``GradientError``: norms, the errors as tensors, and their uncertainty, the estimated
    error of what the gradient was compared with: without noise a ``2^p``-th of the difference to
    the extrapolation from ``g_2`` and ``g_1``, on an SDE ``|g_4 - g_2| / (2^1.5 - 1)``. Where it is not
    small against the error (``reliable`` is False), the steps are too long for an estimate.

    Works on copies: the network, ``.grad`` fields and global generators stay as they are. A function
    as network cannot be copied and is run as it is, in float64 too. Cost: 7 gradients of this
    sampler; with noise 1, and 6 of ShARK's, of two calls per step.
    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit, for noise that is another
    path on a finer grid, and if nothing requires a gradient.

    Not for models that were distilled or trained for a few steps: there is no equation behind them.
    The estimate is of the error by discretisation, not of that by the network.
    Source: Richardson (1911); ``theory/discrete_adjoint.md``, D2 and D3; Hairer, Norsett and Wanner
    (1993), II.4.
    """
    call = Call(denoiser, x_T, loss, frame, grid, solver, noise, {} if cond is None else cond)
    check_noise(noise)
    own, double = call.copied(), call.copied(torch.float64)
    steps = call.recursion.steps
    reference, order = (solver, solver.claims.ode) if frame.eta == 0 else (ShARK(), 1.5)
    first = _gradients(own, adjoint)
    with in_double():
        finer = [replace(refined(double, [parts] * steps), solver=reference) for parts in (2, 4)]
        second, fourth = (_gradients(call, Checkpoint(), double) for call in finer)
    estimated = _without_noise if frame.eta == 0 else _along_a_path
    rows, errors = [], {}
    for name, gradient in first.items():
        g1 = gradient.double()
        error, uncertainty, observed = estimated(g1, second[name], fourth[name], order)
        errors[name] = error
        rows.append(ErrorRow(name, _norm(g1 + error), _norm(error), uncertainty, observed))
    return GradientError(tuple(rows), errors, first, steps, repr(reference))


def _without_noise(g1: Tensor, g2: Tensor, g4: Tensor, order: float) -> tuple[Tensor, float, float]:
    """Extrapolated once from either pair; what the finer pair is off by is a 2^order-th of what they differ by."""
    finer, coarser = (fine + (fine - coarse) / (2**order - 1) for fine, coarse in ((g4, g2), (g2, g1)))
    return finer - g1, _norm(finer - coarser) / 2**order, _observed(g2 - g1, g4 - g2)


def _along_a_path(g1: Tensor, g2: Tensor, g4: Tensor, order: float) -> tuple[Tensor, float, float]:
    """Errors along paths do not extrapolate: the finest gradient stands for the equation's."""
    return g4 - g1, _norm(g4 - g2) / (2**order - 1), math.nan


def _gradients(call: Call, adjoint: Adjoint, leaves_of: Call | None = None) -> dict[str, Tensor]:
    """The gradients of a call in the leaves of it or of another that it was made of; zeros where there are none."""
    leaves = (leaves_of or call).leaves()
    if not leaves:
        raise ValueError(
            "x_T: nothing requires a gradient, neither x_T nor cond, guidance or any parameter; call "
            "requires_grad_() on what the gradient is wanted for"
        )
    _, found = call.gradients(adjoint, leaves)
    return {name: dense(grad, leaves[name]) for name, grad in found.items()}


def _observed(before: Tensor, last: Tensor) -> float:
    """The order that two differences of neighbouring levels show."""
    coarse, fine = _norm(before), _norm(last)
    if fine == 0:
        return math.inf
    return math.log2(coarse / fine) if coarse > 0 else -math.inf


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())
