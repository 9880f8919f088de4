"""Frames: their weights and clocks against the reverse equations they are to solve, and the law of what is sampled."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from typing import Any, NamedTuple

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.diffusion.frames import KINDS
from sdeadjoint.testing import strategies

EPS = torch.finfo(torch.float64).eps
ETAS = [0.0, 0.25, 1.0, 2.0]
SCHEDULES = [sa.VPLinear(), sa.VPCosine(), sa.VE(), sa.RectifiedFlow()]


def f64(values: object) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def frames_and_times(draw: st.DrawFn) -> tuple[sa.Frame, Tensor]:
    frame = draw(strategies.frames())
    return frame, draw(strategies.grids(frame.schedule))


class Rates(NamedTuple):
    """Functions of the frame and the schedule at some times, with their derivatives in t by autograd."""

    frame: sa.Frame
    t: Tensor

    def of(self, function: str) -> tuple[Tensor, Tensor]:
        t = self.t.clone().requires_grad_()
        owner = self.frame if hasattr(self.frame, function) else self.frame.schedule
        value = getattr(owner, function)(t)
        if not value.requires_grad:
            return value, torch.zeros_like(value)
        return value.detach(), torch.autograd.grad(value.sum(), t)[0]

    def lost(self) -> tuple[Tensor, Tensor]:
        """What autograd loses in the derivatives of the two clocks, as multiples of their round-off.

        The flow kind's s is a difference from 1, and the derivative of its nu is a difference of terms r times larger.
        """
        r = (-self.of("lam")[0]).exp()
        if self.frame.kind != "flow":
            return torch.ones_like(r), torch.ones_like(r)
        return (1 + r) ** (1 + self.frame.eta), (1 + r) / r

    def differenced(self) -> Tensor:
        """What autograd loses in every derivative in t, as a multiple of its round-off.

        It differentiates a tabulated angle's Bernstein form term by term: terms of the angle's size for a sum of the
        size of its change over one index, ``|dphi/dt| = alpha sigma |dlam/dt|``.
        """
        if not isinstance(self.frame.schedule, sa.Tabulated):
            return torch.ones_like(self.t)
        alpha, sigma = (self.of(name)[0] for name in ("alpha", "sigma"))
        angle = torch.atan2(torch.maximum(alpha, sigma), torch.minimum(alpha, sigma))
        return 1 + angle / (alpha * sigma * self.of("lam")[1].abs())


def reverse_drift(kind: str, eta: float, x: float, F: float, rates: Rates) -> Tensor:
    """``(dlog alpha/dt) x - (1 + eta)/2 g^2 score`` where the network predicts F at x, from the definitions alone."""
    alpha, sigma = (rates.of(name)[0] for name in ("alpha", "sigma"))
    eps = {"data": (x - alpha * F) / sigma, "noise": F + 0 * alpha, "flow": (x + alpha * F) / (alpha + sigma)}[kind]
    g2 = -2 * sigma**2 * rates.of("lam")[1]
    return rates.of("log_alpha")[1] * x + (1 + eta) / 2 * g2 * eps / sigma


def close(got: Tensor, want: Tensor, size: Tensor) -> None:
    """To 200 ulps of the terms involved: chains of some twenty roundings, exponents below 20 among them."""
    assert ((got - want).abs() <= 200 * EPS * size).all(), (got, want)


# ---------------------------------------------------------------- weight and clocks


@given(frames_and_times())
def test_weight_and_clocks_solve_the_reverse_equation(case: tuple[sa.Frame, Tensor]) -> None:
    frame, grid = case
    rates = Rates(frame, grid)
    (w, dw), (_, ds), (_, dnu) = (rates.of(name) for name in ("weight", "clock", "noise_clock"))
    dlam, size = rates.of("lam")[1], rates.of("log_alpha")[1].abs() + 3 * rates.of("lam")[1].abs()
    # dx = w dy + (dw/w) x: dw/w is the drift's coefficient of x, w ds/dt that of F, and w^2 |dnu/dt| = eta g^2.
    close(dw / w, reverse_drift(frame.kind, frame.eta, 1.0, 0.0, rates), size * rates.differenced())
    expected = reverse_drift(frame.kind, frame.eta, 0.0, 1.0, rates)
    in_s, in_nu = (lost * rates.differenced() for lost in rates.lost())
    close(w * ds, expected, expected.abs() * in_s)
    variance = 2 * frame.eta * rates.of("sigma")[0] ** 2 * dlam
    close(w**2 * dnu, variance, variance.abs() * in_nu)


@given(frames_and_times(), st.floats(0.1, 3.0), st.floats(0.1, 2.0))
def test_the_frame_keeps_the_marginals_of_gaussian_data(case: tuple[sa.Frame, Tensor], v: float, m: float) -> None:
    # F = A y + b for Gaussian data, so that mean and variance of y obey dM = (A M + b) ds, dV = 2 A V ds + dnu.
    # Those of the forward process, M = alpha m / w and V = (alpha^2 v + sigma^2) / w^2, must satisfy both.
    frame, grid = case
    rates = Rates(frame, grid)
    (alpha, _), (sigma, _), (w, _) = (rates.of(name) for name in ("alpha", "sigma", "weight"))
    P = alpha**2 * v + sigma**2
    x0 = sigma**2 / P * m, alpha * v / P  # E[x_0 | x] at x = 0, and its slope
    eps = -alpha * x0[0] / sigma, sigma / P
    b, slope = {"data": x0, "noise": eps, "flow": (eps[0] - x0[0], eps[1] - x0[1])}[frame.kind]
    A, terms = w * slope, w * (sigma + alpha * v) / P  # slope's own two terms may cancel
    t = grid.clone().requires_grad_()
    M = frame.schedule.alpha(t) * m / frame.weight(t) + 0 * t
    V = (frame.schedule.alpha(t) ** 2 * v + frame.schedule.sigma(t) ** 2) / frame.weight(t) ** 2
    dM, dV = (torch.autograd.grad(value.sum(), t, retain_graph=True)[0] for value in (M, V))
    M, V = M.detach(), V.detach()
    ds, dnu = rates.of("clock")[1], rates.of("noise_clock")[1]
    in_s, in_nu = (lost * rates.differenced() for lost in rates.lost())
    rate = (rates.of("log_alpha")[1].abs() + 3 * rates.of("lam")[1].abs()) * rates.differenced()
    close(dM, (A * M + b) * ds, M.abs() * rate + (terms * M.abs() + b.abs()) * ds.abs() * in_s)
    close(dV, 2 * A * V * ds + dnu, 4 * V * rate + 2 * terms * V * ds.abs() * in_s + dnu.abs() * in_nu)


@given(frames_and_times())
def test_time_inverts_the_clock(case: tuple[sa.Frame, Tensor]) -> None:
    frame, grid = case
    s, (lam, dlam) = frame.clock(grid), Rates(frame, grid).of("lam")
    back = frame.time(s)
    # Round-off of s, of lambda and of t, each expressed in lambda. Near alpha = 0 the flow kind's s rounds to 1.
    bound = 32 * EPS * (lam.abs() + (grid * dlam).abs() + Rates(frame, grid).lost()[0])
    assert ((frame.schedule.lam(back) - lam).abs() <= bound).all()
    assert frame.time(float(s[0])).shape == ()
    assert (frame.time(float(s[0])) - back[0]).abs() * dlam[0].abs() <= bound[0]


@given(frames_and_times())
def test_clocks_are_monotone(case: tuple[sa.Frame, Tensor]) -> None:
    frame, grid = case
    ds, dnu = frame.clock(grid).diff(), frame.noise_clock(grid).diff()
    assert (ds > 0).all() if frame.kind == "data" else (ds < 0).all()
    assert (dnu == 0).all() if frame.eta == 0 else (dnu > 0).all()
    assert (frame.weight(grid) > 0).all()


@given(strategies.schedules(), st.data())
def test_flow_kind_without_noise_is_the_flow_itself(schedule: sa.Schedule, data: st.DataObject) -> None:
    grid, frame = data.draw(strategies.grids(schedule)), sa.Frame(schedule, kind="flow")
    alpha, sigma = schedule.alpha(grid), schedule.sigma(grid)
    torch.testing.assert_close(frame.weight(grid), alpha + sigma, rtol=4 * EPS, atol=0)
    torch.testing.assert_close(frame.clock(grid), sigma / (alpha + sigma), rtol=32 * EPS, atol=0)
    if isinstance(schedule, sa.RectifiedFlow):
        torch.testing.assert_close(frame.weight(grid), torch.ones_like(grid), rtol=8 * EPS, atol=0)
        torch.testing.assert_close(frame.clock(grid), grid, rtol=32 * EPS, atol=0)


@given(frames_and_times())
def test_the_table_of_the_documentation(case: tuple[sa.Frame, Tensor]) -> None:
    frame, grid = case
    alpha, sigma, e = frame.schedule.alpha(grid), frame.schedule.sigma(grid), frame.eta
    snr, r = alpha / sigma, sigma / alpha
    w, s, nu = {
        "data": (sigma * snr**-e, snr ** (1 + e), snr ** (2 * e)),
        "noise": (alpha, (1 + e) * r, -e * r**2),
        "flow": (
            alpha * (1 + r) ** (1 + e),
            1 - (1 + r) ** -(1 + e),
            (1 + r) ** (-2 * e) * (1 - 2 * e / (1 + 2 * e) / (1 + r)) if e else 0 * r,
        ),
    }[frame.kind]
    for got, want in ((frame.weight(grid), w), (frame.clock(grid), s)):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-15)
    if e > 0:
        torch.testing.assert_close(frame.noise_clock(grid), nu, rtol=1e-12, atol=0)


def test_in_the_data_kind_with_eta_1_both_clocks_are_one() -> None:
    frame = sa.Frame(sa.VPLinear(), eta=1.0)
    grid = sa.uniform_logsnr(frame.schedule, 10)
    assert torch.equal(frame.clock(grid), frame.noise_clock(grid))


# ---------------------------------------------------------------- the law of samples


def law(frame: sa.Frame, grid: Tensor, solver: sa.Solver, v: float, m: float) -> tuple[float, float]:
    """Mean and variance of the sampler's output for Gaussian data and perfect starts, exactly.

    The sampler is an affine function of x_T and of the increments, so its gradient says how variances add up.
    """
    alpha, sigma = (float(f(grid[0])) for f in (frame.schedule.alpha, frame.schedule.sigma))
    x_T = f64([alpha * m]).requires_grad_()
    dB = torch.zeros(len(grid) - 1, 1, dtype=torch.float64, requires_grad=True)
    noise = sa.FixedNoise(dB) if frame.eta > 0 else None
    denoiser = sa.problems.Gaussian(m, v).denoiser(frame.schedule)
    x = sa.sample(denoiser, x_T, frame=frame, grid=grid, solver=solver, noise=noise, adjoint=sa.Direct())
    by_x, by_dB = torch.autograd.grad(x.sum(), (x_T, dB), allow_unused=True)
    variance = float(by_x) ** 2 * (alpha**2 * v + sigma**2)
    if by_dB is not None:
        variance += float((by_dB[:, 0] ** 2 * frame.noise_clock(grid).diff()).sum())
    return float(x.detach()), variance


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("schedule", [sa.VPLinear(), sa.RectifiedFlow()], ids=repr)
def test_samples_have_the_law_of_the_data(schedule: sa.Schedule, eta: float, kind: str) -> None:
    frame, v, m = sa.Frame(schedule, eta=eta, kind=kind), 0.5, 0.7
    errors = []
    for steps in (40, 80) if eta == 2 else (20, 40):
        t_max, t_min = schedule.time(f64([-2.0, 1.5])).tolist()
        grid = sa.uniform_logsnr(schedule, steps, t_max=t_max, t_min=t_min)
        mean, variance = law(frame, grid, sa.Heun(), v, m)
        alpha, sigma = float(schedule.alpha(grid[-1])), float(schedule.sigma(grid[-1]))
        assert mean == pytest.approx(alpha * m, rel=100 * EPS)  # where the prediction does not change along the path
        errors.append(variance - alpha**2 * v - sigma**2)
    # Heun's law is of order 2, with an error of 8e-3 at most on the finer grid; what extrapolation leaves of it is of
    # order 3, and largest for eta = 2.
    assert abs(4 * errors[1] - errors[0]) / 3 < 5e-4


@pytest.mark.parametrize("kind", ["data", "flow"])
@pytest.mark.parametrize("eta", ETAS)
@pytest.mark.parametrize("schedule", [sa.RectifiedFlow(), sa.VPCosine()], ids=repr)
def test_the_start_at_alpha_zero_is_regular(schedule: sa.Schedule, eta: float, kind: str) -> None:
    frame = sa.Frame(schedule, eta=eta, kind=kind)
    assert frame.clock(1.0) == (0 if kind == "data" else 1)
    assert frame.weight(1.0) == (1 if eta == 0 else math.inf)
    assert frame.noise_clock(1.0) == 0
    inner = sa.uniform_logsnr(
        schedule, 79 if eta == 2 else 39, t_max=float(schedule.time(-5.0)), t_min=float(schedule.time(3.0))
    )
    mean, variance = law(frame, torch.cat([f64([1.0]), inner]), sa.Heun(), 0.5, 0.7)
    alpha, sigma = float(schedule.alpha(inner[-1])), float(schedule.sigma(inner[-1]))
    assert abs(mean - alpha * 0.7) < 2e-2
    assert abs(variance - alpha**2 * 0.5 - sigma**2) < 2e-2


@given(st.sampled_from(SCHEDULES), strategies.etas(), strategies.kinds())
def test_clean_data_is_a_finite_point_of_the_noise_and_flow_kinds_only(
    schedule: sa.Schedule, eta: float, kind: str
) -> None:
    frame = sa.Frame(schedule, eta=eta, kind=kind)
    assert frame.clock(0.0) == (math.inf if kind == "data" else 0)
    assert frame.weight(0.0) == (0 if kind == "data" else 1)
    end = {"data": math.inf, "noise": 0.0, "flow": 1 / (1 + 2 * eta)}[kind]
    assert float(frame.noise_clock(0.0)) == pytest.approx(end if eta > 0 else 0.0, rel=2 * EPS)


def test_noise_kind_is_refused_at_alpha_zero() -> None:
    frame = sa.Frame(sa.RectifiedFlow(), kind="noise")
    denoiser = sa.problems.Gaussian(0.0, 1.0).denoiser(frame.schedule)
    with pytest.raises(ValueError, match=r"the noise kind is singular; pass Frame\(\.\.\., kind='data'\)"):
        sa.sample(denoiser, torch.zeros(2), frame=frame, grid=[1.0, 0.5], solver=sa.Euler())


@pytest.mark.parametrize(("eta", "kind", "grid"), [(300.0, "data", [1.0, 0.5, 1e-3]), (2.0, "flow", [1e8, 9e7, 1.0])])
def test_clocks_that_float64_cannot_hold_or_tell_apart_are_refused(eta: float, kind: str, grid: list[float]) -> None:
    frame = sa.Frame(sa.VE(), eta=eta, kind=kind)
    denoiser = sa.problems.Gaussian(0.0, 1.0).denoiser(frame.schedule)
    with pytest.raises(ValueError, match="pass a grid with larger steps or less extreme ends, or a smaller eta"):
        sa.sample(denoiser, torch.zeros(2), frame=frame, grid=grid, solver=sa.Euler(), noise=sa.BrownianPath(0))


@pytest.mark.parametrize(("eta", "refused"), [(2.0, False), (3.0, True)])
def test_the_noisy_end_of_the_flow_kind_keeps_half_the_digits_or_is_refused(eta: float, refused: bool) -> None:
    schedule = sa.RectifiedFlow()
    denoiser = sa.Denoiser(lambda x, t: torch.ones_like(x), schedule, prediction="flow_prediction")
    frame, grid = sa.Frame(schedule, eta=eta, kind="flow"), sa.uniform_logsnr(schedule, 20)[:2]
    still = sa.FixedNoise(torch.zeros(1, 1, dtype=torch.float64))
    start = torch.zeros(1, dtype=torch.float64)
    if refused:
        with pytest.raises(ValueError, match=r"loses more than half of float64's digits .*kind='data'"):
            sa.sample(denoiser, start, frame=frame, grid=grid, solver=sa.Euler(), noise=still)
        return
    got = sa.sample(denoiser, start, frame=frame, grid=grid, solver=sa.Euler(), noise=still)
    t0, t1 = (Fraction(t) for t in grid.tolist())  # 1 + r = 1 / (1 - t), so that all powers are whole
    want = (1 - t1) ** -2 * ((1 - t0) ** 3 - (1 - t1) ** 3)
    assert abs(float(got) - float(want)) < EPS**0.5


@pytest.mark.parametrize("eta", [0.5, 2.0, 8.0])
def test_every_step_of_the_flow_kind_injects_its_noise(eta: float) -> None:
    schedule = sa.RectifiedFlow()
    t = sa.uniform_logsnr(schedule, 50)
    got = sa.Frame(schedule, eta=eta, kind="flow").noise_clock(t).diff().tolist()
    with mp.workdps(60):
        # 1 + r = 1 / (1 - t): dnu = 2 eta r (1 + r)^(-2 - 2 eta) |dr| = 2 eta t (1 - t)^(2 eta - 1) |dt|.
        for value, (t0, t1) in zip(got, itertools.pairwise(t.tolist()), strict=True):
            want = mp.quad(lambda u: 2 * eta * u * (1 - u) ** (2 * eta - 1), [t1, t0])
            # nu is below (1 + r)^(-2 eta): some ten roundings of it, and of its exponent.
            exponent = -2 * eta * mp.log(1 - mp.mpf(t1))
            assert abs(mp.mpf(value) - want) <= 32 * EPS * (1 + exponent) * mp.exp(-exponent), (t0, t1)
            assert value > 0


# ---------------------------------------------------------------- the door


@settings(max_examples=30)
@given(frames_and_times(), st.sampled_from([(), (1,), (0,), (2, 3)]), st.sampled_from([torch.float64, torch.float32]))
def test_shapes_and_dtypes(case: tuple[sa.Frame, Tensor], shape: tuple[int, ...], dtype: torch.dtype) -> None:
    frame, t = case[0], torch.full(shape, float(case[1].mean()), dtype=dtype)
    for value in (frame.weight(t), s := frame.clock(t), frame.noise_clock(t), frame.time(s)):
        assert (value.shape, value.dtype) == (shape, torch.float64)
    for value in (frame.weight(number := float(case[1][0])), frame.clock(number), frame.noise_clock(number)):
        assert (value.shape, value.dtype) == ((), torch.float64)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"schedule": "vp"}, TypeError, r"schedule: got str; pass a Schedule such as VPLinear\(\)"),
        ({"kind": "epsilon"}, ValueError, r"kind: got 'epsilon'; pass one of \('data', 'noise', 'flow'\)"),
        ({"eta": True}, TypeError, "eta: got True; pass a number"),
        ({"eta": "1"}, TypeError, "eta: got '1'; pass a number"),
        ({"eta": None}, TypeError, "eta: got None; pass a number"),
        ({"eta": -0.1}, ValueError, "eta: got -0.1; pass a finite number >= 0"),
        ({"eta": math.nan}, ValueError, "eta: got nan; pass a finite number >= 0"),
        ({"eta": math.inf}, ValueError, "eta: got inf; pass a finite number >= 0"),
    ],
)
def test_bad_arguments_are_refused(arguments: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sa.Frame(**{"schedule": sa.VPLinear(), **arguments})  # type: ignore[arg-type]


@pytest.mark.parametrize("eta", [1, Fraction(1, 2), np.float32(0.5)])
def test_eta_is_a_float_whatever_number_was_given(eta: Any) -> None:
    frame = sa.Frame(sa.VPLinear(), eta)
    assert type(frame.eta) is float
    assert repr(frame) == repr(sa.Frame(sa.VPLinear(), float(eta)))


def test_times_outside_the_schedule_are_refused() -> None:
    for function in ("weight", "clock", "noise_clock"):
        with pytest.raises(ValueError, match=r"t must lie in \[0.0, 1.0\]"):
            getattr(sa.Frame(sa.VPLinear()), function)(1.5)
    # Clocks far beyond the noisy end, where r = sigma / alpha is 150.
    for kind, s in (("data", 1e-9), ("noise", 1e9), ("flow", 1 - 1e-9)):
        with pytest.raises(ValueError, match="lam must lie in"):
            sa.Frame(sa.VPLinear(), kind=kind).time(s)
