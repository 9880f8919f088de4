"""The forward sweep of ``Checkpoint``: values and snapshots, and what they depend on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import nests
from ..discretization import Carry, Discretization
from ..integrate import Observer
from .binomial import positions
from .leaves import dependencies, leaf, precedes, sequence_number, updates_batch_statistics
from .surroundings import Autocast, GeneratorStates


class Stage(NamedTuple):
    """Everything a recomputation starts from: the carry before a step and the global generators' states there."""

    carry: Carry
    generators: GeneratorStates


class Swept(NamedTuple):
    """What a forward sweep found.

    ``stages``: ``(n, stage before step n)`` for the steps to be stored and the last; ``outputs``: ``(y_N,)`` or all of
    ``y_1, ..., y_N``; ``leaves``: undeclared leaves that the network read; ``borrows_graph``: whether it read tensors
    that were computed outside of it, whose graph must then outlive each step's.
    """

    stages: list[tuple[int, Stage]]
    outputs: tuple[Tensor, ...]
    leaves: tuple[Tensor, ...]
    borrows_graph: bool


def sweep(
    recursion: Discretization,
    carry: Carry,
    declared: Iterable[Tensor],
    snapshots: int,
    autocast: Autocast,
    *,
    keep: bool,
    observe: Observer,
) -> Swept:
    """Run all steps from ``carry_0``. Each builds its graph, without activations, and drops it once it has been read.

    Without a graph the network could take other code paths than in the recomputation, and a tensor that it caches would
    lose its history in silence; with one, the values are those of ``Direct`` bit by bit and a cached tensor is noticed.
    """
    last, device, mark = recursion.steps - 1, carry.y.device, sequence_number()
    wanted = {*positions(last + 1, snapshots), last}
    stages: list[tuple[int, Stage]] = []
    outputs: list[Tensor] = []
    known, borrows = list(declared), False
    leaves: list[Tensor] = []
    generators = None
    for n in range(last + 1):
        if n in wanted:
            generators = GeneratorStates.current(device, generators)
            stages.append((n, Stage(carry, generators)))
        entry, out = evaluate(recursion, n, carry, autocast)
        found = dependencies(nests.tensors(out), [*known, *nests.tensors(entry)])
        _refuse_batch_statistics(found.nodes)
        borrows |= any(precedes(node, mark) for node in found.nodes)
        known += found.leaves
        leaves += found.leaves
        carry = nests.map_tensors(Tensor.detach, out)
        del entry, out, found
        observe(n + 1, carry)
        if keep or n == last:
            outputs.append(carry.y)
    return Swept(stages, tuple(outputs), tuple(leaves), borrows)


def evaluate(recursion: Discretization, n: int, carry: Carry, autocast: Autocast) -> tuple[Carry, Carry]:
    """Step n with its graph but without its activations: the carry it starts from, as leaves, and the one it makes."""
    entry = carry if n == 0 else nests.map_tensors(leaf, carry)
    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(_drop, _refuse), autocast.replayed():
        return entry, recursion.step(n, entry, recursion.increment(n))


def _drop(tensor: Tensor) -> None:
    return None


def _refuse(nothing: None) -> Tensor:
    raise RuntimeError(
        "network: it used a tensor that an earlier evaluation had computed, whose graph is gone (a cache kept between "
        "calls); make it a function of (x, t, cond), or use adjoint=Direct()"
    )


def _refuse_batch_statistics(nodes: Iterable[Any]) -> None:
    if any(updates_batch_statistics(node) for node in nodes):
        raise RuntimeError(
            "network: a normalisation layer in training mode updates its running statistics, which a recomputation "
            "would update again; call network.eval(), set track_running_stats=False, or pass adjoint=Direct()"
        )
