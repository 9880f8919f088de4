"""Log-likelihoods against exact densities, the discrete sampler's own determinant, and autograd."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.testing.strategies import SOLVERS
from theory.guarantees import GUARANTEES, Guarantee

from .networks import Counting, Mlp

DOUBLE = torch.float64
VP, FLOW = sa.VPLinear(), sa.RectifiedFlow()
MIXTURE = sa.problems.Mixture([0.4, 0.6], [[-1.0, 0.5], [0.8, -0.3]], 0.3)
ENDS = {
    "t_max": float(VP.time(torch.tensor(-2.0, dtype=DOUBLE))),
    "t_min": float(VP.time(torch.tensor(2.0, dtype=DOUBLE))),
}


def grid(steps: int) -> Tensor:
    return sa.uniform_logsnr(VP, steps, **ENDS)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def normal(x: Tensor, sigma: Tensor | float) -> Tensor:
    """``log N(x; 0, sigma^2)``, summed over the numbers of a sample, in float64."""
    return torch.distributions.Normal(0.0, torch.as_tensor(sigma, dtype=DOUBLE)).log_prob(x).flatten(1).sum(1)


def at_start(problem: sa.problems.Mixture, t: float = ENDS["t_max"]) -> Callable[[Tensor], Tensor]:
    """The problem's own density at the noisy end, in the place of the normal one."""
    return lambda x: problem.log_prob(x, t, VP)


# ---------------------------------------------------------------- against exact densities


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
def test_the_density_of_a_mixture(kind: str) -> None:
    """In every kind, with RK4's order: half the steps have some 16 times the error."""
    x, frame, differences = 0.9 * drawn(5, 2), sa.Frame(VP, kind=kind), []
    want = MIXTURE.log_prob(x, ENDS["t_min"], VP)
    for steps in (12, 24):
        with torch.no_grad():
            found = sa.log_likelihood(
                MIXTURE.denoiser(VP), x, grid=grid(steps), solver=sa.RK4(), frame=frame, prior=at_start(MIXTURE)
            )
        differences.append(float((found.log_prob - want).abs().max()))
    assert differences[1] < min(1e-4, differences[0] / 10), differences
    assert found.log_prob.dtype == DOUBLE
    assert torch.equal(found.standard_error, torch.zeros(5, dtype=DOUBLE))
    back = sa.sample(MIXTURE.denoiser(VP), found.x_T, frame=frame, grid=grid(24), solver=sa.RK4())
    assert torch.allclose(back, x, rtol=0, atol=1e-4)


def test_the_latent_is_normal_unless_something_else_is_known() -> None:
    """On the schedule's own grid p_T is N(0, 1) but for alpha_T = 7e-3: to its square and a little."""
    problem, x = sa.problems.Gaussian(0.0, 0.5), drawn(4, 3)
    found = sa.log_likelihood(problem.denoiser(VP), x, grid=sa.uniform_logsnr(VP, 60), solver=sa.RK4())
    want = problem.log_prob(x, VP.t_min, VP)
    assert torch.allclose(found.log_prob, want, rtol=0, atol=1e-3)
    call = {"grid": sa.uniform_logsnr(VP, 4), "solver": sa.RK4()}  # the latent is the same whatever its density
    found = sa.log_likelihood(problem.denoiser(VP), x, **call)
    known = sa.log_likelihood(problem.denoiser(VP), x, prior=at_start(problem, VP.t_max), **call)
    difference = problem.log_prob(found.x_T, VP.t_max, VP) - normal(found.x_T, VP.sigma(VP.t_max))
    assert torch.allclose(known.log_prob - found.log_prob, difference, rtol=0, atol=1e-12)


