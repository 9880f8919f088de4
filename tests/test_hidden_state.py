"""Networks with state of their own, or changed between the passes: the gradient of plain autograd, or a refusal."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa

from .loops import DOUBLE, SCHEDULE, loop, sampled
from .solves import worst

RECOMPUTING = [sa.Checkpoint(), sa.Checkpoint(2), sa.Checkpoint(memory=400)]
ADJOINTS = [*RECOMPUTING, sa.Checkpoint(memory="1MiB")]


@pytest.fixture
def x_T() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_()


def weight(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


class Base(nn.Module):
    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), *layers, nn.Linear(8, 4)).double()

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layers(x + t[:, None])
        return out


def refused(network: Any, adjoint: sa.Adjoint, x_T: Tensor, change: Callable[[], object], *words: str) -> None:
    out = sampled(network, x_T, adjoint)
    change()
    with pytest.raises(RuntimeError) as error:
        out.square().sum().backward()
    for word in (*words, "adjoint=Direct()"):
        assert word in str(error.value)


# What counts its calls.


@pytest.mark.parametrize("adjoint", RECOMPUTING, ids=repr)
@pytest.mark.parametrize("late", [True, False])
def test_a_graph_that_depends_on_the_number_of_the_call(late: bool, adjoint: sa.Adjoint, x_T: Tensor) -> None:
    """The values are the same at every call; the derivative is not."""
    base, calls = Base(), 0

    def network(x: Tensor, t: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return base(x, t) if (calls > 3) == late else base(x, t).detach()

    refused(network, adjoint, x_T, lambda: None, "built another graph")


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("method", ["euler", "heun"])
def test_counting_the_calls_does_no_harm(method: str, adjoint: sa.Adjoint, x_T: Tensor) -> None:
    class Counting(Base):
        calls = 0

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.calls += 1
            return super().forward(x, t)

    network = Counting()
    leaves = [x_T, *network.parameters()]
    got = torch.autograd.grad(sampled(network, x_T, adjoint, method).sum(), leaves)
    assert worst(got, torch.autograd.grad(loop(network, x_T, method).sum(), leaves)) <= 1e-12


# Modules that are changed between the passes.


class Named(dict[str, float]):
    """A dictionary that cannot be made of nothing."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


class Scaled(Base):
    """Reads its factor from a dictionary."""

    def __init__(self, factors: dict[str, float]) -> None:
        super().__init__()
        self.factors = factors

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) * self.factors.get("factor", 1.0)


@pytest.mark.parametrize("made", [dict, lambda: Named("factors")], ids=["dict", "named"])
@pytest.mark.parametrize("change", ["nothing", "filled", "replaced by another empty one", "replaced by a filled one"])
def test_a_dictionary_that_is_empty_in_the_forward_pass(change: str, made: Callable[[], Any], x_T: Tensor) -> None:
    network = Scaled(made())
    out = sampled(network, x_T, sa.Checkpoint())
    if change.startswith("replaced"):
        network.factors = made()
    if "filled" in change:
        network.factors["factor"] = 0.5
        with pytest.raises(RuntimeError, match="'factors', which it reads, was changed"):
            out.sum().backward()
    else:
        out.sum().backward()


class Rolled(Base):
    """A branch of zeros that is rolled by a number, which shows neither in the state nor in the graph's numbers."""

    def __init__(self, by: Any) -> None:
        super().__init__()
        self.by, self.B = by, nn.Parameter(torch.zeros(4, 4, dtype=DOUBLE))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        by = self.by if isinstance(self.by, np.integer) else self.by[0]
        return super().forward(x, t) + x.roll(int(by), 1) @ self.B


@pytest.mark.parametrize("by", [np.array([1, 2]), np.int64(1), deque([1, 2]), [1, 2]], ids=lambda by: type(by).__name__)
def test_numbers_in_arrays_and_queues(by: Any, x_T: Tensor) -> None:
    network = Rolled(copy.deepcopy(by))
    sampled(network, x_T, sa.Checkpoint()).sum().backward()
    out = sampled(network, x_T, sa.Checkpoint())
    if isinstance(by, np.integer):
        network.by = np.int64(3)
    else:
        network.by[0] = 3
    with pytest.raises(RuntimeError, match="'by', which it reads, was changed"):
        out.sum().backward()


class Biased(Base):
    """Reads a number that may be none."""

    def __init__(self, bias: Any) -> None:
        super().__init__()
        self.bias = bias

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return super().forward(x, t) + (0.0 if np.isnan(self.bias) else float(self.bias))


