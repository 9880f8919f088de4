"""What an adjoint is: a way to run a recursion so that autograd can differentiate it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..recursion import Observer, Recursion


class Adjoint(ABC):
    """Runs a recursion and decides how its gradient is computed. It knows nothing of diffusion.

    The contract: the values are those of ``Direct``, bit for bit; gradients reach the initial state, the equation's
    tensors (conditioning, for instance) and parameters, the noise's tensors and any other leaf that the drift reads, or
    the call is refused. They are exact unless the adjoint's own documentation says what they are instead, and how far
    from exact.
    """

    @abstractmethod
    def solve(self, recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        """From ``y_0``: ``(y_N,)``, or ``(y_1, ..., y_N)`` if ``keep``; ``observe`` sees each carry once, in order."""
