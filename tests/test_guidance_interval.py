"""Guidance in an interval of times: the formula with a scale of 1 outside of it, and one network call there."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa

SCHEDULE = sa.VPLinear()
STEPS = 6
FRAME, GRID = sa.Frame(SCHEDULE), sa.uniform_logsnr(SCHEDULE, STEPS)
# From the second node to the fourth: of Euler's calls, at nodes 0 to 5, three.
INTERVAL = (float(GRID[3]), float(GRID[1]))


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class Network(nn.Module):
    """Counts the rows that it is given, call by call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(randn(2, 2, seed=5))
        self.rows: list[int] = []

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        assert len(label) == len(x) or len(label) == 1
        self.rows.append(len(x))
        return torch.tanh(x @ self.weight + torch.cos(t)[:, None]) + torch.sin(label) * x


def leaves(*, scale: Tensor | float = 3.0) -> dict[str, Any]:
    found = {"x_T": randn(3, 2), "label": randn(3, 2, seed=1), "null": randn(1, 2, seed=2)}
    if isinstance(scale, Tensor):
        found["scale"] = scale.clone()
    return {name: value.requires_grad_() for name, value in found.items()}


def reference(network: Network, given: dict[str, Any], scale: float | Tensor, interval: tuple[float, float]) -> Tensor:
    """Euler's steps written out, with both calls at each time and a scale that depends on it."""
    x = given["x_T"]
    for n in range(STEPS):
        t, t_next = (GRID[k] for k in (n, n + 1))
        low, high = interval
        factor = scale if low <= float(t) <= high else 1.0
        if isinstance(factor, Tensor) and factor.ndim == 1:
            factor = factor[:, None]
        times = t.expand(len(x))
        positive, negative = (network(x, times, given[name].expand(3, 2)) for name in ("label", "null"))
        x_0 = negative + factor * (positive - negative)
        (a, b), (s, r) = SCHEDULE.alpha(torch.stack([t, t_next])), SCHEDULE.sigma(torch.stack([t, t_next]))
        x = (r / s) * x + (b - a * r / s) * x_0
    return x


def sampled(
    network: Network, given: dict[str, Any], guidance: sa.Guidance, adjoint: sa.Adjoint, solver: sa.Solver
) -> Tensor:
    denoiser = sa.Denoiser(network, SCHEDULE, "sample", guidance=guidance)
    return sa.sample(
        denoiser, given["x_T"], frame=FRAME, grid=GRID, solver=solver, cond={"label": given["label"]}, adjoint=adjoint
    )


SCALES: dict[str, float | Tensor] = {
    "number": 3.0,
    "per sample": torch.tensor([1.5, 4.0, 0.5], dtype=torch.float64),
    "per entry": randn(3, 2, seed=7),
}


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("adjoint", [sa.Direct(), sa.Checkpoint(), sa.Checkpoint(snapshots=2)], ids=repr)
@pytest.mark.parametrize("scale", SCALES)
def test_an_interval_is_a_scale_of_one_outside(batched: bool, adjoint: sa.Adjoint, scale: str) -> None:
    results = []
    for own in (True, False):
        given, network = leaves(scale=SCALES[scale]), Network()
        factor = given.get("scale", SCALES[scale])
        if own:
            guidance = sa.Guidance(factor, {"label": given["null"]}, batched=batched, interval=INTERVAL)
            out = sampled(network, given, guidance, adjoint, sa.Euler())
            both = [6] if batched else [3, 3]
            assert network.rows[: 3 + 3 * len(both)] == [3, *both, *both, *both, 3, 3]
        else:
            out = reference(network, given, factor, INTERVAL)
        results.append((out, *torch.autograd.grad(out.square().sum(), [*given.values(), network.weight])))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)  # round-off, of six steps


@pytest.mark.parametrize("solver", [sa.ReversibleHeun(), sa.Coupled(sa.Heun())], ids=repr)
@pytest.mark.parametrize("batched", [True, False])
def test_it_reverses(batched: bool, solver: sa.Solver) -> None:
    """Stages within a step ask the interval at their own times, on the way back as on the way there."""
    results = []
    for adjoint in (sa.Reversible(), sa.Direct()):
        given, network = leaves(), Network()
        guidance = sa.Guidance(3.0, {"label": given["null"]}, batched=batched, interval=(0.2, 0.63))
        out = sampled(network, given, guidance, adjoint, solver)
        assert {3, 6} == set(network.rows) if batched else set(network.rows) == {3}
        results.append((out, *torch.autograd.grad(out.square().sum(), [*given.values(), network.weight])))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)  # what reversing costs, of six steps


