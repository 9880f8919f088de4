"""Encoding: the image comes back, from the ODE's latent and from the SDE's noise; and what the noise's law is."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.diffusion.equation import Diffusion
from sdeadjoint.diffusion.frames import KINDS
from sdeadjoint.fixed_point import fixed_point
from sdeadjoint.recursion import Carry, Recursion

from .networks import Mlp
from .predicted import predictor

DOUBLE = torch.float64
VP = sa.VPLinear()
ALARM = 1e-4  # false alarms per test, had the seed not been fixed
ONE_STEP = (sa.Euler(), sa.Heun(), sa.Midpoint(), sa.RK4(), sa.AdamsBashforth(1))
REMEMBERING = (sa.DPMSolverPP2M(), sa.AdamsBashforth(3))
REVERSIBLE = (sa.Coupled(sa.Euler()), sa.Coupled(sa.Heun()), sa.ReversibleHeun())
STOCHASTIC = (sa.Euler(), sa.Heun(), sa.ShARK(), sa.DPMSolverPP2M(), sa.Coupled(sa.Euler()), sa.ReversibleHeun())
MEANS = [[1.0, 0.5], [-1.0, 0.3], [0.2, -1.2]]
MIXTURE = sa.problems.Mixture([0.3, 0.3, 0.4], MEANS, 0.25)


@cache
def of_mixture(schedule: sa.Schedule = VP) -> sa.Denoiser:
    """The exact prediction of ``MIXTURE``."""
    return sa.Denoiser(predictor(schedule, [0.3, 0.3, 0.4], MEANS, [0.25] * 3), schedule, "sample", time_dtype=DOUBLE)


@cache
def digits(bandwidth: float = 0.1) -> tuple[sa.Denoiser, Tensor]:
    problem = sa.problems.Digits(bandwidth)
    return problem.denoiser(VP), problem.images[[1, 12]]


def error(x: Tensor, x_0: Tensor) -> float:
    size, of = (v.detach().double().flatten(1).norm(dim=1) for v in (x - x_0, x_0))
    return float((size / of).max())


def round_trip(denoiser: sa.Denoiser, x_0: Tensor, **arguments: Any) -> tuple[float, sa.Encoded]:
    """The largest relative error of a sample that was encoded and sampled again."""
    encoded = sa.encode(denoiser, x_0, **arguments)
    again = {name: arguments[name] for name in ("frame", "grid", "solver", "cond") if name in arguments}
    return error(sa.sample(denoiser, encoded.x_T, noise=encoded.noise, **again), x_0), encoded


# ------------------------------------------------------------------------------------------------------ round trips


# The others that undo a step, a sweep or a pair are with the mixture below.
@pytest.mark.parametrize("solver", [*ONE_STEP[:2], REMEMBERING[0], *REVERSIBLE[::2]], ids=repr)
def test_digits_come_back_from_the_latent(solver: sa.Solver) -> None:
    denoiser, images = digits()
    grid = sa.uniform_logsnr(VP, 12)
    if solver != sa.Euler():  # one way through all of the noise is enough; most of what is nonlinear lies here
        grid = grid[3:9]
    miss, encoded = round_trip(denoiser, images, frame=sa.Frame(VP), grid=grid, solver=solver)
    assert miss <= 1e-10
    assert encoded.noise is None
    assert not encoded.x_T.requires_grad


@pytest.mark.parametrize("solver", STOCHASTIC, ids=repr)
def test_digits_come_back_from_the_noise(solver: sa.Solver) -> None:
    denoiser, images = digits()
    frame, grid = sa.Frame(VP, eta=1.0), sa.uniform_logsnr(VP, 16)
    miss, encoded = round_trip(denoiser, images, frame=frame, grid=grid, solver=solver, seed=0)
    assert miss <= 1e-10
    assert encoded.noise is not None
    assert encoded.noise.increments.shape == (16, *images.shape)
    assert (encoded.noise.levy_areas is None) == (solver.claims.levy == "none")


@pytest.mark.parametrize("bandwidth", [0.1, 0.3])
def test_few_and_large_steps(bandwidth: float) -> None:
    """Ten steps: plain fixed-point iteration diverges there (contraction e^h - 1 > 1), Anderson's converges."""
    denoiser, images = digits(bandwidth)
    for solver in (sa.Euler(), sa.Heun()):
        arguments: dict[str, Any] = {"frame": sa.Frame(VP), "grid": sa.uniform_logsnr(VP, 10), "solver": solver}
        assert round_trip(denoiser, images, **arguments)[0] <= 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("solver", [*ONE_STEP, *REMEMBERING, REVERSIBLE[1]], ids=repr)
