"""``Truncated`` and ``LowVariance``: the exact gradients of the steps they keep, and the refusals."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.diffusion.equation import Diffusion
from sdeadjoint.recursion import Carry, Recursion

from .solves import DOUBLE, SCHEDULE, Solve, worst

SOLVERS = [sa.Euler(), sa.Heun(), sa.DPMSolverPP2M(), sa.AdamsBashforth(3), sa.ShARK()]


def recursion_of(solve: Solve) -> tuple[Recursion, Tensor]:
    """The recursion and ``y_0``."""
    arguments = solve.arguments()
    equation = Diffusion.create(*(arguments[name] for name in ("denoiser", "frame", "grid", "cond")))
    equation = equation.starting_at(solve.x_T)
    y = equation.enter(solve.x_T)
    return Recursion.create(equation, arguments["solver"], arguments["noise"], y), y


def tail_gradients(solve: Solve, last: int) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The last steps by plain autograd from a carry that is a constant."""
    recursion, y = recursion_of(solve)
    with torch.no_grad():
        carries = [recursion.start(y), *recursion.run(recursion.start(y))]
    carry = carries[recursion.steps - last]
    for n in range(recursion.steps - last, recursion.steps):
        carry = recursion.step(n, carry, recursion.increment(n))
    out = recursion.equation.leave(recursion.steps, carry.y)
    cotangent = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return out.detach(), torch.autograd.grad(out, solve.leaves, cotangent, allow_unused=True)


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("last", [1, 2, 5, 8])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_it_is_the_gradient_of_the_last_steps(solver: sa.Solver, last: int, eta: float) -> None:
    solve = Solve(solver, steps=9, eta=eta, x_T_requires_grad=False)
    want, expected = tail_gradients(solve, last)
    got, found = solve.gradients(sa.Truncated(last))
    assert torch.equal(got, want)
    assert worst(found, expected) <= 1e-12


def test_the_noise_of_earlier_steps_gets_zeros() -> None:
    solve = Solve(sa.Euler(), steps=6, eta=1.0, x_T_requires_grad=False)
    grad = solve.gradients(sa.Truncated(2))[1][-1]
    assert grad is not None
    assert [bool(slot.any()) for slot in grad] == [False] * 4 + [True] * 2


def test_all_steps_are_the_whole_gradient() -> None:
    for steps in (4, 7):
        solve = Solve(sa.Heun(), steps, 1.0, options={"trajectory": True})
        assert worst(solve.gradients(sa.Truncated(7))[1], solve.gradients(sa.Direct())[1]) <= 1e-12


def test_network_calls() -> None:
    calls = Counter[str]()
    phase = "forward"

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls[phase] += 1
        return torch.tanh(weight * x)

    weight = torch.ones(4, dtype=DOUBLE, requires_grad=True)
    out = sa.sample(
        sa.Denoiser(network, SCHEDULE),
        torch.ones(2, 4, dtype=DOUBLE),
        frame=sa.Frame(SCHEDULE),
        grid=sa.uniform_logsnr(SCHEDULE, 20),
        solver=sa.Heun(),
        adjoint=sa.Truncated(3),
    )
    phase = "backward"
    out.sum().backward()
    assert calls == {"forward": 40, "backward": 6}


@pytest.mark.parametrize("adjoint", [sa.Truncated(2), sa.LowVariance()], ids=repr)
def test_what_lies_beyond_the_truncation_is_refused(adjoint: sa.Adjoint) -> None:
    with pytest.raises(RuntimeError, match=r"x_T requires a gradient.*x_T\.detach\(\), or adjoint=Checkpoint\(\)"):
        Solve(sa.Euler()).gradients(adjoint)
    solve = Solve(sa.Euler(), x_T_requires_grad=False, options={"trajectory": True})
    with pytest.raises(RuntimeError, match=r"trajectory=True: .*adjoint=Checkpoint\(\)"):
        solve.gradients(adjoint)
    with torch.no_grad():
        sa.sample(adjoint=adjoint, **Solve(sa.Euler(), x_T_requires_grad=False).arguments() | {"cond": None})


def test_drawn_lengths_are_the_generators() -> None:
    state = torch.get_rng_state()
    one, two = (
        [sa.Truncated.drawn(1, 1000, generator).last for _ in range(10)]
        for generator in (torch.Generator().manual_seed(0), torch.Generator().manual_seed(0))
    )
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)


def test_drawn_lengths_are_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(sa.Truncated.drawn(3, 6, generator).last for _ in range(4000))
    assert set(drawn) == {3, 4, 5, 6}
    # Five standard deviations of a binomial count.
    assert all(abs(count - 1000) <= 5 * math.sqrt(4000 * 0.25 * 0.75) for count in drawn.values())
    with pytest.raises(ValueError, match="low, high: got 0, 3"):
        sa.Truncated.drawn(0, 3, generator)
    with pytest.raises(ValueError, match="low, high: got 4, 3"):
        sa.Truncated.drawn(4, 3, generator)


