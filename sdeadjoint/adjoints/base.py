"""What an adjoint is: a way to run a recursion so that autograd can differentiate it."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from ..discretization import Discretization
from ..integrate import Observer


class Adjoint(ABC):
    """Runs a discretized sampler and decides how its gradient is computed.

    The contract: the values are those of ``Direct``, bit for bit; gradients reach x_T, every tensor of ``cond``,
    the denoiser's parameters, the noise's tensors and any other leaf the network reads, or the call is refused. They
    are exact unless the adjoint's own documentation says what they are instead, and how far from exact.
    """

    @abstractmethod
    def solve(self, recursion: Discretization, x_T: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
        """``(y_N,)``, or ``(y_1, ..., y_N)`` if ``keep``; ``observe`` sees each carry once, in order."""
