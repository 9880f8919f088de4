"""``sa.solve`` against loops written out, with states, noises and nests of all kinds."""

from __future__ import annotations

import functools
import math
from collections import OrderedDict, UserDict
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import sdeadjoint as sa
from sdeadjoint.solvers import ReversibleSolver
from sdeadjoint.testing.strategies import SOLVERS

from .written_out import (
    CLOCK,
    EXACT,
    FALLING,
    RISING,
    STATES,
    Pair,
    Written,
    apart,
    flat,
    like,
    numbers,
)

IN_LOG = (sa.DPMSolverPP2M, sa.DPMSolver3, sa.UniPC)
LOGARITHMIC = tuple(
    s for s in SOLVERS if isinstance(s, IN_LOG) or getattr(s, "variable", "") == "log"
)
# The way back of Coupled amplifies round-off by 0.999^-N, and by e^|int dF/dy ds|, here e^5 at most.
WAY_BACK = 1e-11
NOISES = ("none", "fixed", "shifted", "path", "one path", "seeds", "second")


def scaled(n: int, s: float, a: Any) -> Any:
    """A hook that changes the adjoint, affinely and differently at every node."""
    return like(a, iter([part * (1 + 0.1 * n) + 0.01 * s for part in flat(a)]))


def watched(n: int, s: float, a: Any) -> None:
    """A hook that writes into what it is given, which changes nothing."""
    for part in flat(a):
        part.fill_(7.0)


ADJOINTS = [
    (sa.Direct(), sa.Checkpoint(memory=3000)),
    (sa.Checkpoint(), sa.Checkpoint(memory="1MiB")),
    (sa.Checkpoint(1), sa.Truncated(100)),  # which knows no trajectories
    (sa.Checkpoint(2), sa.Hooked(sa.Checkpoint(), watched)),
]