def test_every_kind_and_uneven_grids(kind: str, solver: sa.Solver) -> None:
    x_0 = MIXTURE.sample(3, seed=0)
    cases = [(VP, VP.time(torch.tensor(UNEVEN, dtype=DOUBLE))), (sa.VE(), sa.karras(sa.VE(), 14)[4:12])]
    # The schedule is in the equation's tables of clocks and weights, and nowhere else: each kind and each solver has
    # the second one once.
    second = solver in ONE_STEP and KINDS[ONE_STEP.index(solver) % 3] == kind
    for schedule, grid in cases[: 2 if second else 1]:
        arguments: dict[str, Any] = {"frame": sa.Frame(schedule, kind=kind), "grid": grid, "solver": solver}
        assert round_trip(of_mixture(schedule), x_0, **arguments)[0] <= 1e-10


# Each step is undone by itself, or in sweeps that end after at most as many as there are steps.
UNEVEN = [-1.8, -1.4, -0.9, -0.1, 0.3, 0.8, 1.0, 1.6]
# ShARK's steps with eta = 2 in the noise kind cannot be undone where they are longer.
SHORT = [-1.1, -0.9, -0.5, -0.1, 0.3, 0.5, 0.8, 1.0, 1.4]


# A solver sees of eta and the kind only the equation's tables of clocks and weights, so each pair of the three is here
# once and not each triple.
@pytest.mark.parametrize(("number", "eta"), [*enumerate([0.3, 1.0, 2.0])])
@pytest.mark.parametrize("solver", STOCHASTIC[:4], ids=repr)
def test_every_kind_and_eta(solver: sa.Solver, number: int, eta: float) -> None:
    kind = [*KINDS][(STOCHASTIC.index(solver) + number) % 3]
    nodes = SHORT if solver == sa.ShARK() else UNEVEN
    x_0, grid = MIXTURE.sample(5, seed=0), VP.time(torch.tensor(nodes, dtype=DOUBLE))
    frame = sa.Frame(VP, eta=eta, kind=kind)
    assert round_trip(of_mixture(), x_0, frame=frame, grid=grid, solver=solver, seed=1)[0] <= 1e-10


@pytest.mark.parametrize("kind", ["data", "flow"])
@pytest.mark.parametrize("eta", [0.0, 1.0, 0.5])
def test_a_start_without_signal(kind: str, eta: float) -> None:
    """alpha(T) = 0: with noise y_0 = 0, and x_T is a draw from the prior that the image does not influence."""
    schedule = sa.RectifiedFlow()
    denoiser, grid = of_mixture(schedule), torch.linspace(1, 0.02, 12, dtype=DOUBLE)
    frame, seeds = sa.Frame(schedule, eta=eta, kind=kind), [*range(4)] * 2 if eta else None
    x_0 = torch.cat([MIXTURE.sample(4, seed=0), MIXTURE.sample(4, seed=1)])  # two images to each seed
    for solver in (sa.Euler(), sa.Heun(), sa.DPMSolverPP2M()) if eta else (sa.Euler(), sa.Heun()):
        miss, encoded = round_trip(denoiser, x_0, frame=frame, grid=grid, solver=solver, seed=seeds)
        assert miss <= 1e-10
        assert torch.equal(encoded.x_T[:4], encoded.x_T[4:]) == (eta > 0)


@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.DPMSolverPP2M()], ids=repr)
def test_float32(solver: sa.Solver) -> None:
    x_0, denoiser, grid = MIXTURE.sample(4, seed=0).float(), of_mixture(), sa.uniform_logsnr(VP, 20)
    miss, encoded = round_trip(denoiser, x_0, frame=sa.Frame(VP), grid=grid, solver=solver)
    assert miss <= 512 * torch.finfo(torch.float32).eps
    assert encoded.x_T.dtype == torch.float32
    frame = sa.Frame(VP, eta=1.0)
    miss, encoded = round_trip(denoiser, x_0, frame=frame, grid=grid, solver=solver, tol=1e-5, seed=0)
    assert miss <= 1e-5
    assert encoded.noise is not None
    assert encoded.noise.increments.dtype == torch.float32


