"""Checks of values that an accelerator still computes: noted one by one, and read once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

Refusal = Callable[[], Exception]
"""Makes the error that a check stands for, once it is known to have failed. It holds no tensors of the state's size."""


class Ledger:
    """Flags on the devices of what they tell of, each with its error, in the order in which they were noted.

    Reading a flag waits until the device has come to it, so a loop that reads one at each step never runs ahead.
    """

    def __init__(self) -> None:
        self._open: list[tuple[Tensor, Refusal]] = []

    def note(self, flag: Tensor, refusal: Refusal) -> None:
        """Check that ``flag``, a tensor of no dimension, is True."""
        self._open.append((flag, refusal))

    def settle(self) -> None:
        """Read all flags, which waits for the device once, and raise the error of the first check that failed."""
        checks, self._open = self._open, []
        alike = dict[tuple[torch.device, type], list[Tensor]]()
        for flag, _ in checks:
            alike.setdefault((flag.device, type(flag)), []).append(flag)
        if all(bool(torch.stack(flags).all()) for flags in alike.values()):
            return
        for flag, refusal in checks:
            if not flag:
                raise refusal()

    @property
    def length(self) -> int:
        """How many checks are open."""
        return len(self._open)

    def cut(self, length: int) -> None:
        """Forget those that were noted since there were ``length`` of them."""
        del self._open[length:]


_CURRENT: ContextVar[Ledger | None] = ContextVar("ledger", default=None)


def require(flag: Tensor, refusal: Refusal) -> None:
    """Check that ``flag`` is True: at once, or at the end of ``read_at_the_end`` around it."""
    ledger = _CURRENT.get()
    if ledger is not None:
        ledger.note(flag, refusal)
    elif not flag:
        raise refusal()


def settle() -> None:
    """Read what was noted so far, if anything was, and raise the error of the first check that failed."""
    if (ledger := _CURRENT.get()) is not None:
        ledger.settle()


@contextmanager
def read_at_the_end() -> Iterator[Ledger]:
    """Inside, on this thread, checks are noted; all are read at the end, or before another error goes on."""
    ledger = Ledger()
    token = _CURRENT.set(ledger)
    try:
        yield ledger
    except Exception:
        ledger.settle()
        raise
    finally:
        _CURRENT.reset(token)
    ledger.settle()


@contextmanager
def tentatively(kind: type[Exception]) -> Iterator[None]:
    """Forget the checks of what ends in an error of a kind, as it is done again."""
    ledger = _CURRENT.get()
    length = 0 if ledger is None else ledger.length
    try:
        yield
    except kind:
        if ledger is not None:
            ledger.cut(length)
        raise
