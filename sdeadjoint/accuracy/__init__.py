"""How far a gradient is from the equation's, and grids on which it is nearer."""

from .error import gradient_error
from .goal_grid import goal_grid
from .result import ErrorRow, GradientError

__all__ = ["ErrorRow", "GradientError", "goal_grid", "gradient_error"]