@pytest.mark.parametrize(("solver", "tol"), [(sa.Heun(), 1e-3), (sa.Heun(), 1e-12), (sa.DPMSolverPP2M(), 1e-3)])
def test_the_tolerance_is_what_decides(solver: sa.Solver, tol: float) -> None:
    calls, x_0 = [0, 0], MIXTURE.sample(2, seed=0)
    problem = of_mixture().network

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return problem(x, t)

    denoiser = sa.Denoiser(network, VP, "sample", time_dtype=DOUBLE)
    arguments: dict[str, Any] = {"frame": sa.Frame(VP), "grid": sa.uniform_logsnr(VP, 20)[5:16], "solver": solver}
    sa.encode(denoiser, x_0, **arguments)
    calls = [0, calls[0]]
    assert round_trip(denoiser, x_0, tol=tol, **arguments)[0] <= tol
    assert (calls[0] - 10 * solver.claims.evaluations < calls[1]) == (tol > 1e-10)  # less the call of sample


@pytest.mark.parametrize(
    ("number", "solver"), [*enumerate((sa.Heun(), sa.DPMSolverPP2M(), sa.ReversibleHeun()))], ids=repr
)
@pytest.mark.parametrize("eta", [0.0, 1.0, 0.5])
def test_conditioning_that_changes_and_guidance(eta: float, number: int, solver: sa.Solver) -> None:
    # ``batched`` is read where the denoiser calls its network, and nowhere else: with every solver and every eta once.
    batched = bool((number + round(2 * eta)) % 2)
    steps, generator = 6, torch.Generator().manual_seed(0)
    styles = torch.randn(steps, 3, 8, dtype=DOUBLE, generator=generator)
    nulls = [{"style": [row]} for row in torch.randn(steps, 3, 8, dtype=DOUBLE, generator=generator)]
    cond = {"embedding": {"style": [sa.Scheduled(styles)]}}
    guidance = sa.Guidance(1.7, {"embedding": {"style": [sa.Scheduled([n["style"][0] for n in nulls])]}}, batched)
    denoiser = sa.Denoiser(Mlp(4), VP, "v_prediction", guidance=guidance)
    x_0 = torch.randn(3, 4, dtype=DOUBLE, generator=generator)
    grid, seed = sa.uniform_logsnr(VP, steps, t_max=0.7, t_min=0.05), 2 if eta else None
    arguments: dict[str, Any] = {"frame": sa.Frame(VP, eta=eta), "grid": grid, "solver": solver}
    assert round_trip(denoiser, x_0, cond=cond, seed=seed, **arguments)[0] <= 1e-10


# ------------------------------------------------------------------------------------------ the batch, seeds, law


def elementwise(x: Tensor, t: Tensor) -> Tensor:
    return 0.5 * torch.tanh(2 * x)


