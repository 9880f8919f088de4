"""Every way in which PyTorch can ask for a derivative: plain autograd's answer, or a refusal that says what to do."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, jacfwd, jacrev, jvp, vmap

import sdeadjoint as sa
from sdeadjoint.memory import PeakMemory

from .loops import DOUBLE, SCHEDULE, loop, sampled
from .networks import Mlp
from .solves import worst

# PyTorch's forward mode loads scripts of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
CHECKPOINTS = [sa.Checkpoint(), sa.Checkpoint(2), sa.Checkpoint(memory=400), sa.Checkpoint(memory="1MiB")]
COUPLED = sa.Coupled(sa.Euler())
EXACT = [*((a, "heun") for a in CHECKPOINTS), (sa.Reversible(), COUPLED), (sa.Truncated(99), "2m")]
BIASED = [sa.Truncated(2), sa.LowVariance(), sa.ContinuousAdjoint(), sa.adjoint_deis(2)]


def ids(value: Any) -> str:
    return repr(value)


@pytest.fixture
def x_T() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_()


def weight(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def plain(network: Callable[..., Tensor], x: Tensor, method: Any, **cond: Any) -> Tensor:
    """Plain autograd: a loop of ours, or for solvers that it has not, ``Direct()``."""
    if isinstance(method, str):
        return loop(network, x, method, **cond)
    return sampled(network, x, sa.Direct(), method, **cond)


# Results that depend on nothing.


@pytest.mark.parametrize(("adjoint", "method"), EXACT, ids=ids)
@pytest.mark.parametrize("cut", ["no_grad", "detach", "inference"])
def test_a_result_that_depends_on_nothing_requires_no_gradient(
    cut: str, adjoint: sa.Adjoint, method: Any, x_T: Tensor
) -> None:
    inner, start = Mlp(4), x_T.detach()

    def network(x: Tensor, t: Tensor) -> Tensor:
        if cut == "no_grad":
            with torch.no_grad():
                return inner(x, t)
        if cut == "inference":
            with torch.inference_mode():
                return inner(x, t)
        return inner(x, t).detach()

    class Module(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return network(x, t)

    for model in (network, Module()):
        out = sampled(model, start, adjoint, method)
        assert not out.requires_grad
        with pytest.raises(RuntimeError, match="does not require grad"):
            out.sum().backward()
        # With a start that requires one, what is left is the way of x_T alone, and the weights have none.
        out, want = sampled(model, x_T, adjoint, method), plain(network, x_T, method)
        got = torch.autograd.grad(out.sum(), x_T, retain_graph=True)
        assert worst(got, torch.autograd.grad(want.sum(), x_T)) <= 1e-9
        with pytest.raises(RuntimeError, match="appears to not have been used"):
            torch.autograd.grad(out.sum(), inner.shared)


def test_a_last_step_that_cuts_what_came_before(x_T: Tensor) -> None:
    """Only what comes after the cut has a gradient: here a leaf that the last step alone reads."""
    early, late = weight(4), weight(4, seed=2)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(late + 0 * x.detach()) if t[0] < 0.3 else torch.tanh(x * early)

    def restart(n: int, t: float, x: Tensor) -> Tensor:
        return x.detach() if n == 3 else x

    for adjoint in CHECKPOINTS:
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE),
            grid=torch.tensor([1.0, 0.8, 0.6, 0.25, 0.1], dtype=DOUBLE), solver=sa.Euler(), adjoint=adjoint,
            after_step=restart,
        )  # fmt: skip
        out.sum().backward(retain_graph=True)
        assert late.grad is not None
        assert early.grad is None
        assert x_T.grad is None
        for leaf in (early, x_T):
            with pytest.raises(RuntimeError, match="appears to not have been used"):
                torch.autograd.grad(out.sum(), leaf, retain_graph=True)
        late.grad = None


def test_states_of_a_trajectory_require_gradients_where_plain_autograd_says_so() -> None:
    late, x = weight(4), torch.ones(2, 4, dtype=DOUBLE)

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(late * x) if t[0] < 0.5 else torch.tanh(x)

    seen: dict[str, list[bool]] = {}
    for adjoint in (sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2)):

        def look(n: int, t: float, x: Tensor, key: str = repr(adjoint)) -> Tensor:
            seen.setdefault(key, []).append(x.requires_grad)
            return x

        sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x, frame=sa.Frame(SCHEDULE),
            grid=sa.uniform_time(SCHEDULE, 6), solver=sa.Heun(), adjoint=adjoint, after_step=look,
        )  # fmt: skip
    want = seen.pop("Direct()")
    assert set(want) == {False, True}
    assert all(found == want for found in seen.values())


@pytest.mark.parametrize(("adjoint", "method"), [case for case in EXACT if case[1] is not COUPLED], ids=ids)
def test_networks_that_ask_whether_their_argument_requires_a_gradient(adjoint: sa.Adjoint, method: Any) -> None:
    """A frozen network with a fast path: the sample is that of ``Direct`` bit by bit, also with cond alone wanted."""
    x, token = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4), weight(4)

    def network(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        path = torch.tanh(x) if x.requires_grad else torch.tanh(1.1 * x)
        return path * z if t[0] < 0.5 else path

    out, want = sampled(network, x, adjoint, method, z=token), sampled(network, x, sa.Direct(), method, z=token)
    assert torch.equal(out, want)
    assert worst(torch.autograd.grad(out.sum(), token), torch.autograd.grad(want.sum(), token)) <= 1e-9


# Backward in inference mode.


@pytest.mark.parametrize(("adjoint", "method"), [*EXACT, (sa.ContinuousAdjoint(), "euler")], ids=ids)
def test_backward_in_inference_mode(adjoint: sa.Adjoint, method: Any, x_T: Tensor) -> None:
    network = Mlp(4)
    loss = sampled(network, x_T, adjoint, method).square().sum()
    want = torch.autograd.grad(loss, [x_T, network.shared], retain_graph=True)
    with torch.inference_mode():
        loss.backward()
    assert worst((x_T.grad, network.shared.grad), want) <= 1e-14


# Forward-mode tangents.


def pushed(
    network: Any, x_T: Tensor, v: Tensor, adjoint: sa.Adjoint, method: Any, z: tuple[Tensor, Tensor], **options: Any
) -> tuple[Tensor, Tensor]:
    with forward_ad.dual_level():
        x, token = forward_ad.make_dual(x_T, v), forward_ad.make_dual(*z)
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x, frame=sa.Frame(SCHEDULE, 1.0, "flow"),
            grid=sa.uniform_logsnr(SCHEDULE, 5), solver=method, cond={"z": token}, adjoint=adjoint,
            noise=sa.BrownianPath(seed=0), **options,
        )  # fmt: skip
        primal, tangent = forward_ad.unpack_dual(out)
        assert tangent is not None
        return primal.detach(), tangent.detach()


def scaled() -> tuple[Callable[..., Tensor], Tensor, Tensor, Tensor, Tensor]:
    """A model, its start and its conditioning, each with a direction."""
    network = Mlp(4)

    def model(x: Tensor, t: Tensor, z: Tensor) -> Tensor:
        return network(x, t) * z

    return model, weight(3, 4), weight(3, 4, seed=2).detach(), weight(4, seed=3), weight(4, seed=4).detach()


@functools.cache
def by_double_backward(solver: sa.Solver, trajectory: bool) -> tuple[Tensor, Tensor]:
    """The states, and ``J v`` as the derivative of ``J^T u`` in u; for all adjoints."""
    model, x_T, v, z, dz = scaled()
    plain = sa.sample(
        sa.Denoiser(model, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE, 1.0, "flow"),
        grid=sa.uniform_logsnr(SCHEDULE, 5), solver=solver, cond={"z": z}, adjoint=sa.Direct(),
        noise=sa.BrownianPath(seed=0), trajectory=trajectory,
    )  # fmt: skip
    u = torch.zeros_like(plain, requires_grad=True)
    pulled = torch.autograd.grad(plain, [x_T, z], u, create_graph=True)
    return plain.detach(), torch.autograd.grad((pulled[0] * v).sum() + (pulled[1] * dz).sum(), u)[0]


@pytest.mark.parametrize("trajectory", [False, True])
@pytest.mark.parametrize(
    ("adjoint", "solver"),
    [(sa.Direct(), sa.Heun()), *((a, sa.Heun()) for a in CHECKPOINTS), (sa.Reversible(), COUPLED),
     (sa.Checkpoint(), sa.DPMSolverPP2M()), (sa.Truncated(99), sa.Heun())],
    ids=ids,
)  # fmt: skip
def test_tangents_are_those_of_double_backward(adjoint: sa.Adjoint, solver: sa.Solver, trajectory: bool) -> None:
    model, x_T, v, z, dz = scaled()
    out, tangent = pushed(model, x_T, v, adjoint, solver, (z, dz), trajectory=trajectory)
    plain, want = by_double_backward(solver, trajectory)
    assert torch.equal(out, plain)
    assert worst((tangent,), (want,)) <= 1e-12


@pytest.mark.parametrize("adjoint", CHECKPOINTS[:2], ids=repr)
def test_nothing_is_pulled_back_through_pushed_states(adjoint: sa.Adjoint) -> None:
    network, x_T = Mlp(4), weight(3, 4)
    with forward_ad.dual_level():
        out = sampled(network, forward_ad.make_dual(x_T, torch.ones_like(x_T)), adjoint)
        primal, tangent = forward_ad.unpack_dual(out)
        assert tangent is not None
        for part in (primal, tangent):
            for leaf in (x_T, network.shared):
                with pytest.raises(RuntimeError, match=r"kept nothing for a backward pass.*adjoint=Direct\(\)"):
                    torch.autograd.grad(part.sum(), leaf, retain_graph=True)


def test_tangents_of_weights_of_noise_and_of_closures() -> None:
    """``torch.func.functional_call`` is how weights get tangents; a closure's tensor has one as well."""
    network, x_T = Mlp(4), weight(3, 4).detach()
    shared, direction = network.shared.detach(), weight(8, seed=5).detach()
    outer = nn.Module()
    outer.gain = shared

    def model(x: Tensor, t: Tensor) -> Tensor:
        return torch.tanh(network(x, t) * outer.gain[:4])

    with forward_ad.dual_level():
        outer.gain = forward_ad.make_dual(shared, direction)
        duals = [forward_ad.unpack_dual(sampled(model, x_T, a)) for a in (sa.Direct(), *CHECKPOINTS)]
        found = [dual.tangent.detach() for dual in duals if dual.tangent is not None]
    assert len(found) == 5
    assert worst(tuple(found[1:]), tuple(found[:1] * 4)) <= 1e-13

    def run(gain: Tensor) -> Tensor:
        outer.gain = gain
        return loop(model, x_T)

    (want,) = torch.autograd.functional.jvp(run, shared, direction)[1:]
    assert worst((found[0],), (want,)) <= 1e-12


