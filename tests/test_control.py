"""Adjoint Matching, against autograd, published steps, and everything that is known of Gaussians."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.memory import PeakMemory
from sdeadjoint.solvers.facts import sees_noise

DOUBLE = torch.float64
VP = sa.VPLinear()
MIXTURE = sa.problems.Mixture([0.4, 0.6], [[-1.0, 0.0], [1.0, 0.5]], 0.3)
SOLVERS = [sa.Euler(), sa.Heun(), sa.RK4(), sa.SRA1(), sa.ShARK()]


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed))


def worst(got: Tensor, want: Tensor) -> float:
    return float((got - want).norm() / want.norm())


# -------------------------------------------------------------------------------- the lean adjoint


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize(
    ("eta", "kind", "final_zero"),
    [(1.0, "data", False), (0.3, "noise", True), (0.0, "flow", True)],
)
def test_on_the_base_s_own_trajectory_it_is_the_gradient(
    solver: sa.Solver, eta: float, kind: str, final_zero: bool
) -> None:
    """At every node: what hooks see, and x_T.grad. Round-off of a few hundred operations."""
    base, frame = MIXTURE.denoiser(VP), sa.Frame(VP, eta=eta, kind=kind)
    grid = sa.uniform_logsnr(VP, 4, final_zero=final_zero)
    noise = sa.BrownianPath(seed=1) if eta > 0 else None
    how: dict[str, Any] = {"frame": frame, "grid": grid, "solver": solver}
    x_T, g, seen = draw(3, 2).requires_grad_(), draw(3, 2, seed=2), {}
    adjoint = sa.Hooked(sa.Direct(), lambda n, t, a: seen.update({n: a.clone()}))
    path = sa.sample(base, x_T, noise=noise, trajectory=True, adjoint=adjoint, **how)
    seen[0] = torch.autograd.grad(path[-1], x_T, g)[0]
    found = sa.lean_adjoint(base, path, g, noise=noise, **how)
    assert (found.shape, found.requires_grad) == (path.shape, False)
    assert torch.equal(found[-1], g)
    for n in range(5):
        assert worst(found[n], seen[n]) <= 1e-12


@pytest.mark.parametrize("solver", [s for s in SOLVERS if s.claims.levy == "none"], ids=repr)
@pytest.mark.parametrize(("eta", "final_zero"), [(0.3, True), (1.0, False)])
def test_noise_that_is_not_given_is_found(solver: sa.Solver, eta: float, final_zero: bool) -> None:
    """To 64 ulps of the state, each step by itself: a few thousand ulps of five steps' products."""
    base, frame = MIXTURE.denoiser(VP), sa.Frame(VP, eta=eta)
    grid = sa.uniform_logsnr(VP, 5, t_max=0.6, t_min=0.1, final_zero=final_zero)
    noise = sa.BrownianPath(seed=1)
    how: dict[str, Any] = {"frame": frame, "grid": grid, "solver": solver}
    path, g = sa.sample(base, draw(3, 2), noise=noise, trajectory=True, **how), draw(3, 2, seed=2)
    found, want = (sa.lean_adjoint(base, path, g, noise=each, **how) for each in (None, noise))
    assert worst(found, want) <= 1e-11


def test_a_last_step_to_zero_has_no_noise_to_be_found() -> None:
    """Another model's last step has no increment by which the base would make it, and needs none."""
    base, frame = MIXTURE.denoiser(VP), sa.Frame(VP, eta=0.3)
    grid = sa.uniform_logsnr(VP, 3, t_max=0.6, t_min=0.1, final_zero=True)
    how: dict[str, Any] = {"frame": frame, "grid": grid, "solver": sa.Heun()}
    noise, g = sa.BrownianPath(seed=1), draw(3, 2, seed=2)
    path = sa.sample(base, draw(3, 2), noise=noise, trajectory=True, **how)
    path[-1] += 0.1
    found, want = (sa.lean_adjoint(base, path, g, noise=each, **how) for each in (None, noise))
    assert worst(found, want) <= 1e-11


