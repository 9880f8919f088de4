"""A table of networks as people wrap, patch and break them: every adjoint is plain autograd's, or refuses.

A case is exact unless the table says that it is refused, and by which sentence. What it leaves behind (buffers,
counters, generators) is that of plain autograd as well.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa

from .awkward import ANOTHER_NUMBER, Case
from .awkward_inside import CASES
from .loops import DOUBLE, loop, sampled
from .solves import worst

pytestmark = [
    pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
]
# Four steps, from times of which some cases take each for something else.
NODES = (1.0, 0.83, 0.41, 0.2, 0.05)
LAST = 2
ADJOINTS = {
    "checkpoint": sa.Checkpoint(),
    "one snapshot": sa.Checkpoint(1),
    "two snapshots": sa.Checkpoint(2),
    "a few bytes": sa.Checkpoint(memory=400),
    "all graphs": sa.Checkpoint(memory="1MiB"),
    "reversible": sa.Reversible(),
    "truncated": sa.Truncated(LAST),
    "all steps": sa.Truncated(99),
}
REMEDY = r"adjoint=Direct\(\)|adjoint=Checkpoint\(\)"


def truncated_loop(network: Callable[..., Tensor], x: Tensor, **cond: Any) -> Tensor:
    first = loop(network, x, nodes=NODES[: len(NODES) - LAST], **cond)
    x = first.detach().requires_grad_(first.requires_grad)
    return loop(network, x, nodes=NODES[len(NODES) - LAST - 1 :], **cond)


def oracle(name: str, made: Case, x_T: Tensor) -> Tensor:
    if name == "reversible":
        return sampled(made.network, x_T, sa.Direct(), sa.Coupled(sa.Euler()), NODES, **made.cond)
    if name == "truncated":
        return truncated_loop(made.network, x_T, **made.cond)
    return loop(made.network, x_T, nodes=NODES, **made.cond)


def gradients(out: Tensor, leaves: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    if not (leaves and out.requires_grad):
        return ()
    grads = torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)
    return tuple(grad if grad is None else grad.to_dense() for grad in grads)


def left_behind(module: nn.Module | None) -> tuple[dict[str, Tensor], Any]:
    state = {} if module is None else {name: tensor.clone() for name, tensor in module.state_dict().items()}
    return state, getattr(module, "count", None)


def run(which: str, name: str, adjoint: sa.Adjoint | None) -> tuple[Case, Tensor, tuple[Tensor | None, ...]]:
    """A case made anew, its sample and its gradients; without an adjoint, as plain autograd has them."""
    # torch.manual_seed writes down the whole stack, slowly.
    torch.default_generator.manual_seed(1)  # for the layers
    made = CASES[which]()
    x_T = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_(name != "truncated")
    torch.default_generator.manual_seed(0)
    if adjoint is None:
        out = oracle(name, made, x_T)
    else:
        method: Any = sa.Coupled(sa.Euler()) if name == "reversible" else "euler"
        out = sampled(made.network, x_T, adjoint, method, NODES, **made.cond)
        made.between()
    return made, out.detach(), gradients(out, [*([x_T] if x_T.requires_grad else []), *made.leaves])


@functools.cache
def plain(which: str, name: str) -> tuple[Tensor, tuple[Tensor | None, ...], Tensor, tuple[dict[str, Tensor], Any]]:
    """The oracle's sample and gradients, the number drawn next, and what is left behind."""
    made, want, expected = run(which, name, None)
    drawn = torch.rand(1)
    return want, expected, drawn, left_behind(made.module)


@functools.cache
def described(which: str) -> Case:
    """A case that is made for its sentences alone."""
    return CASES[which]()


def sentence(name: str, which: str) -> str:
    """By which an adjoint refuses a case; empty if it is exact."""
    made = described(which)
    repeated = "" if name == "all graphs" else made.repeated
    return (made.inverse if name == "reversible" else "") or made.refused or repeated


@pytest.mark.parametrize("name", ADJOINTS)
@pytest.mark.parametrize("which", CASES)
def test_exact_or_refused(which: str, name: str) -> None:
    if refused := sentence(name, which):
        if refused == ANOTHER_NUMBER and not hasattr(torch._C._autograd.SavedTensor, "data"):
            pytest.skip("PyTorch shows the numbers of a graph from 2.13 on; docs/gradients.md says so")
        with pytest.raises(RuntimeError, match=refused) as error:
            run(which, name, ADJOINTS[name])
        assert error.match(REMEDY)
        return
    # The adjoints of all steps have one oracle.
    want, expected, drawn, (state, count) = plain(which, name if name in ("reversible", "truncated") else "all")
    made, got, grads = run(which, name, ADJOINTS[name])
    assert torch.equal(torch.rand(1), drawn)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)
    assert len(grads) == len(expected)
    # The round-off of four steps in float64, and of the way back where there is one.
    assert not grads or worst(grads, expected) <= 10.0 ** -(made.digits if name == "reversible" else 10)
    other, counted = left_behind(made.module)
    assert count == counted
    assert state.keys() == other.keys()
    for key, tensor in state.items():
        torch.testing.assert_close(other[key], tensor, rtol=1e-12, atol=1e-14)
