"""Tools for testing against this library: hypothesis strategies, and contract checks for your own objects.

    from sdeadjoint.testing import check_solver
    check_solver(MySolver())

Each check returns None, or raises ``ContractError``, an ``AssertionError`` that says which item of the contract is
broken, with the smallest counterexample that was found and the code that reproduces it.
Under a hypothesis profile without ``Phase.shrink`` it has the first counterexample, which takes less time.
"""

from __future__ import annotations

try:
    from . import strategies
    from .adjoint import check_adjoint
    from .contract import ContractError
    from .equation import check_equation
    from .noise import check_noise
    from .reversible import check_reversible
    from .schedule import check_schedule
    from .solver import check_solver
except ModuleNotFoundError as error:
    if error.name != "hypothesis":
        raise
    raise ImportError("sdeadjoint.testing draws its cases by hypothesis; pip install 'sdeadjoint[testing]'") from error

__all__ = [
    "ContractError",
    "check_adjoint",
    "check_equation",
    "check_noise",
    "check_reversible",
    "check_schedule",
    "check_solver",
    "strategies",
]
