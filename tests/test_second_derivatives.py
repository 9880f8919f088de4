"""Second derivatives through stored states, against plain autograd, closed forms, and refusals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import jacfwd, jvp, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

import sdeadjoint as sa
from sdeadjoint.memory import PeakMemory
from sdeadjoint.noise import BoundNoise, Increment, Noise
from sdeadjoint.testing import ContractError, check_adjoint

from .loops import sampled
from .networks import Mlp
from .solves import DOUBLE, SCHEDULE, Solve, worst
from .wrong_adjoints import Scaled, WrongSecond

# PyTorch's forward mode loads scripts of its own.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning")
CHECKPOINTS = [sa.Checkpoint(), sa.Checkpoint(1), sa.Checkpoint(3), sa.Checkpoint(memory="1MiB")]
SOLVERS = [
    sa.Euler(), sa.Heun(), sa.Midpoint(), sa.RK4(), sa.DPMSolverPP2M(), sa.AdamsBashforth(4), sa.DPMSolver3(),
    sa.UniPC(3), sa.SRA1(), sa.ShARK(), sa.Coupled(sa.Heun()), sa.ReversibleHeun(), sa.Dopri5(),
    sa.BogackiShampine(),
]  # fmt: skip
ALLOWED = 1e-10
"""Two sums of the same products in another order: round-off, times what some steps make of it."""


@pytest.fixture
def x_T() -> Tensor:
    return torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4).requires_grad_()


def weight(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def product(out: Tensor, leaves: list[Tensor]) -> tuple[Tensor | None, ...]:
    """The derivative of a gradient's product with a direction, and of its norm, in all leaves."""
    ramp = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).reshape(out.shape)
    grads = torch.autograd.grad((ramp * out.sin()).sum(), leaves, create_graph=True, allow_unused=True)
    parts = [
        (grad * torch.linspace(1, 2, grad.numel(), dtype=grad.dtype).reshape(grad.shape)).sum() + grad.square().sum()
        for grad in grads
        if grad is not None
    ]
    return torch.autograd.grad(torch.stack(parts).sum(), leaves, allow_unused=True)


def solved(solve: Solve, adjoint: sa.Adjoint) -> tuple[Tensor | None, ...]:
    return product(sa.sample(adjoint=adjoint, **solve.arguments()), solve.leaves)


def agrees(call: Callable[[sa.Adjoint], Tensor], leaves: list[Tensor]) -> None:
    want = product(call(sa.Direct()), leaves)
    for adjoint in CHECKPOINTS[:3]:
        assert worst(product(call(adjoint), leaves), want) <= ALLOWED


# Against plain autograd.


