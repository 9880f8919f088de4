"""Who leaves a step through its entry: derivatives of tensors that were recorded inside of it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor


class Guard:
    """Refuses whoever walks a step's graph back through its entry.

    A tensor that was recorded inside of a step depends on all that came before, and its graph ends at the step's entry.
    So each entry is a ``Gate`` with an edge to what lies behind it: a derivative that would miss a part meets the gate
    on its way there and is refused.

    ``behind``: a tensor that depends on all of it, None if nothing does; ``refusal``: the last one, as a network may
    catch the error; ``is_open``: whether it is the backward sweep that walks, through a graph that was kept.
    """

    def __init__(self) -> None:
        self.behind: Tensor | None = None
        self.refusal: RuntimeError | None = None
        self.is_open = False
        self._known: set[int] = set()

    def extend(self, tensors: Iterable[Tensor]) -> None:
        """From now on these lie behind each entry, too."""
        new = [tensor for tensor in tensors if id(tensor) not in self._known and tensor.requires_grad]
        if new:
            self._known.update(map(id, new))
            self.behind = Behind.apply(*new, *(() if self.behind is None else (self.behind,)))

    def gate(self, own: Tensor, behind: Tensor | None) -> Tensor:
        """An entry from its leaf, with an edge to what lies behind it."""
        entry: Tensor = Gate.apply(self, own, behind)
        return entry

    @contextmanager
    def opened(self, is_open: bool) -> Iterator[None]:
        """For the backward sweep, where it walks through a graph that was kept."""
        before, self.is_open = self.is_open, is_open
        try:
            yield
        finally:
            self.is_open = before

    def refuse(self, sentence: str) -> NoReturn:
        """Raise, and remember it."""
        self.refusal = RuntimeError(sentence)
        raise self.refusal


RECORDED = (
    "network: a tensor that it computed inside of the sampler (recorded by it, or by a hook) is differentiated, and "
    "its gradient would end at the step's own state; measure the loss on what sample returns (trajectory=True has "
    "every state), let the network differentiate detached tensors, or pass adjoint=Direct()"
)


class Gate(torch.autograd.Function):
    """``apply(guard, leaf, behind)``: the leaf itself."""

    @staticmethod
    def forward(ctx: Any, guard: Guard, own: Tensor, behind: Tensor | None) -> Tensor:
        ctx.guard, ctx.own = guard, own
        ctx.set_materialize_grads(False)
        return own.detach() if own.layout is not torch.strided else own.view_as(own)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        guard: Guard = ctx.guard
        if not guard.is_open:
            guard.refuse(RECORDED)
        return None, grad, None


class Behind(torch.autograd.Function):
    """``apply(*tensors)``: an empty tensor that depends on them in name."""

    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> Tensor:
        ctx.count = len(tensors)
        ctx.set_materialize_grads(False)
        return torch.zeros(0, device="cpu")

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[None, ...]:
        return (None,) * ctx.count
