"""``Checkpoint`` against ``Direct``: the same samples bit by bit, the same gradients to round-off, for everything."""

from __future__ import annotations

import threading
from functools import cache
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.adjoints.replay import snapshots as binomial
from sdeadjoint.adjoints.replay.backward import round_off

from .networks import LowRank, Mlp

SOLVERS = (
    sa.Euler(),
    sa.Heun(),
    sa.Midpoint(),
    sa.RK4(),
    *(sa.AdamsBashforth(order, variable) for order in (1, 2, 3, 4) for variable in ("log", "clock")),
    sa.DPMSolverPP2M(),
    sa.SRA1(),
    sa.ShARK(),
)
CHECKPOINTS = tuple(sa.Checkpoint(snapshots) for snapshots in (None, 1, 2, 3, 7))
SCHEDULE = sa.VPLinear()
DOUBLE = torch.float64


def grid_of(steps: int, uniform: bool, seed: int = 0) -> Tensor:
    if uniform:
        return sa.uniform_logsnr(SCHEDULE, steps)
    gaps = torch.rand(steps, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)) + 0.2
    lam = torch.cat([torch.zeros(1, dtype=DOUBLE), gaps.cumsum(0) / gaps.sum()]) * 7 - 4
    return SCHEDULE.time(lam)


def relative(got: Tensor | None, want: Tensor | None) -> float:
    if got is None or want is None:
        assert got is want, "one adjoint gives a gradient where the other gives None"
        return 0.0
    return float((got - want).norm() / want.norm().clamp(min=1e-300))