@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("solver", SOLVERS, ids=repr)
def test_products_are_those_of_direct(solver: sa.Solver, eta: float) -> None:
    """Each adjoint meets both kinds of noise and of answers, on ODEs and on SDEs, with seven solvers.

    ``Recursion.step`` is all that the adjoints know of a solver, and ``Carry`` all that they know of its memory.
    """
    which = SOLVERS.index(solver)
    trajectory, noise = ((False, "fixed"), (True, "shifted"))[which // 4 % 2]
    solve = Solve(solver, 4, eta, noise=noise, options={"trajectory": trajectory})
    adjoint = CHECKPOINTS[(which + 2 * (eta > 0)) % 4]
    assert worst(solved(solve, adjoint), solved(solve, sa.Direct())) <= ALLOWED


@pytest.mark.parametrize("kind", ["data", "noise", "flow"])
def test_kinds_and_a_last_step_to_zero(kind: str) -> None:
    grid = [*sa.uniform_logsnr(SCHEDULE, 4).tolist(), *([0.0] if kind == "data" else [])]
    solve = Solve(sa.Heun(), eta=0.3, kind=kind, noise="replayed", options={"grid": torch.tensor(grid, dtype=DOUBLE)})
    want = solved(solve, sa.Direct())
    for adjoint in CHECKPOINTS:
        assert worst(solved(solve, adjoint), want) <= ALLOWED


def test_the_functions_of_pytorch() -> None:
    network, x_T, v = Mlp(2), weight(2, 2), torch.linspace(0, 1, 4, dtype=DOUBLE).reshape(2, 2)
    functional = torch.autograd.functional

    def loss(adjoint: sa.Adjoint) -> Callable[[Tensor], Tensor]:
        return lambda x: sampled(network, x, adjoint, "heun").sin().sum()

    for call in (
        lambda f: functional.hvp(f, x_T, v)[1],
        lambda f: functional.vhp(f, x_T, v)[1],
        lambda f: functional.hessian(f, x_T),
        lambda f: functional.hessian(f, x_T, vectorize=True),
        lambda f: functional.jvp(f, x_T, v)[1],
    ):
        want = call(loss(sa.Direct()))
        assert worst((call(loss(sa.Checkpoint())), call(loss(sa.Checkpoint(2)))), (want, want)) <= ALLOWED
    assert torch.autograd.gradgradcheck(lambda x: sampled(network, x, sa.Checkpoint(), "heun"), (x_T,))


def test_products_of_a_loss_on_all_states(x_T: Tensor) -> None:
    """PyTorch's ``hvp`` differentiates a product in its directions: each state has a cotangent of its own there."""
    network, v = Mlp(4), torch.linspace(0, 1, 12, dtype=DOUBLE).reshape(3, 4)
    weights = torch.linspace(0.5, 2, 5, dtype=DOUBLE)

    def loss(adjoint: sa.Adjoint) -> Callable[[Tensor], Tensor]:
        def call(x: Tensor) -> Tensor:
            path = sa.sample(
                sa.Denoiser(network, SCHEDULE, "sample"), x, frame=sa.Frame(SCHEDULE),
                grid=sa.uniform_logsnr(SCHEDULE, 4), solver=sa.Heun(), adjoint=adjoint, trajectory=True,
            )  # fmt: skip
            return (weights * path.sin().flatten(1).sum(1)).sum()

        return call

    for call in (torch.autograd.functional.hvp, torch.autograd.functional.vhp, torch.autograd.functional.jvp):
        want = call(loss(sa.Direct()), x_T, v)[1]
        for adjoint in CHECKPOINTS:
            assert worst((call(loss(adjoint), x_T, v)[1],), (want,)) <= ALLOWED


def test_a_gradient_penalty_fills_grad(x_T: Tensor) -> None:
    found = []
    for adjoint in (sa.Direct(), sa.Checkpoint()):
        network = Mlp(4)
        (grad,) = torch.autograd.grad(sampled(network, x_T, adjoint).sin().sum(), x_T, create_graph=True)
        grad.square().sum().backward(inputs=[network.shared, network.inward.weight])
        found.append([network.shared.grad, network.inward.weight.grad])
    assert worst(tuple(found[1]), tuple(found[0])) <= ALLOWED


def test_only_what_is_asked_for(x_T: Tensor) -> None:
    """A product in one leaf, along a direction in another."""
    found = []
    for adjoint in (sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2)):
        network = Mlp(4)
        pulled = torch.autograd.grad(sampled(network, x_T, adjoint).sin().sum(), network.shared, create_graph=True)
        found.append(torch.autograd.grad(pulled[0].sum(), [x_T, network.inward.bias]))
    assert worst(found[1], found[0]) <= ALLOWED
    assert worst(found[2], found[0]) <= ALLOWED


def test_weights_alone() -> None:
    network, x = Mlp(4), torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4)
    agrees(lambda adjoint: sampled(network, x, adjoint, "2m"), [network.shared, network.inward.weight])


# Everything that a step may read.


