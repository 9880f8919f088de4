"""The convergence laboratory: orders measured on nested grids over the same Brownian paths, and held against claims."""

from __future__ import annotations

from ..noise.paths import Paths
from . import settings
from .dynamics import Driven, Dynamics, Reverse
from .measure import measure
from .plots import draw_orders, draw_work_precision
from .quantities import Gradient, Power, Quantity, RoundTrip, State, Weak
from .result import Convergence, work_precision
from .settings import Setting
from .slope import Slope, TooFewLevelsError, fit
from .study import Study
from .verdict import Verdict

__all__ = [
    "Convergence",
    "Driven",
    "Dynamics",
    "Gradient",
    "Paths",
    "Power",
    "Quantity",
    "Reverse",
    "RoundTrip",
    "Setting",
    "Slope",
    "State",
    "Study",
    "TooFewLevelsError",
    "Verdict",
    "Weak",
    "draw_orders",
    "draw_work_precision",
    "fit",
    "measure",
    "settings",
    "work_precision",
]