def test_eulers_steps_on_gaussian_data_are_written_out() -> None:
    """In the data kind: ``y += ds x0``, ``l += ds w alpha v / (alpha^2 v + sigma^2)`` at each step's upper end."""
    problem, v, x = sa.problems.Gaussian(0.3, 0.4), 0.4, drawn(3, 2)
    nodes, frame = grid(6), sa.Frame(VP)
    alpha, sigma = VP.alpha(nodes), VP.sigma(nodes)
    y, volume = x / sigma[-1], torch.zeros((), dtype=DOUBLE)
    for n in reversed(range(6)):
        gain = alpha[n + 1] * v / (alpha[n + 1] ** 2 * v + sigma[n + 1] ** 2)
        ds = alpha[n] / sigma[n] - alpha[n + 1] / sigma[n + 1]
        x0 = 0.3 + gain * (sigma[n + 1] * y - alpha[n + 1] * 0.3)
        y, volume = y + ds * x0, volume + ds * sigma[n + 1] * gain * 2
    x_T = sigma[0] * y
    found = sa.log_likelihood(problem.denoiser(VP), x, grid=nodes, solver=sa.Euler(), frame=frame)
    assert torch.allclose(found.x_T, x_T, rtol=1e-12, atol=1e-12)
    want = normal(x_T, sigma[0]) + 2 * (sigma[0] / sigma[-1]).log() + volume
    assert torch.allclose(found.log_prob, want, rtol=1e-12, atol=1e-12)


def test_digits_within_the_standard_error() -> None:
    """64 numbers, eight probes: within 4 standard errors, and one per cent of the divergence for the solver."""
    pytest.importorskip("sklearn")
    problem = sa.problems.Digits(bandwidth=0.3)
    t_min = float(VP.time(torch.tensor(2.0, dtype=DOUBLE)))
    nodes = sa.uniform_logsnr(VP, 24, t_min=t_min)
    clean = problem.sample(3, seed=1)
    x = VP.alpha(t_min) * clean + VP.sigma(t_min) * drawn(3, 1, 8, 8)
    with torch.no_grad():
        found = sa.log_likelihood(
            problem.denoiser(VP), x, grid=nodes, solver=sa.RK4(), divergence=sa.Hutchinson(probes=8)
        )
    assert found.standard_error is not None
    want = problem.log_prob(x, t_min, VP)
    assert ((found.log_prob - want).abs() < 4 * found.standard_error + 0.1).all()
    assert (found.standard_error < 3).all()


# ---------------------------------------------------------------- the discrete determinant


def test_the_samplers_determinant_on_gaussian_data_is_a_product() -> None:
    problem, frame, nodes = sa.problems.Gaussian(0.3, 0.4), sa.Frame(VP), grid(5)
    x_T = drawn(3, 2)
    found = sa.pushforward_log_prob(problem.denoiser(VP), x_T, frame=frame, grid=nodes, solver=sa.Heun())
    zero = torch.zeros(1, 2, dtype=DOUBLE)
    ends = [
        sa.sample(problem.denoiser(VP), at, frame=frame, grid=nodes, solver=sa.Heun()) for at in (x_T, zero, zero + 1)
    ]
    slope = (ends[2] - ends[1])[0, 0]  # the sampler is affine
    assert torch.equal(found.x_0, ends[0])
    assert torch.allclose(found.log_prob, normal(x_T, VP.sigma(nodes[0])) - 2 * slope.log(), rtol=1e-12)


@pytest.mark.parametrize(("solver", "order"), [(sa.Euler(), 1), (sa.Heun(), 2), (sa.DPMSolverPP2M(), 2)], ids=str)
def test_the_two_densities_of_a_network_approach_each_other(solver: sa.Solver, order: int) -> None:
    """A network without a potential, whose Jacobian is not symmetric; half the steps have 2^order times it."""
    network = Mlp(3)
    denoiser, frame, differences = sa.Denoiser(network, VP, "sample"), sa.Frame(VP), []
    for steps in (10, 20, 40):
        with torch.no_grad():
            exact = sa.pushforward_log_prob(denoiser, drawn(2, 3), frame=frame, grid=grid(steps), solver=solver)
            found = sa.log_likelihood(denoiser, exact.x_0, grid=grid(steps), solver=solver, frame=frame)
        differences.append(float((found.log_prob - exact.log_prob).abs().max()))
    slopes = [math.log2(a / b) for a, b in pairwise(differences)]
    assert slopes[-1] > order - 0.3, differences


def test_a_last_step_to_zero_has_a_determinant_too() -> None:
    problem = sa.problems.Gaussian(0.0, 0.4)
    nodes = torch.tensor([0.9, 0.5, 0.2, 0.0], dtype=DOUBLE)
    found = sa.pushforward_log_prob(
        problem.denoiser(FLOW), drawn(2, 2), frame=sa.Frame(FLOW), grid=nodes, solver=sa.Euler()
    )
    assert torch.isfinite(found.log_prob).all()