def test_what_is_no_number_is_no_change(x_T: Tensor) -> None:
    for bias in (float("nan"), np.float32("nan")):
        network = Biased(bias)
        out = sampled(network, x_T, sa.Checkpoint())
        network.bias = type(bias)("nan")  # another object, which equals nothing
        out.sum().backward()


class Counted(Base):
    """Counts its calls in a number of NumPy's, and rolls a branch of zeros by it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.B = np.int64(0), nn.Parameter(torch.zeros(4, 4, dtype=DOUBLE))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls += np.int64(1)
        return super().forward(x, t) + x.roll(int(self.calls), 1) @ self.B


@pytest.mark.parametrize("adjoint", RECOMPUTING, ids=repr)
def test_a_counter_of_numpy(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    found = []
    for each in (adjoint, sa.Direct()):
        network = Counted()
        out = sampled(network, x_T, each)
        found.append(torch.autograd.grad(out.sin().sum(), [x_T, network.B]))
        assert type(network.calls) is np.int64
    assert worst(*found) <= 1e-12


class Lora(nn.Module):
    """A frozen layer with a trained update, whose B is zero at first, as in fine-tuning."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.base = nn.Linear(4, 4).double().requires_grad_(False)
        self.A, self.B = nn.Parameter(weight(2, 4).detach()), nn.Parameter(torch.zeros(4, 2, dtype=DOUBLE))
        self.scaling, self.merged = {"default": 2.0}, False

    @property
    def factor(self) -> float:
        return self.scaling["default"]

    def merge(self) -> None:
        self.base.weight.data += self.factor * (self.B @ self.A).detach()
        self.merged = True

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.base(x)
        return out if self.merged else out + self.factor * (x @ self.A.T @ self.B.T)


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("adjoint", RECOMPUTING, ids=repr)
def test_an_adapter_merged_or_scaled_between_the_passes(adjoint: sa.Adjoint, hidden: bool, x_T: Tensor) -> None:
    layer = Lora()
    network = (lambda x, t: torch.tanh(layer(x, t))) if hidden else layer
    leaves = [x_T, layer.A, layer.B]
    got = torch.autograd.grad(sampled(network, x_T, adjoint).sum(), leaves, allow_unused=True)
    assert worst(got, torch.autograd.grad(loop(network, x_T).sum(), leaves)) <= 1e-12

    def scale() -> None:
        layer.scaling["default"] = 0.5

    refused(network, adjoint, x_T, scale, "'scaling', which it reads, was changed between")
    refused(network, adjoint, x_T, layer.merge, "was changed between")


def test_an_adapter_merged_where_no_attribute_says_so(x_T: Tensor) -> None:
    merged: list[bool] = []
    layer = Lora()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return layer.base(x) if merged else layer(x, t)

    refused(network, sa.Checkpoint(), x_T, lambda: merged.append(True), "built another graph")


