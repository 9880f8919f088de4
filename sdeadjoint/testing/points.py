"""Cases for equations: points of a solve, and nests of tensors there."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import nests
from ..equation import Equation
from .contract import Case, distance, numbers


@dataclass(frozen=True)
class Point(Case):
    """A step of the equation, a clock value in it, and a state near the initial one.

    Args:
        n: the step.
        place: of the clock in the step: 0 and 1 are its ends.
        seed: of the state: the initial one, 0.1 of its size away in a random direction.
    """

    n: int = 0
    place: float = 0.0
    seed: int = 0

    def s(self, equation: Equation) -> float:
        s0, s1 = equation.clocks[self.n : self.n + 2]
        return {0.0: s0, 1.0: s1}.get(self.place, s0 + self.place * (s1 - s0))

    def x(self, equation: Equation) -> Any:
        return near(equation.start, self.seed)

    def y(self, equation: Equation) -> Tensor:
        return equation.enter(self.x(equation), self.n)

    def drift(self, equation: Equation) -> Tensor:
        """``F(s, y)``, without a graph to y."""
        return equation.drift(self.n)(self.s(equation), self.y(equation))

    def code(self, name: str) -> str:
        return f"from sdeadjoint.testing.points import Point\nprint({self!r}.drift({name}))"


@dataclass(frozen=True)
class Node(Case):
    """A node, and states there: the initial one and two more in random directions."""

    n: int = 0
    seed: int = 0

    def code(self, name: str) -> str:
        return f"print({name}.leave({self.n}, {name}.enter({name}.start, {self.n})), {name}.start)"


def near(x: Any, seed: int) -> Any:
    """A state near x, of tensors of its own."""
    seeds = iter(range(100 * seed, 100 * seed + 100))

    def moved(tensor: Tensor) -> Tensor:
        size = 0.1 * float(tensor.detach().double().square().mean().sqrt() or 1.0)
        return tensor.detach() + size * numbers(*tensor.shape, seed=next(seeds)).to(tensor)

    return nests.map_tensors(moved, x)


def combined(a: float, x: Any, b: float, z: Any) -> Any:
    """``a x + b z``."""
    others = iter(list(nests.tensors(z)))
    return nests.map_tensors(lambda tensor: a * tensor + b * next(others), x)


def product(x: Any, z: Any) -> float:
    """The scalar product of two nests."""
    pairs = zip(nests.tensors(x), nests.tensors(z), strict=True)
    return float(sum((one.detach().double() * two.detach().double()).sum() for one, two in pairs))


def norm(x: Any) -> float:
    return math.sqrt(product(x, x))


def apart(x: Any, z: Any) -> float:
    """The largest difference of two nests; inf where they do not have tensors of the same shapes."""
    one, two = list(nests.tensors(x)), list(nests.tensors(z))
    return (
        max((distance(a, b) for a, b in zip(one, two, strict=True)), default=0.0)
        if len(one) == len(two)
        else math.inf
    )


def eps(x: Any) -> float:
    return max(torch.finfo(tensor.dtype).eps for tensor in nests.tensors(x))


def regular(equation: Equation, n: int) -> bool:
    """Whether states at a node can be told from ``y``: not where the weight is infinite."""
    return equation.is_projected(n) or math.isfinite(equation.weights[n])