# ---------------------------------------------------------------- the order


def errors(solver: sa.Solver, steps: Sequence[int]) -> list[float]:
    """Root mean square errors of log-densities of a mild mixture on a line, whose own density is known."""
    problem = sa.problems.Mixture([0.5, 0.5], [-1.0, 1.0], 0.5)
    x = torch.linspace(-2, 2, 21, dtype=DOUBLE)[:, None]
    want = problem.log_prob(x, ENDS["t_min"], VP)
    found = []
    with torch.no_grad():
        for count in steps:
            log_prob = sa.log_likelihood(
                problem.denoiser(VP),
                x,
                grid=grid(count),
                solver=solver,
                frame=sa.Frame(VP),
                prior=at_start(problem),
            ).log_prob
            found.append(float((log_prob - want).square().mean().sqrt()))
    return found


def slope(solver: sa.Solver) -> float:
    """The order that three levels show. A slope that still rises is ahead of its mean, and will gain as much again.

    On 24 steps no slope is short of its order by more than 0.03, a sixth of ``ALLOWED``. The first steps of a method
    that another one starts weigh more.
    """
    started = isinstance(solver, sa.AdamsBashforth) and solver.start is not None
    found = errors(solver, (24, 48, 96) if started else (6, 12, 24))
    first, last = (math.log2(coarse / fine) for coarse, fine in pairwise(found))
    return max((first + last) / 2, last + (last - first))


