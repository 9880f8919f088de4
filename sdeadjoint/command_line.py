"""The form of a subcommand, kinds of arguments, and objects named by what a user types."""

from __future__ import annotations

import argparse
import ast
import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Command(NamedTuple):
    """A subcommand: ``add_arguments(parser)`` declares its arguments, ``run(arguments)`` gives the exit status.

    ``run`` raises ``ImportError``, ``OSError`` or ``RuntimeError``, with one sentence, where the user should be told.
    """

    name: str
    summary: str
    files: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


def directory(text: str) -> Path:
    """A directory, which need not exist yet."""
    path = Path(text)
    if path.exists() and not path.is_dir():
        raise argparse.ArgumentTypeError(f"{text!r} is a file; pass a directory, which is made if it is missing")
    return path


def seed(text: str) -> int:
    """An integer from 0 to 2^62 - 1."""
    if not text.isdecimal() or int(text) >= 2**62:
        raise argparse.ArgumentTypeError(f"{text!r} is not a seed; pass an integer from 0 to 2^62 - 1")
    return int(text)


def count(text: str) -> int:
    """A positive integer."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of anything; pass an integer >= 1")
    return int(text)


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums then have one order on any machine, and matrices this small gain nothing from more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def named(text: str, names: Mapping[str, Any]) -> Any:
    """Return what ``text`` names: an entry of ``names`` or ``module:Name``, called if arguments follow.

    Arguments are literals (numbers, strings, ``None``, lists, tuples) or again such names, called or not, as in
    ``Coupled(Heun(), zeta=0.99)``. Nothing is evaluated but these calls. ``module`` is looked for in the current
    directory too. ``ValueError`` with a sentence for anything else.
    """
    module, colon, expression = text.partition(":") if ":" in text.split("(")[0] else ("", "", text)
    scope = dict(names)
    if colon:
        scope.update(vars(_module(module, text)))
    try:
        tree = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(
            f"got {text!r}, which is neither a name nor a call; pass Heun or AdamsBashforth(order=3)"
        ) from None
    return _value(tree, scope, text)


def _value(node: ast.expr, scope: Mapping[str, Any], text: str) -> Any:
    if isinstance(node, ast.Name):
        if node.id not in scope:
            known = ", ".join(sorted(name for name in scope if not name.startswith("_")))
            raise ValueError(f"got {text!r}, but there is no {node.id!r}; pass module:Name, or one of {known}")
        return scope[node.id]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f"got {text!r}; pass arguments one by one")
        arguments = [_value(argument, scope, text) for argument in node.args]
        keywords = {str(keyword.arg): _value(keyword.value, scope, text) for keyword in node.keywords}
        function = _value(node.func, scope, text)
        try:
            return function(*arguments, **keywords)
        except TypeError as error:
            raise ValueError(f"got {text!r}: {error}") from None
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"got {text!r}; pass literals or names as arguments, nothing to be computed") from None


def _module(name: str, text: str) -> Any:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"got {text!r}, but {name!r} cannot be imported: {error}") from None
    finally:
        sys.path.remove(here)
