"""``check_solver``: is this a solver?"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

import torch
from hypothesis import strategies as st

from ..adjoints import Checkpoint
from ..arguments import named
from ..solvers import Solver
from . import embedded, orders, steps, surroundings
from .adjoint import check_recomputed
from .contract import Item, Itself, Subject, hold
from .problems import Recomputed
from .walks import CONSTANT, NONE, TANGLED, Walk, even_clocks, walks
from .weak import Triangular, check_weak_order

_SHAPES = ((1,), (3,), (2, 3), (2, 1, 2, 2), (0, 2))
_DTYPES = (torch.float64, torch.float32, torch.bfloat16)


_ITEMS = (
    Item("claims", "claims are well-formed", st.just(Itself("print({0}.claims)")), steps.check_claims),
    Item(
        "purity",
        "the same arguments give the same bits, and nothing is changed",
        walks(shapes=((1,), (3,), (2, 3))),
        steps.check_purity,
    ),
    Item(
        "surroundings",
        "the gradient mode, torch's default dtype and global generators are neither seen nor changed",
        walks(shapes=((1,), (3,), (2, 3)), dtypes=(torch.float64, torch.float32)),
        surroundings.check_surroundings,
        10,
    ),
    Item(
        "kind",
        "shape, dtype and device of the state are kept, whatever its memory layout",
        walks(dtypes=_DTYPES, shapes=_SHAPES, strided=True),
        steps.check_kind,
    ),
    Item("state", "the state is a nest of tuples of tensors and numbers", walks(), steps.check_state, 10),
    Item(
        "evaluations",
        "the drift is called claims.evaluations times per step, and one more time in the first step at most",
        walks(steps=(1, 8)),
        steps.check_evaluations,
    ),
    Item("clocks", "the drift is called inside of the step's interval", walks(), steps.check_clocks),
    Item(
        "exactness",
        "constant drifts and the noise are integrated exactly, on any monotone clock",
        walks(CONSTANT, NONE),
        steps.check_exact,
        40,
    ),
    Item(
        "precision",
        "float32 states are rounded to float32, and not further",
        st.builds(Walk, even_clocks(), st.just(TANGLED), st.booleans(), st.just((3,)), st.just(torch.float32)),
        surroundings.check_precision,
        8,
    ),
    Item("batch", "samples of a batch do not see each other", walks(shapes=((2,), (3, 2))), steps.check_batch),
    Item(
        "differentiability",
        "steps are differentiable in the state, the noise and the drift's parameters",
        walks(steps=(1, 2)),
        steps.check_differentiable,
        6,
    ),
    Item(
        "ode order",
        "the order without noise is at least the claimed one",
        st.sampled_from(orders.REFINEMENTS),
        orders.check_ode_order,
        len(orders.REFINEMENTS),
    ),
    Item(
        "straight path",
        "along a straight path, dB = v ds, a step is one of y' = F + v and keeps the claimed order",
        st.sampled_from([replace(case, velocity=0.7) for case in orders.REFINEMENTS]),
        orders.check_straight_path,
        3,
    ),
    Item(
        "error estimate",
        "a second row of weights estimates the error of a step, to the order of the method",
        st.builds(embedded.OneStep, st.booleans()),
        embedded.check_error_estimate,
        2,
    ),
    Item(
        "levy area",
        "a strong order above 1 sees int B ds = (dB/2 + H) ds and the mean of int B^2 ds",
        st.builds(orders.Impulse, st.sampled_from([1, 2]), st.booleans()),
        orders.check_levy,
        4,
    ),
    Item(
        "strong order",
        "the strong order with additive noise is at least the claimed one",
        st.builds(orders.Brownian, st.booleans()),
        orders.check_strong_order,
        2,
    ),
    Item(
        "weak order",
        "the weak order with additive noise is at least the claimed one",
        st.builds(Triangular),
        check_weak_order,
        1,
    ),
    Item(
        "equations",
        "claims hold on an Ornstein-Uhlenbeck process, a linear equation and a double well, solved by sdeadjoint.solve",
        st.sampled_from(orders.MEASURED),
        orders.check_equations,
        len(orders.MEASURED),
    ),
    Item(
        "checkpoints",
        "what Checkpoint(snapshots=2) recomputes is what Direct() has",
        st.builds(Recomputed, st.just(Checkpoint(snapshots=2)), st.sampled_from([5, 8]), st.sampled_from([0.0, 1.0])),
        check_recomputed,
        4,
    ),
)


def check_solver(solver: Solver, *, only: str | None = None, skip: Collection[str] = ()) -> None:
    """Hold a solver against the contract of ``Solver``; None, or ``ContractError`` with the smallest counterexample.

    Items, in this order: ``"claims"``, ``"purity"``, ``"surroundings"`` (the same bits with, without and outside of
    gradients, under other default dtypes and seeds), ``"kind"``, ``"state"``, ``"evaluations"``, ``"clocks"``,
    ``"exactness"``, ``"precision"`` (float32 against float64: 256 eps), ``"batch"``, ``"differentiability"``,
    ``"ode order"`` (a coupled, nonlinear, non-autonomous problem on rising and falling grids, uniform and with steps
    that grow up to tenfold, against DOP853: 0.15 below the claim fails),
    ``"straight path"``, ``"error estimate"`` (for Runge-Kutta methods with an embedded row), ``"levy area"`` (for
    claims above 1), ``"strong order"`` (400 paths on 16 and 64 steps: 0.25 below the claim fails), ``"weak order"``
    (two exact moments on 16 to 64 and on 32 to 128 steps: 0.15 below the claim on both fails), ``"equations"`` (studies
    of those that ``convergence.settings`` has, with and without noise, by ``solve``) and ``"checkpoints"``.

    Args:
        solver: an object, not its class.
        only: check this item alone.
        skip: items left out. ``"straight path"`` asks for more than the claims say: that stages see the part of the
            increment that belongs to their clock. Skip it for methods that let them see none.

    A wrong coefficient of 1 % shows in some item. Deterministic, no global generator is read or left changed. A second
    or two for a method of one call per step. Not checked: stability, and orders in frames where they need more than
    smoothness. Errors: ``TypeError`` for something that is not a ``Solver``, ``ValueError`` for unknown items.
    """
    if not isinstance(solver, Solver):
        got = named(solver)
        raise TypeError(f"solver: got {got}; pass an object of a subclass of sdeadjoint.Solver, such as Heun()")
    hold(Subject("check_solver", "solver", solver), _ITEMS, only, skip)