def test_guidance_schedules_and_normals(x_T: Tensor) -> None:
    frame, grid = sa.Frame(SCHEDULE, 1.0, "flow"), sa.uniform_logsnr(SCHEDULE, 4)
    normals = sa.BrownianPath(seed=0).normals(frame, grid, x_T).requires_grad_()
    style, nothing, scale = weight(4, 3, 8), weight(4, 3, 8, seed=2), weight(4, seed=3)
    guidance = sa.Guidance(sa.Scheduled(scale), {"embedding": {"style": [sa.Scheduled(nothing)]}}, batched=False)
    network = Mlp(4)

    def call(adjoint: sa.Adjoint) -> Tensor:
        return sa.sample(
            sa.Denoiser(network, SCHEDULE, guidance=guidance), x_T, frame=frame, grid=grid, solver=sa.Heun(),
            noise=sa.NormalNoise(normals), cond={"embedding": {"style": [sa.Scheduled(style)]}}, adjoint=adjoint,
        )  # fmt: skip

    agrees(call, [x_T, style, nothing, scale, normals, network.shared])


def test_leaves_that_nobody_declared_and_those_declared_twice(x_T: Tensor) -> None:
    hidden, gain = weight(4, seed=3), weight(4, seed=4)

    def call(adjoint: sa.Adjoint) -> Tensor:
        outer = gain.square()  # computed once, read in every step

        def network(x: Tensor, t: Tensor, gain: Tensor) -> Tensor:
            return torch.tanh(x * hidden + gain) * network.gain * outer

        network.gain = gain
        return sampled(network, x_T, adjoint, gain=gain)

    agrees(call, [x_T, hidden, gain])


def test_dropout_counters_and_a_score(x_T: Tensor) -> None:
    network = Mlp(4)

    def model(x: Tensor, t: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x if x.requires_grad else x.detach().requires_grad_()
            energy = nn.functional.dropout(network(x, t), 0.3).square().sum()
            return x - 0.1 * torch.autograd.grad(energy, x, create_graph=True)[0]

    def call(adjoint: sa.Adjoint) -> Tensor:
        torch.manual_seed(0)
        return sampled(model, x_T, adjoint)

    agrees(call, [x_T, network.shared])


def test_nests_noise_in_parts_and_after_step() -> None:
    y0 = {"q": weight(2, 3), "p": weight(2, seed=2)}
    dB = weight(4, 2, seed=5)
    matrix = weight(3, seed=6)

    def drift(s: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"q": torch.sin(y["q"] * matrix) + y["p"][:, None], "p": -(y["q"] ** 2).sum(1) * torch.cos(s)}

    def call(adjoint: sa.Adjoint) -> Tensor:
        end = sa.solve(
            drift, y0, clock=torch.linspace(0, 1, 5), solver=sa.Heun(), noise={"q": None, "p": sa.FixedNoise(dB)},
            after_step=lambda n, s, y: {"q": torch.tanh(y["q"]), "p": y["p"]}, adjoint=adjoint,
        )  # fmt: skip
        return torch.cat([end["q"].flatten(), end["p"]])

    agrees(call, [y0["q"], y0["p"], dB, matrix])


@dataclass(frozen=True, eq=False)
class Cubed(Noise):
    """Noise that is not linear in its tensor, and says nothing of its derivatives."""

    root: Tensor

    @property
    def tensors(self) -> dict[str, Tensor]:
        return {"root": self.root}

    def on(self, tensors: Any) -> Cubed:
        return replace(self, root=tensors["root"])

    def bind(self, clock: Tensor, like: Tensor, levy: bool) -> BoundNoise:
        return _BoundCubed(self.root)


@dataclass(frozen=True, eq=False)
class _BoundCubed(BoundNoise):
    root: Tensor

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.root,)

    def increment(self, n: int) -> Increment:
        return Increment(self.root[n] ** 3, None)


def test_noise_that_is_not_linear(x_T: Tensor) -> None:
    solve = Solve(sa.Heun(), 3, 1.0)
    root = weight(3, 3, 4)
    solve.path, solve.leaves = Cubed(root), [*solve.leaves, root]
    want = solved(solve, sa.Direct())
    assert worst(solved(solve, sa.Checkpoint()), want) <= ALLOWED
    assert worst(solved(solve, sa.Checkpoint(2)), want) <= ALLOWED


