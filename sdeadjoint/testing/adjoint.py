"""``check_adjoint``: is this the gradient of the sampler that ran?"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TypeVar

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..adjoints import Adjoint, Direct, RoundTripWarning
from ..arguments import named
from ..sample import sample
from ..solvers import Solver
from .contract import Item, Subject, ViolationError, distance, hold, require
from .problems import ANY, REVERSIBLE, Gradients, Recomputed, Solve, cotangent, known, solves
from .second import SecondChecks

T = TypeVar("T")

REFUSALS = (RuntimeError, TypeError, ValueError, RoundTripWarning)
ROUND_OFF = 1e4
"""In units of eps, which gradients in narrow dtypes may be off: sums of some hundred numbers, and the way back of a
reversible solver, which a warning refuses from 1e-4 on."""


@dataclass(frozen=True)
class _Checks:
    """The items' checks, which share a tolerance and whether a refusal of the case counts."""

    tolerance: float
    refusable: bool = True

    def compare(self, adjoint: Adjoint, case: Solve) -> None:
        want = _exact(case)
        got = self._attempt(lambda: case.gradients(adjoint))
        if got is None:
            return
        what = "trajectory" if case.trajectory else "sample"
        require(torch.equal(got.x, want.x), f"the {what} differs from Direct()'s by {distance(got.x, want.x):.2g}")
        self._same(got, want, self._allowed(case))

    def _allowed(self, case: Solve) -> float:
        """The relative error of a gradient that the case's dtype excuses."""
        if case.dtype == torch.float64:
            return self.tolerance
        return max(self.tolerance, ROUND_OFF * torch.finfo(case.dtype).eps)

    def _same(self, got: Gradients, want: Gradients, allowed: float) -> None:
        for name, exact in want.of.items():
            given = got.of[name]
            if exact is None or given is None:
                none = "Direct()" if exact is None else "the adjoint"
                other = given if exact is None else exact
                zero = other is None or not other.any()
                require(zero, f"the gradient of {name} is {other}, where {none} has none")
                continue
            size = max(float(exact.norm()), 1e-12)
            error = float((given - exact).norm()) / size if given.shape == exact.shape else torch.inf
            require(
                error <= allowed,
                f"the gradient of {name} is off by {error:.3g} of its norm, more than {allowed:g}:\n"
                f"  got    {_shown(given)}\n  Direct {_shown(exact)}",
            )

    def hygiene(self, adjoint: Adjoint, case: Solve) -> None:
        """Nothing but what was asked for gets a gradient, twice the same, and ``backward`` fills ``.grad``."""
        first, again = (self._attempt(lambda: case.gradients(adjoint)) for _ in range(2))
        if first is None or again is None:
            return
        for name, one in first.of.items():
            two = again.of[name]
            same = one is two is None or (one is not None and two is not None and torch.equal(one, two))
            require(same, f"two calls gave the gradient of {name} as {_shown(one)} and {_shown(two)}")
        arguments, leaves = case.build()
        x = sample(adjoint=adjoint, **arguments)
        wanted = list(leaves.values())
        values = [leaf.detach().clone() for leaf in wanted]
        self._attempt(lambda: self._twice(x, leaves, self._allowed(case)))
        filled = [name for name, leaf in leaves.items() if leaf.grad is not None]
        require(not filled, f"torch.autograd.grad filled .grad of {', '.join(filled)}")
        for name, leaf, value in zip(leaves, wanted, values, strict=True):
            require(torch.equal(leaf, value), f"{name} was changed in place")
        sample(adjoint=adjoint, **arguments).backward(cotangent(x))
        for name, leaf in leaves.items():
            want = first.of[name]
            if want is not None:
                given = leaf.grad
                error = torch.inf if given is None else distance(given, want)
                require(
                    error <= self._allowed(case) * max(1.0, float(want.norm())),
                    f"backward() filled {name}.grad with {_shown(given)}, and torch.autograd.grad gives {_shown(want)}",
                )

    def _twice(self, x: Tensor, leaves: dict[str, Tensor], allowed: float) -> None:
        """A second pass over a retained graph gives the same again; the adjoint may refuse it."""
        wanted = list(leaves.values())

        def again() -> Gradients:
            found = torch.autograd.grad(x, wanted, cotangent(x), allow_unused=True, retain_graph=True)
            return Gradients(x, dict(zip(leaves, found, strict=True)))

        first, second = again(), again()
        self._same(second, first, allowed)

    def without(self, adjoint: Adjoint, case: Solve) -> None:
        """No gradient wanted: under ``no_grad``, and where nothing requires one."""
        want = _exact(case).x
        arguments, leaves = case.build()
        for leaf in leaves.values():
            leaf.requires_grad_(False)

        def frozen() -> Tensor:
            return sample(adjoint=adjoint, **arguments)

        def under_no_grad() -> Tensor:
            with torch.no_grad():
                return sample(adjoint=adjoint, **arguments)

        for call, where in ((under_no_grad, "under torch.no_grad()"), (frozen, "where nothing requires a gradient")):
            x = self._attempt(call)
            if x is not None:
                require(torch.equal(x, want), f"{where} the sample differs from Direct()'s by {distance(x, want):.2g}")
                require(not x.requires_grad, f"{where} the sample requires a gradient")

    def _attempt(self, call: Callable[[], T]) -> T | None:
        """The result, or None for a refusal."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", RoundTripWarning)
            try:
                return call()
            except REFUSALS as refusal:
                if self.refusable and str(refusal):
                    return None
                raise ViolationError(f"it refused: {type(refusal).__name__}: {refusal}") from refusal


def _exact(case: Solve) -> Gradients:
    """What ``Direct()`` has."""
    return known(_direct, case)


def _direct(case: Solve) -> Gradients:
    return case.gradients(Direct())


def check_recomputed(solver: Solver, case: Recomputed, tolerance: float = 1e-9) -> None:
    """The adjoint of the case, which stands on the solver's contract, agrees with ``Direct()``."""
    _Checks(tolerance, refusable=False).compare(case.adjoint, case.solve(solver))


