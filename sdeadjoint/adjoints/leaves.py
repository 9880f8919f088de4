"""What a computation depends on, read from its autograd graph."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


class Dependencies(NamedTuple):
    """Leaves that outputs depend on beyond the known tensors, and all graph nodes in between."""

    leaves: tuple[Tensor, ...]
    nodes: tuple[Any, ...]


def dependencies(outputs: Iterable[Tensor], known: Iterable[Tensor]) -> Dependencies:
    """Walk the graphs of ``outputs`` backwards, stopping at the ``known`` tensors, and collect the other leaves.

    Any tensor that requires a gradient may be ``known``, a leaf or not. Linear in the number of graph nodes (about
    a microsecond each).
    """
    stop = {_edge(tensor) for tensor in known if tensor.requires_grad}
    leaves: list[Tensor] = []
    nodes = []
    seen = set()
    stack = [edge for tensor in outputs if tensor.requires_grad and (edge := _edge(tensor)) not in stop]
    while stack:
        node, _ = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            leaves.append(node.variable)
            continue
        nodes.append(node)
        stack += [edge for edge in node.next_functions if edge[0] is not None and edge not in stop]
    return Dependencies(tuple(leaves), tuple(nodes))


def updates_batch_statistics(node: Any) -> bool:
    """Whether a graph node is a normalisation that changed its running statistics."""
    if "BatchNorm" not in type(node).__name__ or not node._saved_training:
        return False
    try:
        return node._saved_running_mean is not None
    except RuntimeError:
        return True  # they are there, but were dropped from the graph with the activations


def sequence_number() -> int:
    """A number that graph nodes made later on this thread exceed; see ``precedes``."""
    with torch.enable_grad():
        return int(torch.zeros((), requires_grad=True).mul(1).grad_fn._sequence_nr())  # type: ignore[union-attr]


def precedes(node: Any, number: int) -> bool:
    """Whether the node was there before ``sequence_number()`` gave ``number``."""
    return int(node._sequence_nr()) < number


def leaf(tensor: Tensor) -> Tensor:
    """The tensor cut from its history, as a leaf that requires a gradient."""
    return tensor.detach().requires_grad_()


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors without repetitions, in order."""
    return list({id(tensor): tensor for tensor in tensors}.values())


def _edge(tensor: Tensor) -> tuple[Any, int]:
    edge: GradientEdge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr
