"""Log-probabilities of transitions against closed forms, and what follows from them against what else gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.probability import flow_grpo
from sdeadjoint.testing import check_equation

from .networks import Counting, Mlp

DOUBLE = torch.float64
VP, FLOW = sa.VPLinear(), sa.RectifiedFlow()
GRID = sa.uniform_logsnr(VP, 7, t_min=2e-2)
UNEVEN = torch.tensor([1.0, 0.97, 0.7, 0.65, 0.3, 0.21, 0.05], dtype=DOUBLE)
SOLVERS = [sa.Euler(), sa.DPMSolverPP2M(), sa.AdamsBashforth(3), sa.AdamsBashforth(2, "clock"), sa.UniPC(2)]
GAUSSIAN = sa.problems.Gaussian(0.3, 0.4)


def drawn(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=DOUBLE).to(dtype)


def walked(denoiser: sa.Denoiser, frame: sa.Frame, solver: sa.Solver = sa.Euler(), **more: Any) -> Tensor:  # noqa: B008
    """A trajectory of three samples of four numbers."""
    given = {"grid": GRID, "noise": sa.BrownianPath(1)} | more
    x_T = given.pop("x_T", drawn(3, 4))
    return sa.sample(denoiser, x_T, frame=frame, solver=solver, trajectory=True, **given)


# ---------------------------------------------------------------- closed forms on Gaussian data


def written_out(x: Tensor, eta: float, kind: str, grid: Tensor) -> tuple[Tensor, Tensor]:
    """Means and variances of Euler's steps on Gaussian data, from the published updates in x (Lu et al., 2022)."""
    alpha, sigma, lam = VP.alpha(grid), VP.sigma(grid), VP.lam(grid)
    means, variances = [], []
    for n, h in enumerate(lam.diff()):
        a, s, a1, s1 = alpha[n], sigma[n], alpha[n + 1], sigma[n + 1]
        x0 = 0.3 + a * 0.4 / (a**2 * 0.4 + s**2) * (x[n] - a * 0.3)
        if kind == "data":
            mean = s1 / s * (-eta * h).exp() * x[n] - a1 * torch.expm1(-(1 + eta) * h) * x0
            variance = -(s1**2) * torch.expm1(-2 * eta * h)
        else:
            mean = a1 / a * x[n] - (1 + eta) * s1 * torch.expm1(h) * (x[n] - a * x0) / s
            variance = eta * s1**2 * torch.expm1(2 * h)
        means.append(mean)
        variances.append(variance)
    return torch.stack(means), torch.stack(variances)


