"""The gradient of the exact solution, in closed form or on a much finer grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from ..adjoints import Checkpoint, Direct
from ..conditioning import scheduled
from ..diffusion.schedules import Schedule
from ..gradient_check.call import Call, Gradients
from ..noise import BrownianPath
from ..problems import Gaussian, Mixture
from ..problems.base import PosteriorMean
from ..solvers.reference import reference_solver

PLENTY = 2**30  # bytes that the graph of the fine solution may take; recomputing it takes three times the time

Solution = Callable[[Tensor], Tensor]
"""``x_0`` at the end of the grids from ``x_T`` at their start, differentiable: the sampler without its error."""


@dataclass(frozen=True)
class Truth:
    """Gradients by name, how they were got, and how far the next coarser grid is from them (0 for a closed form)."""

    gradients: Gradients
    source: str
    uncertainty: float


def true_gradients(call: Call, wanted: Sequence[str], solution: Solution | None, steps: int) -> Truth | str:
    """Return the gradients of a float64 call in the named tensors, or the reason why they cannot be had.

    In closed form (x_T only) from ``solution``, or from the problem's own ``ode_map`` where it has one. Otherwise from
    the same equation and the same path in ``steps`` steps or more, with the solver that ``reference_solver`` chooses.
    """
    leaves = call.leaves()
    found = solution or _closed_form(call)
    if found is not None:
        loss = call.loss(found(call.x_T))
        return Truth(dict(x_T=torch.autograd.grad(loss, call.x_T)[0]), "closed form", 0.0)
    if any(scheduled([call.cond, call.denoiser.guidance and call.denoiser.guidance.tensors])):
        return (
            "conditioning that changes from step to step belongs to one grid, so there is no finer one to compare with"
        )
    if call.noise is not None and call.frame.eta > 0 and not _is_refinable(call):
        return (
            f"{call.noise!r} belongs to one grid, so there is no finer one to compare with; "
            "pass BrownianPath(seed, refinable=True)"
        )
    if call.frame.eta == 0:
        call = replace(call, noise=None)
    picked = {name: leaves[name] for name in wanted if not name.startswith("noise")}
    factor = max(2, -(-steps // call.recursion.steps))
    judged = replace(call, solver=reference_solver(call.solver, noisy=call.frame.eta > 0))
    fine, coarse = (_on_finer_grid(judged, picked, parts) for parts in (factor, factor // 2))
    source = f"{judged.solver!r} at {factor * call.recursion.steps} steps"
    return Truth(fine, source, _distance(fine, coarse))


def refined(grid: Tensor, schedule: Schedule, factor: int) -> Tensor:
    """Every step cut into ``factor``: uniform in lambda, or in time where an end has none."""
    pieces = []
    for t0, t1 in pairwise(grid):
        u = torch.arange(factor, dtype=torch.float64, device="cpu") / factor
        lam0, lam1 = schedule.lam(t0), schedule.lam(t1)
        regular = bool(torch.isfinite(lam0) and torch.isfinite(lam1))
        inner = schedule.time(lam0 + (lam1 - lam0) * u) if regular else t0 + (t1 - t0) * u
        inner[0] = t0
        pieces.append(inner)
    return torch.cat([*pieces, grid[-1:]])


def _on_finer_grid(call: Call, wanted: dict[str, Tensor], factor: int) -> Gradients:
    times = torch.tensor(call.recursion.equation.times, dtype=torch.float64, device="cpu")
    grid = refined(times, call.frame.schedule, factor)
    fine = replace(call, grid=grid)
    fits = fine.probe().graph_bytes(len(grid) - 1) <= PLENTY
    return fine.gradients(Direct() if fits else Checkpoint(), wanted)[1]


def _is_refinable(call: Call) -> bool:
    return isinstance(call.noise, BrownianPath) and call.noise.refinable


def _closed_form(call: Call) -> Solution | None:
    network = call.denoiser.network
    if call.frame.eta > 0 or not isinstance(network, PosteriorMean):
        return None
    problem, times = network.problem, call.recursion.equation.times
    if isinstance(problem, Gaussian) or (isinstance(problem, Mixture) and problem.event_shape.numel() == 1):
        return lambda x_T: problem.ode_map(x_T, call.frame.schedule, times[0], times[-1])
    return None


def _distance(fine: Gradients, coarse: Gradients) -> float:
    """Relative, the largest over the tensors."""
    errors = [
        float((value - coarse[name]).norm() / value.norm())  # type: ignore[operator]
        for name, value in fine.items()
        if value is not None and coarse[name] is not None and value.norm() > 0
    ]
    return max(errors, default=0.0)
