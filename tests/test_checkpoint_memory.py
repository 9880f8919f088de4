"""``Checkpoint(memory=...)``: the same gradients, as few recomputations as the budget allows, and no byte more."""

from __future__ import annotations

import threading
from collections import Counter
from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.adjoints.checkpoint import parse_bytes
from sdeadjoint.adjoints.replay import backward
from sdeadjoint.memory import PeakMemory

from .networks import Mlp
from .solves import DOUBLE, SCHEDULE, Solve, worst

STATE = 3 * 4 * 8  # of ``Solve``, in bytes


@cache
def exact(solver: sa.Solver, eta: float, trajectory: bool) -> Any:
    """What ``Direct()`` has, for all budgets."""
    return Solve(solver, 9, eta, options={"trajectory": trajectory}).gradients(sa.Direct())


BUDGETS = [STATE * 5, 3000, 10_000, "1MiB"]
METHODS = [sa.Euler(), sa.Heun(), sa.AdamsBashforth(4), sa.ShARK(), sa.ReversibleHeun()]


@pytest.mark.parametrize("memory", BUDGETS)
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver", METHODS, ids=repr)
def test_gradients_are_those_of_direct(solver: sa.Solver, eta: float, memory: int | str) -> None:
    # A trajectory is more outputs of the same steps: here with each pair of the others' values, and left out too.
    trajectory = (METHODS.index(solver) + int(eta) + BUDGETS.index(memory)) % 2 == 1
    solve = Solve(solver, 9, eta, options={"trajectory": trajectory})
    want, expected = exact(solver, eta, trajectory)
    got, found = solve.gradients(sa.Checkpoint(memory=memory))
    assert torch.equal(got, want)
    assert worst(found, expected) <= 1e-12


class Counted(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.network, self.calls = Mlp(64, width=width), Counter[str]()
        self.test = SimpleNamespace(phase="forward")  # a setting of the module would be watched

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls[self.test.phase] += 1
        return self.network(x, t)


@cache
def spent(adjoint: sa.Adjoint, steps: int, solver: sa.Solver, width: int = 256, batch: int = 4) -> tuple[int, int]:
    """Recomputed network calls and peak bytes of one gradient."""
    network = Counted(width)
    x_T, grid = torch.ones(batch, 64, dtype=DOUBLE, requires_grad=True), sa.uniform_logsnr(SCHEDULE, steps)
    wanted = [x_T, *(p for p in network.parameters() if p.requires_grad)]
    with PeakMemory() as memory:
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE), grid=grid, solver=solver,
            adjoint=adjoint,
        )  # fmt: skip
        network.test.phase = "backward"
        torch.autograd.grad(out.sum(), wanted, allow_unused=True)
        del out
    return network.calls["backward"], memory.peak


def test_calls_and_bytes_over_the_whole_range_of_budgets() -> None:
    steps, batch = 16, 64
    state = batch * 64 * 8
    for solver, kept in ((sa.Euler(), 1), (sa.DPMSolverPP2M(), 2)):
        floor_calls, floor_peak = spent(sa.Checkpoint(), steps, solver, batch=batch)
        bare_peak = spent(sa.Checkpoint(1), 3, solver, batch=batch)[1]  # no less on more steps
        assert floor_calls == steps
        _, direct_peak = spent(sa.Direct(), steps, solver, batch=batch)
        last = steps + 1
        # The last budgets are above all graphs, where nothing changes any more.
        for budget in range(steps * kept * state, direct_peak + direct_peak // 4, direct_peak // 4):
            calls, peak = spent(sa.Checkpoint(memory=budget), steps, solver, batch=batch)
            assert calls <= min(last, floor_calls)  # never slower than Checkpoint(), and more memory never costs calls
            # What is kept fits in the budget; the workspace of one step comes on top. And plain autograd takes more.
            assert peak <= min(budget + bare_peak, direct_peak)
            last = calls
        # Everything fits, but for graphs of 300 kB in whose place lie the states and a step's gradients.
        assert last * 300_000 <= steps * kept * state + 1_000_000
        all_states = spent(sa.Checkpoint(memory=steps * kept * state), steps, solver, batch=batch)
        assert all_states == (floor_calls, floor_peak)


def deep(layers: int, width: int) -> nn.Module:
    return nn.Sequential(*(layer for _ in range(layers) for layer in (nn.Linear(width, width), nn.Tanh()))).double()


def test_of_large_gradients_there_are_no_two() -> None:
    """A step's part is added to the sum when it is there, and not when all of them are."""
    layers, width = 12, 128
    network, one = deep(layers, width), width * width * 8
    x_T = torch.ones(1, width, dtype=DOUBLE)
    for steps in (3, 6):
        grid = sa.uniform_logsnr(SCHEDULE, steps)
        denoiser = sa.Denoiser(lambda x, t: network(x), SCHEDULE, "sample")
        with PeakMemory() as memory:
            sa.sample(denoiser, x_T, frame=sa.Frame(SCHEDULE), grid=grid, solver=sa.Euler()).sum().backward()
        network.zero_grad()
        activations = 100 * layers * width * 8
        assert layers * one <= memory.peak <= (layers + 1) * one + activations


class Elsewhere(torch.autograd.Function):
    """The identity, in whose derivative another thread differentiates something else in the same weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.leaf = [weight]
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        other = threading.Thread(target=lambda: torch.autograd.grad((ctx.leaf[0] * 7).sum(), ctx.leaf))
        other.start()
        other.join()
        return grad, None


def test_large_gradients_with_hooks_threads_and_one_tensor_for_two_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Here all are large. Hooks see totals, another thread has its own, and aliased parts are not added twice."""
    monkeypatch.setattr(backward, "LARGE", 0)
    one, two = (nn.Parameter(torch.linspace(0.1, 1, 6, dtype=DOUBLE)) for _ in range(2))
    x_T, grid, seen = torch.ones(2, 6, dtype=DOUBLE), sa.uniform_logsnr(SCHEDULE, 5), list[Tensor]()
    one.register_hook(lambda grad: seen.append(grad.clone()))

    def network(x: Tensor, t: Tensor) -> Tensor:
        return Elsewhere.apply(torch.tanh(x + (one + two)), one)  # whose derivatives are one tensor

    def gradients(adjoint: sa.Adjoint) -> list[Tensor]:
        seen.clear()
        out = sa.sample(sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE), grid=grid,
                        solver=sa.Euler(), adjoint=adjoint)  # fmt: skip
        return list(torch.autograd.grad(out.square().sum(), [one, two]))

    want, got = gradients(sa.Direct()), gradients(sa.Checkpoint())
    assert worst(got, want) <= 1e-13
    *others, total = seen
    assert len(others) == 5
    assert all(grad.eq(7).all() for grad in others)
    assert torch.equal(total, got[0])


