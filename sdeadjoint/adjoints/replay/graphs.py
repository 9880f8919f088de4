"""What the graph of a step says of it: what it depends on, and what tells it from another one."""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, compress, islice, repeat
from operator import attrgetter, is_, itemgetter, methodcaller
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd.graph import get_gradient_edge

from .guard import Gate


class Dependencies(NamedTuple):
    """The leaves that outputs depend on, and all graph nodes in between."""

    leaves: tuple[Tensor, ...]
    nodes: tuple[Any, ...]

    def includes(self, tensor: Tensor) -> bool:
        """Whether a tensor that is not a leaf was met on the way."""
        edge = get_gradient_edge(tensor)
        if edge.node not in self.nodes and type(edge.node) is not _GATE:
            return False
        return any((edge.node, edge.output_nr) in node.next_functions for node in self.nodes)

    def leaves_but(self, known: Iterable[Tensor]) -> list[Tensor]:
        """The leaves that are none of the ``known`` tensors."""
        identities = set(map(id, known))
        return [leaf for leaf in self.leaves if id(leaf) not in identities]

    def precede(self, number: int) -> bool:
        """Whether a node was there before ``sequence_number()`` gave ``number``.

        In doubt, outside of the main thread, yes: PyTorch numbers the nodes of each thread by themselves.
        """
        if threading.current_thread() is not threading.main_thread():
            return True
        return min(map(methodcaller("_sequence_nr"), self.nodes), default=number) < number


def dependencies(outputs: Iterable[Tensor]) -> Dependencies:
    """Walk the graphs of ``outputs`` back to their leaves, in layers and without a loop over nodes in Python.

    An entry of a step (see ``Guard``) counts as its leaf.
    """
    found: dict[Any, None] = dict.fromkeys((None, *(_node_of(tensor) for tensor in outputs if tensor.requires_grad)))
    front = list(found)[1:]
    while front:
        before = len(found)
        edges = map(_EDGES, [node for node in front if type(node) is not _GATE])
        found.update(dict.fromkeys(map(_SOURCE, chain.from_iterable(edges))))
        front = list(islice(reversed(found), len(found) - before))
    del found[None]  # stands for what needs no gradient
    kinds = list(map(type, found))
    ends = compress(found, map(is_, kinds, repeat(_LEAF)))
    gates = compress(found, map(is_, kinds, repeat(_GATE)))
    inner = [kind is not _LEAF and kind is not _GATE for kind in kinds]
    return Dependencies((*map(_VARIABLE, ends), *map(_OWN, gates)), tuple(compress(found, inner)))


def _node_of(tensor: Tensor) -> Any:
    return get_gradient_edge(tensor).node


class Fingerprint(NamedTuple):
    """What tells a step's graph from another's: how many nodes of each type it has, and its leaves.

    ``kinds``: None where some nodes are opaque; ``leaves``: arguments by their place, all others by identity;
    ``inner``: how many leaves the step makes itself, anew at each evaluation.
    """

    kinds: Counter[type] | None
    leaves: frozenset[int]
    inner: int

    def differs(self, other: Fingerprint) -> str:
        """How another fingerprint differs, in words; empty if it does not."""
        if self[1:] != other[1:]:
            was, now = (len(found.leaves) + found.inner for found in (self, other))
            return f"it depends on {'other' if was == now else now} tensors that require gradients in place of {was}"
        if self.kinds is None or other.kinds is None or self.kinds == other.kinds:
            return ""
        counts = [(kind.__name__, self.kinds[kind], other.kinds[kind]) for kind in self.kinds | other.kinds]
        name, was, now = next(found for found in counts if found[1] != found[2])
        return f"{now} operations {name} in place of {was}"


def kinds_of(found: Dependencies, *, opaque: bool) -> Counter[type] | None:
    """How many nodes of each type there are; None for compiled or scripted code, which may be made anew at any call."""
    kinds = Counter(map(type, found.nodes))
    # Autocast casts a weight once and keeps it until its context ends, which is another one in each recomputation.
    del kinds[_CAST]
    return None if opaque or any(kind.__name__.startswith("CompiledFunction") for kind in kinds) else kinds