@pytest.mark.parametrize("kind", ["data", "noise"])
@pytest.mark.parametrize("eta", [0.25, 1.0, 2.0])
@pytest.mark.parametrize("grid", [GRID, UNEVEN], ids=["even", "uneven"])
def test_steps_on_gaussian_data_are_the_closed_form(kind: str, eta: float, grid: Tensor) -> None:
    """To 1e-12: a step amplifies the round-off of ``ds`` and ``dnu``, some ulps, by the residual's size at most."""
    denoiser, frame = GAUSSIAN.denoiser(VP), sa.Frame(VP, eta=eta, kind=kind)
    path = walked(denoiser, frame, grid=grid)
    mean, variance = written_out(path, eta, kind, grid)
    laws = sa.transitions(denoiser, path, frame=frame, grid=grid, solver=sa.Euler())
    assert torch.allclose(laws.mean, mean, rtol=1e-12, atol=1e-12)
    assert torch.allclose(laws.variance, variance, rtol=1e-12, atol=0)
    normal = torch.distributions.Normal(mean, variance.sqrt()[:, None, None])
    got = sa.transition_log_prob(denoiser, path, frame=frame, grid=grid, solver=sa.Euler())
    assert got.shape == (len(grid) - 1, 3)
    assert got.dtype == DOUBLE
    assert torch.allclose(got, normal.log_prob(path[1:]).sum(2), rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_density_of_a_whole_path_is_that_of_its_joint_gaussian(solver: sa.Solver, kind: str) -> None:
    """On Gaussian data the path is affine in its increments, whose Jacobian autograd has from ``sample``."""
    denoiser, frame = GAUSSIAN.denoiser(VP), sa.Frame(VP, eta=0.6, kind=kind)
    x_T = drawn(1, 1)

    def path(increments: Tensor) -> Tensor:
        noise = sa.FixedNoise(increments.reshape(-1, 1, 1))
        out = walked(denoiser, frame, solver, x_T=x_T, noise=noise, adjoint=sa.Direct())
        return out[1:].reshape(-1)

    dB = sa.BrownianPath(3).increments(frame, GRID, x_T).reshape(-1)
    J = torch.autograd.functional.jacobian(path, dB)
    dnu = frame.noise_clock(GRID).diff()
    # log |det J| is exact, as J is triangular; dB is N(0, dnu).
    want = torch.distributions.Normal(0.0, dnu.sqrt()).log_prob(dB).sum() - torch.linalg.slogdet(J)[1]
    whole = torch.cat([x_T[None], path(dB).reshape(-1, 1, 1)])
    got = sa.transition_log_prob(denoiser, whole, frame=frame, grid=GRID, solver=solver)
    # The residual's round-off: that of x over the step's standard deviation, 1e-13 here, times a few deviations.
    assert torch.allclose(got.sum(0), want, rtol=0, atol=1e-11)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_the_residuals_are_the_noise_that_made_the_path(solver: sa.Solver) -> None:
    """To 512 ulps of the largest state in standard deviations: a dozen operations, on terms of ten times their sum."""
    denoiser, frame = sa.Denoiser(Mlp(4), VP), sa.Frame(VP, eta=0.7)
    path = walked(denoiser, frame, solver).detach()
    laws = sa.transitions(denoiser, path, frame=frame, grid=GRID, solver=solver)
    normals = sa.BrownianPath(1).normals(frame, GRID, drawn(3, 4))
    got = (path[1:] - laws.mean) / laws.variance.sqrt()[:, None, None]
    largest = float((path[1:].abs().amax((1, 2)) / laws.variance.sqrt()).max())
    assert torch.allclose(got, normals, rtol=0, atol=512 * torch.finfo(DOUBLE).eps * largest)


def test_divergence_and_weights_have_their_closed_forms() -> None:
    """Two Gaussians: ``KL = E log p/p'``, and the log-ratio is the difference of the log-probabilities."""
    a, b = GAUSSIAN.denoiser(VP), sa.problems.Gaussian(-0.2, 0.9).denoiser(VP)
    frame = sa.Frame(VP, eta=0.5)
    call: dict[str, Any] = {"frame": frame, "grid": GRID, "solver": sa.DPMSolverPP2M()}
    path = walked(b, frame, sa.DPMSolverPP2M())
    p, q = (sa.transitions(one, path, **call) for one in (a, b))
    kl = torch.distributions.kl_divergence(
        *(torch.distributions.Normal(law.mean, law.variance.sqrt()[:, None, None]) for law in (p, q))
    )
    assert torch.allclose(sa.transition_kl(a, b, path, **call), kl.sum(2), rtol=1e-12)
    difference = p.log_prob - q.log_prob
    assert torch.allclose(p.log_ratio(q), difference, rtol=0, atol=1e-10)
    assert torch.allclose(sa.path_log_weight(a, b, path, **call), difference.sum(0), rtol=0, atol=1e-10)


def test_laws_of_other_variances_have_theirs_too() -> None:
    """Frames of two etas on one path; Gaussians of any variances."""
    denoiser = GAUSSIAN.denoiser(VP)
    path = walked(denoiser, sa.Frame(VP, eta=0.5))
    p, q = (
        sa.transitions(denoiser, path, frame=sa.Frame(VP, eta=eta), grid=GRID, solver=sa.Euler()) for eta in (0.5, 1.5)
    )
    one, other = (torch.distributions.Normal(law.mean, law.variance.sqrt()[:, None, None]) for law in (p, q))
    assert torch.allclose(p.kl(q), torch.distributions.kl_divergence(one, other).sum(2), rtol=1e-11)
    assert torch.allclose(p.log_ratio(q), p.log_prob - q.log_prob, rtol=0, atol=1e-9)


# ---------------------------------------------------------------- what they are for


class Pulled(nn.Module):
    """A posterior mean of Gaussian data, bent, and moved by theta: one number per sample, so gradients are too."""

    def forward(self, x: Tensor, t: Tensor, theta: Tensor) -> Tensor:
        return 0.5 * x + 0.3 * torch.tanh(x) + theta[:, None]


def test_importance_weights_average_to_one() -> None:
    """And reweight to the other model's mean: within 4 standard errors of 4000 paths, by a fixed seed."""
    denoiser, frame = sa.Denoiser(Pulled(), VP, "sample"), sa.Frame(VP, eta=1.0)
    size = 4000
    x_T, zero, theta = drawn(size, 2), torch.zeros(size, dtype=DOUBLE), torch.full((size,), 0.05, dtype=DOUBLE)
    moved = sa.Denoiser(lambda x, t, theta: Pulled()(x, t, theta + 0.05), VP, "sample")
    call: dict[str, Any] = {"frame": frame, "grid": GRID, "solver": sa.DPMSolverPP2M()}
    path = sa.sample(denoiser, x_T, noise=sa.BrownianPath(2), trajectory=True, cond={"theta": zero}, **call)
    weights = sa.path_log_weight(moved, denoiser, path, cond={"theta": zero}, **call).exp()
    assert abs(weights.mean() - 1) < 4 * weights.std() / math.sqrt(size)
    assert weights.std() < 1.5
    other = sa.sample(denoiser, x_T, noise=sa.BrownianPath(3), cond={"theta": theta}, **call)
    weighted = weights * path[-1].sum(1)
    error = math.sqrt(float(weighted.var() + other.sum(1).var()) / size)
    assert abs(weighted.mean() - other.sum(1).mean()) < 4 * error
    assert abs(path[-1].sum(1).mean() - other.sum(1).mean()) > 4 * error  # and it is a test


@pytest.mark.parametrize("solver", [sa.Euler(), sa.DPMSolverPP2M(), sa.AdamsBashforth(3)], ids=repr)
def test_the_score_function_gradient_agrees_with_the_pathwise_one(solver: sa.Solver) -> None:
    denoiser, frame = sa.Denoiser(Pulled(), VP, "sample"), sa.Frame(VP, eta=1.0)
    size = 4000
    theta = torch.zeros(size, dtype=DOUBLE, requires_grad=True)
    call: dict[str, Any] = {"frame": frame, "grid": GRID, "solver": solver, "cond": {"theta": theta}}
    path = sa.sample(denoiser, drawn(size, 2), noise=sa.BrownianPath(4), trajectory=True, **call)
    reward = torch.sin(path[-1]).sum(1)
    (pathwise,) = torch.autograd.grad(reward.sum(), theta)
    log_prob = sa.transition_log_prob(denoiser, path.detach(), **call).sum(0)
    (score,) = torch.autograd.grad((reward.detach() * log_prob).sum(), theta)
    # A baseline that does not depend on the sample's own noise: the score has mean zero.
    (plain,) = torch.autograd.grad(sa.transition_log_prob(denoiser, path.detach(), **call).sum(), theta)
    score = score - reward.mean().detach() * plain
    half = 1.96 * float(score.std()) / math.sqrt(size)
    assert abs(float(score.mean() - pathwise.mean())) < half
    assert half < 0.5 * abs(float(pathwise.mean()))  # zero is outside


# ---------------------------------------------------------------- Flow-GRPO


def shifted(steps: int, shift: float = 3.0) -> Tensor:
    sigma = torch.linspace(1, 0, steps + 1, dtype=DOUBLE)
    return shift * sigma / (1 + (shift - 1) * sigma)


def published(x: Tensor, v: Tensor, sigma: float, following: float, first: float, level: float) -> tuple[Tensor, float]:
    """Mean and standard deviation of the step, as Flow-GRPO writes it down."""
    std = math.sqrt(sigma / (1 - (first if sigma == 1 else sigma))) * level
    dt = following - sigma
    mean = x * (1 + std**2 / (2 * sigma) * dt) + v * (1 + std**2 * (1 - sigma) / (2 * sigma)) * dt
    return mean, std * math.sqrt(-dt)


@pytest.mark.parametrize("level", [0.7, 0.3])
def test_the_published_step_of_flow_grpo_has_its_published_log_probability(level: float) -> None:
    network = Mlp(4)
    denoiser, grid = sa.Denoiser(network, FLOW, "flow_prediction"), shifted(6)
    equation = flow_grpo(denoiser, grid, level=level)
    path = sa.solve(equation, drawn(3, 4), solver=sa.Euler(), noise=sa.BrownianPath(0), trajectory=True)
    got = sa.transition_log_prob(equation, path, solver=sa.Euler())
    laws = sa.transitions(equation, path, solver=sa.Euler())
    for n, (sigma, following) in enumerate(pairwise(grid.tolist())):
        v = network(path[n], torch.full((3,), sigma, dtype=DOUBLE))
        mean, std = published(path[n], v, sigma, following, float(grid[1]), level)
        want = -((path[n + 1] - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))
        assert torch.allclose(got[n], want.sum(1), rtol=1e-12, atol=1e-11)
        assert torch.allclose(laws.mean[n], mean, rtol=1e-12, atol=1e-13)
        noise = sa.BrownianPath(0).bind(torch.tensor(equation.noise_clock, dtype=DOUBLE), drawn(3, 4), False)
        assert torch.allclose(path[n + 1], mean + noise.increment(n).dB, rtol=0, atol=1e-12)


def test_it_is_the_member_of_half_the_squared_level_up_to_its_discretisation() -> None:
    """In the middle of a grid its mean and variance approach those of the frame's Euler, linearly in 1/steps."""
    denoiser = sa.problems.Mixture([0.5, 0.5], [-1.0, 1.0], 0.3).denoiser(FLOW)
    frame, differences = sa.Frame(FLOW, eta=0.7**2 / 2), []
    for steps in (40, 80, 160):
        grid = torch.linspace(0.9, 0.1, steps + 1, dtype=DOUBLE)
        path = torch.full((steps + 1, 1), 0.4, dtype=DOUBLE)
        own = sa.transitions(denoiser, path, frame=frame, grid=grid, solver=sa.Euler())
        theirs = sa.transitions(flow_grpo(denoiser, grid), path, solver=sa.Euler())
        drift = steps * (theirs.mean - own.mean).abs().max()
        differences.append((float((theirs.variance / own.variance - 1).abs().max()), float(drift)))
    for coarse, fine in pairwise(differences):
        for one, other in zip(coarse, fine, strict=True):
            assert 1.8 < one / other < 2.2
    assert differences[-1][0] < 2 * (0.8 / 160) / 0.1  # twice the last step over its time


def test_its_equation_keeps_the_contract() -> None:
    network = Mlp(4)
    denoiser = sa.Denoiser(network, FLOW, "flow_prediction")
    check_equation(flow_grpo(denoiser, shifted(4)[:-1] * 0.9 + 0.05), drawn(2, 4))


def test_other_schedules_and_levels_are_refused() -> None:
    with pytest.raises(ValueError, match=r"denoiser: its schedule is VPLinear"):
        flow_grpo(GAUSSIAN.denoiser(VP), GRID)
    with pytest.raises(ValueError, match="level: got 0"):
        flow_grpo(GAUSSIAN.denoiser(FLOW), shifted(4), level=0)


# ---------------------------------------------------------------- gradients


class Conditioned(nn.Module):
    """A network with weights, a per-sample conditioning and one that all samples share."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Mlp(4)
        self.calls: list[int] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor, style: Tensor, name: str = "a") -> Tensor:
        self.calls.append(x.shape[0])
        assert t.shape == (x.shape[0],)
        return self.inner(x, t) * style + torch.sin(label)


def conditions(steps: int) -> dict[str, Any]:
    label = sa.Scheduled(drawn(steps, 3, 4, seed=5).requires_grad_())
    return {"label": label, "style": drawn(1, 4, seed=6).requires_grad_(), "name": "a"}


def guided(network: nn.Module) -> sa.Denoiser:
    scale = drawn(3, 1, seed=8).requires_grad_()
    steps = len(GRID) - 1
    return sa.Denoiser(
        network, VP, guidance=sa.Guidance(sa.Scheduled([scale * (1 + n) / 4 for n in range(steps)]), conditions(steps))
    )


def direct(
    make: Callable[[nn.Module], sa.Denoiser], solver: sa.Solver, **how: Any
) -> tuple[Tensor, list[Tensor], list]:
    """Log-probabilities, and gradients of a random combination in everything."""
    network = Conditioned()
    denoiser, frame, cond = make(network), sa.Frame(VP, eta=0.7), conditions(len(GRID) - 1)
    path = walked(denoiser, frame, solver, cond=cond).detach().requires_grad_()
    network.calls.clear()
    log_prob = sa.transition_log_prob(denoiser, path, frame=frame, grid=GRID, solver=solver, cond=cond, **how)
    leaves = [path, cond["label"].values, cond["style"], network.inner.inward.weight, network.inner.shared]
    if denoiser.guidance is not None:
        leaves += [denoiser.guidance.unconditional["label"].values]
    calls = [*network.calls]
    return log_prob, list(torch.autograd.grad((log_prob * drawn(*log_prob.shape)).sum(), leaves)), calls


@cache
def by_autograd(make: Any, solver: sa.Solver) -> Any:
    return direct(make, solver, adjoint=sa.Direct())


def plain(network: nn.Module) -> sa.Denoiser:
    return sa.Denoiser(network, VP)


WAYS: list[dict[str, Any]] = [
    {},
    {"adjoint": sa.Checkpoint(2)},
    {"adjoint": sa.Checkpoint(memory="1MB")},
    {"batch_size": 3},
    {"batch_size": 8},
    {"batch_size": 2},
    {"batch_size": 100, "adjoint": sa.Direct()},
]


@pytest.mark.parametrize("solver", SOLVERS[:3], ids=repr)
@pytest.mark.parametrize("how", WAYS, ids=str)
def test_gradients_are_those_of_plain_autograd(solver: sa.Solver, how: dict[str, Any]) -> None:
    """In weights, per-sample and shared conditioning, guidance and the path; to round-off of sums of ten terms."""
    # What joins the calls of several steps looks into the guidance, and not at the solver: each two of the three meet.
    make = (plain, guided)[(SOLVERS.index(solver) + WAYS.index(how)) % 2]
    want, gradients, _ = by_autograd(make, solver)
    got, others, calls = direct(make, solver, **how)
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-11)
    for one, other in zip(others, gradients, strict=True):
        assert torch.allclose(one, other, rtol=1e-10, atol=1e-11 * float(other.abs().max()))
        assert other.abs().max() > 0
    most = how.get("batch_size", 3)
    assert max(calls) <= most * (2 if make is guided and max(calls) > most else 1)


def test_plain_autograd_agrees_with_finite_differences() -> None:
    denoiser, frame = GAUSSIAN.denoiser(VP), sa.Frame(VP, eta=0.7)
    path = walked(denoiser, frame, sa.DPMSolverPP2M(), x_T=drawn(1, 2)).detach().requires_grad_()
    assert torch.autograd.gradcheck(
        lambda path: sa.transition_log_prob(denoiser, path, frame=frame, grid=GRID, solver=sa.DPMSolverPP2M()),
        (path,),
        rtol=1e-4,
    )


@pytest.mark.parametrize(("batch_size", "most", "count"), [(None, 3, 7), (6, 6, 4), (7, 6, 4), (21, 21, 1), (1, 1, 21)])
def test_calls_have_the_size_that_is_asked_for(batch_size: int | None, most: int, count: int) -> None:
    network = Conditioned()
    denoiser, frame, cond = plain(network), sa.Frame(VP, eta=1.0), conditions(7)
    path = walked(denoiser, frame, cond=cond).detach()
    network.calls.clear()
    with torch.no_grad():
        sa.transition_log_prob(
            denoiser, path, frame=frame, grid=GRID, solver=sa.Euler(), cond=cond, batch_size=batch_size
        )
    assert (max(network.calls), len(network.calls)) == (most, count)


@pytest.mark.parametrize(("adjoint", "most"), [(sa.Checkpoint(), 2), (sa.Direct(), 7)], ids=repr)
def test_the_activations_of_one_step_are_alive_at_a_time(adjoint: sa.Adjoint, most: int) -> None:
    """Two at the moment at which a step's graph takes the place of the one before."""
    network = Counting()
    denoiser, frame = sa.Denoiser(network, VP), sa.Frame(VP, eta=1.0)
    path = walked(denoiser, frame).detach()
    network.most = 0
    log_prob = sa.transition_log_prob(denoiser, path, frame=frame, grid=GRID, solver=sa.Euler(), adjoint=adjoint)
    assert len(network.alive) <= (0 if most == 2 else most)
    log_prob.sum().backward()
    assert network.most <= most
    if adjoint == sa.Direct():
        assert network.most == most


# ---------------------------------------------------------------- which steps, which dtypes


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_chosen_steps_are_those_of_all_and_cost_only_their_calls(solver: sa.Solver) -> None:
    network = Mlp(4)
    calls: list[float] = []

    def counted(x: Tensor, t: Tensor) -> Tensor:
        calls.append(float(t[0]))
        return network(x, t)

    denoiser, frame = sa.Denoiser(counted, VP), sa.Frame(VP, eta=0.7)
    call: dict[str, Any] = {"frame": frame, "grid": GRID, "solver": solver}
    path = walked(denoiser, frame, solver)
    whole = sa.transition_log_prob(denoiser, path, **call)
    for chosen in ([5], [6, 0], [2, 3]):
        calls.clear()
        with torch.no_grad():
            assert torch.equal(sa.transition_log_prob(denoiser, path, steps=chosen, **call), whole[chosen])
        past = {"Euler()": 0, "DPMSolverPP2M()": 1, "UniPC": 2}.get(
            repr(solver).replace(repr(sa.UniPC(2)), "UniPC"), getattr(solver, "order", 1) - 1
        )
        needed = {m for n in chosen for m in range(max(0, n - past), n + 1)}
        assert calls == [float(GRID[m]) for m in sorted(needed)]
    mask = torch.tensor([n in (1, 4) for n in range(7)])
    for given in (mask, mask.tolist()):
        assert torch.equal(sa.transition_log_prob(denoiser, path, steps=given, **call), whole[mask])


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 2e-3), (torch.bfloat16, 1.0)])
def test_narrow_states_are_judged_in_float64(dtype: torch.dtype, digits: float) -> None:
    """Rounding moves the residual by ``eps |x| / std`` standard deviations: here std is 0.1 of x and more."""
    problem, frame = sa.problems.Gaussian(0.0, 1.0), sa.Frame(VP, eta=1.0)
    denoiser = problem.denoiser(VP)
    wide = walked(denoiser, frame)
    path = wide.to(dtype).requires_grad_()
    got = sa.transition_log_prob(denoiser, path, frame=frame, grid=GRID, solver=sa.Euler())
    want = sa.transition_log_prob(denoiser, wide, frame=frame, grid=GRID, solver=sa.Euler())
    assert got.dtype == DOUBLE
    assert torch.allclose(got, want, rtol=0, atol=digits)
    got.sum().backward()
    assert path.grad is not None
    assert path.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_network_works_in_the_dtype_of_the_path(dtype: torch.dtype) -> None:
    """One that predicts 0 has no roundings: its laws are those of the same states in float64."""
    denoiser, frame = sa.Denoiser(lambda x, t: 0 * x, VP, "sample"), sa.Frame(VP, eta=0.5)
    path = drawn(8, 3, 4).to(dtype)
    laws = [sa.transitions(denoiser, p, frame=frame, grid=GRID, solver=sa.Euler()) for p in (path, path.double())]
    assert float(laws[1].mean.abs().min()) > 0
    assert torch.allclose(laws[0].mean, laws[1].mean, rtol=1e-13, atol=0)