@pytest.mark.parametrize("count", [2, 5, 10])
def test_no_states_but_the_snapshots_are_held(count: int) -> None:
    """In the backward pass too, which replaces those of the forward pass by later ones.

    One snapshot more than ``count`` would be seen. 12 steps ask each of the counts for recomputations.
    """
    bare, peak = (spent(sa.Checkpoint(snapshots), 12, sa.Euler())[1] for snapshots in (1, count))
    assert peak <= bare + (count - 1) * 4 * 64 * 8


def test_a_budget_below_all_states_buys_that_many_snapshots() -> None:
    state = 4 * 64 * 8
    for count in (1, 3, 7):
        want = spent(sa.Checkpoint(count), 12, sa.Euler())
        assert spent(sa.Checkpoint(memory=count * state + state // 2), 12, sa.Euler()) == want
    with pytest.raises(ValueError, match=rf"memory: got {state - 1} bytes, but one stored state takes {state}"):
        spent(sa.Checkpoint(memory=state - 1), 12, sa.Euler())


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_a_stored_state_is_counted_with_all_that_the_solver_remembers(order: int) -> None:
    with pytest.raises(ValueError, match=f"but one stored state takes {order * STATE}; pass at least that"):
        Solve(sa.AdamsBashforth(order), 9).gradients(sa.Checkpoint(memory=order * STATE - 1))


def test_the_budget_holds_between_the_passes_where_the_last_step_keeps_the_most() -> None:
    x_T, grid, state = torch.ones(4, 64, dtype=DOUBLE, requires_grad=True), sa.uniform_logsnr(SCHEDULE, 8), 4 * 64 * 8

    def network(x: Tensor, t: Tensor) -> Tensor:
        for _ in range(20 if float(t[0]) <= float(grid[-2]) else 2):
            x = torch.tanh(x)
        return x

    budget = (8 + 30) * state  # the states, and graphs
    with PeakMemory() as memory:
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE), grid=grid, solver=sa.Euler(),
            adjoint=sa.Checkpoint(memory=budget),
        )  # fmt: skip
        kept = memory.live
    assert 20 * state <= kept <= budget + 2 * state  # y_N and x_N, which the caller has
    out.sum().backward()


def test_graphs_are_freed_with_the_result_and_a_retained_graph_is_walked_twice() -> None:
    solve = Solve(sa.Heun(), 8)
    adjoint = sa.Checkpoint(memory="1MiB")
    with PeakMemory() as memory:
        sa.sample(adjoint=adjoint, **solve.arguments())
    assert memory.live == 0
    out = sa.sample(adjoint=adjoint, **solve.arguments())
    first = torch.autograd.grad(out.sum(), solve.leaves, allow_unused=True, retain_graph=True)
    second = torch.autograd.grad(out.sum(), solve.leaves, allow_unused=True)
    assert worst(first, second) <= 1e-15
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), solve.leaves, allow_unused=True)


