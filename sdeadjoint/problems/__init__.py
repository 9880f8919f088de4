"""Problems with exact answers: data whose diffusion is known in closed form."""

from __future__ import annotations

from sdeadjoint.problems.base import Problem
from sdeadjoint.problems.digits import Digits
from sdeadjoint.problems.gaussian import Gaussian
from sdeadjoint.problems.mixture import Mixture
from sdeadjoint.problems.rewards import Quadratic

__all__ = ["Digits", "Gaussian", "Mixture", "Problem", "Quadratic"]
