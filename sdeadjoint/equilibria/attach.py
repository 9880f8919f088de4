"""The node of the autograd graph that stands for an equilibrium."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import nests
from ..adjoints.replay.graphs import dependencies, sequence_number
from ..adjoints.replay.hooks import MutedHooks
from ..adjoints.replay.leaves import distinct
from ..adjoints.replay.surroundings import Autocast
from ..compiling import eagerly
from ..fixed_point import Found
from .gradients import Gradient, Request
from .map import Map


@dataclass(frozen=True)
class Steps:
    """A few damped steps from the equilibrium, on copies of the tensors in cond, which are cut from
    their history.

    Their graph then ends in these copies, in parameters, and in other leaves that f reads, none of
    which can be reached through another.

    Args:
        mapped: f on the copies.
        copies: of the tensors of cond that require a gradient.
        gradient: says how many steps, and how damped.
        autocast: as it was when ``solve`` was called.
    """

    mapped: Map
    copies: tuple[Tensor, ...]
    gradient: Gradient
    autocast: Autocast

    def run(self, start: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
        """The start as a leaf, f there, and the state after ``count`` steps, with their graph."""
        with torch.enable_grad(), self.autocast.replayed():
            z = _leaf(start)
            image = self.mapped(z)
            out = self._damped(z, image)
            for _ in range(count - 1):
                out = self._damped(out, self.mapped(out))
        return z, image.detach(), out

    def _damped(self, z: Tensor, image: Tensor) -> Tensor:
        b = self.gradient.damping
        return image if b == 1 else (1 - b) * z + b * image


@dataclass(frozen=True)
class Plan:
    """One frozen equilibrium: what its backward pass needs besides the tensors that autograd saves.

    Args:
        steps: from the equilibrium.
        leaves: those that f reads, besides the copies in ``steps``.
        inputs: the tensors that get gradients, each once.
        slots: for each of the copies and leaves, the place of its original among the inputs.
        borrows: whether f reads tensors that were computed before, whose graph must outlive that of
            the steps.
        request: what was asked of the solve.
    """

    steps: Steps
    leaves: tuple[Tensor, ...]
    inputs: tuple[Tensor, ...]
    slots: tuple[int, ...]
    borrows: bool
    request: Request

    def pull_back(self, out: Tensor, u: Tensor, hooks: MutedHooks) -> list[Tensor | None]:
        """``u^T d out / d input``, in the order of the inputs."""
        totals: list[Tensor | None] = [None] * len(self.inputs)
        if not out.requires_grad:
            return totals
        wanted = [*self.steps.copies, *self.leaves]
        grads = hooks.differentiate([out], wanted, [u], retain_graph=self.borrows)
        for slot, grad in zip(self.slots, grads, strict=True):
            total = totals[slot]
            totals[slot] = grad if total is None else total if grad is None else total + grad
        return totals


def attach(mapped: Map, found: Found, gradient: Gradient, request: Request) -> Tensor:
    """Return the equilibrium with its gradient.

    Evaluates f once, to see what it depends on, and lets the graph go.
    """
    originals = [tensor for tensor in distinct(nests.tensors(mapped.cond)) if tensor.requires_grad]
    copies = {id(tensor): _leaf(tensor) for tensor in originals}
    cond = nests.map_tensors(lambda tensor: copies.get(id(tensor), tensor), mapped.cond)
    autocast = Autocast.current(mapped.layout.device)
    steps = Steps(mapped.on(cond), tuple(copies.values()), gradient, autocast)
    mark = sequence_number()
    z, image, out = steps.run(found.x, 1)
    before = torch.where(found.error.isfinite()[:, None], found.x + found.r, torch.nan)
    refuse_mismatch(found.x, image, before, autocast)
    seen = dependencies([out])
    if any(seen.includes(tensor) for tensor in originals if not tensor.is_leaf):
        raise RuntimeError(
            f"{mapped.name}: it reads a tensor of cond not only as an argument but also directly "
            "(through a closure), and the tensor is not a leaf, so its gradient would miss a part; "
            "let it use its arguments only"
        )
    leaves = seen.leaves_but([z, *steps.copies])
    inputs = distinct([*originals, *leaves])
    if not inputs:
        return found.x
    places = {id(tensor): place for place, tensor in enumerate(inputs)}
    slots = tuple(places[id(tensor)] for tensor in (*originals, *leaves))
    borrows = seen.precede(mark)
    plan = Plan(steps, tuple(leaves), tuple(inputs), slots, borrows, request)
    attached: Tensor = Equilibrium.apply(plan, found.x, image, *inputs)
    return attached


class Equilibrium(torch.autograd.Function):
    """``apply(plan, z, image, *plan.inputs)``: z as a function of what f depends on.

    ``image`` is f(z).
    """

    @staticmethod
    def forward(ctx: Any, plan: Plan, z: Tensor, image: Tensor, *inputs: Tensor) -> Tensor:
        ctx.plan = plan
        # Saved rather than kept: autograd then refuses a second backward, and changed inputs.
        ctx.save_for_backward(z, image, *inputs)
        return z.clone()

    @staticmethod
    @eagerly
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "equilibria.solve gives first derivatives only, but backward was called with "
                "create_graph=True; iterate f in a loop under autograd for second derivatives"
            )
        plan: Plan = ctx.plan
        start, image, *_ = ctx.saved_tensors
        steps = plan.steps
        with MutedHooks(plan.inputs) as hooks:
            z, again, out = steps.run(start, steps.gradient.steps)
            refuse_mismatch(start, again, image, steps.autocast)
            u = steps.gradient.cotangent(out, z, g, plan.request)
            return (None, None, None, *plan.pull_back(out, u, hooks))


def refuse_mismatch(z: Tensor, got: Tensor, before: Tensor, autocast: Autocast) -> None:
    """Raise if f(z) is not what it was before, but for round-off; NaN stands for not known."""
    narrow = z.dtype == torch.bfloat16 or autocast.enabled
    bound = 8 * torch.finfo(torch.bfloat16).eps if narrow else 64 * torch.finfo(z.dtype).eps
    known, wide = before.isfinite().all(1), torch.promote_types(z.dtype, torch.float32)
    z, got, before = (value[known].to(wide) for value in (z, got, before))
    error, size = (
        torch.linalg.vector_norm(value) for value in (got - before, torch.cat([z, before]))
    )
    if not error <= bound * size:
        raise RuntimeError(
            "f: it gave another value than before at the same state (difference "
            f"{float(error):.3g}), so the gradient would be another function's: it has dropout "
            "(call eval()), keeps a cache or counter, or was changed in between; make it a "
            "function of (z, cond)"
        )


def _leaf(tensor: Tensor) -> Tensor:
    """The tensor cut from its history, as a leaf whose gradient is asked for by name only."""
    cut = tensor.detach().requires_grad_()
    cut.register_post_accumulate_grad_hook(_refuse_use_outside)
    return cut


def _refuse_use_outside(cut: Tensor) -> None:
    cut.grad = None
    raise RuntimeError(
        "f: a tensor that it computed inside of equilibria.solve (recorded by it, or by a hook) is "
        "used in the loss, and its gradient would end there; measure the loss on what solve returns"
    )
