"""Nests: mappings, lists and (named) tuples of tensors and other things, as conditioning and solver states are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor


def tensors(nest: Any) -> Iterator[Tensor]:
    """The tensors of a nest, in a fixed order."""
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping):
        for value in nest.values():
            yield from tensors(value)
    elif isinstance(nest, list | tuple):
        for value in nest:
            yield from tensors(value)


def others(nest: Any) -> Iterator[Any]:
    """What a nest holds besides tensors: functions, modules, numbers."""
    if isinstance(nest, Mapping | list | tuple):
        for value in nest.values() if isinstance(nest, Mapping) else nest:
            yield from others(value)
    elif not isinstance(nest, Tensor):
        yield nest


MANY = 16


def told(nest: Any) -> str:
    """The ``repr`` of a nest, but for tensors of more than 16 numbers and longer lists, of which it tells the size."""
    if isinstance(nest, Tensor):
        return repr(nest) if nest.numel() <= MANY else f"<{nest.dtype} tensor of shape {tuple(nest.shape)}>"
    if type(nest) is dict:
        return f"{{{', '.join(f'{key!r}: {told(value)}' for key, value in nest.items())}}}"
    if type(nest) in (list, tuple) and len(nest) > MANY:
        return f"<{type(nest).__name__} of {len(nest)} from {told(nest[0])} to {told(nest[-1])}>"
    if type(nest) is list:
        return f"[{', '.join(map(told, nest))}]"
    if type(nest) is tuple:
        return f"({', '.join(map(told, nest))}{',' if len(nest) == 1 else ''})"
    return repr(nest)


def map_leaves(function: Callable[[Any], Any], nest: Any) -> Any:
    """The same nest with ``function`` applied to everything that is not a mapping, list or tuple."""
    if isinstance(nest, Tensor):
        return function(nest)
    if isinstance(nest, Mapping | list | tuple):
        return map_items(lambda value: map_leaves(function, value), nest)
    return function(nest)


def map_items(function: Callable[[Any], Any], nest: Any) -> Any:
    """A mapping, list or tuple with ``function`` applied to each of its items, of the same type.

    It is itself if no item changes. Outputs of text encoders, for instance, are dictionaries with attributes, which
    networks read.
    """
    if isinstance(nest, Mapping):
        items = {name: function(value) for name, value in nest.items()}
        same = all(items[name] is value for name, value in nest.items())
        return nest if same else rebuilt(nest, items)
    values = [function(value) for value in nest]
    same = all(new is old for new, old in zip(values, nest, strict=True))
    return nest if same else rebuilt(nest, values)


def rebuilt(nest: Any, items: Any) -> Any:
    """A mapping, list or tuple like ``nest`` with other items, given as a dictionary or a list.

    ``TypeError`` for containers that cannot be made anew: a network may ask for their type.
    """
    if type(nest) in (dict, list):
        return items
    like: Any = None
    if isinstance(nest, MutableMapping):
        like = copy.copy(nest)
        for name, value in items.items():
            like[name] = value
    elif isinstance(nest, list):
        like = copy.copy(nest)
        like[:] = items
    else:
        make = getattr(type(nest), "_make", type(nest))  # of named tuples
        with suppress(TypeError, ValueError):
            like = make(items)
    if type(like) is not type(nest):
        raise TypeError(
            f"cond: a {type(nest).__name__} cannot be rebuilt with other tensors in it; pass a dict, list or tuple"
        )
    return like


def map_tensors(function: Callable[[Tensor], Any], nest: Any) -> Any:
    """The same nest with ``function`` applied to each tensor, in the order of ``tensors``."""
    return map_leaves(lambda leaf: function(leaf) if isinstance(leaf, Tensor) else leaf, nest)


def stacked(items: Sequence[Any]) -> Any:
    """One nest from several alike, each tensor stacked along a new first dimension."""
    columns = iter([torch.stack(column) for column in zip(*(list(tensors(nest)) for nest in items), strict=True)])
    return map_tensors(lambda _: next(columns), items[0])


class _Slot:
    """Stands for a tensor that was taken out of a nest."""


_SLOT = _Slot()


def emptied(nest: Any) -> Any:
    """The nest without its tensors, for ``refilled``."""
    return map_tensors(lambda _: _SLOT, nest)


def refilled(nest: Any, values: Iterator[Tensor]) -> Any:
    """An ``emptied`` nest with its tensors put back from an iterator, as many as it had, in ``tensors``' order."""
    return map_leaves(lambda leaf: next(values) if leaf is _SLOT else leaf, nest)