def test_samples_of_one_number_need_no_dimension_of_their_own() -> None:
    denoiser, frame = GAUSSIAN.denoiser(VP), sa.Frame(VP, eta=1.0)
    call: dict[str, Any] = {"frame": frame, "grid": GRID, "solver": sa.Euler()}
    path = walked(denoiser, frame, x_T=drawn(3))
    want = sa.transition_log_prob(denoiser, path[..., None], **call)
    assert torch.allclose(sa.transition_log_prob(denoiser, path, **call), want, rtol=1e-12, atol=1e-12)


def test_a_path_from_pure_noise_is_one() -> None:
    """alpha = 0 at the start: y_0 = 0, and the network sees x_T itself."""
    network = Mlp(4)
    denoiser, frame = sa.Denoiser(network, FLOW, "flow_prediction"), sa.Frame(FLOW, eta=0.5)
    grid = torch.tensor([1.0, 0.8, 0.4, 0.1], dtype=DOUBLE)
    path = walked(denoiser, frame, grid=grid)
    laws = sa.transitions(denoiser, path, frame=frame, grid=grid, solver=sa.Euler())
    normals = sa.BrownianPath(1).normals(frame, grid, drawn(3, 4))
    got = (path[1:] - laws.mean) / laws.variance.sqrt()[:, None, None]
    assert torch.allclose(got, normals, rtol=0, atol=1e-11)


