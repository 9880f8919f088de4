"""Exactly solvable problems, against quadrature, root-finding-free definitions, an ODE integrator and brute force."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import integrate, stats
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from sdeadjoint.diffusion.frames import Frame
from sdeadjoint.diffusion.grids import uniform_logsnr, uniform_time
from sdeadjoint.diffusion.schedules import VE, RectifiedFlow, Schedule, VPCosine, VPLinear
from sdeadjoint.noise import BrownianPath, FixedNoise
from sdeadjoint.problems import Digits, Gaussian, Mixture, Problem

EPS = torch.finfo(torch.float64).eps
SCHEDULES = [VPLinear(), VPCosine(), VE(), RectifiedFlow()]
SCALAR = Mixture([0.3, 0.6, 0.1], [-1.0, 1.0, 0.2], [0.04, 0.1, 0.5])
DIGITS = Digits()
CLASSES = Digits(conditional=True)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Gaussians and mixtures over all event shapes and kinds of variance."""
    event = tuple(draw(st.lists(st.integers(1, 3), max_size=3)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    components = draw(st.integers(0, 4))

    def tensor(shape: tuple[int, ...], low: float, high: float) -> Tensor:
        return torch.from_numpy(rng.uniform(low, high, shape))

    if components == 0:
        v = draw(st.sampled_from([(), event, event[1:]]))
        return Gaussian(tensor(event, -2, 2), tensor(v, 0.1, 2.0))
    v = draw(st.sampled_from([(), (components,), (components, *event)]))
    return Mixture(tensor((components,), 0.1, 1.0), tensor((components, *event), -2, 2), tensor(v, 0.1, 2.0))


def state(problem: Problem, seed: int = 0, batch: int = 3) -> Tensor:
    return randn(batch, *problem.event_shape, seed=seed)


# --- score, posterior mean, density ---------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(SCHEDULES), st.floats(0.0, 1.0), st.booleans())
def test_score_is_the_gradient_of_log_prob_and_gives_tweedies_mean(
    problem: Problem, schedule: Schedule, where: float, per_sample: bool
) -> None:
    high = min(schedule.domain[1], 10.0)
    x = state(problem).requires_grad_()
    t = where * high * torch.tensor([1.0, 0.9, 0.1], dtype=torch.float64) if per_sample else where * high
    (expected,) = torch.autograd.grad(problem.log_prob(x, t, schedule).sum(), x)
    score = problem.score(x, t, schedule)
    assert score.shape == x.shape
    # |x - alpha m| / P is at most 100, and cancels a few digits of it between components.
    close(score, expected, 1e4 * EPS)
    # Tweedie: alpha E[x_0 | x] = x + sigma^2 score, true at both ends as well.
    alpha, sigma = (
        torch.as_tensor(f(t)).expand(3).reshape(3, *[1] * (x.ndim - 1)) for f in (schedule.alpha, schedule.sigma)
    )
    mean = problem.denoiser(schedule)(x, t)
    assert mean.shape == x.shape
    close(alpha * mean, x + sigma**2 * score, 1e6 * EPS)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("problem", [SCALAR, Gaussian(0.5, 0.3)], ids=repr)
def test_posterior_mean_and_density_against_quadrature(problem: Problem, schedule: Schedule) -> None:
    # Bayes' rule by the trapezoidal rule: for Gaussians of width 0.2 at spacing 0.01 its error is below round-off.
    y = np.arange(-12.0, 12.0, 0.01)
    prior = _data_density(problem, y)
    for lam in (-3.0, 0.0, 1.5):
        t = float(schedule.time(lam))
        alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
        for z in (-1.5, 0.4, 2.0):
            x = z * (alpha + sigma)
            joint = 0.01 * prior * stats.norm.pdf(x, alpha * y, sigma)
            at = torch.tensor([x], dtype=torch.float64)
            density, mean = torch.tensor([joint.sum()]), torch.tensor([joint @ y / joint.sum()])
            close(problem.log_prob(at, t, schedule).exp(), density, 1e-12)
            close(problem.posterior_mean(at, t, schedule), mean, 1e-12)


def _data_density(problem: Problem, y: np.ndarray) -> np.ndarray:
    if isinstance(problem, Gaussian):
        return stats.norm.pdf(y, 0.5, math.sqrt(0.3))
    parts = zip([0.3, 0.6, 0.1], [-1.0, 1.0, 0.2], [0.04, 0.1, 0.5], strict=True)
    return sum(w * stats.norm.pdf(y, m, math.sqrt(v)) for w, m, v in parts)


@pytest.mark.parametrize(
    "problem",
    [
        Gaussian([0.2, -0.3], [0.5, 0.1]),
        Mixture([2.0, 1.0], [[-0.5, 0.3], [0.8, 0.1]], 0.1),
        Mixture([2.0, 1.0], [[-0.5, 0.3], [0.8, 0.1]], [0.1, 0.2]),
        Mixture([2.0, 1.0], [[-0.5, 0.3], [0.8, 0.1]], [[0.1, 0.2], [0.3, 0.1]]),
    ],
    ids=repr,
)
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0])
def test_marginals_integrate_to_one_and_to_the_datas_moments(problem: Problem, t: float) -> None:
    # The trapezoidal rule converges faster than any power for these: 0.05 apart is round-off for widths of 0.3.
    line = torch.arange(-8.0, 8.0, 0.05, dtype=torch.float64)
    x = torch.cartesian_prod(line, line)
    schedule = RectifiedFlow()
    p = problem.log_prob(x, t, schedule).exp() * 0.05**2
    close(p.sum(), torch.tensor(1.0, dtype=torch.float64), 1e-10)
    # E[E[x_0 | x_t]] = E[x_0] at every t, and E[x_t x_0] - alpha E[x_0^2] = 0 for the second moment.
    mean, alpha = problem.posterior_mean(x, t, schedule), 1 - t
    first, second = _data_moments(problem)
    close(p @ mean, first, 1e-10)
    close((p[:, None] * x * mean).sum(0), alpha * second, 1e-10)


