"""HomoODE: an equilibrium as the end of a trajectory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from .. import nests
from ..adjoints import Adjoint, Checkpoint
from ..arguments import check_types, named
from ..field import strict_clock
from ..solve import Callback, solve
from ..solvers import Solver

Clock = Tensor | Sequence[float] | Callable[[Callable[..., Any], Any, Mapping[str, Any]], Any]
"""Numbers, or ``clock(drift, z0, cond)`` that chooses them."""


class Homotopy(nn.Module):
    """``z' = f(z; x)`` for s in [0, 1], from ``z(0) = z0``; z(1) is read as the equilibrium of x.

        homotopy = sa.equilibria.Homotopy(f, torch.linspace(0, 1, 9), solver=sa.Heun())
        z = homotopy(z0, {"x": x})              # f(z, x=x) like z
        loss(z).backward()                      # fills x.grad, z0.grad, and f's parameters'

    The input x enters as a condition of the whole trajectory and not as its start, so that the
    state may have any shape, all inputs may start from the same point (``SharedStart``), and
    trajectories of different inputs may cross. As ``dz/ds`` of a homotopy from an easy problem to
    the one to be solved, f stands for ``-(dH/dz)^-1 dH/ds``, which the classical homotopies
    (``NewtonHomotopy``) compute and this one learns. Nothing makes z(1) a root of anything: what
    is learned is a map of (z0, x).

    Gradients are those of ``sa.solve``: exact for the discrete solve under ``Checkpoint()``, in x,
    z0, the parameters, and any leaf that f reads. The published method is a continuous adjoint,
    ``a' = -a^T df/dz, dL/dx = int a^T df/dx ds``, equation for equation the conditioning adjoint of
    AdjointDEIS: ``adjoint=sa.ContinuousAdjoint(...)``.

    Args:
        f: ``f(z, **cond)`` like z, a module or function. It does not see s.
        clock: N + 1 numbers that strictly rise, from 0 to 1 as published; or a function
            ``clock(drift, z0, cond)`` that chooses them for each call from detached tensors, by
            ``sa.adaptive_clock`` for instance.
        solver: of the equation.
        adjoint: how gradients are computed.

    Cost: N steps of the solver. Not where a property of a fixed point is wanted: take ``solve``.
    Source: Ding, Cui, Wang and Ye, "Two Sides of The Same Coin: Bridging Deep Equilibrium Models
    and Neural ODEs via Homotopy Continuation" (NeurIPS 2023), section 4.
    """

    def __init__(
        self,
        f: Callable[..., Any],
        clock: Clock,
        *,
        solver: Solver,
        adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        if not callable(f):
            raise TypeError(f"f: got {named(f)}; pass a function or module f(z, **cond)")
        check_types(
            ("solver", solver, Solver, "a solver such as Heun()"),
            ("adjoint", adjoint, Adjoint, "an adjoint such as Checkpoint()"),
        )
        if not callable(clock):
            nodes = strict_clock(clock)
            if nodes[-1] < nodes[0]:
                raise ValueError(
                    f"clock: falls from {nodes[0]} to {nodes[-1]}; pass numbers that rise, such as "
                    "torch.linspace(0, 1, 9)"
                )
        self.f, self.clock, self.solver, self.adjoint = f, clock, solver, adjoint

    def extra_repr(self) -> str:
        return f"solver={self.solver!r}, adjoint={self.adjoint!r}"

    def drift(self, s: Tensor, z: Any, **cond: Any) -> Any:
        """``f(z, **cond)``, for ``sa.solve`` and ``sa.adaptive_clock``."""
        return self.f(z, **cond)

    def forward(
        self,
        z0: Any,
        cond: Mapping[str, Any] | None = None,
        *,
        trajectory: bool = False,
        callback: Callback | None = None,
    ) -> Any:
        """z(1) from z0, like z0; or all states, stacked, (N + 1, ...), z0 first."""
        cond = {} if cond is None else cond
        clock = self.clock
        if callable(clock) and not isinstance(clock, Tensor):
            clock = clock(self.drift, *_detached(z0, cond))
        return solve(
            self.drift,
            z0,
            clock=clock,
            solver=self.solver,
            cond=cond,
            adjoint=self.adjoint,
            trajectory=trajectory,
            callback=callback,
        )


def _detached(z0: Any, cond: Mapping[str, Any]) -> tuple[Any, Any]:
    return nests.map_tensors(Tensor.detach, z0), nests.map_tensors(Tensor.detach, cond)
