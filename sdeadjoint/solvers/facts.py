"""Facts about a solver, found by running it on numbers in the place of a drift: no solver has to state them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor

from .base import Interval, Solver, State

Weights = tuple[tuple[float, ...], ...]
"""``W[m][i]``: the weight of the i-th drift evaluation of step m."""


def remembers(solver: Solver) -> bool:
    """Whether a step of the solver hands a state on; steps are pure, so one on a number tells."""
    y = torch.ones(1, dtype=torch.float64, device="cpu")
    return solver.initial_state != () or solver.step(lambda s, y: y, Interval(1.0, 2.0), y, ())[1] != ()


def sees_noise(solver: Solver) -> bool:
    """Whether a drift evaluation of a step depends on the step's own noise; found with a drift that is zero."""
    seen: list[list[float]] = []
    for noise in (0.0, 1.0):
        states: list[float] = []

        def drift(s: float, y: Tensor, states: list[float] = states) -> Tensor:
            states.append(float(y))
            return torch.zeros_like(y)

        y = torch.ones(1, dtype=torch.float64, device="cpu")
        interval = Interval(1.0, 2.0, torch.full_like(y, noise), torch.full_like(y, noise))
        solver.step(drift, interval, y, solver.initial_state)
        seen.append(states)
    return seen[0] != seen[1]


def tensors_per_carry(solver: Solver, clocks: Sequence[float]) -> int:
    """How many tensors like the state one step hands to the next: the state, and what the solver remembers with it.

    Counted on the first steps of a clock, at most eight, with a drift that is zero. A solver that draws finds torch's
    generator as it was.
    """
    y, state, most = torch.zeros(1, dtype=torch.float64, device="cpu"), solver.initial_state, 1
    with torch.random.fork_rng(devices=[]):
        for n in range(min(len(clocks) - 1, 8)):
            y, state = solver.step(lambda s, y: torch.zeros_like(y), Interval(clocks[n], clocks[n + 1]), y, state)
            most = max(most, 1 + sum(1 for _ in _tensors(state)))
    return most


def quadrature_weights(solver: Solver, clocks: Sequence[float], restarts: Collection[int] = ()) -> Weights:
    """``W`` with ``y_0 = y_M + sum_{m, i} W[m][i] f_{m, i}`` for ``dy = f ds``, solved from node M to node 0.

    A pure quadrature has a drift that does not depend on y, and every solver is linear in such drifts: its weights
    depend on the clocks alone. They are read off a dummy solution whose drifts are one leaf each, without any network.

    Args:
        solver: the method.
        clocks: of the nodes ``m = 0 .. M``; step m runs from node m + 1 to node m.
        restarts: the nodes at which the solver begins anew, without memory.

    ``ValueError`` if the weights are not finite or do not add up to the span of the clock.
    """
    with torch.enable_grad():
        y = torch.zeros(1, dtype=torch.float64, device="cpu")
        steps: list[list[Tensor]] = []
        state = solver.initial_state
        for m in reversed(range(len(clocks) - 1)):
            drifts: list[Tensor] = []
            try:
                y, state = solver.step(_one_leaf_each(drifts), Interval(clocks[m], clocks[m + 1]).reversed, y, state)
            except ValueError as error:
                raise _refusal(solver, clocks, str(error)) from error
            if m in restarts:
                state = solver.initial_state
            steps.append(drifts)
        flat = [drift for drifts in steps for drift in drifts]
        grads = torch.autograd.grad(y, flat, allow_unused=True) if flat else ()
    values = iter([0.0 if grad is None else float(grad) for grad in grads])
    weights = tuple(reversed([tuple(next(values) for _ in drifts) for drifts in steps]))
    _check(solver, clocks, weights)
    return weights


def slot_weights(weights: Weights, clocks: Sequence[float]) -> Weights:
    """Weights of each step's own evaluations that add up to the step: for what is read on that step alone.

    A one-step method has them already. A multistep method extrapolates from earlier steps, whose ``Scheduled``
    conditioning is another tensor: there each evaluation counts alike, which is of first order in each slot.
    """
    own = []
    for m, step in enumerate(weights):
        ds = clocks[m] - clocks[m + 1]
        whole = abs(math.fsum(step) - ds) <= 1e-10 * (abs(ds) + math.fsum(abs(weight) for weight in step))
        own.append(step if whole else tuple(ds / len(step) for _ in step))
    return tuple(own)


def _one_leaf_each(drifts: list[Tensor]) -> Callable[[float, Tensor], Tensor]:
    def drift(s: float, y: Tensor) -> Tensor:
        drifts.append(torch.zeros(1, dtype=torch.float64, device="cpu", requires_grad=True))
        return drifts[-1]

    return drift


def _tensors(state: State) -> Iterator[Tensor]:
    for part in state:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, tuple | list):
            yield from _tensors(tuple(part))


def _check(solver: Solver, clocks: Sequence[float], weights: Weights) -> None:
    """A consistent method integrates a constant exactly; round-off is that of summing its weights."""
    flat = [weight for step in weights for weight in step]
    if not all(map(math.isfinite, flat)):
        raise _refusal(solver, clocks, "its quadrature weights are not finite")
    total, span = math.fsum(flat), clocks[0] - clocks[-1]
    size = math.fsum(abs(weight) for weight in flat)
    if not abs(total - span) <= 1e-10 * max(size, abs(span)):
        raise _refusal(solver, clocks, f"its quadrature weights add up to {total}, not to the clock's span {span}")


def _refusal(solver: Solver, clocks: Sequence[float], reason: str) -> ValueError:
    return ValueError(
        f"solver: {solver!r} cannot solve the adjoint equation on the clock from {clocks[-1]} to {clocks[0]}: "
        f"{reason}; pass a one-step solver such as Heun(), or AdamsBashforth(variable='clock')"
    )
