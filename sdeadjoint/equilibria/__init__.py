"""Equilibria ``z = f(z; x)``: fixed points, homotopies that lead to them, and their gradients."""

from ..fixed_point import Anderson, Broyden, FixedPoint, Method, Newton
from .gradients import Gradient, Implicit, OneStep, Phantom
from .homotopy import Homotopy
from .paths import FixedPointHomotopy, NewtonHomotopy, Path
from .report import EquilibriumWarning, Report
from .solve import solve
from .start import SharedStart

__all__ = [
    "Anderson",
    "Broyden",
    "EquilibriumWarning",
    "FixedPoint",
    "FixedPointHomotopy",
    "Gradient",
    "Homotopy",
    "Implicit",
    "Method",
    "Newton",
    "NewtonHomotopy",
    "OneStep",
    "Path",
    "Phantom",
    "Report",
    "SharedStart",
    "solve",
]
