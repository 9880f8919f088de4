"""Buffers that are used again, schedules that change, containers of any type, tensors without storage."""

from __future__ import annotations

import copy
import pickle
from collections import OrderedDict, UserDict, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint import nests
from sdeadjoint.memory import PeakMemory, storages

from .loops import DOUBLE, SCHEDULE, loop, sampled
from .networks import Mlp
from .solves import worst

ADJOINTS = [sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2), sa.Checkpoint(memory="1MiB")]
METHODS = ["euler", "heun", "2m"]


@pytest.fixture
def x_T() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_()


def weight(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


# One output buffer.


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_network_that_returns_the_same_buffer_each_time(adjoint: sa.Adjoint, method: str, x_T: Tensor) -> None:
    """As CUDA graphs and inference engines do: here without a gradient of its own."""
    base, out = Mlp(4), torch.empty(3, 4, dtype=DOUBLE)

    def network(x: Tensor, t: Tensor) -> Tensor:
        with torch.no_grad():
            return out.copy_(base(x, t))

    got = sampled(network, x_T, adjoint, method)
    torch.testing.assert_close(got, loop(network, x_T, method), rtol=1e-13, atol=1e-14)


def test_guidance_by_two_calls_and_a_solve_with_the_same_buffer() -> None:
    base, out = Mlp(4), torch.empty(3, 4, dtype=DOUBLE)
    x, style = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4), weight(3, 8).detach()

    def pure(x: Tensor, t: Tensor, embedding: Any) -> Tensor:
        with torch.no_grad():
            return base(x, t, embedding)

    def reused(x: Tensor, t: Tensor, embedding: Any) -> Tensor:
        return out.copy_(pure(x, t, embedding))

    guidance = sa.Guidance(3.0, {"embedding": {"style": [torch.zeros(3, 8, dtype=DOUBLE)]}}, batched=False)
    cond = {"embedding": {"style": [style]}}
    found = [
        sampled(sa.Denoiser(network, SCHEDULE, "sample", guidance=guidance), x, sa.Direct(), "heun", **cond)
        for network in (pure, reused)
    ]
    assert torch.equal(*found)
    clock = torch.linspace(0, 1, 5, dtype=DOUBLE)
    ends = [
        sa.solve(drift, x, clock=clock, solver=sa.Heun())
        for drift in (lambda s, y: torch.tanh(y) * s, lambda s, y: out.copy_(torch.tanh(y) * s))
    ]
    assert torch.equal(*ends)


# alpha and sigma.


@dataclass(frozen=True)
class Shifted(sa.VPLinear):
    """A schedule with one more attribute, which its equality does not know."""

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "shift", 0.0)

    def _log_alpha(self, t: Tensor) -> Tensor:
        return super()._log_alpha(t) - self.shift * t


def shifted(shift: float) -> Shifted:
    schedule = Shifted()
    object.__setattr__(schedule, "shift", shift)
    return schedule


class Unhashable(sa.VPLinear):
    __hash__ = None  # type: ignore[assignment]


def prediction_of(schedule: sa.Schedule, x: Tensor) -> Tensor:
    denoiser = sa.Denoiser(lambda x, t: torch.tanh(x), schedule, "epsilon")
    grid = torch.tensor([0.8, 0.5, 0.2], dtype=DOUBLE)
    return sa.sample(denoiser, x, frame=sa.Frame(schedule), grid=grid, solver=sa.Euler())


def by_hand(schedule: sa.Schedule, x: Tensor) -> Tensor:
    times = torch.tensor([0.8, 0.5, 0.2], dtype=DOUBLE)
    alpha, sigma = schedule.log_alpha(times).exp().tolist(), schedule.log_sigma(times).exp().tolist()
    for n in range(2):
        x0 = (x - sigma[n] * torch.tanh(x)) / alpha[n]
        x = sigma[n + 1] / sigma[n] * x + (alpha[n + 1] - sigma[n + 1] * alpha[n] / sigma[n]) * x0
    return x


def test_schedules_are_not_taken_for_others_that_equal_them() -> None:
    x = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4)
    schedules = [shifted(0.0), shifted(0.7), Unhashable(), sa.VPLinear()]
    assert schedules[0] == schedules[1]
    for schedule in schedules:
        torch.testing.assert_close(prediction_of(schedule, x), by_hand(schedule, x), rtol=1e-12, atol=1e-13)
    object.__setattr__(schedules[0], "shift", 0.3)
    torch.testing.assert_close(prediction_of(schedules[0], x), by_hand(schedules[0], x), rtol=1e-12, atol=1e-13)


def test_a_tensor_of_a_schedule_that_is_changed_in_place() -> None:
    x = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4)
    beta = torch.tensor(20.0, dtype=DOUBLE)
    schedule = sa.VPLinear(0.1, beta)  # type: ignore[arg-type]
    torch.testing.assert_close(prediction_of(schedule, x), by_hand(schedule, x), rtol=1e-12, atol=1e-13)
    beta.fill_(12.0)
    torch.testing.assert_close(prediction_of(schedule, x), by_hand(schedule, x), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("solver", "between"), [(sa.Heun(), 0), (sa.Midpoint(), 5)], ids=repr)
