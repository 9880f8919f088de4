"""``Scheduled``: each step sees its own value, each slot gets its own gradient."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

import sdeadjoint as sa

from .solves import DOUBLE, SCHEDULE, worst

STEPS = 6
GRID = sa.uniform_logsnr(SCHEDULE, STEPS)
X_T = torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3)
SOLVERS = [sa.Euler(), sa.Heun(), sa.DPMSolverPP2M(), sa.RK4(), sa.Coupled(sa.Heun())]
ADJOINTS = [sa.Checkpoint(), sa.Checkpoint(2), sa.Checkpoint(memory="1MiB")]


def network(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
    return torch.tanh(x * (1 + z)) + torch.sin(z)


def sampled(z: Any, adjoint: sa.Adjoint, solver: sa.Solver, **options: Any) -> Tensor:
    options = {"cond": {"z": z}, "denoiser": sa.Denoiser(network, SCHEDULE, "sample"), "grid": GRID} | options
    return sa.sample(x_T=X_T, frame=sa.Frame(SCHEDULE), solver=solver, adjoint=adjoint, **options)


def slots(seed: int = 0) -> Tensor:
    return torch.randn(STEPS, 2, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.RK4()], ids=repr)
def test_each_step_sees_its_value(solver: sa.Solver) -> None:
    z = slots()
    x = X_T
    for n in range(STEPS):  # one-step samplers can be run a step at a time
        x = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x, frame=sa.Frame(SCHEDULE), grid=GRID[n : n + 2], solver=solver,
            cond={"z": z[n]}, adjoint=sa.Direct(),
        )  # fmt: skip
    got = sampled(sa.Scheduled(z), sa.Checkpoint(), solver)
    assert torch.allclose(got, x, rtol=1e-13, atol=0)
    want = torch.autograd.grad(x.square().sum(), z)
    assert worst(torch.autograd.grad(got.square().sum(), z), want) <= 1e-12


@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_gradients_are_those_of_direct(adjoint: sa.Adjoint, solver: sa.Solver) -> None:
    z = slots()
    want = torch.autograd.grad(sampled(sa.Scheduled(z), sa.Direct(), solver).square().sum(), z)
    assert worst(torch.autograd.grad(sampled(sa.Scheduled(z), adjoint, solver).square().sum(), z), want) <= 1e-12
    # As a list of leaves, nested.
    leaves = [value.detach().requires_grad_() for value in z]
    deep = sa.Denoiser(lambda x, t, nest: network(x, t, nest["z"][0]), SCHEDULE, "sample")
    out = sampled(None, adjoint, solver, denoiser=deep, cond={"nest": sa.Scheduled([{"z": [v]} for v in leaves])})
    assert worst((torch.stack(torch.autograd.grad(out.square().sum(), leaves)),), want) <= 1e-12


class Named(NamedTuple):
    value: Any


class Labelled(list[Any]):
    """A list that may have attributes."""


NESTS: dict[str, Callable[[Any], Any]] = {
    "dict": lambda value: {"a": value},
    "other mapping": lambda value: UserDict(a=value),
    "read-only mapping": lambda value: MappingProxyType({"a": value}),
    "list": lambda value: [value],
    "other list": lambda value: Labelled([value]),
    "tuple": lambda value: (value,),
    "named tuple": Named,
}


def only(nest: Any) -> Any:
    (value,) = nest.values() if isinstance(nest, Mapping) else nest
    return value


@pytest.mark.parametrize("scheduled", [False, True])
@pytest.mark.parametrize("kind", NESTS)
def test_every_kind_of_nest_is_searched_and_left_alone(kind: str, scheduled: bool) -> None:
    z = slots().sin() if scheduled else slots()[0].sin()  # no leaf: an argument that is overlooked has no gradient
    value, denoiser = sa.Scheduled(z) if scheduled else z, sa.Denoiser(network, SCHEDULE, "sample")
    want = torch.autograd.grad(sampled(value, sa.Direct(), sa.Heun(), denoiser=denoiser).sum(), z)
    nest = NESTS[kind](value)
    denoiser = sa.Denoiser(lambda x, t, z: network(x, t, only(z)), SCHEDULE, "sample")
    for adjoint in (sa.Direct(), *ADJOINTS):
        out = sampled(nest, adjoint, sa.Heun(), denoiser=denoiser)
        assert worst(torch.autograd.grad(out.sum(), z, retain_graph=True), want) <= 1e-12
        assert only(nest) is value
    with torch.no_grad(), pytest.raises(RuntimeError, match="cond requires a gradient"):
        sampled(nest, sa.Checkpoint(), sa.Heun(), denoiser=denoiser)


def test_truncation_reaches_the_last_slots_only() -> None:
    z = slots()
    grad = torch.autograd.grad(sampled(sa.Scheduled(z), sa.Truncated(2), sa.Euler()).square().sum(), z)[0]
    assert [bool(slot.any()) for slot in grad] == [False] * 4 + [True] * 2


@pytest.mark.parametrize("batched", [False, True])
def test_scheduled_null_embeddings(batched: bool) -> None:
    z, null = slots(1), slots(2)

    def out(adjoint: sa.Adjoint, null: Any) -> Tensor:
        guidance = sa.Guidance(2.0, {"z": null}, batched=batched)
        denoiser = sa.Denoiser(network, SCHEDULE, "sample", guidance=guidance)
        return sampled(sa.Scheduled(z), adjoint, sa.Heun(), denoiser=denoiser)

    x = X_T
    for n in range(STEPS):  # Heun's method can be run a step at a time
        guidance = sa.Guidance(2.0, {"z": null[n]}, batched=batched)
        denoiser = sa.Denoiser(network, SCHEDULE, "sample", guidance=guidance)
        x = sa.sample(
            denoiser, x, frame=sa.Frame(SCHEDULE), grid=GRID[n : n + 2], solver=sa.Heun(), cond={"z": z[n]}
        )  # fmt: skip
    assert torch.allclose(out(sa.Direct(), sa.Scheduled(null)), x, rtol=1e-13, atol=0)
    want = torch.autograd.grad(out(sa.Direct(), sa.Scheduled(null)).square().sum(), [z, null])
    assert all(bool(slot.any()) for slot in want[1])
    for adjoint in ADJOINTS:
        assert worst(torch.autograd.grad(out(adjoint, sa.Scheduled(null)).square().sum(), [z, null]), want) <= 1e-12
    constant = null[:1].detach()
    assert torch.equal(out(sa.Direct(), sa.Scheduled(constant.expand(STEPS, -1, -1))), out(sa.Direct(), constant[0]))


def test_bad_schedules() -> None:
    for values in (slots()[:5], [1.0] * 7):
        with pytest.raises(ValueError, match=rf"cond: Scheduled holds {len(values)} values, but the grid has 6 steps"):
            sampled(sa.Scheduled(values), sa.Direct(), sa.Euler())
    for values in (torch.tensor(1.0), 3.0, {"a": 1}):
        with pytest.raises(TypeError, match="cond: Scheduled got"):
            sampled(sa.Scheduled(values), sa.Direct(), sa.Euler())  # type: ignore[arg-type]
    guided = sa.Denoiser(network, SCHEDULE, guidance=sa.Guidance(2.0, {"z": sa.Scheduled(slots()[:2])}))
    with pytest.raises(ValueError, match="guidance: Scheduled holds 2 values"):
        sampled(slots()[0], sa.Direct(), sa.Euler(), denoiser=guided)
