"""What was measured of one method, as values that survive JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

KINDS = ("x_T", "cond", "noise", "guidance", "weights")


@dataclass(frozen=True)
class Agreement:
    """A gradient g against a reference r.

    ``error``: ``||g - r|| / ||r||``; ``cosine``: that of the angle between them; both over the whole batch. The medians
    are over the samples of the batch, for x_T only, else None. A cosine with a vector that is zero is None.
    """

    error: float
    cosine: float | None
    median_error: float | None = None
    median_cosine: float | None = None


@dataclass(frozen=True)
class Gradient:
    """One kind of gradient: ``"x_T"``, ``"cond"``, ``"noise"``, ``"guidance"`` or ``"weights"``, each as one vector.

    ``own``: against the gradient of the sampler that ran; ``true``: against that of the exact solution. None: not
    measured, because the method has no such gradient or the truth is not known.
    """

    kind: str
    own: Agreement | None
    true: Agreement | None


@dataclass(frozen=True)
class Measurement:
    """One method at one number of steps.

    ``refused``: what the method said no to, in its words, empty if nothing. ``forward_calls`` are network calls while
    sampling, ``backward_calls`` those during the backward pass, ``products`` the vector-Jacobian products.
    ``seconds``: median, sampling and backward pass together. ``peak_bytes``: of tensors alive at once. ``round_trip``:
    how far, relatively, a reversible solver's way back ended from where it should; None for others.
    """

    method: str
    family: str
    steps: int
    solver: str
    refused: str = ""
    forward_calls: int | None = None
    backward_calls: int | None = None
    products: int | None = None
    seconds: float | None = None
    peak_bytes: int | None = None
    round_trip: float | None = None
    gradients: tuple[Gradient, ...] = ()
    warnings: tuple[str, ...] = ()

    def gradient(self, kind: str) -> Gradient | None:
        """The gradient of a kind, None if it was not measured."""
        return next((gradient for gradient in self.gradients if gradient.kind == kind), None)

    @classmethod
    def from_json(cls, data: dict[str, Any]) -> Measurement:
        """From what ``dataclasses.asdict`` made of it."""
        gradients = tuple(
            Gradient(g["kind"], *(None if g[key] is None else Agreement(**g[key]) for key in ("own", "true")))
            for g in data["gradients"]
        )
        return cls(**{**data, "gradients": gradients, "warnings": tuple(data["warnings"])})