def gradients(
    adjoint: sa.Adjoint, leaves: list[Tensor], **arguments: object
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    out = sa.sample(adjoint=adjoint, **arguments)  # type: ignore[arg-type]
    cotangent = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    return out.detach(), torch.autograd.grad(out, leaves, cotangent, allow_unused=True)


@settings(max_examples=40)
@given(
    solver=st.sampled_from(SOLVERS),
    kind=st.sampled_from(["data", "noise", "flow"]),
    eta=st.sampled_from([0.0, 0.3, 1.0]),
    steps=st.integers(1, 12),  # seven snapshots take two sweeps from 9 on, one and two take many
    uniform=st.booleans(),
    fixed=st.booleans(),
    trajectory=st.booleans(),
    shape=st.sampled_from([(1, 3), (2, 4), (3, 2, 2)]),
    checkpoint=st.sampled_from(CHECKPOINTS),
)
def test_gradients_are_those_of_direct(
    solver: sa.Solver, kind: str, eta: float, steps: int, uniform: bool, fixed: bool, trajectory: bool,
    shape: tuple[int, ...], checkpoint: sa.Checkpoint,
) -> None:  # fmt: skip
    network = Mlp(int(torch.tensor(shape[1:]).prod()))
    x_T = torch.linspace(-1.5, 1, torch.Size(shape).numel(), dtype=DOUBLE).reshape(shape).requires_grad_()
    style = torch.linspace(0, 1, shape[0] * 8, dtype=DOUBLE).reshape(shape[0], 8).requires_grad_()
    frame, grid = sa.Frame(SCHEDULE, eta, kind), grid_of(steps, uniform)
    leaves = [x_T, style, *(p for p in network.parameters() if p.requires_grad)]
    noise: sa.Noise | None = None
    if eta > 0:
        noise = path = sa.BrownianPath(seed=3)
        if fixed:
            noise = sa.FixedNoise(
                path.increments(frame, grid, x_T).requires_grad_(), path.levy_areas(frame, grid, x_T).requires_grad_()
            )
            leaves += [noise.increments] + ([noise.levy_areas] if solver.claims.levy != "none" else [])
    arguments = dict(
        denoiser=sa.Denoiser(network, SCHEDULE, "sample"), x_T=x_T, frame=frame, grid=grid, solver=solver, noise=noise,
        cond={"embedding": {"style": [style]}}, trajectory=trajectory,
    )  # fmt: skip
    want, expected = gradients(sa.Direct(), leaves, **arguments)
    got, found = gradients(checkpoint, leaves, **arguments)
    assert torch.equal(got, want)
    assert max(map(relative, found, expected)) <= 1e-12


@pytest.mark.parametrize("length", [1, 2, 3, 5, 8, 13, 21, 34])
@pytest.mark.parametrize("snapshots", [1, 2, 3, 5, 8, 25])
def test_binomial_schedule_is_optimal_and_is_followed(length: int, snapshots: int) -> None:
    @cache
    def fewest(l: int, c: int) -> int:  # noqa: E741
        """Dynamic programming over where the next state is stored."""
        if l <= 1:
            return 0
        if c == 1:
            return l * (l - 1) // 2
        return min(m + fewest(l - m, c - 1) + fewest(m, c) for m in range(1, l))

    assert binomial.advances(length, snapshots) == fewest(length, snapshots)
    assert len(binomial.positions(length, snapshots)) == min(length, snapshots)
    calls = 0

    def network(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return torch.tanh(x)

    x_T = torch.ones(1, 2, dtype=DOUBLE, requires_grad=True)
    out = sa.sample(
        sa.Denoiser(network, SCHEDULE), x_T, frame=sa.Frame(SCHEDULE), grid=grid_of(length, True), solver=sa.Euler(),
        adjoint=sa.Checkpoint(snapshots),
    )  # fmt: skip
    assert calls == length
    out.sum().backward()
    # The sweep to the last step is in the optimum's count; the last step itself, and the differentiated ones, are not.
    assert calls == binomial.advances(length, snapshots) + 1 + length


def run(network: object, adjoint: sa.Adjoint, x_T: Tensor, steps: int = 6, **options: object) -> Tensor:
    options = {"solver": sa.DPMSolverPP2M(), "grid": grid_of(steps, True), "frame": sa.Frame(SCHEDULE)} | options
    return sa.sample(sa.Denoiser(network, SCHEDULE, "sample"), x_T, adjoint=adjoint, **options)  # type: ignore[arg-type]


@pytest.fixture
def x_T() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_()


def weight(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=repr)
def test_undeclared_leaves(checkpoint: sa.Checkpoint, x_T: Tensor) -> None:
    """A closure's leaf, one used late only, one behind a tensor computed outside, and x_T itself."""
    closure, late, hyper = weight(4, 4), weight(4), weight(4, seed=2)

    def results(adjoint: sa.Adjoint) -> tuple[Tensor, ...]:
        computed = torch.tanh(hyper).exp()

        def network(x: Tensor, t: Tensor) -> Tensor:
            out = torch.tanh(x @ closure) * computed + 0.1 * x_T
            return out * late if t[0] < 0.3 else out

        loss = run(network, adjoint, x_T).square().sum() + computed.sum()
        return torch.autograd.grad(loss, [x_T, closure, late, hyper])

    for got, want in zip(results(checkpoint), results(sa.Direct()), strict=True):
        assert relative(got, want) <= 1e-12


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=repr)
def test_a_tensor_computed_outside_that_early_steps_alone_read(checkpoint: sa.Checkpoint, x_T: Tensor) -> None:
    hyper = weight(4)

    def results(adjoint: sa.Adjoint) -> tuple[Tensor, ...]:
        computed = torch.tanh(hyper).exp()

        def network(x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x * computed if t[0] > 0.5 else x)

        return torch.autograd.grad(run(network, adjoint, x_T).square().sum(), [x_T, hyper])

    assert max(map(relative, results(checkpoint), results(sa.Direct()))) <= 1e-12


def test_arguments_read_through_a_closure_too(x_T: Tensor) -> None:
    """Leaves in two roles get the sum; for other tensors the part read behind the library's back cannot be told."""
    token = weight(4)

    def results(adjoint: sa.Adjoint, embedding: Tensor) -> tuple[Tensor, ...]:
        def network(x: Tensor, t: Tensor, **cond: Tensor) -> Tensor:
            return torch.tanh(x * cond["embedding"] + embedding + 0.1 * x_T)

        out = run(network, adjoint, x_T, cond={"embedding": embedding})
        return torch.autograd.grad(out.square().sum(), [token, x_T])

    for got, want in zip(results(sa.Checkpoint(2), token), results(sa.Direct(), token), strict=True):
        assert relative(got, want) <= 1e-12
    with pytest.raises(RuntimeError, match=r"not only as an argument.*adjoint=Direct\(\)"):
        results(sa.Checkpoint(2), torch.sin(token) * 2)
    frame, grid = sa.Frame(SCHEDULE, eta=1.0), grid_of(6, True)
    increments = sa.BrownianPath(seed=0).increments(frame, grid, x_T) * token
    noise = sa.FixedNoise(increments)
    with pytest.raises(RuntimeError, match="the noise"):
        run(lambda x, t: torch.tanh(x + increments[0]), sa.Checkpoint(), x_T, frame=frame, grid=grid, noise=noise)


@pytest.mark.parametrize("checkpoint", [sa.Checkpoint(), sa.Checkpoint(2)], ids=repr)
def test_arguments_that_depend_on_each_other_are_counted_once(checkpoint: sa.Checkpoint) -> None:
    """A learned token expanded into cond, cond cut from x_T, x_T made from a parameter, a null embedding in cond."""
    network, null = Mlp(4), weight(1, 8)
    seed = weight(3, 4)
    outside = torch.sin(weight(4, seed=5))

    def model(x: Tensor, t: Tensor, **cond: Any) -> Tensor:
        return network(x, t, **cond) * outside

    def results(adjoint: sa.Adjoint) -> tuple[Tensor, ...]:
        x_T = torch.sin(seed * network.outward.bias)
        style = torch.cat([network.shared[:4].expand(3, 4), x_T], 1) + null
        frame, grid = sa.Frame(SCHEDULE, eta=1.0), grid_of(5, False)
        noise = sa.FixedNoise(sa.BrownianPath(seed=0).increments(frame, grid, x_T) * seed)
        guided = sa.Guidance(1.5, {"embedding": {"style": [null]}})
        denoiser = sa.Denoiser(model, SCHEDULE, "sample", guidance=guided)
        cond = {"embedding": {"style": [style]}}
        options = {"frame": frame, "grid": grid, "solver": sa.Heun(), "adjoint": adjoint, "noise": noise}
        middle = sa.sample(denoiser, x_T, cond=cond, **options)
        # Chained: the second sampler starts where the first ends, with the same network.
        out = sa.sample(denoiser, middle, cond=cond, **options)
        return torch.autograd.grad(out.square().sum(), [seed, null, network.shared, network.outward.bias, x_T, style])

    for got, want in zip(results(checkpoint), results(sa.Direct()), strict=True):
        assert relative(got, want) <= 1e-12


@pytest.mark.parametrize("checkpoint", [sa.Checkpoint(), sa.Checkpoint(2)], ids=repr)
def test_hooks_and_retained_gradients_see_the_total_once(checkpoint: sa.Checkpoint) -> None:
    def results(adjoint: sa.Adjoint) -> list[Tensor | None]:
        network, leaf, token, closure = Mlp(4), weight(3, 4), weight(3, 8), weight(4)
        x_T = leaf * 1
        style = token * 1
        for tensor in (network.shared, leaf, token, closure, x_T, style):
            tensor.register_hook(lambda g: 2 * g.clamp(-1, 1))
        x_T.retain_grad()
        style.retain_grad()
        out = run(lambda x, t, **c: network(x, t, **c) * closure, adjoint, x_T, cond={"embedding": {"style": [style]}})
        out.square().sum().backward()
        assert network.shared._backward_hooks
        return [tensor.grad for tensor in (network.shared, leaf, token, closure, x_T, style)]

    for got, want in zip(results(checkpoint), results(sa.Direct()), strict=True):
        assert relative(got, want) <= 1e-12


@pytest.mark.parametrize("checkpoint", [sa.Checkpoint(), sa.Checkpoint(2)], ids=repr)
def test_networks_that_differentiate_themselves(checkpoint: sa.Checkpoint, x_T: Tensor) -> None:
    """Scores that are gradients of an energy, and classifier guidance inside the network."""
    network = Mlp(4)

    def score(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.requires_grad_()
            energy = network(x, t).square().sum()
            return torch.autograd.grad(energy, x, create_graph=True)[0] * 0.1

    def late(x: Tensor, t: Tensor) -> Tensor:
        return score(x, t) if t[0] < 0.3 else network(x, t)

    def dropped(x: Tensor, t: Tensor) -> Tensor:
        return score(nn.functional.dropout(x, 0.5), t)

    leaves = [x_T, network.shared]
    for model in (score, late):
        got, want = (torch.autograd.grad(run(model, a, x_T).sum(), leaves) for a in (checkpoint, sa.Direct()))
        assert max(map(relative, got, want)) <= 1e-12
    samples = []
    for adjoint in (checkpoint, sa.Direct()):
        torch.manual_seed(0)
        samples.append(run(dropped, adjoint, x_T))
    assert torch.equal(*samples)


def test_sparse_gradients_at_some_steps_and_dense_ones_at_others(x_T: Tensor) -> None:
    table = nn.Embedding(3, 4, sparse=True).double()

    def network(x: Tensor, t: Tensor) -> Tensor:
        row = table(torch.tensor([1])) if t[0] < 0.5 else table.weight[:1]
        return torch.tanh(x + row)

    got, want = (
        torch.autograd.grad(run(network, a, x_T).sum(), table.weight)[0] for a in (sa.Checkpoint(), sa.Direct())
    )
    assert relative(got.to_dense(), want.to_dense()) <= 1e-12


def test_reentrant_checkpoints_inside_are_refused_with_the_remedy(x_T: Tensor) -> None:
    network = Mlp(4)

    def reentrant(x: Tensor, t: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(network, x, t, use_reentrant=True)

    with pytest.raises(RuntimeError, match=r"use_reentrant=False there, or adjoint=Direct\(\)"):
        run(reentrant, sa.Checkpoint(), x_T)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
@pytest.mark.parametrize("change", ["mode", "hidden mode", "generator"])
def test_another_function_is_refused_at_every_precision(precision: str, change: str) -> None:
    """Also on long grids, where one step changes the state by little."""
    dropout = nn.Dropout(0.1).eval()
    model = nn.Sequential(nn.Linear(4, 16), dropout, nn.Tanh(), nn.Linear(16, 4))
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    model = model.to(dtype)
    generator = torch.Generator().manual_seed(0)
    x_T = torch.linspace(-1, 1, 400).reshape(100, 4).to(dtype).requires_grad_()

    def hidden(x: Tensor, t: Tensor) -> Tensor:
        out = model(x)
        return out + 0.1 * torch.randn(x.shape, generator=generator).to(dtype) if change == "generator" else out

    class Shown(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.model(x)

    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        out = run(Shown() if change == "mode" else hidden, sa.Checkpoint(), x_T, steps=100, solver=sa.Euler())
    if change != "generator":
        dropout.train()
    with pytest.raises(RuntimeError, match=r"train\(\) or eval\(\) was called|gave another state"):
        out.sum().backward()


@pytest.mark.parametrize("flag", [True, False])
def test_requires_grad_changed_in_between_is_refused(flag: bool, x_T: Tensor) -> None:
    network = Mlp(4)
    network.shared.requires_grad_(not flag)
    out = run(network, sa.Checkpoint(), x_T)
    network.shared.requires_grad_(flag)
    with pytest.raises(RuntimeError, match=r"requires_grad of a parameter.* was changed between"):
        out.sum().backward()


def test_in_a_worker_thread() -> None:
    token = weight(4)
    computed = torch.tanh(token) + torch.zeros(4, dtype=DOUBLE)
    x_T = torch.ones(2, 4, dtype=DOUBLE, requires_grad=True)
    results: list[Tensor] = []

    def work() -> None:
        out = run(lambda x, t: torch.tanh(x * computed.exp()), sa.Checkpoint(), x_T)
        results.append(torch.autograd.grad(out.sum(), token)[0])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    (want,) = torch.autograd.grad(run(lambda x, t: torch.tanh(x * computed.exp()), sa.Direct(), x_T).sum(), token)
    assert relative(results[0], want) <= 1e-12


def test_noise_that_is_conditioning_too(x_T: Tensor) -> None:
    """One tensor in three roles: increments, Levy areas and conditioning. Its gradient is the sum."""
    frame, grid = sa.Frame(SCHEDULE, eta=1.0), grid_of(6, True)
    z = sa.BrownianPath(seed=0).increments(frame, grid, x_T).requires_grad_()

    def network(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(x + z.mean(0))

    options = {"frame": frame, "grid": grid, "noise": sa.FixedNoise(z, z), "cond": {"z": z}, "solver": sa.SRA1()}
    got, want = (
        torch.autograd.grad(run(network, a, x_T, **options).sum(), z)[0] for a in (sa.Checkpoint(2), sa.Direct())
    )
    assert relative(got, want) <= 1e-12


def test_leaves_whose_gradients_autograd_hands_out_as_one_tensor(x_T: Tensor) -> None:
    """``a + b`` gives both the same gradient tensor, which must not be summed into twice."""
    a, b = weight(3, 4), weight(3, 4, seed=2)
    leaves = [a, b, x_T]

    def network(x: Tensor, t: Tensor) -> Tensor:
        return (a + b) + torch.sin(x) * (a if t[0] > 0.7 else 1)

    got, want = (torch.autograd.grad(run(network, m, x_T).sum(), leaves) for m in (sa.Checkpoint(), sa.Direct()))
    assert max(map(relative, got, want)) <= 1e-12


def test_networks_may_change_their_argument_in_place(x_T: Tensor) -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return x.mul_(0.5).sin_()

    before = x_T.detach().clone()
    for steps in (1, 3):
        options = {"grid": [*grid_of(steps, True).tolist()[:-1], 0.0]}
        got, want = (
            torch.autograd.grad(run(network, a, x_T, **options).sum(), x_T)[0] for a in (sa.Checkpoint(), sa.Direct())
        )
        assert relative(got, want) <= 1e-12
        assert torch.equal(x_T, before)


def test_low_rank_wrappers_and_frozen_weights(x_T: Tensor) -> None:
    layer = LowRank(nn.Linear(4, 4).double())
    for adjoint in CHECKPOINTS:
        want = torch.autograd.grad(
            run(lambda x, t: torch.tanh(layer(x)), sa.Direct(), x_T).sum(), [layer.down, layer.up]
        )
        got = torch.autograd.grad(run(lambda x, t: torch.tanh(layer(x)), adjoint, x_T).sum(), [layer.down, layer.up])
        assert max(map(relative, got, want)) <= 1e-12
        assert layer.base.weight.grad is None


def test_weights_only(x_T: Tensor) -> None:
    network = Mlp(4)
    x_T = x_T.detach()
    for adjoint in (sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2)):
        network.zero_grad()
        run(network, adjoint, x_T).square().sum().backward()
        found = {name: None if p.grad is None else p.grad.clone() for name, p in network.named_parameters()}
        if adjoint == sa.Direct():
            expected = found
        assert max(relative(found[name], expected[name]) for name in found) <= 1e-12
        assert found["unused"] is None
        assert found["frozen"] is None


@pytest.mark.parametrize("checkpoint", CHECKPOINTS, ids=repr)
def test_dropout_is_replayed_and_the_generator_goes_on_as_after_direct(checkpoint: sa.Checkpoint, x_T: Tensor) -> None:
    network = nn.Sequential(nn.Linear(4, 16), nn.Dropout(0.5), nn.Tanh(), nn.Linear(16, 4)).double()
    results = []
    for adjoint in (sa.Direct(), checkpoint):
        torch.manual_seed(5)
        out = run(lambda x, t: network(x), adjoint, x_T)
        grads = torch.autograd.grad(out.square().sum(), [x_T, *network.parameters()])
        results.append((out, *grads, torch.rand(3)))
    assert torch.equal(results[0][0], results[1][0])
    assert max(map(relative, results[1][1:-1], results[0][1:-1])) <= 1e-12
    assert torch.equal(results[0][-1], results[1][-1])


@pytest.mark.parametrize("tracks", [False, True])
@pytest.mark.parametrize("trains", [False, True])
def test_batch_statistics_are_updated_once(trains: bool, tracks: bool, x_T: Tensor) -> None:
    norm = nn.BatchNorm1d(8, track_running_stats=tracks)
    network = nn.Sequential(nn.Linear(4, 8), norm, nn.Linear(8, 4)).double().train(trains)
    found = []
    for adjoint in (sa.Checkpoint(), sa.Direct()):
        norm.reset_running_stats()
        (grad,) = torch.autograd.grad(run(lambda x, t: network(x), adjoint, x_T).sum(), x_T)
        found.append((grad, *(buffer.double() for buffer in norm.buffers())))
    for got, want in zip(*found, strict=True):
        assert relative(got, want) <= 1e-12


class Impure:
    """Networks that are not functions of (x, t, cond). Each method is one."""

    def __init__(self, token: Tensor) -> None:
        self.token, self.generator, self.calls = token, torch.Generator().manual_seed(0), 0
        self.cache: dict[float, Tensor] = {}

    def private_generator(self, x: Tensor, t: Tensor) -> Tensor:
        return x * self.token + 1e-4 * torch.randn(x.shape, dtype=x.dtype, generator=self.generator)

    def counter(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += 1
        return torch.tanh(x * self.token * self.calls)

    def cached_weight(self, x: Tensor, t: Tensor) -> Tensor:
        if not self.cache:
            self.cache[0.0] = self.token.exp()
        return torch.tanh(x * self.cache[0.0])

    def cached_weight_per_time(self, x: Tensor, t: Tensor) -> Tensor:
        self.cache.setdefault(float(t[0]), self.token.exp())
        return torch.tanh(x * self.cache[float(t[0])])

    def cached_features_per_time(self, x: Tensor, t: Tensor) -> Tensor:
        self.cache.setdefault(float(t[0]), x * 0.5 + self.token)
        return self.cache[float(t[0])] * 0.5

    def latest_only(self, x: Tensor, t: Tensor) -> Tensor:
        if float(t[0]) not in self.cache:
            self.cache = {float(t[0]): self.token.exp()}
        return torch.tanh(x * self.cache[float(t[0])])


@pytest.mark.parametrize("name", [name for name in vars(Impure) if not name.startswith("_")])
@pytest.mark.parametrize("checkpoint", [sa.Checkpoint(), sa.Checkpoint(2)], ids=repr)
@pytest.mark.parametrize("solver", [sa.DPMSolverPP2M(), sa.Heun()], ids=repr)
def test_impure_networks_are_refused_or_right(
    name: str, checkpoint: sa.Checkpoint, solver: sa.Solver, x_T: Tensor
) -> None:
    token = weight(4)
    leaves = [x_T, token]
    want = torch.autograd.grad(
        run(getattr(Impure(token), name), sa.Direct(), x_T, solver=solver).square().sum(), leaves
    )
    try:
        out = run(getattr(Impure(token), name), checkpoint, x_T, solver=solver).square().sum()
        got = torch.autograd.grad(out, leaves)
    except RuntimeError as error:
        refusal = str(error)
    else:
        assert name == "latest_only", "only a cache that never outlives its evaluation may pass"
        assert max(map(relative, got, want)) <= 1e-12
        return
    assert refusal.startswith("network")
    assert "adjoint=Direct()" in refusal


@pytest.mark.parametrize("checkpoint", [sa.Checkpoint(), sa.Checkpoint(3)], ids=repr)
def test_backward_twice(checkpoint: sa.Checkpoint, x_T: Tensor) -> None:
    network = Mlp(4)
    loss = run(network, checkpoint, x_T).sum()
    first = torch.autograd.grad(loss, [x_T, network.shared], retain_graph=True)
    second = torch.autograd.grad(loss, [x_T, network.shared])
    assert all(map(torch.equal, first, second))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


@pytest.mark.parametrize("checkpoint", [sa.Checkpoint(), sa.Checkpoint(3)], ids=repr)
@pytest.mark.parametrize("victim", ["parameter", "frozen parameter", "noise", "plain noise", "cond", "x_T"])
def test_changes_in_place_are_pytorchs_error(checkpoint: sa.Checkpoint, victim: str) -> None:
    network, frame, grid = Mlp(4), sa.Frame(SCHEDULE, eta=1.0), grid_of(6, True)
    x_T = torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4).clone()
    increments = sa.BrownianPath(seed=0).increments(frame, grid, x_T).requires_grad_(victim == "noise")
    style = torch.ones(2, 8, dtype=DOUBLE)
    out = run(
        network, checkpoint, x_T, frame=frame, grid=grid, noise=sa.FixedNoise(increments),
        cond={"embedding": {"style": [style]}},
    )  # fmt: skip
    target = {
        "parameter": network.shared, "frozen parameter": network.frozen, "noise": increments, "plain noise": increments,
        "cond": style, "x_T": x_T,
    }[victim]  # fmt: skip
    with torch.no_grad():
        target.mul_(1.5)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_changes_behind_autograds_back_are_noticed(x_T: Tensor) -> None:
    network = Mlp(4)
    out = run(network, sa.Checkpoint(), x_T)
    network.shared.data.mul_(1.01)
    with pytest.raises(RuntimeError, match="recomputing step 5 of 6 gave another state"):
        out.sum().backward()


@pytest.mark.parametrize("inside", [True, False])
def test_autocast_is_replayed(inside: bool, x_T: Tensor) -> None:
    network = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 4))
    x_T = x_T.detach().float().requires_grad_()
    results = []
    for adjoint in (sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():  # fills autocast's weight cache with casts that have no graph
                run(lambda x, t: network(x), adjoint, x_T.detach())
            loss = run(lambda x, t: network(x), adjoint, x_T).square().sum()
            if inside:
                grads = torch.autograd.grad(loss, [x_T, *network.parameters()])
        if not inside:
            grads = torch.autograd.grad(loss, [x_T, *network.parameters()])
        results.append((loss, *grads))
    for other in results[1:]:
        assert torch.equal(other[0], results[0][0])
        assert torch.equal(other[1], results[0][1])
        # With its weight cache autocast sums weight gradients in bfloat16 (eps = 2^-7), we sum them in float32.
        assert max(map(relative, other[2:], results[0][2:])) <= 2**-7


@pytest.mark.parametrize("adjoint", [sa.Checkpoint(), sa.Checkpoint(2), sa.Reversible()], ids=repr)
@pytest.mark.parametrize("forward", [None, torch.float16])
def test_autocast_is_that_of_the_forward_pass(forward: torch.dtype | None, adjoint: sa.Adjoint, x_T: Tensor) -> None:
    network = nn.Sequential(nn.Linear(4, 32), nn.SiLU(), nn.Linear(32, 4))
    x_T = x_T.detach().float().requires_grad_()

    def gradients(adjoint: sa.Adjoint, backward: torch.dtype | None) -> tuple[Tensor, ...]:
        with torch.autocast("cpu", dtype=forward, enabled=forward is not None):
            loss = run(lambda x, t: network(x), adjoint, x_T, solver=sa.Coupled(sa.Euler())).square().sum()
        with torch.autocast("cpu", dtype=backward, enabled=backward is not None):
            return torch.autograd.grad(loss, [x_T, *network.parameters()])

    for other in (None, torch.bfloat16):
        got, want = gradients(adjoint, other), gradients(sa.Direct(), other)
        # The products of the backward pass itself are bfloat16's there: eps = 2^-7.
        assert max(map(relative, got, want)) <= 2**-7


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_states_keep_their_dtype_and_have_directs_gradient(dtype: torch.dtype) -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4)).to(dtype)
    x_T = torch.linspace(-1, 1, 12).reshape(3, 4).to(dtype).requires_grad_()
    options = {"frame": sa.Frame(SCHEDULE, eta=1.0), "noise": sa.BrownianPath(seed=1), "trajectory": True}
    leaves = [x_T, *network.parameters()]
    want = run(lambda x, t: network(x), sa.Direct(), x_T, **options)
    got = run(lambda x, t: network(x), sa.Checkpoint(2), x_T, **options)
    assert got.dtype == dtype
    assert torch.equal(got, want)
    pairs = zip(*(torch.autograd.grad(out.double().sum(), leaves) for out in (got, want)), strict=True)
    # Both sum the same products, in another order: a few roundings per step.
    assert max(relative(a.double(), b.double()) for a, b in pairs) <= 8 * torch.finfo(dtype).eps


@pytest.mark.parametrize("adjoint", [sa.Direct(), sa.Checkpoint(2)], ids=repr)
def test_a_network_that_answers_in_a_wider_dtype_does_not_widen_the_state(adjoint: sa.Adjoint) -> None:
    x_T = torch.linspace(-1, 1, 12).reshape(3, 4).bfloat16().requires_grad_()
    for solver in (sa.Euler(), sa.DPMSolverPP2M(), sa.RK4()):
        states = run(lambda x, t: torch.tanh(x.float()), adjoint, x_T, solver=solver, trajectory=True)
        assert states.dtype == torch.bfloat16
        assert torch.autograd.grad(states.sum(), x_T)[0].dtype == torch.bfloat16


def test_fast_paths_that_pytorch_takes_without_gradients_change_nothing() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    x_T = torch.linspace(-1, 1, 48).reshape(2, 3, 8).requires_grad_()
    got, want = (run(lambda x, t: layer(x), adjoint, x_T, steps=4) for adjoint in (sa.Checkpoint(), sa.Direct()))
    assert torch.equal(got, want)
    got.sum().backward()


def test_networks_with_checkpoints_of_their_own(x_T: Tensor) -> None:
    network = Mlp(4)

    def inner(x: Tensor, t: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(network, x, t, use_reentrant=False)

    leaves = [x_T, network.shared]
    got, want = (torch.autograd.grad(run(n, sa.Checkpoint(2), x_T).sum(), leaves) for n in (inner, network))
    assert max(map(relative, got, want)) <= 1e-12


def test_layouts_and_expanded_tensors() -> None:
    network = Mlp(4)
    for x_T in (torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(4, 3).T, torch.ones(1, 4, dtype=DOUBLE).expand(3, 4)):
        leaf = x_T.detach().clone().requires_grad_()
        for start in (x_T.requires_grad_(), leaf):
            run(network, sa.Checkpoint(2), start).square().sum().backward()
        assert relative(x_T.grad, leaf.grad) <= 1e-12


def test_trajectory_carries_gradients_from_every_state(x_T: Tensor) -> None:
    network = Mlp(4)
    states = run(network, sa.Checkpoint(2), x_T, trajectory=True)
    assert states.shape == (7, 3, 4)
    assert torch.equal(states[0], x_T)
    assert torch.equal(states[-1], run(network, sa.Checkpoint(), x_T))
    assert torch.equal(torch.autograd.grad(states[0].sum(), x_T, retain_graph=True)[0], torch.ones_like(x_T))
    for n in range(7):
        (got,) = torch.autograd.grad(states[n].sum(), x_T, retain_graph=True)
        (want,) = torch.autograd.grad(run(network, sa.Direct(), x_T, trajectory=True)[n].sum(), x_T)
        assert relative(got, want) <= 1e-12


@pytest.mark.parametrize("bad", [0, -1, 2.0, True, "all"])
def test_snapshots_are_validated(bad: object) -> None:
    with pytest.raises(ValueError, match="snapshots: got"):
        sa.Checkpoint(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("dtype", "device", "narrow", "bound"),
    [
        (torch.float64, "cpu", False, 2.0**-46),
        (torch.float32, "cpu", True, 2.0**-17),
        (torch.bfloat16, "cpu", True, 2.0**-17),
        (torch.float32, "cuda", False, 2.0**-17),
        (torch.float32, "cuda", True, 2.0**-10),
        (torch.bfloat16, "cuda", True, 2.0**-10),
    ],
)
def test_how_far_a_recomputation_may_be_off(dtype: torch.dtype, device: str, narrow: bool, bound: float) -> None:
    assert round_off(dtype, device, narrow) == bound
