"""A digest of an object by what it does and holds, so that a study is continued by the same study only.

Rules: numbers and strings count by value, tensors and arrays by dtype, shape and bytes, containers by their items,
functions by bytecode, constants, defaults, closures and the globals they name, classes by all of that for their own and
inherited methods and plain attributes, objects by class and attributes. Code of this package counts by all its source,
that of installed packages and of Python by name and version. Anything else is refused. What an object is called in
``repr`` never counts.
"""

from __future__ import annotations

import builtins
import hashlib
import platform
import sys
from functools import lru_cache
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .contents import ATOMS, attributes, cell_of, held, is_generated, is_opaque, names_in, version

# What a class says about itself, beside what it does.
ABOUT = frozenset(
    (
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__annotations__", "__abstractmethods__"),
        *("__dataclass_fields__", "__dataclass_params__", "__match_args__", "__slots__", "__orig_bases__"),
        *("__parameters__", "__firstlineno__", "__static_attributes__", "_abc_impl"),
    )
)
NAMED = (BuiltinFunctionType, np.ufunc, type(str.join), type(str.__add__), type("".__add__))


class NoDigestError(ValueError):
    """Something whose content cannot be seen."""


def fingerprint(value: object) -> str:
    """SHA-256 of ``value`` and of the versions of Python, torch and this package; ``NoDigestError`` if it has none."""
    walk = _Walk()
    walk.add(f"{platform.python_version()} {torch.__version__} {np.__version__} {library()}")
    walk.visit(value)
    return walk.digest.hexdigest()


@lru_cache(maxsize=1)
def library() -> str:
    """A digest of this package's source."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class _Walk:
    """The digest so far, and the objects in it: each is walked once, and later named by its number."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.seen: dict[int, tuple[int, object]] = {}
        self.modules: set[tuple[str, tuple[str, ...]]] = set()

    def add(self, *texts: object) -> None:
        for text in texts:
            data = text if isinstance(text, bytes) else str(text).encode()
            self.digest.update(len(data).to_bytes(8, "big") + data)

    def visit(self, value: Any) -> None:
        if isinstance(value, ATOMS) and type(value) in ATOMS:
            self.add(type(value).__name__, repr(value))
        elif type(value) in (tuple, frozenset, set):
            items = value if type(value) is tuple else sorted(map(fingerprint, value))
            self.add(type(value).__name__, len(value))
            for item in items:
                self.visit(item)
        elif id(value) in self.seen:
            self.add("again", self.seen[id(value)][0])
        else:
            self.seen[id(value)] = (len(self.seen), value)
            self._content(value)

    def _content(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self._tensor(value)
        elif isinstance(value, np.ndarray | np.generic):
            if value.dtype.hasobject:
                raise NoDigestError(f"an array of {value.dtype}")
            self.add("array", value.dtype.str, value.shape, value.tobytes())
        elif isinstance(value, CodeType):
            self._code(value)
        elif isinstance(value, FunctionType):
            self._function(value)
        elif isinstance(value, type):
            self._class(value)
        elif isinstance(value, ModuleType):
            self._module(value, ())
        elif isinstance(value, NAMED):
            self._named(value)
        else:
            self._object(value)

    def _tensor(self, value: Tensor) -> None:
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
            raise NoDigestError(f"a {type(value).__name__} of layout {value.layout}")
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        content = plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        self.add("tensor", value.dtype, tuple(value.shape), value.requires_grad, value.device, content)

    def _named(self, value: Any) -> None:
        """What is written in C, by its name; and the object it belongs to, as in ``{}.get``."""
        module = getattr(value, "__module__", None)
        if module is not None and not self._is_known(module):
            raise NoDigestError(f"{module}.{value.__name__}, which is compiled")
        self.add("named", module, getattr(value, "__qualname__", value.__name__))
        self.visit(getattr(value, "__objclass__", None))
        owner = getattr(value, "__self__", None)
        if owner is not None:
            self.visit(owner)

    def _code(self, code: CodeType) -> None:
        self.add("code", code.co_name, code.co_code, code.co_flags, code.co_argcount, code.co_kwonlyargcount)
        self.add(code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars, code.co_exceptiontable)
        self.visit(code.co_consts)

    def _function(self, function: FunctionType) -> None:
        self.add("function", function.__module__, function.__qualname__)
        self.visit((function.__defaults__, function.__kwdefaults__))
        for cell in function.__closure__ or ():
            self.visit(cell_of(cell))
        if self._is_known(function.__module__):
            return
        self.visit((function.__code__, dict(vars(function))))
        scope = function.__globals__
        for name in names_in(function.__code__):
            if name in scope:
                self._global(name, scope[name], function.__code__)
            elif not hasattr(builtins, name):
                for module in (f"{scope.get('__package__')}.{name}", name):  # an import inside the function
                    if module in sys.modules:
                        self._global(name, sys.modules[module], function.__code__)

    def _global(self, name: str, value: Any, code: CodeType) -> None:
        self.add("global", name)
        if isinstance(value, ModuleType):
            self._module(value, tuple(names_in(code)))
        else:
            self.visit(value)

    def _module(self, module: ModuleType, names: tuple[str, ...]) -> None:
        """A module of the user's: its source, and those of its attributes that the code names."""
        self.add("module", module.__name__)
        if self._is_known(module.__name__) or (module.__name__, names) in self.modules:
            return
        self.modules.add((module.__name__, names))
        path = getattr(module, "__file__", None)
        if path is None or not Path(path).is_file():
            raise NoDigestError(f"the module {module.__name__}, which has no file")
        self.add(Path(path).read_bytes())
        for name in names:
            if name in vars(module):
                found = vars(module)[name]
                self.add("global", name)
                self._module(found, names) if isinstance(found, ModuleType) else self.visit(found)

    def _class(self, kind: type) -> None:
        self.add("class", kind.__module__, kind.__qualname__)
        if self._is_known(kind.__module__):
            return
        for base in kind.__bases__:
            self.visit(base)
        for name, value in sorted(vars(kind).items()):
            if name not in ABOUT and not is_generated(kind, value):
                self.add("attribute", name)
                self.visit(value)

    def _object(self, value: Any) -> None:
        """Its class and its attributes; a few objects of Python's own by what they hold."""
        self.visit(type(value))
        parts = held(value)
        if parts is not None:
            self.add(len(parts))
            for item in parts:
                self.visit(item)
            return
        if is_opaque(type(value)):
            raise NoDigestError(f"{type(value).__module__}.{type(value).__qualname__}, whose content cannot be seen")
        for name, attribute in sorted(attributes(value), key=lambda pair: pair[0]):
            self.add("attribute", name)
            self.visit(attribute)

    def _is_known(self, module: str | None) -> bool:
        """Whether the code is Python's, this package's or an installed one's; its version is added."""
        known = version((module or "").split(".")[0])
        self.add(known)
        return bool(known)
