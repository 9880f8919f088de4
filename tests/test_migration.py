"""Programs of torchdiffeq and torchsde, and ``sa.solve`` in their place: the same values and the same gradients."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
import torchdiffeq
import torchsde
from torch import Tensor, nn

import sdeadjoint as sa

from .written_out import DOUBLE, apart, numbers

CLOCK = torch.linspace(0, 1, 17, dtype=DOUBLE)  # sixteenths, which add up without rounding
EXACT = 1e-12  # the same formulas, with sums in another order


class Network(nn.Module):
    """Both libraries' equation: ``f``, and for torchsde ``g``, which depends on the time alone."""

    noise_type = "additive"

    def __init__(self, sde_type: str = "ito") -> None:
        super().__init__()
        self.sde_type = sde_type
        self.weight = nn.Parameter(numbers(3, 3, seed=1))
        self.bias = nn.Parameter(numbers(3, seed=2))

    def forward(self, s: Any, y: Tensor) -> Tensor:
        return torch.tanh(y @ self.weight + self.bias) * torch.cos(torch.as_tensor(s, dtype=DOUBLE))

    def f(self, s: Any, y: Tensor) -> Tensor:
        return self(s, y)

    def g(self, s: Any, y: Tensor) -> Tensor:
        return 0.5 * torch.eye(3, dtype=DOUBLE).expand(len(y), 3, 3)


def compare(theirs: Any, ours: Any, tolerance: float, sde_type: str = "ito") -> None:
    """Both are functions of (network, y0): values and gradients in y0 and the weights agree."""
    network, found = Network(sde_type), []
    for solved in (theirs, ours):
        y0 = numbers(4, 3).requires_grad_()
        out = solved(network, y0)
        grads = torch.autograd.grad((out * numbers(*out.shape, seed=3)).sum(), [y0, *network.parameters()])
        found.append([out, *grads])
    for want, got in zip(*found, strict=True):
        assert apart([got], [want]) <= tolerance


@pytest.mark.parametrize(
    ("method", "solver"),
    [("euler", sa.Euler()), ("midpoint", sa.Midpoint()), ("heun2", sa.Heun())],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("falling", [False, True])
def test_fixed_steps_of_torchdiffeq(method: str, solver: sa.Solver, falling: bool) -> None:
    clock = CLOCK.flip(0) if falling else CLOCK
    compare(
        lambda network, y0: torchdiffeq.odeint(network, y0, clock, method=method),
        lambda network, y0: sa.solve(network, y0, clock=clock, solver=solver, trajectory=True),
        EXACT,
    )


def test_a_tuple_of_torchdiffeq() -> None:
    def theirs(network: Network, y0: Tensor) -> Tensor:
        def func(s: Tensor, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return network(s, pair[1]), -pair[0]

        return torchdiffeq.odeint(func, (y0, y0.sin()), CLOCK, method="midpoint")[0][-1]

    def ours(network: Network, y0: Tensor) -> Tensor:
        def drift(s: Tensor, pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return network(s, pair[1]), -pair[0]

        out: Tensor = sa.solve(drift, (y0, y0.sin()), clock=CLOCK, solver=sa.Midpoint())[0]
        return out

    compare(theirs, ours, EXACT)


def test_tolerances_of_torchdiffeq() -> None:
    """Two solutions to 1e-10, by steps of their own: differences of some times that."""

    def ours(network: Network, y0: Tensor) -> Tensor:
        clock = sa.adaptive_clock(network, y0.detach(), 0.0, 1.0, rtol=1e-10, atol=1e-10)
        out: Tensor = sa.solve(network, y0, clock=clock, solver=sa.Dopri5())
        return out

    def theirs(network: Network, y0: Tensor) -> Tensor:
        out: Tensor = torchdiffeq.odeint_adjoint(
            network, y0, CLOCK[[0, -1]], method="dopri5", rtol=1e-10, atol=1e-10
        )[-1]
        return out

    compare(theirs, ours, 1e-7)


def path() -> torchsde.BrownianInterval:
    return torchsde.BrownianInterval(t0=0.0, t1=1.0, size=(4, 3), dtype=DOUBLE, entropy=7, dt=1.0)


def increments(of: torchsde.BrownianInterval) -> Tensor:
    return torch.stack([0.5 * of(a, b) for a, b in pairwise(CLOCK)])


def test_euler_of_torchsde() -> None:
    bm = path()
    noise = sa.FixedNoise(increments(bm))
    compare(
        lambda network, y0: torchsde.sdeint(network, y0, CLOCK[[0, -1]], bm=bm, method="euler", dt=1 / 16)[-1],
        lambda network, y0: sa.solve(network, y0, clock=CLOCK, solver=sa.Euler(), noise=noise),
        EXACT,
    )


def test_the_reversible_method_of_torchsde() -> None:
    """Both adjoints are exact for the same steps; the way back costs digits in both."""
    bm = path()
    noise = sa.FixedNoise(increments(bm))

    def theirs(network: Network, y0: Tensor) -> Tensor:
        out: Tensor = torchsde.sdeint_adjoint(
            network,
            y0,
            CLOCK[[0, -1]],
            bm=bm,
            method="reversible_heun",
            adjoint_method="adjoint_reversible_heun",
            dt=1 / 16,
        )[-1]
        return out

    compare(
        theirs,
        lambda network, y0: sa.solve(
            network, y0, clock=CLOCK, solver=sa.ReversibleHeun(), noise=noise, adjoint=sa.Reversible()
        ),
        1e-10,
        sde_type="stratonovich",
    )
