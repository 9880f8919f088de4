"""All gradient methods side by side on one problem: what each costs and how wrong it is.

``compare`` measures, ``print(compare(...))`` is the table that one reads to choose, and ``sdeadjoint compare`` does
both for a built-in problem.
"""

from .compare import compare
from .methods import Method, default_methods
from .result import Agreement, Agreements, Comparison, Measurement
from .scene import mixture

__all__ = ["Agreement", "Agreements", "Comparison", "Measurement", "Method", "compare", "default_methods", "mixture"]
