"""``torch.compile`` of the network, of the loss and of the whole call: the same gradients, and no graph per step."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

import sdeadjoint as sa

SCHEDULE = sa.VPLinear()

# PyTorch's compiler looks at the .grad of results, which warns of itself.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")

FRAME, SOLVER = sa.samplers.ddim(SCHEDULE)


class Timed(nn.Module):
    """A network that uses its time: as a constant it would be compiled anew at each step."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.inner, self.outer = nn.Linear(3, 8).double(), nn.Linear(8, 2).double()
        for weight in self.parameters():
            nn.init.normal_(weight, std=0.5, generator=generator)

    def forward(self, x: Tensor, t: Tensor, c: Tensor) -> Tensor:
        joined = torch.cat([x, t.reshape(-1, 1).to(x).expand(len(x), 1)], 1)
        out: Tensor = self.outer(torch.tanh(self.inner(joined)) * c)
        return out


def loss_of(sample: Tensor) -> Tensor:
    return (sample.sin() ** 2).sum()


def gradients(part: str, compiled: Callable[[Any], Any], adjoint: sa.Adjoint, steps: int) -> tuple[Tensor, ...]:
    """The loss and its gradients, twice over, with one part compiled."""
    network = Timed()
    x_T = torch.linspace(-1, 1, 6, dtype=torch.float64).reshape(3, 2).requires_grad_()
    c = torch.linspace(0.5, 1, 24, dtype=torch.float64).reshape(3, 8).requires_grad_()
    grid = sa.uniform_logsnr(SCHEDULE, steps, t_min=1e-2)
    denoiser = sa.Denoiser(compiled(network) if part == "network" else network, SCHEDULE, "epsilon")
    measured = compiled(loss_of) if part == "loss" else loss_of
    sampler = sa.Sampler(denoiser, frame=FRAME, solver=SOLVER, grid=grid, adjoint=adjoint)
    sampler = compiled(sampler) if part == "module" else sampler

    def whole(x_T: Tensor, c: Tensor) -> Tensor:
        if part == "module":
            return measured(sampler(x_T, cond={"c": c}))
        return measured(sa.sample(denoiser, x_T, frame=FRAME, grid=grid, solver=SOLVER, cond={"c": c}, adjoint=adjoint))

    def with_backward(x_T: Tensor, c: Tensor) -> Tensor:
        loss = whole(x_T, c)
        loss.backward()
        return loss

    called = with_backward if part == "call and backward" else whole
    called = compiled(called) if part.startswith("call") else called
    for _ in range(2):
        for tensor in (x_T, c, *network.parameters()):
            tensor.grad = None
        loss = called(x_T, c)
        if part != "call and backward":
            loss.backward()
    return (loss.detach(), *(tensor.grad for tensor in (x_T, c, *network.parameters()) if tensor.grad is not None))


STATES, SNAPSHOTS = sa.Checkpoint(), sa.Checkpoint(snapshots=2)


# A compiled network is called in other modes by each adjoint. What else is compiled leaves the whole solve to Python
# (sdeadjoint/compiling.py) before there is an adjoint: one of the two for each.
@pytest.mark.parametrize(
    ("part", "adjoint"),
    [
        ("network", STATES),
        ("network", SNAPSHOTS),
        ("loss", STATES),
        ("module", SNAPSHOTS),
        ("call", STATES),
        ("call and backward", SNAPSHOTS),
    ],
)
def test_as_without_the_compiler(part: str, adjoint: sa.Adjoint) -> None:
    wanted = {steps: gradients(part, lambda function: function, adjoint, steps) for steps in (3, 6)}
    assert all(len(found) == 7 for found in wanted.values())
    counts = []
    for steps, plain in wanted.items():
        torch._dynamo.reset()
        counter = CompileCounterWithBackend("aot_eager")
        found = gradients(part, lambda function: torch.compile(function, backend=counter), adjoint, steps)  # noqa: B023
        for one, other in zip(found, plain, strict=True):
            # The same operations: 1e-12 leaves room for another order of sums in a compiled backward pass.
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        counts.append(counter.frame_count)
    assert counts[0] == counts[1] <= 2