def arguments(network: object, x_T: Tensor) -> dict[str, object]:
    return {
        "denoiser": sa.Denoiser(network, SCHEDULE, "sample"),  # type: ignore[arg-type]
        "x_T": x_T,
        "frame": sa.Frame(SCHEDULE),
        "grid": sa.uniform_logsnr(SCHEDULE, 6),
        "solver": sa.Euler(),
        "adjoint": sa.Checkpoint(memory="1MiB"),
    }


def test_a_cache_between_steps_is_refused() -> None:
    cache: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        cache.append(x)
        return torch.tanh(x) + torch.sin(cache[max(0, len(cache) - 2)])

    with pytest.raises(RuntimeError, match="a cache kept between calls"):
        sa.sample(**arguments(network, torch.ones(2, 4, dtype=DOUBLE, requires_grad=True)))  # type: ignore[arg-type]


def test_changes_in_place_are_noticed() -> None:
    weight = torch.ones(4, dtype=DOUBLE, requires_grad=True)
    out = sa.sample(**arguments(lambda x, t: torch.tanh(weight * x), torch.ones(2, 4, dtype=DOUBLE)))  # type: ignore[arg-type]
    with torch.no_grad():
        weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()

    def spoils(x: Tensor, t: Tensor) -> Tensor:
        h = torch.exp(weight * x / 10)
        out = h * h
        h.add_(1)
        return out

    out = sa.sample(**arguments(spoils, torch.ones(2, 4, dtype=DOUBLE)))  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="changed in place a tensor that its derivative needs"):
        out.sum().backward()


def test_dropout_and_networks_that_differentiate_themselves() -> None:
    dropout, weight = nn.Dropout(0.5), torch.ones(4, dtype=DOUBLE, requires_grad=True)

    def energy(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            return torch.autograd.grad((dropout(weight * x)).square().sum().tanh(), x, create_graph=True)[0]

    x_T = torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4).requires_grad_()
    found = []
    for adjoint in (
        sa.Direct(),
        sa.Checkpoint(memory="1MiB"),
        sa.Checkpoint(memory=3000),
        sa.Checkpoint(memory=6 * 64),
    ):
        torch.manual_seed(0)
        out = sa.sample(**arguments(energy, x_T) | {"adjoint": adjoint})  # type: ignore[arg-type]
        found.append(torch.autograd.grad(out.square().sum(), [x_T, weight]))
    for grads in found[1:]:
        assert worst(grads, found[0]) <= 1e-12


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("2GiB", 2 * 1024**3),
        ("500 MB", 500_000_000),
        ("1.5kB", 1500),
        ("3KiB", 3072),
        ("7", 7),
        ("1200B", 1200),
        (6400, 6400),
    ],
)
def test_sizes(text: int | str, count: int) -> None:
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["", "GiB", "-1", "2 GiBs", "1e9", True, 1.5, "2iB", -3])
def test_bad_sizes(text: object) -> None:
    with pytest.raises(ValueError, match=r"memory: got .*'2GiB'"):
        sa.Checkpoint(memory=text)  # type: ignore[arg-type]


def test_snapshots_and_memory_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="snapshots, memory: got both"):
        sa.Checkpoint(3, memory="1MiB")


def test_the_callback_hears_of_each_step_once() -> None:
    def heard(adjoint: sa.Adjoint) -> list[int]:
        steps: list[int] = []
        solve = Solve(sa.Heun(), 5, 0.0, options={"callback": lambda n, t, x: steps.append(n)})
        solve.gradients(adjoint)
        return steps

    assert heard(sa.Checkpoint(memory="1GiB")) == heard(sa.Checkpoint(memory=3 * STATE)) == heard(sa.Direct())


def test_a_budget_below_one_state_is_refused_for_a_single_step_to_clean_data() -> None:
    x_T = torch.ones(4, dtype=DOUBLE, requires_grad=True)
    frame = sa.Frame(sa.VE())
    with pytest.raises(ValueError, match="got 31 bytes, but one stored state takes 32"):
        sa.sample(
            sa.Denoiser(lambda x, t: x, sa.VE(), "sample"), x_T, frame=frame, grid=[1.0, 0.0], solver=sa.Euler(),
            adjoint=sa.Checkpoint(memory=31),
        )  # fmt: skip


class Wandering(sa.Solver):
    """Calls the drift somewhere in the step."""

    claims = sa.Claims(ode=1, strong=1.0, evaluations=1)

    def step(
        self, drift: sa.solvers.Drift, interval: sa.Interval, y: Tensor, state: sa.solvers.State
    ) -> tuple[Tensor, sa.solvers.State]:
        return y + interval.ds * drift(interval.at(float(torch.rand(()))), y), state


def test_a_budget_draws_nothing() -> None:
    found = []
    for adjoint in (sa.Direct(), sa.Checkpoint(memory="1MiB")):
        torch.default_generator.manual_seed(3)
        y = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
        solver, clock = Wandering(), torch.linspace(0, 1, 5, dtype=torch.float64)
        found.append(sa.solve(lambda s, y: torch.sin(y + s), y, clock=clock, solver=solver, adjoint=adjoint))
    assert torch.equal(*found)