@pytest.mark.parametrize("solver", [sa.Heun(), sa.DPMSolverPP2M()], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_batch_mates_do_not_matter(eta: float, solver: sa.Solver) -> None:
    """Samples of very different difficulty, which need different numbers of iterations."""
    denoiser, grid = sa.Denoiser(elementwise, VP, "sample"), sa.uniform_logsnr(VP, 20)[8:15]
    x_0 = torch.tensor([0.01, 1.0, 40.0], dtype=DOUBLE)[:, None] * torch.linspace(-1, 1, 16, dtype=DOUBLE)
    arguments: dict[str, Any] = {"frame": sa.Frame(VP, eta=eta), "grid": grid, "solver": solver}
    seeds = [3, 4, 5]
    together = sa.encode(denoiser, x_0, seed=seeds if eta else None, **arguments)
    for i in range(3):
        alone = sa.encode(denoiser, x_0[i : i + 1], seed=seeds[i : i + 1] if eta else None, **arguments)
        torch.testing.assert_close(alone.x_T, together.x_T[i : i + 1], rtol=1e-13, atol=0)
        if alone.noise is not None and together.noise is not None:
            theirs = together.noise.increments[:, i : i + 1]
            torch.testing.assert_close(alone.noise.increments, theirs, rtol=1e-13, atol=1e-13 * float(theirs.max()))


class Counting(sa.Solver):
    """Heun's and Euler's method by turns; it needs the state that it says it begins with."""

    claims = sa.Claims(ode=1, strong=1.0, evaluations=2)
    initial_state = (0,)  # type: ignore[assignment]

    def step(self, drift: Any, interval: sa.Interval, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        (n,) = state
        solver = sa.Euler() if n % 2 else sa.Heun()
        return solver.step(drift, interval, y, ())[0], (n + 1,)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_a_solver_that_begins_with_a_state_of_its_own(eta: float) -> None:
    denoiser, images = digits()
    arguments: dict[str, Any] = {"frame": sa.Frame(VP, eta=eta), "grid": sa.uniform_logsnr(VP, 15)[4:11]}
    assert round_trip(denoiser, images, solver=Counting(), seed=0 if eta else None, **arguments)[0] <= 1e-10


def test_seeds() -> None:
    x_0, denoiser = MIXTURE.sample(3, seed=0), of_mixture()
    arguments: dict[str, Any] = {
        "frame": sa.Frame(VP, eta=1.0), "grid": sa.uniform_logsnr(VP, 6), "solver": sa.ShARK()
    }  # fmt: skip
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first, again, other = (sa.encode(denoiser, x_0, seed=seed, **arguments) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.x_T, again.x_T)
    assert first.noise is not None
    assert again.noise is not None
    assert other.noise is not None
    for name in ("increments", "levy_areas"):
        assert torch.equal(getattr(first.noise, name), getattr(again.noise, name))
        assert not torch.equal(getattr(first.noise, name), getattr(other.noise, name))
    with pytest.raises(ValueError, match="one seed per"):
        sa.encode(denoiser, x_0, seed=[1, 2], **arguments)


def standardized(
    problem: sa.problems.Mixture | sa.problems.Gaussian, frame: sa.Frame, grid: Tensor, n: int
) -> tuple[Tensor, Tensor]:
    """Increments over their standard deviation, (steps, n * numbers), for draws at ``grid[-1]``; and x_T."""
    x_0 = problem.sample(n, seed=0)
    z = torch.randn(x_0.shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
    x_0 = frame.schedule.alpha(grid[-1]) * x_0 + frame.schedule.sigma(grid[-1]) * z
    denoiser = of_mixture() if problem is MIXTURE else problem.denoiser(frame.schedule)
    found = sa.encode(denoiser, x_0, frame=frame, grid=grid, solver=sa.Euler(), seed=7)
    assert found.noise is not None
    return found.noise.increments.flatten(1) / frame.noise_clock(grid).diff().sqrt()[:, None], found.x_T


# The path depends on eta, not on the kind of the equation that it is found to solve; see test_every_kind_and_eta.
@pytest.mark.parametrize(("kind", "eta"), [*zip(KINDS, [0.5, 1.0, 2.0], strict=True)])
def test_increments_are_brownian_at_small_steps(kind: str, eta: float) -> None:
    # Steps of 0.05 in lambda: a variance is off by at most some (1 + eta) h = 0.15, and the mean over steps by less.
    lam = torch.linspace(-4, 3, 141, dtype=DOUBLE)
    unit, x_T = standardized(MIXTURE, sa.Frame(VP, eta=eta, kind=kind), VP.time(lam), 500)
    variances = unit.square().mean(1)
    sampling = 1 / (500**0.5)  # of a variance of 1000 numbers: sqrt(2/1000), of which 4 standard deviations are taken
    assert (variances - 1).abs().max() < 0.15 + 4 * sampling
    assert abs(variances.mean() - 1) < (1 + eta) * 0.05
    serial = (unit[1:] * unit[:-1]).mean(1)  # increments of neighbouring steps are uncorrelated
    assert abs(serial.mean()) < 0.02
    # At lambda = -4 the marginal is N(0, 1) but for a part in 10^3.
    assert stats.kstest(x_T.flatten().numpy(), "norm").pvalue > ALARM
    assert abs(x_T.square().mean() - 1) < 4 * (2 / 1000) ** 0.5 + 0.05


@pytest.mark.parametrize("steps", [4, 16])
def test_the_variance_of_increments_at_finite_steps(steps: int) -> None:
    """Euler, data kind, eta = 1: ``Var dB = dnu + ds^2 Var(x_0 | y_n)``, in closed form for Gaussian data."""
    v, frame, count = 0.8, sa.Frame(VP, eta=1.0), 4000
    grid = VP.time(torch.linspace(-3, 1, steps + 1, dtype=DOUBLE))
    unit, _ = standardized(sa.problems.Gaussian(torch.zeros(2), v), frame, grid, count)
    s = frame.clock(grid)
    want = 1 + s.diff() * v / (1 + s[:-1] * v)
    z = (unit.square().mean(1) / want - 1) * (count * 2 / 2) ** 0.5  # squares of normals have variance 2
    assert z.abs().max() < stats.norm.isf(ALARM / (2 * steps))
    # Together they are the sampler's noise for another law of x_T, so they are normal but not independent.
    assert min(stats.kstest((row / w.sqrt()).numpy(), "norm").pvalue for row, w in zip(unit, want)) > ALARM / steps  # noqa: B905


@pytest.mark.parametrize(("kind", "eta"), [("flow", 0.5), ("noise", 2.0), ("data", 1.0)])
def test_levy_areas_have_their_law(kind: str, eta: float) -> None:
    """Of steps on the noise clock, which is another than the drift's unless eta = 1 in the data kind."""
    frame, grid = sa.Frame(VP, eta, kind), VP.time(torch.linspace(-1, 1, 5, dtype=DOUBLE))
    x_0 = torch.zeros(1, 4000, dtype=DOUBLE)
    denoiser = sa.Denoiser(elementwise, VP, "sample")
    noise = sa.encode(denoiser, x_0 + 1, frame=frame, grid=grid, solver=sa.ShARK(), seed=0).noise
    assert noise is not None
    assert noise.levy_areas is not None
    scale = (frame.noise_clock(grid).diff() / 12).sqrt()
    for H, size in zip(noise.levy_areas, scale, strict=True):
        assert stats.kstest((H.flatten() / size).numpy(), "norm").pvalue > ALARM / 4


def equation_of(eta: float, lam: list[float]) -> Diffusion:
    grid = VP.time(torch.tensor(lam, dtype=DOUBLE))
    denoiser = sa.problems.Gaussian(0.0, 1e-300).denoiser(VP)  # all data at 0: predicts x_0 = 0 (up to 1e-300 x)
    return Diffusion.create(denoiser, sa.Frame(VP, eta=eta), grid, {})


@pytest.mark.parametrize("eta", [0.2, 1.0, 3.0])
def test_the_forward_process_keeps_the_marginals_of_a_point_exactly(eta: float) -> None:
    """With x0 known, a forward step of any size takes ``N(alpha x0, sigma^2)`` to ``N(alpha x0, sigma^2)``."""
    equation = equation_of(eta, [-1.5, 0.5])
    s0, s1 = VP.sigma(torch.tensor(equation.times, dtype=DOUBLE)).tolist()
    ones, zeros = torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, 1, dtype=DOUBLE)
    kept, fresh = (float(equation.reversal(0, x, z)) for x, z in ((s1 * ones, zeros), (zeros, ones)))
    assert kept**2 + fresh**2 == pytest.approx(s0**2, rel=1e-12)
    assert kept / s0 == pytest.approx(math.exp(-2 * eta), rel=1e-12)  # e^(-eta h), h = 2


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_process_predicts_where_the_step_begins(kind: str) -> None:
    grid, denoiser, eta = VP.time(torch.tensor([-1.5, 0.5], dtype=DOUBLE)), of_mixture(), 0.3
    frame = sa.Frame(VP, eta=eta, kind=kind)
    equation = Diffusion.create(denoiser, frame, grid, {})
    x, z = MIXTURE.sample(4, seed=0), MIXTURE.sample(4, seed=1)
    x0 = denoiser(x, float(grid[1]))
    eps = (x - VP.alpha(grid[1]) * x0) / VP.sigma(grid[1])
    want = VP.alpha(grid[0]) * x0 + VP.sigma(grid[0]) * (
        math.exp(-2 * eta) * eps + math.sqrt(1 - math.exp(-4 * eta)) * z
    )
    torch.testing.assert_close(equation.reversal(0, x, z), want, rtol=1e-11, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_forward_process_predicts_with_the_conditioning_of_its_step(kind: str) -> None:
    """The network predicts its conditioning, another one on each step."""
    grid, eta = VP.time(torch.tensor([-2.0, -1.0, 0.0, 1.0], dtype=DOUBLE)), 0.5
    denoiser, frame = sa.Denoiser(lambda x, t, label: label + 0 * x, VP, "sample"), sa.Frame(VP, eta, kind)
    slots = torch.tensor([0.3, -0.7, 1.1], dtype=DOUBLE)
    cond = {"label": sa.Scheduled(slots[:, None, None].expand(3, 2, 4))}
    equation = Diffusion.create(denoiser, frame, grid, cond)
    generator = torch.Generator().manual_seed(0)
    for n, label in enumerate(slots.tolist()):
        x, z = torch.randn(2, 2, 4, dtype=DOUBLE, generator=generator)
        (a0, a1), (s0, s1) = (f(grid[n : n + 2]).tolist() for f in (VP.alpha, VP.sigma))
        eps = (x - a1 * label) / s1
        want = a0 * label + s0 * (math.exp(-eta) * eps + math.sqrt(1 - math.exp(-2 * eta)) * z)
        torch.testing.assert_close(equation.reversal(n, x, z), want, rtol=1e-11, atol=1e-13)


def test_eta_one_is_the_forward_process_without_the_network() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError

    grid = VP.time(torch.tensor([-1.5, 0.5], dtype=DOUBLE))
    denoiser = sa.Denoiser(network, VP, "sample")
    equation = Diffusion.create(denoiser, sa.Frame(VP, eta=1.0), grid, {})
    (a0, a1), (s0, s1) = VP.alpha(grid).tolist(), VP.sigma(grid).tolist()
    x, z = torch.tensor([[0.3]], dtype=DOUBLE), torch.tensor([[-1.2]], dtype=DOUBLE)
    want = a0 / a1 * 0.3 - 1.2 * (s0**2 - (a0 / a1 * s1) ** 2) ** 0.5
    assert float(equation.reversal(0, x, z)) == pytest.approx(want, rel=1e-13)


@pytest.mark.parametrize("seed", range(5))
def test_a_ddim_step_of_an_exact_denoiser_is_monotone(seed: int) -> None:
    """``<y - y', E(y) - E(y')> >= |y - y'|^2`` for ``E(y) = y + ds F(y)``, so each target has exactly one solution."""
    denoiser, _ = digits()
    equation = Diffusion.create(denoiser, sa.Frame(VP), sa.uniform_logsnr(VP, 5), {})
    recursion = Recursion(equation, sa.Euler())
    generator = torch.Generator().manual_seed(seed)
    for n in range(1, 5):
        y, other = (torch.randn(8, 1, 8, 8, dtype=DOUBLE, generator=generator) / equation.weights[n] for _ in "ab")
        moved = [recursion.step(n, Carry(v, ()), None).y for v in (y, other)]
        gap, inner = (y - other), ((y - other) * (moved[0] - moved[1])).flatten(1).sum(1)
        assert (inner >= gap.flatten(1).square().sum(1) * (1 - 1e-12)).all()


# ------------------------------------------------------------------------------------------------------- fixed points


def test_linear_equations_where_plain_iteration_diverges() -> None:
    """``x = b - A x`` with eigenvalues of A up to 40, for three samples with their own A; one is solved already."""
    generator = torch.Generator().manual_seed(0)
    q = torch.linalg.qr(torch.randn(3, 6, 6, dtype=DOUBLE, generator=generator))[0]
    A = q @ torch.diag(torch.tensor([40.0, 9.0, 2.0, 0.5, 0.1, 0.0], dtype=DOUBLE)) @ q.mT
    b = torch.randn(3, 6, dtype=DOUBLE, generator=generator)
    exact = torch.linalg.solve(torch.eye(6, dtype=DOUBLE) + A, b)

    def update(x: Tensor) -> tuple[Tensor, Tensor]:
        r = b - x - (A @ x[:, :, None])[:, :, 0]
        return r, r.norm(dim=1) / b.norm(dim=1)

    start = torch.stack([torch.zeros(6, dtype=DOUBLE), exact[1], 100 * b[2]])
    found = fixed_point(update, start, tol=1e-12, max_iterations=40)
    assert found.iterations < 40
    torch.testing.assert_close(found.x, exact, rtol=0, atol=1e-10)
    assert torch.equal(found.x[1], exact[1])  # solved at the start, never touched


def test_a_sample_that_takes_a_wrong_turn_leaves_its_batch_mates_their_past() -> None:
    A = torch.diag(torch.tensor([40.0, 9.0, 2.0, 0.5], dtype=DOUBLE))

    def iterates(batch: int) -> Tensor:
        seen: list[Tensor] = []

        def update(x: Tensor) -> tuple[Tensor, Tensor]:
            seen.append(x[0])
            error = torch.ones(batch, dtype=DOUBLE)
            error[1:] = 1.0 if len(seen) != 4 else 1e6
            return 1 - x - x @ A, error

        fixed_point(update, torch.zeros(batch, 4, dtype=DOUBLE), tol=1e-12, max_iterations=5)
        return torch.stack(seen)

    # Four differences solve four equations, but for round-off.
    torch.testing.assert_close(iterates(2), iterates(1), rtol=1e-10, atol=1e-10)


def test_the_best_iterate_is_returned_when_the_limit_is_reached() -> None:
    seen: list[tuple[float, float]] = []

    def update(x: Tensor) -> tuple[Tensor, Tensor]:  # no fixed point
        r = 1 + x.square()
        seen.append((float(r), float(x)))
        return r, r[:, 0]

    found = fixed_point(update, torch.full((1, 1), -2.0, dtype=DOUBLE), tol=1e-10, max_iterations=30)
    assert found.iterations == len(seen) == 30
    assert (float(found.error), float(found.x)) == min(seen)


# ------------------------------------------------------------------------------------------------------------- errors


def mixture_call(**changes: Any) -> Callable[[], object]:
    arguments: dict[str, Any] = {
        "denoiser": of_mixture(), "x_0": MIXTURE.sample(2, seed=0), "frame": sa.Frame(VP),
        "grid": sa.uniform_logsnr(VP, 8), "solver": sa.Euler(),
    } | changes  # fmt: skip
    denoiser, x_0 = arguments.pop("denoiser"), arguments.pop("x_0")
    return lambda: sa.encode(denoiser, x_0, **arguments)


SDE, ENDS = sa.Frame(VP, eta=1.0), torch.tensor([1.0, 0.5, 0.0], dtype=DOUBLE)


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (mixture_call(denoiser=torch.tanh), TypeError, "denoiser: got"),
        (mixture_call(x_0=[1.0]), TypeError, "x_0: got list"),
        (mixture_call(x_0=torch.zeros(2, 2, dtype=torch.float16)), TypeError, "x_0: got dtype torch.float16"),
        (mixture_call(x_0=torch.full((2, 2), torch.nan)), ValueError, "x_0: it holds NaN"),
        (mixture_call(x_0=torch.zeros(2, 2, dtype=torch.bfloat16)), TypeError, r"bfloat16.*pass x_0.float\(\)"),
        (mixture_call(x_0=torch.zeros(2, 2), tol=1e-6), ValueError, r"tol: got 1e-06, but torch.float32 .*x_0.double"),
        (mixture_call(frame=sa.Frame(sa.VE())), ValueError, "pass one schedule to both"),
        (mixture_call(solver=sa.Euler), TypeError, "solver: got the class Euler"),
        (mixture_call(tol=0.0), ValueError, "tol: got 0.0"),
        (mixture_call(tol="x"), ValueError, "tol: got 'x'"),
        (mixture_call(tol=1.0), ValueError, "tol: got 1.0"),
        (mixture_call(max_iterations=0), ValueError, "max_iterations: got 0"),
        (mixture_call(grid=ENDS), ValueError, "projection to the predicted x_0, which cannot be undone; end the grid"),
        (mixture_call(grid=ENDS, frame=SDE, seed=0), ValueError, "projection"),
        (mixture_call(frame=SDE), ValueError, "seed: got None, but eta = 1.0"),
        (mixture_call(seed=0), ValueError, "seed: got 0, but eta = 0 is the ODE"),
        (mixture_call(frame=SDE, seed=-1), ValueError, "seed must be in"),
        (mixture_call(frame=sa.Frame(VP, eta=1e-17), seed=0), ValueError, r"stands still in steps \[0, "),
        (mixture_call(x_0=MIXTURE.sample(2, seed=0).requires_grad_()), RuntimeError, "x_0 requires a gradient.*detach"),
        (mixture_call(cond={"z": torch.zeros(1, requires_grad=True)}), RuntimeError, "cond requires a gradient"),
        (
            mixture_call(denoiser=of_mixture().guided_by(sa.Guidance(torch.ones(1, requires_grad=True)))),
            RuntimeError, "guidance requires a gradient",
        ),
    ],
)  # fmt: skip
def test_arguments_refused(make: Callable[[], object], kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        make()


def unreachable(x: Tensor, t: Tensor) -> Tensor:
    """y + ds F(y) is a parabola that opens downwards: it does not reach large targets."""
    return -5 * x.square()


@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun()], ids=repr)
def test_a_step_that_cannot_be_undone_is_named(solver: sa.Solver) -> None:
    denoiser, grid = sa.Denoiser(unreachable, VP, "sample"), sa.uniform_logsnr(VP, 4, t_min=0.1)
    x_0 = torch.tensor([[-0.0], [30.0]], dtype=DOUBLE)
    with pytest.raises(RuntimeError, match=r"step 3 of 4 \(from t=.*sample 1 .*residual of .* 50 .*more steps.*larger"):
        sa.encode(denoiser, x_0, frame=sa.Frame(VP), grid=grid, solver=solver)