def _data_moments(problem: Problem) -> tuple[Tensor, Tensor]:
    if isinstance(problem, Gaussian):
        return problem.mean, problem.mean**2 + problem.variance
    assert isinstance(problem, Mixture)
    v = problem.variances if problem.variances.ndim == 2 else problem.variances.expand(2)[:, None]
    return problem.weights @ problem.means, problem.weights @ (problem.means**2 + v)


def test_the_ends_of_the_schedule_are_exact() -> None:
    x, schedule = state(SCALAR), RectifiedFlow()
    for problem in (SCALAR, Mixture([1.0, 2.0], [[0.1], [3.0]], [[0.1], [0.2]]), Gaussian(0.3, 2.0)):
        at = x.reshape(3, *[1] * len(problem.event_shape))
        close(problem.posterior_mean(at, 0.0, schedule), at, 4 * EPS)  # sigma = 0: x is the data
        prior = problem.posterior_mean(at, 1.0, schedule)  # alpha = 0: x says nothing
        close(prior, prior[:1].expand_as(prior), 4 * EPS)
        close(problem.score(at, 1.0, schedule), -at, 4 * EPS)


@pytest.mark.parametrize("make", ["gaussian", "isotropic", "diagonal", "digits"])
def test_denoisers_have_two_derivatives(make: str) -> None:
    problem = {
        "gaussian": Gaussian(randn(2, 2), 0.4),
        "isotropic": Mixture([0.5, 0.5], randn(2, 3), [0.2, 0.5]),
        "diagonal": Mixture([0.5, 0.5], randn(2, 3), randn(2, 3).exp()),
        "digits": CLASSES,
    }[make]
    denoiser = problem.denoiser(VPLinear())
    x = (problem.sample(2, 0) if make != "digits" else DIGITS.sample(2, 0)).requires_grad_()
    logits = randn(2, 10, seed=1).requires_grad_()
    inputs = (x, logits) if make == "digits" else (x,)

    def f(x: Tensor, *label: Tensor) -> Tensor:
        return denoiser(x, 0.35, {"label": label[0]} if label else None)

    assert gradcheck(f, inputs, atol=1e-5, fast_mode=True)
    if make != "gaussian":  # which is linear
        assert gradgradcheck(f, inputs, atol=1e-4, fast_mode=True)


# --- dtypes, devices, purity ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("problem", [Gaussian(0.2, 0.3), SCALAR, DIGITS], ids=repr)
def test_narrow_states_get_the_rounded_float64_answer(problem: Problem, dtype: torch.dtype) -> None:
    # Bitwise, because the arithmetic is float64 and only the result is rounded: half an ulp of the narrow dtype. The
    # time stays exact as well: 0.3 is not a bfloat16.
    x = state(problem).to(dtype)
    denoiser = problem.denoiser(VPLinear())
    assert torch.equal(denoiser(x, 0.3), denoiser(x.double(), 0.3).to(dtype))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(denoiser(x, 0.3), denoiser(x.double(), 0.3).to(dtype))
    for method in (problem.score, problem.log_prob):
        assert torch.equal(method(x, 0.3, VPLinear()), method(x.double(), 0.3, VPLinear()).to(dtype))


@pytest.mark.parametrize("make", [lambda: Mixture([1.0, 1.0], torch.eye(2), 0.1), lambda: Gaussian(0.0, torch.ones(2))])
def test_first_use_in_inference_mode_spoils_nothing(make: Callable[[], Problem]) -> None:
    with torch.inference_mode():
        problem = make()
        problem.score(torch.ones(1, 2), 0.5, VPLinear())
    x = torch.ones(1, 2, dtype=torch.float64, requires_grad=True)
    for method in (problem.score, problem.posterior_mean, problem.log_prob):
        assert torch.autograd.grad(method(x, 0.5, VPLinear()).sum(), x)[0].abs().sum() > 0


