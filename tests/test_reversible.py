"""``Reversible``: the gradients of ``Direct``, constant memory, and an honest word when the way back strays."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.adjoints.replay.inversion import _distance
from sdeadjoint.diffusion.equation import Diffusion
from sdeadjoint.memory import PeakMemory
from sdeadjoint.recursion import Carry, Recursion

from .networks import Mlp
from .solves import DOUBLE, SCHEDULE, Solve, worst

SOLVERS = [
    sa.Coupled(sa.Euler()),
    sa.Coupled(sa.Heun()),
    sa.Coupled(sa.ShARK()),
    sa.Coupled(sa.RK4(), zeta=0.99),
    sa.ReversibleHeun(),
]


@pytest.mark.parametrize(("eta", "noise"), [(0.0, ""), (1.0, "fixed"), (1.0, "shifted")])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_gradients_are_those_of_direct(solver: sa.Solver, eta: float, noise: str) -> None:
    solve = Solve(solver, steps=12, eta=eta, noise=noise)
    want, expected = solve.gradients(sa.Direct())
    errors: list[float] = []
    got, found = solve.gradients(sa.Reversible(watch=errors.append))
    assert torch.equal(got, want)
    # The bound that is promised; round-off of 12 steps on a clock of nine decades is about 1e-12.
    assert worst(found, expected) <= 1e-9
    assert len(errors) == 1
    assert 0 < errors[0] <= 1e-8


@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize("final_zero", [False, True])
@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_short_grids_ends_and_trajectories(steps: int, final_zero: bool, trajectory: bool) -> None:
    grid = sa.uniform_logsnr(SCHEDULE, steps, final_zero=final_zero)
    for eta in (0.0, 0.5):
        solve = Solve(
            sa.Coupled(sa.Heun()), steps, eta, noise="shifted", options={"grid": grid, "trajectory": trajectory}
        )
        want, expected = solve.gradients(sa.Direct())
        got, found = solve.gradients(sa.Reversible())
        assert torch.equal(got, want)
        assert worst(found, expected) <= 1e-10


def test_a_start_without_signal() -> None:
    schedule = sa.RectifiedFlow()
    network = Mlp(4)
    x_T = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_()
    for eta in (0.0, 1.0):

        def gradient(adjoint: sa.Adjoint, eta: float = eta) -> tuple[Tensor, ...]:
            out = sa.sample(
                sa.Denoiser(network, schedule, "sample"),
                x_T,
                frame=sa.Frame(schedule, eta),
                grid=sa.uniform_time(schedule, 8, t_max=1.0, t_min=0.05),
                solver=sa.Coupled(sa.Euler()),
                noise=sa.BrownianPath(0) if eta else None,
                adjoint=adjoint,
            )
            return torch.autograd.grad(out.square().sum(), [x_T, network.shared])

        assert worst(gradient(sa.Reversible()), gradient(sa.Direct())) <= 1e-11


def peak(steps: int, eta: float) -> int:
    network, grid = Mlp(64, width=256), sa.uniform_logsnr(SCHEDULE, steps)
    x_T = torch.ones(4, 64, dtype=DOUBLE, requires_grad=True)
    with PeakMemory() as memory:
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"),
            x_T,
            frame=sa.Frame(SCHEDULE, eta),
            grid=grid,
            solver=sa.Coupled(sa.Euler()),
            noise=sa.BrownianPath(seed=0) if eta else None,
            adjoint=sa.Reversible(),
        )
        torch.autograd.grad(out.sum(), [x_T, network.shared])
        del out
    return memory.peak


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_memory_does_not_grow_with_the_number_of_steps(eta: float) -> None:
    few, many = peak(8, eta), peak(18, eta)  # a state a step would be 3 % more
    assert abs(many - few) <= 0.02 * few


def strayed(zeta: float, dtype: torch.dtype, **options: torch.dtype) -> float:
    network = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 4))
    with torch.no_grad():
        for k, parameter in enumerate(network.parameters()):
            parameter.copy_(torch.linspace(-1, 1, parameter.numel()).add(k).sin().reshape(parameter.shape))
    errors: list[float] = []
    x_T = torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype).requires_grad_()
    out = sa.sample(
        sa.Denoiser(lambda x, t: network(x), SCHEDULE, "sample", **options),  # type: ignore[arg-type]
        x_T,
        frame=sa.Frame(SCHEDULE),
        grid=sa.uniform_logsnr(SCHEDULE, 60),
        solver=sa.Coupled(sa.Euler(), zeta),
        adjoint=sa.Reversible(0.05, watch=errors.append),
    )
    assert out.dtype == dtype
    out.sum().backward()
    return errors[0]


def test_it_warns_when_the_way_back_strays_and_each_named_remedy_helps() -> None:
    with pytest.warns(
        sa.RoundTripWarning, match=r"strayed by .*kind='flow'\), a larger zeta, x_T in float64 .*Checkpoint"
    ):
        bad = strayed(0.9, torch.float32)
    assert bad > 0.05
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert strayed(0.999, torch.float32) < bad
        # 0.9^-60 = 560 times some ulps of float64.
        assert strayed(0.9, torch.float64, network_dtype=torch.float32) < 1e-11
    solve = Solve(sa.Coupled(sa.Euler()), 50, 1.0, "noise", noise="replayed")
    with pytest.warns(sa.RoundTripWarning, match=r"pass Frame\(\.\.\., eta=1\.0, kind='flow'\), a larger zeta"):
        solve.gradients(sa.Reversible())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        solve.gradients(sa.Reversible(tolerance=math.inf))


def test_it_needs_a_solver_with_an_inverse() -> None:
    with pytest.raises(TypeError, match=r"Heun\(\) has no inverse.*Coupled\(Euler\(\)\).*adjoint=Checkpoint\(\)"):
        Solve(sa.Heun()).gradients(sa.Reversible())


def test_scheduled_conditioning() -> None:
    z = torch.linspace(-1, 1, 8 * 12, dtype=DOUBLE).reshape(8, 3, 4).requires_grad_()

    def gradient(solver: sa.Solver, adjoint: sa.Adjoint) -> tuple[Tensor, ...]:
        out = sa.sample(
            sa.Denoiser(lambda x, t, z: torch.tanh(x + z), SCHEDULE, "sample"),
            torch.ones(3, 4, dtype=DOUBLE),
            frame=sa.Frame(SCHEDULE),
            grid=sa.uniform_logsnr(SCHEDULE, 8),
            solver=solver,
            cond={"z": sa.Scheduled(z)},
            adjoint=adjoint,
        )
        return torch.autograd.grad(out.square().sum(), [z])

    coupled = sa.Coupled(sa.Heun())
    assert worst(gradient(coupled, sa.Reversible()), gradient(coupled, sa.Direct())) <= 1e-11
    with pytest.raises(
        ValueError, match=r"carries a network call.*pass Coupled\(Heun\(\)\), or adjoint=Checkpoint\(\)"
    ):
        gradient(sa.ReversibleHeun(), sa.Reversible())


def test_random_networks_are_refused() -> None:
    dropout = nn.Dropout(0.5)
    x_T = torch.ones(2, 4, dtype=DOUBLE, requires_grad=True)
    arguments = {"frame": sa.Frame(SCHEDULE), "grid": sa.uniform_logsnr(SCHEDULE, 4), "solver": sa.ReversibleHeun()}
    denoiser = sa.Denoiser(lambda x, t: dropout(torch.tanh(x)), SCHEDULE, "sample")
    with pytest.raises(RuntimeError, match=r"draws from torch's global generators.*eval\(\).*Checkpoint\(\)"):
        sa.sample(denoiser, x_T, adjoint=sa.Reversible(), **arguments)  # type: ignore[arg-type]
    dropout.eval()
    sa.sample(denoiser, x_T, adjoint=sa.Reversible(), **arguments).sum().backward()  # type: ignore[arg-type]


@pytest.mark.parametrize("early", [False, True])
def test_networks_that_draw_at_some_steps_only_are_refused(early: bool) -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) * float(torch.rand(())) if (float(t[0]) > 0.5) == early else torch.tanh(x)

    solve = Solve(sa.Coupled(sa.Heun()), 6, options={"cond": None, "denoiser": sa.Denoiser(network, SCHEDULE)})
    with pytest.raises(RuntimeError, match="draws from torch's global generators"):
        solve.gradients(sa.Reversible())


def test_a_callback_that_draws_is_not_the_network() -> None:
    want = Solve(sa.Coupled(sa.Heun()), 6).gradients(sa.Reversible())[1]
    solve = Solve(sa.Coupled(sa.Heun()), 6, options={"callback": lambda n, t, x: torch.rand(())})
    assert worst(solve.gradients(sa.Reversible())[1], want) == 0


class Drifting(sa.Coupled):
    """The way back loses a little of what the solver remembers, and nothing of y."""

    def invert(self, drift: Any, interval: sa.Interval, y: Tensor, state: Any) -> tuple[Tensor, Any]:
        y, (yh,) = super().invert(drift, interval, y, state)
        return y, (yh * (1 + 1e-9),)


def test_the_way_back_is_measured_on_the_memory_too() -> None:
    errors: list[float] = []
    for solver in (sa.Coupled(sa.Euler()), Drifting(sa.Euler())):  # one step is undone, and y is the larger part
        Solve(solver, 3).gradients(sa.Reversible(watch=errors.append))
    assert errors[0] < 1e-15 < 1e-12 < errors[1] < 1e-9


def test_networks_with_a_memory_are_refused() -> None:
    calls = 0

    def network(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(x) * calls

    out = sa.sample(
        sa.Denoiser(network, SCHEDULE, "sample"),
        torch.ones(2, 4, dtype=DOUBLE, requires_grad=True),
        frame=sa.Frame(SCHEDULE),
        grid=sa.uniform_logsnr(SCHEDULE, 8),
        solver=sa.Coupled(sa.Euler()),
        adjoint=sa.Reversible(),
    )
    with pytest.raises(RuntimeError, match="keeps a cache or counter"):
        out.sum().backward()


def test_a_retained_graph_is_walked_twice() -> None:
    solve = Solve(sa.Coupled(sa.Heun()), 12)
    out = sa.sample(adjoint=sa.Reversible(), **solve.arguments())
    first = torch.autograd.grad(out.sum(), solve.leaves, allow_unused=True, retain_graph=True)
    second = torch.autograd.grad(out.sum(), solve.leaves, allow_unused=True)
    assert worst(first, second) == 0
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(out.sum(), solve.leaves, allow_unused=True)


@pytest.mark.parametrize("tolerance", [0, -1.0, True, "1e-4", math.nan])
def test_bad_tolerances(tolerance: object) -> None:
    with pytest.raises(ValueError, match="tolerance: got"):
        sa.Reversible(tolerance)  # type: ignore[arg-type]


def test_bad_watch_and_repr() -> None:
    with pytest.raises(TypeError, match="watch: got list"):
        sa.Reversible(watch=[])  # type: ignore[arg-type]
    assert repr(sa.Reversible()) == "Reversible(tolerance=0.0001, watch=None)"


def test_how_far_the_way_back_strayed_is_relative_to_all_that_is_carried() -> None:
    y, memory = torch.tensor([[3.0, 0.0]], dtype=DOUBLE), torch.tensor([[0.0, 4.0]], dtype=DOUBLE)
    known = Carry(y, (memory,))
    assert _distance(known, known) == 0
    assert _distance(Carry(y + 0.03, (memory,)), known) == pytest.approx(0.03 * 2**0.5 / 5, rel=1e-12)
    assert _distance(Carry(y, (memory - 0.03,)), known) == pytest.approx(0.03 * 2**0.5 / 5, rel=1e-12)


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
def test_the_first_step_undone_is_x_T(kind: str) -> None:
    x_T = torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4)
    grid, frame = sa.uniform_logsnr(SCHEDULE, 8), sa.Frame(SCHEDULE, kind=kind)
    denoiser = sa.Denoiser(lambda x, t: torch.tanh(x), SCHEDULE)
    equation = Diffusion.create(denoiser, frame, grid, {})
    recursion = Recursion(equation, sa.Coupled(sa.Heun()))
    back = recursion.invert(0, recursion.step(0, recursion.start(equation.enter(x_T)), None), None)
    torch.testing.assert_close(equation.weights[0] * back.y, x_T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("change", ["all", "one small sample"])
def test_a_small_change_of_one_sample_is_seen(change: str) -> None:
    """The way back rounds; what is more than that is another function, in each sample by itself."""
    x_T = torch.linspace(-1, 1, 16, dtype=DOUBLE).reshape(4, 4)
    if change != "all":
        x_T = x_T * torch.tensor([1e6, 1e6, 1e6, 1.0], dtype=DOUBLE)[:, None]
    shift = torch.zeros(4, 1, dtype=DOUBLE)
    gain = torch.ones(4, dtype=DOUBLE, requires_grad=True)
    out = sa.sample(
        sa.Denoiser(lambda x, t: torch.tanh(x) * gain + shift, SCHEDULE, "sample"),
        x_T,
        frame=sa.Frame(SCHEDULE, kind="flow"),
        grid=sa.uniform_logsnr(SCHEDULE, 12),
        solver=sa.Coupled(sa.Euler()),
        adjoint=sa.Reversible(),
    )
    torch.autograd.grad(out.sum(), gain, retain_graph=True)
    shift.data[-1] += 1e-8
    with pytest.raises(RuntimeError, match="gave another state than the forward pass"):
        torch.autograd.grad(out.sum(), gain)