@pytest.mark.parametrize("adjoint", BIASED, ids=repr)
def test_tangents_that_an_adjoint_has_not_are_refused(adjoint: sa.Adjoint) -> None:
    x_T = torch.ones(2, 4, dtype=DOUBLE)
    with (
        forward_ad.dual_level(),
        pytest.raises(RuntimeError, match=r"has no forward-mode derivative.*adjoint=Direct\(\), or Checkpoint\(\)"),
    ):
        sampled(Mlp(4), forward_ad.make_dual(x_T, x_T), adjoint)


def test_a_hidden_tangent_is_refused() -> None:
    x_T, hidden = torch.ones(2, 4, dtype=DOUBLE), {}

    class Deep:
        """Too deep for anybody to look."""

        def __getattr__(self, name: str) -> Any:
            return hidden[name]

    deep = Deep()
    with forward_ad.dual_level():
        hidden["z"] = forward_ad.make_dual(torch.ones(4, dtype=DOUBLE), torch.ones(4, dtype=DOUBLE))
        with pytest.raises(RuntimeError, match="a tensor with a forward-mode tangent that cannot be seen"):
            sampled(lambda x, t: torch.tanh(x * getattr(deep, "z")), x_T, sa.Checkpoint())  # noqa: B009


@pytest.mark.parametrize("adjoint", [sa.Direct(), *CHECKPOINTS], ids=repr)
def test_jvp_of_torch_func(adjoint: sa.Adjoint) -> None:
    network, x_T, v = Mlp(4), weight(3, 4).detach(), weight(3, 4, seed=2).detach()
    out, tangent = jvp(lambda x: sampled(network, x, adjoint), (x_T,), (v,))
    want = torch.autograd.functional.jvp(lambda x: loop(network, x), x_T, v)[1]
    assert worst((tangent.detach(),), (want,)) <= 1e-12
    assert torch.equal(out, sampled(network, x_T, sa.Direct()))


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("adjoint", [sa.Direct(), *CHECKPOINTS[:2], sa.Truncated(99)], ids=repr)
def test_jacfwd_of_torch_func(adjoint: sa.Adjoint, graph: bool) -> None:
    network, x_T = Mlp(4), weight(2, 4).detach()
    with torch.set_grad_enabled(graph):
        got = jacfwd(lambda x: sampled(network, x, adjoint))(x_T)
    want = torch.autograd.functional.jacobian(lambda x: loop(network, x), x_T)
    torch.testing.assert_close(got.detach(), want, rtol=1e-11, atol=1e-12)
    assert got.requires_grad == graph


