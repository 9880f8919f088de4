"""The equation that is solved: additive noise, cut into steps, in coordinates that solvers like."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from .noise import BoundNoise, Noise
from .solvers import Drift


class Equation(ABC):
    """``dy = F(s, y) ds + dB_nu`` on the nodes ``n = 0 .. steps`` of a clock.

    Users see the state in their own coordinates, ``x_n = weights[n] * y_n``, and the nodes under their own names,
    ``times``. Solvers and adjoints see ``y`` and ``clocks`` only. To add an equation, derive from this class, or hand a
    drift to ``sdeadjoint.solve``, which makes a ``Field``. ``sdeadjoint.testing.check_equation`` holds an equation
    against the contract, and ``sdeadjoint.solve`` takes it in the place of a drift.

    The contract:

    1. ``drift(n)`` is a pure function of the clock and the state, made of differentiable operations. It depends on
       tensors that are in ``tensors``, that are parameters or buffers of ``module``, or that are leaves.
    2. ``on(tensors)`` is the same equation on other tensors, which have the structure of ``self.tensors``.
    3. ``leave(0, enter(x))`` is x to round-off; both are linear, and ``outward`` and ``inward`` map cotangents alike.
    4. The tables below are Python floats, computed once in float64.
    """

    clocks: tuple[float, ...]
    """Strictly monotone values of ``s``, one per node. The last may be infinite if the equation ``projects``."""
    times: tuple[float, ...]
    """The nodes as users know them: in callbacks, hooks and messages. The clocks themselves, if in doubt."""
    weights: tuple[float, ...]
    """``x_n / y_n`` at every node: ones, if in doubt."""
    noise_clock: tuple[float, ...] | None
    """``nu`` at every node, rising: over a step the noise has the variance ``dnu``. None for an ODE."""
    start: Any
    """The user's initial state, which ``starting_at`` sets; None before."""

    @property
    @abstractmethod
    def tensors(self) -> Any:
        """A nest of all tensors that the caller handed over: conditioning and ``start``, for instance."""

    @property
    def module(self) -> Callable[..., Any] | None:
        """The module or function that the drift evaluates: what it can be seen to read is watched."""
        return None

    @abstractmethod
    def on(self, tensors: Any) -> Self:
        """The same equation on other tensors."""

    @abstractmethod
    def drift(self, n: int) -> Drift:
        """``F(s, y)`` for the clock values of step n."""

    @property
    def steps(self) -> int:
        return len(self.clocks) - 1

    @property
    def projects(self) -> bool:
        """Whether the last step is ``project``, a map of its own, in the place of a solver's step."""
        return False

    def project(self, y: Tensor) -> Tensor:
        """The final state from ``y_{N-1}``, in the user's coordinates."""
        raise NotImplementedError(f"{type(self).__name__} has no final map")

    @abstractmethod
    def starting_at(self, x: Any) -> Self:
        """The same equation with ``start`` set."""

    def enter(self, x: Any, n: int = 0) -> Tensor:
        """``y_n`` from the user's state at node n."""
        y: Tensor = x.clone() if self.is_projected(n) else x / self.weights[n]
        return y

    def leave(self, n: int, y: Tensor) -> Any:
        """The user's state at node n from ``y_n``: tensors of its own."""
        return self.scaled(n, y)

    def scaled(self, n: int, y: Tensor) -> Tensor:
        """``weights[n] * y``: the user's state, as one tensor like ``y``."""
        return y.clone() if self.is_projected(n) else self.weights[n] * y

    def outward(self, n: int, a: Tensor) -> Any:
        """``dL/dx_n`` from ``a = dL/dy_n``."""
        return a / (1.0 if self.is_projected(n) else self.weights[n])

    def inward(self, n: int, a: Any) -> Tensor:
        """``dL/dy_n`` from ``a = dL/dx_n``."""
        back: Tensor = a * (1.0 if self.is_projected(n) else self.weights[n])
        return back

    def is_projected(self, n: int) -> bool:
        """Whether ``y_n`` is the result of ``project``, in the user's coordinates already."""
        return self.projects and n == self.steps

    def bind(self, noise: Noise | None, like: Tensor, *, levy: bool) -> BoundNoise | None:
        """The noise on this equation's noise clock and for states like ``like``.

        An ODE (``noise_clock`` None) binds noise to a clock that stands still: its increments are zero.
        """
        if noise is None and self.noise_clock is not None:
            raise ValueError("noise: got None, but the equation has a noise clock; pass noise=BrownianPath(seed=0)")
        if noise is None:
            return None
        if not isinstance(noise, Noise):
            raise TypeError(f"noise: got {type(noise).__name__}; pass BrownianPath(seed=...) or FixedNoise(increments)")
        driven = self.noise_clock is not None
        nodes = self.noise_clock or (0.0,) * (self.steps + 1)
        return noise.bind(torch.tensor(nodes, dtype=torch.float64, device="cpu"), like, levy and driven)

    # What the continuous adjoints ask for.

    @property
    def kind(self) -> str:
        """The name of the coordinates, where there are several to choose from."""
        return ""

    @property
    def driven(self) -> str:
        """Return what switched the noise on, in a few words for messages; empty for an ODE."""
        return "" if self.noise_clock is None else "the equation has noise"

    @property
    def tamer(self) -> str:
        """Return what to pass for a way back that amplifies less, ending in a comma; empty if nothing."""
        return ""

    def at(self, n: int, s: float) -> tuple[float, float]:
        """Time and weight at a clock value of step n; at the step's ends those of the tables, bit by bit."""
        for end in (n, n + 1):
            if s == self.clocks[end]:
                return self.times[end], self.weights[end]
        return s, 1.0

    def abscissa(self, times: Sequence[float]) -> list[float]:
        """The variable over which states are interpolated, at ``times``: strictly rising from node to node."""
        sign = 1.0 if self.times[-1] > self.times[0] else -1.0
        return [sign * t for t in times]

    def recast(self, kind: str | None, times: Sequence[float], slots: Sequence[int]) -> Self:
        """The same equation, without a final map, in coordinates of another kind and on other nodes.

        ``kind``: None keeps the coordinates. ``slots``: the step of this equation that each new step lies in.
        """
        raise ValueError(f"adjoint: {type(self).__name__} cannot be recast for a continuous adjoint; pass Checkpoint()")

    def noising(self, n: int, x: Any, z: Tensor) -> Any:
        """The user's ``x_n`` from ``x_{n+1}`` and a standard normal, by the forward process, where there is one."""
        raise TypeError(f"{type(self).__name__} has no forward process to draw fresh states from; pass Truncated(1)")
