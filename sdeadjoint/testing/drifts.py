"""What the drift of an equation promises, one check per item: numbers, purity, tensors, gradients, whole solves."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, nn

from .. import nests
from ..adjoints import Adjoint, Checkpoint, Direct
from ..equation import Equation
from ..noise import BrownianPath
from ..solve import solve
from ..solvers import Heun
from .contract import distance, numbers, require
from .points import Point, apart, eps, norm, product
from .surroundings import global_generators, reseed


def check_kind(equation: Equation, case: Point) -> None:
    y, s = case.y(equation), case.s(equation)
    F = equation.drift(case.n)(s, y)
    require(
        isinstance(F, Tensor), f"drift({case.n})(s, y) is {type(F).__name__}; it is a tensor like y"
    )
    for name in ("shape", "dtype", "device"):
        got, want = getattr(F, name), getattr(y, name)
        require(got == want, f"drift({case.n})({s}, y) has the {name} {got}, and y {want}")
    require(
        bool(F.isfinite().all()),
        f"drift({case.n})({s}, y) is not finite: {F.flatten()[:6].tolist()}",
    )


def check_purity(equation: Equation, case: Point) -> None:
    y, s = case.y(equation), case.s(equation)
    before = [y.clone(), *(tensor.detach().clone() for tensor in nests.tensors(equation.tensors))]
    first = equation.drift(case.n)(s, y).detach().clone()
    require(torch.equal(y, before[0]), f"drift({case.n})(s, y) changed y in place")
    now = nests.tensors(equation.tensors)
    same = all(map(torch.equal, before[1:], (tensor.detach() for tensor in now)))
    require(same, f"drift({case.n})(s, y) changed a tensor of equation.tensors in place")
    for n in reversed(range(equation.steps - equation.projects)):  # other steps in between
        Point(n, 0.0, 9).drift(equation)
    again = equation.drift(case.n)(s, y)
    error = distance(again, first)
    require(
        torch.equal(first, again),
        f"drift({case.n})({s}, y) changed by {error:.2g} between two calls",
    )
    strided = torch.stack([y] * 2, -1)[..., 0]
    other = equation.drift(case.n)(s, strided)
    allowed = 256 * eps(y) * max(1.0, float(first.double().norm()))
    error = distance(other, first)
    require(
        error <= allowed,
        f"drift({case.n})(s, y) of a y that is not contiguous is off by {error:.2g}",
    )


def check_surroundings(equation: Equation, case: Point) -> None:
    y, s = case.y(equation), case.s(equation)
    with global_generators() as moved:
        plain = equation.drift(case.n)(s, y).detach().clone()
        require(
            not moved(),
            f"the drift changed the global generator of {moved()} (dropout? call eval() first)",
        )
        reseed()
        again = equation.drift(case.n)(s, y)
        require(
            torch.equal(plain, again),
            "the drift is another one after the global generators were seeded",
        )
    with torch.no_grad():
        without = equation.drift(case.n)(s, y)
    traced = equation.drift(case.n)(s, y.clone().requires_grad_())
    allowed = 256 * eps(y) * max(1.0, float(plain.double().norm()))
    for name, other in (
        ("under torch.no_grad()", without),
        ("for a y that requires a gradient", traced),
    ):
        error = distance(other, plain)
        require(error <= allowed, f"drift({case.n})(s, y) {name} is off by {error:.2g}")


def leaves_of(tensors: Any) -> tuple[Any, list[Tensor]]:
    """The nest on copies that require gradients, each tensor once; and the copies."""
    copies: dict[int, Tensor] = {}

    def copied(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point():
            return tensor
        return copies.setdefault(id(tensor), tensor.detach().clone().requires_grad_())

    return nests.map_tensors(copied, tensors), list(copies.values())


def check_tensors(equation: Equation, case: Point) -> None:
    old, originals = leaves_of(equation.tensors)
    new, _ = leaves_of(equation.tensors)
    before = equation.on(old)
    after = before.on(new)
    require(
        type(after) is type(equation),
        f"on(tensors) is {type(after).__name__}, not {type(equation).__name__}",
    )
    got, want = list(map(id, nests.tensors(after.tensors))), list(map(id, nests.tensors(new)))
    require(
        got == want, "on(tensors).tensors are not the tensors that it was given, in their order"
    )
    tables = [(e.clocks, e.times, e.weights, e.noise_clock) for e in (equation, after)]
    require(tables[0] == tables[1], f"on(tensors) has other tables: {tables[1]}")
    y, s = case.y(equation), case.s(equation)
    F, same = (e.drift(case.n)(s, y) for e in (after, equation))
    allowed = 256 * eps(y) * max(1.0, float(same.detach().double().norm()))
    error = distance(F, same)
    require(
        error <= allowed, f"on(copies of its tensors).drift({case.n})(s, y) is off by {error:.2g}"
    )
    own = [tensor for tensor in nests.tensors(equation.tensors) if tensor.requires_grad]
    if F.requires_grad and (left := [*originals, *own]):
        grads = torch.autograd.grad(F.sum(), left, allow_unused=True)
        shapes = [
            tuple(tensor.shape)
            for tensor, grad in zip(left, grads, strict=True)
            if grad is not None
        ]
        require(
            not shapes,
            f"on(tensors) still depends on the old tensor of shape {shapes[:1]}, kept somewhere else",
        )


def check_gradient(equation: Equation, case: Point) -> None:
    """Along random directions in the state, in each tensor, and in all parameters together."""
    tensors, leaves = leaves_of(equation.tensors)
    y, s = case.y(equation).requires_grad_(), case.s(equation)
    a = numbers(*y.shape, seed=31).to(y)

    def value() -> Tensor:
        return (equation.on(tensors).drift(case.n)(s, y) * a).sum()

    parameters = [p for p in _parameters(equation) if p.numel()]
    groups = [
        ("the state", [y]),
        *((f"the tensor {k} of equation.tensors", [leaf]) for k, leaf in enumerate(leaves)),
    ]
    groups += [("the module's parameters", parameters)] if parameters else []
    out = value()
    flat = [tensor for _, group in groups for tensor in group]
    found = (
        torch.autograd.grad(out, flat, allow_unused=True)
        if out.requires_grad
        else [None] * len(flat)
    )
    grads = {id(tensor): grad for tensor, grad in zip(flat, found, strict=True)}
    size = max(1.0, norm(a) * norm(equation.drift(case.n)(s, y)))
    for k, (name, group) in enumerate(groups):
        along = [
            numbers(*tensor.shape, seed=41 + 3 * k + i).to(tensor) for i, tensor in enumerate(group)
        ]
        got = sum(
            product(grad, v)
            for tensor, v in zip(group, along, strict=True)
            if (grad := grads[id(tensor)]) is not None
        )
        wide, narrow = (_difference(value, group, along, scale) for scale in (1.0, 0.5))
        allowed = 4 * abs(wide - narrow) + 1e3 * eps(y) ** (2 / 3) * max(size, abs(narrow))
        require(
            abs(got - narrow) <= allowed,
            f"the derivative of drift({case.n})({s}, y) along {name} is {got:.8g} by autograd and {narrow:.8g} by "
            "differences",
        )


def _difference(
    value: Callable[[], Tensor], group: list[Tensor], along: list[Tensor], scale: float
) -> float:
    """A central difference; the tensors are moved in place and put back."""
    kept = [tensor.detach().clone() for tensor in group]
    step = (
        scale
        * eps(group) ** (1 / 3)
        * max(1.0, norm(kept) / math.sqrt(sum(t.numel() for t in kept)))
    )
    ends = []
    with torch.no_grad():
        try:
            for sign in (1, -1):
                for tensor, old, v in zip(group, kept, along, strict=True):
                    tensor.copy_(old + sign * step * v)
                with torch.enable_grad():  # some drifts differentiate
                    ends.append(float(value().detach()))
        finally:
            for tensor, old in zip(group, kept, strict=True):
                tensor.copy_(old)
    return (ends[0] - ends[1]) / (2 * step)


def check_recast(equation: Equation, case: Point) -> None:
    """On its own nodes, and with one more in the middle of each step, seen at the clock values of both."""
    steps = equation.steps - equation.projects
    times = equation.times[: steps + 1]
    finer = sorted(
        {*times, *((a + b) / 2 for a, b in pairwise(times))}, reverse=times[0] > times[-1]
    )
    for nodes, slots in ((times, range(steps)), (finer, [m // 2 for m in range(2 * steps)])):
        try:
            other = equation.recast(None, tuple(nodes), list(slots))
        except ValueError:
            return
        require(
            other.steps == len(nodes) - 1, f"recast on {len(nodes)} nodes has {other.steps} steps"
        )
        m = case.n * (other.steps // steps)
        y, s = case.y(equation), equation.clocks[case.n]
        want, got = equation.drift(case.n)(s, y), other.drift(m)(s, y)
        allowed = 1e-6 * max(1.0, float(want.detach().double().norm()))
        error = distance(got, want)
        require(
            error <= allowed,
            f"recast on {len(nodes)} nodes, drift({m})({s}, y) is off by {error:.2g}",
        )


def check_solve(equation: Equation, case: object) -> None:
    want, got, every = (
        _solved(equation, adjoint, trajectory)
        for adjoint, trajectory in (
            (Direct(), False),
            (Checkpoint(snapshots=1), False),
            (Direct(), True),
        )
    )
    require(
        apart(got[0], want[0]) == 0, "Checkpoint(snapshots=1) ends in another state than Direct()"
    )
    first, last = (nests.map_tensors(itemgetter(k), every[0]) for k in (0, -1))
    require(apart(first, equation.start) == 0, "the first state of a trajectory is not the start")
    require(
        apart(last, want[0]) == 0,
        "the last state of a trajectory is not the state that a solve ends in",
    )
    for k, (one, two) in enumerate(zip(want[1], got[1], strict=True)):
        require(
            (one is None) == (two is None),
            f"gradient {k}: one of Direct() and Checkpoint() has none",
        )
        if one is not None and two is not None:
            allowed = 1e4 * eps(one) * max(1.0, norm(one))
            require(
                distance(two, one) <= allowed,
                f"gradient {k} of Checkpoint() is off by {distance(two, one):.2g}",
            )


def _parameters(equation: Equation) -> list[Tensor]:
    """Those of the module, if it is one, that require gradients."""
    module = equation.module
    return [p for p in module.parameters() if p.requires_grad] if isinstance(module, nn.Module) else []


def _solved(
    equation: Equation, adjoint: Adjoint, trajectory: bool
) -> tuple[Any, list[Tensor | None]]:
    """The end of a solve and the gradients of a sum of it, in the start, the tensors and the parameters."""
    tensors, leaves = leaves_of(equation.tensors)
    fresh = equation.on(tensors)
    noise = None if equation.noise_clock is None else BrownianPath(0)
    out = solve(
        fresh, fresh.start, solver=Heun(), noise=noise, adjoint=adjoint, trajectory=trajectory
    )
    ends = [part for part in nests.tensors(out) if part.requires_grad]
    wanted = [*leaves, *_parameters(equation)]
    if not ends or not wanted:
        return nests.map_tensors(Tensor.detach, out), []
    weights = [numbers(*part.shape, seed=61 + k).to(part) for k, part in enumerate(ends)]
    grads = torch.autograd.grad(ends, wanted, weights, allow_unused=True)
    return nests.map_tensors(Tensor.detach, out), list(grads)
