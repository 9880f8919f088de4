"""Clocks and grids that an error estimate chooses, in a first pass that nothing is differentiated through."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .adaptive import Increments, choose_clock
from .arguments import check_state, check_types, is_number
from .conditioning import scheduled
from .diffusion.denoiser import Denoiser
from .diffusion.equation import Diffusion
from .diffusion.frames import Frame
from .equation import Equation
from .field import Field
from .noise import BrownianPath, Noise
from .solve import noise_of
from .solvers import Dopri5, RungeKutta


def adaptive_clock(
    drift: Callable[..., Any],
    y0: Any,
    s0: float,
    s1: float,
    *,
    rtol: float,
    atol: float,
    solver: RungeKutta = Dopri5(),  # noqa: B008 (frozen)
    cond: Mapping[str, Any] | None = None,
    noise: Any = None,
    norm: str = "batch",
    first_step: float | None = None,
    smallest: float = 0.0,
    largest: float = math.inf,
    max_steps: int = 10_000,
    time_dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Choose the clock of ``dy = F(s, y) ds + dB`` from ``y0`` at s0 to s1, with steps as long as their error allows.

        clock = sa.adaptive_clock(drift, y0, 0.0, 1.0, rtol=1e-6, atol=1e-8)
        y1 = sa.solve(drift, y0, clock=clock, solver=sa.Dopri5())          # the accepted steps, bit by bit

    The clock is then data: the gradient of ``solve`` on it is exact for the solve that ran, by any adjoint. How the
    choice of steps depends on y0 and the weights is not differentiated, and needs not be: it changes the error, not the
    equation.

    Args:
        drift, y0, cond, time_dtype: as for ``solve``. ``Scheduled`` conditioning has no meaning before there are steps.
        s0, s1: ends of the clock, rising or falling.
        rtol, atol: allowed for each number of the state is ``atol + rtol max(|y|, |y'|)``, in the root mean square.
        solver: a method with an embedded second row: ``Dopri5()`` or ``BogackiShampine()``.
        noise: with noise of unit variance per unit of the clock, a path that is the same on every clock:
            ``BrownianPath(seed, refinable=True)``. Rejected steps then change nothing. Pass it to ``solve`` again.
        norm: ``"batch"``: over all numbers of the state; ``"sample"``: each sample's own, the largest decides.
        first_step, smallest, largest, max_steps: bounds on the steps; see ``sdeadjoint.adaptive.choose_clock``.

    Returns a float64 tensor (N + 1,) on the CPU, s0 first and s1 last.
    Cost: ``solver.claims.evaluations`` calls of the drift per step that is tried.
    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit, for steps that would have to be shorter than
    ``smallest``, and for noise that is another path on another clock.
    Not for stiff drifts, nor where every training step must have one cost: take a fixed clock there.
    """
    if is_number(s0) and s0 == s1:
        raise ValueError(f"s0, s1: got {s0} for both; pass two different ends")
    equation = Field.create(
        drift, y0, [s0, s1], cond={} if cond is None else cond, noise_clock=None, time_dtype=time_dtype
    )
    noise = noise_of(noise, equation)
    if noise is not None:
        equation = equation.with_unit_noise()
    equation = equation.starting_at(y0)
    y = equation.enter(y0)
    sign = 1.0 if s1 > s0 else -1.0
    return choose_clock(
        _drift(equation),
        y,
        s0,
        s1,
        solver=solver,
        rtol=rtol,
        atol=atol,
        first_step=first_step,
        smallest=smallest,
        largest=largest,
        norm=norm,
        noise=None if noise is None else _increments(noise, y, lambda s: sign * s),
        max_steps=max_steps,
    )


def adaptive_grid(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    frame: Frame,
    t_max: float,
    t_min: float,
    rtol: float,
    atol: float,
    solver: RungeKutta = Dopri5(),  # noqa: B008 (frozen)
    cond: Mapping[str, Any] | None = None,
    noise: Noise | None = None,
    norm: str = "batch",
    max_steps: int = 10_000,
) -> Tensor:
    """Choose a sampler's grid from t_max to t_min, with steps as long as their error allows.

        grid = sa.adaptive_grid(denoiser, x_T, frame=frame, t_max=1.0, t_min=1e-3, rtol=1e-4, atol=1e-4)
        x_0 = sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=sa.Dopri5())

    ``adaptive_clock`` in the frame's coordinates. ``atol`` is in the unit of x: it is divided by the frame's weight.
    For a last step to sigma = 0 append that time: ``torch.cat([grid, grid.new_tensor([0.0])])``.

    Args:
        denoiser, x_T, frame, cond: as for ``sample``.
        t_max, t_min: ends of the grid, where the frame's clock and weight are finite.
        rtol, atol, solver, norm, max_steps: as for ``adaptive_clock``.
        noise: for eta > 0, ``BrownianPath(seed, refinable=True)``; pass it to ``sample`` again.

    Returns a float64 tensor (N + 1,) of decreasing times on the CPU, t_max first and t_min last.
    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit; those of ``adaptive_clock``.
    """
    equation = Diffusion.create(denoiser, frame, [t_max, t_min], {} if cond is None else cond)
    check_state("x_T", x_T)
    if equation.projects or not all(map(math.isfinite, equation.weights)):
        raise ValueError(
            f"t_max, t_min: got {t_max}, {t_min}, where the frame's clock or weight is not finite; pass ends inside "
            "the schedule, and append the time of sigma = 0 to the grid"
        )
    if noise is None and frame.eta > 0:
        raise ValueError(
            f"noise: got None, but eta = {frame.eta} > 0; pass noise=BrownianPath(seed=0, refinable=True), or "
            "Frame(..., eta=0.0)"
        )
    equation = equation.starting_at(x_T)
    y = equation.enter(x_T)
    s0, s1 = equation.clocks
    clock = choose_clock(
        _drift(equation),
        y,
        s0,
        s1,
        solver=solver,
        rtol=rtol,
        atol=atol,
        unit=lambda s: 1 / equation.at(0, s)[1],
        norm=norm,
        noise=None if frame.eta == 0 else _increments(noise, y, lambda s: _noise_at(equation, s)),
        max_steps=max_steps,
    )
    inner = frame.time(clock[1:-1])
    ends = torch.tensor([t_max, t_min], dtype=torch.float64, device="cpu")
    return torch.cat([ends[:1], inner, ends[1:]])


def _drift(equation: Equation) -> Callable[[float, Tensor], Tensor]:
    if any(True for _ in scheduled(equation.tensors)):
        raise ValueError("cond: Scheduled holds one value per step, and there are no steps yet; pass one value for all")
    return equation.drift(0)


def _noise_at(equation: Diffusion, s: float) -> float:
    return float(equation.frame.noise_clock(equation.at(0, s)[0]))


def _increments(noise: Noise | None, like: Tensor, clock: Callable[[float], float]) -> Increments:
    """Increments and Levy areas of a path over any interval of the drift's clock."""
    check_types(("noise", noise, BrownianPath, "BrownianPath(seed=0, refinable=True)"))
    assert isinstance(noise, BrownianPath)
    if not noise.refinable:
        raise ValueError(
            f"noise: {noise!r} is another path on another clock, and steps are tried on many; pass "
            f"BrownianPath(seed={noise.seed!r}, refinable=True)"
        )

    def increments(start: float, end: float) -> tuple[Tensor, Tensor]:
        nodes = torch.tensor([clock(start), clock(end)], dtype=torch.float64, device="cpu")
        dB, H = noise.bind(nodes, like, True).increment(0)
        assert H is not None
        return dB, H

    return increments