def places_of(found: Dependencies, known: Sequence[Tensor]) -> frozenset[int]:
    """Which of the known tensors are among the leaves, by their place."""
    met = set(map(id, found.leaves))
    return frozenset(place for place, tensor in enumerate(known) if id(tensor) in met)


NO_NUMBERS = array("d")


def numbers_of(found: Dependencies) -> array[float]:
    """The numbers of Python by which a graph multiplies and divides, in no order.

    They are left where they are when activations are dropped. Where these are kept, tensors of no dimension that stand
    in the same places count as well.
    """
    numbers = array("d")
    for node in compress(found.nodes, map(_FACTORS.__contains__, map(type, found.nodes))):
        try:
            value = _number(getattr(node, _FACTORS[type(node)]))
        except RuntimeError:
            continue  # the network has pulled back through this node, and what it saved is freed
        if isinstance(value, complex):
            numbers.extend((value.real, value.imag))
        elif value is not None:
            numbers.append(value)
    return numbers


def _number(saved: Any) -> complex | float | None:
    """A number that a node saves, also in the shape of a tensor; None if it saves another tensor, or none."""
    if type(saved) is not torch._C._autograd.SavedTensor:
        return saved if isinstance(saved, int | float | complex) else None
    value = getattr(saved, "data", None)  # releases before 2.13 do not show it
    if type(value) is not Tensor or value.ndim or not value.is_cpu or _functorch.is_functorch_wrapped_tensor(value):
        return None
    # It lies on the host: nobody waits for it.
    number: complex | float = (value.float() if value.dtype == torch.bfloat16 else value).detach().numpy().item()
    return number


def missing_number(expected: array[float], got: array[float], relative: float) -> float | None:
    """The first of the ``expected`` numbers that is not among those ``got``, up to round-off of what they come from."""
    if expected == got:
        return None
    left = Counter(expected)
    left.subtract(Counter(got))
    others = sorted(number for number, count in left.items() if count < 0)
    for number, count in left.items():
        if count > 0 and number == number and not _is_near(number, others, relative):
            return number
    return None


def _is_near(number: float, others: Sequence[float], relative: float) -> bool:
    """Whether one of the sorted ``others`` differs by round-off alone."""
    place = bisect_left(others, number)
    return any(abs(number - other) <= relative * abs(number) for other in others[max(place - 1, 0) : place + 1])


def updates_batch_statistics(node: Any) -> bool:
    """Whether a graph node is a normalisation that changed its running statistics."""
    if not getattr(node, "_saved_training", False):
        return False
    try:
        return node._saved_running_mean is not None
    except RuntimeError:
        return True  # they are there, but were dropped from the graph with the activations


def sequence_number() -> int:
    """A number that graph nodes made later on this thread exceed; see ``Dependencies.precede``."""
    with torch.enable_grad():
        return int(torch.zeros((), device="cpu", requires_grad=True).mul(1).grad_fn._sequence_nr())  # type: ignore[union-attr]


def _type_of_casts() -> type:
    with torch.inference_mode(False), torch.enable_grad():
        return type(torch.zeros((), dtype=torch.float32, device="cpu", requires_grad=True).to(torch.float64).grad_fn)


def _type_of_leaves() -> type:
    with torch.inference_mode(False), torch.enable_grad():
        return type(get_gradient_edge(torch.zeros((), device="cpu", requires_grad=True)).node)


def _types_of_factors() -> dict[type, str]:
    """Where each type of node that scales by a number keeps it."""
    with torch.inference_mode(False), torch.enable_grad():
        one = torch.ones((), device="cpu", requires_grad=True)
        factors = {type((one * 2.0).grad_fn): "_raw_saved_other", type((one / 2.0).grad_fn): "_raw_saved_other"}
        terms = (torch.add(one, one, alpha=2), torch.sub(one, one, alpha=2))
        factors |= {type(made.grad_fn): "_saved_alpha" for made in terms}
        return factors | {type(torch.lerp(one, one, 0.5).grad_fn): "_saved_weight"}


_FACTORS = _types_of_factors()
_GATE: type = Gate._backward_cls
_LEAF = _type_of_leaves()
_CAST = _type_of_casts()
_EDGES, _SOURCE = attrgetter("next_functions"), itemgetter(0)
_VARIABLE, _OWN = attrgetter("variable"), attrgetter("own")
