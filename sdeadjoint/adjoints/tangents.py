"""Other ways to differentiate than a backward pass: forward-mode tangents, and the transforms of ``torch.func``."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from .. import nests
from ..recursion import Carry, Observer, Recursion
from .direct import Direct
from .replay.guard import Behind
from .replay.sources import Sources


def refuse_transforms() -> None:
    """Raise inside of ``torch.func.grad``, ``vmap`` and what is made of them, but not of ``jvp`` and ``jacfwd``."""
    kinds = [interpreter.key() for interpreter in _functorch.get_interpreter_stack() or ()]
    forward = {_functorch.TransformType.Jvp, _functorch.TransformType.Vmap}
    if kinds and not (set(kinds) <= forward and _functorch.TransformType.Jvp in kinds):
        name = next(kind.name.lower() for kind in kinds if kind != _functorch.TransformType.Jvp)
        raise RuntimeError(
            f"adjoint: inside of torch.func ({name}) there is no backward pass in which this adjoint could recompute "
            "its steps; pass adjoint=Direct(), or call torch.autograd.grad outside"
        )


def has_tangents(recursion: Recursion, y: Tensor) -> bool:
    """Whether what the recursion reads has forward-mode tangents, at the present level."""
    if forward_ad._current_level < 0:
        return False
    return _any_dual(_given(recursion, y))


def refuse_tangents(recursion: Recursion, y: Tensor, name: str) -> None:
    """Raise for tangents that an adjoint would not push forward as it should."""
    if has_tangents(recursion, y):
        raise RuntimeError(
            f"adjoint: {name} has no forward-mode derivative, and an argument or a parameter has a tangent; pass "
            "adjoint=Direct(), or Checkpoint(), which pushes tangents forward in the memory of one step"
        )


def refuse_hidden_tangents(carry: Carry) -> None:
    """Raise if a step whose arguments have no tangents made some."""
    if forward_ad._current_level >= 0 and _any_dual(nests.tensors(carry)):
        raise RuntimeError(
            "network: it reads a tensor with a forward-mode tangent that cannot be seen from outside; pass it in cond, "
            "or pass adjoint=Direct()"
        )


def push_forward(recursion: Recursion, y: Tensor, *, keep: bool, observe: Observer) -> tuple[Tensor, ...]:
    """The states with their tangents, as ``Direct`` has them, in the memory of one step.

    Steps run without a graph: with one, a saved result would keep its tangent alive, whose graph keeps the result.
    There is no backward pass through these states: one that is tried is refused. Inside of ``torch.func.jvp`` and
    ``jacfwd`` it is ``Direct``, with the graph that weights which require gradients ask for; ``torch.no_grad()`` around
    it leaves that out.
    """
    if _functorch.get_interpreter_stack():
        return Direct().solve(recursion, y, keep=keep, observe=observe)
    states: list[Tensor] = []
    wanting = [tensor for tensor in _given(recursion, y) if tensor.requires_grad]
    with torch.no_grad():
        carry = recursion.start(y)
        for n in range(recursion.steps):
            carry = recursion.step(n, carry, recursion.increment(n))
            observe(n + 1, carry)
            if keep or n + 1 == recursion.steps:
                states.append(carry.y)
    return tuple(_without_backward(state, wanting) for state in states)


def _given(recursion: Recursion, y: Tensor) -> list[Tensor]:
    """What a recursion can be seen to depend on."""
    noise = () if recursion.noise is None else recursion.noise.tensors
    given = recursion.equation.tensors
    seen = Sources.of(recursion.equation.module, recursion.after_step, *nests.others(given)).parameters
    return [y, *nests.tensors(given), *noise, *seen]


def _any_dual(tensors: Iterable[Tensor]) -> bool:
    return any(forward_ad.unpack_dual(tensor).tangent is not None for tensor in tensors)


def _without_backward(y: Tensor, wanting: Sequence[Tensor]) -> Tensor:
    """The same with edges to what requires gradients, over which nothing can be pulled back."""
    if not wanting:
        return y
    primal, tangent = forward_ad.unpack_dual(y)
    edge = Behind.apply(*(forward_ad.unpack_dual(tensor).primal for tensor in wanting))
    primal = ForwardOnly.apply(primal, edge)
    return primal if tangent is None else forward_ad.make_dual(primal, ForwardOnly.apply(tangent, edge))


class ForwardOnly(torch.autograd.Function):
    """``apply(value, behind)``: the value."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, behind: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> NoReturn:
        raise RuntimeError(
            "adjoint: this call pushed tangents forward, step by step, and kept nothing for a backward pass; pass "
            "adjoint=Direct() for both at once, or call sample again without tangents"
        )
