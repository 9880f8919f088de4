"""The memory meter on sequences whose peak is known, and what it says of ``Checkpoint``."""

from __future__ import annotations

import torch

import sdeadjoint as sa
from sdeadjoint.memory import PeakMemory

from .networks import Mlp

SCHEDULE = sa.VPLinear()
DOUBLE = torch.float64


def test_peak_and_live_bytes_of_a_known_sequence() -> None:
    outside = torch.zeros(1000)
    with PeakMemory() as memory:
        view = outside.reshape(10, 100)  # no new memory
        a = torch.zeros(1000)
        b = a + 1
        a.add_(1)  # none either
        assert memory.live == 8000
        del a
        c = torch.cat([b, b])
        del b, c, view
    assert memory.peak == 12000
    assert memory.live == 0


def test_a_graph_holds_its_activations_until_it_is_gone() -> None:
    x = torch.ones(1000, requires_grad=True)
    with PeakMemory() as memory:
        y = x.exp().sin().sum()
        held = memory.live
        del y
    assert held == 4004  # exp's result, which the derivatives of exp and of sin share, and the sum
    assert memory.live == 0


def peak(steps: int, adjoint: sa.Adjoint, solver: sa.Solver, eta: float) -> int:
    network = Mlp(64, width=256)
    x_T = torch.ones(4, 64, dtype=DOUBLE, requires_grad=True)
    with PeakMemory() as memory:
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"),
            x_T,
            frame=sa.Frame(SCHEDULE, eta),
            grid=sa.uniform_logsnr(SCHEDULE, steps),
            solver=solver,
            noise=sa.BrownianPath(seed=0) if eta else None,
            adjoint=adjoint,
        )
        torch.autograd.grad(out.sum(), [x_T, *(p for p in network.parameters() if p.requires_grad)], allow_unused=True)
        del out
    return memory.peak


def test_checkpoint_grows_by_the_states_and_bounded_snapshots_not_at_all() -> None:
    state, flags = 4 * 64 * 8, 32  # bytes; flags are a few bytes a step, which are read at the end
    for eta in (0.0, 1.0):
        for solver, kept in ((sa.Euler(), 1), (sa.DPMSolverPP2M(), 2)):
            # 8 steps more, so many more states, to an eighth of one. From where all snapshots are in use, and where
            # noise takes as many caches, that of 16 to 30 steps.
            few, many = 17, 25
            growth = peak(many, sa.Checkpoint(), solver, eta) - peak(few, sa.Checkpoint(), solver, eta)
            assert 0 <= growth - 8 * kept * state <= 8 * flags
            change = peak(many, sa.Checkpoint(8), solver, eta) - peak(few, sa.Checkpoint(8), solver, eta)
            assert abs(change) <= 8 * flags
    # Plain autograd keeps two activations of four states' size, at least.
    assert peak(16, sa.Direct(), sa.Euler(), 0.0) - peak(8, sa.Direct(), sa.Euler(), 0.0) > 8 * 8 * state