def test_float32(x_T: Tensor) -> None:
    """Round-off of float32, two digits for the sums of a hundred products."""
    network, x = Mlp(4).float(), x_T.detach().float().requires_grad_()
    leaves = [x, network.shared]
    want = product(sampled(network, x, sa.Direct(), "heun"), leaves)
    assert worst(product(sampled(network, x, sa.Checkpoint(2), "heun"), leaves), want) <= 100 * 2.0**-23


# Closed forms.


def test_the_second_derivative_of_quantile_transport() -> None:
    """On scalar data the ODE's map is ``F_0^-1(F_T(x))``: RK4 comes to its second derivative with order 4."""
    mixture = sa.problems.Mixture([0.4, 0.6], [-1.0, 0.8], 0.2)
    x = torch.linspace(-1.5, 1.5, 5, dtype=DOUBLE).reshape(-1, 1).requires_grad_()
    t_max, t_min = 0.5, 0.1
    (slope,) = torch.autograd.grad(mixture.ode_map(x, SCHEDULE, t_max, t_min).sum(), x, create_graph=True)
    (want,) = torch.autograd.grad(slope.sum(), x)
    errors = []
    for steps in (6, 12, 24):
        out = sa.sample(
            mixture.denoiser(SCHEDULE), x, frame=sa.Frame(SCHEDULE),
            grid=sa.uniform_logsnr(SCHEDULE, steps, t_max=t_max, t_min=t_min), solver=sa.RK4(),
        )  # fmt: skip
        (slope,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        errors.append(float((torch.autograd.grad(slope.sum(), x)[0] - want).norm() / want.norm()))
    assert errors[0] / errors[1] > 10
    assert errors[1] / errors[2] > 10


# Forward mode.


@pytest.mark.parametrize("adjoint", [sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2)], ids=repr)
def test_jvp_jacfwd_and_vmap_of_them(adjoint: sa.Adjoint) -> None:
    network, x, v = Mlp(4), weight(2, 4).detach(), weight(2, 4, seed=2).detach()

    def call(x: Tensor) -> Tensor:
        return sa.sample(
            sa.Denoiser(network, SCHEDULE), x, frame=sa.Frame(SCHEDULE, 1.0, "flow"),
            grid=sa.uniform_logsnr(SCHEDULE, 3), solver=sa.Heun(), noise=sa.BrownianPath(seed=0), adjoint=adjoint,
        )  # fmt: skip

    want = torch.autograd.functional.jacobian(call, x) if adjoint == sa.Direct() else jacobian(call, x)
    moved = torch.einsum("abcd,cd->ab", want, v)
    found = [jacfwd(call, randomness="same")(x).detach(), jvp(call, (x,), (v,))[1].detach()]
    vs = torch.stack([v, -2 * v])
    several = vmap(lambda v: jvp(call, (x,), (v,))[1], randomness="same")(vs).detach()
    assert worst((*found, several), (want, moved, torch.stack([moved, -2 * moved]))) <= ALLOWED