def test_noise_that_is_not_to_be_found_is_asked_for() -> None:
    """``F = -(2/ds) y`` cancels the noise of a Heun step: no increment leads anywhere else."""
    frame, grid = sa.Frame(VP, eta=1.0), sa.uniform_logsnr(VP, 1)
    rate = -2 / float(frame.clock(grid).diff() * frame.weight(grid[1]))
    base = sa.Denoiser(lambda x, t: rate * x, VP, "sample")
    states, g = draw(2, 3, 2), draw(3, 2, seed=1)
    how: dict[str, Any] = {"frame": frame, "grid": grid, "solver": sa.Heun()}
    with pytest.raises(RuntimeError, match=r"no increment is found by which Heun\(\) makes step 0"):
        sa.lean_adjoint(base, states, g, **how)
    given = sa.lean_adjoint(base, states, g, noise=sa.BrownianPath(0), **how)
    assert bool(given.isfinite().all())


def test_along_any_states_it_is_the_published_step_s_adjoint() -> None:
    """SDE-DPM-Solver++-1 written out: ``a_s = p a_t + q a_t^T dF/dx``, F the predicted x_0."""
    base, grid = MIXTURE.denoiser(VP), sa.uniform_logsnr(VP, 5)
    states, a = draw(6, 3, 2), draw(3, 2, seed=1)
    frame = sa.Frame(VP, eta=1.0)
    found = sa.lean_adjoint(base, states, a, frame=frame, grid=grid, solver=sa.Euler())
    alpha, sigma, lam = VP.alpha(grid), VP.sigma(grid), VP.lam(grid)
    for n in reversed(range(5)):
        h = float(lam[n + 1] - lam[n])
        p = sigma[n + 1] ** 2 * alpha[n] / (alpha[n + 1] * sigma[n] ** 2)
        q = alpha[n + 1] * -math.expm1(-2 * h)
        for k in range(3):
            J = torch.autograd.functional.jacobian(lambda x: base(x, float(grid[n])), states[n, k : k + 1])  # noqa: B023
            want = p * a[k] + q * a[k] @ J[0, :, 0]
            torch.testing.assert_close(found[n, k], want, rtol=1e-12, atol=1e-12)
        a = found[n]


