"""How wrong the gradients of a call of ``sample`` are."""

from .check import check_gradient
from .result import GradientCheck, Row

__all__ = ["GradientCheck", "Row", "check_gradient"]