def jacobian(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    out = call(x)
    rows = [torch.autograd.grad(out.flatten()[k], x, retain_graph=True)[0] for k in range(out.numel())]
    return torch.stack(rows).reshape(*out.shape, *x.shape)


# Products of the loss's curvature.


def test_gauss_newton_products_and_the_largest_curvature() -> None:
    network, x_T, v = Mlp(3), weight(2, 3), torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(2, 3)

    def loss(x: Tensor) -> Tensor:
        return torch.cosh(x).sum()

    J = jacobian(lambda x: sampled(network, x, sa.Direct(), "heun"), x_T.detach()).reshape(6, 6)
    for adjoint in (sa.Direct(), sa.Checkpoint(), sa.Checkpoint(2)):
        x_0 = sampled(network, x_T, adjoint, "heun")
        G = J.T @ torch.diag(torch.cosh(x_0.detach().flatten())) @ J
        got = sa.gauss_newton_product(x_0, x_T, v, loss=loss)
        both = sa.gauss_newton_product(x_0, [x_T, network.unused], [v, torch.ones(3, dtype=DOUBLE)], loss=loss)
        want = (G @ v.flatten()).reshape(2, 3)
        assert worst((got, both[0]), (want, want)) <= ALLOWED
        assert not both[1].any()
        assert torch.autograd.grad(x_0.sum(), x_T, retain_graph=True)[0].shape == (2, 3)  # its graph is still there
    top = sa.largest_curvature(lambda v: sa.gauss_newton_product(x_0, x_T, v, loss=loss), v, products=24)
    # The bound is to some eigenvalue, and no Rayleigh quotient exceeds the largest.
    eigenvalues = torch.linalg.eigvalsh(G)
    assert float((eigenvalues - top.value).abs().min()) <= top.residual + 1e-12 * float(eigenvalues[-1])
    assert top.value <= float(eigenvalues[-1]) * (1 + 1e-12)


def test_the_largest_curvature_of_a_matrix() -> None:
    A = torch.diag(torch.tensor([1.0, -3.0, 2.0], dtype=DOUBLE))
    top = sa.largest_curvature(lambda v: A @ v, torch.ones(3, dtype=DOUBLE), tolerance=1e-9, products=200)
    assert abs(top.value + 3) <= top.residual + 1e-15
    assert top.residual <= 3e-9
    assert top.products < 200  # also where the value is negative
    small = sa.largest_curvature(lambda v: 1e-3 * (A @ v), torch.ones(3, dtype=DOUBLE), tolerance=1e-9, products=200)
    assert abs(small.value + 3e-3) <= small.residual + 1e-18 <= 4e-12
    assert float(small.direction.norm()) == pytest.approx(1, rel=1e-14)
    assert sa.largest_curvature(lambda v: 0 * v, torch.ones(2))[::2] == (0.0, 0.0)
    several = sa.largest_curvature(lambda v: (A @ v[0], v[1]), (torch.ones(3, dtype=DOUBLE), torch.ones(1)), products=9)
    assert several.products == 9
    assert [part.shape for part in several.direction] == [(3,), (1,)]


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda x: sa.gauss_newton_product(x.detach(), x, x, loss=torch.sum), "x: has no graph"),
        (lambda x: sa.gauss_newton_product(2 * x, x, x[0], loss=torch.sum), r"direction: got the shapes \[\(4,\)\]"),
        (lambda x: sa.gauss_newton_product(2 * x, x, x, loss=torch.sin), r"loss: returned \(3, 4\)"),
        (lambda x: sa.gauss_newton_product(2 * x, weight(2), weight(2), loss=torch.sum), "inputs: x does not depend"),
        (lambda x: sa.gauss_newton_product(2 * x, x.detach(), x, loss=torch.sum), "inputs: one of them"),
        (lambda x: sa.largest_curvature(lambda v: v, 0 * x.detach()), "start: has length 0"),
        (lambda x: sa.largest_curvature(lambda v: v[0], x.detach()), "product: got the shapes"),
        (lambda x: sa.largest_curvature(lambda v: v, x.detach(), products=0), "products: got 0"),
        (lambda x: sa.largest_curvature(lambda v: v, x.detach(), tolerance=0), "tolerance: got 0"),
    ],
)
def test_arguments_that_do_not_fit(call: Callable[[Tensor], object], sentence: str, x_T: Tensor) -> None:
    with pytest.raises(ValueError, match=sentence):
        call(x_T)


def test_a_matrix_is_no_product() -> None:
    with pytest.raises(TypeError, match="product: got Tensor; pass a function"):
        sa.largest_curvature(torch.eye(2), torch.ones(2))


# Refusals.