# ---------------------------------------------------------------- against loops


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_every_solver_and_every_adjoint_is_the_loop(solver: sa.Solver) -> None:
    """States, noises, clocks and options in turn, so that each meets each over the solvers, and every adjoint half of
    the solvers: ``Recursion.step`` is all that it knows of one. Two adjoints have one loop: they are told nothing of
    each other, and each meets every state and noise with other solvers."""
    which = SOLVERS.index(solver)
    k = which // 2
    for j in (which % 2, which % 2 + 2):
        written = Written(
            solver,
            state=list(STATES)[(k + 2 * j) % len(STATES)],
            clock=(RISING, FALLING)[(k + j) % 2],
            noise=NOISES[(k + 5 * j) % len(NOISES)],
            after=(k // 2 + j // 2) % 2 == 0,
            trajectory=k % 4 < 2 and j != 2,
        )
        adjoints = ADJOINTS[j]
        written.check_each(adjoints, EXACT)


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_truncated_is_the_loop_cut_short(solver: sa.Solver) -> None:
    written = Written(solver, state="dict", clock=RISING, noise="fixed", start=False, after=True)
    written.check(sa.Truncated(2), EXACT, cut=3)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("adjoint", [sa.Direct(), sa.Checkpoint(2)], ids=repr)
def test_hooks_see_and_change_the_nest(state: str, adjoint: sa.Adjoint) -> None:
    written = Written(sa.Heun(), state=state, clock=FALLING, noise="shifted", after=True)
    written.check(sa.Hooked(adjoint, scaled), EXACT, hook=scaled)


@pytest.mark.parametrize(
    "solver", [s for s in SOLVERS if isinstance(s, ReversibleSolver)], ids=repr
)
def test_reversible_solvers_lead_back(solver: ReversibleSolver) -> None:
    """Half of the states each, with every noise: a solver sees rows of numbers, and nothing of how they are nested."""
    which = [s for s in SOLVERS if isinstance(s, ReversibleSolver)].index(solver)
    for k, state in enumerate(STATES):
        if (k // 2 + which) % 2:
            continue
        written = Written(
            solver,
            state=state,
            clock=(RISING, FALLING)[k % 2],
            noise=NOISES[k % len(NOISES)],
            scheduled=not isinstance(solver, sa.ReversibleHeun),
            trajectory=k % 3 == 0,
        )
        written.check(sa.Reversible(), WAY_BACK)


@st.composite
def written(draw: st.DrawFn) -> Written:
    """Any solve of 1 to 20 steps."""
    solver = draw(st.sampled_from(SOLVERS))
    sizes = draw(st.lists(st.sampled_from([0.02, 0.05, 0.01]), min_size=1, max_size=20))
    start = 0.2 if solver in LOGARITHMIC else draw(st.sampled_from([0.0, 0.2, -0.31]))
    clock = [start + sum(sizes[:n]) for n in range(len(sizes) + 1)]
    if draw(st.booleans()):
        clock.reverse()
    gains = draw(st.sampled_from([None, (0.0, 0.3, 0.01)]))
    noise = draw(st.sampled_from(NOISES))
    nu = (
        None
        if gains is None or noise == "none"
        else [sum(gains[k % 3] for k in range(n)) for n in range(len(clock))]
    )
    if nu is not None and noise in ("fixed", "shifted"):
        nu = [n * 0.1 for n in range(len(clock))]  # no increments where the clock stands still
    return Written(
        solver,
        state=draw(st.sampled_from(list(STATES))),
        clock=clock,
        noise_clock=nu,
        noise=noise,
        start=draw(st.booleans()),
        scheduled=draw(st.booleans()),
        after=draw(st.booleans()),
        trajectory=draw(st.booleans()),
    )


@settings(max_examples=25)
@given(
    written(), st.sampled_from([sa.Direct(), sa.Checkpoint(), sa.Checkpoint(1), sa.Checkpoint(3)])
)
def test_any_solve_is_the_loop(case: Written, adjoint: sa.Adjoint) -> None:
    case.check(adjoint, EXACT)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 0.2)], ids=["f32", "bf16"]
)
@pytest.mark.parametrize("state", ["scalar", "batch", "dict", "named tuple"])
def test_narrow_states(dtype: torch.dtype, tolerance: float, state: str) -> None:
    """Some 200 units in the last place, 2^-23 and 2^-8, of sums that the loop makes in another order."""
    for adjoint in (sa.Direct(), sa.Checkpoint(1)):
        Written(sa.Heun(), state=state, clock=RISING, noise="shifted", dtype=dtype).check(
            adjoint, tolerance
        )
    # The recomputation itself adds nothing: the same numbers in the same order.
    direct, again = (
        case.gradients(case.solved(adjoint))
        for adjoint in (sa.Direct(), sa.Checkpoint())
        for case in [
            Written(
                sa.Heun(), state=state, clock=RISING, noise="path", dtype=dtype, trajectory=True
            )
        ]
    )
    for one, two in zip(direct, again, strict=True):
        assert (one is None) == (two is None)
        assert one is None or two is None or apart([one], [two]) <= 8 * torch.finfo(dtype).eps


def test_values_are_those_of_direct_bit_by_bit() -> None:
    for state in STATES:
        outs = [
            Written(sa.ShARK(), state=state, clock=RISING, noise="path", after=True).solved(adjoint)
            for adjoint in (sa.Direct(), sa.Checkpoint(2))
        ]
        assert all(map(torch.equal, *outs))


# ---------------------------------------------------------------- nests


def turned(s: Tensor, y: Any) -> Any:
    """Position and velocity, exchanged, with the names in another order than the state's."""
    return {"v": -y["x"], "x": y["v"]}


def in_order(s: Tensor, y: Any) -> Any:
    return {"x": y["v"], "v": -y["x"]}


STATE = {"x": numbers(2, 3), "v": numbers(2, 3, seed=1)}