def test_parameters_are_copies_of_what_was_passed() -> None:
    mean = torch.zeros(2, dtype=torch.float64)
    problem = Gaussian(mean, 1.0)
    mean += 1
    assert torch.equal(problem.mean, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("problem", [Gaussian(0.5, [0.3, 1.0]), SCALAR, Digits(0.2, True)], ids=repr)
def test_problems_are_frozen_and_their_repr_makes_them_again(problem: Problem) -> None:
    again = eval(repr(problem))
    assert repr(again) == repr(problem)
    x, cond = state(problem), {"label": randn(3, 10)} if isinstance(problem, Digits) else None
    close(again.log_prob(x, 0.5, VPLinear(), cond), problem.log_prob(x, 0.5, VPLinear(), cond), 8 * EPS)
    name = "labels" if isinstance(problem, Digits) else "mean" if isinstance(problem, Gaussian) else "means"
    with pytest.raises(AttributeError):
        setattr(problem, name, torch.zeros(1))
    assert f"PosteriorMean(problem={problem!r}" in repr(problem.denoiser(VPLinear()))
    assert len(repr(Gaussian(torch.zeros(1000), 1.0))) < 100


# --- draws ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("problem", [SCALAR, Gaussian(0.5, 0.3)], ids=repr)
def test_draws_have_the_datas_law(problem: Problem) -> None:
    draws = problem.sample(4000, seed=3)
    assert draws.shape == (4000,)
    assert draws.dtype == torch.float64
    grid = np.linspace(-8, 8, 16001)
    cdf = integrate.cumulative_simpson(_data_density(problem, grid), x=grid, initial=0.0)
    # Kolmogorov-Smirnov with a fixed seed: 1e-3 would fail one seed in a thousand of a correct sampler.
    assert stats.kstest(draws.numpy(), lambda y: np.interp(y, grid, cdf)).pvalue > 1e-3


@settings(max_examples=20, deadline=None)
@given(problems(), st.integers(0, 2**32 - 1))
def test_draws_are_a_function_of_the_seed_alone(problem: Problem, seed: int) -> None:
    before = torch.get_rng_state()
    draws = problem.sample(5, seed)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(1)
    assert torch.equal(draws, problem.sample(5, seed))
    assert not torch.equal(draws, problem.sample(5, seed + 1))
    assert draws.shape == (5, *problem.event_shape)


def test_draws_of_several_dimensions_have_each_components_own_moments() -> None:
    problem = Mixture([1.0, 3.0], [[-9.0, 0.0], [9.0, 1.0]], [[0.25, 4.0], [1.0, 0.01]])
    draws = problem.sample(20000, 0)
    right = draws[:, 0] > 0
    # Standard errors are at most 2 / sqrt(5000) for a mean and sqrt(2/5000) of a variance; 5 of them.
    assert abs(float(right.double().mean()) - 0.75) < 5 * math.sqrt(0.75 * 0.25 / 20000)
    for chosen, k in ((~right, 0), (right, 1)):
        part, v = draws[chosen], problem.variances[k]
        assert ((part.mean(0) - problem.means[k]).abs() < 5 * (v / len(part)).sqrt()).all()
        assert ((part.var(0) / v - 1).abs() < 5 * math.sqrt(2 / len(part))).all()


# --- the ODE map ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES, ids=repr)
@pytest.mark.parametrize("problem", [SCALAR, Gaussian(0.5, 0.3)], ids=repr)
def test_ode_map_against_an_ode_integrator(problem: Mixture | Gaussian, schedule: Schedule) -> None:
    t0, t1 = schedule.t_max, schedule.t_min
    x_T = torch.linspace(-4, 4, 9, dtype=torch.float64) * schedule.sigma(t0)

    def slope(lam: float, y: np.ndarray) -> np.ndarray:  # y = x / sigma:  dy = x_0-prediction d(e^lambda)
        return math.exp(lam) * _predicted(problem, y * math.exp(-lam), math.exp(-lam))

    ends = float(schedule.lam(t0)), float(schedule.lam(t1))
    start = (x_T / schedule.sigma(t0)).numpy()
    solution = integrate.solve_ivp(slope, ends, start, method="DOP853", rtol=1e-11, atol=1e-11)
    # The integrator's tolerance, with room for its accumulation over some sixty steps.
    close(problem.ode_map(x_T, schedule), torch.from_numpy(solution.y[:, -1]) * schedule.sigma(t1), 1e-9)


def _predicted(problem: Mixture | Gaussian, z: np.ndarray, r: float) -> np.ndarray:
    """``E[x_0 | z]`` for ``z = x / alpha = x_0 + r eps`` on a line, written out: no schedule is in it."""
    if isinstance(problem, Gaussian):
        w, m, v = np.ones(1), problem.mean.numpy().reshape(1), problem.variance.numpy().reshape(1)
    else:
        w, m, v = (part.numpy() for part in (problem.weights, problem.means, problem.variances))
    away, total = z[:, None] - m, v + r**2
    shares = w / w.sum() * np.exp(-(away**2) / (2 * total)) / np.sqrt(total)
    return np.asarray((shares * (m + v / total * away)).sum(1) / shares.sum(1))


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from(SCHEDULES), st.floats(0.3, 1.0), st.floats(0.0, 0.2), st.integers(0, 99))
def test_ode_gradient_is_the_maps_derivative(
    problem: Problem, schedule: Schedule, t_max: float, t_min: float, seed: int
) -> None:
    if isinstance(problem, Mixture) and problem.event_shape.numel() != 1:
        problem = SCALAR
    assert isinstance(problem, Gaussian | Mixture)
    x = state(problem, seed).requires_grad_()
    y = problem.ode_map(x, schedule, t_max, t_min)
    gradient = problem.ode_gradient(x, schedule, t_max, t_min)
    assert y.shape == gradient.shape == x.shape
    close(torch.autograd.grad(y.sum(), x)[0], gradient, 1e3 * EPS)
    h = 1e-5
    with torch.no_grad():
        ahead, behind = (problem.ode_map(x + d, schedule, t_max, t_min) for d in (h, -h))
    # Central differences: h^2 times a third derivative of up to 100, and round-off / h.
    close(gradient.detach(), (ahead - behind) / (2 * h), 1e-7)