def test_nothing_of_the_past_of_the_path_is_lost_on_a_grid_that_ends_at_zero() -> None:
    denoiser, frame = GAUSSIAN.denoiser(FLOW), sa.Frame(FLOW, eta=0.5)
    grid = torch.tensor([0.9, 0.5, 0.2, 0.0], dtype=DOUBLE)
    path = walked(denoiser, frame, grid=grid)
    call: dict[str, Any] = {"frame": frame, "solver": sa.DPMSolverPP2M()}
    with pytest.raises(ValueError, match=r"step 2 of 3 has no noise.* pass steps=range\(2\)"):
        sa.transition_log_prob(denoiser, path, grid=grid, **call)
    got = sa.transition_log_prob(denoiser, path, grid=grid, steps=range(2), **call)
    want = sa.transition_log_prob(denoiser, path[:-1], grid=grid[:-1], **call)
    assert torch.equal(got, want)


# ---------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "solver",
    [
        sa.Heun(), sa.Midpoint(), sa.RK4(), sa.Dopri5(), sa.BogackiShampine(), sa.SRA1(), sa.ShARK(),
        sa.ReversibleHeun(), sa.Coupled(sa.Euler()), sa.DPMSolver3(), sa.AdamsBashforth(3, start=sa.RK4()),
    ],
    ids=repr,
)  # fmt: skip
def test_solvers_whose_noise_enters_earlier_are_refused(solver: sa.Solver) -> None:
    denoiser, frame = GAUSSIAN.denoiser(VP), sa.Frame(VP, eta=1.0)
    with pytest.raises(ValueError, match="sees its noise before its last network call"):
        sa.transition_log_prob(denoiser, walked(denoiser, frame), frame=frame, grid=GRID, solver=solver)


