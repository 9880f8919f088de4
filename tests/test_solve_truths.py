"""``sa.solve`` against the truth: continuous adjoints, closed forms, laws, and ``sa.sample``."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa

from .written_out import CLOCK, DOUBLE, EXACT, RISING, STATES, Owner, apart, flat, like, numbers

# ---------------------------------------------------------------- continuous adjoints


def errors(adjoint: sa.Adjoint, clock: Tensor, noise: sa.Noise | None = None) -> float:
    """The largest relative error of a gradient, against the exact one of the same solve."""
    owner, start = (
        Owner(),
        {"x": numbers(4, 3).requires_grad_(), "v": numbers(4, 3, seed=1).requires_grad_()},
    )
    x = numbers(3, seed=2).requires_grad_()

    def drift(s: Tensor, y: Any, x: Tensor) -> Any:
        return {"v": torch.cos(s) * owner(s, y["x"]) + x, "x": torch.sin(y["v"])}

    found = []
    for each in (sa.Direct(), adjoint):
        out = sa.solve(
            drift, start, clock=clock, solver=sa.RK4(), noise=noise, cond={"x": x}, adjoint=each
        )
        loss = out["x"].sum() + out["v"].square().sum()
        found.append(torch.autograd.grad(loss, [*start.values(), x, owner.weight, owner.start]))
    return max(apart([got], [want]) for want, got in zip(*found, strict=True))


@pytest.mark.parametrize("states", ["recorded", "reconstructed"])
@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, -0.5)], ids=["rising", "falling"])
@pytest.mark.parametrize(
    ("solver", "order"), [(sa.Euler(), 1), (sa.Heun(), 2), (sa.RK4(), 4)], ids=str
)
def test_continuous_adjoints_converge_to_the_gradient(
    states: str, ends: tuple[float, float], solver: sa.Solver, order: int
) -> None:
    """The forward solve's own error is of order 4, so that of the adjoint shows; slopes are 0.5 off at most."""
    coarse, fine = (
        errors(sa.ContinuousAdjoint(solver, states), torch.linspace(*ends, steps + 1, dtype=DOUBLE))
        for steps in (8, 16)
    )
    assert order - 0.5 < math.log2(coarse / fine) < order + 1


def test_the_continuous_adjoint_on_a_path_and_on_a_grid_of_its_own() -> None:
    clock = torch.linspace(1.0, 0.0, 33, dtype=DOUBLE)
    assert (
        errors(sa.ContinuousAdjoint(sa.Heun(), "reconstructed"), clock, sa.BrownianPath(0)) < 2e-2
    )
    assert (
        errors(sa.ContinuousAdjoint(sa.Heun()), clock, {"x": None, "v": sa.BrownianPath(0)}) < 2e-2
    )
    assert errors(sa.ContinuousAdjoint(sa.RK4(), grid=clock[::2]), clock) < 1e-5
    assert errors(sa.ContinuousAdjoint(sa.Adaptive(rtol=1e-8)), clock[::4]) < 1e-4


@pytest.mark.parametrize("state", ["scalar", "batch", "dict without batch", "nested"])
def test_on_linear_drifts_eulers_adjoint_is_eulers_gradient(state: str) -> None:
    """``a_n = a_{n+1} + ds A^T a_{n+1}`` is both, as A does not depend on the state."""
    made = STATES[state]()
    leaves = [part.detach().requires_grad_() for part in flat(made)]
    x = numbers(5, seed=3).requires_grad_()

    def drift(s: Tensor, y: Any, x: Tensor) -> Any:
        mean = torch.stack([part.mean() for part in flat(y)]).sum()
        return like(y, iter([mean - part + x for part in flat(y)]))

    found = []
    for adjoint in (sa.Checkpoint(), sa.ContinuousAdjoint(sa.Euler())):
        out = sa.solve(
            drift,
            like(made, iter(leaves)),
            clock=RISING,
            solver=sa.Euler(),
            adjoint=adjoint,
            cond={"x": sa.Scheduled(x)},
            noise=sa.BrownianPath(0),
        )
        weighted = [(numbers(*part.shape, seed=k) * part).sum() for k, part in enumerate(flat(out))]
        found.append(torch.autograd.grad(torch.stack(weighted).sum(), [*leaves, x]))
    for want, got in zip(*found, strict=True):
        assert apart([got], [want]) <= EXACT


def test_kinds_of_coordinates_are_those_of_a_diffusion() -> None:
    leaf = numbers(2).requires_grad_()
    for adjoint in (sa.ContinuousAdjoint(kind="data"), sa.adjoint_deis(order=1)):
        with pytest.raises(
            ValueError, match=r"kind '(data|noise)'.*pass ContinuousAdjoint\(kind=None\)"
        ):
            sa.solve(lambda s, y: -y, leaf, clock=CLOCK, solver=sa.Heun(), adjoint=adjoint)


