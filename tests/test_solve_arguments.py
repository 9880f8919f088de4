"""What ``sa.solve`` does with its arguments, and what not: all their roles, copies, replays, refusals."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa

from .written_out import CLOCK, DOUBLE, EXACT, Owner, apart, flat, numbers

STATE = {"x": numbers(2, 3), "v": numbers(2, 3, seed=1)}


# ---------------------------------------------------------------- arguments are the caller's


Made = tuple[Any, Any, dict[str, Any]]


def both(make: Callable[[], Made], leaves: list[Tensor], adjoint: sa.Adjoint) -> None:
    """``make()`` gives (drift, y0, options) anew; an adjoint's gradients are those of plain autograd."""
    found = []
    for each in (sa.Direct(), adjoint):
        torch.manual_seed(0)
        drift, y0, options = make()
        out = sa.solve(drift, y0, adjoint=each, **({"clock": CLOCK, "solver": sa.Heun()} | options))
        loss = torch.stack([part.sin().sum() for part in flat(out)]).sum()
        found.append(torch.autograd.grad(loss, leaves, allow_unused=True))
    for want, got in zip(*found, strict=True):
        assert (want is None) == (got is None)
        assert want is None or apart([got], [want]) <= EXACT


def test_parameters_that_are_states_conditioning_and_noise_at_once() -> None:
    owner = Owner()
    leaves = [owner.start, owner.weight]
    increments = numbers(5, 4, 3, seed=2).requires_grad_()
    for make, wanted in (
        (lambda: (owner, owner.start, {}), leaves),
        (lambda: (owner.forward, owner.start * 2, {}), leaves),
        (lambda: (functools.partial(owner), numbers(4, 3), {}), leaves),
        (lambda: (lambda s, y: owner(s, y), owner.start.expand(4, 3), {}), leaves),
        (
            lambda: (lambda s, y, x: owner(s, y) * x, owner.start, {"cond": {"x": owner.start}}),
            leaves,
        ),
        (
            lambda: (owner, owner.start, {"noise": sa.FixedNoise(increments * owner.start)}),
            [*leaves, increments],
        ),
        (
            lambda: (
                lambda s, y, c: owner(s, y) * c[int(5 * s) % 5],
                owner.start,
                {"noise": sa.FixedNoise(increments), "cond": {"c": increments}},
            ),
            [*leaves, increments],
        ),
        (
            lambda: (
                lambda s, y: {"a": owner(s, y["b"]), "b": y["a"]},
                {"a": owner.start, "b": numbers(4, 3)},
                {
                    "noise": {
                        "b": sa.FixedNoise(increments),
                        "a": sa.ShiftedNoise(sa.BrownianPath(1), increments),
                    }
                },
            ),
            [*leaves, increments],
        ),
        (
            lambda: (owner, numbers(4, 3), {"after_step": lambda n, s, y: y * owner.start.cos()}),
            leaves,
        ),
    ):
        both(make, wanted, sa.Checkpoint(2))


def test_random_drifts_are_replayed() -> None:
    owner = Owner()
    leaves = [owner.start, owner.weight]
    both(lambda: (owner.dropped, numbers(4, 3), {}), leaves, sa.Checkpoint(1))
    noisy = {"after_step": lambda n, s, y: y + torch.randn_like(y) * y}
    both(lambda: (owner, numbers(4, 3), noisy), leaves, sa.Checkpoint(1))


