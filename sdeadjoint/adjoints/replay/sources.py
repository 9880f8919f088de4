"""What a drift can be seen to read besides its arguments: modules, tensors and plain values, also through closures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import CellType, CodeType, FunctionType, MethodType
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

DEPTH = 8  # how many objects deep a closure is followed
ITEMS = 64  # longer lists and dictionaries are data, not settings
_CONTAINERS = (dict, list, tuple, set, frozenset)


class Place(NamedTuple):
    """Where a value stands: in a closure's cell, or in a dictionary under a name.

    ``settings``: whether all that stands there is a setting, as with a module's attributes. Functions also read what
    they keep books with: counters, labels, lists.
    """

    holder: Any
    name: str
    settings: bool = False

    @property
    def is_plain_setting(self) -> bool:
        """Whether a number, a label or nothing stands there that a module's forward pass may change, as a counter."""
        return self.settings and is_plain(self.holder.get(self.name))

    @property
    def is_constant_tensor(self) -> bool:
        """Whether a tensor without gradient stands there that a module's forward pass may change, as an average."""
        value = self.holder.get(self.name) if self.settings else None
        return isinstance(value, Tensor) and not value.requires_grad

    def read(self) -> Any:
        """What stands there now."""
        try:
            return self.holder.cell_contents if isinstance(self.holder, CellType) else self.holder[self.name]
        except (ValueError, KeyError):
            return "(nothing)"