@pytest.mark.parametrize(
    ("adjoint", "solver"),
    [(sa.Reversible(), sa.Coupled(sa.Euler())), (sa.ContinuousAdjoint(), "euler"), (sa.Truncated(2), "euler")],
    ids=repr,
)
def test_adjoints_whose_gradient_has_no_derivative(adjoint: sa.Adjoint, solver: Any, x_T: Tensor) -> None:
    network = Mlp(4)
    x = x_T.detach() if isinstance(adjoint, sa.Truncated) else x_T
    out = sampled(network, x, adjoint, solver).sum()
    with pytest.raises(RuntimeError, match=r"create_graph=True; pass adjoint=Checkpoint\(\), or adjoint=Direct\(\)"):
        torch.autograd.grad(out, network.shared, create_graph=True)


def test_what_is_refused(x_T: Tensor) -> None:
    network = Mlp(4)
    out = sampled(network, x_T, sa.Checkpoint())
    (grad,) = torch.autograd.grad(out.sin().sum(), x_T, create_graph=True)
    (bend,) = torch.autograd.grad(grad.square().sum(), x_T, create_graph=True)
    with pytest.raises(RuntimeError, match=r"adjoint=Direct\(\) for third derivatives"):
        torch.autograd.grad(bend.sum(), x_T)
    out = sampled(network, x_T, sa.Hooked(sa.Checkpoint(), sa.clip_norm(1.0)))
    with pytest.raises(RuntimeError, match="Hooked: what a hook makes of an adjoint is not a gradient"):
        torch.autograd.grad(out.sum(), x_T, create_graph=True)
    out, seeds = sampled(network, x_T, sa.Checkpoint()), torch.ones(2, 3, 4, dtype=DOUBLE)
    with pytest.raises(RuntimeError, match="no second derivatives of batches of gradients"):
        torch.autograd.grad(out, x_T, seeds, create_graph=True, is_grads_batched=True)


def test_weights_that_change_before_the_second_pass(x_T: Tensor) -> None:
    network = Mlp(4)
    (grad,) = torch.autograd.grad(sampled(network, x_T, sa.Checkpoint()).sin().sum(), x_T, create_graph=True)
    with torch.no_grad():
        network.shared.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation") as caught:
        torch.autograd.grad(grad.sum(), x_T)
    assert "by an optimizer's step for instance" in caught.value.__notes__[-1]


def test_an_attention_kernel_without_second_derivative(x_T: Tensor) -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        q = x.reshape(1, 1, 3, 4)
        return nn.functional.scaled_dot_product_attention(q, q.sin(), q.cos()).reshape(3, 4)

    def penalty() -> Tensor:
        (grad,) = torch.autograd.grad(sampled(network, x_T, sa.Checkpoint()).sin().sum(), x_T, create_graph=True)
        return torch.autograd.grad(grad.square().sum(), x_T)[0]

    with sdpa_kernel(SDPBackend.FLASH_ATTENTION), pytest.raises(RuntimeError) as caught:
        penalty()
    assert "SDPBackend.MATH" in caught.value.__notes__[-1]
    with sdpa_kernel(SDPBackend.MATH):
        found = penalty()
        (grad,) = torch.autograd.grad(sampled(network, x_T, sa.Direct()).sin().sum(), x_T, create_graph=True)
        assert worst((found,), torch.autograd.grad(grad.square().sum(), x_T)) <= ALLOWED


# The items of ``check_adjoint``.

ITEMS = ("second derivatives", "taylor", "dot product")


@pytest.mark.parametrize("item", ITEMS)
def test_right_adjoints_pass(item: str) -> None:
    check_adjoint(sa.Checkpoint(snapshots=2), only=item)


@pytest.mark.parametrize("item", ITEMS)
def test_a_wrong_second_derivative_is_found(item: str) -> None:
    with pytest.raises(ContractError, match=f'item "{item}" is broken'):
        check_adjoint(WrongSecond(), only=item)


def test_a_wrong_gradient_fails_the_taylor_test() -> None:
    with pytest.raises(ContractError, match="with the gradient falls with the orders"):
        check_adjoint(Scaled(1.1), only="taylor")


# Cost.


