"""All gradient methods side by side on one problem: what each costs and how wrong it is.

``compare`` measures, ``print(compare(...))`` is the table that one reads to choose, and ``sdeadjoint compare`` does
both for a built-in problem.
"""

from .compare import compare
from .measurement import Agreement, Gradient, Measurement
from .methods import Method, default_methods
from .result import Comparison
from .scene import mixture

__all__ = ["Agreement", "Comparison", "Gradient", "Measurement", "Method", "compare", "default_methods", "mixture"]
