"""Hooks on the adjoint: what they see and what their answers do, the same under every exact adjoint."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa

from .solves import Solve, relative, worst

ADJOINTS = [sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2), sa.Checkpoint(memory="1MiB"), sa.Reversible()]
COUPLED = sa.Coupled(sa.Heun())


@pytest.mark.parametrize("final_zero", [False, True])
@pytest.mark.parametrize("adjoint", ADJOINTS[:-1], ids=repr)
def test_a_hook_sees_the_gradient_of_each_state(adjoint: sa.Adjoint, final_zero: bool) -> None:
    grid = sa.uniform_logsnr(sa.VPLinear(), 6, final_zero=final_zero)
    solve = Solve(sa.Heun(), 6, options={"grid": grid})
    seen: list[tuple[int, float, Tensor]] = []
    plain = solve.gradients(adjoint)[1]
    hooked = solve.gradients(sa.Hooked(adjoint, lambda n, t, a: seen.append((n, t, a))))[1]  # type: ignore[arg-type, func-returns-value]
    assert worst(hooked, plain) == 0
    assert [n for n, _, _ in seen] == [6, 5, 4, 3, 2, 1]
    assert [t for _, t, _ in seen] == grid[1:].flip(0).tolist()
    # dL/dx_n by plain autograd through the rest of a one-step sampler.
    states = sa.sample(adjoint=sa.Direct(), **solve.arguments() | {"trajectory": True}).detach()
    cotangent = torch.linspace(-1, 2, 12, dtype=torch.float64).reshape(3, 4)
    for n, _, a in seen[1:]:
        x = states[n].requires_grad_()
        rest = solve.arguments() | {"x_T": x, "grid": grid[n:]}
        (want,) = torch.autograd.grad(sa.sample(adjoint=sa.Direct(), **rest), x, cotangent)
        assert relative(a, want) <= 1e-12
        states = states.detach()
    assert relative(seen[0][2], cotangent) <= 1e-14


@pytest.mark.parametrize("hook", [sa.clip_norm(0.05), sa.normalize(2.0)], ids=["clip", "normalize"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("trajectory", [False, True])
def test_all_exact_adjoints_agree_on_a_changed_adjoint(hook: sa.adjoints.Hook, eta: float, trajectory: bool) -> None:
    solve = Solve(COUPLED, 7, eta, options={"trajectory": trajectory})
    want = solve.gradients(sa.Hooked(sa.Direct(), hook))[1]
    assert relative(want[0], solve.gradients(sa.Direct())[1][0]) > 1e-3
    for adjoint in ADJOINTS[1:]:
        assert worst(solve.gradients(sa.Hooked(adjoint, hook))[1], want) <= 1e-9


def test_clipping_and_normalising_sample_by_sample() -> None:
    a = torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]], dtype=torch.float64)
    assert torch.allclose(sa.clip_norm(1.0)(1, 0.5, a), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0, 0]]).double())
    assert torch.allclose(sa.normalize()(1, 0.5, a), torch.tensor([[0.6, 0.8], [0.6, 0.8], [0, 0]]).double())
    norms: list[tuple[int, float, Tensor]] = []
    assert sa.record_norms(norms)(1, 0.5, a.bfloat16()) is None
    assert norms[0][:2] == (1, 0.5)
    assert torch.allclose(norms[0][2], torch.tensor([5.0, 0.5, 0.0]), rtol=4e-3)  # of bfloat16


def test_recorded_norms_under_truncation_and_low_variance() -> None:
    for adjoint, seen in ((sa.Truncated(3), [6, 5, 4]), (sa.LowVariance(), [6])):
        norms: list[tuple[int, float, Tensor]] = []
        Solve(sa.Euler(), 6, x_T_requires_grad=False).gradients(sa.Hooked(adjoint, sa.record_norms(norms)))
        assert [n for n, _, _ in norms] == seen


def test_hooks_compose_from_the_outside_in() -> None:
    order: list[str] = []

    def named(name: str, factor: float) -> sa.adjoints.Hook:
        def hook(n: int, t: float, a: Tensor) -> Tensor:
            order.append(name)
            return factor * a

        return hook

    solve = Solve(sa.Euler(), 1)
    plain = solve.gradients(sa.Direct())[1]
    both = sa.Hooked(sa.Hooked(sa.Checkpoint(), named("inner", 2.0)), named("outer", 3.0))
    assert worst(solve.gradients(both)[1], tuple(None if g is None else 6 * g for g in plain)) <= 1e-14
    assert order == ["outer", "inner"]


@pytest.mark.parametrize("adjoint", ADJOINTS[:-1], ids=repr)
def test_a_hook_may_answer_in_a_wider_dtype(adjoint: sa.Adjoint) -> None:
    x_T = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()
    schedule = sa.VPLinear()

    def gradient(hook: sa.adjoints.Hook) -> Tensor:
        x = sa.sample(
            sa.Denoiser(lambda x, t: torch.tanh(x), schedule), x_T, frame=sa.Frame(schedule), solver=sa.Heun(),
            grid=sa.uniform_logsnr(schedule, 5), adjoint=sa.Hooked(adjoint, hook),
        )  # fmt: skip
        return torch.autograd.grad(x.square().sum(), x_T)[0]

    assert torch.equal(gradient(lambda n, t, a: 2 * a.double()), gradient(lambda n, t, a: 2 * a))


@pytest.mark.parametrize("adjoint", [*ADJOINTS, sa.Truncated(3), sa.LowVariance()], ids=repr)
def test_without_gradients_there_is_nothing_to_hook(adjoint: sa.Adjoint) -> None:
    solve = Solve(COUPLED, 6, x_T_requires_grad=False)
    want = sa.sample(adjoint=sa.Direct(), **solve.arguments()).detach()
    for leaf in solve.leaves:
        leaf.requires_grad_(False)
    seen: list[tuple[int, float, Tensor]] = []
    got = sa.sample(adjoint=sa.Hooked(adjoint, sa.record_norms(seen)), **solve.arguments())
    assert torch.equal(got, want)
    assert not got.requires_grad
    assert not seen


def test_bad_hooks() -> None:
    with pytest.raises(TypeError, match="adjoint: got "):
        sa.Hooked(sa.Direct, sa.normalize())  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="hook: got float"):
        sa.Hooked(sa.Direct(), 1.0)  # type: ignore[arg-type]
    for answer, got in ((torch.ones(2), r"\(2,\)"), (1.0, "float")):
        for adjoint in (sa.Direct(), sa.Checkpoint()):
            with pytest.raises(ValueError, match=f"hook: returned {got} for an adjoint of shape"):
                Solve(sa.Euler(), 2).gradients(sa.Hooked(adjoint, lambda n, t, a, answer=answer: answer))  # type: ignore[misc]
    for make in (sa.clip_norm, sa.normalize):
        with pytest.raises(ValueError, match="pass a positive number"):
            make(0.0)


@pytest.mark.parametrize("shape", [(2,), (2, 12), (2, 3, 2, 2)])
def test_norms_are_of_whole_samples_of_any_shape(shape: tuple[int, ...]) -> None:
    a = torch.arange(1.0, 1 + math.prod(shape), dtype=torch.float64).reshape(shape)
    norms, seen = a.reshape(2, -1).square().sum(1).sqrt(), []
    sa.adjoints.record_norms(seen)(0, 1.0, a)
    assert torch.allclose(seen[0][2], norms, rtol=1e-14)
    per_sample = norms.reshape(2, *[1] * (a.ndim - 1))
    assert torch.allclose(sa.adjoints.normalize(2.0)(0, 1.0, a), 2 * a / per_sample, rtol=1e-14)
