"""A digest of a study, so that a record is continued by the same study only.

A study counts by what ``pickle`` would keep of it: numbers and strings by value, tensors and arrays by dtype, shape
and bytes, containers by their items, any other object by its class and its state. A class or a function counts by its
name and by its code: for installed packages, and for Python itself, their versions; for this package all of its
source; for anything else the source of its module and of every module that this one imports and that is not installed
either.

What ``pickle`` cannot keep has no digest: a lambda, a function or class made inside of a function, a lock. Neither has
a random generator, whose state changes as it is used, nor code without a file, as in a notebook. What an object is
called in ``repr`` never counts.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
import platform
import random
import sys
from collections.abc import Iterator
from functools import cached_property, lru_cache
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

PACKAGE = __name__.split(".")[0]
ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device)
GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)


class NoDigestError(ValueError):
    """Something that cannot be compared with what another run had in its place."""


def fingerprint(value: object) -> str:
    """SHA-256 of ``value`` and of the versions of Python, torch and this package; ``NoDigestError`` if it has none."""
    walk = _Walk()
    walk.add(platform.python_version(), torch.__version__, np.__version__, library())
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

    def add(self, *texts: object) -> None:
        for text in texts:
            data = text if isinstance(text, bytes) else str(text).encode()
            self.digest.update(len(data).to_bytes(8, "big") + data)

    def visit(self, value: Any) -> None:
        if type(value) in ATOMS:
            self.add(type(value).__name__, repr(value))
        elif type(value) in (set, frozenset):
            self.add(type(value).__name__, *sorted(map(fingerprint, value)))
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
        elif type(value) in (tuple, list, dict):
            self.add(type(value).__name__, len(value))
            for item in value.items() if type(value) is dict else value:
                self.visit(item)
        elif isinstance(value, type | FunctionType | BuiltinFunctionType):
            self._named(value)
        elif isinstance(value, GENERATORS):
            raise NoDigestError(f"a {type(value).__qualname__}, whose state changes as it is used")
        else:
            self._object(value)

    def _tensor(self, value: Tensor) -> None:
        if type(value) not in (Tensor, nn.Parameter) or value.layout != torch.strided or value.is_quantized:
            raise NoDigestError(f"a {type(value).__name__} of layout {value.layout}")
        plain = value.detach().cpu().resolve_conj().resolve_neg().contiguous().reshape(-1)
        content = plain.view(torch.uint8).numpy().tobytes() if plain.numel() else b""
        self.add("tensor", value.dtype, tuple(value.shape), value.requires_grad, value.device, content)

    def _named(self, value: Any) -> None:
        """Add what is found by its name: a class or a function."""
        name = value.__qualname__
        self.add("named", name)
        if "<" in name:
            raise NoDigestError(f"{name}, which is made where it is used; give it a name in a module")
        if isinstance(value, BuiltinFunctionType) and isinstance(value.__self__, type):
            self.visit(value.__self__)
        if isinstance(value, FunctionType):
            self.visit(vars(value))
        for part in value.__mro__ if isinstance(value, type) else (value,):
            self.add(*code_of(part))

    def _object(self, value: Any) -> None:
        """Add an object's class and state as ``pickle`` takes them apart; what it has cached is left out."""
        kind = type(value)
        try:
            parts = value.__reduce_ex__(4)
        except Exception as error:
            raise NoDigestError(f"a {kind.__qualname__}, which cannot be pickled ({error})") from None
        self.visit(kind)
        if isinstance(parts, str):  # the name of a constant in a module
            self.add(parts, *code_of(value))
            return
        cached = {name for base in kind.__mro__ for name, of in vars(base).items() if type(of) is cached_property}
        for part in parts:
            if isinstance(part, dict):
                part = {name: item for name, item in sorted(part.items()) if name not in cached}
            self.visit(list(part) if isinstance(part, Iterator) else part)


# ---------------------------------------------------------------- code


def code_of(value: Any) -> Iterator[str]:
    """Name the code that a class or function belongs to: versions, or sources where there are none."""
    module = getattr(value, "__module__", None) or "builtins"
    yield module
    version = _version(module)
    if version:
        yield version
        return
    sources = _sources(module)
    _check_loaded(value, sources[module])
    for name, source in sorted(sources.items()):
        yield from (name, source)


def _version(module: str) -> str:
    """The version of a module of Python's or of an installed package; empty for one of the user's own."""
    top = module.split(".")[0]
    if top in (PACKAGE, "builtins") or top in sys.stdlib_module_names:
        return "known"
    path = _path(top)
    if path is None or not {"site-packages", "dist-packages"} & set(path.parts):
        return ""
    return str(getattr(sys.modules.get(top), "__version__", "")) or hashlib.sha256(path.read_bytes()).hexdigest()


def _sources(module: str) -> dict[str, str]:
    """The source of a module of the user's, and of those of the user's that it imports, anywhere in it."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = None if name in found or _version(name) else _path(name)
        if path is not None:
            if path.suffix != ".py":
                raise NoDigestError(f"code of {path}, which is not Python source")
            found[name] = path.read_text()
            waiting += _imports(found[name], name)
    if module not in found:
        raise NoDigestError(f"code of the module {module}, which has no file")
    return found


def _path(module: str) -> Path | None:
    """The file of a module, whether it is imported already or not; ``None`` where there is none."""
    if module in sys.modules:
        name = getattr(sys.modules[module], "__file__", None)
    elif module.rpartition(".")[0] in ("", *sys.modules):  # else looking for it would import what is above it
        try:
            spec = importlib.util.find_spec(module)
        except (ImportError, ValueError):
            return None
        name = None if spec is None else spec.origin
    else:
        return None
    path = Path(name or "")
    return path if path.is_file() else None


def _imports(source: str, module: str) -> Iterator[str]:
    """The names of all that a module's source may import."""
    package = getattr(sys.modules.get(module), "__package__", None) or module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            above = parents[: len(parents) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (base, *(f"{base}.{alias.name}" for alias in node.names))


def _check_loaded(value: Any, source: str) -> None:
    """Refuse code that is not what its file says now, because the file was edited after it was imported."""
    path = str(getattr(sys.modules[value.__module__], "__file__", ""))
    written = set(_codes(compile(source, path, "exec", dont_inherit=True)))
    for function in vars(value).values() if isinstance(value, type) else (value,):
        if isinstance(function, FunctionType):
            code = function.__code__
            if code.co_filename == path and code not in written:
                raise NoDigestError(f"{function.__qualname__}, whose file was edited after it was imported")


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A module's code and all code in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)
