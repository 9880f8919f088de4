"""The result of a gradient check: a row for each tensor."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """One tensor's gradient g against its reference.

    With a reference gradient: the norms of both, ``||g - ref|| / ||ref||`` and the cosine between them. With difference
    quotients D_k along directions d_k: root mean squares over k of ``<g, d_k>`` and ``D_k``, the root mean square of
    their difference over that of D_k, and no cosine.

    ``uncertainty`` is the reference's own relative error: 0 for autograd, the quotients' error estimate otherwise.
    ``remark`` says in a sentence where the numbers need one.
    """

    name: str
    norm: float
    reference_norm: float
    relative_error: float
    cosine: float | None
    uncertainty: float = 0.0
    remark: str = ""


@dataclass(frozen=True)
class GradientCheck:
    """The result of ``check_gradient``: a row for each tensor, the losses, and how they were got."""

    adjoint: str
    solver: str
    steps: int
    dtype: str
    reference: str
    loss: float
    reference_loss: float
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def worst(self) -> Row:
        """The row with the largest relative error; NaN is worse than anything."""
        return max(self.rows, key=lambda row: math.inf if math.isnan(row.relative_error) else row.relative_error)

    def passed(self, tolerance: float) -> bool:
        """Say whether every relative error is at most ``tolerance``, but for the reference's own uncertainty.

        ``ValueError`` where difference quotients are too coarse to tell.
        """
        if not all(row.relative_error <= tolerance + row.uncertainty for row in self.rows):
            return False
        coarsest = max(self.rows, key=lambda row: row.uncertainty)
        if coarsest.uncertainty > tolerance:
            raise ValueError(
                f"tolerance: got {tolerance}, but the difference quotients of {coarsest.name} are known to "
                f"{coarsest.uncertainty:.1e} only; pass a larger tolerance, or check_gradient(reference='direct')"
            )
        return True

    def as_json(self) -> dict[str, Any]:
        """Numbers, strings, lists and mappings only."""
        return asdict(self)

    def __str__(self) -> str:
        how = {
            "direct": "plain autograd in float64",
            "differences": "central differences in float64: root mean squares along random directions",
        }
        head = f"{self.adjoint} with {self.solver}, {self.steps} steps, {self.dtype}, against {how[self.reference]}"
        losses = f"loss {self.loss:.9g}, reference {self.reference_loss:.9g}"
        width = max(len("gradient of"), *(len(row.name) for row in self.rows))
        columns = f"{'norm':>11}{'reference':>11}{'rel. error':>12}{'known to':>10}{'cosine':>15}"
        lines = [head, losses, f"{'gradient of':{width}}{columns}"]
        for row in self.rows:
            cosine = "-" if row.cosine is None else f"{row.cosine:.10f}"
            known = f"{row.uncertainty:.0e}" if row.uncertainty else "-"
            numbers = f"{row.norm:11.3e}{row.reference_norm:11.3e}{row.relative_error:12.1e}{known:>10}{cosine:>15}"
            lines.append(f"{row.name:{width}}{numbers}  {row.remark}".rstrip())
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])
