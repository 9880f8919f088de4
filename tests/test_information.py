"""O8 and O9 (theory/information.md): what linear functionals of a step leave unknown, by fractions and by sampling."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.solvers import RungeKutta
from theory import information
from theory.order_conditions import Coefficients

BOUNDS = {"SRA1()": Fraction(1, 30), "ShARK()": Fraction(1, 45)}
SOLVERS: dict[str, RungeKutta] = {repr(solver): solver for solver in (sa.SRA1(), sa.ShARK())}
each_solver = pytest.mark.parametrize("name", BOUNDS)


def kappa(m: int) -> float:
    """``2 sum_{k > m} (pi (k - 1/2))^-4``; all of them add up to 1/3."""
    return 1 / 3 - 2 * math.fsum((math.pi * (k - 0.5)) ** -4 for k in range(1, m + 1))


def coefficients(solver: RungeKutta) -> Coefficients:
    tableau = solver.tableau
    return Coefficients.of(tableau.a, tableau.b, tableau.c, tableau.noise, tableau.levy)


def test_fractions_of_the_table() -> None:
    found = [information.unknown(m) for m in (0, 1, 2, 3, 4)]
    assert found == [Fraction(1, 3), Fraction(1, 9), Fraction(7, 900), Fraction(4, 3675), Fraction(29, 79380)]
    for name, bound in BOUNDS.items():
        assert information.missed(coefficients(SOLVERS[name])) == bound


@pytest.mark.parametrize("m", range(1, 8))
def test_no_functionals_leave_less_than_those_of_karhunen_and_loeve(m: int) -> None:
    assert float(information.unknown(m)) > kappa(m) > 0
    assert kappa(m) == pytest.approx(2 / (3 * math.pi**4 * m**3), rel=0.5 / m**2)  # a midpoint rule


def test_the_fractions_by_matrices() -> None:
    """The kernels on 1000 midpoints: sums of min(s, t), which has a kink, are right to 1/1000^2."""
    n = 1000
    s = (np.arange(n) + 0.5) / n
    K0 = np.minimum.outer(s, s)
    bridge = s * (1 - s) / 2
    Q = np.outer(s, s) + 12 * np.outer(bridge, bridge)
    assert 2 * ((K0**2).mean() - (Q**2).mean()) == pytest.approx(7 / 900, abs=1e-6)
    assert 2 * ((K0 - Q) ** 2).mean() == pytest.approx(11 / 6300, abs=1e-6)
    # No projection of rank 2 does better than the one on the largest eigenvalues.
    eigenvalues = np.linalg.eigvalsh(K0 / n)
    assert 2 * (eigenvalues[:-2] ** 2).sum() == pytest.approx(kappa(2), abs=1e-6)


@each_solver
def test_what_a_step_makes_of_its_functionals(name: str) -> None:
    """On ``F = (0, y_1^2)`` the step itself is the quadratic form of O9."""

    def form(dB: float, H: float) -> float:
        interval = sa.Interval(0.0, 1.0, torch.tensor([dB, 0.0]).double(), torch.tensor([H, 0.0]).double())
        drift: Callable[[float, Tensor], Tensor] = lambda s, y: torch.stack([0 * y[0], y[0] ** 2])  # noqa: E731
        return float(SOLVERS[name].step(drift, interval, torch.zeros(2).double(), ())[0][1])

    a, c = form(1, 0), form(0, 1)
    mixed = form(1, 1) - a - c
    variance = 2 * (a - 1 / 3) ** 2 + (mixed - 1) ** 2 / 12 + 2 * (c - 6 / 5) ** 2 / 144
    assert a + c / 12 == pytest.approx(1 / 2, abs=1e-14)  # the mean is right
    assert 7 / 900 + variance == pytest.approx(float(BOUNDS[name]), abs=1e-14)


def test_the_best_runge_kutta_method() -> None:
    """Three stages reach 11/900, and changes of (n, l) that keep O4's conditions make it larger."""

    def method(turn: float, stretch: float = 0.0) -> Coefficients:
        angles = [turn + 2 * math.pi * i / 3 for i in range(3)]
        # Unit vectors at 120 degrees have covariances 1/2.
        spread_n, spread_l = math.sqrt(2 * (7 / 60 + stretch)), math.sqrt(2 * (3 / 5 - 12 * stretch))
        n = tuple(Fraction(0.5 + spread_n * math.cos(angle)) for angle in angles)
        area = tuple(Fraction(1.0 + spread_l * math.sin(angle)) for angle in angles)
        third, zero = Fraction(1, 3), Fraction(0)
        a = ((zero,) * 3, (Fraction(1, 2), zero, zero), (zero, Fraction(1), zero))
        return Coefficients(a, (third,) * 3, (zero, Fraction(1, 2), Fraction(1)), n, area)

    for turn in (0.0, 0.4):
        assert float(information.missed(method(turn))) == pytest.approx(11 / 900, abs=1e-14)
        for stretch in (-0.02, 0.02):
            found = float(information.missed(method(turn, stretch)))
            assert found == pytest.approx(11 / 900 + 4 * stretch**2, abs=1e-14)


