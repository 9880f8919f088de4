"""Is this gradient right? One call of ``sample`` against float64 autograd or difference quotients."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..adjoints import Adjoint, Checkpoint, Direct
from ..adjoints.checkpoint import parse_bytes
from ..diffusion.denoiser import Denoiser
from ..diffusion.frames import Frame
from ..noise import Noise
from ..solvers import Solver
from .call import Call, Gradients, Loss, Probe
from .differences import Quotient, quotients
from .result import GradientCheck, Row

REFERENCES = ("auto", "direct", "differences")


def check_gradient(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    loss: Loss,
    frame: Frame,
    grid: Tensor | Sequence[float],
    solver: Solver,
    noise: Noise | None = None,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    reference: str = "auto",
    memory: int | str = "4GiB",
    directions: int = 4,
    seed: int = 0,
) -> GradientCheck:
    """Compare every gradient of ``loss(sample(denoiser, x_T, ...))`` under ``adjoint`` with a float64 reference.

    Checked is each tensor that requires a gradient: x_T, tensors in ``cond`` (``cond.style[0]``), in ``FixedNoise``
    (``noise.increments``), in ``Guidance``, the parameters by their names, and tensors that the network closes over
    (``closure[0]``). Freeze what is not to be checked.

    Args:
        denoiser, x_T, frame, grid, solver, noise, cond, adjoint: as for ``sample``.
        loss: from the sample to one number. It gets a float64 sample for the reference.
        reference: ``"direct"``: ``Direct()`` on a float64 copy. ``"differences"``: central differences along random
            directions (``gradient_check/differences.py``), which share nothing with a backward pass. ``"auto"``: the
            first if its activations fit, estimated from one step that is measured.
        memory: what may be spent on activations by ``"auto"``: bytes, or a string such as ``"4GiB"``.
        directions: random directions per tensor for differences.
        seed: of the directions.

    Gradients below round-off (64 ulps of x_T's dtype, of the largest change of the loss that any tensor's unit relative
    change makes) cannot be compared with themselves: their error is relative to that bound, and a remark says so.

    Works on copies: the network, ``.grad`` fields, global generators and flags stay as they are. A function as network
    cannot be copied and is run as it is, in float64 too. Cost: three gradients, the reference's in float64; with
    differences ``4 * directions`` samples per tensor. Errors: ``ValueError`` if nothing requires a gradient; whatever
    the adjoint refuses, in its own words; ``RuntimeError`` for a network or loss that fails in float64.
    Not for training loops: it is a test.
    """
    if not isinstance(adjoint, Adjoint):
        raise TypeError(f"adjoint: got {type(adjoint).__name__}; pass an adjoint such as Checkpoint()")
    if reference not in REFERENCES:
        raise ValueError(f"reference: got {reference!r}; pass one of {REFERENCES}")
    if isinstance(directions, bool) or not isinstance(directions, int) or directions < 1:
        raise ValueError(f"directions: got {directions!r}; pass an integer >= 1")
    budget = parse_bytes(memory)
    given = Call(denoiser, x_T, loss, frame, grid, solver, noise, {} if cond is None else cond)
    own, double = given.copied(), given.copied(torch.float64)
    leaves, _ = _leaves(own)
    value, grads = own.gradients(adjoint, leaves)
    with in_double():
        twins, probe = _leaves(double)
        steps = double.recursion.steps
        if reference == "auto":
            reference = "direct" if probe.graph_bytes(steps) <= budget else "differences"
        if reference == "direct":
            reference_value, exact = double.gradients(Direct(), twins)
            rows = _against_autograd(twins, grads, exact, 64 * _coarsest(given, leaves))
        else:
            wanted = {name: leaf.requires_grad_(False) for name, leaf in twins.items() if not _is_closure(name)}
            reference_value = double.value()
            rows = _against_quotients(grads, quotients(double, wanted, directions, seed))
    notes = _notes(given, [name for name in leaves if _is_closure(name)], reference)
    dtype = str(x_T.dtype).removeprefix("torch.")
    losses = (value, reference_value)
    return GradientCheck(repr(adjoint), repr(solver), steps, dtype, reference, *losses, tuple(rows), tuple(notes))


def _leaves(call: Call) -> tuple[dict[str, Tensor], Probe]:
    """Name the tensors that are checked, and probe one step."""
    probe = call.probe()
    leaves = call.leaves() | {f"closure[{i}]": leaf for i, leaf in enumerate(probe.undeclared)}
    if not leaves:
        raise ValueError(
            "x_T: nothing requires a gradient, neither x_T nor cond, noise, guidance or any parameter; call "
            "requires_grad_() on what the gradient is wanted for"
        )
    return leaves, probe


def _is_closure(name: str) -> bool:
    return name.startswith("closure[")


@contextmanager
def in_double() -> Iterator[None]:
    """Say of an error that it is the float64 copy's."""
    try:
        yield
    except Exception as error:
        raise RuntimeError(
            "denoiser, loss: the call works, but its float64 copy, which is the reference, fails "
            f"({type(error).__name__}: {error}); make the network a module without fixed dtypes, and the loss take "
            "float64 samples, for instance loss=lambda x: classifier(x.float()).sum()"
        ) from error