def test_a_start_without_signal_is_seen_by_the_network_alone() -> None:
    """alpha(T) = 0: y_0 = 0, and x_T goes into the first evaluation."""
    schedule = sa.RectifiedFlow()
    net = nn.Sequential(nn.Linear(2, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    base = sa.Denoiser(lambda x, t: net(x), schedule, "flow_prediction")
    frame, grid = sa.Frame(schedule, eta=1.0), torch.tensor([1.0, 0.7, 0.3, 0.0], dtype=DOUBLE)
    x_T, g = draw(3, 2).requires_grad_(), draw(3, 2, seed=2)
    how: dict[str, Any] = {"frame": frame, "grid": grid, "solver": sa.Euler()}
    path = sa.sample(base, x_T, noise=sa.BrownianPath(0), trajectory=True, **how)
    (want,) = torch.autograd.grad(path[-1], x_T, g)
    assert float(want.norm()) > 0
    assert worst(sa.lean_adjoint(base, path, g, **how)[0], want) <= 1e-12


def test_conditioning_per_step_and_guidance() -> None:
    def network(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(x * z) + z

    plain = sa.Denoiser(network, VP, "sample")
    z = sa.Scheduled([draw(3, 2, seed=s) for s in range(4)])
    guided = plain.guided_by(sa.Guidance(2.0, {"z": torch.zeros(3, 2, dtype=DOUBLE)}))
    frame, grid = sa.Frame(VP, eta=1.0), sa.uniform_logsnr(VP, 4)
    x_T, g = draw(3, 2).requires_grad_(), draw(3, 2, seed=2)
    how: dict[str, Any] = {"frame": frame, "grid": grid, "solver": sa.Euler(), "cond": {"z": z}}
    for choice, denoiser in ((True, guided), (False, plain)):
        path = sa.sample(denoiser, x_T, noise=sa.BrownianPath(0), trajectory=True, **how)
        (want,) = torch.autograd.grad(path[-1], x_T, g)
        found = sa.lean_adjoint(guided, path, g, guided=choice, **how)
        assert worst(found[0], want) <= 1e-12
    with pytest.raises(ValueError, match=r"guided: base has guidance.*pass guided=True"):
        sa.lean_adjoint(guided, path, g, **how)
    del how["solver"]
    with pytest.raises(ValueError, match="guided: denoiser has guidance"):
        sa.adjoint_matching_loss(guided, plain, path, found, **how)


def test_hooks_go_on_with_what_they_return() -> None:
    base, grid = MIXTURE.denoiser(VP), sa.uniform_logsnr(VP, 4)
    how: dict[str, Any] = {"frame": sa.Frame(VP, eta=1.0), "grid": grid, "solver": sa.Euler()}
    states, g, calls = draw(5, 3, 2), draw(3, 2, seed=1), []

    def half(n: int, t: float, a: Tensor) -> Tensor:
        calls.append((n, t))
        return a / 2

    plain, halved = (sa.lean_adjoint(base, states, g, hook=hook, **how) for hook in (None, half))
    assert calls == [(n, float(grid[n])) for n in (4, 3, 2, 1)]
    powers = 0.5 ** torch.tensor([4.0, 4.0, 3.0, 2.0, 1.0], dtype=DOUBLE)
    torch.testing.assert_close(halved, plain * powers[:, None, None], rtol=1e-12, atol=0)
    norms: list[Any] = []
    clipped = sa.lean_adjoint(base, states, g, hook=sa.clip_quantile(0.5), **how)
    sa.lean_adjoint(base, states, g, hook=sa.record_norms(norms), **how)
    torch.testing.assert_close(clipped[-1].norm(dim=1).max(), norms[0][2].median())


def test_clipping_at_a_quantile() -> None:
    a = torch.tensor([[3.0, 4.0], [0.0, 1.0], [0.0, 0.0], [6.0, 8.0], [0.0, -2.0]])
    clipped = sa.clip_quantile(0.75)(1, 0.0, a)
    assert clipped is not None
    torch.testing.assert_close(clipped[3], torch.tensor([3.0, 4.0]))
    assert torch.equal(clipped[[0, 1, 2, 4]], a[[0, 1, 2, 4]])
    assert torch.equal(sa.clip_quantile(1.0)(1, 0.0, a), a)
    assert torch.equal(sa.clip_quantile(0.5)(1, 0.0, torch.zeros(3, 2)), torch.zeros(3, 2))
    with pytest.raises(ValueError, match=r"q: got 0; pass a quantile in \(0, 1\]"):
        sa.clip_quantile(0)


def test_the_memory_of_one_step() -> None:
    """Besides the result: 30 steps more cost their adjoints, twice where they are stacked."""
    net = nn.Sequential(nn.Linear(32, 256), nn.Tanh(), nn.Linear(256, 32))
    base, frame = sa.Denoiser(lambda x, t: net(x), VP, "sample"), sa.Frame(VP, eta=1.0)

    def peak(steps: int) -> int:
        states, g = draw(steps + 1, 16, 32).float(), draw(16, 32).float()
        grid = sa.uniform_logsnr(VP, steps)
        with PeakMemory() as memory:
            sa.lean_adjoint(base, states, g, frame=frame, grid=grid, solver=sa.Euler())
        return memory.peak

    state = 16 * 32 * 4
    assert peak(40) - peak(10) <= 2 * 30 * state + 4096  # and tables of the grid


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off(mode: Any) -> None:
    base, grid = MIXTURE.denoiser(VP), sa.uniform_logsnr(VP, 4)
    how: dict[str, Any] = {"frame": sa.Frame(VP, eta=1.0), "grid": grid, "solver": sa.Euler()}
    with mode():
        path = sa.sample(base, draw(3, 2), noise=sa.BrownianPath(0), trajectory=True, **how)
        found = sa.lean_adjoint(base, path, draw(3, 2, seed=1), **how)
    want = sa.lean_adjoint(base, path.clone(), draw(3, 2, seed=1), **how)
    assert torch.equal(found, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_dtypes(dtype: torch.dtype) -> None:
    base, grid = MIXTURE.denoiser(VP), sa.uniform_logsnr(VP, 4)
    frame, states, g = sa.Frame(VP, eta=1.0), draw(5, 3, 2).to(dtype), draw(3, 2, seed=1).to(dtype)
    found = sa.lean_adjoint(base, states, g, frame=frame, grid=grid, solver=sa.Euler())
    exact = sa.lean_adjoint(base, states.double(), g.double(), frame=frame, grid=grid, solver=sa.Euler())
    # Four steps of a few roundings each, of terms that do not cancel.
    assert found.dtype == dtype
    assert worst(found.double(), exact) <= 32 * torch.finfo(dtype).eps
    losses = [
        sa.adjoint_matching_loss(Shifted(base, 0.1), base, s, a, frame=frame, grid=grid)
        for s, a in ((states, found), (states.double(), exact))
    ]
    assert losses[0].dtype == dtype
    assert worst(losses[0].double(), losses[1]) <= 64 * torch.finfo(dtype).eps


def test_what_does_not_fit_is_refused() -> None:
    base, grid = MIXTURE.denoiser(VP), sa.uniform_logsnr(VP, 4)
    how: dict[str, Any] = {"frame": sa.Frame(VP, eta=1.0), "grid": grid, "solver": sa.Euler()}
    states, g = draw(5, 3, 2), draw(3, 2)
    for solver in (sa.DPMSolverPP2M(), sa.AdamsBashforth(2), sa.Coupled(sa.Heun())):
        with pytest.raises(TypeError, match="remembers earlier steps; pass a one-step method"):
            sa.lean_adjoint(base, states, g, **{**how, "solver": solver})
    with pytest.raises(ValueError, match=r"noise: got None.*SRA1\(\) see Levy areas"):
        sa.lean_adjoint(base, states, g, **{**how, "solver": sa.SRA1()})
    with pytest.raises(ValueError, match=r"trajectory: got shape \(4, 3, 2\).*pass \(5, batch"):
        sa.lean_adjoint(base, states[1:], g, **how)
    with pytest.raises(ValueError, match=r"cotangent: got torch\.float32"):
        sa.lean_adjoint(base, states, g.float(), **how)
    with pytest.raises(ValueError, match="cotangent: it holds NaN"):
        sa.lean_adjoint(base, states, g * math.nan, **how)
    with pytest.raises(TypeError, match="hook: got int"):
        sa.lean_adjoint(base, states, g, hook=3, **how)
    with pytest.raises(ValueError, match=r"hook: got torch.float64 \(2,\)"):
        sa.lean_adjoint(base, states, g, hook=lambda n, t, a: a[0], **how)
    del how["solver"]
    loss = sa.adjoint_matching_loss
    with pytest.raises(ValueError, match="has no noise, and so no control"):
        loss(base, base, states, states, frame=sa.Frame(VP), grid=grid)
    for bad in ([4], [-1], [True], ["a"]):
        with pytest.raises(ValueError, match=r"steps: got .*pass integers from 0 to 3"):
            loss(base, base, states, states, steps=bad, **how)
    with pytest.raises(TypeError, match="steps: got 3; pass a list of steps"):
        loss(base, base, states, states, steps=3, **how)
    for bad in ([], [1, 1]):
        with pytest.raises(ValueError, match="at least one step, and each once"):
            loss(base, base, states, states, steps=bad, **how)
    with pytest.raises(ValueError, match="adjoints: got"):
        loss(base, base, states, states[1:], **how)


def test_which_solvers_see_their_noise() -> None:
    seen = {type(solver).__name__: sees_noise(solver) for solver in SOLVERS}
    assert seen.pop("Euler") is False
    assert all(seen.values())


# ---------------------------------------------------------------------------------------- the loss


class Shifted(sa.Denoiser):
    """A base whose predicted x_0 is shifted by ``shift``, a number or a tensor."""

    def __init__(self, base: sa.Denoiser, shift: Any) -> None:
        super().__init__(lambda x, t: base(x, float(t[0])) + shift, base.schedule, "sample", time_dtype=DOUBLE)


def test_the_loss_is_the_sum_of_its_steps_and_its_gradient_that_of_the_sum() -> None:
    base, grid = MIXTURE.denoiser(VP), sa.uniform_logsnr(VP, 5, final_zero=True)
    frame, shift = sa.Frame(VP, eta=0.7), draw(2).requires_grad_()
    states, a = draw(6, 3, 2, seed=1).requires_grad_(), draw(6, 3, 2, seed=2).requires_grad_()
    how: dict[str, Any] = {"frame": frame, "grid": grid}
    loss = sa.adjoint_matching_loss(Shifted(base, shift), base, states, a, **how)
    ds, dnu = frame.clock(grid[:5]).diff(), frame.noise_clock(grid[:5]).diff()
    off = (ds / dnu.sqrt())[:, None] * shift
    off = off[:, None] + (dnu.sqrt() * frame.weight(grid[1:5]))[:, None, None] * a[1:5].detach()
    want = off.square().sum((0, 2)) / 2
    torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)
    got, exact = (torch.autograd.grad(each.sum(), shift, retain_graph=True)[0] for each in (loss, want))
    torch.testing.assert_close(got, exact, rtol=1e-12, atol=0)
    for constant in (states, a):
        with pytest.raises(RuntimeError, match="not have been used"):
            torch.autograd.grad(loss.sum(), constant, retain_graph=True)
    parts = [
        sa.adjoint_matching_loss(Shifted(base, shift), base, states, a, steps=steps, **how)
        for steps in ([0], torch.tensor([3, 1]), range(2, 3))
    ]
    torch.testing.assert_close(sum(parts), loss, rtol=1e-12, atol=0)


def test_the_base_is_a_constant_also_where_it_shares_weights() -> None:
    """A gain of both: its gradient is that of the tuned one's prediction alone."""
    gain = torch.tensor(0.8, dtype=DOUBLE, requires_grad=True)
    tuned, base = (sa.Denoiser(lambda x, t, c=c: gain * x + c, VP, "sample") for c in (0.3, 0.0))
    frozen = sa.Denoiser(lambda x, t: gain.detach() * x, VP, "sample")
    how: dict[str, Any] = {"frame": sa.Frame(VP, eta=1.0), "grid": sa.uniform_logsnr(VP, 4)}
    states, a = draw(5, 3, 2, seed=1), draw(5, 3, 2, seed=2)
    got, want = (
        torch.autograd.grad(sa.adjoint_matching_loss(tuned, other, states, a, **how).sum(), gain)[0]
        for other in (base, frozen)
    )
    assert abs(float(want)) > 0.1
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)


def test_the_loss_is_of_the_controls_size_where_no_reward_is() -> None:
    """Girsanov: at a = 0 it is the log-weight's mean, the sum of |mean difference|^2 / (2 dnu)."""
    base, grid, frame = MIXTURE.denoiser(VP), sa.uniform_logsnr(VP, 4), sa.Frame(VP, eta=1.0)
    states, tuned = draw(5, 3, 2), sa.problems.Gaussian(0.5, 0.4).denoiser(VP)
    how: dict[str, Any] = {"frame": frame, "grid": grid}
    loss = sa.adjoint_matching_loss(tuned, base, states, torch.zeros_like(states), **how)
    want = torch.zeros(3, dtype=DOUBLE)
    for n in range(4):
        ends = [
            sa.sample(
                denoiser,
                states[n],
                frame=frame,
                grid=grid[n : n + 2],
                solver=sa.Euler(),
                noise=sa.FixedNoise(torch.zeros(1, 3, 2, dtype=DOUBLE)),
            )
            for denoiser in (tuned, base)
        ]
        variance = float(frame.weight(grid[n + 1]) ** 2 * frame.noise_clock(grid[n : n + 2]).diff())
        want += (ends[0] - ends[1]).square().sum(1) / (2 * variance)
    torch.testing.assert_close(loss, want, rtol=1e-11, atol=0)


# --------------------------------------------------------------------------------------- Gaussians


def chain(frame: sa.Frame, grid: Tensor, v: float) -> tuple[list[float], list[float]]:
    """``A_n`` and ``s_n`` of Euler's steps for N(0, v), data kind, written out."""
    w, s, nu = (f(grid).tolist() for f in (frame.weight, frame.clock, frame.noise_clock))
    alpha, sigma = frame.schedule.alpha(grid).tolist(), frame.schedule.sigma(grid).tolist()
    A, spread = [], []
    for n in range(len(grid) - 1):
        gain = alpha[n] * v / (alpha[n] ** 2 * v + sigma[n] ** 2)
        A.append(w[n + 1] / w[n] + w[n + 1] * (s[n + 1] - s[n]) * gain)
        spread.append(w[n + 1] * math.sqrt(nu[n + 1] - nu[n]))
    return A, spread


class Controlled(sa.Denoiser):
    """The base with the control that is best for a linear reward on a Gaussian, node by node."""

    def __init__(self, base: sa.Denoiser, frame: sa.Frame, grid: Tensor, adjoints: Tensor) -> None:
        ds, dnu = frame.clock(grid).diff(), frame.noise_clock(grid).diff()
        shifts = -(dnu / ds * frame.weight(grid[1:])) * adjoints[1:]
        table = dict(zip(grid.tolist(), shifts.tolist(), strict=False))
        super().__init__(
            lambda x, t: base(x, float(t[0])) + table[float(t[0])],
            base.schedule,
            "sample",
            time_dtype=DOUBLE,
        )


@pytest.mark.parametrize("eta", [0.1, 0.5, 1.0, 2.0])
def test_all_of_adjoint_matching_for_a_gaussian(eta: float) -> None:
    """Deterministic adjoint; control ``-s a``; loss 0; the mean moves by ``k (V_N - (prod A)^2 V_0)``."""
    k, v, N = 0.7, 0.6, 12
    frame, grid = sa.Frame(VP, eta=eta), sa.uniform_logsnr(VP, N)
    base = sa.problems.Gaussian(0.0, v).denoiser(VP)
    A, s = chain(frame, grid, v)
    how: dict[str, Any] = {"frame": frame, "grid": grid}
    x_T = draw(4, 1)
    path = sa.sample(base, x_T, solver=sa.Euler(), noise=sa.BrownianPath(0), trajectory=True, **how)
    found = sa.lean_adjoint(base, path, torch.full((4, 1), -k, dtype=DOUBLE), solver=sa.Euler(), **how)
    want = -k * torch.tensor([math.prod(A[n:]) for n in range(N + 1)], dtype=DOUBLE)
    torch.testing.assert_close(found, want[:, None, None].expand_as(found), rtol=1e-12, atol=0)
    tuned = Controlled(base, frame, grid, want)
    loss = sa.adjoint_matching_loss(tuned, base, path, found, **how)
    scale = sa.adjoint_matching_loss(base, base, path, found, **how)
    # The control is a small difference of two predictions, and its square is summed.
    assert float(loss.max()) <= 1e-20 * float(scale.min())
    torch.testing.assert_close(
        scale, torch.full_like(scale, sum((s[n] * float(want[n + 1])) ** 2 for n in range(N)) / 2)
    )
    V0 = float(VP.alpha(grid[0]) ** 2 * v + VP.sigma(grid[0]) ** 2)
    VN = V0 * math.prod(A) ** 2 + sum((s[n] * math.prod(A[n + 1 :])) ** 2 for n in range(N))
    still = sa.FixedNoise(torch.zeros(N, 1, 1, dtype=DOUBLE))
    moved = sa.sample(tuned, torch.zeros(1, 1, dtype=DOUBLE), solver=sa.Euler(), noise=still, **how)
    deficit = sa.memoryless_deficit(frame, grid, variance=v)
    assert float(moved) == pytest.approx(k * (VN - math.prod(A) ** 2 * V0), rel=1e-12)
    assert float(moved) == pytest.approx(k * VN * (1 - deficit), rel=1e-12)
    assert deficit == pytest.approx(math.prod(A) ** 2 * V0 / VN, rel=1e-12)


@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.RK4()], ids=repr)
@pytest.mark.parametrize("eta", [0.2, 1.0])
def test_the_deficit_by_derivatives_of_a_whole_solve(solver: sa.Solver, eta: float) -> None:
    """x_N is linear in x_T and the increments: its gradient has all that V_N is made of."""
    frame, grid, v = sa.Frame(VP, eta=eta, kind="noise"), sa.uniform_logsnr(VP, 8), 0.5
    base = sa.problems.Gaussian(0.0, v).denoiser(VP)
    x_T = torch.zeros(1, 1, dtype=DOUBLE, requires_grad=True)
    dB = torch.zeros(8, 1, 1, dtype=DOUBLE, requires_grad=True)
    x = sa.sample(base, x_T, frame=frame, grid=grid, solver=solver, noise=sa.FixedNoise(dB))
    A, shares = torch.autograd.grad(x, [x_T, dB])
    kept = float(A) ** 2 * float(VP.alpha(grid[0]) ** 2 * v + VP.sigma(grid[0]) ** 2)
    spread = float((shares.flatten() ** 2 * frame.noise_clock(grid).diff()).sum())
    got = sa.memoryless_deficit(frame, grid, solver, v)
    assert got == pytest.approx(kept / (kept + spread), rel=1e-12)