def test_tangents_are_pushed_forward_in_the_memory_of_one_step() -> None:
    network, x_T = Mlp(64, width=256), torch.ones(4, 64, dtype=DOUBLE)

    def peak(adjoint: sa.Adjoint, steps: int) -> int:
        with forward_ad.dual_level(), PeakMemory() as memory:
            out = sa.sample(
                sa.Denoiser(network, SCHEDULE, "sample"), forward_ad.make_dual(x_T, x_T), frame=sa.Frame(SCHEDULE),
                grid=sa.uniform_logsnr(SCHEDULE, steps), solver=sa.Heun(), adjoint=adjoint,
            )  # fmt: skip
            assert forward_ad.unpack_dual(out).tangent is not None
        return memory.peak

    few, many, state = peak(sa.Checkpoint(), 5), peak(sa.Checkpoint(), 20), 4 * 64 * 8
    assert many < 40 * 2 * 4 * 256 * 8  # two calls of some ten operations on 256 features, values and tangents
    assert many - few < 15 * state / 4  # no states, of which there are 15 more
    assert peak(sa.Direct(), 24) > 3 * many  # an eighth of it and more in each step


# torch.func around the sampler.


def test_vmap_and_jacrev_over_direct() -> None:
    network, x_T = Mlp(4), weight(5, 4).detach()

    def one(x: Tensor) -> Tensor:
        return sampled(network, x[None], sa.Direct(), "heun")[0]

    together = vmap(one)(x_T)
    torch.testing.assert_close(together, loop(network, x_T, "heun"), rtol=1e-12, atol=1e-13)
    jacobians = vmap(jacrev(one))(x_T)
    for n in range(5):
        want = torch.autograd.functional.jacobian(lambda x: loop(network, x[None], "heun")[0], x_T[n])
        torch.testing.assert_close(jacobians[n], want, rtol=1e-11, atol=1e-12)


