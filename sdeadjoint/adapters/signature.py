"""How a model is called, read through whatever is wrapped around it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn


class Signature(NamedTuple):
    """The classes of the model that says how it is called, the nearest first, and the names of its arguments."""

    classes: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def state_name(self) -> str | None:
        """The name of the argument that the state is, where the time goes by name too; else both go by position."""
        return self.names[0] if self.names and "timestep" in self.names else None


def signature_of(model: Callable[..., Any]) -> Signature:
    """The signature of the first model, from outside to inside, that names its time.

    Compiled modules, ``DistributedDataParallel``, ``peft`` models, partial functions and modules or functions that pass
    on ``*args, **kwargs`` have no names of their own. A model that does not name its time is called by position.
    """
    found: tuple[str, ...] | None = None
    owner: type = type(model)
    for inner in _layers(model, set()):
        names, passes_on = _names(inner)
        if found is None and ("timestep" in names or (names and not passes_on)):
            found = names
            owner = type(inner)
        if found is not None and isinstance(inner, nn.Module) and names == found:
            owner = type(inner)
            break
    return Signature(tuple(base.__name__ for base in owner.__mro__), found or ())


def _names(called: Any) -> tuple[tuple[str, ...], bool]:
    """The names of its arguments, and whether it takes any others and passes them on."""
    try:
        parameters = inspect.signature(called.forward if isinstance(called, nn.Module) else called).parameters.values()
    except (TypeError, ValueError):  # some builtins have none
        return (), True
    variable = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return tuple(p.name for p in parameters if p.kind not in variable), any(p.kind in variable for p in parameters)


def _layers(model: Any, seen: set[int]) -> Iterator[Any]:
    """The model and what it is wrapped around, the nearest first."""
    if model is None or id(model) in seen or not callable(model):
        return
    seen.add(id(model))
    yield model
    base = getattr(model, "get_base_model", None)  # peft
    if callable(base):
        yield from _layers(base(), seen)
    for name in ("_orig_mod", "module", "__wrapped__", "__self__"):
        yield from _layers(getattr(model, name, None), seen)
    if isinstance(model, functools.partial):
        yield from _layers(model.func, seen)
    if isinstance(model, nn.Module):
        for child in model.children():
            yield from _layers(child, seen)
    for cell in getattr(model, "__closure__", None) or ():
        try:
            yield from _layers(cell.cell_contents, seen)
        except ValueError:  # not assigned yet
            continue