def test_alpha_and_sigma_are_asked_for_once_in_a_solve(solver: sa.Solver, between: int, x_T: Tensor) -> None:
    """At the nodes all together, before the first step; at a time within a step when it is first needed."""
    asked: list[float] = []

    class Counting(sa.VPLinear):
        def alpha(self, t: Tensor | float) -> Tensor:
            if isinstance(t, float):
                asked.append(t)
            return super().alpha(t)

    schedule = Counting()
    denoiser = sa.Denoiser(lambda x, t: torch.tanh(x), schedule)
    grid = sa.uniform_logsnr(schedule, 5)
    out = sa.sample(denoiser, x_T, frame=sa.Frame(schedule), grid=grid, solver=solver)
    out.sum().backward()
    assert len(asked) == len(set(asked)) == between


# Containers.


class Pair(NamedTuple):
    z: Tensor
    name: str


class Triple(tuple):
    """A tuple with a method that networks call."""

    @property
    def first(self) -> Any:
        return self[0]


class Items(list):
    @property
    def first(self) -> Any:
        return self[0]


class Frozen(Mapping[str, Any]):
    """A mapping that cannot be changed."""

    def __init__(self, items: Mapping[str, Any]) -> None:
        self._items = dict(items)

    def __getitem__(self, name: str) -> Any:
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)


class Stubborn(Frozen):
    def __init__(self, *, z: Tensor) -> None:
        super().__init__({"z": z})


def containers(z: Tensor) -> list[Any]:
    return [
        {"z": z}, OrderedDict(z=z), defaultdict(list, z=z), UserDict(z=z), MappingProxyType({"z": z}), Frozen({"z": z}),
        [z], (z,), Pair(z, "name"), Triple([z]), Items([z]), torch.max(z, dim=0),
    ]  # fmt: skip


def value_of(container: Any) -> Tensor:
    value: Tensor = container["z"] if isinstance(container, Mapping) else container[0]
    return value


@pytest.mark.parametrize("k", range(12))
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("guided", [False, True])
def test_containers_come_back_as_what_they_are(k: int, adjoint: sa.Adjoint, guided: bool, x_T: Tensor) -> None:
    """A network that takes another branch for other types."""
    z = weight(3, 4)
    given = containers(z)[k]

    def network(x: Tensor, t: Tensor, c: Any) -> Tensor:
        return torch.tanh(x * (value_of(c) if type(c) is type(given) else 2.0))

    denoiser = sa.Denoiser(network, SCHEDULE, "sample")
    if guided:
        denoiser = denoiser.guided_by(sa.Guidance(1.0, {"c": containers(torch.zeros(3, 4, dtype=DOUBLE))[k]}))
        if isinstance(given, Pair | torch.return_types.max):
            return  # a name, or indices, differ between the two
    got = torch.autograd.grad(sampled(denoiser, x_T, adjoint, c=given).sum(), z, retain_graph=True)
    assert worst(got, torch.autograd.grad(loop(network, x_T, c=given).sum(), z)) <= 1e-12


def test_containers_that_cannot_be_made_anew_are_refused(x_T: Tensor) -> None:
    def network(x: Tensor, t: Tensor, c: Any) -> Tensor:
        return torch.tanh(x * c["z"])

    with pytest.raises(TypeError, match="a Stubborn cannot be rebuilt with other tensors in it; pass a dict"):
        sampled(network, x_T, sa.Checkpoint(), c=Stubborn(z=weight(3, 4)))
    # Without tensors that require gradients nothing has to be made anew.
    fixed = Stubborn(z=weight(3, 4).detach())
    assert torch.equal(sampled(network, x_T, sa.Checkpoint(), c=fixed), sampled(network, x_T, sa.Direct(), c=fixed))


def test_what_does_not_change_is_handed_on_as_it_is() -> None:
    nest = {"a": [1, (2, torch.Size([3]))], "b": torch.zeros(2)}
    assert nests.map_tensors(lambda tensor: tensor, nest) is nest
    other = nests.map_tensors(torch.clone, nest)
    assert other is not nest
    assert other["a"] is nest["a"]


# Tensors without a storage of their own.


def test_lazy_modules(x_T: Tensor) -> None:
    lazy = nn.Sequential(nn.LazyLinear(8), nn.Tanh(), nn.LazyLinear(4)).double()
    for adjoint in (sa.Checkpoint(memory="1MiB"), sa.Checkpoint()):
        network = copy.deepcopy(lazy)
        out = sampled(lambda x, t, n=network: n(x), x_T, adjoint)
        leaves = [x_T, *network.parameters()]
        got = torch.autograd.grad(out.sum(), leaves)
        assert worst(got, torch.autograd.grad(loop(lambda x, t, n=network: n(x), x_T).sum(), leaves)) <= 1e-12