def test_transforms_see_the_path_of_a_seed() -> None:
    """All instances of a batch have one path, as calls in a loop have; derivatives do not draw anew."""
    network, x_T = Mlp(4), weight(3, 4).detach()
    arguments: dict[str, Any] = {"frame": sa.Frame(SCHEDULE, 1.0), "grid": sa.uniform_logsnr(SCHEDULE, 4)}
    arguments |= {"solver": sa.ShARK(), "adjoint": sa.Direct()}

    def one(x: Tensor) -> Tensor:
        path = sa.BrownianPath(seed=3)
        return sa.sample(sa.Denoiser(network, SCHEDULE, "sample"), x[None], noise=path, **arguments)[0]

    torch.testing.assert_close(vmap(one)(x_T), torch.stack([one(x) for x in x_T]), rtol=1e-12, atol=1e-13)
    with torch.no_grad():  # weights that require gradients would make PyTorch build a graph of the tangents too
        jacobians = jacfwd(one)(x_T[0]), vmap(jacfwd(one))(x_T)[0], jacrev(one)(x_T[0])
    want = torch.autograd.functional.jacobian(one, x_T[0])
    for got in jacobians:
        torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-12)


def test_vmap_over_weights_noise_and_conditioning() -> None:
    """An ensemble: weights, increments and conditioning of its own for each member."""
    network, x_T = Mlp(4), weight(3, 4).detach()
    grid, frame = sa.uniform_logsnr(SCHEDULE, 4), sa.Frame(SCHEDULE, 1.0)
    shared = torch.stack([network.shared.detach() * k for k in (1.0, 0.5)])
    increments = torch.stack([sa.BrownianPath(seed=k).increments(frame, grid, x_T) for k in range(2)])
    style = weight(2, 3, 8).detach()

    def member(shared: Tensor, increments: Tensor, style: Tensor) -> Tensor:
        def model(x: Tensor, t: Tensor, embedding: Any) -> Tensor:
            return functional_call(network, {"shared": shared}, (x, t, embedding))

        return sa.sample(
            sa.Denoiser(model, SCHEDULE, "sample"), x_T, frame=frame, grid=grid, solver=sa.Euler(),
            noise=sa.FixedNoise(increments), cond={"embedding": {"style": [style]}}, adjoint=sa.Direct(),
        )  # fmt: skip

    out = vmap(member)(shared, increments, style)
    for k in range(2):
        torch.testing.assert_close(out[k], member(shared[k], increments[k], style[k]), rtol=1e-12, atol=1e-13)


def test_vmap_still_finds_what_is_not_finite() -> None:
    x_T = torch.ones(2, 1, 4, dtype=DOUBLE)
    with pytest.raises(ValueError, match="the network's prediction is not finite"):
        vmap(lambda x: sampled(lambda x, t: x / 0 * 0, x, sa.Direct()))(x_T)
    x_T[1, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="x_T: it holds NaN"):
        vmap(lambda x: sampled(lambda x, t: x, x, sa.Direct()))(x_T)


