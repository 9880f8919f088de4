"""``check_reversible``: do the solver's steps lead back?"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import partial
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .. import nests
from ..adjoints import Reversible
from ..arguments import named
from ..diffusion.frames import KINDS
from ..solvers import ReversibleSolver
from .adjoint import check_recomputed
from .contract import Item, Subject, distance, hold, require
from .problems import NOISES, Recomputed
from .walks import Walk, walks


def _check_inverse(solver: ReversibleSolver, walk: Walk) -> None:
    """Each step's inverse, at the states that the steps themselves make."""
    eps, y, state = torch.finfo(walk.dtype).eps, walk.state(), solver.initial_state
    for n, interval in enumerate(walk.intervals()):
        y1, state1 = solver.step(walk.drift, interval, y, state)
        back, state_back = solver.invert(walk.drift, interval, y1, state1)
        # Some tens of roundings of numbers of size |y|, which the way back multiplies by a power of (1 + ds).
        bound = 1e4 * eps * (1 + max(float(x.abs().max()) for x in (y, y1)))
        error = distance(back, y)
        require(
            error <= bound,
            f"step {n} went from y = {y.tolist()} to {y1.tolist()}, and its inverse back to {back.tolist()}: off by "
            f"{error:.2g}, where round-off is below {bound:.1g}",
        )
        same = back.shape == y.shape and back.dtype == y.dtype
        require(same, f"the inverse of step {n} made {back.dtype} {tuple(back.shape)} of {y.dtype} {tuple(y.shape)}")
        if state:
            _require_near(state_back, state, bound, f"the inverse of step {n} has the state")
        again = solver.step(walk.drift, interval, back, state_back)
        _require_near(again, (y1, state1), bound, f"step {n}, repeated after its inverse, leads to")
        y, state = y1, state1


def _require_near(got: Any, want: Any, bound: float, says: str) -> None:
    pairs = list(_pairs(got, want))
    error = max((distance(a, b) for a, b in pairs), default=0.0)
    require(
        error <= bound, f"{says} {got}, and it was {want}: off by {error:.2g}, where round-off is below {bound:.1g}"
    )


def _pairs(got: Any, want: Any) -> Iterator[tuple[Tensor, Tensor]]:
    ours, theirs = list(nests.tensors(got)), list(nests.tensors(want))
    require(len(ours) == len(theirs), f"the inverse's state holds {len(ours)} tensors, and the step's {len(theirs)}")
    yield from zip(ours, theirs, strict=True)


def _check_way_back(solver: ReversibleSolver, walk: Walk) -> None:
    """All steps, then all inverses."""
    intervals, y0 = walk.intervals(), walk.state()
    y, state = y0, solver.initial_state
    for interval in intervals:
        y, state = solver.step(walk.drift, interval, y, state)
    end = y
    for interval in reversed(intervals):
        y, state = solver.invert(walk.drift, interval, y, state)
    error = distance(y, y0)
    require(
        error <= 1e-9,
        f"{len(intervals)} steps from y = {y0.tolist()} to {end.tolist()} and back lead to {y.tolist()}: off by "
        f"{error:.2g}, where round-off is below 1e-9",
    )


def _check_inputs(solver: ReversibleSolver, walk: Walk) -> None:
    y, state = walk.state(), solver.initial_state
    for n, interval in enumerate(walk.intervals()):
        y, state = solver.step(walk.drift, interval, y, state)
        kept = [value.clone() for value in nests.tensors((y, state, interval.dB, interval.H))]
        one = list(nests.tensors(solver.invert(walk.drift, interval, y, state)))
        same = all(map(torch.equal, kept, nests.tensors((y, state, interval.dB, interval.H))))
        require(same, f"the inverse of step {n} changed one of its arguments in place")
        two = list(nests.tensors(solver.invert(walk.drift, interval, y, state)))
        require(all(map(torch.equal, one, two)), f"the inverse of step {n}, done twice, gave {one}, then {two}")


_WAYS = tuple(
    Recomputed(Reversible(), 2 + k % 5, eta, kind, noise)
    for k, (kind, eta, noise) in enumerate(
        (kind, eta, noise) for kind in KINDS for eta, noise in ((0.0, NOISES[0]), *((1.0, noise) for noise in NOISES))
    )
)
"""Each kind of frame without noise and with each kind of it, in 2 to 6 steps."""


def check_reversible(solver: ReversibleSolver, *, only: str | None = None, skip: Collection[str] = ()) -> None:
    """Hold a solver against the contract of ``ReversibleSolver``; None, or ``ContractError`` as from ``check_solver``.

    Items: ``"inverse"`` (a step and its inverse are the identity to round-off, in y and in the state, float64 and
    float32, with noise and without), ``"way back"`` (all steps, then all inverses), ``"purity"`` of the inverse, and
    ``"adjoint"``: ``Reversible()`` with this solver has the gradients of ``Direct()``, to 1e-7 (round-off grows on the
    way back; the steps are few). ``check_solver`` checks everything else: run both.

    Errors: ``TypeError`` for something that is not a ``ReversibleSolver``, ``ValueError`` for unknown items.
    """
    if not isinstance(solver, ReversibleSolver):
        got = named(solver)
        raise TypeError(f"solver: got {got}; pass a ReversibleSolver such as Coupled(Heun())")
    items = (
        Item(
            "inverse",
            "invert(drift, interval, *step(drift, interval, y, state)) is (y, state) but for round-off",
            walks(dtypes=(torch.float64, torch.float32)),
            _check_inverse,
            30,
        ),
        Item("way back", "all steps, then all inverses, lead back to the start", walks(), _check_way_back),
        Item("purity", "the inverse gives the same bits again and changes nothing", walks(), _check_inputs),
        Item(
            "adjoint",
            "Reversible() has the gradients of Direct()",
            st.sampled_from(_WAYS),
            partial(check_recomputed, tolerance=1e-7),
            len(_WAYS),
        ),
    )
    hold(Subject("check_reversible", "solver", solver), items, only, skip)
