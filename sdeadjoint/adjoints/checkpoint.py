"""Exact gradients in bounded memory: keep states, recompute the network, replay the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import nests
from ..discretization import Discretization
from ..integrate import Observer
from .base import Adjoint
from .direct import Direct, unroll
from .leaves import dependencies, distinct, precedes, sequence_number, updates_batch_statistics
from .replay import Plan, Replay, Stage, Sweep
from .surroundings import Autocast, GeneratorStates


@dataclass(frozen=True)
class Checkpoint(Adjoint):
    """The exact gradient of the sampler, from stored states and recomputed network calls.

    Args:
        snapshots: ``None`` keeps the state before every step: one recomputation per step. An integer c keeps at
            most c of them at any time, x_T included, and recomputes the others by the binomial schedule of Griewank and
            Walther (2000), with ``r N - beta(c + 1, r - 1)`` extra forward steps, the fewest possible
            (``beta(c, r) = C(c + r, c)``, r the least with ``N <= beta(c, r)``).

    With p network calls a step, ``None`` costs N p forward calls without a graph, then N p with one and their
    vector-Jacobian products. Memory: the states (with what a multistep solver remembers) and the activations of one step.

    The gradient is that of ``Direct`` to round-off for x_T, ``cond``, parameters, the noise's tensors and leaves
    that nobody declared, which the graph of the first step reveals. Noise is replayed, never stored; torch's global
    generators (dropout) and autocast are replayed too. A recomputed step that does not return to the state of the
    forward pass within round-off raises, so a network with caches or private randomness is refused, not misread.
    Errors (``RuntimeError``): batch statistics that the network updates; leaves first met after the first step;
    ``create_graph=True``, for which use ``Direct``.
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
        start = Stage(recursion.start(x_T), GeneratorStates.current(x_T.device))
        autocast, mark = Autocast.current(x_T.device), sequence_number()
        with autocast.replayed():
            first = recursion.step(0, start.carry, recursion.increment(0))
        found = dependencies(nests.tensors(first), declared)
        if any(map(updates_batch_statistics, found.nodes)):
            raise RuntimeError(
                "network: a normalisation layer in training mode updates its running statistics, which a recomputation would "
                "update again; call network.eval(), set track_running_stats=False, or pass adjoint=Direct()"
            )
        inputs = (*(tensor for tensor in declared if tensor.requires_grad), *found.leaves)
        if not inputs:
            return unroll(recursion, first, 1, keep=keep, observe=observe)
        plan = Plan(
            recursion,
            inputs,
            watched=tuple(tensor for tensor in declared if not tensor.requires_grad),
            snapshots=self.snapshots or recursion.steps,
            keep=keep,
            autocast=autocast,
            borrows_graph=any(precedes(node, mark) for node in found.nodes),
        )
        sweep = Sweep(start, nests.map_tensors(Tensor.detach, first), observe)
        outputs: tuple[Tensor, ...] = Replay.apply(plan, sweep, *inputs)  # type: ignore[no-untyped-call]
        return outputs
