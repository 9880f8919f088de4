"""Exact gradients in bounded memory: keep states, recompute the network, replay the noise."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..discretization import Discretization
from ..integrate import Observer
from .base import Adjoint
from .direct import Direct
from .forward import Sweep, sweep, training_modes
from .isolation import arguments, isolate
from .leaves import distinct
from .replay import Plan, Replay
from .surroundings import Autocast


@dataclass(frozen=True)
class Checkpoint(Adjoint):
    """The exact gradient of the sampler, from stored states and recomputed network calls.

    Args:
        snapshots: ``None`` keeps the state before every step: one recomputation per step. An integer c stores at most c
            of them at any time, x_T included, besides the one it works on, and recomputes the others by the binomial
            schedule of Griewank and Walther (2000), with ``r N - beta(c + 1, r - 1)`` extra forward steps, the fewest
            possible (``beta(c, r) = C(c + r, c)``, r the least with ``N <= beta(c, r)``).

    With p network calls a step, ``None`` costs N p forward calls, then N p again with their vector-Jacobian products.
    Memory: the states (with what a multistep solver remembers) and the activations of one step.

    The gradient is that of ``Direct`` to round-off for x_T, ``cond``, parameters, the noise's tensors and leaves
    that nobody declared: the forward pass builds each step's graph without its activations and reads them off it. Noise
    is replayed, never stored; torch's global generators (dropout) and autocast are replayed too. A recomputed step that
    does not return to the state of the forward pass within round-off raises, and so does one that uses a tensor made by
    an earlier evaluation: a network with caches or private randomness is refused, not misread.
    Other errors (``RuntimeError``): batch statistics that the network updates; reentrant checkpoints inside it;
    ``requires_grad`` or train/eval flags changed before the backward pass; ``create_graph=True`` (use ``Direct``).
    Hooks on arguments and leaves see their total gradient, once; hooks on a non-leaf tensor that the network reads
    without having been given it see each step's part.
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
        parameters = [*recursion.denoiser.parameters(), *recursion.denoiser.buffers()]
        declared = distinct([*arguments(recursion, x_T), *parameters, *noise])
        autocast, snapshots = Autocast.current(x_T.device), self.snapshots or recursion.steps
        isolated = isolate(recursion, x_T)
        swept = sweep(isolated, recursion.start(x_T), Sweep(snapshots, keep, autocast, observe))
        inputs = distinct([*(tensor for tensor in declared if tensor.requires_grad), *swept.leaves])
        if not inputs:
            return swept.outputs
        plan = Plan(
            recursion,
            x_T,
            tuple(inputs),
            watched=tuple(tensor for tensor in declared if not tensor.requires_grad),
            snapshots=snapshots,
            keep=keep,
            autocast=autocast,
            borrows_graph=swept.borrows_graph,
            differentiates=swept.differentiates,
            modes=training_modes(recursion),
        )
        outputs: tuple[Tensor, ...] = Replay.apply(plan, swept, *inputs)
        return outputs
