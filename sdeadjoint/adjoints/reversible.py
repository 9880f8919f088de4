"""Exact gradients in constant memory: the solver itself leads back through its states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..conditioning import scheduled
from ..recursion import Observer, Recursion
from ..solvers import ReversibleHeun, ReversibleSolver
from .base import Adjoint
from .replay.forward import Replayed
from .replay.inversion import Inversion


@dataclass(frozen=True)
class Reversible(Adjoint):
    """The exact gradient of a reversible sampler; no states are stored, whatever the number of steps.

    The backward pass finds each state from the next with the solver's own inverse, replaying the noise, and pulls the
    step back from there. Solvers: ``Coupled(base, zeta)`` around any one-step method, and ``ReversibleHeun()``.

    Args:
        tolerance: the relative error of the way back above which a ``RoundTripWarning`` is given.
        watch: called after each backward pass with that error: the distance, relative to it, between the solver's
            state after the first step and what the inverse made of the last. ``errors = []; Reversible(watch=
            errors.append)`` collects them.

    The gradient is that of ``Direct`` on the same solver, at states that differ from the forward pass' by round-off
    times its growth on the way back: ``zeta^-N`` for ``Coupled``, and what the equation itself amplifies backwards in
    time: next to nothing in the flow kind, up to ``e^((1 + eta) lambda)`` over the grid's range of lambda in the data
    and noise kinds (theory/reversible.md). So for the SDE, and in float32, take ``Frame(..., kind="flow")``, and hold
    x_T in float64 for long ways; the network keeps its dtype with ``Denoiser(network_dtype=...)``.

    Cost, in network calls per step with ``Coupled(Euler())``: 2 forward; 2 to invert and 2 with their vector-Jacobian
    products backward: one inversion more than ``Checkpoint()``, which is the better choice wherever the states fit.
    Errors: ``TypeError`` for solvers without an inverse; ``ValueError`` for ``ReversibleHeun`` with ``Scheduled``
    conditioning; ``RuntimeError`` for networks that draw random numbers, whose inverse would see other ones, and for
    everything that ``Checkpoint`` refuses.
    Sources: Kidger, Foster, Li and Lyons (2021); McCallum and Foster (2024); Blasingame and Liu (2025), Rex.
    """

    tolerance: float = 1e-4
    watch: Callable[[float], None] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.tolerance, bool) or not isinstance(self.tolerance, int | float) or not self.tolerance > 0:
            raise ValueError(f"tolerance: got {self.tolerance!r}; pass a positive number such as 1e-4, or math.inf")
        if self.watch is not None and not callable(self.watch):
            raise TypeError(f"watch: got {type(self.watch).__name__}; pass a function of the round trip's error")

    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        solver = recursion.solver
        if not isinstance(solver, ReversibleSolver):
            raise TypeError(
                f"solver: {solver!r} has no inverse, which Reversible() needs; pass Coupled(Euler()) or "
                "ReversibleHeun() as the solver, or adjoint=Checkpoint(), which serves every solver"
            )
        if recursion.after_step is not None:
            raise ValueError(
                "after_step: Reversible() undoes the solver's steps, and what after_step changes cannot be undone; "
                "pass adjoint=Checkpoint()"
            )
        if isinstance(solver, ReversibleHeun) and any(scheduled(recursion.equation.tensors)):
            raise ValueError(
                "cond: ReversibleHeun() carries a network call from each step into the next, so a step with Scheduled "
                "conditioning cannot be inverted by itself; pass Coupled(Heun()), or adjoint=Checkpoint()"
            )
        inversion = Inversion(self.tolerance, self.watch)
        replayed = Replayed(inversion, refuse_random=_RANDOM, refuse_state=_STATE)
        return replayed.solve(recursion, y, keep=keep, observe=observe)


_RANDOM = (
    "network: it draws from torch's global generators (dropout in training mode?), and the inverse of a step would see "
    "other numbers than the step; call network.eval(), or pass adjoint=Checkpoint(), which replays them"
)
_STATE = (
    "network: its forward pass changes {name!r} (a running statistic, a counter), and the inverse of a step would see "
    "another one than the step; call network.eval(), or pass adjoint=Checkpoint(), which restores it"
)
