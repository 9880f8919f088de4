"""Items of ``check_adjoint`` about derivatives of derivatives: Taylor tests, dot products, and ``Direct()``."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ..adjoints import Adjoint, Direct
from ..sample import sample
from .contract import numbers, require
from .problems import Gradients, Solve, cotangent, known

T = TypeVar("T")

POWERS = range(4, 11)
"""The steps of the Taylor tests are 2^-4 to 2^-10."""
FLOOR = 2.0**12
"""In units of eps times the size of the terms: smaller remainders are sums of roundings."""


@dataclass(frozen=True)
class SecondChecks:
    """The checks, which share a tolerance and what counts as a refusal.

    Args:
        tolerance: relative error of a second derivative, in the Euclidean norm.
        attempt: calls a function, and returns None for a refusal.
    """

    tolerance: float
    attempt: Callable[[Callable[[], object]], object]

    def products(self, adjoint: Adjoint, case: Solve) -> None:
        """Hessian-vector products are those of ``Direct()``."""
        want = known(_direct, case)
        got = self.attempt(lambda: products(adjoint, case))
        if not isinstance(got, Gradients):
            return
        size = max(_norm(list(want.of.values())), 1e-12)
        for name, exact in want.of.items():
            given = got.of[name]
            none = torch.zeros(())
            off = _norm([(none if given is None else given) - (none if exact is None else exact)])
            require(
                off <= self.tolerance * size,
                f"the Hessian-vector product in {name} is off by {off / size:.3g} of the whole, more than "
                f"{self.tolerance:g}",
            )

    def taylor(self, adjoint: Adjoint, case: Solve) -> None:
        """What a step along a direction leaves of the loss vanishes with order 2, and 3 with the product."""
        found = self.attempt(lambda: gradient_along(adjoint, case))
        if not isinstance(found, tuple):
            return
        value, slope = found
        losses = known(_losses, case)
        self._falls(losses, 2, "gradient", lambda h: value + h * slope)
        bend = self.attempt(lambda: curvature_along(adjoint, case))
        if isinstance(bend, float):
            self._falls(losses, 3, "Hessian-vector product", lambda h: value + h * slope + h * h / 2 * bend)

    def _falls(self, losses: dict[float, float], order: int, what: str, model: Callable[[float], float]) -> None:
        steps, values = list(losses), list(losses.values())
        left = [abs(value - model(h)) for value, h in zip(values, steps, strict=True)]
        floor = FLOOR * torch.finfo(torch.float64).eps * max(1.0, *map(abs, values))
        rates = [
            float(torch.tensor(a / b, dtype=torch.float64, device="cpu").log2())
            for a, b in pairwise(left)
            if b > floor
        ]
        # Of a wrong derivative one order is missing; in the middle, as two terms may cancel at one step.
        require(
            len(rates) < 3 or median(rates[-5:]) > order - 0.5,
            f"the remainder of a Taylor expansion with the {what} falls with the orders "
            f"{[round(rate, 2) for rate in rates]}, not with {order}",
        )

    def dot(self, adjoint: Adjoint, case: Solve) -> None:
        """``<J v, w> = <v, J^T w>``, ``J v`` by the derivative of ``J^T u`` in u and, in x_T, by forward mode."""
        for pushed in (pushed_backward, pushed_forward):
            found = self.attempt(lambda pushed=pushed: pushed(adjoint, case))  # type: ignore[misc]
            if not isinstance(found, tuple):
                continue
            (left, right, size), name = found, "forward mode" if pushed is pushed_forward else "create_graph=True"
            require(
                abs(left - right) <= self.tolerance * size,
                f"<J v, w> = {left!r} by {name}, and <v, J^T w> = {right!r}",
            )


def _direct(case: Solve) -> Gradients:
    return products(Direct(), case)


def _losses(case: Solve) -> dict[float, float]:
    """By the length of the step along the direction."""
    steps = (2.0**-power for power in POWERS)
    return {h: loss_at(case, h) for h in steps}


def loss_of(x: Tensor) -> Tensor:
    """A loss with a Hessian of its own."""
    return (cotangent(x) * x.sin()).sum()


def directions(leaves: dict[str, Tensor]) -> list[Tensor]:
    """One direction through all leaves, of length 1."""
    drawn = [numbers(*leaf.shape, seed=50 + k, dtype=leaf.dtype) for k, leaf in enumerate(leaves.values())]
    length = max(_norm(list(drawn)), 1e-12)
    return [part / length for part in drawn]


def products(adjoint: Adjoint, case: Solve) -> Gradients:
    """The sample, and the derivatives of the gradient's product with a direction, by leaf."""
    arguments, leaves = case.build()
    x = sample(adjoint=adjoint, **arguments)
    wanted = list(leaves.values())
    pulled = torch.autograd.grad(loss_of(x), wanted, create_graph=True, allow_unused=True)
    found = _derivatives(pulled, wanted, directions(leaves))
    return Gradients(x.detach(), dict(zip(leaves, found, strict=True)))


