"""What an error estimate found."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True)
class ErrorRow:
    """The estimate for the gradient in one tensor, in Euclidean norms.

    Args:
        name: ``"x_T"``, ``"cond.style[0]"``, or a parameter's name.
        norm: of the equation's gradient, as far as it is known.
        error: the estimate of ``|this gradient - the equation's|``.
        uncertainty: how far the estimate may be off: what is known of the error of the reference.
    """

    name: str
    norm: float
    error: float
    uncertainty: float

    @property
    def relative(self) -> float:
        """The error in units of the equation's gradient."""
        return self.error / self.norm if self.norm else (math.inf if self.error else 0.0)

    @property
    def reliable(self) -> bool:
        """Whether the estimate is right to a fifth, by its own account."""
        return self.uncertainty <= 0.2 * self.error


@dataclass(frozen=True)
class GradientError:
    """Estimated errors of the gradients of one call against the equation's; ``print`` shows a table.

    Args:
        rows: one for each tensor.
        errors: the estimates as tensors: the equation's gradient less this one, float64.
        gradients: the gradients of the call.
        steps: of the call's grid.
        reference: the solver whose refinements the gradient was compared with.
    """

    rows: tuple[ErrorRow, ...]
    errors: Mapping[str, Tensor] = field(repr=False)
    gradients: Mapping[str, Tensor] = field(repr=False)
    steps: int
    reference: str

    @property
    def absolute(self) -> float:
        """The estimated error of all gradients together, a Euclidean norm."""
        return math.hypot(*(row.error for row in self.rows))

    @property
    def relative(self) -> float:
        """The same in units of all gradients together."""
        norm = math.hypot(*(row.norm for row in self.rows))
        return self.absolute / norm if norm else (math.inf if self.absolute else 0.0)

    @property
    def uncertainty(self) -> float:
        """How far ``absolute`` may be off."""
        return math.hypot(*(row.uncertainty for row in self.rows))

    @property
    def reliable(self) -> bool:
        """Whether ``absolute`` is right to a fifth, by its own account."""
        return self.uncertainty <= 0.2 * self.absolute

    @property
    def improved(self) -> dict[str, Tensor]:
        """The gradients with the estimated errors taken away, float64: nearer to the equation's where reliable."""
        return {name: self.gradients[name].double() + error for name, error in self.errors.items()}

    def __str__(self) -> str:
        lines = [f"{'':24}{'norm':>12}{'error':>12}{'relative':>12}{'uncertain':>12}"]
        for row in self.rows:
            numbers = f"{row.norm:12.3g}{row.error:12.3g}{row.relative:12.2%}{row.uncertainty:12.2g}"
            lines.append(f"{row.name:24}{numbers}")
        lines.append(f"{self.steps} steps, against refinements by {self.reference}")
        if not self.reliable:
            lines.append("not reliable: these steps are too long for the estimate; take more of them")
        return "\n".join(lines)