# ---------------------------------------------------------------- sampled


def paths(count: int, steps: int, fine: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """``M`` at the finest nodes, and dB, H of each step of length ``1 / steps``, with the length of a fine step."""
    generator = torch.Generator().manual_seed(seed)
    dt = 1 / (steps * fine)
    pieces = torch.randn(count, steps, fine, generator=generator, dtype=torch.float64) * math.sqrt(dt)
    within = torch.randn(count, steps, fine, generator=generator, dtype=torch.float64) * math.sqrt(dt / 12)
    ends = pieces.cumsum(-1)
    dB = ends[..., -1]
    # The mean of W over the step is that of its fine steps': chord's middle and their own Levy areas.
    H = (ends - pieces / 2 + within).mean(-1) - dB / 2
    starts = dB.cumsum(-1) - dB
    nodes = torch.cat([starts[..., None], starts[..., None] + ends], -1)
    return nodes, dB, H, (nodes[..., :-1] + pieces / 2 + within)  # the last: means of M over the fine steps


def test_the_constant_by_regression() -> None:
    """What ``1, dB^2, dB H, H^2`` leave of ``int W^2`` in 20000 samples, of fine steps that add ``1/64^3`` of it."""
    _, dB, H, means = paths(20_000, 1, 64, seed=1)
    dB, H = dB[:, 0], H[:, 0]
    # E int W^2 over a fine step, given its ends and its mean, is the mean's square and a variance that is constant
    # up to terms that are uncorrelated.
    target = means[:, 0].square().mean(-1)
    features = torch.stack([torch.ones_like(dB), dB**2, dB * H, H**2], 1)
    solution = torch.linalg.lstsq(features, target[:, None]).solution
    rest = (target - (features @ solution)[:, 0]).square()
    error = 4 * float(rest.std()) / math.sqrt(len(rest))
    assert float(rest.mean()) == pytest.approx(7 / 900, abs=error)
    assert error < 0.1 * 7 / 900
    # Coefficients have standard errors of 0.0016 / E-norms; fine steps move them by 1/64^2.
    assert solution[:, 0].tolist() == pytest.approx([1 / 15, 1 / 3, 1, 6 / 5], abs=0.05)


def test_errors_at_the_end_have_their_constants() -> None:
    """``f = cos``, 64 steps: SRA1, ShARK and the conditional mean against ``const sum h^4 E (cos M / 2)^2``."""
    steps, fine = 64, 16
    h = 1 / steps
    nodes, dB, H, means = paths(4000, steps, fine, seed=2)
    starts = nodes[..., 0]
    # Of a fine step the cosine of its mean, and half the variance about it: dt / 6 with the chord's, on average.
    dt = h / fine
    exact = (means.cos() * (1 - dt / 12)).mean(-1).sum(-1) * h
    square = dB**2 / 3 + dB * H + 6 / 5 * H**2 + h / 15
    best = (h * (starts.cos() - starts.sin() * (dB / 2 + H) - starts.cos() / 2 * square)).sum(-1)
    unit = float((starts.cos() / 2).square().mean(0).sum()) * h**4
    found = {"best": float((best - exact).square().mean()) / unit}
    for name, solver in SOLVERS.items():
        y = torch.zeros(len(dB), 2, dtype=torch.float64)
        for n in range(steps):
            noise = [torch.stack([part[:, n], 0 * part[:, n]], 1) for part in (dB, H)]
            interval = sa.Interval(n * h, (n + 1) * h, *noise)
            y, _ = solver.step(lambda s, y: torch.stack([0 * y[:, 0], y[:, 0].cos()], 1), interval, y, ())
        found[name] = float((y[:, 1] - exact).square().mean()) / unit
    # 4000 squares of nearly normal numbers: a standard error of sqrt(2 / 4000) = 2.2 %, of which four; and terms of
    # relative size h, as that of the third derivative, (E sin^2 / E cos^2) (Var int W^3 / 36) / (7 / 900 / 4) h.
    expected = {"best": 7 / 900} | {name: float(bound) for name, bound in BOUNDS.items()}
    for name, bound in expected.items():
        assert found[name] == pytest.approx(bound, rel=0.09 + 2 * h), found