@dataclass
class Sources:
    """What was found.

    Args:
        modules: each once.
        is_scripted: whether there is TorchScript, which rewrites itself between its first calls.
        tensors: those that stand in closures and attributes; parameters and buffers are the modules'.
        places: of plain values, parameters and buffers.
        generators: of random numbers, that are not torch's global ones.
    """

    modules: list[nn.Module] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    generators: list[torch.Generator] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    is_scripted: bool = False

    @classmethod
    def of(cls, *roots: Any) -> Sources:
        """What the roots, functions or modules, can be seen to read: in Python code, not in extensions."""
        found = cls()
        for root in roots:
            found.visit(root, frozenset(), DEPTH)
        return found

    def visit(self, value: Any, names: frozenset[str], depth: int) -> None:
        """Look into a value; of an object that is neither function nor module, at the attributes ``names``."""
        if depth == 0 or id(value) in self.seen or is_plain(value) or isinstance(value, type):
            return
        self.seen.add(id(value))
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, torch.Generator):
            self.generators.append(value)
        elif isinstance(value, nn.Module):
            for module in value.modules():
                self._visit_module(module, names, depth)
        elif isinstance(value, FunctionType):
            self._visit_function(value, depth)
        elif isinstance(value, torch.jit.ScriptFunction):
            self.is_scripted = True
        elif isinstance(value, MethodType):
            self.visit(value.__func__, names, depth)
            self.visit(value.__self__, _names_read(value.__self__, value.__name__), depth)
        elif isinstance(value, functools.partial):
            for part in (value.func, *value.args, *value.keywords.values()):
                self.visit(part, names, depth - 1)
        elif isinstance(value, list | tuple | Mapping):
            if len(value) <= ITEMS:
                for item in value.values() if isinstance(value, Mapping) else value:
                    self.visit(item, names, depth - 1)
        else:
            own = _names_read(value, "__call__")
            self._visit_attributes(getattr(value, "__dict__", {}), names | own, depth)

    def _visit_module(self, module: nn.Module, names: frozenset[str], depth: int) -> None:
        self.seen.add(id(module))
        self.modules.append(module)
        if isinstance(module, torch.jit.ScriptModule):
            self.is_scripted = True
            return
        parts: tuple[dict[str, Any], ...] = (module._parameters, module._buffers, module._modules)
        self.places += [Place(held, name) for held in parts for name in held]
        self.places += [Place(module.__dict__, name) for name in ("forward", "_forward_hooks", "_forward_pre_hooks")]
        owner: Any = type(module)
        names, inherited = _names_of_modules(owner, names)
        # The wrappers of several processes keep books of their own, for each forward pass anew.
        settings = not type(module).__module__.startswith(("torch.distributed", "torch.nn.parallel"))
        self._visit_attributes(module.__dict__, names, depth, settings=settings)
        # What the class has, and the module may get.
        self.places += [Place(module.__dict__, name, settings) for name in inherited if name not in module.__dict__]

    def _visit_attributes(
        self, held: Mapping[str, Any], names: frozenset[str], depth: int, *, settings: bool = False
    ) -> None:
        for name in sorted(held.keys() & names):
            self.places.append(Place(held, name, settings))
            self.visit(held[name], names, depth - 1)

    def _visit_function(self, function: FunctionType, depth: int) -> None:
        names = _names(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.places.append(Place(cell, name))
            try:
                self.visit(cell.cell_contents, names, depth - 1)
            except ValueError:
                continue  # an empty cell
        own = function.__globals__
        for name in sorted(own.keys() & names):
            value = own[name]
            if is_plain(value):
                self.places.append(Place(own, name))
            elif not isinstance(value, FunctionType) or value.__globals__ is own:
                self.visit(value, names, depth - 1)
        for value in (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()):
            self.visit(value, names, depth - 1)
        if (inner := getattr(function, "__wrapped__", None)) is not None:
            self.visit(inner, names, depth - 1)

    @property
    def parameters(self) -> Iterator[Tensor]:
        """The modules' parameters and buffers, and the other tensors."""
        for module in self.modules:
            yield from module.parameters(recurse=False)
            yield from module.buffers(recurse=False)
        yield from self.tensors

    @property
    def dtypes(self) -> set[torch.dtype]:
        """Floating dtypes of parameters, buffers and tensors, and those that are read by name."""
        found = {tensor.dtype for tensor in self.parameters}
        found |= {value for place in self.places if isinstance(value := place.read(), torch.dtype)}
        return {dtype for dtype in found if dtype.is_floating_point}


@dataclass
class Watch:
    """Values that a forward sweep leaves as they are, to be found unchanged by the backward pass.

    What the forward sweep itself changes (a counter, a cache) is not watched: the states and graphs of the
    recomputation tell whether it matters.
    """

    values: list[Watched]

    @classmethod
    def begin(cls, sources: Sources) -> Watch:
        return cls([Watched.at(place) for place in sources.places])

    def settle(self) -> None:
        """Forget what changed since the beginning."""
        self.values = [each for each in self.values if not each.is_another]

    def changed(self) -> str | None:
        """The name of the first value that is another now."""
        return next((each.place.name for each in self.values if each.is_another), None)


class Watched(NamedTuple):
    """A value that stood in a place; ``content``: what could be compared of a container, whose items may change."""

    place: Place
    value: Any
    content: Any

    @classmethod
    def at(cls, place: Place) -> Watched:
        value = place.read()
        return cls(place, value, comparable(value, place.settings) if isinstance(value, _CONTAINERS) else None)

    @property
    def is_another(self) -> bool:
        """Whether something else stands there now."""
        place, value, content = self
        now = place.read()
        if not isinstance(value, _CONTAINERS):
            if now is value:
                return False
            content = comparable(value, place.settings)
        return bool(comparable(now, place.settings) != content)


def _names_read(owner: object, method: str) -> frozenset[str]:
    found: frozenset[str] = names_read(type(owner), method)  # type: ignore[arg-type]
    return found


@functools.lru_cache(maxsize=4096)
def names_read(owner: type, method: str) -> frozenset[str]:
    """The names in the code of a method and of the methods and properties of its class that it names."""
    names: set[str] = set()
    stack = [method]
    while stack:
        found = inspect.getattr_static(owner, stack.pop(), None)
        for code in _codes(found):
            new = _names(code) - names
            names |= new
            stack += new
    return frozenset(names)


@functools.lru_cache(maxsize=4096)
def _names_of_modules(owner: type, names: frozenset[str]) -> tuple[frozenset[str], list[str]]:
    """The names that a class of modules reads, given those that its caller does; under which it has a plain value."""
    read: frozenset[str] = names_read(owner, "forward")
    names = names | read | {"forward"}
    return names, sorted(_plain_names(owner, names))


def _plain_names(owner: type, names: frozenset[str]) -> frozenset[str]:
    """Those of the names under which a class has a plain value."""
    missing = object()
    found = ((name, inspect.getattr_static(owner, name, missing)) for name in names)
    return frozenset(name for name, value in found if is_plain(value))


def _codes(attribute: Any) -> Iterator[CodeType]:
    """The code of a class's attribute, where it has some of its own; not what every module inherits."""
    functions: tuple[Any, ...] = (attribute,)
    if isinstance(attribute, property):
        functions = (attribute.fget,)
    elif isinstance(attribute, staticmethod | classmethod):
        functions = (attribute.__func__,)
    elif isinstance(attribute, functools.cached_property):
        functions = (attribute.func,)
    for function in functions:
        while isinstance(function, FunctionType) and function.__globals__ is not nn.Module.__call__.__globals__:
            yield function.__code__
            function = getattr(function, "__wrapped__", None)


@functools.lru_cache(maxsize=4096)
def _names(code: CodeType) -> frozenset[str]:
    inner = (const for const in code.co_consts if isinstance(const, CodeType))
    return frozenset(code.co_names).union(*map(_names, inner))


def is_plain(value: Any) -> bool:
    """Whether a value is a number, a label, a setting or None: nothing that can be changed in place."""
    return value is None or isinstance(value, int | float | complex | str | bytes | torch.dtype | torch.device | Enum)


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

    In small dictionaries their values, and among settings the items of other small containers.
    """
    if isinstance(value, float) and value != value:
        return "nan"
    if isinstance(value, float | complex | torch.dtype) or (settings and is_plain(value)):
        return value
    if isinstance(value, Tensor) or callable(value):
        return Same(value)
    if depth == 0 or not isinstance(value, _CONTAINERS) or len(value) > ITEMS:
        return None
    if isinstance(value, dict):
        return {name: comparable(item, settings, depth - 1) for name, item in value.items()}
    if not settings:
        return None
    return [type(value), *(comparable(item, settings, depth - 1) for item in value)]
