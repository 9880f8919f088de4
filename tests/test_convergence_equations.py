"""Studies of equations other than diffusions: closed forms, orders, an equation of one's own, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.convergence import Driven, Gradient, Paths, Reverse, RoundTrip, Setting, Study, Weak, measure, settings
from sdeadjoint.convergence.exact import Linear, LinearSolution, downhill
from sdeadjoint.convergence.settings import EQUATIONS

F64 = torch.float64
NAMED: dict[str, Callable[[float], Setting]] = {name: getattr(settings, name) for name in EQUATIONS}


def steps_of(solver: sa.Solver, eta: float) -> tuple[int, ...]:
    return (16, 32, 64, 128) if eta or solver.claims.ode < 4 else (4, 8, 16, 32)


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.RK4(), sa.ShARK()], ids=repr)
def test_claims_hold_on_equations(solver: sa.Solver, eta: float, name: str) -> None:
    result = measure(Study(solver, NAMED[name](eta), steps=steps_of(solver, eta), paths=100, finer=2))
    assert result.verdict.claimed == (solver.claims.strong if eta else solver.claims.ode)
    assert result.verdict.holds, result
    if solver == sa.Euler():  # so that the study tells orders apart
        assert result.interval[1] < 1.3


@pytest.mark.parametrize("ends", [(0.0, 2.0), (1.5, -0.5)])
@pytest.mark.parametrize("name", EQUATIONS)
def test_closed_forms_without_noise(name: str, ends: tuple[float, float]) -> None:
    """Against scipy's DOP853, whose tolerance 1e-12 leaves some 1e-11."""
    made = NAMED[name](0.0)
    equation = replace(made.equation, ends=ends)  # type: ignore[type-var, call-arg]
    assert isinstance(equation, Driven)
    exact = LinearSolution(equation) if isinstance(equation.drift, Linear) else made.exact
    # Backwards the double well throws what is outside of (-1, 1) to infinity.
    start, grid = (1.0 if ends[0] < ends[1] else 0.2) * made.start(5, 0), equation.grid(4)

    def right(s: float, y: Any) -> Any:
        return equation.drift(torch.tensor(s, dtype=F64), torch.from_numpy(y.reshape(start.shape))).numpy().reshape(-1)

    found = solve_ivp(right, ends, start.numpy().reshape(-1), method="DOP853", rtol=1e-12, atol=1e-12)
    assert exact is not None
    np.testing.assert_allclose(exact(start, grid, None).numpy().reshape(-1), found.y[:, -1], rtol=0, atol=1e-10)


def test_the_linear_closed_form_knows_all_but_what_the_path_hides() -> None:
    """A coarse grid's increments and areas hide ``sum_n h^5 f''^2 / 720`` of the variance of ``int f dB``.

    Here f = e^(s - 2) on s in [1, 2] with steps of 1/8. That is the leading term, whose relative error is of the order
    of h^2; four standard deviations of a variance over 20000 paths are 4 %.
    """
    setting = settings.ornstein_uhlenbeck()
    grid = setting.equation.grid(64)
    nu = setting.equation.noise_clock(grid)
    assert nu is not None
    assert setting.exact is not None
    fine = Paths.draw(nu, (20000, 1), 0)
    start = setting.start(20000, 1)
    ends = [setting.exact(start, grid[::k], fine.coarsened(k).noise()) for k in (1, 8)]
    h = 1 / 8
    known = sum(h**5 * math.exp(2 * ((n + 0.5) * h - 1)) / 720 for n in range(8))
    assert float((ends[0] - ends[1]).var()) == pytest.approx(known, rel=0.04 + h**2)
    # The law at the end: mean 1/2 (1 - e^-1), variance e^-2 + (1 - e^-2) / 2, of which 0.76 is the deviation.
    assert float(ends[0].mean()) == pytest.approx((1 - math.exp(-1)) / 2, abs=4 * 0.76 / 20000**0.5)
    assert float(ends[0].var()) == pytest.approx((1 + math.exp(-2)) / 2, rel=0.04)


def test_noise_gradients_and_round_trips_of_equations() -> None:
    steps = (8, 16, 32)
    for quantity in (Gradient(adjoint=sa.Direct()), Gradient("noise", adjoint=sa.Direct()), Weak(), RoundTrip()):
        result = measure(Study(sa.Heun(), settings.double_well(), quantity, steps=steps, paths=200, finer=4))
        assert result.verdict.outcome != "violated", result
    back = measure(Study(sa.ReversibleHeun(), settings.linear(), RoundTrip(), steps=steps, paths=30))
    assert back.verdict.holds, back


