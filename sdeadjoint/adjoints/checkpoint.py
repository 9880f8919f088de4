"""Exact gradients in bounded memory: keep states, recompute the network, replay the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import nests
from ..discretization import Discretization
from ..integrate import Observer
from .base import Adjoint
from .direct import Direct
from .forward import sweep
from .leaves import distinct
from .replay import Plan, Replay
from .surroundings import Autocast


@dataclass(frozen=True)
class Checkpoint(Adjoint):
    """The exact gradient of the sampler, from stored states and recomputed network calls.

    Args:
        snapshots: ``None`` keeps the state before every step: one recomputation per step. An integer c keeps at
            most c of them at any time, x_T included, and recomputes the others by the binomial schedule of Griewank and
            Walther (2000), with ``r N - beta(c + 1, r - 1)`` extra forward steps, the fewest possible
            (``beta(c, r) = C(c + r, c)``, r the least with ``N <= beta(c, r)``).

    With p network calls a step, ``None`` costs N p forward calls, then N p again with their vector-Jacobian products.
    Memory: the states (with what a multistep solver remembers) and the activations of one step.

    The gradient is that of ``Direct`` to round-off for x_T, ``cond``, parameters, the noise's tensors and leaves
    that nobody declared: the forward pass builds each step's graph without its activations and reads them off it. Noise
    is replayed, never stored; torch's global generators (dropout) and autocast are replayed too. A recomputed step that
    does not return to the state of the forward pass within round-off raises, and so does one that uses a tensor made by
    an earlier evaluation: a network with caches or private randomness is refused, not misread.
    Other errors (``RuntimeError``): batch statistics that the network updates; ``create_graph=True`` (use ``Direct``).
    """

    snapshots: int | None = None

    def __post_init__(self) -> None:
        bad_type = isinstance(self.snapshots, bool) or not isinstance(self.snapshots, int | None)
        if bad_type or (self.snapshots is not None and self.snapshots < 1):
            raise ValueError(f"snapshots: got {self.snapshots!r}; pass None (a state per step) or an integer >= 1")

    def solve(self, recursion: Discretization, x_T: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        if not torch.is_grad_enabled():
            return Direct().solve(recursion, x_T, keep=keep, observe=observe)
        noise = () if recursion.noise is None else recursion.noise.tensors
        declared = distinct([x_T, *nests.tensors(recursion.cond), *recursion.denoiser.declared(), *noise])
        autocast = Autocast.current(x_T.device)
        snapshots = self.snapshots or recursion.steps
        swept = sweep(recursion, recursion.start(x_T), declared, snapshots, autocast, keep=keep, observe=observe)
        inputs = (*(tensor for tensor in declared if tensor.requires_grad), *swept.leaves)
        if not inputs:
            return swept.outputs
        watched = tuple(tensor for tensor in declared if not tensor.requires_grad)
        plan = Plan(recursion, inputs, watched, snapshots, keep, autocast, swept.borrows_graph)
        outputs: tuple[Tensor, ...] = Replay.apply(plan, swept, *inputs)
        return outputs