def test_names_count_and_not_their_order() -> None:
    want = sa.solve(in_order, STATE, clock=CLOCK, solver=sa.Heun())
    for drift, changed in (
        (turned, {}),
        (in_order, {"after_step": lambda n, s, y: {"v": y["v"], "x": y["x"]}}),
        (in_order, {"adjoint": sa.Hooked(sa.Direct(), lambda n, s, a: {"v": a["v"], "x": a["x"]})}),
    ):
        leaf = STATE["x"].clone().requires_grad_()
        got = sa.solve(drift, STATE | {"x": leaf}, clock=CLOCK, solver=sa.Heun(), **changed)
        assert list(got) == ["x", "v"]
        assert all(torch.equal(got[name], want[name]) for name in want)
        # In closed form: the two are turned by 1, to second order in the steps.
        (grad,) = torch.autograd.grad(got["v"].sum(), leaf)
        assert torch.allclose(grad, torch.full_like(grad, -math.sin(1)), atol=0.01)


def test_noise_goes_to_the_part_of_its_name() -> None:
    path = sa.BrownianPath(0)
    still = {"clock": CLOCK, "solver": sa.Euler()}
    for noise in ({"x": None, "v": path}, {"v": path, "x": None}):
        got = sa.solve(lambda s, y: {name: 0 * y[name] for name in y}, STATE, noise=noise, **still)
        assert torch.equal(got["x"], STATE["x"])
        bound = path.bind(CLOCK, STATE["v"], levy=False)
        want = functools.reduce(torch.add, (bound.increment(n).dB for n in range(5)), STATE["v"])
        assert torch.equal(got["v"], want)


@pytest.mark.parametrize(
    "kind", [dict, OrderedDict, UserDict, MappingProxyType], ids=lambda kind: kind.__name__
)
@pytest.mark.parametrize("count", [1, 2])
def test_all_kinds_of_mappings(kind: Callable[[Any], Any], count: int) -> None:
    state = kind({name: STATE[name] for name in ("x", "v")[:count]})
    got = sa.solve(
        lambda s, y: {name: -y[name] for name in y}, state, clock=CLOCK, solver=sa.Heun()
    )
    assert isinstance(got, kind)
    for name in state:
        assert torch.equal(
            got[name], sa.solve(lambda s, y: -y, state[name], clock=CLOCK, solver=sa.Heun())
        )


def test_a_named_tuple_stays_one() -> None:
    def drift(s: Tensor, y: Pair) -> Pair:
        return Pair(y.v, -y.x)

    got = sa.solve(
        drift, Pair(STATE["x"], STATE["v"]), clock=CLOCK, solver=sa.Heun(), trajectory=True
    )
    assert isinstance(got, Pair)
    assert got.x.shape == (6, 2, 3)


def test_samples_of_a_nest_do_not_see_their_batch_mates() -> None:
    state = {"x": numbers(3, 2), "v": numbers(3, seed=1)}

    def solved(part: slice, seeds: list[int]) -> Any:
        own = {name: value[part] for name, value in state.items()}
        return sa.solve(
            lambda s, y: {name: -y[name] for name in y},
            own,
            clock=CLOCK,
            solver=sa.SRA1(),
            noise=sa.BrownianPath(seeds),
        )

    together, alone = solved(slice(None), [1, 2, 3]), solved(slice(1, 2), [2])
    assert all(torch.equal(together[name][1:2], alone[name]) for name in state)


def test_one_tensor_in_two_places_has_both_gradients() -> None:
    leaf = numbers(2).requires_grad_()
    got = sa.solve(
        lambda s, y: {"a": y["b"], "b": 0 * y["a"]},
        {"a": leaf, "b": leaf},
        clock=CLOCK,
        solver=sa.Euler(),
    )
    (grad,) = torch.autograd.grad(got["a"].sum(), leaf)
    assert torch.allclose(grad, torch.full_like(grad, 2.0))  # a(1) = a + b
