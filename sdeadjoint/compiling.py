"""How our own code stays out of ``torch.compile``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def eagerly(function: Callable[P, R]) -> Callable[P, R]:
    """Leave a function as it is where ``torch.compile`` compiles its caller.

    What looks at graphs, generators and identities cannot be traced; a graph break at the call is all that is compiled
    of it. Modules inside that are compiled by themselves stay compiled.
    """

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if torch.compiler.is_dynamo_compiling():
            uncompiled: Callable[P, R] = torch.compiler.disable(function)
            return uncompiled(*args, **kwargs)
        return function(*args, **kwargs)

    return call