# ---------------------------------------------------------------- closed forms

MATRIX = torch.tensor([[-0.6, 0.9, 0.1], [-0.8, 0.2, 0.4], [0.3, -0.5, -1.1]], dtype=DOUBLE)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (0.7, -0.3)], ids=["rising", "falling"])
def test_the_linear_equation_has_its_exponentials(ends: tuple[float, float]) -> None:
    """``z' = M z + x``: ``dz(1)/dz(0) = e^M`` and ``dz(1)/dx = M^-1 (e^M - I)``, over a span of length L."""
    span, steps = ends[1] - ends[0], 60
    exponential = torch.linalg.matrix_exp(span * MATRIX)
    response = torch.linalg.solve(MATRIX, exponential - torch.eye(3, dtype=DOUBLE))
    z0, x = numbers(3).requires_grad_(), numbers(3, seed=1).requires_grad_()

    def solved(z0: Tensor, x: Tensor) -> Tensor:
        clock = torch.linspace(*ends, steps + 1, dtype=DOUBLE)
        return sa.solve(
            lambda s, z, x: MATRIX @ z + x, z0, clock=clock, solver=sa.RK4(), cond={"x": x}
        )

    z1 = solved(z0, x)
    # The local error of RK4 on a linear equation is |h M|^5 / 5!, N times: 1e-9 for |M| < 1.7.
    tolerance = steps * (1.7 * abs(span) / steps) ** 5 / 120 * math.e**1.7 + 1e-13
    assert (z1 - exponential @ z0 - response @ x).abs().max() <= 3 * tolerance
    rows = [torch.autograd.grad(z1[k], (z0, x), retain_graph=True) for k in range(3)]
    assert (torch.stack([row[0] for row in rows]) - exponential).abs().max() <= tolerance
    assert (torch.stack([row[1] for row in rows]) - response).abs().max() <= tolerance


def test_euler_on_ornstein_uhlenbeck_is_a_sum() -> None:
    """``y_N = r_0 y_0 + sum r_{n+1} dB_n`` with ``r_n = prod_{m >= n} (1 - theta h_m)``, and so is every gradient."""
    theta, y0 = torch.tensor(1.3, dtype=DOUBLE, requires_grad=True), numbers(4).requires_grad_()
    steps = torch.tensor(RISING, dtype=DOUBLE).diff()
    dB = numbers(5, 4, seed=1).requires_grad_()
    ratio = torch.cat([(1 - theta * steps).flip(0).cumprod(0).flip(0), torch.ones(1, dtype=DOUBLE)])
    want = ratio[0] * y0 + (ratio[1:, None] * dB).sum(0)
    got = sa.solve(
        lambda s, y, theta: -theta * y,
        y0,
        clock=RISING,
        solver=sa.Euler(),
        cond={"theta": theta},
        noise=sa.FixedNoise(dB),
    )
    assert apart([got], [want]) <= EXACT
    for one, two in zip(
        *(torch.autograd.grad(out.sum(), (y0, dB, theta)) for out in (got, want)), strict=True
    ):
        assert apart([one], [two]) <= EXACT


THETA, DECAY = 1.3, 0.7


def pathwise(steps: int, *, falling: bool, count: int = 200) -> Tensor:
    """``dy = -theta y ds + e^(-decay s) dW`` over a unit of time, along one path whatever the steps."""
    clock = torch.linspace(0, 1, steps + 1, dtype=DOUBLE)
    drift = lambda s, y: -THETA * y  # noqa: E731
    g = lambda s: math.exp(-DECAY * s)  # noqa: E731
    if falling:  # the same equation in the time -s
        clock, drift, g = -clock, lambda s, y: THETA * y, lambda s: math.exp(DECAY * s)
    path = sa.BrownianPath(5, refinable=True)
    return sa.solve(
        drift,
        torch.ones(count, dtype=DOUBLE),
        clock=clock,
        solver=sa.ShARK(),
        noise=path,
        noise_clock=sa.noise_clock(g, clock),
    )


@pytest.mark.parametrize("falling", [False, True])
def test_ornstein_uhlenbeck_pathwise(falling: bool) -> None:
    """Strong order 1.5 of ShARK on the path's own clock, against the same path with 128 steps."""
    truth = pathwise(128, falling=falling)
    coarse, fine = ((pathwise(n, falling=falling) - truth).square().mean().sqrt() for n in (8, 32))
    assert fine < 1e-3
    assert math.log(float(coarse / fine), 4) > 1.35