def test_quantile_transport_has_derivatives_of_higher_order() -> None:
    x = torch.linspace(-2, 2, 5, dtype=torch.float64).requires_grad_()
    assert gradgradcheck(lambda x: SCALAR.ode_map(x, VPLinear(), 0.8, 0.01), (x,))
    assert gradgradcheck(lambda x: SCALAR.ode_gradient(x, VPLinear(), 0.8, 0.01), (x,), atol=1e-4)


@pytest.mark.parametrize("ends", [(1.0, 1e-3), (1.0, 0.0), (0.5, 0.0)])
def test_quantile_transport_is_exact_into_both_tails(ends: tuple[float, float]) -> None:
    schedule = RectifiedFlow()  # alpha = 0 at its start and sigma = 0 at its end
    x = torch.tensor([-38.0, -12.0, -5.0, -1.0, 0.0, 0.3, 2.0, 7.0, 30.0], dtype=torch.float64)
    y, gradient = SCALAR.ode_map(x, schedule, *ends), SCALAR.ode_gradient(x, schedule, *ends)
    for point, got, slope in zip(x.tolist(), y.tolist(), gradient.tolist(), strict=True):
        exact, derivative, logs = _transport(point, got, *ends)
        assert abs(got - exact) <= 4 * EPS * max(1, abs(exact))
        # Absolute errors of the two log p, which are down to -800, are relative ones of the slope.
        assert abs(slope / derivative - 1) <= 4 * EPS * max(4, logs)


def _transport(x: float, guess: float, t_max: float, t_min: float) -> tuple[float, float, float]:
    """The rectified flow's map at x and its derivative, in 60 digits, from a guess near enough for Newton's method.

    The derivative is a ratio of densities. Last come the sizes of their logarithms' terms: ``|log p_T(x)|``,
    ``|log p_0(y)|``, and what a relative error of y makes of the latter.
    """
    with mpmath.workdps(60):
        w, m, v = ([mpmath.mpf(float(c)) for c in cs] for cs in (SCALAR.weights, SCALAR.means, SCALAR.variances))

        def tail(y: mpmath.mpf, t: float, sign: int) -> mpmath.mpf:
            return sum(
                wk * mpmath.ncdf(sign * (y - (1 - t) * mk) / mpmath.sqrt((1 - t) ** 2 * vk + t**2))
                for wk, mk, vk in zip(w, m, v, strict=True)
            )

        def pdf(y: mpmath.mpf, t: float) -> mpmath.mpf:
            return sum(
                wk * mpmath.npdf(y, (1 - t) * mk, mpmath.sqrt((1 - t) ** 2 * vk + t**2))
                for wk, mk, vk in zip(w, m, v, strict=True)
            )

        t_max, t_min, x, y = map(mpmath.mpf, (t_max, t_min, x, guess))
        sign = 1 if tail(x, t_max, 1) < 0.5 else -1
        target = mpmath.log(tail(x, t_max, sign))
        for _ in range(8):
            F = tail(y, t_min, sign)
            y -= sign * (mpmath.log(F) - target) * F / pdf(y, t_min)
        score = mpmath.diff(lambda u: mpmath.log(pdf(u, t_min)), y)
        logs = abs(mpmath.log(pdf(x, t_max))) + abs(mpmath.log(pdf(y, t_min))) + abs(y * score)
        return float(y), float(pdf(x, t_max) / pdf(y, t_min)), float(logs)


@pytest.mark.parametrize("shift", [-64.0, 64.0])
def test_quantile_transport_moves_with_the_data_tails_and_all(shift: float) -> None:
    # Under VE the means do not shrink: the tails of data that are far from 0 lie on one side of it.
    schedule, x = VE(), torch.tensor([-12.0, -5.0, -1.0, 0.0, 0.3, 2.0, 12.0], dtype=torch.float64)
    moved = Mixture(SCALAR.weights, SCALAR.means + shift, SCALAR.variances)
    # Roundings of numbers of up to 76, where the map's derivative is 1 at most.
    got, want = moved.ode_map(x + shift, schedule, 1.0, 0.0), SCALAR.ode_map(x, schedule, 1.0, 0.0) + shift
    torch.testing.assert_close(got, want, rtol=0, atol=16 * 76 * EPS)


