"""A power law on a floor."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class PowerOnFloor(NamedTuple):
    """``e^2 = (constant N^-slope)^2 + floor^2``.

    ``contrast @ dy`` is the change of the slope with ``dy = d log2 e``, to first order; ``curve`` the fitted
    log2 e; ``cost`` the sum of squares left.
    """

    slope: float
    constant: float
    floor: float
    contrast: Array
    curve: Array
    cost: float


def fit_on_floor(x: Array, y: Array) -> PowerOnFloor | None:
    """Least squares for ``y = log2 e`` at ``x = log2 N``, by Gauss-Newton; ``None`` where the data show no floor.

    Squares add because rounding errors, or a reference's own error, are uncorrelated with the error of the method.
    """
    # The law from the first levels, the floor from the rest.
    guesses = [_guess(x, y, start) for start in range(1, len(x) - 1)]
    best, least = _refined(x, y, min(guesses, key=lambda guess: _cost(x, y, guess)))
    c, p, q = best
    curve, share, jacobian = _model(x, best)
    if not np.isfinite(least) or (share > 0.999).all() or np.linalg.cond(jacobian) > 1e6:
        return None
    return PowerOnFloor(
        float(p), float(2.0**c), float(2.0 ** (q / 2)), np.linalg.pinv(jacobian)[1], curve, float(least)
    )


def _guess(x: Array, y: Array, start: int) -> Array:
    p, c = np.polyfit(x[: start + 1], y[: start + 1], 1)
    return np.array([c, max(-p, 0.1), 2 * y[start + 1 :].min() - 0.5])


def _model(x: Array, parameters: Array) -> tuple[Array, Array, Array]:
    """The curve, the power law's share of the square, and the derivative in ``(c, p, q)``."""
    c, p, q = parameters
    law = 2 * (c - p * x)
    curve = np.logaddexp2(law, q)
    share = 2.0 ** (law - curve)
    return curve / 2, share, np.stack([share, -x * share, (1 - share) / 2], axis=1)


def _refined(x: Array, y: Array, parameters: Array) -> tuple[Array, float]:
    cost, damping = _cost(x, y, parameters), 1e-3
    for _ in range(50):
        curve, _, jacobian = _model(x, parameters)
        normal = jacobian.T @ jacobian
        step = np.linalg.solve(normal + damping * np.eye(3), jacobian.T @ (y - curve))
        trial = parameters + np.clip(step, -2, 2)
        new = _cost(x, y, trial)
        if new > cost:
            damping *= 10
            if damping > 1e6:
                break
            continue
        done = cost - new <= 1e-7 * cost
        parameters, cost, damping = trial, new, max(damping / 10, 1e-12)
        if done:
            break
    return parameters, cost


def _cost(x: Array, y: Array, parameters: Array) -> float:
    return float(((y - _model(x, parameters)[0]) ** 2).sum())
