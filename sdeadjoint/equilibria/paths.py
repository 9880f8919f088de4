"""The classical homotopies: paths from a start to a root, as equations ``dz/dl = F(l, z)``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..arguments import check_types, named
from ..fixed_point import Derivative, Method, Newton, fixed_point
from .attach import attach
from .gradients import Gradient, Implicit, Request, check_tol
from .map import Layout, Map, autocast_cache_cleared
from .report import warn_unless_reached
from .solve import solve

SINGULAR = (
    "a method with a larger max_iterations or krylov, or a larger tol. Where dH/dz is singular "
    "(the path turns back, or branches), Davidenko's equation has no solution: pass another "
    "residual, another start, or the other homotopy"
)


class Path(nn.Module):
    """A path ``H(z(l), l; x) = 0`` from ``z(0) = z0`` to a root z(1) of a residual ``r(z; x)``.

    Differentiated by l, it is Davidenko's equation, which this module is the drift of:

        dz/dl = -(dH/dz)^-1 dH/dl

        path = sa.equilibria.NewtonHomotopy(lambda z, x: z - f(z, x))
        clock, cond = torch.linspace(0, 1, 11), {"z0": z0, "x": x}
        z = sa.solve(path, z0, clock=clock, solver=sa.RK4(), cond=cond)

    Called as ``path(l, z, z0=z0, **cond)``. The linear system is solved per sample without
    matrices, by GMRES with products ``dH/dz v``; its gradients in z, z0, ``cond`` and the
    residual's parameters are implicit ones, exact to ``tol``, so that every adjoint of ``sa.solve``
    works. The solver leaves the path by its own error; ``correct`` leads back to it.

    Args:
        residual: ``r(z, **cond)`` like z; for an equilibrium of f, ``z - f(z, **cond)``.
        tol: relative residual of the linear systems, ``|dH/dz v + dH/dl| <= tol |dH/dl|``.
        method: ``Newton(krylov=...)``, products per restart; other methods solve the system by
            plain values.

    Cost of an evaluation: one of dH/dl, and one product (about two evaluations of r) per GMRES
    iteration. Not where the path has turning points, where ``dH/dz`` is singular: an
    ``EquilibriumWarning`` says so where an evaluation comes near one. A step may jump over it, to a
    state off any path, from which ``correct`` warns that it finds no root, or finds another one.

    Sources: Davidenko (1953); Allgower and Georg, Introduction to Numerical Continuation Methods
    (2003), chapter 2.
    """

    def __init__(
        self,
        residual: Callable[..., Any],
        *,
        tol: float = 1e-6,
        method: Method = Newton(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        if not callable(residual):
            raise TypeError(
                f"residual: got {named(residual)}; pass a function or module r(z, **cond)"
            )
        check_tol(tol)
        check_types(("method", method, Method, "a method such as Newton()"))
        self.residual, self.tol, self.method = residual, tol, method

    @abstractmethod
    def value(
        self, s: Tensor | float, z: Tensor, z0: Tensor, r: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """``H(z, s)`` for states laid out as matrices (batch, numbers)."""

    @abstractmethod
    def rate(self, z: Tensor, z0: Tensor, r: Callable[[Tensor], Tensor]) -> Tensor:
        """``dH/dl``, which does not depend on l."""

    def forward(self, s: Tensor, z: Any, *, z0: Any, **cond: Any) -> Any:
        """``dz/dl`` at ``l = s``, like z."""
        layout = Layout.of(z)
        check_tol(self.tol, torch.finfo(layout.dtype).eps, layout.dtype)
        given = {"at": (s, z, z0, cond)}
        with torch.no_grad(), autocast_cache_cleared(layout.device):
            system = _System(self, layout, given)
            start, derivative = torch.zeros_like(system.b), Derivative(system.push, linear=True)
            found = fixed_point(
                system.update, start, tol=self.tol, method=self.method, derivative=derivative
            )
        warn_unless_reached(
            found, self.tol, self.method, "the derivative of the path", SINGULAR, stacklevel=2
        )
        v = found.x
        if torch.is_grad_enabled():
            mapped = Map(self._image, given, layout, "residual")
            v = attach(mapped, found, Implicit(), Request(self.method, self.tol, None))
        return layout.unpack(v)

    def correct(
        self,
        s: float,
        z: Any,
        *,
        z0: Any,
        cond: Mapping[str, Any] | None = None,
        tol: float,
        method: Method = Newton(),  # noqa: B008 (frozen)
        gradient: Gradient = Implicit(),  # noqa: B008 (frozen)
    ) -> Any:
        """Return the root of ``H(., s)`` near ``z``, found by Newton's method.

            root = path.correct(1.0, z.detach(), z0=z0, cond={"x": x}, tol=1e-10)

        To ``|H| <= tol |z - H|``, for each sample. The gradient is the implicit one at the root, in
        z0, ``cond`` and parameters: with it the path itself may be followed under
        ``torch.no_grad()``. The root does not depend on where the iteration starts: a z that
        requires a gradient is refused.
        """
        given = {"at": (s, z0, {} if cond is None else cond)}
        return solve(self._stepped, z, given, tol=tol, method=method, gradient=gradient)

    def _on(self, layout: Layout, cond: Mapping[str, Any]) -> Map:
        return Map(self.residual, cond, layout, "residual")

    def _stepped(self, z: Any, *, at: tuple[Any, ...]) -> Any:
        """``z - H(z, l)``."""
        s, z0, cond = at
        layout = Layout.of(z)
        rows = layout.pack(z)
        return layout.unpack(rows - self.value(s, rows, layout.pack(z0), self._on(layout, cond)))

    def _image(self, v: Any, *, at: tuple[Any, ...]) -> Any:
        """``v - (dH/dz v + dH/dl)``, whose fixed point is ``dz/dl``."""
        s, z, z0, cond = at
        layout = Layout.of(z)
        rows, rows0, r = layout.pack(z), layout.pack(z0), self._on(layout, cond)
        v = layout.pack(v)
        return layout.unpack(v - (self._slope(s, rows, rows0, r, v) + self.rate(rows, rows0, r)))

    def _slope(self, s: Tensor, z: Tensor, z0: Tensor, r: Map, v: Tensor) -> Tensor:
        """``dH/dz v``."""
        mapped = Map(lambda rows: self.value(s, rows, z0, r), {}, Layout.of(z), "residual")
        return mapped.pushed(z, v)


class _System:
    """``dH/dz v = -dH/dl`` as the fixed point of ``v -> v - (dH/dz v + dH/dl)``."""

    def __init__(self, path: Path, layout: Layout, given: Mapping[str, Any]) -> None:
        s, z, z0, cond = given["at"]
        if not layout.packing.fits(z0):
            raise ValueError(
                "z0: it has not the shapes of z; pass the state that the path starts from"
            )
        self.path, self.s = path, s
        self.z, self.z0, self.r = layout.pack(z), layout.pack(z0), path._on(layout, cond)
        self.b = -path.rate(self.z, self.z0, self.r)
        wide = torch.promote_types(self.b.dtype, torch.float32)
        size = torch.linalg.vector_norm(self.b.to(wide), dim=1).double()
        self.size = torch.where(size > 0, size, 1.0)  # a root already: v = 0 at once

    def update(self, v: Tensor) -> tuple[Tensor, Tensor]:
        r = self.b if not v.any() else self.b - self.path._slope(self.s, self.z, self.z0, self.r, v)
        wide = torch.promote_types(r.dtype, torch.float32)
        return r, torch.linalg.vector_norm(r.to(wide), dim=1).double() / self.size

    def push(self, _: Tensor, v: Tensor) -> Tensor:
        return v - self.path._slope(self.s, self.z, self.z0, self.r, v)


class FixedPointHomotopy(Path):
    """``H(z, l; x) = l r(z; x) + (1 - l) (z - z0)``: the path from z0 by mixing the residual in.

    ``dH/dz = l dr/dz + (1 - l)`` is regular all the way if no eigenvalue of ``dr/dz`` is negative
    or zero: take ``r = z - f(z)``, not its negative. For an equilibrium of a contraction f the path
    exists from every z0.
    """

    def value(
        self, s: Tensor | float, z: Tensor, z0: Tensor, r: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return s * r(z) + (1 - s) * (z - z0)

    def rate(self, z: Tensor, z0: Tensor, r: Callable[[Tensor], Tensor]) -> Tensor:
        return r(z) - (z - z0)


class NewtonHomotopy(Path):
    """``H(z, l; x) = r(z; x) - (1 - l) r(z0; x)``: the residual falls in a straight line.

    ``dz/dl = -(dr/dz)^-1 r(z0)``; an Euler step of length 1 is a step of Newton's method. ``dr/dz``
    must be regular along the path. One more evaluation of r than the fixed-point homotopy, at z0.
    """

    def value(
        self, s: Tensor | float, z: Tensor, z0: Tensor, r: Callable[[Tensor], Tensor]
    ) -> Tensor:
        return r(z) - (1 - s) * r(z0)

    def rate(self, z: Tensor, z0: Tensor, r: Callable[[Tensor], Tensor]) -> Tensor:
        return r(z0)