@dataclass(frozen=True)
class Lower(sa.Solver):
    """Euler's method, which promises order 2."""

    claims = sa.Claims(ode=2, strong=1.0, evaluations=1)

    def step(self, drift: Any, interval: sa.Interval, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        return y + interval.ds * drift(interval.s0, y) + interval.dB, state


LIKELIHOODS = [g for g in GUARANTEES if g.quantity == "log_prob"]
SUBJECTS = {repr(solver): solver for solver in SOLVERS}
ALLOWED = 0.2  # what a slope may still lack at these steps; orders that are possible lie 1 apart


@pytest.mark.parametrize("guarantee", LIKELIHOODS, ids=lambda g: g.subject)
def test_what_is_proved_of_log_densities_is_measured(guarantee: Guarantee) -> None:
    assert slope(SUBJECTS[guarantee.subject]) > guarantee.order - ALLOWED


def test_a_raised_order_is_seen() -> None:
    assert slope(Lower()) < 2 - ALLOWED
    assert slope(sa.Heun()) < 3 - ALLOWED


# ---------------------------------------------------------------- gradients


class Conditioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Mlp(3)

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        return self.inner(x, t) * (1 + 0.1 * torch.tanh(label)) + torch.sin(label + x.roll(1, 1))


def gradients(divergence: Any, adjoint: sa.Adjoint, solver: sa.Solver, *, leaf: bool = True) -> list[Tensor]:
    network = Conditioned()
    label = drawn(4, 2, 3, seed=1).requires_grad_()
    unconditional = drawn(1, 3, seed=2).requires_grad_()
    guidance = sa.Guidance(sa.Scheduled([1.5, 2.0, 0.5, 1.0]), {"label": unconditional})
    denoiser = sa.Denoiser(network, VP, "v_prediction", guidance=guidance)
    x = drawn(2, 3).requires_grad_(leaf)
    found = sa.log_likelihood(
        denoiser,
        x,
        grid=grid(4),
        solver=solver,
        cond={"label": sa.Scheduled(label)},
        divergence=divergence,
        adjoint=adjoint,
    )
    leaves = [label, unconditional, network.inner.inward.weight, network.inner.shared] + [x] * leaf
    value = (found.log_prob * torch.tensor([1.0, -0.7], dtype=DOUBLE)).sum() + found.x_T.sin().sum()
    return [found.log_prob.detach(), *torch.autograd.grad(value, leaves)]


DIRECT: dict[tuple[str, str], list[Tensor]] = {}
"""The gradients of plain autograd, for all adjoints that are compared with them."""


DIVERGENCES = [sa.ExactDivergence(), sa.Hutchinson(2), sa.Hutchinson(1, [3, 4], "normal")]
ONE_STEP_OR_NOT = [sa.Heun(), sa.AdamsBashforth(2, "clock"), sa.Coupled(sa.Heun())]
ADJOINTS = [sa.Checkpoint(), sa.Checkpoint(2), sa.Checkpoint(memory="10MB"), sa.Reversible()]


@pytest.mark.parametrize("solver", ONE_STEP_OR_NOT, ids=repr)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_gradients_are_those_of_plain_autograd(solver: sa.Solver, adjoint: sa.Adjoint) -> None:
    """In x_0, Scheduled conditioning, guidance and weights: to the round-off of some hundred products.

    Each divergence meets each solver and each adjoint: it is a part of the drift, of which neither knows more.
    """
    divergence = DIVERGENCES[(ONE_STEP_OR_NOT.index(solver) + ADJOINTS.index(adjoint)) % 3]
    if adjoint == sa.Reversible() and solver != sa.Coupled(sa.Heun()):
        adjoint = sa.Checkpoint(1)
    if (case := (repr(divergence), repr(solver))) not in DIRECT:
        DIRECT[case] = gradients(divergence, sa.Direct(), solver)
    for got, exact in zip(gradients(divergence, adjoint, solver), DIRECT[case], strict=True):
        assert exact.abs().max() > 0
        assert torch.allclose(got, exact, rtol=1e-9, atol=1e-10 * float(exact.abs().max()))


def test_weights_get_gradients_where_x_0_needs_none() -> None:
    want = gradients(sa.ExactDivergence(), sa.Direct(), sa.Heun())
    for adjoint in (sa.Direct(), sa.Checkpoint()):
        got = gradients(sa.ExactDivergence(), adjoint, sa.Heun(), leaf=False)
        for one, other in zip(got, want, strict=False):
            assert torch.allclose(one, other, rtol=1e-9, atol=1e-10 * float(other.abs().max()))


@pytest.mark.parametrize(("adjoint", "most"), [(sa.Checkpoint(), 3), (sa.Direct(), 8)], ids=repr)
def test_the_graph_of_one_step_is_alive_at_a_time(adjoint: sa.Adjoint, most: int) -> None:
    """Two where one step's takes the place of another's, three where an evaluation is repeated."""
    network = Counting()
    x = drawn(2, 3).requires_grad_()
    found = sa.log_likelihood(sa.Denoiser(network, VP), x, grid=grid(8), solver=sa.Euler(), adjoint=adjoint)
    assert len(network.alive) == (8 if adjoint == sa.Direct() else 0)
    found.log_prob.sum().backward()
    assert network.most <= most
    assert x.grad is not None


def test_the_gradient_in_x_0_is_the_score() -> None:
    """RK4 at 40 steps, as the density itself; and one more derivative."""
    x = (0.9 * drawn(4, 2)).requires_grad_()
    found = sa.log_likelihood(MIXTURE.denoiser(VP), x, grid=grid(40), solver=sa.RK4(), prior=at_start(MIXTURE))
    (got,) = torch.autograd.grad(found.log_prob.sum(), x)
    assert torch.allclose(got, MIXTURE.score(x.detach(), ENDS["t_min"], VP), rtol=0, atol=1e-5)


def test_continuous_adjoints_approach_it() -> None:
    x, differences = 0.9 * drawn(3, 2), []
    for steps in (12, 24, 48):
        both = []
        for adjoint in (sa.Direct(), sa.ContinuousAdjoint(solver=sa.Heun(), states="recorded")):
            start = x.clone().requires_grad_()
            found = sa.log_likelihood(MIXTURE.denoiser(VP), start, grid=grid(steps), solver=sa.Heun(), adjoint=adjoint)
            both.append(torch.autograd.grad(found.log_prob.sum(), start)[0])
        differences.append(float((both[0] - both[1]).abs().max()))
    assert differences[2] < differences[1] / 2.5 < differences[0] / 6


def test_finite_differences_agree() -> None:
    denoiser = sa.Denoiser(Mlp(2), VP, "v_prediction")
    x = drawn(1, 2).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: sa.log_likelihood(denoiser, x, grid=grid(3), solver=sa.Heun()).log_prob, (x,), rtol=1e-4
    )


