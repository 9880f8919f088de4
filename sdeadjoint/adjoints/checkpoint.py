"""Exact gradients in bounded memory: keep states, recompute the network, replay the noise."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ..recursion import Observer, Recursion
from ..solvers.facts import tensors_per_carry
from .base import Adjoint
from .replay.forward import Replayed
from .replay.snapshots import Snapshots

UNITS = {"": 1, "B": 1} | {
    prefix + unit: base**power
    for power, prefix in enumerate("kMGT", start=1)
    for unit, base in (("B", 1000), ("iB", 1024))
}


@dataclass(frozen=True)
class Checkpoint(Adjoint):
    """The exact gradient of the sampler, from stored states and recomputed network calls.

    Args:
        snapshots: ``None`` keeps the state before every step: one recomputation per step. An integer c stores at most c
            of them at any time, x_T included, besides the one it works on, and recomputes the others by the binomial
            schedule of Griewank and Walther (2000), with ``r N - beta(c + 1, r - 1)`` extra forward steps, the fewest
            possible (``beta(c, r) = C(c + r, c)``, r the least with ``N <= beta(c, r)``).
        memory: in place of ``snapshots``, a budget such as ``"2GiB"`` for everything kept between the two passes: the
            states first (fewer snapshots if not all fit), and with what is left the whole graphs of the latest steps,
            which need no recomputation. It is never slower than ``Checkpoint()``, and takes no more than the larger
            one of ``Checkpoint()`` and ``Direct``, to within 16 KiB: with room for all graphs it leaves out the first
            few, mostly one or two, in whose memory the states lie and a step's gradients. The workspace of the step at
            hand comes on top of the budget, as always: its activations where its graph is not kept, and its gradients.
        states: ``"cpu"`` keeps the stored states on the host, for a state on an accelerator (on CUDA in pinned memory;
            the copies run while the host goes on), where they would be many: long solves of large latents. A budget is
            then for graphs alone. Second derivatives bring all states back.
        pure: you vouch for the network: it is a function of its arguments and of weights alone, the same one with and
            without gradients, and its weights are read in the first or the last step, or are those of modules that it
            holds as attributes or names in its code. Then only these two steps' graphs are examined, and the others are
            taken without one, which spares the time of building and reading it where a network is many small
            operations. What is checked at each step is the recomputed state; a network that does not keep the promise
            may get a wrong gradient. Without effect for networks that are compiled, differentiate inside or change
            their buffers, and beside whole graphs.

    With p network calls a step, ``None`` costs N p forward calls, then N p again with their vector-Jacobian products.
    Memory: the states (with what a multistep solver remembers) and the activations of one step.

    The gradient is that of ``Direct`` to round-off for x_T, ``cond``, parameters, the noise's tensors and leaves
    that nobody declared: the forward pass builds each step's graph without its activations and reads them off it. Noise
    is replayed, never stored; so are torch's global generators (dropout), autocast, and the buffers and plain
    attributes that modules change in their forward pass. A recomputed step that does not return to the state of the
    forward pass within round-off, or by another graph, raises, and so does one that uses a tensor made by an earlier
    evaluation: a network with caches or private randomness is refused, not misread. Forward-mode tangents are pushed
    forward in the memory of one step.
    Other errors (``RuntimeError``): reentrant checkpoints inside the network; flags, weights, attributes or hooks
    changed before the backward pass; a loss on tensors recorded inside; third derivatives and ``torch.func.grad`` or
    ``vmap`` around it (use ``Direct``). Second derivatives (``create_graph=True``) are exact: a Hessian-vector product
    evaluates each step three times more than a gradient, which takes four to five times as long (measured in the
    guide), and keeps one tangent per stored state. From snapshots tangents are advanced too, at some four forward calls
    a step, and so half as many states again are stored (``3 c // 2``, each with its tangent). From one snapshot, where
    this adds none, a product takes longer. Hooks on arguments and
    leaves see their total gradient, once; those on another tensor that was computed outside are refused, as they would
    see each step's part.
    """

    snapshots: int | None = None
    memory: int | str | None = None
    states: Literal["device", "cpu"] = "device"
    pure: bool = False

    def __post_init__(self) -> None:
        if self.states not in ("device", "cpu"):
            raise ValueError(f"states: got {self.states!r}; pass 'device', or 'cpu' to keep stored states on the host")
        if not isinstance(self.pure, bool):
            raise TypeError(f"pure: got {self.pure!r}; pass True to vouch for the network, or False")
        bad_type = isinstance(self.snapshots, bool) or not isinstance(self.snapshots, int | None)
        if bad_type or (self.snapshots is not None and self.snapshots < 1):
            raise ValueError(
                f"snapshots: got {self.snapshots!r}; pass None (a state per step) or an integer >= 1 "
                "(a budget in bytes is memory='2GiB')"
            )
        if self.memory is not None:
            parse_bytes(self.memory)
            if self.snapshots is not None:
                raise ValueError(
                    "snapshots, memory: got both, but memory decides how many snapshots there are; pass one"
                )

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        snapshots, graphs, on_host = self.snapshots or recursion.steps, 0, self.states == "cpu"
        if self.memory is not None and on_host:
            graphs = parse_bytes(self.memory)
        elif self.memory is not None:
            snapshots, graphs = _spend(parse_bytes(self.memory), recursion, y)
        replayed = Replayed(Snapshots(snapshots, on_host), graphs=graphs, pure=self.pure)
        return replayed.solve(recursion, y, keep=keep, observe=observe)


def parse_bytes(memory: int | str) -> int:
    """``"2GiB"``, ``"500 MB"`` or a number of bytes."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kKMGT]?i?B?)\s*", str(memory))
    unit = match[2].replace("K", "k") if match else None
    if isinstance(memory, bool) or not isinstance(memory, int | str) or match is None or unit not in UNITS:
        raise ValueError(f"memory: got {memory!r}; pass bytes as an integer or a string such as '500MB' or '2GiB'")
    return int(float(match[1]) * UNITS[unit])


def _spend(memory: int, recursion: Recursion, y: Tensor) -> tuple[int, int]:
    """How many snapshots to store, and the bytes left for whole graphs: states first, as they are small."""
    clocks = recursion.equation.clocks[: recursion.steps + 1 - recursion.equation.projects]
    state = y.numel() * y.element_size() * tensors_per_carry(recursion.solver, clocks)
    if memory < state:
        raise ValueError(f"memory: got {memory} bytes, but one stored state takes {state}; pass at least that")
    if memory < recursion.steps * state:
        return memory // state, 0
    return recursion.steps, memory - recursion.steps * state
