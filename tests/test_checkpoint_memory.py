"""``Checkpoint(memory=...)``: the same gradients, as few recomputations as the budget allows, and no byte more."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.adjoints.checkpoint import parse_bytes
from sdeadjoint.memory import PeakMemory

from .networks import Mlp
from .solves import DOUBLE, SCHEDULE, Solve, worst

STATE = 3 * 4 * 8  # of ``Solve``, in bytes


@pytest.mark.parametrize("memory", [STATE * 5, 3000, 10_000, "1MiB"])
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    "solver", [sa.Euler(), sa.Heun(), sa.AdamsBashforth(4), sa.ShARK(), sa.ReversibleHeun()], ids=repr
)
def test_gradients_are_those_of_direct(solver: sa.Solver, eta: float, memory: int | str) -> None:
    for trajectory in (False, True):
        solve = Solve(solver, 9, eta, options={"trajectory": trajectory})
        want, expected = solve.gradients(sa.Direct())
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


def spent(adjoint: sa.Adjoint, steps: int, solver: sa.Solver, width: int = 256) -> tuple[int, int]:
    """Recomputed network calls and peak bytes of one gradient."""
    network = Counted(width)
    x_T, grid = torch.ones(4, 64, dtype=DOUBLE, requires_grad=True), sa.uniform_logsnr(SCHEDULE, steps)
    wanted = [x_T, network.network.shared]
    with PeakMemory() as memory:
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE), grid=grid, solver=solver,
            adjoint=adjoint,
        )  # fmt: skip
        network.test.phase = "backward"
        torch.autograd.grad(out.sum(), wanted)
        del out
    return network.calls["backward"], memory.peak


def test_calls_and_bytes_over_the_whole_range_of_budgets() -> None:
    steps, state = 24, 4 * 64 * 8
    for solver, kept in ((sa.Euler(), 1), (sa.DPMSolverPP2M(), 2)):
        floor_calls, floor_peak = spent(sa.Checkpoint(), steps, solver)
        bare_peak = spent(sa.Checkpoint(1), steps, solver)[1]
        assert floor_calls == steps
        _, direct_peak = spent(sa.Direct(), steps, solver)
        last = steps + 1
        for budget in range(steps * kept * state, 2 * direct_peak, direct_peak // 8):
            calls, peak = spent(sa.Checkpoint(memory=budget), steps, solver)
            assert calls <= min(last, floor_calls)  # never slower than Checkpoint(), and more memory never costs calls
            # What is kept fits in the budget; the workspace of one step comes on top.
            assert peak <= budget + bare_peak
            last = calls
        assert last == 0  # everything fits: no recomputation at all
        assert spent(sa.Checkpoint(memory=steps * kept * state), steps, solver) == (floor_calls, floor_peak)


@pytest.mark.parametrize("count", [2, 5, 10, 20])
def test_no_states_but_the_snapshots_are_held(count: int) -> None:
    """In the backward pass too, which replaces those of the forward pass by later ones."""
    bare, peak = (spent(sa.Checkpoint(snapshots), 40, sa.Euler())[1] for snapshots in (1, count))
    assert peak <= bare + (count - 1) * 4 * 64 * 8


def test_a_budget_below_all_states_buys_that_many_snapshots() -> None:
    state = 4 * 64 * 8
    for count in (1, 3, 7):
        want = spent(sa.Checkpoint(count), 20, sa.Euler())
        assert spent(sa.Checkpoint(memory=count * state + state // 2), 20, sa.Euler()) == want
    with pytest.raises(ValueError, match=rf"memory: got {state - 1} bytes, but one stored state takes {state}"):
        spent(sa.Checkpoint(memory=state - 1), 20, sa.Euler())


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
