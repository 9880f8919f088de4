"""Control: a sampler tuned towards a reward, by adjoints of the sampler it started from."""

from .lean import lean_adjoint
from .matching import adjoint_matching_loss
from .memoryless import memoryless_deficit

__all__ = ["adjoint_matching_loss", "lean_adjoint", "memoryless_deficit"]