def _coarsest(call: Call, leaves: Mapping[str, Tensor]) -> float:
    """The largest unit round-off among the dtypes that the gradient goes through."""
    dtypes = {call.x_T.dtype, call.denoiser.network_dtype or call.x_T.dtype, *(leaf.dtype for leaf in leaves.values())}
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def _against_autograd(leaves: Mapping[str, Tensor], grads: Gradients, exact: Gradients, scale: float) -> Iterator[Row]:
    """Rows for gradients and reference gradients of the same tensors; ``scale`` is where round-off begins."""
    sizes = {name: max(float(leaf.detach().norm()), leaf.numel() ** 0.5) for name, leaf in leaves.items()}
    most = max(0.0 if ref is None else float(ref.norm()) * sizes[name] for name, ref in exact.items())
    for name, leaf in leaves.items():
        found, ref = grads[name], exact[name]
        g, r = (_wide(value, leaf) for value in (found, ref))
        norm, reference_norm, error = float(g.norm()), float(r.norm()), float((g - r).norm())
        floor = scale * most / sizes[name]
        relative = error / max(reference_norm, floor) if error > 0 else error
        cosine = float((g * r).sum()) / (norm * reference_norm) if norm > 0 and reference_norm > 0 else None
        remark = ""
        if ref is None:
            remark = (
                "the loss does not depend on it" if found is None else "the loss does not depend on it, but got one"
            )
        elif reference_norm <= floor:
            remark = f"zero to round-off: error relative to {floor:.1e}"
        elif found is None:
            remark = "the adjoint gives no gradient"
        yield Row(name, norm, reference_norm, relative, cosine, remark=remark)


def _wide(gradient: Tensor | None, leaf: Tensor) -> Tensor:
    """In float64, dense, on the leaf's device; zeros for None."""
    if gradient is None:
        return torch.zeros_like(leaf, dtype=torch.float64)
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    return dense.detach().to(leaf.device, torch.float64)


def _against_quotients(grads: Gradients, found: Mapping[str, Sequence[Quotient]]) -> Iterator[Row]:
    """Rows from directional derivatives."""
    for name, along in found.items():
        g = grads[name]
        own = [float((_wide(g, q.direction) * q.direction).sum()) for q in along]
        values, errors = [q.value for q in along], [q.error for q in along]
        norm, reference_norm, uncertainty = (_rms(numbers) for numbers in (own, values, errors))
        difference = _rms([a - b for a, b in zip(own, values, strict=True)])
        remark = "" if g is not None else "the adjoint gives no gradient"
        if reference_norm <= uncertainty and norm <= uncertainty:
            remark = f"zero within the quotients' error of {uncertainty:.1e}"
            difference = uncertainty = 0.0
        size = max(reference_norm, uncertainty) or 1.0
        yield Row(name, norm, reference_norm, difference / size, None, uncertainty / size, remark)


def _rms(numbers: Sequence[float]) -> float:
    return math.hypot(*numbers) / math.sqrt(len(numbers))


def _notes(call: Call, closures: Sequence[str], reference: str) -> Iterator[str]:
    network = call.denoiser.network
    if not isinstance(network, nn.Module) and call.x_T.dtype != torch.float64:
        yield f"the network is a {type(network).__name__}, not a module: it was run as it is, in float64 too"
    for name in closures:
        how = "not checked: differences would have to change it in place" if reference == "differences" else "checked"
        yield f"{name}, a tensor that the network reads without having been given it, is {how}"
