"""Noise that is drawn while the network runs: the same numbers, by one thread, a bounded number of steps ahead."""

from __future__ import annotations

import gc
import threading
import time
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.noise import BoundNoise, Increment, Noise
from sdeadjoint.noise.ahead import AHEAD, DrawnAhead

from .solves import Solve, worst

STEPS = 7
CLOCK = torch.linspace(0, 3, STEPS + 1, dtype=torch.float64)
LIKE = torch.zeros(2, 3, dtype=torch.float64)
ORDERS = {
    "up": range(STEPS),
    "down": range(STEPS)[::-1],
    "up and down": [*range(STEPS), *range(STEPS)[::-1]],
    "any": [3, 3, 0, 6, 5, 1, 2, 6, 0, 4],
}


def bound(seed: int | Sequence[int] = 0, refinable: bool = False) -> BoundNoise:
    return sa.BrownianPath(seed, refinable).bind(CLOCK, LIKE, levy=True)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("seed", [0, [5, 3]])
@pytest.mark.parametrize("refinable", [False, True])
def test_the_numbers_are_the_same_in_any_order(order: str, seed: int | list[int], refinable: bool) -> None:
    ahead, want = DrawnAhead(bound(seed, refinable).increment, STEPS, LIKE.device), bound(seed, refinable)
    for n in ORDERS[order]:
        assert all(map(torch.equal, ahead.increment(n), want.increment(n)))


def test_states_elsewhere_get_it_and_no_others() -> None:
    path = sa.BrownianPath(0)
    elsewhere = path.bind(CLOCK, LIKE.to("meta"), levy=True)
    assert isinstance(elsewhere, DrawnAhead)
    dB, H = elsewhere.increment(2)
    assert dB.shape == LIKE.shape
    assert H is not None
    assert dB.device.type == H.device.type == "meta"
    assert not isinstance(path.bind(CLOCK, LIKE, levy=True), DrawnAhead)


def test_one_thread_draws_a_few_steps_ahead() -> None:
    drawn, threads, source = list[int](), set[int](), bound()

    def draw(n: int) -> Increment:
        drawn.append(n)
        threads.add(threading.get_ident())
        return source.increment(n)

    ahead = DrawnAhead(draw, STEPS, LIKE.device)
    for n in range(STEPS):
        ahead.increment(n)
        time.sleep(0.01)  # as a network takes its time
        assert drawn == list(range(min(n + AHEAD + 1, STEPS)))  # in order, each once, and no more than these
    assert len(threads) == 1
    assert threading.get_ident() not in threads


def test_errors_reach_who_asks_for_the_step_and_nobody_else() -> None:
    def draw(n: int) -> Increment:
        if n == 2:
            raise ValueError("no step 2")
        return bound().increment(n)

    ahead = DrawnAhead(draw, STEPS, LIKE.device)
    for n in (0, 1, 3, 1):
        ahead.increment(n)
    with pytest.raises(ValueError, match="no step 2"):
        ahead.increment(2)
    with pytest.raises(IndexError, match="step 7 is out of range"):
        ahead.increment(STEPS)


def test_the_thread_ends_with_the_noise() -> None:
    before = set(threading.enumerate())
    ahead = DrawnAhead(bound().increment, STEPS, LIKE.device)
    ahead.increment(0)
    (thread,) = set(threading.enumerate()) - before
    del ahead
    gc.collect()
    thread.join(timeout=60)
    assert not thread.is_alive()


class Ahead(Noise):
    """A path as states on an accelerator get it, for states on the CPU."""

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        path = sa.BrownianPath(3).bind(clock, like, levy)
        return DrawnAhead(path.increment, len(clock) - 1, like.device)


@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [
        (sa.ShARK(), sa.Direct()),
        (sa.ShARK(), sa.Checkpoint()),
        (sa.Heun(), sa.Checkpoint(3)),
        (sa.Heun(), sa.Checkpoint(memory="1MiB")),
        (sa.ReversibleHeun(), sa.Reversible()),
        (sa.Heun(), sa.Truncated(3)),
        (sa.Heun(), sa.ContinuousAdjoint()),
    ],
    ids=repr,
)
def test_every_sweep_gets_the_same_numbers(solver: sa.Solver, adjoint: sa.Adjoint) -> None:
    reached = not isinstance(adjoint, sa.Truncated)
    one, other = (Solve(solver, 9, eta=1.0, noise="replayed", x_T_requires_grad=reached) for _ in range(2))
    other.path = Ahead()
    (want, expected), (got, found) = one.gradients(adjoint), other.gradients(adjoint)
    assert torch.equal(got, want)
    assert worst(found, expected) == 0