def test_quantile_transport_crosses_an_empty_gap() -> None:
    # Modes of width 1e-3 two apart: 1 - 1e-12 of the latents land within 7.2 widths of a mode, in order.
    problem, schedule = Mixture([0.5, 0.5], [-1.0, 1.0], 1e-6), RectifiedFlow()
    x = torch.linspace(-3, 3, 2001, dtype=torch.float64)
    y = problem.ode_map(x, schedule, 1.0, 0.0)
    # At x = 0 all of the gap is the answer. Elsewhere F_0 = Phi(x) is met to round-off.
    inside = x.abs() > 1e-9
    assert (y.diff() >= 0).all()
    assert ((y[inside].abs() - 1).abs() < 8e-3).all()
    half = 0.5 * (1 + torch.erf((y - y.sign()) / 1e-3 / math.sqrt(2)))
    cdf = torch.where(y < 0, half / 2, (1 + half) / 2)
    close(cdf[inside], 0.5 * (1 + torch.erf(x / math.sqrt(2)))[inside], 1e-12)


# --- the pathwise solution ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("eta", [0.3, 1.0, 2.0])
def test_pathwise_is_what_a_fine_solver_converges_to(kind: str, eta: float) -> None:
    problem, schedule = Gaussian([0.3, -1.0], [0.5, 2.0]), RectifiedFlow()
    frame, x = Frame(schedule, eta=eta, kind=kind), randn(200, 2)
    errors = []
    for steps in (32, 128):
        grid = uniform_logsnr(schedule, steps, t_max=0.8, t_min=0.2)
        noise = _white(frame, grid, x, seed=steps)
        euler = _euler(problem, frame, grid, x, noise)
        errors.append((euler - problem.pathwise(x, frame, grid, noise)).square().mean().sqrt().item())
    # Euler's method has strong order 1 for additive noise: a factor of 4, and an error of about one step, 2.8 / 128.
    assert errors[1] < 2.8 / 128
    assert 3 < errors[0] / errors[1] < 5


def _white(frame: Frame, grid: Tensor, like: Tensor, seed: int = 0) -> FixedNoise:
    shape, h = (len(grid) - 1, *like.shape), frame.noise_clock(grid).diff().reshape(-1, *[1] * like.ndim)
    return FixedNoise(h.sqrt() * randn(*shape, seed=seed), (h / 12).sqrt() * randn(*shape, seed=seed + 1))


def _euler(problem: Problem, frame: Frame, grid: Tensor, x: Tensor, noise: FixedNoise) -> Tensor:
    clock, weight, denoiser = frame.clock(grid), frame.weight(grid), problem.denoiser(frame.schedule)
    y = x / weight[0]
    for n, dB in enumerate(noise.increments):
        y = y + denoiser(weight[n] * y, grid[n], prediction=frame.prediction) * (clock[n + 1] - clock[n]) + dB
    return weight[-1] * y


def _halved(frame: Frame, grid: Tensor, noise: FixedNoise) -> tuple[Tensor, FixedNoise]:
    """The same path on every other node: Foster, Lyons and Oberhauser's rule for Levy areas."""
    assert noise.levy_areas is not None
    h = frame.noise_clock(grid).diff().reshape(-1, *[1] * (noise.increments.ndim - 1))
    (hl, hr), (Wl, Wr), (Hl, Hr) = ((v[::2], v[1::2]) for v in (h, noise.increments, noise.levy_areas))
    H = (hr * (Hr + Wl / 2) + hl * (Hl - Wr / 2)) / (hl + hr)
    return grid[::2], FixedNoise(Wl + Wr, H)


@pytest.mark.parametrize(("kind", "eta"), [("data", 1.0), ("data", 0.3), ("noise", 1.0), ("flow", 2.0)])
def test_pathwise_error_is_second_order_with_the_stated_constant(kind: str, eta: float) -> None:
    v, schedule = 0.5, VPLinear()
    problem, frame, x = Gaussian(0.3, v), Frame(schedule, eta=eta, kind=kind), randn(4000)
    grid = uniform_logsnr(schedule, 256, t_max=0.7, t_min=0.1)
    noise = _white(frame, grid, x)
    reference = problem.pathwise(x, frame, grid, noise)
    for _ in range(3):
        grid, noise = _halved(frame, grid, noise)
    for steps in (32, 16, 8):
        assert len(grid) == steps + 1
        rms = (problem.pathwise(x, frame, grid, noise) - reference).square().mean().sqrt().item()
        # The leading term is off by O(h) itself, a few per cent; sampling by 1 / sqrt(8000); the reference by 1 / 64.
        assert rms == pytest.approx(_stated_rms(frame, grid, v), rel=0.15 * 32 / steps)
        grid, noise = _halved(frame, grid, noise)


