"""``check_equation``: is this an equation that can be solved and differentiated?"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator
from itertools import pairwise
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from .. import nests
from ..arguments import named
from ..equation import Equation
from ..noise import BoundNoise, BrownianPath
from . import drifts
from .contract import Item, Itself, Subject, hold, numbers, require
from .points import Node, Point, apart, combined, eps, near, norm, product, regular


def check_equation(
    equation: Equation, x: Any = None, *, only: str | None = None, skip: Collection[str] = ()
) -> None:
    """Hold an equation against the contract of ``Equation``; None, or ``ContractError`` with a counterexample.

        check_equation(MyEquation(...), x=torch.randn(4, 2, dtype=torch.float64))

    Items: ``"tables"`` (clocks, times, weights and the noise clock are floats that fit each other), ``"start"``,
    ``"state"`` (``leave`` undoes ``enter``, in dtype, device and structure, and shares no memory), ``"linear"``,
    ``"cotangents"`` (``outward`` and ``inward`` are dual to ``enter`` and ``leave``: scalar products agree), ``"kind"``
    (the drift keeps shape, dtype and device, at both ends and inside of each step), ``"purity"`` (the same bits twice,
    nothing changed, other memory layouts), ``"surroundings"`` (with, without and outside of gradients; global
    generators neither read nor changed), ``"tensors"`` (``on(tensors)`` is the same function on those and depends on
    the old ones no more), ``"gradient"`` (in the state, each tensor and the module's parameters, against central
    differences), ``"noise"``, ``"recast"`` (on finer nodes the drift is the same; a ``ValueError`` is a refusal, and
    none) and ``"solve"`` (what ``Checkpoint(snapshots=1)`` recomputes is what ``Direct()`` has).

    Args:
        equation: an object, with tensors that require gradients where yours do.
        x: an initial state in the user's coordinates, float64 or float32; None is ``equation.start``.
        only: check this item alone.
        skip: items left out, such as ``"gradient"`` for a drift with kinks.

    Cost: some hundred calls of the drift and four short solves. The gradient is compared along random directions: in
    float64 an error of 1e-6 shows, in float32 one of 3e-2. Parameters are moved for the differences and put back.
    Errors: ``TypeError`` for something that is not an ``Equation``, and without an initial state; ``ValueError`` for
    unknown items. Not checked: that the equation is the one you meant.
    """
    if not isinstance(equation, Equation):
        got = named(equation)
        raise TypeError(f"equation: got {got}; pass an object of a subclass of sdeadjoint.Equation")
    x = equation.start if x is None else x
    found = list(nests.tensors(x))
    if not found or any(tensor.dtype not in (torch.float64, torch.float32) for tensor in found):
        got = named(x) if not found else ", ".join(sorted({str(tensor.dtype) for tensor in found}))
        raise TypeError(
            f"x: got {got}; pass an initial state of float64 or float32, or an equation that has one (starting_at)"
        )
    hold(
        Subject("check_equation", "equation", equation.starting_at(x)),
        tuple(_items(equation, x)),
        only,
        skip,
    )


def _items(equation: Equation, x: Any) -> Iterator[Item]:
    """The items that apply: without a step that has a drift, none of those on drifts."""
    itself, steps = st.just(Itself("print({0})")), equation.steps - equation.projects
    nodes = st.builds(Node, st.integers(0, equation.steps), st.integers(0, 3))
    inside = st.sampled_from([0.0, 1.0, 0.37])
    points = st.builds(Point, st.integers(0, max(0, steps - 1)), inside, st.integers(0, 3))
    for name, promise, check in _TABLES:
        yield Item(name, promise, itself, check, 1)
    same = "starting_at(x) is the same equation with start set"
    yield Item("start", same, itself, lambda started, _: check_start(started, equation, x), 1)
    for name, promise, check in _STATES:
        yield Item(name, promise, nodes, check, 12)
    for name, promise, check, examples in _DRIFTS if steps else ():
        yield Item(name, promise, points, check, examples)
    for name, promise, check in _SOLVES:
        yield Item(name, promise, itself, check, 1)


def check_tables(equation: Equation, case: object) -> None:
    nodes, last = equation.steps + 1, equation.projects
    for name in ("clocks", "times", "weights", "noise_clock"):
        table = getattr(equation, name)
        if table is None and name == "noise_clock":
            continue
        good = isinstance(table, tuple) and all(type(value) is float for value in table)
        require(good, f"{name} is {table!r}; it is a tuple of Python floats")
        require(
            len(table) == nodes >= 2,
            f"{name} has {len(table)} values, and clocks {nodes}; one per node, two at least",
        )
        require(
            table == getattr(equation, name),
            f"{name} is another table each time it is read; compute it once",
        )
        require(not any(map(math.isnan, table)), f"{name} has NaN: {table}")
    for name in ("clocks", "times"):
        table = getattr(equation, name)
        inner = table[: nodes - (last and name == "clocks")]
        rises = all(a < b for a, b in pairwise(inner)) or all(a > b for a, b in pairwise(inner))
        require(
            rises and all(map(math.isfinite, inner)),
            f"{name} is {table}; it strictly rises or falls, and is finite",
        )
    inner = equation.weights[1 : nodes - last]
    require(
        all(w != 0 and math.isfinite(w) for w in inner),
        f"weights is {equation.weights}; x / y is neither 0 nor inf",
    )
    require(equation.weights[0] != 0, "weights[0] is 0: no state can be entered")
    nu = equation.noise_clock
    require(
        nu is None or (all(a <= b for a, b in pairwise(nu)) and all(map(math.isfinite, nu[:-1]))),
        f"noise_clock is {nu}; it is finite and does not fall: over a step it rises by the variance of the noise",
    )
    for n in range(equation.steps - last):
        for end in (n, n + 1):
            got, want = (
                equation.at(n, equation.clocks[end]),
                (equation.times[end], equation.weights[end]),
            )
            require(
                got == want,
                f"at({n}, clocks[{end}]) is {got}, and the tables have {want} there, bit by bit",
            )


def check_start(started: Equation, before: Equation, x: Any) -> None:
    other = before.starting_at(near(x, 1))
    require(other is not before, "starting_at changed the equation that it was called on")
    require(started.start is x, "starting_at(x).start is another object than x")
    given = {id(tensor) for tensor in nests.tensors(other.tensors)}
    missing = any(id(tensor) not in given for tensor in nests.tensors(other.start))
    require(
        not missing,
        "tensors does not hold the tensors of start, so that adjoints would not know them",
    )


def check_state(equation: Equation, case: Node) -> None:
    x = near(equation.start, case.seed)
    equation = equation.starting_at(x)
    y = equation.enter(x, case.n)
    require(isinstance(y, Tensor), f"enter(x, {case.n}) is {type(y).__name__}; it is one tensor")
    first = next(nests.tensors(x))
    got, want = (y.dtype, y.device), (first.dtype, first.device)
    require(got == want, f"enter(x, {case.n}) is {got}, and x is {want}")
    if not regular(equation, case.n) and case.n > 0:
        return
    kept, back = y.clone(), equation.leave(case.n, y)
    error, allowed = apart(back, x), 64 * eps(x) * max(1.0, norm(x))
    require(error <= allowed, f"leave({case.n}, enter(x, {case.n})) differs from x by {error:.2g}")
    require(
        type(back) is type(x) and nests.emptied(back) == nests.emptied(x),
        f"leave({case.n}, y) is {type(back).__name__} of {len(list(nests.tensors(back)))} tensors; it is like x",
    )
    for tensor in (*nests.tensors(back), *nests.tensors(x)):
        tensor.detach().fill_(7.0)
    require(
        torch.equal(y, kept),
        f"y_{case.n} shares memory with x or with leave({case.n}, y), and changed with it",
    )


def check_linear(equation: Equation, case: Node) -> None:
    x, z = (near(equation.start, seed) for seed in (case.seed, case.seed + 7))
    n = case.n
    y = combined(2.0, equation.enter(x, n), -0.5, equation.enter(z, n))
    together = equation.enter(combined(2.0, x, -0.5, z), n)
    allowed = 64 * eps(x) * max(1.0, float(y.norm()))
    require(
        apart(y, together) <= allowed,
        f"enter(2 x - z / 2, {n}) and 2 enter(x, {n}) - enter(z, {n}) / 2 differ by {apart(y, together):.2g}",
    )
    if n == 0 or not regular(equation, n):
        return  # at node 0 an equation may give back the start itself
    parts = combined(2.0, equation.leave(n, y), -0.5, equation.leave(n, equation.enter(z, n)))
    whole = equation.leave(n, 2.0 * y - 0.5 * equation.enter(z, n))
    allowed = 64 * eps(x) * max(1.0, norm(parts))
    require(
        apart(parts, whole) <= allowed,
        f"leave({n}, y) is not linear: off by {apart(parts, whole):.2g}",
    )


def check_cotangents(equation: Equation, case: Node) -> None:
    """``<outward(a), x> = <a, enter(x)>`` and ``<inward(b), y> = <b, leave(y)>``."""
    x, b = (near(equation.start, seed) for seed in (case.seed, case.seed + 11))
    n = case.n
    y = equation.enter(x, n)
    a = numbers(*y.shape, seed=5 + case.seed).to(y)
    outward = equation.outward(n, a)
    got, want = product(outward, x), product(a, y)
    allowed = 256 * eps(x) * max(1.0, norm(a) * norm(y))
    require(
        abs(got - want) <= allowed,
        f"<outward({n}, a), x> is {got:.8g} and <a, enter(x, {n})> is {want:.8g}; they are equal for dual maps",
    )
    if n == 0 or not regular(equation, n):
        return
    inward, there = equation.inward(n, b), equation.leave(n, y)
    require(
        inward.shape == y.shape,
        f"inward({n}, b) has shape {tuple(inward.shape)}, and y {tuple(y.shape)}",
    )
    got, want = product(inward, y), product(b, there)
    allowed = 256 * eps(x) * max(1.0, norm(b) * norm(there))
    require(
        abs(got - want) <= allowed,
        f"<inward({n}, b), y> is {got:.8g} and <b, leave({n}, y)> is {want:.8g}; they are equal for dual maps",
    )


def check_noise_bound(equation: Equation, case: object) -> None:
    y = equation.enter(equation.start)
    bound = equation.bind(BrownianPath(0), y, levy=True)
    require(
        isinstance(bound, BoundNoise), f"bind(noise, y) is {type(bound).__name__}, not a BoundNoise"
    )
    assert bound is not None
    for n in range(equation.steps):
        dB = bound.increment(n).dB
        got, want = (dB.shape, dB.dtype, dB.device), (y.shape, y.dtype, y.device)
        require(got == want, f"the increment of step {n} is {got}, and y is {want}")
        still = (
            equation.noise_clock is None
            or not equation.noise_clock[n] < equation.noise_clock[n + 1] < math.inf
        )
        require(
            not (still and dB.any()),
            f"step {n} has noise although the noise clock stands still there",
        )


# Names and promises, and what holds an equation to them; drifts with the number of cases.

_Check = Callable[[Equation, Any], None]
_TABLES: tuple[tuple[str, str, _Check], ...] = (
    ("tables", "tables are Python floats that fit each other", check_tables),
)
_STATES: tuple[tuple[str, str, _Check], ...] = (
    ("state", "leave(n, enter(x, n)) is x to round-off, in tensors of its own", check_state),
    ("linear", "enter and leave are linear", check_linear),
    (
        "cotangents",
        "outward and inward map cotangents as enter and leave map states",
        check_cotangents,
    ),
)
_DRIFTS: tuple[tuple[str, str, _Check, int], ...] = (
    ("kind", "the drift is like the state", drifts.check_kind, 20),
    (
        "purity",
        "the same arguments give the same bits, and nothing is changed",
        drifts.check_purity,
        12,
    ),
    (
        "surroundings",
        "neither gradient modes nor generators are seen",
        drifts.check_surroundings,
        6,
    ),
    (
        "tensors",
        "on(tensors) is the same equation on other tensors",
        drifts.check_tensors,
        8,
    ),
    ("gradient", "the drift is differentiable", drifts.check_gradient, 8),
    ("recast", "on other nodes it is the same equation", drifts.check_recast, 6),
)
_SOLVES: tuple[tuple[str, str, _Check], ...] = (
    ("noise", "noise is bound to the noise clock and the state", check_noise_bound),
    ("solve", "a solve that is recomputed is the solve", drifts.check_solve),
)
