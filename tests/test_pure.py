"""``Checkpoint(pure=True)``: exact for networks that are what they are vouched for, and without graphs in between."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa

SCHEDULE = sa.VPLinear()
DOUBLE = torch.float64
STEPS = 5  # two more than the multistep method looks back
HIDDEN = {"leaf": torch.tensor([0.5, -0.25, 1.0], dtype=DOUBLE, requires_grad=True)}


def seeded(layer: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for weight in layer.parameters():
        nn.init.normal_(weight, std=0.4, generator=generator)
    return layer.double()


class Plain(nn.Module):
    """Notes whether gradients were on, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = seeded(nn.Linear(4, 8)), seeded(nn.Linear(8, 3), 1)
        self.graphs: list[bool] = []

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        self.graphs.append(torch.is_grad_enabled())
        joined = torch.cat([x, t.reshape(-1, 1).to(x).expand(len(x), 1)], 1)
        out: Tensor = self.outer(torch.tanh(self.inner(joined)) * c)
        return out


class Experts(Plain):
    """Another layer in the middle of the schedule: steps differ, and the first and the last do not use all weights."""

    def __init__(self) -> None:
        super().__init__()
        self.middle = seeded(nn.Linear(8, 3), 2)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        out = super().forward(x, t, c)
        return out + (self.middle(c) if 0.2 < float(t.reshape(-1)[0]) < 0.8 else 0.0)


class Undeclared(Plain):
    """Reads a leaf that no one has declared."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return super().forward(x, t, c) * HIDDEN["leaf"]


class Dropping(Plain):
    """Draws masks from the global generator."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        return super().forward(x, t, nn.functional.dropout(c, 0.3))


class Score(Plain):
    """Differentiates an energy by itself."""

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = super().forward(x, t, c).square().sum()
            (score,) = torch.autograd.grad(energy, x, create_graph=True)
        return score