def test_the_conditioning_of_each_step_is_the_samplers() -> None:
    """Euler upwards: step n is taken from node n + 1, with the conditioning of step n."""
    c, nodes, x = torch.tensor([0.1, 0.4, -0.3], dtype=DOUBLE), grid(3), drawn(2, 2)
    denoiser = sa.Denoiser(lambda x, t, c: c * x, VP, "sample")
    for values in (c, c.tolist()):
        found = sa.log_likelihood(
            denoiser, x, grid=nodes, solver=sa.Euler(), frame=sa.Frame(VP), cond={"c": sa.Scheduled(values)}
        )
        s, w = sa.Frame(VP).clock(nodes), VP.sigma(nodes)
        y = x / w[-1]
        for n in (2, 1, 0):
            y = y + (s[n] - s[n + 1]) * c[n] * w[n + 1] * y
        assert torch.allclose(found.x_T, w[0] * y, rtol=1e-12)


# ---------------------------------------------------------------- probes


def linear(A: Tensor) -> sa.Denoiser:
    return sa.Denoiser(lambda x, t: x @ A.T, VP, "sample")


@pytest.mark.parametrize(("kind", "diagonal"), [("rademacher", 0.0), ("normal", 1.0)])
def test_estimates_are_unbiased_with_the_stated_variance(kind: str, diagonal: float) -> None:
    """A linear network in one Euler step: mean and variance in closed form; 4000 probes, 4 and 5 standard errors."""
    A, size = drawn(3, 3, seed=3), 4000
    nodes, frame = grid(1), sa.Frame(VP)
    x = torch.zeros(size, 3, dtype=DOUBLE)
    seeds = range(size)
    call: dict[str, Any] = {"grid": nodes, "solver": sa.Euler(), "frame": frame}
    one = sa.log_likelihood(linear(A), x, divergence=sa.Hutchinson(1, [*seeds], kind), **call)
    exact = sa.log_likelihood(linear(A), x[:1], **call)
    scale = float(frame.clock(nodes).diff().abs() * frame.weight(nodes)[-1])
    S = (A + A.T) / 2
    variance = 2 * scale**2 * float(S.square().sum() - (1 - diagonal) * S.diag().square().sum())
    assert abs(float((one.log_prob.mean() - exact.log_prob[0]).detach())) < 4 * math.sqrt(variance / size)
    assert abs(float(one.log_prob.detach().var()) / variance - 1) < 5 * math.sqrt(8 / size)
    assert one.standard_error is None


def test_several_probes_tell_their_standard_error() -> None:
    """Five standard errors: some 1.6 % of the deviation of 2000 means, 0.9 % of that which is reported."""
    A, size = drawn(3, 3, seed=3), 2000
    call: dict[str, Any] = {"grid": grid(1), "solver": sa.Euler(), "frame": sa.Frame(VP)}
    x = torch.zeros(size, 3, dtype=DOUBLE)
    four = sa.log_likelihood(linear(A), x, divergence=sa.Hutchinson(4, [*range(size)]), **call)
    assert four.standard_error is not None
    spread = float(four.log_prob.detach().std())
    assert abs(float(four.standard_error.detach().square().mean().sqrt()) / spread - 1) < 0.1


def test_a_samples_probes_do_not_depend_on_its_batch_mates() -> None:
    denoiser, x = sa.Denoiser(Mlp(3), VP, "sample"), drawn(5, 3)
    call: dict[str, Any] = {"grid": grid(3), "solver": sa.Heun()}

    def found(x: Tensor, seed: Any) -> Tensor:
        return sa.log_likelihood(denoiser, x, divergence=sa.Hutchinson(2, seed), **call).log_prob

    # Batched products of other sizes round otherwise.
    close: dict[str, float] = {"rtol": 0, "atol": 1e-11}
    assert torch.equal(found(x, 7), found(x, 7))
    assert torch.allclose(found(x[:3], 7), found(x, 7)[:3], **close)
    assert torch.allclose(found(x.flip(0), [5, 4, 3, 2, 1]).flip(0), found(x, [1, 2, 3, 4, 5]), **close)
    assert not torch.allclose(found(x, 7), found(x, 8), **close)
    twins = found(x[:1].expand(2, 3), 7)  # of one seed's probes each sample has its own
    assert abs(float((twins[0] - twins[1]).detach())) > 1e-3
    before = torch.get_rng_state()
    found(x, 7)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------- dtypes, bits, ends


