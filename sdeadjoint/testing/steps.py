"""What a solver's steps promise, one check per item: purity, kinds of numbers, calls of the drift, exact cases."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.gradcheck import GradcheckError

from ..solvers import Claims, Interval, Solver
from .contract import ViolationError, distance, require
from .walks import Walk, solve

ORDER_OF_STEPS = 4
"""From this step on a multistep method is expected to cost what it claims."""


def check_claims(solver: Solver, case: object) -> None:
    claims = solver.claims
    require(
        isinstance(claims, Claims), f"claims is {claims!r}; return Claims(ode=, strong=, evaluations=, levy=, weak=)"
    )
    require(solver.claims == claims, f"claims changed from {claims!r} to {solver.claims!r}; they are constants")
    for name, value in (("ode", claims.ode), ("evaluations", claims.evaluations)):
        ok = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        require(ok, f"claims.{name} is {value!r}; it is an integer >= 1")
    require(claims.levy in ("none", "space-time"), f'claims.levy is {claims.levy!r}; it is "none" or "space-time"')
    real = isinstance(claims.strong, int | float) and not isinstance(claims.strong, bool)
    require(
        real and 0.5 <= claims.strong <= 1.5,
        f"claims.strong is {claims.strong!r}; increments and Levy areas allow orders from 0.5 to 1.5",
    )
    require(
        claims.strong <= 1 or claims.levy == "space-time",
        f'claims.strong is {claims.strong!r} with levy="none"; no order above 1 is possible from increments alone',
    )
    counts = isinstance(claims.starting, tuple) and all(type(calls) is int for calls in claims.starting)
    require(
        counts and all(calls >= claims.evaluations for calls in claims.starting),
        f"claims.starting is {claims.starting!r}; it is a tuple of integers, none below claims.evaluations",
    )
    real = isinstance(claims.weak, int | float) and not isinstance(claims.weak, bool)
    require(real and claims.weak > 0, f"claims.weak is {claims.weak!r}; it is a number > 0")
    _check_state(solver.initial_state, "initial_state")


def check_purity(solver: Solver, walk: Walk) -> None:
    kept = _attributes(solver)
    y, state = walk.state(), solver.initial_state
    for n, interval in enumerate(walk.intervals()):
        before = copy.deepcopy((y, interval.dB, interval.H, state))
        first = solver.step(walk.drift, interval, y, state)
        pair = isinstance(first, tuple) and len(first) == 2
        require(pair, f"step {n} returned {type(first).__name__}; return the pair (y, state)")
        changed = [
            name
            for name, old, new in zip(
                ("y", "dB", "H", "state"), before, (y, interval.dB, interval.H, state), strict=True
            )
            if not _same(old, new)
        ]
        require(not changed, f"step {n} changed {' and '.join(changed)} in place")
        solver.step(walk.drift, Interval(2.0, 2.5), walk.state(99), solver.initial_state)  # another solve in between
        again = solver.step(walk.drift, interval, y, state)
        for name, one, two in (("y", first[0], again[0]), ("the state", first[1], again[1])):
            if not _same(one, two):
                raise ViolationError(f"step {n}, done twice with the same arguments, gave {name} = {one}, then {two}")
        now = _attributes(solver)
        if not _same(now, kept):
            raise ViolationError(f"step {n} changed the solver's own attributes from {kept} to {now}")
        y, state = first


def check_kind(solver: Solver, walk: Walk) -> None:
    y, state = walk.state(), solver.initial_state
    for n, interval in enumerate(walk.intervals()):
        y1, state = solver.step(walk.drift, interval, y, state)
        require(isinstance(y1, Tensor), f"step {n} returned {type(y1).__name__} for y; it is a tensor")
        for name in ("shape", "dtype", "device"):
            got, want = getattr(y1, name), getattr(y, name)
            require(got == want, f"step {n} made {name} {got} of {want}")
        if not y1.isfinite().all():
            raise ViolationError(f"step {n} made y = {y1}, which is not finite")
        y = y1


def check_state(solver: Solver, walk: Walk) -> None:
    y, state = walk.state(), solver.initial_state
    for n, interval in enumerate(walk.intervals()):
        y, state = solver.step(walk.drift, interval, y, state)
        _check_state(state, f"the state after step {n}")


def check_evaluations(solver: Solver, walk: Walk) -> None:
    calls: list[float] = []

    def drift(s: float, y: Tensor) -> Tensor:
        calls.append(s)
        return walk.drift(s, y)

    y, state, claims = walk.state(), solver.initial_state, solver.claims
    for n, interval in enumerate(walk.intervals()):
        calls.clear()
        y, state = solver.step(drift, interval, y, state)
        starts = n < len(claims.starting)
        claimed = claims.starting[n] if starts else claims.evaluations
        least = claimed if starts or n >= ORDER_OF_STEPS else 0
        allowed = f"{claimed} (claims.{'starting' if starts else 'evaluations'})"
        allowed += ", and one more in the first step" if n == 0 else ""
        require(
            least <= len(calls) <= claimed + (n == 0), f"step {n} called the drift {len(calls)} times, not {allowed}"
        )


def check_clocks(solver: Solver, walk: Walk) -> None:
    y, state = walk.state(), solver.initial_state
    for n, interval in enumerate(walk.intervals()):
        low, high = sorted((interval.s0, interval.s1))

        def drift(s: float, Y: Tensor, n: int = n, low: float = low, high: float = high, y: Tensor = y) -> Tensor:
            require(isinstance(s, float), f"step {n} called the drift with a clock of type {type(s).__name__}")
            require(low <= s <= high, f"step {n} called the drift at s = {s}, outside of its interval [{low}, {high}]")
            same = (Y.shape, Y.dtype) == (y.shape, y.dtype)
            require(same, f"step {n} called the drift with {Y.dtype} {tuple(Y.shape)} for {y.dtype} {tuple(y.shape)}")
            return walk.drift(s, Y)

        y, state = solver.step(drift, interval, y, state)


def check_exact(solver: Solver, walk: Walk) -> None:
    y0, intervals = walk.state(), walk.intervals()
    y, _ = solve(solver, walk.drift, intervals, y0)
    want = y0 + walk.drift(0.0, y0) * (walk.clock[-1] - walk.clock[0])
    if walk.noisy:
        want = want + sum(interval.dB for interval in intervals)
    error = distance(y, want)
    # Weights of four past drifts on steps of ratio 10 have absolute values up to some 1e4 steps.
    require(
        error <= 1e-10,
        f"after {len(intervals)} steps y is {y.tolist()}, and y0 + int F ds + sum dB is "
        f"{want.tolist()}: off by {error:.2g}, where round-off is below 1e-10",
    )


def check_batch(solver: Solver, walk: Walk) -> None:
    intervals, y0 = walk.intervals(), walk.state()
    together, _ = solve(solver, walk.drift, intervals, y0)
    for i in range(len(y0)):
        own = [_part(interval, i) for interval in intervals]
        alone, _ = solve(solver, walk.drift, own, y0[i : i + 1])
        error = distance(alone, together[i : i + 1])
        require(
            error <= 1e-10,
            f"sample {i} is {alone.tolist()} alone and {together[i : i + 1].tolist()} in a batch of "
            f"{len(y0)}: off by {error:.2g}, where round-off is below 1e-10",
        )


def check_differentiable(solver: Solver, walk: Walk) -> None:
    intervals, y0 = walk.intervals(), walk.state().requires_grad_()
    noise = [part for interval in intervals for part in (interval.dB, interval.H) if isinstance(part, Tensor)]
    inputs = [y0, torch.tensor(0.9, dtype=torch.float64), *noise]
    names = [
        "y",
        "a parameter of the drift",
        *(f"{'dB' if k % 2 == 0 else 'H'} of step {k // 2}" for k in range(len(noise))),
    ]

    def end(y: Tensor, c: Tensor, *noise: Tensor) -> Tensor:
        steps = [
            Interval(old.s0, old.s1, *noise[2 * n : 2 * n + 2]) if noise else old for n, old in enumerate(intervals)
        ]
        return solve(solver, lambda s, y: walk.drift(s, c * y), steps, y)[0]

    inputs = [value.detach().clone().requires_grad_() for value in inputs]
    out = end(*inputs)
    require(out.requires_grad, "the result does not require a gradient although y does: it was detached")
    try:
        gradcheck(end, inputs)
    except GradcheckError:
        raise_worst(end, inputs, names)


def raise_worst(function: Any, inputs: list[Tensor], names: list[str]) -> None:
    """Say which derivative is wrong, and by how much, from central differences."""
    weight = torch.linspace(1.0, 2.0, function(*inputs).numel(), dtype=torch.float64, device="cpu")
    grads = torch.autograd.grad(function(*inputs).flatten() @ weight, inputs, allow_unused=True)
    h, worst = 1e-5, (0.0, "")
    for name, value, grad in zip(names, inputs, grads, strict=True):
        for k in range(value.numel()):
            ends = []
            for sign in (1, -1):
                moved = value.detach().clone()
                moved.view(-1)[k] += sign * h
                ends.append(function(*(moved if other is value else other.detach() for other in inputs)))
            want = float((ends[0] - ends[1]).flatten() @ weight) / (2 * h)
            got = 0.0 if grad is None else float(grad.flatten()[k])
            sentence = f"the derivative in {name} is {got:.8g} by autograd and {want:.8g} by differences"
            worst = max(worst, (abs(got - want), sentence))
    require(False, worst[1] or "gradcheck fails")


def _check_state(nest: Any, name: str) -> None:
    require(isinstance(nest, tuple), f"{name} is {type(nest).__name__}; it is a tuple")
    for leaf in _leaves(nest):
        ok = isinstance(leaf, Tensor | int | float)
        require(ok, f"{name} holds {type(leaf).__name__}; it is a nest of tuples of tensors and numbers")


def _leaves(nest: Any) -> Iterator[Any]:
    if isinstance(nest, tuple):
        for part in nest:
            yield from _leaves(part)
    else:
        yield nest


def _attributes(solver: Solver) -> dict[str, Any]:
    return copy.deepcopy(getattr(solver, "__dict__", {}))


def _same(a: Any, b: Any) -> bool:
    """Bitwise equality of nests; a NaN equals itself."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and bool(((a == b) | (a.isnan() & b.isnan())).all())
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    return bool(a is b or (type(a) is type(b) and a == b))


def _part(interval: Interval, i: int) -> Interval:
    parts = (part[i : i + 1] if isinstance(part, Tensor) else part for part in (interval.dB, interval.H))
    return Interval(interval.s0, interval.s1, *parts)