def _stated_rms(frame: Frame, grid: Tensor, v: float) -> float:
    clock = frame.noise_clock(grid)

    def f(nu: Tensor) -> Tensor:  # w / Phi, by each kind's own definition of nu
        e = frame.eta
        if frame.kind == "data":
            return (1 + nu ** (1 / e) * v) ** (-(1 + e) / 2)
        if frame.kind == "noise":
            r2 = -nu / e
            return (r2 + v) ** (-(1 + e) / 2)
        low, high = torch.full_like(nu, -30.0), torch.full_like(nu, 30.0)
        for _ in range(60):
            mid = (low + high) / 2
            less = frame.noise_clock(frame.schedule.time(mid.clamp(-5, 9))) < nu
            low, high = torch.where(less, mid, low), torch.where(less, high, mid)
        return ((1 + low.exp()) / (1 + (2 * low).exp() * v).sqrt()) ** (1 + e)

    h, c = clock.diff(), (clock[:-1] + clock[1:]) / 2
    second = (f(c + h / 4) - 2 * f(c) + f(c - h / 4)) / (h / 4) ** 2
    t = grid[-1]
    u, sigma = (2 * frame.schedule.lam(t)).exp(), frame.schedule.sigma(t)
    phi = sigma * u ** (-frame.eta / 2) * (1 + u * v) ** ((1 + frame.eta) / 2)
    return float(phi * (h**5 * second**2 / 720).sum().sqrt())