class Normalised(Plain):
    """Changes running statistics."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3).double()

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        out: Tensor = self.norm(super().forward(x, t, c))
        return out


SOLVERS: dict[str, tuple[sa.Solver, sa.Noise | None]] = {
    "Heun": (sa.Heun(), None),
    "2M": (sa.DPMSolverPP2M(), None),
    "Adams-Bashforth": (sa.AdamsBashforth(3), None),
    "SDE": (sa.ShARK(), sa.BrownianPath(seed=1)),
    "given noise": (sa.Euler(), None),
}


def everything(
    make: Callable[[], Plain], solver: str, adjoint: sa.Adjoint, create_graph: bool = False
) -> tuple[list[Tensor | None], Plain]:
    """The sample and the gradients of x_T, cond, weights, the noise and a hidden leaf."""
    network = make()
    x_T = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(4, 3).requires_grad_()
    c = torch.linspace(0.5, 1.5, 32, dtype=DOUBLE).reshape(4, 8).requires_grad_()
    method, noise = SOLVERS[solver]
    leaves = [x_T, c, *network.parameters(), HIDDEN["leaf"]]
    if solver == "given noise":
        draws = torch.linspace(-1, 1, STEPS * 12, dtype=DOUBLE).reshape(STEPS, 4, 3).sin().requires_grad_()
        noise, leaves = sa.FixedNoise(draws), [*leaves, draws]
    frame = sa.Frame(SCHEDULE, eta=0.0 if noise is None else 1.0)
    torch.default_generator.manual_seed(0)
    out = sa.sample(
        sa.Denoiser(network, SCHEDULE, "epsilon"),
        x_T,
        frame=frame,
        grid=sa.uniform_logsnr(SCHEDULE, STEPS, t_min=1e-2),
        solver=method,
        noise=noise,
        cond={"c": c},
        adjoint=adjoint,
    )
    loss = (out.sin() * torch.arange(1, 13, dtype=DOUBLE).reshape(4, 3)).sum()
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, create_graph=create_graph)
    if create_graph:
        norm = sum(grad.square().sum() for grad in grads if grad is not None)
        grads = torch.autograd.grad(norm, leaves, allow_unused=True)
    return [out.detach(), *grads], network


@functools.cache
def plain(make: Callable[[], Plain], solver: str) -> list[Tensor | None]:
    return everything(make, solver, sa.Direct())[0]


@pytest.mark.parametrize("snapshots", [None, 2])
@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("make", [Plain, Experts, Undeclared, Dropping, Score, Normalised])
def test_gradients_are_those_of_direct(make: Callable[[], Plain], solver: str, snapshots: int | None) -> None:
    wanted = plain(make, solver)
    found, _ = everything(make, solver, sa.Checkpoint(snapshots, pure=True))
    assert torch.equal(found[0], wanted[0])
    for got, want in zip(found[1:], wanted[1:], strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            # Sums of the steps' parts in another order.
            torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("snapshots", [None, 2])
def test_second_derivatives_are_those_of_direct(snapshots: int | None) -> None:
    wanted, _ = everything(Experts, "Heun", sa.Direct(), create_graph=True)
    found, _ = everything(Experts, "Heun", sa.Checkpoint(snapshots, pure=True), create_graph=True)
    for got, want in zip(found, wanted, strict=True):
        assert (got is None) == (want is None)
        if want is not None:
            torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def own_tensors(adjoint: sa.Adjoint) -> list[Tensor | None]:
    """Of each step its own tensor, one for a state in the middle, and one that no step reads."""
    steps = [torch.full((3,), 0.1 * n, dtype=DOUBLE, requires_grad=True) for n in range(STEPS)]
    middle, idle = (torch.ones(3, dtype=DOUBLE, requires_grad=True) for _ in range(2))
    out = sa.solve(
        lambda s, y, step, others: step * torch.sin(y) + (others[0] * y if 0.3 < s < 0.7 else 0.0),
        torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3),
        clock=torch.linspace(0, 1, STEPS + 1, dtype=DOUBLE),
        solver=sa.Heun(),
        cond={"step": sa.Scheduled(steps), "others": [middle, idle]},
        adjoint=adjoint,
    )
    return list(torch.autograd.grad(out.sin().sum(), [*steps, middle, idle], allow_unused=True))


@pytest.mark.parametrize("snapshots", [None, 2])
def test_conditioning_of_steps_that_are_not_examined(snapshots: int | None) -> None:
    found, wanted = own_tensors(sa.Checkpoint(snapshots, pure=True)), own_tensors(sa.Direct())
    assert [got is None for got in found] == [want is None for want in wanted] == [False] * (STEPS + 1) + [True]
    for got, want in zip(found[:-1], wanted[:-1], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-13)


def test_only_the_first_and_the_last_step_build_a_graph() -> None:
    network = everything(Plain, "given noise", sa.Checkpoint(pure=True))[1]
    forward, backward = network.graphs[:STEPS], network.graphs[STEPS:]
    assert forward == [True, *[False] * (STEPS - 2), True]
    assert backward == [True] * STEPS
    assert all(everything(Plain, "given noise", sa.Checkpoint())[1].graphs)


@pytest.mark.parametrize("make", [Score, Normalised])
def test_what_is_no_plain_function_keeps_its_graphs(make: Callable[[], Plain]) -> None:
    assert all(everything(make, "Heun", sa.Checkpoint(pure=True))[1].graphs)


def test_another_state_is_still_refused() -> None:
    """The recomputed states are compared as ever."""

    class Counting(Plain):
        def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
            CALLS.append(1)
            return super().forward(x, t, c) * (1.0 if len(CALLS) <= STEPS else 0.5)

    CALLS.clear()
    with pytest.raises(RuntimeError, match="recomputing step 4 of 5"):
        everything(Counting, "given noise", sa.Checkpoint(pure=True))


CALLS: list[int] = []


def test_an_argument_that_is_no_switch_is_refused() -> None:
    with pytest.raises(TypeError, match="pure: got 1"):
        sa.Checkpoint(pure=1)  # type: ignore[arg-type]
