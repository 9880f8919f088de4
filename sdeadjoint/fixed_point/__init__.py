"""Fixed points ``x = g(x)``, one per sample of a batch."""

from .anderson import Anderson
from .base import Derivative, Found, Method, Push, Seen, Stepper, Update
from .broyden import Broyden
from .krylov import gmres
from .loop import fixed_point
from .newton import Newton
from .plain import FixedPoint

__all__ = [
    "Anderson",
    "Broyden",
    "Derivative",
    "FixedPoint",
    "Found",
    "Method",
    "Newton",
    "Push",
    "Seen",
    "Stepper",
    "Update",
    "fixed_point",
    "gmres",
]