def items(adjoint: Adjoint, solver: Solver | None, tolerance: float) -> tuple[Item, ...]:
    """The items of ``check_adjoint``, over the solvers that the adjoint takes."""
    if solver is not None:
        return _items((solver,), _takes_latents(adjoint, solver), tolerance)
    chosen = _solvers(adjoint)
    return _own_items(chosen, _takes_latents(adjoint, chosen[0]), tolerance)


def _items(chosen: tuple[Solver, ...], latent: bool, tolerance: float) -> tuple[Item, ...]:
    checks, basic = _Checks(tolerance), _Checks(tolerance, refusable=False)
    plain = st.builds(Solve, solver=st.just(chosen[0]), latent=st.just(latent))
    return (
        Item("basic", "one ODE with two steps is differentiated as Direct() does", plain, basic.compare, 1),
        Item(
            "gradients",
            "samples are bitwise those of Direct(), and so are all gradients within the tolerance",
            solves(chosen),
            checks.compare,
            40,
        ),
        Item(
            "trajectory",
            "with trajectory=True too",
            solves(chosen, trajectory=True).map(lambda case: replace(case, trajectory=True)),
            checks.compare,
            12,
        ),
        Item(
            "hygiene",
            "calls and backward passes repeat, only .backward() fills .grad, and no argument is changed",
            solves(chosen),
            checks.hygiene,
            8,
        ),
        Item(
            "without gradients", "without gradients it samples and keeps no graph", solves(chosen), checks.without, 10
        ),
        *_second_items(checks, chosen),
    )


_own_items = lru_cache(maxsize=8)(_items)
"""With this library's own solvers the items, and so their cases, are the same for every adjoint."""