@pytest.mark.parametrize("steps", [1, 3])
def test_pathwise_against_the_explicit_formula(steps: int) -> None:
    # eta = 1, zero mean: y1 = (1 + s1 v) / (1 + s0 v) y0 + (1 + s1 v) int dB / (1 + s v); moments by hand.
    v, schedule = 0.7, VPLinear()
    frame, x = Frame(schedule, eta=1.0), randn(4)
    grid = uniform_logsnr(schedule, steps, t_max=1.0, t_min=1e-3)  # one step: 9.6 units of lambda
    noise = _white(frame, grid, x)
    assert noise.levy_areas is not None
    s = frame.clock(grid).tolist()
    y = x / float(frame.weight(grid[0]))
    for n in range(steps):
        h, c = s[n + 1] - s[n], (s[n] + s[n + 1]) / 2
        area = math.log1p(h * v / (1 + s[n] * v)) / v
        moment = h / v - (c + 1 / v) * area  # of (r - c) / (1 + r v) = 1 / v - (c + 1 / v) / (1 + r v)
        integral = area / h * noise.increments[n] - 12 / h**2 * moment * noise.levy_areas[n]
        y = (1 + s[n + 1] * v) * (y / (1 + s[n] * v) + integral)
    close(Gaussian(0.0, v).pathwise(x, frame, grid, noise), float(frame.weight(grid[-1])) * y, 1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_states_get_the_rounded_solution_on_the_noise_that_they_see(dtype: torch.dtype) -> None:
    schedule, x = VPLinear(), randn(5, 2).to(dtype)
    grid, frame, noise = uniform_logsnr(schedule, 4), Frame(schedule, eta=1.0), BrownianPath(seed=5)
    bound = noise.bind(frame.noise_clock(grid), x, levy=True)
    rounded = [torch.stack([getattr(bound.increment(n), part).double() for n in range(4)]) for part in ("dB", "H")]
    problem = Gaussian([0.3, -1.0], [0.5, 2.0])
    for known in (problem, Gaussian(0.3, 0.5)):  # numbers do not widen what they multiply
        want = known.pathwise(x.double(), frame, grid, FixedNoise(*rounded))
        assert torch.equal(known.pathwise(x, frame, grid, noise), want.to(dtype))
    for known, at in ((problem, x), (SCALAR, x[:, 0])):
        for method in (known.ode_map, known.ode_gradient):
            assert torch.equal(method(at, schedule), method(at.double(), schedule).to(dtype))


def test_pathwise_on_a_refinable_path() -> None:
    problem, schedule = Gaussian([0.3, -1.0], [0.5, 2.0]), VPLinear()
    frame, noise, x = Frame(schedule, eta=1.0), BrownianPath(seed=5, refinable=True), randn(50, 2)
    ends = [problem.pathwise(x, frame, uniform_logsnr(schedule, n, t_max=0.7, t_min=0.1), noise) for n in (8, 16, 64)]
    coarse, fine = ((end - ends[-1]).square().mean().sqrt().item() for end in ends[:2])
    # Order 2 is a factor of 4 (16/15 of it against 64 steps); 100 numbers know it to about a fifth.
    assert 3 < coarse / fine < 5.5


def test_pathwise_without_noise_is_the_ode_map() -> None:
    problem, schedule = Gaussian([0.3, -1.0], [0.5, 2.0]), RectifiedFlow()
    x, grid = randn(5, 2), uniform_time(schedule, 4, t_max=1.0, t_min=0.0)
    expected = problem.ode_map(x, schedule, 1.0, 0.0)
    assert torch.equal(problem.pathwise(x, Frame(schedule), grid), expected)
    close(expected, problem.mean + problem.variance.sqrt() * x, 4 * EPS)


def test_pathwise_is_differentiable_in_the_noise_and_broadcasts_variances() -> None:
    schedule, v = VPLinear(), [[0.5], [2.0]]
    frame, x = Frame(schedule, eta=0.5), randn(3, 2, 4).requires_grad_()
    grid = uniform_logsnr(schedule, 3)
    noise = _white(frame, grid, x)
    dB = noise.increments.requires_grad_()
    end = Gaussian(0.0, v).pathwise(x, frame, grid, noise)
    alone = [Gaussian(0.0, v[i][0]).pathwise(x[:, i], frame, grid, _part(noise, i)) for i in (0, 1)]
    close(end, torch.stack(alone, dim=1), 16 * EPS)
    dx, dB_grad = torch.autograd.grad(end.sum(), (x, dB))
    # Noise that arrives at the end of the last step is multiplied by w_N at least, a later one by less than an earlier.
    assert torch.equal(dx[0], dx[1])
    assert (dB_grad[:, 0, :, 0] > 0).all()


def _part(noise: FixedNoise, i: int) -> FixedNoise:
    assert noise.levy_areas is not None
    return FixedNoise(noise.increments[:, :, i], noise.levy_areas[:, :, i])


# --- digits ---------------------------------------------------------------------------------------------------------


def test_digits_are_the_images_and_the_denoiser_finds_them() -> None:
    assert DIGITS.images.shape == (1797, 1, 8, 8)
    assert DIGITS.images.min() == -1
    assert DIGITS.images.max() == 1
    assert DIGITS.labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    denoiser, schedule = DIGITS.denoiser(VPLinear()), VPLinear()
    images = DIGITS.images[:20]
    close(denoiser(images, 0.0), images, 8 * EPS)
    # A little noise: responsibilities of other images are about exp(-distance^2 / 2P), here zero, so that the answer
    # is (sigma^2 image + alpha v x) / P.
    alpha, sigma, v = schedule.alpha(0.05), schedule.sigma(0.05), DIGITS.bandwidth**2
    x = alpha * images + sigma * randn(20, 1, 8, 8)
    expected = (sigma**2 * images + alpha * v * x) / (alpha**2 * v + sigma**2)
    close(denoiser(x, 0.05), expected, 1e-9)


def test_digits_by_matrix_products_agree_with_brute_force() -> None:
    x, t, schedule = DIGITS.sample(4, 1) + 0.5 * randn(4, 1, 8, 8), 0.4, VPLinear()
    alpha, sigma = float(schedule.alpha(t)), float(schedule.sigma(t))
    P = alpha**2 * 0.01 + sigma**2
    squares = ((x[:, None] - alpha * DIGITS.images) ** 2).sum((2, 3, 4))
    log_p = torch.logsumexp(-squares / 2 / P - 32 * math.log(2 * math.pi * P) - math.log(1797), 1)
    r = (-squares / 2 / P).softmax(1)
    mean = (sigma**2 * torch.einsum("bk,kcij->bcij", r, DIGITS.images) + alpha * 0.01 * x) / P
    # |x|^2 / P is about 1e3, which a matrix product knows to 1e3 EPS.
    close(DIGITS.log_prob(x, t, schedule), log_p, 1e4 * EPS)
    close(DIGITS.posterior_mean(x, t, schedule), mean, 1e4 * EPS)


def test_the_logits_weigh_classes_not_images() -> None:
    logits = randn(3, 10)
    # Far out nothing but the weights decides: the mean of each class, weighted by the softmax.
    means = torch.stack([DIGITS.images[DIGITS.labels == c].mean(0) for c in range(10)])
    expected = torch.einsum("bc,cdij->bdij", logits.softmax(1), means)
    got = CLASSES.denoiser(RectifiedFlow())(randn(3, 1, 8, 8), 1.0, {"label": logits})
    close(got, expected, 64 * EPS)


def test_narrow_logits_are_widened_before_they_are_used() -> None:
    logits, x = randn(2, 10).float(), DIGITS.sample(2, 1)
    got, want = (CLASSES.log_prob(x, 0.4, VPLinear(), {"label": label}) for label in (logits, logits.double()))
    assert torch.equal(got, want)


def test_the_gradient_in_the_logits_is_the_finite_difference() -> None:
    denoiser, x = CLASSES.denoiser(VPLinear()), DIGITS.sample(2, 1) * 0.6 + randn(2, 1, 8, 8) * 0.7
    logits = randn(2, 10).requires_grad_()
    weights = randn(2, 1, 8, 8, seed=3)

    def f(logits: Tensor) -> Tensor:
        return (weights * denoiser(x, 0.4, {"label": logits})).sum()

    (gradient,) = torch.autograd.grad(f(logits), logits)
    assert gradient.abs().max() > 1e-4
    h, steps = 1e-5, torch.eye(20, dtype=torch.float64).reshape(20, 2, 10)
    with torch.no_grad():
        differences = torch.stack([f(logits + h * d) - f(logits - h * d) for d in steps]) / (2 * h)
    close(gradient.flatten(), differences, 1e-8)  # h^2 and round-off / h


@pytest.mark.parametrize("wanted", [0, 7])
def test_one_hot_logits_give_that_class_only(wanted: int) -> None:
    logits = torch.full((6, 10), -math.inf)
    logits[:, wanted] = 0.0
    cond = {"label": logits.requires_grad_()}
    draws = CLASSES.sample(6, 0, cond)
    nearest = torch.cdist(draws.flatten(1), DIGITS.images.flatten(1)).argmin(1)
    assert (DIGITS.labels[nearest] == wanted).all()
    assert len(nearest.unique()) > 1
    only = Mixture(torch.ones(178 if wanted == 0 else 179), DIGITS.images[DIGITS.labels == wanted], 0.01)
    x = randn(6, 1, 8, 8).requires_grad_()
    mean = CLASSES.denoiser(VPLinear())(x, 0.5, cond)
    close(mean, only.denoiser(VPLinear())(x, 0.5), 1e4 * EPS)
    for gradient in torch.autograd.grad(mean.sum(), (x, cond["label"])):
        assert torch.isfinite(gradient).all()


def test_digits_without_scikit_learn_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"pip install sdeadjoint\[digits\]"):
        Digits()