class Pulled(nn.Module):
    """``tanh(W y) + z - y``: a drift with weights and conditioning."""

    def __init__(self) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.tensor([[0.6, -0.4], [0.3, 0.8]], dtype=F64))

    def forward(self, s: Tensor, y: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(y @ self.W.T) + z - y


def fading(s: float) -> float:
    return 0.8 * math.exp(-s)


def pulled(diffusion: Any = fading, ends: tuple[float, float] = (0.0, 1.0)) -> Setting:
    cond = {"z": torch.tensor([0.2, -0.1], dtype=F64)}
    return Setting(Driven(Pulled(), ends, diffusion), (2,), cond=cond)


@pytest.mark.parametrize("ends", [(0.0, 1.0), (1.0, 0.0)])
def test_an_equation_of_ones_own(ends: tuple[float, float]) -> None:
    setting = pulled(ends=ends)
    assert setting.title == "Pulled, noise that changes with the clock"
    for solver in (sa.Euler(), sa.ShARK()):
        result = measure(Study(solver, setting, steps=(16, 32, 64), paths=100))
        assert result.verdict.outcome != "violated", result
        assert result.slope > solver.claims.strong - 0.15
    for of in ("cond", "weights"):
        quantity = Gradient(of, adjoint=sa.Direct(), block=5)
        assert measure(Study(sa.Heun(), setting, quantity, steps=(8, 16, 32), paths=100, finer=2)).slope > 0.7


def test_members_of_a_family() -> None:
    setting = settings.ornstein_uhlenbeck()
    half, none = setting.member_of(0.5, None), setting.member_of(0.0, None)
    assert setting.member_of(1.0, None) is setting.member_of(None, None) is setting
    assert (half.exact, none.exact) == (None, None)
    assert (half.is_noisy, none.is_noisy) == (True, False)
    grid = setting.equation.grid(4)
    for made in (setting, pulled()):
        whole, part = (m.equation.noise_clock(grid) for m in (made, made.member_of(0.5, None)))
        assert whole is not None
        assert part is not None
        torch.testing.assert_close(part, 0.5 * whole, rtol=1e-12, atol=0)
    with pytest.raises(ValueError, match="only diffusions have kinds"):
        setting.member_of(None, "flow")
    with pytest.raises(ValueError, match=r"eta: got -1"):
        setting.member_of(-1.0, None)


def test_a_diffusion_is_what_sample_solves() -> None:
    setting = settings.mild(1.0, "flow")
    equation = setting.equation
    assert isinstance(equation, Reverse)
    x_T, grid = setting.start(3, 0), equation.grid(6)
    nu = equation.noise_clock(grid)
    assert nu is not None
    noise = Paths.draw(nu, x_T.shape, 0).noise()
    solved = sa.solve(equation.on(grid, x_T, {}), x_T, solver=sa.Heun(), noise=noise)
    sampled = sa.sample(equation.denoiser, x_T, frame=equation.frame, grid=grid, solver=sa.Heun(), noise=noise)
    assert torch.equal(solved, sampled)


@dataclass(frozen=True)
class Wrong(sa.Euler):
    """Euler's method that promises order 2."""

    claims: ClassVar[sa.Claims] = sa.Claims(ode=2, strong=1.5, evaluations=1, levy="space-time")


@pytest.mark.parametrize("name", EQUATIONS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_wrong_claims_are_found(name: str, eta: float) -> None:
    assert measure(Study(Wrong(), NAMED[name](eta), steps=(16, 32, 64), paths=50)).verdict.outcome == "violated"


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Setting(downhill, ()), r"equation: got function; pass Driven\(drift"),
        (lambda: Driven(nn.Linear), "drift: got <class"),
        (lambda: Driven(downhill, (1.0, 1.0)), "ends: got"),
        (lambda: Driven(downhill, (0.0, math.inf)), "ends: got"),
        (lambda: Driven(downhill, diffusion=-0.5), "diffusion: got -0.5"),
        (lambda: Study(sa.Heun(), settings.linear(), Gradient("weights")), "no parameters"),
        (lambda: Study(sa.Heun(), settings.linear(0.0), Gradient("noise")), "pass a setting with noise"),
    ],
)
def test_refusals(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises((TypeError, ValueError), match=sentence):
        make()
