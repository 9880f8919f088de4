"""One frozen solve, as the backward sweep needs it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ...discretization import Discretization
from .forward import Stage, training_modes
from .isolation import Isolated
from .surroundings import Autocast


class Retrieval(ABC):
    """How the backward sweep gets the stages that the forward sweep did not store."""

    @abstractmethod
    def stored(self, first: int, steps: int) -> frozenset[int]:
        """The steps from ``first`` on whose stages the forward sweep stores, besides the last."""

    @abstractmethod
    def backwards(self, plan: Plan, stack: list[tuple[int, Stage]], end: Tensor) -> Iterator[tuple[int, Stage, Tensor]]:
        """``(n, stage before step n, y_{n+1})`` for n from the last step to ``plan.first``.

        ``stack``: the stored stages, which are used up; ``end``: ``y_N``.
        """

    def permanent(self, stages: list[tuple[int, Stage]]) -> list[tuple[int, Stage]]:
        """Those of the stored stages that a second backward pass over a retained graph starts from."""
        return stages

    def tolerance(self, state: Tensor) -> float:
        """How far, relatively, a recomputed step may end from the state that was found in another way."""
        return 0.0


@dataclass(frozen=True)
class Plan:
    """One frozen solve.

    Args:
        isolated: the discretized sampler on copies of its arguments.
        inputs: the tensors that get gradients, each once.
        watched: tensors without gradients whose change between the sweeps would change the function.
        retrieval: where stages come from.
        keep: whether every state is an output.
        autocast: as it was in the forward sweep.
        borrows_graph, differentiates: see ``Swept``.
        modes: which of the network's modules were in training mode.
        first: the first step that is differentiated.
    """

    isolated: Isolated
    inputs: tuple[Tensor, ...]
    watched: tuple[Tensor, ...]
    retrieval: Retrieval
    keep: bool
    autocast: Autocast
    borrows_graph: bool
    differentiates: bool
    modes: tuple[bool, ...]
    first: int

    @property
    def recursion(self) -> Discretization:
        return self.isolated.recursion

    def check(self) -> None:
        """The door of the backward pass: no second derivatives, and flags are those of the forward sweep."""
        if torch.is_grad_enabled():
            raise RuntimeError(
                "this adjoint gives first derivatives only, but backward was called with create_graph=True; "
                "pass adjoint=Direct() for second derivatives"
            )
        flags = [*(tensor.requires_grad for tensor in self.inputs), *(not t.requires_grad for t in self.watched)]
        if not all(flags):
            raise RuntimeError(
                "requires_grad of a parameter, of x_T, of cond or of the noise was changed between the forward and the "
                "backward pass; change it before sample or after backward, or use adjoint=Direct()"
            )
        if training_modes(self.recursion) != self.modes:
            raise RuntimeError(
                "network: train() or eval() was called between the forward and the backward pass, so the recomputed "
                "function would be another; call it before sample or after backward, or use adjoint=Direct()"
            )
