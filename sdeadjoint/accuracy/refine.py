"""The same call on a finer grid: nodes between the nodes, slots repeated, the path refined."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import nests
from ..conditioning import Scheduled
from ..diffusion.schedules import Schedule
from ..gradient_check.call import Call
from ..noise import BrownianPath, Noise
from ..solvers import RK4, ShARK


def refined(call: Call, parts: Sequence[int]) -> Call:
    """The call with step n of its grid cut into ``parts[n]`` steps."""
    grid = torch.as_tensor(call.grid, dtype=torch.float64, device="cpu")
    denoiser = call.denoiser
    if (guidance := denoiser.guidance) is not None:
        denoiser = denoiser.guided_by(replace(guidance, **_repeated(guidance.tensors, parts)))
    return replace(
        call,
        denoiser=denoiser,
        grid=split(call.frame.schedule, grid, parts),
        cond=_repeated(call.cond, parts),
    )


def better(call: Call) -> Call:
    """The call by a solver that refinements trust more: errors of the solver itself may be alike on several grids.

    Without noise RK4 in the data kind, unless the call's solver has a higher order; along paths ShARK.
    """
    if call.frame.eta > 0:
        return replace(call, solver=ShARK())
    if call.solver.claims.ode > RK4().claims.ode:
        return call
    # Without noise the equation is the same in each kind, and it is regular in the data kind wherever it is in another.
    return replace(call, solver=RK4(), frame=replace(call.frame, kind="data"))


def split(schedule: Schedule, grid: Tensor, parts: Sequence[int]) -> Tensor:
    """The grid with step n cut into ``parts[n]`` equal parts of lambda, the given nodes kept bit by bit.

    Where lambda is infinite at an end of a step, equal parts of time.
    """
    lam = schedule.lam(grid)
    nodes = []
    for n, count in enumerate(parts):
        finite = bool(torch.isfinite(lam[n : n + 2]).all())
        table = lam if finite else grid
        inner = table[n] + (table[n + 1] - table[n]) * torch.arange(1, count, dtype=torch.float64) / count
        nodes += [grid[n : n + 1], schedule.time(inner) if finite else inner]
    return torch.cat([*nodes, grid[-1:]])


def check_noise(noise: Noise | None) -> None:
    """Refuse noise that is another path, or none at all, on a finer grid."""
    if noise is None:
        return
    if not isinstance(noise, BrownianPath):
        raise TypeError(
            f"noise: got {type(noise).__name__}, which says nothing between the nodes of its grid; pass "
            "BrownianPath(seed=0, refinable=True)"
        )
    if not noise.refinable:
        raise ValueError(
            f"noise: {noise!r} is another path on a finer grid; pass BrownianPath({noise.seed!r}, refinable=True)"
        )


def dense(grad: Tensor | None, leaf: Tensor) -> Tensor:
    """A gradient as a dense tensor: zeros where there is none."""
    if grad is None:
        return torch.zeros_like(leaf, requires_grad=False)
    return grad.to_dense().detach() if grad.is_sparse else grad.detach()


def _repeated(nest: Any, parts: Sequence[int]) -> Any:
    """Conditioning with each slot of a ``Scheduled`` given to every part of its step."""
    if isinstance(nest, Scheduled):
        if isinstance(nest.values, Tensor):
            counts = torch.tensor(parts, device=nest.values.device)
            return Scheduled(nest.values.repeat_interleave(counts, dim=0))
        return Scheduled([value for value, count in zip(nest.values, parts, strict=True) for _ in range(count)])
    if isinstance(nest, Mapping | list | tuple):
        return nests.map_items(lambda value: _repeated(value, parts), nest)
    return nest
