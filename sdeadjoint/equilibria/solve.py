"""Equilibria ``z* = f(z*; cond)``, one per sample, with their gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from .. import nests
from ..arguments import check_types, named
from ..compiling import eagerly
from ..fixed_point import Anderson, Derivative, Method, fixed_point
from .attach import attach
from .gradients import Gradient, Implicit, Request, check_tol
from .map import Layout, Map, autocast_cache_cleared, check_cond, check_start, refuse_transforms
from .report import Report, Watch, warn_unless_reached

REMEDY = (
    "a method with a larger max_iterations, another method such as Newton(), a better z0 or a "
    "larger tol. If f has dropout, call eval() first"
)


@eagerly
def solve(
    f: Callable[..., Any],
    z0: Any,
    cond: Mapping[str, Any] | None = None,
    *,
    tol: float,
    method: Method = Anderson(),  # noqa: B008 (frozen)
    gradient: Gradient = Implicit(),  # noqa: B008 (frozen)
    watch: Watch | None = None,
) -> Any:
    """Solve ``z = f(z, **cond)`` for each sample: a deep equilibrium layer.

        z = sa.equilibria.solve(f, torch.zeros(16, 32), {"x": x}, tol=1e-6)
        loss(z).backward()      # fills x.grad, and the .grad of f's parameters

    A sample is done when ``|f(z) - z| <= tol |f(z)|``, in the Euclidean norm over all of its
    numbers, and does not change any more. (An f(z) that is small as round-off of the largest one
    met counts as that large, so that an equilibrium of zero can be reached.) Samples have histories
    of their own; if f treats them independently, so does ``solve``. A sample that is not done in
    the method's ``max_iterations`` returns its best iterate, with an ``EquilibriumWarning`` that
    has the residual.

    Gradients are PyTorch's own, and reach tensors in ``cond``, f's parameters, and any other
    tensors that f reads. They do not reach ``z0``, on which z does not depend: one that requires a
    gradient is refused. f is evaluated without a graph, and once more with a graph, to see what it
    depends on; the graph is made anew in the backward pass. The value is the same with and without
    gradients.

    Args:
        f: a function or module, ``f(z, **cond)`` like z. It must be pure: no dropout, no counters.
            Called by all samples at once.
        z0: where to start, a tensor (batch, ...) or a nest of such; float64, float32 or bfloat16.
        cond: keyword arguments of f, tensors or nests.
        tol: relative residual. Not below the dtype's round-off.
        method: ``FixedPoint()``, ``Anderson()``, ``Broyden()`` or ``Newton()``.
        gradient: ``Implicit()``, exact; ``Phantom(k, damping)`` and ``OneStep()``, cheap and
            inexact.
        watch: called with a ``Report`` after the forward pass, and after the linear system of an
            implicit gradient.

    Cost: one evaluation of f per iteration, of all samples until the last is done; see the method.
    Memory: z and what the method remembers, whatever the number of iterations. First derivatives
    only, and no transforms of ``torch.func``; both are refused. The equilibrium that is found
    depends on z0 where there are several.

    Sources: Bai, Kolter and Koltun (2019); see the methods and gradients.
    """
    cond = {} if cond is None else cond
    _check(f, z0, cond, method, gradient)
    layout = Layout.of(z0)
    check_tol(tol, torch.finfo(layout.dtype).eps, layout.dtype)
    mapped = Map(f, cond, layout)
    search = _Search(mapped)
    with torch.no_grad(), autocast_cache_cleared(layout.device):
        start, derivative = layout.pack(z0), Derivative(search.push)
        found = fixed_point(search.update, start, tol=tol, method=method, derivative=derivative)
    warn_unless_reached(found, tol, method, "the equilibrium", REMEDY, stacklevel=2)
    z, calls = found.x, found.iterations
    if torch.is_grad_enabled():
        z, calls = attach(mapped, found, gradient, Request(method, tol, watch)), calls + 1
    if watch is not None:
        watch(Report("forward", found.error, found.counts, calls, search.products))
    return layout.unpack(z)


class _Search:
    """The update of the forward pass, which knows how large states have been."""

    def __init__(self, mapped: Map) -> None:
        self.mapped, self.products = mapped, 0
        self.largest: Tensor | None = None

    def update(self, z: Tensor) -> tuple[Tensor, Tensor]:
        image = self.mapped(z)
        if self.largest is None:
            refuse_transforms(iter([image]))
            _refuse_without_a_value(image)
        wide = torch.promote_types(z.dtype, torch.float32)
        size = torch.linalg.vector_norm(image.to(wide), dim=1).double()
        self.largest = size if self.largest is None else torch.fmax(self.largest, size)
        least = torch.finfo(z.dtype).eps * self.largest.where(self.largest.isfinite(), 0.0)
        r = image - z
        error = torch.linalg.vector_norm(r.to(wide), dim=1).double()
        return r, torch.where(error > 0, error / torch.maximum(size, least), error)

    def push(self, z: Tensor, v: Tensor) -> Tensor:
        self.products += 1
        return self.mapped.pushed(z, v)


def _refuse_without_a_value(image: Tensor) -> None:
    """At z0; later on a sample whose value is not finite goes back to its best iterate."""
    finite = image.isfinite().all(dim=1)
    if not finite.all():
        sample = int(finite.logical_not().nonzero()[0, 0])
        raise ValueError(
            f"f: returned NaN or infinite numbers at z0 (sample {sample}); pass a z0 where f is finite"
        )


def _check(
    f: object, z0: object, cond: Mapping[str, Any], method: object, gradient: object
) -> None:
    if not callable(f):
        raise TypeError(f"f: got {named(f)}; pass a function or module f(z, **cond)")
    check_cond(cond)
    refuse_transforms(iter([*nests.tensors(z0), *nests.tensors(cond)]))
    check_start(z0)
    check_types(
        ("method", method, Method, "a method such as Anderson()"),
        ("gradient", gradient, Gradient, "a gradient such as Implicit()"),
    )
