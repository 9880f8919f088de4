"""Samplers written out by hand, for plain autograd: what every adjoint is held against."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

import sdeadjoint as sa

DOUBLE = torch.float64
SCHEDULE = sa.VPLinear()
NODES = (1.0, 0.83, 0.6, 0.41, 0.2, 0.05)
SOLVERS = {"euler": sa.Euler(), "heun": sa.Heun(), "2m": sa.DPMSolverPP2M()}


def level(t: float) -> tuple[float, float]:
    """alpha and sigma of the linear variance-preserving schedule, by its formula."""
    log_alpha = -(0.1 / 2 * t + (20.0 - 0.1) / 4 * t**2)
    alpha = torch.tensor(log_alpha, dtype=DOUBLE).exp()
    return float(alpha), float((1 - alpha**2).sqrt())


def loop(
    network: Callable[..., Tensor], x: Tensor, method: str = "euler", nodes: Sequence[float] = NODES, **cond: Any
) -> Tensor:
    """The probability-flow ODE in the data kind, ``d(x / sigma) = x_0 d(alpha / sigma)``, for predictions of x_0.

    ``method``: Euler's (DDIM), Heun's, or DPM-Solver++(2M), Lu et al. (2022), Algorithm 2.
    """
    old: tuple[float, Tensor] | None = None
    for t0, t1 in pairwise(nodes):
        (a0, s0), (a1, s1) = level(t0), level(t1)
        clock, ds = a0 / s0, a1 / s1 - a0 / s0
        now = network(x.clone(), torch.full((len(x),), t0, dtype=x.dtype), **cond).clone()
        slope = now
        if method == "heun":
            end = s1 * (x / s0 + ds * now)
            slope = (now + network(end, torch.full((len(x),), t1, dtype=x.dtype), **cond)) / 2
        if method == "2m" and old is not None:
            h0 = torch.tensor(clock / old[0], dtype=DOUBLE).log()
            h1 = torch.tensor((a1 / s1) / clock, dtype=DOUBLE).log()
            slope = now + (now - old[1]) * float(h1 / (2 * h0))
        old = (clock, now)
        x = s1 * (x / s0 + ds * slope)
    return x


def sampled(
    network: Callable[..., Any],
    x: Tensor,
    adjoint: sa.Adjoint,
    method: str = "euler",
    nodes: Sequence[float] = NODES,
    **cond: Any,
) -> Tensor:
    """The same by the library."""
    denoiser = network if isinstance(network, sa.Denoiser) else sa.Denoiser(network, SCHEDULE, "sample")
    solver = SOLVERS[method] if isinstance(method, str) else method
    return sa.sample(
        denoiser,
        x,
        frame=sa.Frame(SCHEDULE),
        grid=torch.tensor(nodes, dtype=DOUBLE),
        solver=solver,
        cond=cond,
        adjoint=adjoint,
    )
