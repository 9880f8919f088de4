"""What a drift can be seen to read besides its arguments: modules, tensors and plain values, also through closures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import CodeType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn

from .places import ITEMS, Places, is_plain

DEPTH = 8  # how many objects deep a closure is followed

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
    places: Places = field(default_factory=Places)
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
        for held in (module._parameters, module._buffers, module._modules):
            self.places.add(held, held)
        self.places.add(module.__dict__, ("forward", "_forward_hooks", "_forward_pre_hooks"))
        owner: Any = type(module)
        names, inherited = _names_of_modules(owner, names)
        # The wrappers of several processes keep books of their own, for each forward pass anew.
        settings = not type(module).__module__.startswith(("torch.distributed", "torch.nn.parallel"))
        self._visit_attributes(module.__dict__, names, depth, settings=settings)
        # What the class has, and the module may get.
        missing = [name for name in inherited if name not in module.__dict__]
        self.places.add(module.__dict__, missing, settings=settings)

    def _visit_attributes(
        self, held: Mapping[str, Any], names: frozenset[str], depth: int, *, settings: bool = False
    ) -> None:
        read = sorted(held.keys() & names)
        self.places.add(held, read, settings=settings)
        for name in read:
            self.visit(held[name], names, depth - 1)

    def _visit_function(self, function: FunctionType, depth: int) -> None:
        names = _names(function.__code__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            self.places.add_cell(cell, name)
            try:
                self.visit(cell.cell_contents, names, depth - 1)
            except ValueError:
                continue  # an empty cell
        own = function.__globals__
        for name in sorted(own.keys() & names):
            value = own[name]
            if is_plain(value):
                self.places.add(own, [name])
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
        found |= {value for value in self.places.read() if isinstance(value, torch.dtype)}
        return {dtype for dtype in found if dtype.is_floating_point}


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