@cache
def fewest(steps: int, snapshots: int) -> int:
    """Evaluations without a graph to reverse steps from as many stored states, the first included, by trial."""
    if steps <= 1 or snapshots == 1:
        return steps * (steps - 1) // 2
    return min(m + fewest(steps - m, snapshots - 1) + fewest(m, snapshots) for m in range(1, steps))


# Four snapshots take one repetition of a step more for 23 than for 12: C(4 + 2, 4) = 15 lies between. From one state
# there is nothing but to start anew, for any number of steps.
@pytest.mark.parametrize(
    ("snapshots", "pairs", "steps"), [(1, 1, 9), (2, 3, 12), (3, 4, 12), (4, 6, 12), (2, 3, 17), (4, 6, 23)]
)
def test_calls_with_snapshots(snapshots: int, pairs: int, steps: int) -> None:
    """The gradient is taken twice, once through the loss; tangents are advanced from three halves as many states."""
    calls = called(sa.Checkpoint(snapshots), steps, second=False)
    assert calls == steps + fewest(steps, snapshots) + 1
    calls = called(sa.Checkpoint(snapshots), steps, second=True)
    assert calls == 3 * steps + 2 * fewest(steps, snapshots) + fewest(steps, pairs) + 2


def test_only_the_asked_gradients_take_memory() -> None:
    """A product in x alone, along all directions, has no sum of the weights' gradients."""
    network = nn.Sequential(nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 256)).double()
    weights = list(network.parameters())
    x_T, peaks = torch.ones(1, 256, dtype=DOUBLE, requires_grad=True), list[int]()
    for asked in ([x_T], [x_T, *weights]):
        with PeakMemory() as memory:
            out = sampled(lambda x, t: network(x), x_T, sa.Checkpoint())
            grads = torch.autograd.grad(out.sum(), [x_T, *weights], create_graph=True)
            memory.peak = given = memory.live
            torch.autograd.grad([grad.sum() for grad in grads], asked)
        peaks.append(memory.peak - given)
    assert peaks[0] + sum(weight.nbytes for weight in weights) <= peaks[1]


def called(adjoint: sa.Adjoint, steps: int, *, second: bool) -> int:
    """Network calls of a gradient in x_T, or of a Hessian-vector product."""
    calls = [0]
    inner = Mlp(64, width=64).requires_grad_(False)

    def network(x: Tensor, t: Tensor) -> Tensor:
        calls[0] += 1
        return inner(x, t)

    x_T = torch.ones(4, 64, dtype=DOUBLE, requires_grad=True)
    out = sa.sample(
        sa.Denoiser(network, SCHEDULE, "sample"), x_T, frame=sa.Frame(SCHEDULE),
        grid=sa.uniform_logsnr(SCHEDULE, steps), solver=sa.Euler(), adjoint=adjoint,
    )  # fmt: skip
    (grad,) = torch.autograd.grad(out.sin().sum(), x_T, create_graph=second)
    if second:
        torch.autograd.grad(grad.sum(), x_T)
    return calls[0]


def spent(adjoint: sa.Adjoint, steps: int, *, second: bool) -> tuple[int, int]:
    """The same calls, and the peak bytes."""
    with PeakMemory() as memory:
        calls = called(adjoint, steps, second=second)
    return calls, memory.peak


def test_calls_and_bytes() -> None:
    """Bytes per step: the state, its tangent, and no more than one adjoint; none with snapshots."""
    state = 4 * 64 * 8
    few, many = (spent(sa.Checkpoint(), steps, second=True) for steps in (12, 24))
    first = [spent(sa.Checkpoint(), steps, second=False) for steps in (12, 24)]
    assert many[0] == 5 * 24  # to sample, for the gradient, for tangents, for the second sweep, and through the loss
    grown = (many[1] - few[1]) / 12
    assert grown <= (first[1][1] - first[0][1]) / 12 + 2 * state
    few, many = (spent(sa.Checkpoint(4), steps, second=True) for steps in (12, 24))
    assert many[1] - few[1] <= 12 * state / 4
