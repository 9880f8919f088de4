"""The recursion on copies of its arguments, cut from their history."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ... import nests
from ...discretization import Carry, Discretization
from ...noise import Increment
from .leaves import distinct, leaf


@dataclass(frozen=True)
class Isolated:
    """A recursion whose differentiable arguments (x_T, conditioning, guidance, noise) are leaves of their own.

    The graph of a step then ends in these copies, in the network's parameters and in other leaves that the network
    reads, none of which can be reached through another: an argument that was computed from a parameter, or from
    another argument, is not counted twice, and hooks on it see its total gradient once.

    Args:
        recursion: the recursion with its conditioning and guidance replaced.
        originals, copies: the arguments that require gradients, each once, and their copies.
        x_T: what ``carry_0`` is replaced by.
    """

    recursion: Discretization
    originals: tuple[Tensor, ...]
    copies: tuple[Tensor, ...]
    x_T: Tensor

    def entry(self, n: int, carry: Carry) -> Carry:
        """The carry before step n as leaves."""
        return Carry(self.x_T, carry.state) if n == 0 else nests.map_tensors(leaf, carry)

    def increment(self, n: int) -> tuple[Increment | None, list[Tensor]]:
        """Step n's noise, and those of its tensors that are leaves to differentiate with respect to."""
        noise, increment = self.recursion.noise, self.recursion.increment(n)
        if noise is None or increment is None or not any(tensor.requires_grad for tensor in noise.tensors):
            return increment, []
        increment = nests.map_tensors(leaf, increment)
        return increment, list(nests.tensors(increment))


def arguments(recursion: Discretization, x_T: Tensor) -> list[Tensor]:
    """The tensors that a caller hands over, each once: x_T, the conditioning's and the guidance's."""
    guidance = recursion.denoiser.guidance
    return distinct([x_T, *nests.tensors([recursion.cond, None if guidance is None else guidance.tensors])])


def isolate(recursion: Discretization, x_T: Tensor) -> Isolated:
    """Cut the recursion from the history of its arguments."""
    originals = [tensor for tensor in arguments(recursion, x_T) if tensor.requires_grad]
    copies = {id(tensor): leaf(tensor) for tensor in originals}

    def copied(tensor: Tensor) -> Tensor:
        return copies.get(id(tensor), tensor)

    denoiser = recursion.denoiser
    if denoiser.guidance is not None:
        guidance = replace(denoiser.guidance, **nests.map_tensors(copied, denoiser.guidance.tensors))
        denoiser = denoiser.guided_by(guidance)
    cond = nests.map_tensors(copied, recursion.cond)
    return Isolated(
        replace(recursion, denoiser=denoiser, cond=cond), tuple(originals), tuple(copies.values()), copied(x_T)
    )
