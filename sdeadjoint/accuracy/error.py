"""An estimate of a gradient's error against the equation's gradient, from refined grids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adjoints import Adjoint, Checkpoint
from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import Frame
from ..gradient_check.call import Call, Loss
from ..gradient_check.check import in_double
from ..noise import Noise
from ..solvers import Solver
from .refine import better, check_noise, dense, refined
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
    order. What the equation's is, a more accurate solver tells on grids whose steps are cut in 2 and
    in 4 equal parts of lambda, with gradients ``r_2`` and ``r_4`` there:

        error = r_4 - g + (r_4 - r_2) / 15             without noise, r by RK4 in the data kind
        error = r_4 - g                                on an SDE, r by ShARK on the same path

    Args:
        denoiser, x_T, frame, grid, solver, noise, cond: as for ``sample``. Gradients of everything
            that requires one are looked at: x_T, cond, parameters. ``Scheduled`` slots are repeated
            on the parts of their step.
        adjoint: of the gradient that is judged; any one, the continuous ones too. Refined gradients
            are exact ones, by ``Checkpoint()``.
        loss: from the sample to one number. It gets a float64 sample on refined grids.
        noise: for eta > 0 a path that does not depend on the grid,
            ``BrownianPath(seed, refinable=True)``.

    Returns a ``GradientError``: norms, the errors as tensors, and their uncertainty, what is known of
    the error of the reference: without noise ``|r_4 - r_2|``, many times that error unless steps are
    too long for orders to show, on an SDE ``|r_4 - r_2| / (2^1.5 - 1)``. Where it is not small against
    the error (``reliable`` is False), the steps are too long for an estimate, or the gradient is as
    good as the reference.

    Works on copies: the network, ``.grad`` fields and global generators stay as they are. A function
    as network cannot be copied and is run as it is, in float64 too. Cost: one gradient of this
    sampler and 24 calls per step of the grid with their gradients, with noise 12. A solver of an
    order above RK4's is refined itself.
    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit, for noise that is another
    path on a finer grid, and if nothing requires a gradient.

    Not for models that were distilled or trained for a few steps: there is no equation behind them.
    The estimate is of the error by discretisation, not of that by the network.
    Source: Richardson (1911); ``theory/gradient_errors.md``, G1 and G2; Hairer, Norsett and Wanner
    (1993), II.4.
    """
    call = Call(denoiser, x_T, loss, frame, grid, solver, noise, {} if cond is None else cond)
    check_noise(noise)
    own, double = call.copied(), call.copied(torch.float64)
    steps = call.recursion.steps
    reference = better(double)
    first = _gradients(own, adjoint)
    with in_double():
        finer = [refined(reference, [parts] * steps) for parts in (2, 4)]
        second, fourth = (_gradients(call, Checkpoint(), double) for call in finer)
    estimated = _without_noise if frame.eta == 0 else _along_a_path
    rows, errors = [], {}
    for name, gradient in first.items():
        g1 = gradient.double()
        true, uncertainty = estimated(second[name], fourth[name], reference.solver)
        errors[name] = true - g1
        rows.append(ErrorRow(name, _norm(true), _norm(errors[name]), uncertainty))
    return GradientError(tuple(rows), errors, first, steps, repr(reference.solver))


def _without_noise(r2: Tensor, r4: Tensor, solver: Solver) -> tuple[Tensor, float]:
    """Extrapolated once; what halving changed says more than a part of it where the order does not show yet."""
    return r4 + (r4 - r2) / (2**solver.claims.ode - 1), _norm(r4 - r2)


def _along_a_path(r2: Tensor, r4: Tensor, solver: Solver) -> tuple[Tensor, float]:
    """Errors along paths do not extrapolate: the finest gradient stands for the equation's."""
    return r4, _norm(r4 - r2) / (2**solver.claims.strong - 1)


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


def _norm(tensor: Tensor) -> float:
    return float(tensor.detach().double().norm())
