"""A tape of scalar operations in float64: gradients by reverse accumulation, themselves on the tape, and conditions.

``pulled`` differentiates by writing down the backward pass as operations of the same kind, so that a gradient is a
number of the tape like any other. ``condition`` then says how far roundings move such a number. An operation that is
off by a relative ``delta`` moves ``g`` by ``dg/dv v delta`` to first order, and

    sum over all operations of |dg/dv| |v|

is the most that they do together, in units of the largest delta. Derivatives are the actual ones of this calculation:
what cancels on the way from an operation to g cancels here too, and only different operations are added in modulus.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import count
from operator import attrgetter

_CLOCK = count()

Pull = Callable[["Number", "Number"], "Number"]
"""``pull(v, a)``: the cotangent of an operand from that of the operation's result v, as operations of the tape."""


class Number:
    """A number, and the operation that made it: its operands, its derivatives in them, and how these pull back.

    Without operands it is given, and exact.
    """

    __slots__ = ("operands", "order", "pulls", "slopes", "value")

    def __init__(
        self,
        value: float,
        operands: tuple[Number, ...] = (),
        slopes: tuple[float, ...] = (),
        pulls: tuple[Pull, ...] = (),
    ) -> None:
        self.value, self.operands, self.slopes, self.pulls = value, operands, slopes, pulls
        self.order = next(_CLOCK)

    def __add__(self, other: Number | float) -> Number:
        other = given(other)
        return Number(self.value + other.value, (self, other), (1.0, 1.0), (_same, _same))

    def __neg__(self) -> Number:
        return Number(-self.value, (self,), (-1.0,), (lambda v, a: -a,))

    def __sub__(self, other: Number | float) -> Number:
        other = given(other)
        return Number(self.value - other.value, (self, other), (1.0, -1.0), (_same, lambda v, a: -a))

    def __mul__(self, other: Number | float) -> Number:
        other = given(other)
        pulls = (lambda v, a: a * other, lambda v, a: a * self)
        return Number(self.value * other.value, (self, other), (other.value, self.value), pulls)

    def __truediv__(self, other: Number | float) -> Number:
        other = given(other)
        ratio = self.value / other.value
        pulls = (lambda v, a: a / other, lambda v, a: -(a / other) * v)
        return Number(ratio, (self, other), (1 / other.value, -ratio / other.value), pulls)

    def __radd__(self, other: float) -> Number:
        return given(other) + self

    def __rsub__(self, other: float) -> Number:
        return given(other) - self

    def __rmul__(self, other: float) -> Number:
        return given(other) * self

    def __rtruediv__(self, other: float) -> Number:
        return given(other) / self

    def exp(self) -> Number:
        value = math.exp(self.value)
        return Number(value, (self,), (value,), (lambda v, a: a * v,))

    def log(self) -> Number:
        return Number(math.log(self.value), (self,), (1 / self.value,), (lambda v, a: a / self,))


def given(value: Number | float) -> Number:
    return value if isinstance(value, Number) else Number(value)


def _same(v: Number, a: Number) -> Number:
    return a


def pulled(outputs: Sequence[Number], cotangents: Sequence[Number], inputs: Sequence[Number]) -> list[Number]:
    """``sum_i cotangents_i d outputs_i / d inputs_j``, written down on the tape."""
    zero, wanted, found = Number(0.0), set(inputs), dict[Number, Number]()
    made = _made(outputs, wanted)
    moving = set(wanted)
    for number in reversed(made):
        if any(operand in moving for operand in number.operands):
            moving.add(number)
    for output, a in zip(outputs, cotangents, strict=True):
        found[output] = found[output] + a if output in found else a
    for number in made:
        if number in wanted or number not in found:
            continue
        a = found[number]
        for operand, pull in zip(number.operands, number.pulls, strict=True):
            if operand in moving:
                part = pull(number, a)
                found[operand] = found[operand] + part if operand in found else part
    return [found.get(number, zero) for number in inputs]


def condition(g: Number) -> float:
    """``sum |dg/dv| |v|`` over the operations that g was made by."""
    slopes, total = {g: 1.0}, 0.0
    for number in _made([g]):
        slope = slopes[number]
        if number.operands:
            total += abs(slope * number.value)
        for operand, factor in zip(number.operands, number.slopes, strict=True):
            slopes[operand] = slopes.get(operand, 0.0) + slope * factor
    return total


def _made(outputs: Iterable[Number], known: Iterable[Number] = ()) -> list[Number]:
    """All numbers that went into the outputs, the latest first; not what went into those that are known."""
    stack, found, known = list(outputs), set[Number](), set(known)
    while stack:
        number = stack.pop()
        if number not in found:
            found.add(number)
            if number not in known:
                stack += number.operands
    return sorted(found, key=attrgetter("order"), reverse=True)
