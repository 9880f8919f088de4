"""What a computation depends on, read from its autograd graph."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.graph import get_gradient_edge


class Dependencies(NamedTuple):
    """The leaves that outputs depend on, all graph nodes in between, and the edges (node, output) walked."""

    leaves: tuple[Tensor, ...]
    nodes: tuple[Any, ...]
    edges: set[tuple[Any, int]]

    def includes(self, tensor: Tensor) -> bool:
        """Whether a tensor that is not a leaf was met on the way."""
        edge = get_gradient_edge(tensor)
        return (edge.node, edge.output_nr) in self.edges

    def leaves_but(self, known: Iterable[Tensor]) -> list[Tensor]:
        """The leaves that are none of the ``known`` tensors."""
        identities = {id(tensor) for tensor in known}
        return [leaf for leaf in self.leaves if id(leaf) not in identities]


def dependencies(outputs: Iterable[Tensor]) -> Dependencies:
    """Walk the graphs of ``outputs`` back to their leaves. Linear in the number of nodes (about a microsecond each)."""
    leaves: list[Tensor] = []
    nodes = []
    seen = set()
    edges: set[tuple[Any, int]] = set()
    stack: list[Any] = [get_gradient_edge(tensor).node for tensor in outputs if tensor.requires_grad]
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if type(node).__name__ == "AccumulateGrad":
            leaves.append(node.variable)
            continue
        nodes.append(node)
        edges.update(node.next_functions)
        stack += [source for source, _ in node.next_functions if source is not None]
    return Dependencies(tuple(leaves), tuple(nodes), edges)


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
    """Whether the node was there before ``sequence_number()`` gave ``number``; in doubt, outside the main thread, yes.

    (PyTorch numbers the nodes of each thread by themselves.)
    """
    return int(node._sequence_nr()) < number or threading.current_thread() is not threading.main_thread()


@contextmanager
def hooks_off(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Without the hooks that users registered on leaves, which are for a gradient's total, not for a step's part."""
    hooked = [(tensor, tensor._backward_hooks) for tensor in tensors if tensor.is_leaf and tensor._backward_hooks]
    for tensor, _ in hooked:
        tensor._backward_hooks = None
    try:
        yield
    finally:
        for tensor, hooks in hooked:
            tensor._backward_hooks = hooks


def leaf(tensor: Tensor) -> Tensor:
    """The tensor cut from its history, as a leaf that requires a gradient.

    Its gradient is asked for by name. One that is accumulated comes from a loss that reaches into the sampler.
    """
    cut = tensor.detach().requires_grad_()
    cut.register_post_accumulate_grad_hook(_refuse_use_outside)
    return cut


def _refuse_use_outside(cut: Tensor) -> None:
    cut.grad = None
    raise RuntimeError(
        "network: a tensor that it computed inside of the sampler (recorded by it, or by a hook) is used in the loss, "
        "and its gradient would end there; measure the loss on what sample returns (trajectory=True has every "
        "state), or pass adjoint=Direct()"
    )


def distinct(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors without repetitions, in order."""
    return list({id(tensor): tensor for tensor in tensors}.values())