@pytest.mark.parametrize(("scale", "rows"), [(1.0, [2]), (0.0, [2]), (2.0, [4]), (torch.ones(()), [4])])
def test_scales_of_one_and_zero_need_one_call(scale: float | Tensor, rows: list[int]) -> None:
    network, x = Network(), randn(2, 2)
    cond, null = {"label": randn(1, 2, seed=1)}, {"label": randn(1, 2, seed=2)}
    got = sa.Denoiser(network, SCHEDULE, "sample", guidance=sa.Guidance(scale, null))(x, 0.5, cond)
    assert network.rows == rows
    plain = sa.Denoiser(network, SCHEDULE, "sample")
    positive, negative = plain(x, 0.5, cond), plain(x, 0.5, null)
    torch.testing.assert_close(got, negative + scale * (positive - negative))
    # The rescaling of an unconditional output asks the conditional one for its deviation.
    network.rows.clear()
    sa.Denoiser(network, SCHEDULE, "sample", guidance=sa.Guidance(0.0, null, rescale=0.5))(x, 0.5, cond)
    assert network.rows == [4]


def test_a_schedule_of_scales_calls_once_where_they_are_one() -> None:
    network, given = Network(), leaves()
    scale = sa.Scheduled([1.0, 3.0, 3.0, 1.0, 0.0, 2.0])
    out = sampled(network, given, sa.Guidance(scale, {"label": given["null"]}), sa.Checkpoint(), sa.Euler())
    assert network.rows == [3, 6, 6, 3, 3, 6]
    whole = Network()
    tensors = sa.Scheduled(torch.tensor(scale.values, dtype=torch.float64))
    other = sampled(whole, given, sa.Guidance(tensors, {"label": given["null"]}), sa.Checkpoint(), sa.Euler())
    assert whole.rows == [6] * STEPS
    torch.testing.assert_close(out, other, rtol=1e-12, atol=1e-12)
    for x in (out, other):
        gradients = torch.autograd.grad(x.square().sum(), list(given.values()), retain_graph=True)
        assert all(gradient.count_nonzero() > 0 for gradient in gradients)


def test_an_interval_of_other_units_is_refused() -> None:
    """Timesteps for a grid of times from 1 to 0 would be no guidance at all, in silence."""
    guidance = sa.Guidance(3.0, {"label": leaves()["null"]}, interval=(200.0, 800.0))
    with pytest.raises(ValueError, match=r"guidance: interval=\(200.0, 800.0\) holds none of the times .* from 1 to"):
        sampled(Network(), leaves(), guidance, sa.Checkpoint(), sa.Euler())


@pytest.mark.parametrize("adjoint", [sa.Direct(), sa.Checkpoint()], ids=repr)
def test_a_scale_that_is_always_one_leaves_no_gradient(adjoint: sa.Adjoint) -> None:
    given, network = leaves(), Network()
    out = sampled(network, given, sa.Guidance(1.0, {"label": given["null"]}), adjoint, sa.Euler())
    assert network.rows == [3] * STEPS
    x_T, null = torch.autograd.grad(out.sum(), [given["x_T"], given["null"]], allow_unused=True)
    assert x_T.count_nonzero() > 0
    assert null is None or null.count_nonzero() == 0


def test_times_of_each_sample_are_inside_or_outside_one_by_one() -> None:
    x, times = randn(3, 2), torch.tensor([0.1, 0.4, 0.9], dtype=torch.float64)
    cond, null = {"label": randn(3, 2, seed=1)}, {"label": randn(3, 2, seed=2)}
    for scale in SCALES.values():
        guidance = sa.Guidance(scale, null, interval=(0.3, 0.6))
        got = sa.Denoiser(Network(), SCHEDULE, "sample", guidance=guidance)(x, times, cond)
        plain = sa.Denoiser(Network(), SCHEDULE, "sample")
        guided = sa.Denoiser(Network(), SCHEDULE, "sample", guidance=sa.Guidance(scale, null))
        inside = torch.tensor([[False], [True], [False]])
        torch.testing.assert_close(got, torch.where(inside, guided(x, times, cond), plain(x, times, cond)))


def test_the_time_is_the_schedule_s_and_not_the_network_s() -> None:
    """A time that bfloat16 rounds over the interval's end."""
    x, t = randn(2, 2).bfloat16(), 0.4995
    assert float(torch.tensor(t, dtype=torch.bfloat16)) > t
    calls: list[int] = []

    def network(x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        calls.append(len(x))
        return x

    label = {"label": torch.zeros(2)}
    for high, rows in ((t, 4), (t - 1e-9, 2)):
        sa.Denoiser(network, SCHEDULE, guidance=sa.Guidance(2.0, label, interval=(0.0, high)))(x, t, label)
        assert calls.pop() == rows


@pytest.mark.parametrize(
    ("interval", "error", "message"),
    [
        ((0.5,), TypeError, r"interval: got \(0.5,\); pass \(low, high\)"),
        (0.5, TypeError, "interval: got 0.5"),
        ((0.0, float("nan")), TypeError, "interval: got"),
        ((True, 1.0), TypeError, "interval: got"),
        ((0.7, 0.2), ValueError, r"interval: got \(0.7, 0.2\); pass the lower time first"),
    ],
)
def test_wrong_intervals(interval: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        sa.Guidance(2.0, interval=interval)


def test_the_interval_is_told() -> None:
    assert repr(sa.Guidance(2.0, interval=(0.1, 0.5))).endswith("rescale=0.0, interval=(0.1, 0.5))")
    assert "interval" not in repr(sa.Guidance(2.0))