@pytest.mark.parametrize("final_zero", [False, True])
@pytest.mark.parametrize(("eta", "steps"), [(0.0, 6), (1.0, 6), (0.0, 1)])
def test_low_variance_is_the_mean_over_renoised_samples(eta: float, steps: int, final_zero: bool) -> None:
    grid = sa.uniform_logsnr(SCHEDULE, steps, final_zero=final_zero)
    solve = Solve(sa.DPMSolverPP2M(), steps, eta, x_T_requires_grad=False, options={"grid": grid})
    got, found = solve.gradients(sa.LowVariance(copies=3, seed=5))
    want, _ = tail_gradients(solve, 1)
    assert torch.equal(got, want)

    (recursion, _), generator = recursion_of(solve), torch.Generator().manual_seed(5)
    t0, t1 = grid[-2:].tolist()
    (a0, b0), (a1, b1) = ((float(SCHEDULE.alpha(t)), float(SCHEDULE.sigma(t))) for t in (t0, t1))
    cotangent = torch.linspace(-1, 2, 12, dtype=DOUBLE).reshape(3, 4)
    total: list[Tensor | None] = [None] * len(solve.leaves)
    for _ in range(3):
        z = torch.randn(3, 4, generator=generator, dtype=DOUBLE)
        x = a0 / a1 * want + math.sqrt(b0**2 - (a0 / a1 * b1) ** 2) * z
        equation = recursion.equation.starting_at(x) if steps == 1 else recursion.equation
        last = replace(recursion, equation=equation)
        y = last.step(steps - 1, Carry(equation.enter(x, steps - 1), ()), last.increment(steps - 1)).y
        out = equation.leave(steps, y)
        grads = torch.autograd.grad(out, solve.leaves, cotangent / 3, allow_unused=True)
        total = [b if a is None else a if b is None else a + b for a, b in zip(total, grads, strict=True)]
    assert worst(found, tuple(total)) <= 1e-12


def test_low_variance_draws_alike_in_every_dtype() -> None:
    weight = torch.linspace(-1, 1, 4, dtype=DOUBLE).requires_grad_()

    def gradient(dtype: torch.dtype) -> Tensor:
        out = sa.sample(
            sa.Denoiser(lambda x, t: torch.tanh(weight.to(x.dtype) * x), SCHEDULE, "sample"),
            torch.linspace(-1, 1, 40).reshape(10, 4).to(dtype),  # 16 numbers and more are drawn otherwise
            frame=sa.Frame(SCHEDULE),
            grid=sa.uniform_logsnr(SCHEDULE, 4, t_min=0.2),
            solver=sa.Euler(),
            adjoint=sa.LowVariance(copies=1),
        )
        return torch.autograd.grad(out.double().sum(), weight)[0]

    # Some tens of roundings.
    assert float((gradient(torch.float32) - gradient(DOUBLE)).norm() / gradient(DOUBLE).norm()) <= 1e-5


def test_low_variance_renoises_with_the_forward_process() -> None:
    # The state handed to the network in the last step has the forward process' mean and variance, given x_0.
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(x.detach())
        return weight * torch.ones_like(x)

    weight = torch.full((), 0.7, dtype=DOUBLE, requires_grad=True)
    grid = sa.uniform_logsnr(SCHEDULE, 4, final_zero=True)
    out = sa.sample(
        sa.Denoiser(network, SCHEDULE, "sample"),
        torch.zeros(20000, 1, dtype=DOUBLE),
        frame=sa.Frame(SCHEDULE),
        grid=grid,
        solver=sa.Euler(),
        adjoint=sa.LowVariance(copies=1),
    )
    assert torch.allclose(out, torch.full_like(out, 0.7))
    alpha, sigma = float(SCHEDULE.alpha(grid[-2])), float(SCHEDULE.sigma(grid[-2]))
    z = (seen[-1] - alpha * 0.7) / sigma
    # Five standard errors.
    assert abs(float(z.mean())) <= 5 / math.sqrt(20000)
    assert abs(float(z.var()) - 1) <= 5 * math.sqrt(2 / 20000)


@pytest.mark.parametrize("last", [0, -1, True, 1.5, None])
def test_bad_lengths(last: object) -> None:
    with pytest.raises(ValueError, match="last: got"):
        sa.Truncated(last)  # type: ignore[arg-type]


@pytest.mark.parametrize(("copies", "seed"), [(0, 0), (1, -1), (True, 0), (1.0, 0)])
def test_bad_copies_and_seeds(copies: object, seed: object) -> None:
    with pytest.raises(ValueError, match=r"(copies|seed): got"):
        sa.LowVariance(copies, seed)  # type: ignore[arg-type]