def gradient_along(adjoint: Adjoint, case: Solve) -> tuple[float, float]:
    """The loss and its derivative along the direction."""
    arguments, leaves = case.build()
    value = loss_of(sample(adjoint=adjoint, **arguments))
    found = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    return float(value.detach()), _dot(found, directions(leaves))


def curvature_along(adjoint: Adjoint, case: Solve) -> float:
    """The second derivative of the loss along the direction."""
    _, leaves = case.build()
    return _dot(list(products(adjoint, case).of.values()), directions(leaves))


def loss_at(case: Solve, h: float) -> float:
    """The loss after a step of length h along the direction."""
    arguments, leaves = case.build()
    with torch.no_grad():
        for leaf, v in zip(leaves.values(), directions(leaves), strict=True):
            leaf += h * v
    return float(loss_of(sample(adjoint=Direct(), **arguments).detach()))


def pushed_backward(adjoint: Adjoint, case: Solve) -> tuple[float, float, float]:
    """``<J v, w>``, ``<v, J^T w>`` and their size, in all leaves."""
    arguments, leaves = case.build()
    x, wanted, vs = sample(adjoint=adjoint, **arguments), list(leaves.values()), directions(leaves)
    u, w = torch.zeros_like(x, requires_grad=True), cotangent(x)
    pulled = torch.autograd.grad(x, wanted, u, create_graph=True, allow_unused=True)
    (moved,) = _derivatives(pulled, [u], vs)
    back = torch.autograd.grad(x, wanted, w, allow_unused=True)
    return _dot([moved], [w]), _dot(back, vs), _norm(list(back)) * _norm(list(vs)) + 1e-12


def pushed_forward(adjoint: Adjoint, case: Solve) -> tuple[float, float, float]:
    """The same in x_T, ``J v`` by forward mode."""
    arguments, _ = case.build()
    x_T = arguments["x_T"]
    v = numbers(*x_T.shape, seed=61, dtype=x_T.dtype)
    with warnings.catch_warnings(), forward_ad.dual_level():
        # PyTorch's forward mode loads scripts of its own.
        warnings.filterwarnings("ignore", ".torch.jit.script", DeprecationWarning)
        dual = forward_ad.make_dual(x_T.detach(), v)
        moved = forward_ad.unpack_dual(sample(adjoint=adjoint, **{**arguments, "x_T": dual})).tangent
    arguments, _ = case.build()
    x_T = arguments["x_T"].detach().requires_grad_()
    x = sample(adjoint=adjoint, **{**arguments, "x_T": x_T})
    w = cotangent(x)
    (back,) = torch.autograd.grad(x, x_T, w)
    return _dot([moved], [w]), _dot([back], [v]), _norm([back]) * _norm([v]) + 1e-12


def _derivatives(
    outputs: tuple[Tensor | None, ...], inputs: list[Tensor], seeds: list[Tensor]
) -> tuple[Tensor | None, ...]:
    pairs = [(g, v) for g, v in zip(outputs, seeds, strict=True) if g is not None and g.requires_grad]
    if not pairs:
        return (None,) * len(inputs)
    gs, vs = zip(*pairs, strict=True)
    return torch.autograd.grad(gs, inputs, vs, allow_unused=True)


def _dot(these: list[Tensor | None] | tuple[Tensor | None, ...], those: list[Tensor]) -> float:
    return sum(float((a * b).detach().sum()) for a, b in zip(these, those, strict=True) if a is not None)


def _norm(tensors: list[Tensor | None] | list[Tensor]) -> float:
    return float(sum(tensor.detach().square().sum() for tensor in tensors if tensor is not None)) ** 0.5
