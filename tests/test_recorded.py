"""Tensors recorded inside of a step, networks that catch errors, and what several threads share."""

from __future__ import annotations

import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa

from .loops import DOUBLE, SCHEDULE, loop, sampled
from .networks import Mlp
from .solves import worst

ADJOINTS = [sa.Checkpoint(), sa.Checkpoint(2), sa.Checkpoint(memory=400), sa.Checkpoint(memory="1MiB")]
RECORDED = r"computed inside of the sampler|whose graph is gone"


@pytest.fixture
def x_T() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_()


def weight(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("adjoint", [*ADJOINTS, sa.Truncated(3), sa.ContinuousAdjoint()], ids=repr)
@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("wanted", ["x_T", "z", "closure", "weight", "noise"])
def test_a_derivative_of_something_recorded_is_refused(
    wanted: str, linear: bool, adjoint: sa.Adjoint, x_T: Tensor
) -> None:
    """Whatever it is asked for, by backward() or by name: the part through earlier steps would be missing."""
    network, z, closure, recorded = Mlp(4), weight(4), weight(4, seed=2), []
    if isinstance(adjoint, sa.Truncated):
        x_T = x_T.detach()
        if wanted == "x_T":
            pytest.skip("Truncated() has no gradient of x_T")
    grid, frame = sa.uniform_logsnr(SCHEDULE, 5), sa.Frame(SCHEDULE, 1.0)
    dB = sa.BrownianPath(seed=0).increments(frame, grid, x_T).requires_grad_()

    def model(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        h = x * 1.0 if linear else torch.tanh(x)
        recorded.append(h)
        return network(h, t) * z + closure

    out = sa.sample(
        sa.Denoiser(model, SCHEDULE, "sample"), x_T, frame=frame, grid=grid, solver=sa.Euler(), cond={"z": z},
        noise=sa.FixedNoise(dB), adjoint=adjoint,
    )  # fmt: skip
    leaf = {"x_T": x_T, "z": z, "closure": closure, "weight": network.shared, "noise": dB}[wanted]
    loss = out.sum() + recorded[4].square().sum()
    with pytest.raises(RuntimeError, match=RECORDED):
        torch.autograd.grad(loss, leaf)


def test_recording_without_differentiating_does_no_harm(x_T: Tensor) -> None:
    network = Mlp(4)
    for adjoint in ADJOINTS:
        recorded: list[Tensor] = []

        def model(x: Tensor, t: Tensor, recorded: list[Tensor] = recorded) -> Tensor:
            recorded.append(torch.tanh(x))
            return network(x, t)

        out = sampled(model, x_T, adjoint)
        got = torch.autograd.grad(out.sum(), [x_T, network.shared])
        assert worst(got, torch.autograd.grad(loop(network, x_T).sum(), [x_T, network.shared])) <= 1e-12


def test_recording_where_a_graph_is_kept_and_the_start_depends_on_a_weight() -> None:
    """A pass through a kept graph goes on behind its gates, into the user's own graph, and must leave it whole."""
    network, seed, recorded = Mlp(4), weight(3, 4), []
    leaves = [seed, network.outward.bias, network.shared]

    class Once(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x.sin()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            return grad * 2

    def model(x: Tensor, t: Tensor) -> Tensor:
        h = torch.tanh(x)
        recorded.append(h)
        return network(h, t) + 0.1 * seed

    def start() -> Tensor:
        before = Once.apply(seed * network.outward.bias)
        return sampled(network, before, sa.Checkpoint(memory="1MiB"))

    got = torch.autograd.grad(sampled(model, start(), sa.Checkpoint(memory="1MiB")).sum(), leaves)
    want = torch.autograd.grad(loop(model, loop(network, Once.apply(seed * network.outward.bias))).sum(), leaves)
    assert worst(got, want) <= 1e-12


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_network_that_differentiates_in_a_weight_sees_all_of_it_or_is_refused(
    adjoint: sa.Adjoint, x_T: Tensor
) -> None:
    """In plain autograd such a derivative goes on through all earlier steps."""
    network, gain = Mlp(4), weight(4)

    def model(x: Tensor, t: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad((network(x, t) * gain).sum(), gain, create_graph=True)
        return network(x, t) * gain + 0.1 * grad

    def local(x: Tensor, t: Tensor) -> Tensor:
        own = gain.detach().requires_grad_()
        (grad,) = torch.autograd.grad((network(x, t) * own).sum(), own, create_graph=True)
        return network(x, t) * gain + 0.1 * grad

    with pytest.raises(RuntimeError, match=r"computed inside of the sampler.*adjoint=Direct\(\)"):
        sampled(model, x_T, adjoint)
    leaves = [x_T, gain, network.shared]
    got = torch.autograd.grad(sampled(local, x_T, adjoint).sum(), leaves)
    assert worst(got, torch.autograd.grad(loop(local, x_T).sum(), leaves)) <= 1e-12


# Errors that a network catches.


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
def test_a_network_that_catches_errors_gives_its_sample(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    network = Mlp(4)

    def careful(x: Tensor, t: Tensor) -> Tensor:
        try:
            energy = network(x, t).square().sum()
            return x - 0.1 * torch.autograd.grad(energy, x, create_graph=True)[0]
        except RuntimeError:
            return torch.zeros_like(x)

    out, want = sampled(careful, x_T, adjoint), loop(careful, x_T)
    torch.testing.assert_close(out, want, rtol=1e-13, atol=1e-14)
    leaves = [x_T, network.shared]
    assert worst(torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(want.sum(), leaves)) <= 1e-12


@pytest.mark.parametrize("adjoint", ADJOINTS, ids=repr)
@pytest.mark.parametrize("other", [False, True])
def test_a_refusal_that_a_network_catches_is_raised_all_the_same(
    other: bool, adjoint: sa.Adjoint, x_T: Tensor
) -> None:
    network, gain = Mlp(4), weight(4)

    def model(x: Tensor, t: Tensor) -> Tensor:
        try:
            (grad,) = torch.autograd.grad((network(x, t) * gain).sum(), gain)
        except RuntimeError as error:
            if other:
                raise ValueError("something went wrong") from error
            return x
        return network(x, t) * gain + grad

    with pytest.raises(RuntimeError, match="computed inside of the sampler"):
        sampled(model, x_T, adjoint)


def test_a_cache_whose_error_is_caught(x_T: Tensor) -> None:
    network, cache = Mlp(4), {}

    def model(x: Tensor, t: Tensor) -> Tensor:
        try:
            if "energy" in cache:
                torch.autograd.grad(cache["energy"], cache["x"])
        except RuntimeError:
            return x
        cache["x"], cache["energy"] = x, network(x, t).square().sum()
        return network(x, t)

    with pytest.raises(RuntimeError, match="whose graph is gone"):
        sampled(model, x_T, sa.Checkpoint())


# Several threads.


def test_hooks_of_a_shared_weight_work_in_other_threads() -> None:
    """A backward pass of another thread, while this one is in the middle of its own."""
    network, x = Mlp(4), torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_()
    inside, done = threading.Event(), threading.Event()
    here, there, seen = threading.get_ident(), [], []

    def hook(grad: Tensor) -> Tensor:
        seen.append(threading.get_ident())
        return 2 * grad

    handle = network.shared.register_hook(hook)

    class Pause(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            if threading.get_ident() == here:
                inside.set()
                assert done.wait(60)
            return grad

    def elsewhere() -> None:
        assert inside.wait(60)
        there.append(torch.autograd.grad(network(x.detach(), torch.zeros(3, dtype=DOUBLE)).sum(), network.shared)[0])
        extra.append(network.shared.register_hook(lambda grad: None))
        done.set()

    extra: list[Any] = []
    thread = threading.Thread(target=elsewhere)
    thread.start()
    (got,) = torch.autograd.grad(
        sampled(lambda x, t: Pause.apply(network(x, t)), x, sa.Checkpoint()).sum(), network.shared
    )
    thread.join()
    assert seen == [thread.ident, here], "once by each pass, the sampler's with its total"
    hooks = network.shared._backward_hooks
    assert hooks is not None
    assert len(hooks) == 2
    for registered in (handle, *extra):
        registered.remove()
    assert not hooks
    want = torch.autograd.grad(loop(network, x).sum(), network.shared)[0]
    assert worst((got,), (2 * want,)) <= 1e-12
    alone = torch.autograd.grad(network(x.detach(), torch.zeros(3, dtype=DOUBLE)).sum(), network.shared)[0]
    assert worst(tuple(there), (2 * alone,)) <= 1e-14


@pytest.mark.parametrize("adjoint", [*ADJOINTS[:3], sa.Reversible(), sa.ContinuousAdjoint()], ids=repr)
def test_generators_of_other_threads_go_on(adjoint: sa.Adjoint) -> None:
    """The network draws nothing: its backward pass leaves the global generator to whoever draws meanwhile."""
    network, x = Mlp(4), torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_()
    drawn: list[float] = []

    class Draw(torch.autograd.Function):
        """In the place of another thread: draws in the middle of the backward pass, and never in the forward pass."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 1

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            thread = threading.Thread(target=lambda: drawn.append(float(torch.rand(()))))
            thread.start()
            thread.join()
            return grad

    torch.manual_seed(0)
    method = sa.Coupled(sa.Euler()) if isinstance(adjoint, sa.Reversible) else "euler"
    sampled(lambda x, t: Draw.apply(network(x, t)), x, adjoint, method).sum().backward()
    drawn.append(float(torch.rand(())))
    assert len(drawn) == len(set(drawn)) >= 6


def test_generators_are_restored_for_networks_that_draw(x_T: Tensor) -> None:
    """And for those that draw at some steps only."""
    dropout, network = nn.Dropout(0.5), Mlp(4)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return network(dropout(x) if t[0] < 0.5 else x, t)

    found = []
    for adjoint in (sa.Direct(), *ADJOINTS):
        torch.manual_seed(0)
        grad = torch.autograd.grad(sampled(model, x_T, adjoint).sum(), x_T)
        found.append((grad, torch.rand(2)))
    for grad, after in found[1:]:
        assert worst(grad, found[0][0]) <= 1e-12
        assert torch.equal(after, found[0][1])