@pytest.mark.parametrize("where", ["closure", "global", "default", "partial", "method", "namespace"])
def test_numbers_that_functions_read(where: str, x_T: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """A factor of a branch that is zero: no value shows that it was changed."""
    import functools
    import types

    zero, factor = torch.zeros(4, dtype=DOUBLE, requires_grad=True), 2.0
    state = types.SimpleNamespace(factor=2.0)
    monkeypatch.setitem(globals(), "FACTOR", 2.0)

    class Held:
        factor = 2.0

        def __init__(self) -> None:
            self.factor = 2.0

        def __call__(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.tanh(x) + self.factor * zero

        def other(self, x: Tensor, t: Tensor) -> Tensor:
            return self(x, t)

    held = Held()

    def keyed(x: Tensor, t: Tensor, settings: Any = state) -> Tensor:
        return torch.tanh(x) + settings.factor * zero

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) + factor * zero

    def with_global(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(x) + FACTOR * zero  # type: ignore[name-defined]  # noqa: F821

    networks = {
        "closure": network,
        "global": with_global,
        "default": keyed,
        "partial": functools.partial(keyed, settings=state),
        "method": held.other,
        "namespace": lambda x, t: torch.tanh(x) + state.factor * zero,
    }

    def change() -> None:
        nonlocal factor
        factor = state.factor = held.factor = 0.5
        globals()["FACTOR"] = 0.5

    refused(networks[where], sa.Checkpoint(), x_T, change, "which it reads, was changed between")


@pytest.mark.parametrize("adjoint", [*RECOMPUTING, sa.Reversible()], ids=repr)
def test_modes_of_modules_in_functions(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    base = Base(nn.Dropout(0.0))
    method = sa.Coupled(sa.Euler()) if adjoint == sa.Reversible() else "euler"
    out = sampled(lambda x, t: base(x, t), x_T, adjoint, method)
    base.eval()
    with pytest.raises(RuntimeError, match=r"train\(\) or eval\(\) was called between"):
        out.sum().backward()


def test_a_frozen_tensor_in_a_closure_changed_in_place(x_T: Tensor) -> None:
    zero, gain = torch.zeros(4, dtype=DOUBLE, requires_grad=True), torch.ones(4, dtype=DOUBLE)
    out = sampled(lambda x, t: torch.tanh(x) + gain * zero, x_T, sa.Checkpoint())
    gain.mul_(3)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


# Buffers that the forward pass changes.


class Updating(Base):
    """Counts calls, averages features and normalises with batch statistics; the counter scales a branch of zeros."""

    def __init__(self) -> None:
        super().__init__(nn.BatchNorm1d(8))
        self.register_buffer("calls", torch.zeros((), dtype=DOUBLE))
        self.register_buffer("mean", torch.zeros(4, dtype=DOUBLE))
        self.zero = nn.Parameter(torch.zeros(4, dtype=DOUBLE))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        self.calls = self.calls + 1  # another tensor each time
        self.mean.lerp_(x.detach().mean(0), 0.1)
        return super().forward(x, t) + self.calls * self.zero * self.mean.clone()


def state_of(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("method", ["euler", "heun", "2m"])
@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_buffers_are_changed_once_and_gradients_see_what_the_forward_pass_saw(
    adjoint: sa.Adjoint, method: str, hidden: bool, x_T: Tensor
) -> None:
    ours, plain = Updating(), Updating()
    want = torch.autograd.grad(loop(plain, x_T, method).square().sum(), [x_T, *plain.parameters()])
    out = sampled((lambda x, t: ours(x, t)) if hidden else ours, x_T, adjoint, method)
    before = state_of(ours)
    got = torch.autograd.grad(out.square().sum(), [x_T, *ours.parameters()], retain_graph=True)
    assert worst(got, want) <= 1e-12
    # A second pass over the graph, which autograd allows, starts from the same buffers.
    if adjoint in RECOMPUTING[:2]:
        assert worst(torch.autograd.grad(out.square().sum(), [x_T, *ours.parameters()]), want) <= 1e-12
    for found in (before, state_of(ours)):
        for name, tensor in plain.state_dict().items():
            torch.testing.assert_close(found[name], tensor, rtol=1e-12, atol=1e-14)
    assert int(ours.calls) == {"euler": 5, "heun": 10, "2m": 5}[method]


def test_buffers_whose_values_come_back_wrong_would_be_seen(x_T: Tensor) -> None:
    """Outputs that depend on a buffer that the forward pass changes: each step is recomputed from its own value."""

    class Averaging(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(4, dtype=DOUBLE))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.mean.lerp_(x.detach().mean(0), 0.5)
            return super().forward(x - self.mean, t)

    ours, plain = Averaging(), Averaging()
    for adjoint in RECOMPUTING[:2]:
        ours.mean.zero_()
        plain.mean.zero_()
        got = torch.autograd.grad(sampled(ours, x_T, adjoint).sum(), [x_T, *ours.parameters()])
        assert worst(got, torch.autograd.grad(loop(plain, x_T).sum(), [x_T, *plain.parameters()])) <= 1e-12
        torch.testing.assert_close(ours.mean, plain.mean, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("adjoint", [sa.Reversible(), sa.ContinuousAdjoint()], ids=repr)
def test_where_buffers_cannot_be_restored_it_is_said(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"its forward pass changes 'calls'.*adjoint=Checkpoint\(\)"):
        sampled(Updating(), x_T, adjoint, sa.Coupled(sa.Euler()))


@pytest.mark.parametrize("adjoint", [sa.Reversible(), sa.ContinuousAdjoint()], ids=repr)
def test_a_counter_that_scales_a_branch_of_zeros_is_refused(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    """Neither values nor the graph tell that it differs from call to call; the branch's gradient would be wrong."""

    class Scaled(Base):
        count = 0

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.count += 1
            return super().forward(x, t) + self.count * self.zero

        def __init__(self) -> None:
            super().__init__()
            self.zero = nn.Parameter(torch.zeros(4, dtype=DOUBLE))

    with pytest.raises(RuntimeError, match=r"its forward pass changes 'count'.*adjoint=Checkpoint\(\)"):
        sampled(Scaled(), x_T, adjoint, sa.Coupled(sa.Euler()))


def test_statistics_that_nobody_can_restore(x_T: Tensor) -> None:
    mean, variance = [torch.zeros(4, dtype=DOUBLE)] * 200, [torch.ones(4, dtype=DOUBLE)] * 200

    def network(x: Tensor, t: Tensor) -> Tensor:
        return nn.functional.batch_norm(x, mean[0], variance[0], training=True)

    with pytest.raises(RuntimeError, match=r"running statistics that are not buffers.*network\.eval\(\)"):
        sampled(network, x_T, sa.Checkpoint())


def test_a_large_buffer_that_changes(x_T: Tensor) -> None:
    class Large(Base):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("table", torch.zeros(2**18, dtype=DOUBLE))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.table[0] += 1
            return super().forward(x, t)

    with pytest.raises(RuntimeError, match=r"'table' is changed by the forward pass and too large"):
        sampled(Large(), x_T, sa.Checkpoint())


class BatchNormLike(torch.autograd.Function):
    """A function of a user's own whose name says what it is not."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad * 2


def test_names_prove_nothing(x_T: Tensor) -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        out: Tensor = torch.tanh(BatchNormLike.apply(x))
        return out

    got = torch.autograd.grad(sampled(network, x_T, sa.Checkpoint()).sum(), x_T)
    assert worst(got, torch.autograd.grad(loop(network, x_T).sum(), x_T)) <= 1e-12


# .grad and hooks.


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("linear", [False, True])
def test_a_network_that_accumulates_gradients_is_refused(linear: bool, adjoint: sa.Adjoint, x_T: Tensor) -> None:
    base = Base()

    def network(x: Tensor, t: Tensor) -> Tensor:
        point = x.detach().requires_grad_()
        if linear:  # no node of it saves anything
            (point.sum() + base.layers[0].bias.sum()).backward()
        else:
            base(point, t).square().sum().backward()
        assert point.grad is not None
        return base(x, t) - 0.1 * point.grad

    with pytest.raises(RuntimeError, match=r"it calls backward\(\).*torch\.autograd\.grad in it"):
        sampled(network, x_T, adjoint)
    base.requires_grad_(False)  # nothing is accumulated but in the network's own leaf
    got = torch.autograd.grad(sampled(network, x_T, adjoint).sum(), x_T)
    assert worst(got, torch.autograd.grad(loop(network, x_T).sum(), x_T)) <= 1e-12


@pytest.mark.parametrize("adjoint", [*ADJOINTS, sa.Reversible()], ids=repr)
def test_hooks_that_the_forward_pass_registers_see_totals(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    """On a weight, on an argument and on a leaf that nobody declared: once for each call of the network."""
    method: Any = sa.Coupled(sa.Euler()) if adjoint == sa.Reversible() else "euler"

    def results(run: Callable[..., Tensor]) -> tuple[list[Tensor], list[tuple[str, Tensor]]]:
        base, token, closure = Base(), weight(3, 4), weight(4, seed=3)
        seen: list[tuple[str, Tensor]] = []

        def watch(name: str) -> Callable[[Tensor], Tensor]:
            def hook(grad: Tensor) -> Tensor:
                seen.append((name, grad.clone()))
                return 0.5 * grad

            return hook

        def network(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
            base.layers[0].bias.register_hook(watch("weight"))
            z.register_hook(watch("argument"))
            closure.register_hook(watch("closure"))
            return base(x + z, t) * closure

        loss = run(network, x_T, z=token).square().sum()
        loss.backward()
        grads = [base.layers[0].bias.grad, token.grad, closure.grad]
        assert all(grad is not None for grad in grads)
        return grads, sorted(seen, key=lambda pair: pair[0])  # type: ignore[return-value]

    def direct(network: Any, x: Tensor, **cond: Any) -> Tensor:
        return sampled(network, x, sa.Direct(), sa.Coupled(sa.Euler()), **cond)

    got = results(lambda network, x, **cond: sampled(network, x, adjoint, method, **cond))
    want = results(direct if adjoint == sa.Reversible() else loop)
    assert worst(tuple(got[0]), tuple(want[0])) <= 1e-11
    assert [name for name, _ in got[1]] == [name for name, _ in want[1]]
    assert worst(tuple(g for _, g in got[1]), tuple(g for _, g in want[1])) <= 1e-11


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_scripted_and_compiled_networks_are_told_by_their_leaves(x_T: Tensor) -> None:
    base = Base()
    scripted = torch.jit.trace(base, (x_T.detach(), torch.zeros(3, dtype=DOUBLE)), check_trace=False)
    leaves = [x_T, *scripted.parameters()]
    for _ in range(3):  # the profiler rewrites the graph between the first calls
        got = torch.autograd.grad(sampled(scripted, x_T, sa.Checkpoint()).sum(), leaves)
        assert worst(got, torch.autograd.grad(loop(scripted, x_T).sum(), leaves)) <= 1e-12


def test_shared_weights_under_autocast_without_its_cache() -> None:
    layer = nn.Linear(4, 4)
    x = torch.linspace(-1, 1, 12).reshape(3, 4).requires_grad_()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return layer(torch.tanh(layer(x)))

    grads = []
    for adjoint in (sa.Checkpoint(), sa.Direct()):
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
            out = sampled(network, x, adjoint)
        grads.append(torch.autograd.grad(out.sum(), [x, layer.weight]))
    assert torch.equal(grads[0][0], grads[1][0])
    assert worst(grads[0], grads[1]) <= 1e-6  # sums of a few terms, in float32


def test_the_denoisers_own_settings_are_watched(x_T: Tensor) -> None:
    zero = weight(4)
    with torch.no_grad():
        zero.zero_()
    denoiser = sa.Denoiser(lambda x, t, z: torch.tanh(x) + z * zero, SCHEDULE, "sample")
    denoiser = denoiser.guided_by(sa.Guidance(2.0, {"z": torch.zeros(3, 4, dtype=DOUBLE)}))
    out = sampled(denoiser, x_T, sa.Checkpoint(), z=torch.ones(3, 4, dtype=DOUBLE))
    denoiser.prediction = "epsilon"
    want = torch.autograd.grad(sampled(denoiser, x_T, sa.Direct(), z=torch.ones(3, 4, dtype=DOUBLE)).sum(), zero)
    with pytest.raises(RuntimeError, match="'prediction', which it reads, was changed between"):
        torch.autograd.grad(out.sum(), zero)
    assert want is not None


@pytest.mark.parametrize("adjoint", [*ADJOINTS, sa.Reversible()], ids=repr)
def test_a_callback_that_changes_the_network(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    """As pipelines' callbacks do, which lower a scale at the end: each step is recomputed as it was."""

    class Scaled(Base):
        def __init__(self) -> None:
            super().__init__()
            self.zero, self.scale = nn.Parameter(torch.zeros(4, dtype=DOUBLE)), 3.0
            self.register_buffer("gain", torch.ones((), dtype=DOUBLE))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return super().forward(x, t) + self.scale * self.gain.clone() * self.zero

    def gradient(adjoint: sa.Adjoint) -> tuple[Tensor, ...]:
        network = Scaled()

        def change(n: int, t: float, x: Tensor) -> None:
            if n == 3:
                network.scale = 1.0
            network.gain.mul_(0.5)

        method = sa.Coupled(sa.Euler()) if isinstance(adjoint, sa.Reversible) else sa.Heun()
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE),
            grid=sa.uniform_logsnr(SCHEDULE, 6), solver=method, adjoint=adjoint, callback=change,
        )  # fmt: skip
        return torch.autograd.grad(out.sum(), [network.zero, x_T])

    if isinstance(adjoint, sa.Reversible):
        with pytest.raises(RuntimeError, match=r"changes '(gain|scale)'.*adjoint=Checkpoint\(\)"):
            gradient(adjoint)
        return
    assert worst(gradient(adjoint), gradient(sa.Direct())) <= 1e-12


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_callback_that_draws_between_masks(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    def gradient(adjoint: sa.Adjoint) -> tuple[Tensor, Tensor]:
        torch.manual_seed(0)
        out = sa.sample(
            sa.Denoiser(Base(nn.Dropout(0.5)), SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE),
            grid=sa.uniform_logsnr(SCHEDULE, 6), solver=sa.Heun(), adjoint=adjoint,
            callback=lambda n, t, x: torch.rand(n),
        )  # fmt: skip
        return torch.autograd.grad(out.sum(), x_T)[0], torch.rand(1)

    assert worst(gradient(adjoint), gradient(sa.Direct())) <= 1e-12
