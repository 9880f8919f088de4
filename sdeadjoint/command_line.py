"""The form of a subcommand, kinds of arguments, and objects named by what a user types."""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import inspect
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import samplers, solvers
from .diffusion.schedules import VPLinear
from .solvers import Solver

FAILED, USAGE, STOPPED = 1, 2, 130  # exit statuses of any subcommand, beside 0
STATUSES = f"{FAILED} if something failed, {USAGE} for a wrong command line, {STOPPED} if interrupted"


class UsageError(Exception):
    """A wrong command line, in a sentence."""


class Command(NamedTuple):
    """A subcommand: ``add_arguments(parser)`` declares its arguments, ``run(arguments)`` gives the exit status.

    ``run`` raises ``UsageError`` for arguments that do not fit together, and ``ImportError``, ``OSError`` or
    ``RuntimeError``, with one sentence, where the user should be told.
    """

    name: str
    summary: str
    files: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    run: Callable[[argparse.Namespace], int]


# ---------------------------------------------------------------- kinds of arguments


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
        raise argparse.ArgumentTypeError(f"{text!r} is not a count; pass an integer >= 1")
    return int(text)


def add_steps(parser: argparse.ArgumentParser, default: Sequence[int]) -> None:
    """Declare ``--steps``: positive integers, apart by commas or blanks."""
    parser.add_argument(
        "--steps",
        nargs="+",
        type=_counts,
        action=_Joined,
        default=tuple(default),
        metavar="N",
        help=f"numbers of steps, as 8,16,32 or 8 16 32 (default: {','.join(map(str, default))})",
    )


def _counts(text: str) -> tuple[int, ...]:
    return tuple(map(count, text.split(",")))


class _Joined(argparse.Action):
    """Store the numbers of several arguments in one tuple."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, tuple(number for part in values for number in part))


class Choice(NamedTuple):
    """A solver that a user named and, where it was named by a sampler, the sampler's eta and kind."""

    solver: Solver
    eta: float | None = None
    kind: str | None = None

    def fitting(self, eta: float | None, kind: str | None, text: str) -> tuple[float | None, str | None]:
        """Return the eta and kind that are asked for; ``UsageError`` where the sampler has others."""
        for name, asked, own in (("--eta", eta, self.eta), ("--kind", kind, self.kind)):
            if own is not None and asked is not None and asked != own:
                raise UsageError(f"{name}: got {asked}, but {text} has {own}; leave {name} out, or name the solver")
        return (self.eta if eta is None else eta), (self.kind if kind is None else kind)


def solver(text: str) -> Choice:
    """A solver such as ``Heun`` or ``AdamsBashforth(order=3)``, a sampler such as ``ddim``, or ``module:Name``."""
    schedule = VPLinear()
    names = {**_solver_classes(), **{name: partial(make, schedule) for name, make in _sampler_makers().items()}}
    try:
        found = named(text, names)
        found = found() if isinstance(found, type | partial) else found
    except (TypeError, ValueError) as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    if isinstance(found, Solver):
        return Choice(found)
    if not isinstance(found, tuple) or len(found) != 2 or not isinstance(found[1], Solver):
        raise argparse.ArgumentTypeError(f"{text!r} is {type(found).__name__}; pass the name of a solver or a sampler")
    frame, method = found
    return Choice(method, frame.eta, frame.kind)


def _solver_classes() -> dict[str, type[Solver]]:
    """The exported solvers by name."""
    found = {name: getattr(solvers, name) for name in solvers.__all__}
    return {
        name: kind
        for name, kind in found.items()
        if isinstance(kind, type) and issubclass(kind, Solver) and not inspect.isabstract(kind)
    }


def _sampler_makers() -> dict[str, Callable[..., Any]]:
    """The named samplers: functions of a schedule."""
    return {
        name: make
        for name, make in vars(samplers).items()
        if inspect.isfunction(make) and make.__module__ == samplers.__name__ and not name.startswith("_")
    }


# ---------------------------------------------------------------- objects by what a user types


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
    return _Names(text, scope, sorted(names)).value(tree)


class _Names(NamedTuple):
    """What a user typed, the names that it may use, and those to be offered."""

    text: str
    scope: Mapping[str, Any]
    offered: Sequence[str]

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Name):
            if node.id not in self.scope:
                raise ValueError(self._unknown(node.id))
            return self.scope[node.id]
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._called(node)
        try:
            return ast.literal_eval(node)
        except ValueError:
            raise ValueError(
                f"got {self.text!r}; pass literals or names as arguments, nothing to be computed"
            ) from None

    def _called(self, node: ast.Call) -> Any:
        if any(keyword.arg is None for keyword in node.keywords):
            raise ValueError(f"got {self.text!r}; pass arguments one by one")
        arguments = [self.value(argument) for argument in node.args]
        keywords = {str(keyword.arg): self.value(keyword.value) for keyword in node.keywords}
        function = self.value(node.func)
        try:
            return function(*arguments, **keywords)
        except TypeError as error:
            raise ValueError(f"got {self.text!r}: {error}") from None

    def _unknown(self, name: str) -> str:
        close = difflib.get_close_matches(name, self.offered, n=3, cutoff=0.5)
        meant = f"; did you mean {' or '.join(close)}?" if close else ";"
        return (
            f"got {self.text!r}, but there is no {name!r}{meant} Pass module:Name, or one of {', '.join(self.offered)}"
        )


def _module(name: str, text: str) -> Any:
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ValueError(f"got {text!r}, but {name!r} cannot be imported: {error}") from None
    finally:
        sys.path.remove(here)


# ---------------------------------------------------------------- surroundings of a run


def check_writable(out: Path) -> None:
    """Make the directory, and refuse one into which nothing can be written, before anything is computed."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OSError(f"--out: nothing can be written into {out} ({error.strerror})") from None


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums then have one order on any machine, and matrices this small gain nothing from more threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


# Until the process ends: the thread of a collected executor does not learn that its jobs were cancelled, and some
# releases of Python then print a traceback for them.
_ENDED: list[Executor] = []


@contextmanager
def pool(workers: int) -> Iterator[Executor | None]:
    """An executor of so many processes, ended at once where something fails; none for one worker."""
    if workers == 1:
        yield None
        return
    others = {child.pid for child in multiprocessing.active_children()}
    context = multiprocessing.get_context("spawn")
    executor = ProcessPoolExecutor(workers, context, initializer=_in_worker, initargs=(os.getcwd(),))
    try:
        yield executor
    except BaseException:
        _ENDED.append(executor)
        executor.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            if child.pid not in others:
                child.terminate()
        raise
    executor.shutdown()


def _in_worker(directory: str) -> None:
    """Find the user's modules where the command did, and leave an interrupt to the command, which ends the workers."""
    sys.path.insert(0, directory)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def listed(names: Iterable[str]) -> str:
    """Names in a sentence."""
    *most, last = names
    return f"{', '.join(most)} and {last}" if most else last
