"""What an object consists of, for its digest: see ``fingerprint``."""

from __future__ import annotations

import enum
import functools
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import is_dataclass
from functools import lru_cache
from pathlib import Path
from types import CodeType, FunctionType, MappingProxyType, MethodType
from typing import Any

import torch

PACKAGE = __name__.split(".")[0]
ATOMS = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(...), range)
DESCRIPTORS = ("member_descriptor", "getset_descriptor", "_tuplegetter")
HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE: classes made in Python (and a few in C)


def held(value: Any) -> tuple[Any, ...] | None:
    """What some objects consist of, beside their class."""
    own = getattr(value, "__dict__", {})
    state = (dict(own),) if own and not isinstance(own, MappingProxyType) else ()
    if isinstance(value, enum.Enum):
        return (value.name,)
    if isinstance(value, ATOMS):  # of a class of their own
        base = next(base for base in ATOMS if isinstance(value, base))
        return (base.__repr__(value), *state)  # type: ignore[call-arg]
    if isinstance(value, dict | MappingProxyType):
        return (*(part for item in value.items() for part in item), *state)
    if isinstance(value, list | tuple | set | frozenset):
        return (*(value if isinstance(value, list | tuple) else sorted(value, key=repr)), *state)
    if isinstance(value, functools.partial):
        return (value.func, value.args, value.keywords, *state)
    if isinstance(value, MethodType):
        return (value.__func__, value.__self__)
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    if isinstance(value, functools.cached_property):
        return (value.func,)
    if isinstance(value, type(version)):  # ``functools.cache`` too
        return (value.__wrapped__,)
    return None


def attributes(value: Any) -> Iterator[tuple[str, Any]]:
    """Of the instance, by name; what it has worked out and kept does not count."""
    kept = functools.cached_property
    for name, attribute in getattr(value, "__dict__", {}).items():
        if not isinstance(getattr(type(value), name, None), kept):
            yield name, attribute
    for name in slots(type(value)):
        if hasattr(value, name):
            yield name, getattr(value, name)


def slots(kind: type) -> list[str]:
    found = [vars(base).get("__slots__", ()) for base in kind.__mro__]
    names = [name for slots in found for name in ((slots,) if isinstance(slots, str) else slots)]
    return [name for name in names if name not in ("__dict__", "__weakref__")]


def is_opaque(kind: type) -> bool:
    """Whether instances hold what Python does not show: those of classes written in C, and of heirs of such."""
    if any(base is not object and not base.__flags__ & HEAP for base in kind.__mro__):
        return True
    pointers = len(slots(kind)) + 2  # and those to __dict__ and to weak references
    return kind.__basicsize__ > object.__basicsize__ + 8 * pointers or is_bare(kind)


def is_bare(kind: type) -> bool:
    """Without any attribute, and not the user's own: a lock, for one."""
    has_any = kind.__dictoffset__ != 0 or any("__slots__" in vars(base) for base in kind.__mro__)
    return not has_any and bool(version(kind.__module__.split(".")[0]))


def is_generated(kind: type, value: Any) -> bool:
    """Descriptors of slots, and what ``dataclass`` wrote: its fields are attributes of the instance."""
    if isinstance(value, FunctionType):
        return is_dataclass(kind) and value.__code__.co_filename == "<string>"
    return type(value).__name__ in DESCRIPTORS


def cell_of(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return "empty"


def names_in(code: CodeType) -> list[str]:
    """The names that the code and the functions written in it look up."""
    inner = [names_in(const) for const in code.co_consts if isinstance(const, CodeType)]
    return sorted({*code.co_names, *(name for names in inner for name in names)})


@lru_cache(maxsize=1024)
def version(top: str) -> str:
    """The version of an installed package or of Python, empty for the user's own code, which is read."""
    if top in (PACKAGE, "builtins") or top in sys.stdlib_module_names:
        return "known"
    path = getattr(sys.modules.get(top), "__file__", None) or ""
    if not {"site-packages", "dist-packages"} & set(Path(path).parts):
        return ""
    return str(getattr(sys.modules[top], "__version__", "")) or hashlib.sha256(Path(path).read_bytes()).hexdigest()