def test_levy_areas_count_as_noise() -> None:
    frame, grid = sa.Frame(VP, eta=0.3), sa.uniform_logsnr(VP, 8)
    base, paths = sa.problems.Gaussian(0.0, 1.0).denoiser(VP), 20_000
    x = sa.sample(
        base,
        torch.zeros(paths, 1, dtype=DOUBLE),
        frame=frame,
        grid=grid,
        solver=sa.SRA1(),
        noise=sa.BrownianPath(seed=0),
    )
    x_T = torch.zeros(1, 1, dtype=DOUBLE, requires_grad=True)
    how: dict[str, Any] = {"frame": frame, "grid": grid, "solver": sa.SRA1()}
    (A,) = torch.autograd.grad(sa.sample(base, x_T, noise=sa.BrownianPath(0), **how), x_T)
    kept, spread = float(A) ** 2, float(x.var())
    # A sample variance: relative standard error sqrt(2 / paths), five of them.
    assert sa.memoryless_deficit(frame, grid, sa.SRA1()) == pytest.approx(
        kept / (kept + spread), rel=5 * math.sqrt(2 / paths)
    )


@pytest.mark.parametrize("solver", [sa.SRA1(), sa.ShARK()], ids=repr)
def test_a_levy_area_has_a_twelfth_of_the_increments_variance(solver: sa.Solver) -> None:
    """As above, by derivatives: H is independent of dB and has the variance dnu / 12 (Foster, Lyons and Oberhauser)."""
    frame, grid = sa.Frame(VP, eta=0.3), sa.uniform_logsnr(VP, 3)
    base, dnu = sa.problems.Gaussian(0.0, 1.0).denoiser(VP), frame.noise_clock(grid).diff()
    x_T = torch.zeros(1, 1, dtype=DOUBLE, requires_grad=True)
    dB, H = (torch.zeros(3, 1, 1, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    x = sa.sample(base, x_T, frame=frame, grid=grid, solver=solver, noise=sa.FixedNoise(dB, H))
    A, by_dB, by_H = torch.autograd.grad(x, [x_T, dB, H])
    areas = float((by_H.flatten() ** 2 * dnu).sum()) / 12
    spread = float((by_dB.flatten() ** 2 * dnu).sum()) + areas
    kept = float(A) ** 2  # of variance 1 at every time
    assert areas > 1e-6 * spread
    assert sa.memoryless_deficit(frame, grid, solver) == pytest.approx(kept / (kept + spread), rel=1e-11)


@pytest.mark.parametrize(("eta", "share"), [(0.0, 1.0), (0.1, 0.37), (0.25, 0.08), (0.5, 0.007)])
def test_deficits_of_fine_grids(eta: float, share: float) -> None:
    """Of the exact equation ((v + r_N^2) / (v + r_0^2))^eta; Euler's error falls with the steps."""
    frame = sa.Frame(VP, eta=eta)
    ends = torch.tensor([VP.t_max, VP.t_min], dtype=DOUBLE)
    start, end = (-2 * VP.lam(ends)).exp().tolist()
    limit = ((1 + end) / (1 + start)) ** eta
    assert limit == pytest.approx(share, rel=0.1)
    grids = [sa.uniform_logsnr(VP, steps) for steps in (100, 400)]
    errors = [abs(sa.memoryless_deficit(frame, grid) / limit - 1) for grid in grids]
    assert errors[1] <= 1e-2
    assert eta == 0 or 3 <= errors[0] / errors[1] <= 5


def test_a_start_without_signal_is_forgotten() -> None:
    schedule = sa.RectifiedFlow()
    grid = torch.tensor([1.0, 0.6, 0.3, 0.0], dtype=DOUBLE)
    assert sa.memoryless_deficit(sa.Frame(schedule, eta=0.5), grid) == 0.0
    assert sa.memoryless_deficit(sa.Frame(schedule), grid) == pytest.approx(1.0, rel=1e-12)


def test_bad_arguments_of_the_deficit() -> None:
    frame, grid = sa.Frame(VP), sa.uniform_logsnr(VP, 4)
    with pytest.raises(ValueError, match="variance: got 0; pass a positive number"):
        sa.memoryless_deficit(frame, grid, variance=0)
    with pytest.raises(TypeError, match="remembers earlier steps"):
        sa.memoryless_deficit(frame, grid, sa.DPMSolverPP2M())
    with pytest.raises(TypeError, match="frame: got"):
        sa.memoryless_deficit(None, grid)
