"""Tools for testing against this library: hypothesis strategies for everything it takes."""

from __future__ import annotations

try:
    from . import strategies
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ImportError("sdeadjoint.testing draws its cases by hypothesis; pip install 'sdeadjoint[testing]'") from error

__all__ = ["strategies"]
