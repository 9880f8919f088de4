"""Checks of gradients: one call of ``sample`` under one adjoint against a reference that shares nothing with it."""

from .check import check_gradient
from .result import GradientCheck, Row

__all__ = ["GradientCheck", "Row", "check_gradient"]