# --- errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Gaussian(0.0, 0.0), "variance: got 0.0"),
        (lambda: Gaussian(math.nan, 1.0), "mean: has NaN"),
        (lambda: Gaussian(torch.zeros(2, requires_grad=True), 1.0), "mean.*detach"),
        (lambda: Gaussian(torch.zeros(2), torch.ones(3)), "do not broadcast"),
        (lambda: Mixture([0.5, -0.5], [0.0, 1.0], 1.0), "weights: got -0.5"),
        (lambda: Mixture([0.5, 0.5], [0.0, 1.0, 2.0], 1.0), r"weights, means: got shapes \(2,\) and \(3,\)"),
        (lambda: Mixture([0.5, 0.5], [[0.0], [1.0]], [1.0, 1.0, 1.0]), r"variances: got shape \(3,\)"),
        (lambda: Digits(bandwidth=0), "bandwidth: got 0"),
        (lambda: SCALAR.score(torch.zeros(2, 3), 0.5, VPLinear()), r"x: got shape \(2, 3\)"),
        (lambda: SCALAR.score(torch.zeros(()), 0.5, VPLinear()), r"x: got shape \(\)"),
        (lambda: SCALAR.score(torch.zeros(2), torch.ones(3) / 2, VPLinear()), r"t: got shape \(3,\)"),
        (lambda: Gaussian(torch.zeros(2), 1.0).score(torch.zeros(4, 3), 0.5, VPLinear()), r"needs shape \(batch, 2\)"),
        (lambda: DIGITS.ode_map(torch.zeros(1, 1, 8, 8), VPLinear()), "64 dimensions"),
        (lambda: SCALAR.sample(0, 0), "n: got 0"),
        (lambda: SCALAR.sample(1, 0.5), "seed: got 0.5"),  # type: ignore[arg-type]
        (lambda: SCALAR.denoiser(VPLinear())(torch.zeros(2), 0.5, {"label": torch.zeros(2)}), r"cond: got \['label'\]"),
        (lambda: Gaussian(0.0, 1.0).sample(2, 0, {"label": torch.zeros(2, 10)}), r"cond: got \['label'\]"),
        (lambda: CLASSES.sample(2, 0), r"cond: got \[\]"),
        (lambda: CLASSES.sample(2, 0, {"label": torch.tensor([1, 2])}), "int64"),
        (lambda: CLASSES.sample(2, 0, {"label": torch.zeros(3, 10)}), r"shape \(2, 10\)"),
        (lambda: _pathwise(1.0, None), "pass noise=BrownianPath"),
        (lambda: _pathwise(1.0, BrownianPath(0), t_max=1.0), "alpha = 0 or sigma = 0"),
    ],
)
def test_bad_arguments_are_refused(make: Callable[[], object], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        make()


def test_integer_states_are_refused() -> None:
    with pytest.raises(TypeError, match=r"x: got torch\.int64"):
        SCALAR.score(torch.zeros(2, dtype=torch.long), 0.5, VPLinear())


def _pathwise(eta: float, noise: BrownianPath | None, t_max: float = 0.9) -> Tensor:
    schedule = RectifiedFlow()
    grid = uniform_time(schedule, 4, t_max=t_max, t_min=0.1)
    return Gaussian(0.0, 1.0).pathwise(torch.zeros(2), Frame(schedule, eta=eta), grid, noise)


def test_without_a_time_it_is_the_density_of_the_data() -> None:
    mixture = Mixture([0.3, 0.7], [[0.0, 1.0], [2.0, -1.0]], 0.25)
    x = mixture.sample(5, seed=0)
    laws = [torch.distributions.MultivariateNormal(mean, 0.25 * torch.eye(2).double()) for mean in mixture.means]
    density = sum(weight * law.log_prob(x).exp() for weight, law in zip(mixture.weights, laws, strict=True))
    torch.testing.assert_close(mixture.log_prob(x), torch.as_tensor(density).log(), rtol=1e-12, atol=1e-12)
    assert mixture.log_prob(x.float()).dtype == torch.float32
    with pytest.raises(ValueError, match="schedule: got None; pass both t and schedule, or neither"):
        mixture.log_prob(x, 0.5)
    with pytest.raises(ValueError, match="t: got None; pass both"):
        mixture.log_prob(x, schedule=VPLinear())