def test_sparse_conditioning(x_T: Tensor) -> None:
    values = torch.tensor([2.0, -1.0], dtype=DOUBLE)
    sparse = torch.sparse_coo_tensor(torch.tensor([[0, 1], [2, 3]]), values, (4, 4), check_invariants=True)
    sparse = sparse.coalesce().requires_grad_()

    def network(x: Tensor, t: Tensor, m: Tensor) -> Tensor:
        return torch.tanh(x + torch.sparse.mm(m, x.T).T)

    for adjoint in ADJOINTS[1:]:
        got = torch.autograd.grad(sampled(network, x_T, adjoint, m=sparse).sum(), [x_T, sparse])
        want = torch.autograd.grad(loop(network, x_T, m=sparse).sum(), [x_T, sparse])
        assert worst(tuple(g.to_dense() for g in got), tuple(g.to_dense() for g in want)) <= 1e-12


def test_storages_of_exotic_tensors() -> None:
    plain = torch.zeros(4)
    assert [storage.nbytes() for storage in storages(plain)] == [16]
    assert list(storages(nn.LazyLinear(3).weight)) == []
    sparse = torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (4,), check_invariants=True)
    assert sorted(storage.nbytes() for storage in storages(sparse)) == [4, 8]
    seen: list[int] = []
    torch.func.vmap(lambda x: (seen.extend(s._cdata for s in storages(x)), x)[1])(plain)
    assert seen == [plain.untyped_storage()._cdata]
    with PeakMemory() as memory:
        torch.sparse_coo_tensor(torch.tensor([[0]]), torch.ones(1), (4,), check_invariants=True).coalesce()
    assert memory.peak > 0


# Times, scales, pickles.


def test_a_time_is_float32_at_least_in_a_narrow_network() -> None:
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor) -> Tensor:
        seen.append(t)
        return x

    table = sa.Tabulated(torch.linspace(0.999, 0.001, 1000, dtype=DOUBLE))
    x = torch.zeros(2, 4)
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        denoiser = sa.Denoiser(network, table, network_dtype=dtype)
        for time in (999.0, 749.0):
            denoiser(x, time)
            assert seen[-1].tolist() == [time] * 2
            assert seen[-1].dtype == torch.promote_types(dtype, torch.float32)
    sa.Denoiser(network, table)(x.bfloat16(), 999.0)
    assert seen[-1].tolist() == [999.0] * 2
    sa.Denoiser(network, table, time_dtype=torch.bfloat16)(x, 999.0)
    assert seen[-1].dtype == torch.bfloat16, "whoever asks for it, gets it"


def test_scales_per_sample_and_per_feature() -> None:
    """With as many samples as features, (batch,) is still one per sample."""
    x = torch.linspace(-1, 1, 16, dtype=DOUBLE).reshape(4, 4)
    scale = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=DOUBLE)

    def network(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return torch.tanh(x) + z

    cond, without = {"z": torch.ones(4, 1, dtype=DOUBLE)}, {"z": torch.zeros(4, 1, dtype=DOUBLE)}
    for batched in (True, False):
        for given, factor in ((scale, scale[:, None]), (scale[None], scale[None]), (scale[:1], 1.0)):
            guidance = sa.Guidance(given, without, batched=batched)
            got = sa.Denoiser(network, SCHEDULE, "sample", guidance=guidance)(x, 0.5, cond)
            torch.testing.assert_close(got, torch.tanh(x) + factor * torch.ones_like(x), rtol=1e-14, atol=0)
    bad = sa.Denoiser(network, SCHEDULE, "sample", guidance=sa.Guidance(scale[:3], without))
    with pytest.raises(ValueError, match=r"scale: got shape \(3,\) for an output of shape \(4, 4\); pass a number"):
        bad(x, 0.5, cond)


@pytest.mark.parametrize("hook", [sa.clip_norm(0.5), sa.normalize(2.0), sa.record_norms([])])
def test_hooked_adjoints_survive_a_pickle(hook: Any) -> None:
    hooked = sa.Hooked(sa.Checkpoint(snapshots=3), hook)
    again = pickle.loads(pickle.dumps(hooked))
    assert repr(again) == repr(hooked)
    a = torch.ones(2, 9)
    first, second = (h.hook(1, 0.5, a) for h in (hooked, again))
    assert first is second is None or torch.equal(first, second)


@pytest.mark.parametrize("solver", [sa.Euler(), sa.Heun(), sa.ShARK()], ids=repr)
@pytest.mark.parametrize("adjoint", [sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2)], ids=repr)
@pytest.mark.parametrize("kind", [sa.ShiftedNoise, sa.FixedNoise, sa.NormalNoise])
def test_noise_of_an_ode_has_no_gradient(kind: Any, adjoint: sa.Adjoint, solver: sa.Solver, x_T: Tensor) -> None:
    network, grid = Mlp(4), sa.uniform_logsnr(SCHEDULE, 4)
    zeros = torch.zeros(4, 3, 4, dtype=DOUBLE, requires_grad=True)
    noise = sa.ShiftedNoise(sa.BrownianPath(seed=0), zeros) if kind is sa.ShiftedNoise else kind(zeros)
    out = sa.sample(
        sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE, 0.0), grid=grid, solver=solver,
        noise=noise, adjoint=adjoint,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(out.sum(), zeros)
    assert grad.shape == zeros.shape
    assert not grad.any()