@pytest.mark.parametrize(("dtype", "digits"), [(torch.float32, 1e-4), (torch.bfloat16, 0.5)])
def test_narrow_states_are_solved_in_float64(dtype: torch.dtype, digits: float) -> None:
    """The network rounds; the sums do not. What is left is eps times the flow's stretching, 10 at most."""
    x = (0.9 * drawn(4, 2)).to(dtype)
    call: dict[str, Any] = {"grid": grid(16), "solver": sa.Heun()}
    narrow = sa.log_likelihood(MIXTURE.denoiser(VP), x.requires_grad_(), **call)
    wide = sa.log_likelihood(MIXTURE.denoiser(VP), x.detach().double(), **call)
    assert narrow.log_prob.dtype == DOUBLE
    assert narrow.x_T.dtype == dtype
    assert torch.allclose(narrow.log_prob, wide.log_prob, rtol=0, atol=digits)
    narrow.log_prob.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == dtype


def test_bits_per_dimension() -> None:
    """A density that is 1/2 on [-1, 1] codes bytes with 8 bits."""
    uniform = sa.LogLikelihood(torch.full((2,), 12 * math.log(0.5), dtype=DOUBLE), torch.zeros(2, 3, 2, 2), None)
    assert torch.allclose(uniform.bits_per_dimension(2 / 256), torch.full((2,), 8.0, dtype=DOUBLE), rtol=1e-12)
    for width in (0, -1.0, "1"):
        with pytest.raises(ValueError, match="width: got"):
            uniform.bits_per_dimension(width)


def test_dequantised_data_fill_their_bins() -> None:
    x = (torch.arange(4096).reshape(4, 1024) % 256).double() / 128 - 1
    spread = sa.dequantise(x, 1 / 128, seed=3)
    inside = (spread - x) * 128
    assert inside.abs().max() <= 0.5
    assert abs(float(inside.mean())) < 4 * math.sqrt(1 / 12 / 4096)
    assert abs(float(inside.var()) * 12 - 1) < 0.1
    assert torch.equal(spread, sa.dequantise(x, 1 / 128, seed=3))
    assert torch.equal(spread[:2], sa.dequantise(x[:2], 1 / 128, seed=3))
    assert torch.equal(sa.dequantise(x, 1 / 128, seed=[1, 2, 3, 4])[2], sa.dequantise(x[2:3], 1 / 128, seed=[3])[0])


def test_a_flow_may_start_from_data_without_noise() -> None:
    """sigma = 0 at the data's end, alpha = 0 at the other: the flow kind is regular at both."""
    nodes = torch.linspace(1, 0, 41, dtype=DOUBLE)
    x = drawn(3, 2)
    # Data N(0, v): dx/dt = x (t - (1 - t) v) / ((1 - t)^2 v + t^2).
    v = 0.5

    def velocity(x: Tensor, t: Tensor) -> Tensor:
        t = t[:, None]
        return x * (t - (1 - t) * v) / ((1 - t) ** 2 * v + t**2)

    found = sa.log_likelihood(sa.Denoiser(velocity, FLOW, "flow_prediction"), x, grid=nodes, solver=sa.RK4())
    assert torch.allclose(found.log_prob, normal(x, math.sqrt(v)), rtol=0, atol=1e-5)


@pytest.mark.parametrize("divergence", [sa.ExactDivergence(), sa.Hutchinson(2)], ids=repr)
def test_samples_of_one_number_need_no_dimension_of_their_own(divergence: Any) -> None:
    problem = sa.problems.Gaussian(0.3, 0.4)
    call: dict[str, Any] = {"grid": grid(4), "solver": sa.Heun(), "divergence": divergence}
    got, want = (sa.log_likelihood(problem.denoiser(VP), x, **call).log_prob for x in (drawn(3), drawn(3)[:, None]))
    assert torch.allclose(got, want, rtol=1e-12, atol=1e-12)


