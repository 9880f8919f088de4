"""A worked example: a solver of somebody else's, thirty lines with one mistake in them, and the line that finds it.

``python -m tests.third_party`` prints what ``check_solver`` says.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sdeadjoint import Claims, Interval, Solver
from sdeadjoint.testing import ContractError, check_solver


@dataclass(frozen=True)
class Kutta3(Solver):
    """Kutta's third-order method for ``dy = F(s, y) ds + dB``, stages driven by their part of the increment."""

    middle: float = 0.5  # where the second stage sits

    @property
    def claims(self) -> Claims:
        return Claims(ode=3, strong=1.0, evaluations=3)

    def step(self, drift, interval: Interval, y: Tensor, state: tuple) -> tuple[Tensor, tuple]:  # type: ignore[no-untyped-def, type-arg]
        ds, dB, c = interval.ds, interval.dB, self.middle
        F1 = drift(interval.s0, y)
        F2 = drift(interval.at(c), y + c * (ds * F1 + dB))
        F3 = drift(interval.s1, y - ds * F1 + 2 * ds * F2 + dB)
        return y + ds * (F1 + 4 * F2 + F3) / 6 + dB, state


WRONG = Kutta3(middle=0.505)
"""The planted mistake: the second stage is one per cent of a half too far."""


def main() -> None:
    check_solver(Kutta3())  # nothing is said: the contract holds
    try:
        check_solver(WRONG)
    except ContractError as error:
        print(error)


if __name__ == "__main__":
    main()
