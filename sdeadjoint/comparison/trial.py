"""One method tried on one call: its gradients, what they cost, and how well they agree with references."""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..adjoints import Adjoint, Direct, Reversible
from ..gradient_check.call import Call, Gradients, generators_kept
from ..memory import PeakMemory
from ..noise import BrownianPath, ShiftedNoise
from .methods import Method
from .result import KINDS, Agreement, Agreements

# With respect to some of these a method may refuse a gradient, and still have the others.
DROPS: tuple[frozenset[str], ...] = tuple(frozenset(kinds) for kinds in ((), ("x_T",), ("noise",), ("x_T", "noise")))
REFUSALS = (TypeError, ValueError, RuntimeError, NotImplementedError)


class Prepared(NamedTuple):
    """A copy of a call, and those of its tensors whose gradients are taken."""

    call: Call
    wanted: dict[str, Tensor]


class Counts(NamedTuple):
    """Network calls in the forward and the backward pass, and vector-Jacobian products."""

    forward: int
    backward: int
    products: int


@dataclass(frozen=True)
class Answer:
    """A method's gradients (None if it refused), its refusal and warnings, and its round-trip error."""

    gradients: Gradients | None
    counts: Counts
    without: frozenset[str]
    refused: str = ""
    warnings: tuple[str, ...] = ()
    round_trip: float | None = None


@dataclass(frozen=True)
class Trial:
    """A method on a call with one grid; ``without``: kinds of tensors whose gradients are not asked for."""

    method: Method
    call: Call
    without: frozenset[str] = field(default=frozenset())

    @classmethod
    def create(cls, method: Method, call: Call) -> Trial:
        return cls(method, call if method.solver is None else replace(call, solver=method.solver))

    def prepared(self, dtype: torch.dtype | None = None, *, shifted: bool = False) -> Prepared:
        """Copy the call afresh; ``shifted`` gives replayed noise a shift of zero, whose gradient is the noise's."""
        copied = self.call.copied(dtype)
        if shifted and isinstance(copied.noise, BrownianPath) and copied.frame.eta > 0:
            zeros = copied.x_T.detach().new_zeros(copied.recursion.steps, *copied.x_T.shape)
            areas = zeros.clone().requires_grad_() if copied.solver.claims.levy != "none" else None
            copied = replace(copied, noise=ShiftedNoise(copied.noise, zeros.requires_grad_(), areas))
        leaves = copied.leaves()
        for name, leaf in leaves.items():
            leaf.requires_grad_(kind_of(name) not in self.without)
        return Prepared(copied, {name: leaf for name, leaf in leaves.items() if leaf.requires_grad})

    def as_used(self) -> Trial:
        """Return the trial on a path that is not refinable: only the truth needs that, at ten times the time."""
        noise = self.call.noise
        if not isinstance(noise, BrownianPath):
            return self
        return replace(self, call=replace(self.call, noise=replace(noise, refinable=False)))

    def answer(self) -> Answer:
        """Take all gradients that the method gives: without x_T, the noise or both where it refuses those."""
        refused: list[str] = []
        present = {kind_of(name) for name in self.prepared(shifted=True).wanted}
        for without in DROPS:
            if not without <= present or without == present:
                continue
            trips: list[float] = []
            with warnings.catch_warnings(record=True, action="always") as caught:
                call, wanted = replace(self, without=without).prepared(shifted=True)
                try:
                    found, counts = _counted(call, _watched(self.method.adjoint, trips), wanted)
                except REFUSALS as error:
                    refused.append(_sentence(error))
                    continue
            if not all(g is None or g.isfinite().all() for g in found.values()):
                return Answer(None, counts, without, "the gradient is not finite")
            told = tuple(dict.fromkeys(str(warning.message) for warning in caught))
            return Answer(found, counts, without, "; ".join(refused[:1]), told, trips[-1] if trips else None)
        return Answer(None, Counts(0, 0, 0), frozenset(), refused[0])

    def own_reference(self) -> Gradients:
        """Take the gradient of the sampler that runs here by plain autograd in float64."""
        call, wanted = self.prepared(torch.float64, shifted=True)
        return call.gradients(Direct(), wanted)[1]

    def peak_bytes(self) -> int:
        """Count the most bytes of tensors alive at once while sampling and differentiating."""
        call, wanted = self.as_used().prepared()
        with warnings.catch_warnings(action="ignore"), PeakMemory() as memory:
            call.gradients(self.method.adjoint, wanted)
        return memory.peak

    def seconds(self) -> float:
        """Time sampling and differentiating, once."""
        call, wanted = self.as_used().prepared()
        _synchronize(call.x_T.device)
        with warnings.catch_warnings(action="ignore"):
            start = time.perf_counter()
            call.gradients(self.method.adjoint, wanted)
            _synchronize(call.x_T.device)
            return time.perf_counter() - start


