"""The loops read no values, for which an accelerator would have to be waited for at every step."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import sdeadjoint as sa
from sdeadjoint.ledger import read_at_the_end, require

from .networks import Mlp
from .solves import DOUBLE, SCHEDULE

READS = {
    torch.ops.aten._local_scalar_dense,
    torch.ops.aten.equal,
    torch.ops.aten.nonzero,
    torch.ops.aten.is_nonzero,
}


class Reads(TorchDispatchMode):
    """Counts the operations that hand a tensor's values to Python."""

    def __init__(self) -> None:
        super().__init__()
        self.found = Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket in READS:
            self.found[str(func)] += 1
        return func(*args, **(kwargs or {}))


def reads(steps: int, adjoint: sa.Adjoint, solver: sa.Solver, eta: float) -> Counter[str]:
    network, x_T = Mlp(4), torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4).requires_grad_()
    style = torch.linspace(0, 1, 16, dtype=DOUBLE).reshape(2, 8).requires_grad_()
    grid = sa.uniform_logsnr(SCHEDULE, steps)
    denoiser = sa.Denoiser(network, SCHEDULE, "sample")
    with Reads() as counted:
        out = sa.sample(
            denoiser, x_T, frame=sa.Frame(SCHEDULE, eta), grid=grid, solver=solver, adjoint=adjoint,
            cond={"embedding": {"style": [style]}}, noise=sa.BrownianPath(seed=0) if eta else None,
        )  # fmt: skip
        out.square().sum().backward()
    return counted.found


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize(
    ("solver", "adjoint"),
    [
        (sa.Euler(), sa.Checkpoint()),
        (sa.Heun(), sa.Checkpoint()),
        (sa.DPMSolverPP2M(), sa.Checkpoint()),
        (sa.Euler(), sa.Checkpoint(2)),
        (sa.Euler(), sa.Checkpoint(memory="1MiB")),
        (sa.Euler(), sa.Direct()),
        (sa.Coupled(sa.Euler()), sa.Reversible()),
    ],
    ids=repr,
)
def test_values_are_read_as_often_for_many_steps_as_for_few(solver: sa.Solver, adjoint: sa.Adjoint, eta: float) -> None:
    few, many = (reads(steps, adjoint, solver, eta) for steps in (5, 10))
    assert many == few


def test_what_is_noted_is_read_in_order_once_and_before_other_errors() -> None:
    good, bad = torch.ones((), dtype=torch.bool), torch.zeros((), dtype=torch.bool)

    def checked(*flags: Tensor, error: Exception | None = None) -> str:
        try:
            with read_at_the_end():
                for k, flag in enumerate(flags):
                    require(flag, partial(ValueError, f"flag {k}"))
                if error is not None:
                    raise error
        except (ValueError, KeyError) as caught:
            return str(caught)
        return ""

    assert checked(good, good) == ""
    assert checked(good, bad, bad) == "flag 1"
    assert checked(good, bad, error=KeyError("other")) == "flag 1"
    assert checked(good, error=ValueError("other")) == "other"
    with pytest.raises(ValueError, match="at once"):
        require(bad, lambda: ValueError("at once"))


def test_a_callback_never_sees_what_is_not_finite() -> None:
    seen: list[int] = []
    x_T, grid = torch.ones(2, 4, dtype=DOUBLE, requires_grad=True), sa.uniform_logsnr(SCHEDULE, 6)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return x / (t[:, None] > grid[3])

    with pytest.raises(ValueError, match=r"prediction is not finite .* at step 3 of 6"):
        sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE), grid=grid, solver=sa.Euler(),
            callback=lambda n, t, x: seen.append(n),
        )  # fmt: skip
    assert seen == [1, 2, 3]


@pytest.mark.parametrize("adjoint", [sa.Checkpoint(), sa.Checkpoint(2), sa.Reversible()], ids=repr)
def test_hooks_and_watchers_see_nothing_of_a_step_that_is_another(adjoint: sa.Adjoint) -> None:
    """The step is refused before they are called, although checks are otherwise read at the end."""
    shift, seen, grid = [0.0], list[float](), sa.uniform_logsnr(SCHEDULE, 6)
    x_T = torch.ones(2, 4, dtype=DOUBLE, requires_grad=True)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) + shift[0] * (t[:, None] < grid[2])

    watched = sa.Reversible(watch=seen.append) if isinstance(adjoint, sa.Reversible) else adjoint
    out = sa.sample(
        sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE), grid=grid,
        solver=sa.Coupled(sa.Euler()), adjoint=sa.Hooked(watched, lambda n, t, a: seen.append(n)),
    )  # fmt: skip
    shift[0] = 0.1
    with pytest.raises(RuntimeError, match="recomputing step 5 of 6 gave another state"):
        out.sum().backward()
    assert not seen