class Remembering(sa.Solver):
    """Euler's method that keeps the noise of its last step, and uses it in the next."""

    claims = sa.Claims(ode=1, strong=0.0, evaluations=1)

    def step(self, drift: Any, interval: sa.Interval, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        past = state[0] if state else 0.0
        return y + interval.ds * drift(interval.s0, y) + interval.dB + 0.0 * past, (interval.dB,)


class Doubling(sa.Solver):
    """Euler's method with twice the noise."""

    claims = sa.Claims(ode=1, strong=0.0, evaluations=1)

    def step(self, drift: Any, interval: sa.Interval, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        return y + interval.ds * drift(interval.s0, y) + 2 * interval.dB, state


class Later(sa.Solver):
    """Euler's method with the drift at the step's other end."""

    claims = sa.Claims(ode=1, strong=0.0, evaluations=1)

    def step(self, drift: Any, interval: sa.Interval, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        return y + interval.ds * drift(interval.s1, y) + interval.dB, state


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"frame": sa.Frame(VP)}, ValueError, "frame: eta = 0, whose steps have no noise"),
    ({"frame": None}, TypeError, "frame: missing"),
    ({"grid": None}, TypeError, "grid: missing"),
    ({"solver": Remembering()}, ValueError, "sees its noise before"),
    ({"solver": Doubling()}, ValueError, "sees its noise before"),
    ({"solver": Later()}, ValueError, "sees its noise before"),
    ({"solver": sa.Euler}, TypeError, "solver: got the class Euler"),
    ({"trajectory": torch.zeros(7, 3, 4)}, ValueError, r"trajectory: got shape \(7, 3, 4\), but the grid has 7 steps"),
    ({"trajectory": torch.zeros(8)}, ValueError, r"trajectory: got shape \(8,\)"),
    ({"trajectory": [1.0]}, TypeError, "trajectory: got list"),
    ({"trajectory": torch.full((8, 3, 4), math.nan)}, ValueError, "trajectory: it holds NaN"),
    ({"steps": []}, ValueError, r"steps: got \[\]; pass at least one"),
    ({"steps": [7]}, ValueError, r"steps: got \[7\]; pass indices from 0 to 6"),
    ({"steps": [-1]}, ValueError, "pass indices from 0 to 6"),
    ({"steps": [1, 1]}, ValueError, "each once"),
    ({"steps": [True, False]}, ValueError, "steps: got a mask of 2 values, but the grid has 7"),
    ({"steps": 3}, ValueError, "steps: got 3; pass indices"),
    ({"batch_size": 0}, ValueError, "batch_size: got 0"),
    ({"adjoint": sa.Truncated(2)}, TypeError, r"adjoint: got Truncated; pass Checkpoint\(\) or Direct\(\)"),
    ({"adjoint": sa.Reversible()}, TypeError, "adjoint: got Reversible"),
]


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[f"{[*c]}-{m[:30]}" for c, _, m in BAD])
def test_bad_arguments_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    denoiser, frame = GAUSSIAN.denoiser(VP), sa.Frame(VP, eta=1.0)
    given = {"trajectory": walked(denoiser, frame), "frame": frame, "grid": GRID, "solver": sa.Euler()} | changes
    with pytest.raises(error, match=message):
        sa.transition_log_prob(denoiser, given.pop("trajectory"), **given)


