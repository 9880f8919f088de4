"""Which levels tell the order: not those too coarse for the leading term, nor those on a floor."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .floor import fit_on_floor

Array = NDArray[np.float64]

LEAST = 4  # levels that are always kept, if there are as many above the known floors
CLEAR = 3.0  # standard errors that make a departure of the coarsest level significant
HINT = 1.5  # standard errors of the bend that a floor makes: the law is then fitted with one
POSSIBLE = 0.7  # and from which on the interval allows for one
MATERIAL = 0.01  # change of the slope that makes it matter


@dataclass(frozen=True)
class Dropped:
    """A level that the slope does not use, and why."""

    steps: int
    reason: str


@dataclass(frozen=True)
class Window:
    """Levels ``first .. last`` (inclusive), whether they show or may have a floor, and what was left out."""

    first: int
    last: int
    has_floor: bool = False
    may_have_floor: bool = False
    dropped: tuple[Dropped, ...] = ()

    @property
    def size(self) -> int:
        return self.last - self.first + 1

    @property
    def slice(self) -> slice:
        return slice(self.first, self.last + 1)


def above_floors(steps: Sequence[int], errors: Array, floors: Array, names: Sequence[str]) -> Window:
    """Drop, from the finest, levels with an error below what a known floor makes doubtful.

    Args:
        errors: (levels,).
        floors: (floors, levels): the least error to be believed, for each cause and level.
        names: each cause, as in "error 1e-3 is below {name}".
    """
    last, dropped = len(steps) - 1, []
    while last >= 0 and not (errors[last] > floors[:, last]).all():
        worst = int(np.argmax(floors[:, last]))
        reason = f"error {errors[last]:.2g} is below {names[worst]}, {floors[worst, last]:.2g}"
        dropped.append(Dropped(steps[last], reason))
        last -= 1
    return Window(0, last, dropped=tuple(dropped))


def straight(window: Window, steps: Sequence[int], y: Array, covariance: Array) -> Window:
    """Notice a floor at the fine end, or else drop coarse levels that lie off the line through the finer ones.

    The coarsest level is pre-asymptotic if its distance from the others' line is ``CLEAR`` standard errors (of all
    levels together: they share their paths) and taking it in would change the slope by more than ``MATERIAL``. Levels
    go until none is, or ``LEAST`` are left.
    """
    while window.size > LEAST:
        use = window.slice
        x = np.log2(np.asarray(steps[use], dtype=np.float64))
        bend = _floors_bend(x, y[use], covariance[use, use])
        window = replace(window, may_have_floor=bend > POSSIBLE)
        if bend > HINT:
            return replace(window, has_floor=True)
        coarse = _coarsest(x, y[use], covariance[use, use])
        if abs(coarse.significance) <= CLEAR or coarse.change <= MATERIAL:
            break
        reason = f"{2**coarse.distance:.3g} times the line through the finer levels: pre-asymptotic"
        dropped = (*window.dropped, Dropped(steps[window.first], reason))
        window = replace(window, first=window.first + 1, dropped=dropped)
    return window


def _floors_bend(x: Array, y: Array, covariance: Array) -> float:
    """Standard errors by which the line bends upwards at its fine end, as a floor makes it; 0 if at its coarse end.

    A floor's part in the square of the error grows by ``4^slope`` from level to level; that of a higher-order term
    fades like a power of the step. Where a fading term is as significant, the law that fits better decides.
    """
    if _significance(x**2, x, y, covariance) < POSSIBLE:
        return 0.0
    found = fit_on_floor(x, y)
    if found is None:
        return 0.0
    for power in (0.5, 1.0, 2.0):
        fading = 2.0 ** (-power * (x - x[0]))
        columns = np.stack([np.ones_like(x), x, fading], axis=1)
        cost = float(((y - columns @ np.linalg.lstsq(columns, y, rcond=None)[0]) ** 2).sum())
        if cost < found.cost / 2 and abs(_significance(fading, x, y, covariance)) > CLEAR:
            return 0.0
    return _significance(found.curve, x, y, covariance)


def _significance(shape: Array, x: Array, y: Array, covariance: Array) -> float:
    """How many standard errors of y lie in the direction of ``shape``, straight lines apart."""
    lines = np.stack([np.ones_like(x), x], axis=1)
    contrast = shape - lines @ np.linalg.lstsq(lines, shape, rcond=None)[0]
    return float(contrast @ y / np.sqrt(max(contrast @ covariance @ contrast, 1e-300)))


@dataclass(frozen=True)
class _Departure:
    distance: float  # in log2
    significance: float  # in standard errors
    change: float  # of the slope if the level is taken in


def _coarsest(x: Array, y: Array, covariance: Array) -> _Departure:
    """How far the first level lies off the least squares line through the others."""
    others, slope = x[1:], np.zeros_like(x)
    slope[1:] = (others - others.mean()) / ((others - others.mean()) ** 2).sum()
    contrast = -(x[0] - others.mean()) * slope - 1 / len(others)
    contrast[0] = 1.0
    distance, deviation = float(contrast @ y), float(np.sqrt(max(contrast @ covariance @ contrast, 1e-300)))
    with_end = (x - x.mean()) / ((x - x.mean()) ** 2).sum()
    return _Departure(distance, distance / deviation, abs(float((with_end - slope) @ y)))
