"""How an equilibrium is differentiated."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from ..arguments import is_integer, is_number, named
from ..fixed_point import Derivative, Method, fixed_point
from ..fixed_point.base import check_damping
from .report import Report, Watch, warn_unless_reached

SYSTEM = "the linear system of the implicit gradient"
REMEDY = (
    "Implicit(method, tol) with a larger max_iterations, another method such as Newton(), or a "
    "larger tol"
)


@dataclass(frozen=True)
class Request:
    """What was asked of the solve: its method, its tolerance, and who watches."""

    method: Method
    tol: float
    watch: Watch | None


class Gradient(ABC):
    """The gradient of a loss L through ``z* = f(z*; x)``, given ``g = dL/dz*``.

    Each of them is ``u^T df/dx`` of a few damped steps ``z' = z + b (f(z; x) - z)`` from z*, taken
    as a constant; they differ in how many steps, and in u. To add one, derive from this class.
    """

    @property
    def steps(self) -> int:
        """How many steps have a graph."""
        return 1

    @property
    def damping(self) -> float:
        """Their b."""
        return 1.0

    @abstractmethod
    def cotangent(self, out: Tensor, z: Tensor, g: Tensor, request: Request) -> Tensor:
        """u from g, (batch, numbers); ``out`` is what the steps make of ``z``, with its graph."""


@dataclass(frozen=True)
class Implicit(Gradient):
    """Take the exact gradient, by the implicit function theorem.

        dL/dx = u^T df/dx,        u = J^T u + g,        J = df/dz at z*

    The system in u is solved by iteration, with one product ``J^T u`` in each, until
    ``|J^T u + g - u| <= tol |g|`` for each sample: u is then wrong by at most
    ``|(1 - J)^-1| tol |g|``. J is taken where the search for z* ended, to the same ``tol``.

    Cost of a backward pass: one evaluation of f with its graph, one product per iteration, and one
    more for x and the parameters. Memory: one graph of f during the backward pass, and only z* in
    between. Where ``1 - J`` is singular (a bifurcation) there is no gradient, and the system does
    not converge.

    Source: Bai, Kolter and Koltun, "Deep Equilibrium Models" (2019), Theorem 1.

    Args:
        method: for the system; None for the forward pass's.
        tol: relative residual of the system; None for the forward pass's.
    """

    method: Method | None = None
    tol: float | None = None

    def __post_init__(self) -> None:
        if self.method is not None and not isinstance(self.method, Method):
            raise TypeError(f"method: got {named(self.method)}; pass a method such as Anderson()")
        if self.tol is not None:
            check_tol(self.tol)

    def cotangent(self, out: Tensor, z: Tensor, g: Tensor, request: Request) -> Tensor:
        method, tol = self.method or request.method, self.tol or request.tol
        wide, products = torch.promote_types(g.dtype, torch.float32), 0
        size = torch.linalg.vector_norm(g.to(wide), dim=1).double()
        size = torch.where(size > 0, size, 1.0)  # no gradient to begin with: u = 0 at once

        def transposed(u: Tensor) -> Tensor:
            nonlocal products
            products += 1
            back = torch.autograd.grad(
                out, z, u.to(out.dtype), retain_graph=True, allow_unused=True
            )[0]
            return torch.zeros_like(u) if back is None else back.to(wide)

        def update(u: Tensor) -> tuple[Tensor, Tensor]:
            r = transposed(u) + g.to(wide) - u
            return r, torch.linalg.vector_norm(r, dim=1).double() / size

        derivative = Derivative(lambda _, v: transposed(v), linear=True)
        found = fixed_point(update, g.to(wide), tol=tol, method=method, derivative=derivative)
        warn_unless_reached(found, tol, method, SYSTEM, REMEDY, stacklevel=1)
        if request.watch is not None:
            request.watch(Report("backward", found.error, found.counts, 1, products))
        return found.x.to(g.dtype)


@dataclass(frozen=True)
class Phantom(Gradient):
    """Take the gradient of k damped steps from z*: the implicit one with its series cut off.

        dL/dx = g^T b (1 + K + ... + K^(k-1)) df/dx,        K = (1 - b) + b J

    The implicit gradient has ``b (1 - K)^-1 = (1 - J)^-1`` in the place of the sum, so that what is
    wrong is ``K^k`` times it: small where K contracts, and unbounded where it does not. The value
    is z*, whatever k.

    Cost of a backward pass: k evaluations with their graphs, all of which are in memory, and k
    products. It cannot fail to converge, and has been found to regularise training. Not where a
    gradient has to be right.

    Source: Geng, Zhang, Bai, Wang and Lin, "On Training Implicit Models" (2021), equation 9
    (unrolled phantom gradient).

    Args:
        k: steps.
        damping: b, in (0, 1].
    """

    k: int
    damping: float = 1.0

    def __post_init__(self) -> None:
        if not is_integer(self.k, 1):
            raise ValueError(f"k: got {self.k!r}; pass an integer >= 1")
        check_damping(self.damping)

    @property
    def steps(self) -> int:
        return self.k

    def cotangent(self, out: Tensor, z: Tensor, g: Tensor, request: Request) -> Tensor:
        return g


@dataclass(frozen=True)
class OneStep(Gradient):
    """Take the gradient of one step, ``dL/dx = g^T df/dx``: Jacobian-free backpropagation.

    The same as ``Phantom(1, 1.0)``.

    Relative to the implicit gradient it lacks ``J (1 - J)^-1``, that is, J to first order. It still
    is a direction of descent where J is small enough (the source, Theorem 3.1).

    Source: Fung, Heaton, Li, McKenzie, Osher and Yin, "JFB: Jacobian-Free Backpropagation for
    Implicit Networks" (2022).
    """

    def cotangent(self, out: Tensor, z: Tensor, g: Tensor, request: Request) -> Tensor:
        return g


def check_tol(tol: float, least: float = 0.0, dtype: torch.dtype | None = None) -> None:
    """Refuse what is not a tolerance, or one that numbers of ``dtype`` cannot hold."""
    if not (is_number(tol) and 0 < tol < 1):
        raise ValueError(f"tol: got {tol!r}; pass a relative residual such as 1e-6")
    if tol < least:
        wider = "" if dtype == torch.float64 else ", or z0.double()"
        raise ValueError(
            f"tol: got {tol}, but {dtype} states cannot be told apart below {least:.1e}; pass a "
            f"larger tol{wider}"
        )
