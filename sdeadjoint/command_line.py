"""What the subcommands share: the kinds of arguments, and what a subcommand is."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

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