def test_an_equation_has_its_own_frame() -> None:
    equation = flow_grpo(GAUSSIAN.denoiser(FLOW), shifted(4))
    path = torch.zeros(5, 1, 2, dtype=DOUBLE)
    with pytest.raises(ValueError, match="frame: the equation has its own"):
        sa.transition_log_prob(equation, path, frame=sa.Frame(FLOW, eta=1.0), solver=sa.Euler())
    with pytest.raises(ValueError, match="batch_size: an equation of your own"):
        sa.transition_log_prob(equation, path, solver=sa.Euler(), batch_size=3)


def test_laws_of_other_paths_are_not_compared() -> None:
    denoiser, frame = GAUSSIAN.denoiser(VP), sa.Frame(VP, eta=1.0)
    path = walked(denoiser, frame)
    one, other = (
        sa.transitions(denoiser, states, frame=frame, grid=GRID, solver=sa.Euler()) for states in (path, path + 1)
    )
    with pytest.raises(ValueError, match="reference: is of other steps or of another path"):
        one.kl(other)


def test_conditioning_that_changes_and_has_no_rows_cannot_share_a_call() -> None:
    denoiser = sa.Denoiser(lambda x, t, level: x * level, VP)
    frame, cond = sa.Frame(VP, eta=1.0), {"level": sa.Scheduled([0.1 * n for n in range(7)])}
    path = walked(denoiser, frame, cond=cond)
    call: dict[str, Any] = {"frame": frame, "grid": GRID, "solver": sa.Euler(), "cond": cond}
    assert sa.transition_log_prob(denoiser, path, **call).shape == (7, 3)
    with pytest.raises(ValueError, match=r"cond: holds a value that changes .* pass batch_size=None"):
        sa.transition_log_prob(denoiser, path, batch_size=6, **call)


def test_networks_with_a_cache_are_refused_as_by_sample() -> None:
    kept: list[Tensor] = []

    def caching(x: Tensor, t: Tensor) -> Tensor:
        kept.append(weight * x)
        return kept[0] + x

    weight = torch.ones((), dtype=DOUBLE, requires_grad=True)
    frame = sa.Frame(VP, eta=1.0)
    path = walked(GAUSSIAN.denoiser(VP), frame)
    with pytest.raises(RuntimeError, match="cache"):
        sa.transition_log_prob(
            sa.Denoiser(caching, VP), path, frame=frame, grid=GRID, solver=sa.Euler()
        ).sum().backward()
