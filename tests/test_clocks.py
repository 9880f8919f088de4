"""Clocks and grids that an error estimate chooses: cheaper than uniform ones, and exact gradients on them."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

import sdeadjoint as sa

from .networks import Mlp
from .solves import DOUBLE, SCHEDULE


class Counted:
    """A drift that counts its calls."""

    def __init__(self, drift: Callable[..., Any]) -> None:
        self.drift, self.calls = drift, 0

    def __call__(self, s: Tensor, y: Any) -> Any:
        self.calls += 1
        return self.drift(s, y)


def pulse(s: Tensor, y: Tensor) -> Tensor:
    """A linear decay that is a hundred times faster for a fiftieth of the time."""
    return -(1 + 100 * torch.exp(-(((s - 0.5) / 0.02) ** 2))) * (y - torch.cos(3 * s))


def oscillator(s: Tensor, y: Tensor) -> Tensor:
    """Van der Pol's, slow and fast in turn."""
    x, v = y.unbind(-1)
    return torch.stack([v, 8 * (1 - x**2) * v - x], -1)


def orbit(s: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
    """A planet of eccentricity 0.9: a nest of place and velocity."""
    x = y["x"]
    return {"x": y["v"], "v": -x / x.square().sum(-1, keepdim=True) ** 1.5}


PROBLEMS: dict[str, tuple[Callable[..., Any], Any, float, float]] = {
    "pulse": (pulse, torch.tensor([[1.0], [0.0]], dtype=DOUBLE), 0.0, 1.0),
    "oscillator": (oscillator, torch.tensor([[2.0, 0.0]], dtype=DOUBLE), 0.0, 12.0),
    "orbit": (
        orbit,
        {"x": torch.tensor([[0.1, 0.0]], dtype=DOUBLE), "v": torch.tensor([[0.0, math.sqrt(19.0)]], dtype=DOUBLE)},
        0.0,
        2 * math.pi,
    ),
}


def flat(y: Any) -> Tensor:
    return torch.cat([part.flatten() for part in (y.values() if isinstance(y, dict) else [y])])


@functools.cache
def truth(name: str) -> Tensor:
    """The last state by DOP853, to a relative error far below those compared."""
    drift, y0, s0, s1 = PROBLEMS[name]

    def field(s: float, values: np.ndarray) -> np.ndarray:
        parts = torch.from_numpy(values)
        if isinstance(y0, dict):
            x, v = parts.reshape(2, 1, 2)
            return flat(drift(torch.tensor(s), {"x": x, "v": v})).numpy()
        return flat(drift(torch.tensor(s, dtype=DOUBLE), parts.reshape(y0.shape))).numpy()

    # Its steps must not miss the pulse.
    found = solve_ivp(field, (s0, s1), flat(y0).numpy(), "DOP853", rtol=1e-9, atol=1e-10, max_step=(s1 - s0) / 100)
    return torch.from_numpy(found.y[:, -1])


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solver", [sa.Dopri5(), sa.BogackiShampine()], ids=repr)
def test_fewer_calls_than_a_uniform_clock_of_equal_error(name: str, solver: sa.Solver) -> None:
    """The first pass, which chooses, is counted too."""
    drift, y0, s0, s1 = PROBLEMS[name]
    counted = Counted(drift)
    with torch.no_grad():
        clock = sa.adaptive_clock(counted, y0, s0, s1, rtol=3e-5, atol=3e-7, solver=solver)
        got = sa.solve(counted, y0, clock=clock, solver=solver)
        steps = counted.calls // solver.claims.evaluations
        uniform = sa.solve(drift, y0, clock=torch.linspace(s0, s1, steps + 1).double(), solver=solver)
    exact = truth(name)
    error, other = (float((flat(y) - exact).norm() / exact.norm()) for y in (got, uniform))
    assert error < 0.5 * other, f"{counted.calls} calls: {error:.1e}, uniform {other:.1e}"
    assert error < 1e-2
    assert clock[0] == s0
    assert clock[-1] == s1


@pytest.mark.parametrize("adjoint", [sa.Checkpoint(), sa.Checkpoint(snapshots=2)], ids=repr)
def test_the_gradient_is_exact_on_the_chosen_clock(adjoint: sa.Adjoint) -> None:
    rate = torch.tensor([0.7, 1.3], dtype=DOUBLE, requires_grad=True)
    y0 = torch.tensor([[1.0, -0.5], [0.2, 0.1]], dtype=DOUBLE, requires_grad=True)

    def drift(s: Tensor, y: Tensor, rate: Tensor) -> Tensor:
        return torch.sin(5 * s) - rate * torch.tanh(3 * y)

    cond = {"rate": rate}
    with torch.no_grad():
        clock = sa.adaptive_clock(drift, y0.detach(), 1.0, -0.5, rtol=1e-4, atol=1e-6, cond={"rate": rate.detach()})
    assert (clock.diff() < 0).all()
    results = []
    for how in (adjoint, sa.Direct()):
        y1 = sa.solve(drift, y0, clock=clock, solver=sa.Dopri5(), cond=cond, adjoint=how)
        results.append((y1, *torch.autograd.grad((y1**2).sum(), [y0, rate])))
    assert torch.equal(results[0][0], results[1][0])
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12 * float(want.detach().abs().max()))


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_sampler_on_its_own_grid(eta: float) -> None:
    mixture = sa.problems.Mixture([0.5, 0.5], [[-1.0, 0.0], [1.0, 0.0]], 0.05)
    denoiser, frame = mixture.denoiser(SCHEDULE), sa.Frame(SCHEDULE, eta)
    x_T = torch.linspace(-1.5, 1, 8, dtype=DOUBLE).reshape(4, 2)
    noise = sa.BrownianPath(seed=3, refinable=True) if eta else None
    grids = [
        sa.adaptive_grid(
            denoiser, x_T, frame=frame, t_max=0.9, t_min=0.05, rtol=tol, atol=tol, noise=noise, solver=solver
        )
        for tol, solver in ((0.3, sa.BogackiShampine()), (0.03, sa.BogackiShampine()))
    ]
    fine = sa.uniform_logsnr(SCHEDULE, 96, t_max=0.9, t_min=0.05)
    call = {"frame": frame, "noise": noise, "solver": sa.BogackiShampine()}
    truth = sa.sample(denoiser, x_T, grid=fine, **call)
    errors = [float((sa.sample(denoiser, x_T, grid=grid, **call) - truth).norm() / truth.norm()) for grid in grids]
    for grid in grids:
        assert grid[0] == 0.9
        assert grid[-1] == 0.05
        assert (grid.diff() < 0).all()
    assert len(grids[1]) > len(grids[0])
    assert errors[1] < errors[0]
    assert errors[1] < 0.3