def test_without_gradients_nothing_has_a_graph() -> None:
    network = Mlp(2)
    with torch.no_grad():
        found = sa.log_likelihood(sa.Denoiser(network, VP), drawn(2, 2), grid=grid(3), solver=sa.Heun())
    assert not found.log_prob.requires_grad
    assert not found.x_T.requires_grad
    same = sa.log_likelihood(sa.Denoiser(network, VP), drawn(2, 2), grid=grid(3), solver=sa.Heun())
    assert same.log_prob.requires_grad
    assert torch.equal(found.log_prob, same.log_prob.detach())


# ---------------------------------------------------------------- refusals


BAD: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"frame": sa.Frame(VP, eta=1.0)}, ValueError, r"frame: eta = 1.0 > 0.* pass Frame\(schedule, kind='data'\)"),
    ({"divergence": sa.Hutchinson}, TypeError, "divergence: got the class Hutchinson"),
    ({"divergence": sa.Hutchinson(seed=[1, 2])}, ValueError, "seed: lists 2 seeds, but there are 3 samples"),
    ({"x_0": torch.zeros(3, 2, dtype=torch.float16)}, TypeError, "x_0: got dtype torch.float16"),
    ({"x_0": torch.full((3, 2), math.inf)}, ValueError, "x_0: it holds NaN"),
    ({"denoiser": Mlp(2)}, TypeError, "denoiser: got Mlp"),
    ({"solver": sa.Heun}, TypeError, "solver: got the class Heun"),
    ({"prior": lambda x: -(x**2)}, ValueError, r"prior: returned shape \(3, 2\); .* a tensor of shape \(3,\)"),
    ({"prior": lambda x: -(x**2).sum()}, ValueError, r"prior: returned shape \(\)"),
    ({"prior": lambda x: 0.0}, ValueError, "prior: returned float"),
    ({"cond": {"c": sa.Scheduled([1.0])}}, ValueError, "Scheduled holds 1 values"),
]


def test_the_pushforward_refuses_a_prior_of_another_shape() -> None:
    denoiser, how = sa.Denoiser(Mlp(2), VP), {"frame": sa.Frame(VP), "grid": grid(3), "solver": sa.Heun()}
    with pytest.raises(ValueError, match=r"prior: returned shape \(3, 2\)"):
        sa.pushforward_log_prob(denoiser, drawn(3, 2), prior=lambda x: -(x**2), **how)


@pytest.mark.parametrize(("changes", "error", "message"), BAD, ids=[m[:30] for _, _, m in BAD])
def test_bad_arguments_are_refused(changes: dict[str, Any], error: type[Exception], message: str) -> None:
    given = {"denoiser": sa.Denoiser(Mlp(2), VP), "x_0": drawn(3, 2), "grid": grid(3), "solver": sa.Heun()} | changes
    with pytest.raises(error, match=message):
        sa.log_likelihood(given.pop("denoiser"), given.pop("x_0"), **given)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"probes": 0}, "probes: got 0"), ({"kind": "uniform"}, "kind: got 'uniform'"), ({"seed": -1}, "seed: got -1")],
)
def test_bad_probes_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sa.Hutchinson(**changes)


def test_singular_ends_are_refused_by_name() -> None:
    denoiser = sa.Denoiser(Mlp(2), FLOW, "flow_prediction")
    nodes = torch.tensor([0.9, 0.4, 0.0], dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"grid: ends at sigma = 0, where the data kind is singular.*kind='flow'"):
        sa.log_likelihood(denoiser, drawn(2, 2), grid=nodes, solver=sa.Heun(), frame=sa.Frame(FLOW))


def test_networks_that_hide_their_graph_are_refused() -> None:
    network = Mlp(2)

    def hidden(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return network(x, t)

    with pytest.raises(RuntimeError, match="network: its output has no graph, so it has no divergence"):
        sa.log_likelihood(
            sa.Denoiser(hidden, VP, "sample"), drawn(2, 2), grid=grid(2), solver=sa.Heun(), frame=sa.Frame(VP)
        )
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"inference_mode.*use torch.no_grad"):
        sa.log_likelihood(sa.Denoiser(network, VP), drawn(2, 2), grid=grid(2), solver=sa.Heun())