def test_sweeps_that_do_not_converge_say_so() -> None:
    denoiser, images = digits()
    grid, solver = sa.uniform_logsnr(VP, 6), sa.DPMSolverPP2M()
    with pytest.raises(RuntimeError, match=r"after 5 sweeps sample \d .* above tol=1e-10; pass a grid with more steps"):
        sa.encode(denoiser, images, frame=sa.Frame(VP), grid=grid, solver=solver, max_iterations=5)


def test_an_iteration_that_leaves_the_numbers_says_so() -> None:
    denoiser, grid = sa.Denoiser(unreachable, VP, "sample"), sa.uniform_logsnr(VP, 4, t_min=0.1)
    x_0 = torch.tensor([[30.0]], dtype=DOUBLE)
    with pytest.raises(ValueError, match="not finite") as caught:
        sa.encode(denoiser, x_0, frame=sa.Frame(VP), grid=grid, solver=sa.DPMSolverPP2M())
    assert any("its iteration diverged: pass more steps" in note for note in caught.value.__notes__)


class Dropping(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.dropout(torch.tanh(x))


@pytest.mark.parametrize("solver", [sa.Euler(), sa.DPMSolverPP2M()], ids=repr)
@pytest.mark.parametrize("eta", [0.0, 1.0, 0.5])
def test_dropout_is_noticed(eta: float, solver: sa.Solver) -> None:
    denoiser, x_0 = sa.Denoiser(Dropping(), VP, "sample"), torch.ones(2, 16, dtype=DOUBLE)
    arguments: dict[str, Any] = {
        "frame": sa.Frame(VP, eta=eta), "grid": sa.uniform_logsnr(VP, 6), "solver": solver, "max_iterations": 10,
        "seed": 0 if eta else None,
    }  # fmt: skip
    with pytest.raises(RuntimeError, match=r"dropout is not a function: call eval\(\)"):
        sa.encode(denoiser, x_0, **arguments)
    denoiser.eval()
    assert round_trip(denoiser, x_0, **arguments | {"max_iterations": 50})[0] <= 1e-10


def test_no_gradients_flow_and_none_are_needed() -> None:
    denoiser, grid = sa.Denoiser(Mlp(2), VP, "epsilon"), sa.uniform_logsnr(VP, 4)
    x_0 = torch.ones(1, 2, dtype=DOUBLE, requires_grad=True)
    frame = sa.Frame(VP, eta=0.5)
    with torch.no_grad():
        silent = sa.encode(denoiser, x_0, frame=frame, grid=grid, solver=sa.Heun(), seed=0)
    found = sa.encode(denoiser, x_0.detach(), frame=frame, grid=grid, solver=sa.Heun(), seed=0)
    for encoded in (silent, found):  # although the network's parameters require gradients
        assert encoded.noise is not None
        assert not encoded.x_T.requires_grad
        assert not encoded.noise.increments.requires_grad


@pytest.mark.parametrize(
    ("solver", "unit"), [(sa.Euler(), "4/4"), (sa.DPMSolverPP2M(), "sweep")], ids=["steps", "sweeps"]
)
def test_progress(solver: sa.Solver, unit: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tqdm")
    sa.encode(
        of_mixture(), MIXTURE.sample(1, seed=0), frame=sa.Frame(VP), grid=sa.uniform_logsnr(VP, 4, t_min=0.1),
        solver=solver, progress=True,
    )  # fmt: skip
    err = capsys.readouterr().err
    assert "encoding" in err
    assert unit in err
