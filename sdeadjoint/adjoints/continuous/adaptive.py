"""Adaptive steps for the adjoint of the ODE, by scipy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from .equation import AdjointEquation, March

METHODS = ("RK23", "RK45", "DOP853")


@dataclass(frozen=True)
class Adaptive:
    """In the place of a solver of ``ContinuousAdjoint``: steps of ``scipy.integrate.solve_ivp`` from node to node.

    Args:
        rtol, atol: tolerances of each local error, relative and absolute, over the whole augmented vector.
        method: ``"RK23"``, ``"RK45"`` or ``"DOP853"``.

    The vector holds y (with ``states="reconstructed"``), a and every quadrature, in float64 on the CPU, whatever the
    network's dtype and device: two states and all gradients travel there and back at each evaluation. For small
    problems and reference solutions, in float64: rounding of a narrow network looks like a rough drift and makes steps
    tiny. The number of evaluations is not known in advance. ODE only: an SDE path has no error expansion to adapt to.
    Errors: ``ValueError`` for tolerances and methods that are none; ``RuntimeError`` where scipy gives up.
    """

    rtol: float = 1e-6
    atol: float = 1e-9
    method: str = "DOP853"

    def __post_init__(self) -> None:
        for name, value in (("rtol", self.rtol), ("atol", self.atol)):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"{name}: got {value!r}; pass a positive number")
        if self.method not in METHODS:
            raise ValueError(f"method: got {self.method!r}; pass one of {METHODS}")


class AdaptiveMarch(March):
    """The march of scipy's integrators: each step of the course is an initial value problem of its own."""

    def __init__(self, equation: AdjointEquation, how: Adaptive, inputs: Sequence[Tensor]) -> None:
        self._equation, self._how, self._inputs = equation, how, inputs
        ends = np.cumsum([tensor.numel() for tensor in inputs]).tolist()
        self._places = {id(tensor): slice(end - tensor.numel(), end) for tensor, end in zip(inputs, ends, strict=True)}
        self._size = ends[-1]

    def restart(self) -> None:
        """One-step methods: there is nothing to forget."""

    @property
    def remembers(self) -> bool:
        return False

    def advance(self, m: int, y: Tensor | None, a: Tensor) -> tuple[Tensor | None, Tensor]:
        numel, states = a.numel(), 1 if y is None else 2
        used: set[int] = set()
        s0, s1 = self._equation.course.clocks[m], self._equation.course.clocks[m + 1]
        low, high = min(s0, s1), max(s0, s1)

        def slope(s: float, vector: np.ndarray) -> np.ndarray:
            at = [_tensor(vector[k * numel : (k + 1) * numel], a) for k in range(states)]
            # scipy's s0 + c h may miss the end by a rounding.
            found = self._equation.slope(m, min(max(float(s), low), high), at[0] if states == 2 else None, at[-1])
            out = np.zeros_like(vector)
            out[(states - 1) * numel : states * numel] = -_numbers(found.pulled)
            if states == 2:
                out[:numel] = _numbers(found.F)
            for tensor, grad in zip(found.tensors, found.grads, strict=True):
                if grad is not None:
                    used.add(id(tensor))
                    out[states * numel :][self._places[id(tensor)]] -= _numbers(grad)
            return out

        start = np.concatenate([_numbers(part) for part in (y, a) if part is not None] + [np.zeros(self._size)])
        how = self._how
        found = solve_ivp(slope, (s1, s0), start, method=how.method, t_eval=[s0], rtol=how.rtol, atol=how.atol)
        if not found.success:
            raise RuntimeError(
                f"Adaptive: {found.message} between t={self._equation.course.times[m + 1]} and "
                f"t={self._equation.course.times[m]}; pass larger tolerances, x_T in float64, or a solver such as RK4()"
            )
        end = found.y[:, -1]
        for tensor in self._inputs:
            if id(tensor) in used:
                part = end[states * numel :][self._places[id(tensor)]]
                self._equation.totals.add([tensor], [_tensor(part, tensor)])
        at = [_tensor(end[k * numel : (k + 1) * numel], a) for k in range(states)]
        return (at[0] if states == 2 else None), at[-1]


def _numbers(tensor: Tensor) -> np.ndarray:
    dense = tensor.to_dense() if tensor.is_sparse else tensor
    return dense.detach().to(device="cpu", dtype=torch.float64).flatten().numpy()


def _tensor(numbers: np.ndarray, like: Tensor) -> Tensor:
    """A tensor of its own: the integrator goes on using its vector."""
    return torch.from_numpy(numbers.copy()).reshape(like.shape).to(dtype=like.dtype, device=like.device)