def energy(s: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The gradient of an energy, by autograd inside of the drift."""
    with torch.enable_grad():
        y = y if y.requires_grad else y.requires_grad_()
        return -torch.autograd.grad(
            (weight * y.cos()).sum() + (y**4).sum() / 4, y, create_graph=True
        )[0]


def test_drifts_that_differentiate() -> None:
    leaf, weight = numbers(2, 3).requires_grad_(), numbers(3, seed=1).requires_grad_()
    make = lambda: (energy, leaf, {"cond": {"weight": weight}})  # noqa: E731
    both(make, [leaf, weight], sa.Checkpoint(1))


def test_drifts_may_work_in_place_and_use_their_memory_again() -> None:
    held: dict[str, Tensor] = {}

    def in_place(s: Tensor, y: Any) -> Any:
        s.mul_(2)
        return {name: part.neg_().mul_(s) for name, part in y.items()}

    def buffered(s: Tensor, y: Any) -> Any:
        for name, part in y.items():
            held[name] = held.get(name, torch.empty_like(part)).copy_(-2 * s * part)
        return {name: held[name] for name in y}

    def plain(s: Tensor, y: Any) -> Any:
        return {name: -2 * s * part for name, part in y.items()}

    one = {"y": numbers(2, 3)}
    for state in (STATE, one):
        want = sa.solve(plain, state, clock=CLOCK, solver=sa.RK4())
        with torch.no_grad():
            got = sa.solve(buffered, state, clock=CLOCK, solver=sa.RK4())
        assert apart(list(got.values()), list(want.values())) <= EXACT
        leaf = {name: part.clone().requires_grad_() for name, part in state.items()}
        got = sa.solve(in_place, leaf, clock=CLOCK, solver=sa.RK4())
        assert apart(list(got.values()), list(want.values())) <= EXACT
    with torch.no_grad():
        got = sa.solve(
            lambda s, y: buffered(s, {"y": y})["y"], one["y"], clock=CLOCK, solver=sa.RK4()
        )
    assert apart([got], [want["y"]]) <= EXACT


def test_what_callbacks_and_after_step_hold_is_their_own() -> None:
    kept, buffer = [], torch.empty(2, 3, dtype=DOUBLE)

    def look(n: int, s: float, y: Tensor) -> None:
        kept.append((n, s, y.clone()))
        y.zero_()

    options = {"clock": CLOCK, "solver": sa.Heun()}
    with torch.no_grad():
        want = sa.solve(lambda s, y: -y, STATE["x"], trajectory=True, **options)
        sa.solve(lambda s, y: -y, STATE["x"], callback=look, **options)
        after = sa.solve(
            lambda s, y: -y,
            STATE["x"],
            trajectory=True,
            after_step=lambda n, s, y: buffer.copy_(y),
            **options,
        )
    assert torch.equal(after, want)
    assert [(n, s) for n, s, _ in kept] == list(enumerate(CLOCK.tolist()))[1:]
    assert torch.equal(torch.stack([y for _, _, y in kept]), want[1:])


def test_the_clock_comes_as_a_tensor_of_the_dtype_that_is_asked_for() -> None:
    seen: list[Tensor] = []

    def drift(s: Tensor, y: Tensor) -> Tensor:
        seen.append(s)
        return -y * s

    for dtype in (torch.float64, torch.float32):
        seen.clear()
        out = sa.solve(
            drift, numbers(2, dtype=torch.float32), clock=CLOCK, solver=sa.Euler(), time_dtype=dtype
        )
        assert out.dtype == torch.float32
        assert {(s.dtype, s.ndim) for s in seen} == {(dtype, 0)}
        assert [float(s) for s in seen] == [
            float(torch.tensor(s, dtype=dtype)) for s in CLOCK.tolist()[:-1]
        ]


def test_what_changes_between_the_passes_is_noticed() -> None:
    owner = Owner()
    increments, x = numbers(5, 4, 3), numbers(4, 3)

    def solved(**options: Any) -> Tensor:
        return sa.solve(
            lambda s, y, x: owner(s, y) + x,
            numbers(4, 3),
            clock=CLOCK,
            solver=sa.Heun(),
            cond={"x": x},
            **options,
        )

    for change, options in (
        (lambda: increments.add_(1.0), {"noise": sa.FixedNoise(increments)}),
        (lambda: x.add_(1.0), {}),
        (lambda: owner.weight.data.add_(1.0), {}),
    ):
        out = solved(**options)
        change()
        with pytest.raises(
            RuntimeError, match=r"modified by an inplace operation|gave another state"
        ):
            out.sum().backward()
    out = sa.solve(owner, numbers(4, 3), clock=CLOCK, solver=sa.Heun())
    owner.eval()
    with pytest.raises(RuntimeError, match=r"train\(\) or eval\(\) was called"):
        out.sum().backward()


def test_what_cannot_be_replayed_is_refused() -> None:
    owner, kept = Owner(), []

    def averaged(n: int, s: float, y: Tensor) -> Tensor:
        kept.append(y)
        return y if len(kept) < 2 else (y + kept[-2]) / 2

    half = owner.start / 2
    for drift, y0, options, says in (
        (owner, numbers(4, 3), {"after_step": averaged}, "an earlier evaluation had computed"),
        (lambda s, y: y * half, half, {}, "but also directly"),
        (lambda s, y: y, half, {"after_step": lambda n, s, y: y * half}, "but also directly"),
    ):
        with pytest.raises(RuntimeError, match=says):
            sa.solve(drift, y0, clock=CLOCK, solver=sa.Heun(), **options)


@pytest.mark.parametrize(
    "adjoint", [sa.Reversible(), sa.ContinuousAdjoint()], ids=lambda a: type(a).__name__
)
def test_adjoints_that_cannot_follow_after_step_say_so(adjoint: sa.Adjoint) -> None:
    with pytest.raises(ValueError, match="after_step: "):
        sa.solve(
            lambda s, y: -y,
            numbers(2).requires_grad_(),
            clock=CLOCK,
            solver=sa.ReversibleHeun(),
            adjoint=adjoint,
            after_step=lambda n, s, y: y,
        )
