"""What an iteration is: a method makes a stepper, and the stepper says where to go next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ..arguments import is_integer, is_number

Update = Callable[[Tensor], tuple[Tensor, Tensor]]
"""``x -> (g(x) - x, error)``: like x, and one number >= 0 per sample that says how far x is off."""

Push = Callable[[Tensor, Tensor], Tensor]
"""``(x, v) -> dg/dx v``, all of x's shape."""

LEAST_DAMPING = 1 / 16


class Derivative(NamedTuple):
    """What Newton's method needs besides values.

    ``linear``: whether dg/dx is the same everywhere, so that one linear solve is enough.
    """

    push: Push
    linear: bool = False


class Found(NamedTuple):
    """What was found.

    For each sample the iterate of least error, ``r = g(x) - x`` there, that error (float64), and
    how many updates it took (int64; all of them where the tolerance was not reached).
    ``iterations``: how many updates were evaluated.
    """

    x: Tensor
    error: Tensor
    iterations: int
    r: Tensor
    counts: Tensor


class Seen(NamedTuple):
    """What a stepper is shown after an update; states are (batch, numbers), the rest is (batch,).

    Args:
        x, r: the iterate, and ``g(x) - x``.
        start, start_r: where to go on from: x, or a sample's best iterate if its error jumped up.
        error: at ``start``.
        tol: the error that is asked for.
        lost: which samples took a wrong turn.
        active: which samples are not done.
    """

    x: Tensor
    r: Tensor
    start: Tensor
    start_r: Tensor
    error: Tensor
    tol: Tensor | float
    lost: Tensor
    active: Tensor


class Stepper(ABC):
    """One run of a method: holds what it remembers of earlier iterates."""

    @abstractmethod
    def step(self, seen: Seen) -> Tensor:
        """The next iterate less ``seen.start``, (batch, numbers), float32 or wider."""


@dataclass(frozen=True)
class Method(ABC):
    """How to iterate.

    A new method derives from this class and is one file. Its steppers treat the samples of a batch
    independently: each has its own history, and what one does changes nothing for the others.
    """

    setback: ClassVar[float] = 10.0
    """An error this many times the least is a wrong turn: a sample returns to its best iterate."""

    @property
    @abstractmethod
    def max_iterations(self) -> int:
        """Updates that are evaluated at most."""

    @abstractmethod
    def start(self, x: Tensor, derivative: Derivative | None) -> Stepper:
        """A run that begins at states like x, (batch, numbers)."""


def wide(x: Tensor) -> torch.dtype:
    """The dtype to compute steps in."""
    return torch.promote_types(x.dtype, torch.float32)


def check_counts(**counts: int) -> None:
    """Refuse what is not an integer >= 1."""
    for name, value in counts.items():
        if not is_integer(value, 1):
            raise ValueError(f"{name}: got {value!r}; pass an integer >= 1")


def check_damping(damping: float) -> None:
    """Refuse what is not a damping."""
    if not (is_number(damping) and 0 < damping <= 1):
        raise ValueError(f"damping: got {damping!r}; pass a number in (0, 1], 1 for none")


def first_damping(x: Tensor, damping: float) -> Tensor:
    """One number per sample, (batch, 1)."""
    return torch.full((len(x), 1), float(damping), dtype=wide(x), device=x.device)


def halved(damping: Tensor, lost: Tensor) -> Tensor:
    """Half the damping of samples that took a wrong turn, down to ``LEAST_DAMPING``."""
    half = torch.minimum(damping, (damping / 2).clamp(min=LEAST_DAMPING))
    return torch.where(lost[:, None], half, damping)