@pytest.mark.parametrize("adjoint", [*CHECKPOINTS[:2], sa.Truncated(2), sa.Reversible(), *BIASED], ids=repr)
@pytest.mark.parametrize("transform", ["grad", "vmap", "jacrev", "functional weights"])
def test_transforms_around_adjoints_that_recompute_are_refused(transform: str, adjoint: sa.Adjoint) -> None:
    network, x_T = Mlp(4).requires_grad_(False), torch.linspace(-1, 1, 8, dtype=DOUBLE).reshape(2, 4)
    method = COUPLED

    def value(x: Tensor) -> Tensor:
        return sampled(network, x, adjoint, method).sum()

    def by_weights(shared: Tensor) -> Tensor:
        return sampled(lambda x, t: functional_call(network, {"shared": shared}, (x, t)), x_T, adjoint, method).sum()

    calls: dict[str, Callable[[], object]] = {
        "grad": lambda: grad(value)(x_T),
        "vmap": lambda: vmap(value)(x_T[:, None]),
        "jacrev": lambda: jacrev(value)(x_T),
        "functional weights": lambda: grad(by_weights)(network.shared),
    }
    with pytest.raises(RuntimeError, match=r"adjoint: inside of torch\.func.*adjoint=Direct\(\)|stops before it"):
        calls[transform]()
    # Without gradients there is nothing to recompute.
    if transform == "vmap":
        with torch.no_grad():
            vmap(value)(x_T[:, None])


# torch.func inside of the network.


def energy_score(network: nn.Module) -> Callable[..., Tensor]:
    def score(x: Tensor, t: Tensor) -> Tensor:
        def energy(x: Tensor) -> Tensor:
            return network(x, t).square().sum()

        return x - 0.1 * grad(energy)(x)

    return score


@pytest.mark.parametrize(("adjoint", "method"), EXACT, ids=ids)
@pytest.mark.parametrize("late", [False, True])
def test_an_energy_whose_score_torch_func_computes(adjoint: sa.Adjoint, method: Any, late: bool, x_T: Tensor) -> None:
    network = Mlp(4)
    score = energy_score(network)

    def model(x: Tensor, t: Tensor) -> Tensor:
        return network(x, t) if late and t[0] > 0.5 else score(x, t)

    leaves = [x_T, network.shared, network.inward.weight]
    out, want = sampled(model, x_T, adjoint, method), plain(model, x_T, method)
    torch.testing.assert_close(out, want, rtol=1e-13, atol=1e-14)
    assert worst(torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(want.sum(), leaves)) <= 1e-9


@pytest.mark.parametrize("adjoint", CHECKPOINTS, ids=repr)
def test_dropout_before_a_score_draws_once(adjoint: sa.Adjoint, x_T: Tensor) -> None:
    """The first evaluation of a step fails, and the second one must draw the same numbers."""
    score = energy_score(Mlp(4))

    def model(x: Tensor, t: Tensor) -> Tensor:
        return score(nn.functional.dropout(x, 0.5), t)

    results = []
    for a in (adjoint, sa.Direct()):
        torch.manual_seed(0)
        results.append((sampled(model, x_T, a), torch.rand(2)))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# Batched cotangents.


@pytest.mark.parametrize("kind", [sa.FixedNoise, "shifted", sa.NormalNoise])
def test_batched_cotangents_reach_the_noise(kind: Any, x_T: Tensor) -> None:
    """The backward pass draws the path again: with twenty steps, little of it is still there."""
    network, grid, frame = Mlp(4), sa.uniform_logsnr(SCHEDULE, 20), sa.Frame(SCHEDULE, 1.0)
    path = sa.BrownianPath(seed=0)
    dB = (torch.zeros_like if kind == "shifted" else torch.Tensor.clone)(path.increments(frame, grid, x_T))
    dB.requires_grad_()
    noise = sa.ShiftedNoise(path, dB) if kind == "shifted" else kind(dB)
    seeds = torch.randn(2, 3, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0))
    found = []
    for adjoint in (sa.Checkpoint(), sa.Direct()):
        out = sa.sample(
            sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=frame, grid=grid, solver=sa.Heun(), noise=noise,
            adjoint=adjoint,
        )  # fmt: skip
        leaves = [dB, x_T, network.shared]
        found.append(torch.autograd.grad(out, leaves, seeds, is_grads_batched=True))
        assert found[-1][0].shape == (2, 20, 3, 4)
    assert worst(*found) <= 1e-12