def _counted(copied: Call, adjoint: Adjoint, wanted: dict[str, Tensor]) -> tuple[Gradients, Counts]:
    """Take gradients, and count the network calls that they took."""
    call, counter = counted(copied)
    with generators_kept(call.x_T.device):
        loss = call.evaluate(adjoint)
        forward = counter.calls
        grads = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    counts = Counts(forward, counter.calls - forward, counter.products)
    return dict(zip(wanted, grads, strict=True)), counts


def _watched(adjoint: Adjoint, trips: list[float]) -> Adjoint:
    """Return the same adjoint, which tells its round-trip error if it has one."""
    return replace(adjoint, watch=trips.append) if isinstance(adjoint, Reversible) else adjoint


def _sentence(error: Exception) -> str:
    """An error's message on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _synchronize(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


# ---------------------------------------------------------------- agreement with references


def kind_of(name: str) -> str:
    """The kind of a tensor by its name in a ``Call``."""
    head = name.split(".")[0].split("[")[0]
    return head if head in KINDS else "weights"


def agreements(found: Gradients, own: Gradients, true: Gradients | None) -> tuple[Agreements, ...]:
    """By kind, in the order of ``KINDS``, each kind's tensors as one vector; None counts as zero."""
    kinds = [kind for kind in KINDS if any(kind_of(name) == kind for name in found)]
    return tuple(Agreements(kind, _agreement(kind, found, own), _agreement(kind, found, true)) for kind in kinds)


def _agreement(kind: str, found: Gradients, reference: Gradients | None) -> Agreement | None:
    names = [name for name in found if kind_of(name) == kind]
    if reference is None or not all(name in reference for name in names):
        return None
    g, r = (_joined([pair[i] for pair in _pairs(names, found, reference)], kind) for i in (0, 1))
    if not r.norm() > 0:
        return None
    error, ratio = float((g - r).norm() / r.norm()), float(g.norm() / r.norm())
    cosine = float((g * r).sum() / (g.norm() * r.norm())) if g.norm() > 0 else None
    if kind != "x_T" or not (r.norm(dim=1) > 0).all():
        return Agreement(error, cosine, ratio=ratio)
    errors, ratios = (g - r).norm(dim=1) / r.norm(dim=1), g.norm(dim=1) / r.norm(dim=1)
    cosines = (g * r).sum(1) / (g.norm(dim=1) * r.norm(dim=1))
    return Agreement(
        error,
        cosine,
        median_error=float(errors.median()),
        median_cosine=float(cosines.median()) if (g.norm(dim=1) > 0).all() else None,
        ratio=ratio,
        median_ratio=float(ratios.median()),
    )


def _pairs(names: list[str], found: Gradients, reference: Gradients) -> list[tuple[Tensor, Tensor]]:
    """In float64; a missing one is zero, a tensor without either is left out."""
    pairs = []
    for name in names:
        g, r = found[name], reference[name]
        if g is not None or r is not None:
            like = (g if r is None else r).double()  # type: ignore[union-attr]
            zero = torch.zeros_like(like)
            pairs.append((zero if g is None else g.to(like), zero if r is None else like))
    return pairs


def _joined(tensors: list[Tensor], kind: str) -> Tensor:
    """One vector per sample for x_T, one for all else: (batch or 1, numbers)."""
    if not tensors:
        return torch.zeros(1, 1, dtype=torch.float64, device="cpu")
    rows = len(tensors[0]) if kind == "x_T" else 1
    return torch.cat([tensor.to_dense().reshape(rows, -1) for tensor in tensors], dim=1)


# ---------------------------------------------------------------- counting network calls


class Counted(nn.Module):
    """A network that counts how often it is called, and how often something is pulled back through its output."""

    def __init__(self, network: Callable[..., Any]) -> None:
        super().__init__()
        self.network = network
        # Not an attribute that is a number: such a one is put back where a step is recomputed.
        self.tally: Counter[str] = Counter()

    @property
    def calls(self) -> int:
        return self.tally["calls"]

    @property
    def products(self) -> int:
        return self.tally["products"]

    def forward(self, x: Tensor, t: Tensor, **cond: Any) -> Any:
        self.tally["calls"] += 1
        out = self.network(x, t, **cond)
        return _Mark.apply(out, self) if isinstance(out, Tensor) and out.requires_grad else out


class _Mark(torch.autograd.Function):
    """The identity, which tells its counter when a cotangent comes by."""

    generate_vmap_rule = True

    @staticmethod
    def forward(out: Tensor, counter: Counted) -> Tensor:
        return out.view_as(out)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Counted], output: Tensor) -> None:
        ctx.counter = inputs[1]

    @staticmethod
    def backward(ctx: Any, cotangent: Tensor) -> tuple[Tensor, None]:
        ctx.counter.tally["products"] += 1
        return cotangent, None


def counted(call: Call) -> tuple[Call, Counted]:
    """A call, which must be a copy of its own, on the same network with a counter around it."""
    counter = Counted(call.denoiser.network)
    call.denoiser.network = counter
    return replace(call), counter
