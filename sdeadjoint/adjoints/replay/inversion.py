"""Stages from the solver's own inverse: nothing is stored."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ... import nests
from ...recursion import Carry
from .backward import Plan, Retrieval
from .leaves import Activations, Stage

GROWTH = 2.0**14  # ulps: 64 roundings, and a step that makes errors grow 256 times


class RoundTripWarning(UserWarning):
    """The inverse of the solver did not lead back to where the forward pass had been."""


@dataclass(frozen=True)
class Inversion(Retrieval):
    """Each stage from the next by the solver's inverse.

    The stages before the first step, the second and the last are stored: the last may precede a projection, which has
    no inverse, and the second shows how far the way back has strayed.
    """

    tolerated: float
    watch: Callable[[float], None] | None

    def stored(self, first: int, steps: int) -> frozenset[int]:
        return frozenset({first, first + 1})

    def backwards(self, plan: Plan, stack: list[tuple[int, Stage]], end: Tensor) -> Iterator[tuple[int, Stage, Tensor]]:
        known = dict(stack)
        stack.clear()
        (first, start), (last, stage) = min(known.items()), max(known.items())
        carry, error = stage.carry, 0.0
        for n in reversed(range(first, last + 1)):
            if first < n < last:
                carry = self._inverted(plan, n, carry)
            yield n, start if n == first else Stage(carry, start.generators, stage.held), end
            end = carry.y
            if n == first + 1 < last:
                error, end = _distance(carry, known[n].carry), known[n].carry.y
        if self.watch is not None:
            self.watch(error)
        if not error <= self.tolerated:
            warnings.warn(
                f"Reversible: the way back strayed by {error:.1e} of the state, more than the {self.tolerated:.1e} "
                f"tolerated, and the gradient may be as wrong; pass {plan.recursion.equation.tamer}a larger zeta, "
                "x_T in float64 (Denoiser(network_dtype=...) leaves the network its own dtype), "
                "or adjoint=Checkpoint()",
                RoundTripWarning,
                stacklevel=2,
            )

    def _inverted(self, plan: Plan, n: int, carry: Carry) -> Carry:
        """With a graph that is dropped, as in the sweeps: the network runs as in a differentiated step."""
        isolated = plan.isolated
        activations = Activations(plan.swept.saving, isolated.guard)
        with torch.enable_grad(), activations.saved(), plan.autocast.replayed():
            entry, _ = isolated.entry(carry, plan.swept.traces[n + 1].wanted)
            found = isolated.recursion.invert(n, entry, isolated.recursion.increment(n))
        activations.release()
        isolated.drop_hooks()
        return Carry(*nests.map_tensors(Tensor.detach, found))

    def tolerance(self, plan: Plan) -> float:
        """Inverting a step and repeating it rounds some numbers of the size of the step's terms, and the step makes the
        error grow. Where a narrow network rounds anew, half of the state's digits are left.
        """
        eps = float(torch.finfo(plan.start.dtype).eps)
        return eps**0.5 if plan.is_narrow else GROWTH * eps


def _distance(carry: Carry, known: Carry) -> float:
    """Relative distance in the Euclidean norm, everything that a carry holds taken together."""
    wide = torch.promote_types(carry.y.dtype, torch.float32)
    pairs = list(zip(nests.tensors(carry), nests.tensors(known), strict=True))
    error, size = (
        torch.linalg.vector_norm(torch.cat([value.flatten().to(wide) for value in values]))
        for values in ([a - b for a, b in pairs], [b for _, b in pairs])
    )
    return float(error / size) if error > 0 else 0.0
