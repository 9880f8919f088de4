"""Where the values stand that a drift can be seen to read, and whether they are still the same."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from itertools import compress, count, repeat
from operator import is_not
from types import CellType
from typing import Any

import numpy as np
import torch
from torch import Tensor

ITEMS = 64  # longer lists and dictionaries, and arrays of more numbers, are data, not settings
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_CHANGING = (*_CONTAINERS, np.ndarray)
_PLAIN = (int, float, complex, str, bytes, np.generic, torch.dtype, torch.device, Enum)
_EXACT = (float, complex, torch.dtype)
_GET: Callable[[Any, str, Any], Any] = dict.get


class Special(Enum):
    NOTHING = "no value stands there"
    LARGE = "a tensor that is too large to be copied, or has no values yet"


class Places:
    """Dictionaries with a name in each, and cells of closures: three lists, as there are thousands of places.

    ``settings``: of each place, whether all that stands there is a setting, as with a module's attributes. Functions
    also read what they keep books with: counters, labels, lists.
    """

    def __init__(self) -> None:
        self.holders = list[dict[str, Any]]()
        self.names = list[str]()
        self.settings = list[bool]()
        self._cells = dict[int, CellType]()

    def add(self, holder: Any, names: Iterable[str], *, settings: bool = False) -> None:
        """Add a dictionary's places under some names."""
        before = len(self.names)
        self.names += names
        added = len(self.names) - before
        self.holders += [holder] * added
        self.settings += [settings] * added

    def add_cell(self, cell: CellType, name: str) -> None:
        """Add a closure's cell."""
        self._cells[len(self.names)] = cell
        self.add({}, [name])

    def __len__(self) -> int:
        return len(self.names)

    def read(self) -> list[Any]:
        """What stands in all of them now."""
        values = list(map(_GET, self.holders, self.names, repeat(Special.NOTHING)))
        for k, cell in self._cells.items():
            try:
                values[k] = cell.cell_contents
            except ValueError:
                continue  # an empty cell
        return values

    def of_settings(self) -> Iterator[tuple[dict[str, Any], str, Any]]:
        """Dictionary, name and present value of those of settings."""
        return compress(zip(self.holders, self.names, self.read(), strict=True), self.settings)

    def get(self, k: int) -> Any:
        """What stands in place k of a dictionary."""
        return self.holders[k].get(self.names[k], Special.NOTHING)

    def put(self, k: int, value: Any) -> None:
        """Put a value into place k, or nothing."""
        if value is Special.NOTHING:
            self.holders[k].pop(self.names[k], None)
        else:
            self.holders[k][self.names[k]] = value


class Watch:
    """Values that a forward sweep leaves as they are, to be found unchanged by the backward pass.

    What the forward sweep itself changes (a counter, a cache) is not watched: the states and graphs of the
    recomputation tell whether it matters.
    """

    def __init__(self, places: Places) -> None:
        self._places = places
        self._values = places.read()
        # What could be compared of containers, whose items may change.
        containers = [(k, value) for k, value in enumerate(self._values) if isinstance(value, _CHANGING)]
        self._contents = {k: self._comparable(k, value) for k, value in containers if not _is_constant(value)}
        self._empty = frozenset(k for k, value in containers if not isinstance(value, np.ndarray) and not value)
        self._left_out = set[int]()

    def settle(self) -> None:
        """Forget what changed since the beginning."""
        self._left_out = set(self._others())

    def changed(self) -> str | None:
        """The name of the first value that is another now."""
        return next((self._places.names[k] for k in self._others() if k not in self._left_out), None)

    def _others(self) -> Iterator[int]:
        """Where something else stands now."""
        now, values = self._places.read(), self._values
        for k in compress(count(), map(is_not, now, values)):
            if k not in self._contents and self._comparable(k, now[k]) != self._comparable(k, values[k]):
                yield k
        for k, content in self._contents.items():
            is_still_empty = k in self._empty and now[k] is values[k] and not now[k]
            if not is_still_empty and self._comparable(k, now[k]) != content:
                yield k

    def _comparable(self, k: int, value: Any) -> Any:
        return comparable(value, self._places.settings[k])


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a label, a setting or None: nothing that can be changed in place."""
    return value is None or isinstance(value, _PLAIN)


def _is_constant(value: Any) -> bool:
    """Whether a container cannot change while it is the same object."""
    return type(value) in (tuple, frozenset) and all(map(is_plain, value))


class Same:
    """Equals what holds the same object. It is kept alive: its number would go to another one else."""

    __slots__ = ("value",)

    def __init__(self, value: Any) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def comparable(value: Any, settings: bool, depth: int = 3) -> Any:
    """What can be compared of a value: floats, plain ones among settings, and functions and tensors by identity.

    In small dictionaries their values, and among settings the items of other small containers and of small arrays.
    """
    if isinstance(value, float | np.floating) and value != value:
        return "nan"
    if isinstance(value, _EXACT) or (settings and is_plain(value)):
        return value
    if isinstance(value, Tensor) or callable(value):
        return Same(value)
    if isinstance(value, np.ndarray):
        return (value.shape, value.dtype, value.tobytes()) if settings and value.size <= ITEMS else None
    if depth == 0 or not isinstance(value, _CONTAINERS) or len(value) > ITEMS:
        return None
    if isinstance(value, dict):
        return {name: comparable(item, settings, depth - 1) for name, item in value.items()}
    if not settings:
        return None
    return [type(value), *(comparable(item, settings, depth - 1) for item in value)]