def test_rejected_steps_leave_the_path_alone() -> None:
    """The clock is chosen again the same, and the solve on it sees the path of its seed."""
    path = sa.BrownianPath(seed=1, refinable=True)
    y0 = torch.zeros(2, 3, dtype=DOUBLE)

    def drift(s: Tensor, y: Tensor) -> Tensor:
        return -4 * torch.tanh(y)

    clocks = [
        sa.adaptive_clock(drift, y0, -1.0, 1.0, rtol=0.1, atol=0.1, solver=sa.BogackiShampine(), noise=path)
        for _ in "ab"
    ]
    assert torch.equal(*clocks)
    still = sa.solve(lambda s, y: 0 * y, y0, clock=clocks[0], solver=sa.Euler(), noise=path)
    whole = sa.solve(lambda s, y: 0 * y, y0, clock=[-1.0, 1.0], solver=sa.Euler(), noise=path)
    torch.testing.assert_close(still, whole, rtol=1e-12, atol=1e-12)


def denoiser() -> sa.Denoiser:
    return sa.Denoiser(Mlp(2), SCHEDULE, "sample")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"noise": sa.BrownianPath(seed=0)}, r"noise: .* pass BrownianPath\(seed=0, refinable=True\)"),
        ({"noise": None}, r"noise: got None, but eta = 1.0 > 0"),
        ({"noise": sa.FixedNoise(torch.zeros(1, 2, 2))}, "noise: got FixedNoise"),
        ({"t_min": 0.0}, "t_max, t_min: got 0.9, 0.0"),
        ({"solver": sa.Heun()}, "solver: got Heun"),
        ({"rtol": -1.0}, "rtol: got -1.0"),
        ({"cond": {"embedding": sa.Scheduled(torch.zeros(1, 2))}}, "cond: Scheduled holds one value per step"),
    ],
)
def test_grids_that_cannot_be_chosen(change: dict[str, Any], message: str) -> None:
    call = {
        "frame": sa.Frame(SCHEDULE, 1.0),
        "t_max": 0.9,
        "t_min": 0.05,
        "rtol": 0.1,
        "atol": 0.1,
        "noise": sa.BrownianPath(seed=0, refinable=True),
    }
    with pytest.raises((TypeError, ValueError), match=message):
        sa.adaptive_grid(denoiser(), torch.zeros(2, 2, dtype=DOUBLE), **(call | change))