def test_ornstein_uhlenbeck_has_its_law() -> None:
    """Mean ``e^-theta`` and variance ``int e^(-2 theta (1 - s)) g^2 ds``, to 5 standard deviations of 4000 draws."""
    drawn = pathwise(64, falling=False, count=4000)
    rate = 2 * (THETA - DECAY)
    variance = math.exp(-2 * THETA) * math.expm1(rate) / rate
    assert abs(drawn.mean() - math.exp(-THETA)) < 5 * math.sqrt(variance / 4000)
    assert abs(drawn.var() / variance - 1) < 5 * math.sqrt(2 / 4000)


def test_noise_without_a_clock_is_a_unit_of_it() -> None:
    """g = 1: over a span of 2, whatever its direction and sign, the variance is 2."""
    for ends in ((0.0, 2.0), (2.0, 0.0), (-1.5, 0.5), (1.0, -1.0)):
        for refinable in (False, True):
            clock = torch.linspace(*ends, 8, dtype=DOUBLE)
            drawn = sa.solve(
                lambda s, y: torch.zeros_like(y),
                torch.zeros(4000, dtype=DOUBLE),
                clock=clock,
                solver=sa.Heun(),
                noise=sa.BrownianPath(1, refinable=refinable),
            )
            assert abs(drawn.var() / 2 - 1) < 5 * math.sqrt(2 / 4000)


@pytest.mark.parametrize(
    ("g", "integral", "ends"),
    [
        (lambda s: 0.5, lambda s: 0.25 * s, (0.0, 2.0)),
        (lambda s: torch.tensor(-0.5, dtype=DOUBLE), lambda s: 0.25 * s, (1.0, -2.0)),
        (lambda s: math.exp(-s), lambda s: -math.exp(-2 * s) / 2, (0.0, 3.0)),
        (lambda s: math.exp(-s), lambda s: -math.exp(-2 * s) / 2, (3.0, -1.0)),
        (lambda s: s**-0.25, lambda s: 2 * math.sqrt(s), (0.0, 1.0)),
        (lambda s: math.sqrt(0.1 + 19.9 * s), lambda s: 0.1 * s + 19.9 * s * s / 2, (1.0, 0.0)),
        (lambda s: 0.0, lambda s: 0.0, (0.0, 1.0)),
        (lambda s: 1.0 if s < 0.5 else 2.0, lambda s: s if s < 0.5 else 4 * s - 1.5, (0.0, 1.0)),
    ],
)
def test_noise_clocks_are_integrals(g: Any, integral: Any, ends: tuple[float, float]) -> None:
    clock = torch.linspace(*ends, 9, dtype=DOUBLE)
    got = sa.noise_clock(g, clock)
    want = torch.tensor(
        [abs(integral(s) - integral(ends[0])) for s in clock.tolist()], dtype=DOUBLE
    )
    assert got.dtype == DOUBLE
    assert got[0] == 0
    assert (got - want).abs().max() <= 1e-12 * max(1.0, float(want[-1]))
    assert torch.equal(sa.noise_clock(g, clock.tolist()), got)


# ---------------------------------------------------------------- against ``sample``

SCHEDULE = sa.VPLinear()


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver", [sa.Heun(), sa.ShARK(), sa.DPMSolverPP2M()], ids=repr)
def test_sample_is_solve_of_the_drift_in_the_frame(
    kind: str, eta: float, solver: sa.Solver
) -> None:
    frame, grid = (
        sa.Frame(SCHEDULE, eta, kind),
        sa.uniform_logsnr(SCHEDULE, 5, t_max=0.9, t_min=0.01),
    )
    network = nn.Linear(3, 3).double()
    denoiser = sa.Denoiser(lambda x, t, z: torch.tanh(network(x) + z), SCHEDULE)
    noise = sa.BrownianPath(2) if eta else None
    found = []
    for which in ("sample", "solve"):
        x_T, z = numbers(2, 3).requires_grad_(), numbers(3, seed=1).requires_grad_()
        if which == "sample":
            x0 = sa.sample(
                denoiser, x_T, frame=frame, grid=grid, solver=solver, noise=noise, cond={"z": z}
            )
        else:
            weights = frame.weight(grid)

            def drift(s: Tensor, y: Tensor, z: Tensor) -> Tensor:
                t = frame.time(s)
                return denoiser(frame.weight(t) * y, t, {"z": z}, prediction=frame.prediction)

            y = sa.solve(
                drift,
                x_T / weights[0],
                clock=frame.clock(grid),
                solver=solver,
                noise=noise,
                noise_clock=frame.noise_clock(grid) if eta else None,
                cond={"z": z},
            )
            x0 = weights[-1] * y
        found.append([x0, *torch.autograd.grad(x0.square().sum(), [x_T, z, *network.parameters()])])
    # The time is found again from the clock, which costs digits: 1e-10 of a smooth function of it.
    for one, two in zip(*found, strict=True):
        assert apart([two], [one]) <= 1e-9
