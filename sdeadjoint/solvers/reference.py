"""The solver that judges another one: a method that is more accurate, and that is never the one judged."""

from __future__ import annotations

from .base import Solver
from .heun import Heun
from .rk4 import RK4
from .shark import ShARK
from .sra1 import SRA1


def reference_solver(judged: Solver, *, noisy: bool, levy_areas: bool = True) -> Solver:
    """Choose the solver whose solution on a finer grid stands for the truth.

    A method that judges itself agrees with its own mistakes, so the judge is another one wherever one is as accurate:

    * without noise RK4, of order 4;
    * with noise and space-time Levy areas of the equation's own Brownian motion, in any frame, ShARK of strong order
      1.5; SRA1 judges ShARK;
    * with noise alone, where no method has a strong order above 1, Heun; ShARK judges Heun.

    Args:
        judged: the solver under test.
        noisy: whether the equation has noise.
        levy_areas: whether the Levy areas belong to the Brownian motion on the equation's own noise clock.
    """
    if not noisy:
        return RK4()
    if levy_areas:
        return SRA1() if judged == ShARK() else ShARK()
    return ShARK() if judged == Heun() else Heun()