def _second_items(checks: _Checks, chosen: tuple[Solver, ...]) -> tuple[Item, ...]:
    """Derivatives of derivatives, for adjoints that do not refuse them."""
    second = SecondChecks(checks.tolerance, checks._attempt)
    cases = solves(chosen).map(lambda case: replace(case, dtype=torch.float64, steps=min(case.steps, 6)))
    states = solves(chosen, trajectory=True).map(lambda case: replace(case, dtype=torch.float64))
    return (
        Item("second derivatives", "Hessian-vector products are those of Direct()", states, second.products, 10),
        Item(
            "taylor",
            "the remainder of a Taylor expansion has order 2 with the gradient, and 3 with the product",
            cases,
            second.taylor,
            4,
        ),
        Item("dot product", "<J v, w> = <v, J^T w>", cases, second.dot, 8),
    )


def _solvers(adjoint: Adjoint) -> tuple[Solver, ...]:
    """Any solver; reversible ones for an adjoint that refuses others."""
    for latent in (True, False):
        try:
            Solve(latent=latent).gradients(adjoint)
        except (TypeError, ValueError) as refusal:
            if "solver" in str(refusal):
                return REVERSIBLE
        except RuntimeError:
            continue
    return ANY


def _takes_latents(adjoint: Adjoint, solver: Solver) -> bool:
    """Whether x_T may require a gradient: truncations refuse that, and are exact in the rest."""
    try:
        Solve(solver=solver).gradients(adjoint)
    except RuntimeError as refusal:
        return "x_T" not in str(refusal)
    except Exception:
        return True
    return True


def check_adjoint(
    adjoint: Adjoint,
    *,
    solver: Solver | None = None,
    tolerance: float = 1e-9,
    only: str | None = None,
    skip: Collection[str] = (),
) -> None:
    """Hold an exact adjoint against ``Direct()``; None, or ``ContractError`` with the smallest counterexample.

    Items: ``"basic"``, ``"gradients"``, ``"trajectory"``, ``"hygiene"`` (calls repeat, ``backward`` alone fills
    ``.grad``, a second pass over a retained graph gives the same), ``"without gradients"``, and for adjoints that have
    derivatives of derivatives ``"second derivatives"`` (``create_graph=True``), ``"taylor"`` (remainders of order 2
    with the gradient and 3 with the Hessian-vector product) and ``"dot product"`` (``<J v, w> = <v, J^T w>``). The
    cases are ``sdeadjoint.testing.problems.Solve``: ODE and SDE of 1 to 20 steps, all kinds and predictions, float64
    and float32, x_T, two tensors of conditioning, nested, fixed and ``Scheduled``, the tensors of ``Guidance``, shared,
    frozen and unused weights, fixed, shifted and replayed noise, and weights that only a function closes over.

    Args:
        adjoint: an object.
        solver: the one solver to check it with; else several, reversible ones if it refuses ``Euler()`` for its solver.
        tolerance: relative error of a gradient, in the Euclidean norm, float64; in float32 1e4 eps, if that is more.
        only: check this item alone.
        skip: items left out.

    A refusal (``RuntimeError``, ``TypeError``, ``ValueError`` or ``RoundTripWarning`` with a sentence) of a case counts
    as refused, not as failed, but for the basic one. Not for adjoints that are not the gradient of the sampler, as
    ``ContinuousAdjoint`` and ``LowVariance``: ``check_gradient`` measures how far they are from it.
    """
    if not isinstance(adjoint, Adjoint):
        got = named(adjoint)
        raise TypeError(f"adjoint: got {got}; pass an object of a subclass of sdeadjoint.Adjoint, such as Checkpoint()")
    options = ("" if solver is None else f", solver={solver!r}") + (
        "" if tolerance == 1e-9 else f", tolerance={tolerance!r}"
    )
    hold(Subject("check_adjoint", "adjoint", adjoint, options), items(adjoint, solver, tolerance), only, skip)


def _shown(value: Tensor | None) -> str:
    if value is None:
        return "None"
    flat = value.flatten()
    return str([float(f"{x:.6g}") for x in flat[:6].tolist()]) + (f" and {len(flat) - 6} more" if len(flat) > 6 else "")
