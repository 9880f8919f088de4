"""Homotopies: Davidenko's equations against closed forms, HomoODE's trajectory, the shared start."""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import sdeadjoint as sa
from sdeadjoint import equilibria as eq

from .test_equilibria import DOUBLE, Layer, draw, gradients, unrolled, worst

PATHS = [eq.FixedPointHomotopy, eq.NewtonHomotopy]
ADJOINTS = [sa.Direct(), sa.Checkpoint(), sa.Checkpoint(snapshots=2)]
ONE = torch.eye(5, dtype=DOUBLE)


class Linear:
    """``r(z) = z - A z - x``, whose root is (1 - A)^-1 x."""

    def __init__(self) -> None:
        A = draw(3, 5, 5, seed=1)
        self.A = (0.7 * A / torch.linalg.matrix_norm(A, 2)[:, None, None]).requires_grad_()
        self.x, self.z0 = draw(3, 5, seed=2).requires_grad_(), draw(3, 5, seed=3).requires_grad_()

    def residual(self, z: Tensor, x: Tensor) -> Tensor:
        return z - (self.A @ z[:, :, None])[:, :, 0] - x

    @property
    def cond(self) -> dict[str, Tensor]:
        return {"z0": self.z0, "x": self.x}

    @property
    def leaves(self) -> list[Tensor]:
        return [self.x, self.z0, self.A]

    def at(self, path: type[eq.Path], s: Tensor) -> Tensor:
        """z(s) in closed form: ``(1 - s A) z = s x + (1 - s) z0``, or straight from z0 to the root."""
        if path is eq.FixedPointHomotopy:
            return torch.linalg.solve(ONE - s * self.A, s * self.x + (1 - s) * self.z0)
        return (1 - s) * self.z0 + s * torch.linalg.solve(ONE - self.A, self.x)


def runge_kutta(drift: Callable[[Tensor, Tensor], Tensor], y: Tensor, steps: int) -> Tensor:
    """The classical method on [0, 1], written out."""
    h = 1 / steps
    for n in range(steps):
        s = torch.tensor(n * h, dtype=DOUBLE)
        k1 = drift(s, y)
        k2 = drift(s + h / 2, y + h / 2 * k1)
        k3 = drift(s + h / 2, y + h / 2 * k2)
        k4 = drift(s + h, y + h * k3)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return y


# ------------------------------------------------------------------------------ Davidenko's equation


@pytest.mark.parametrize("method", [eq.Newton(), eq.Newton(krylov=3), eq.Anderson()], ids=repr)
@pytest.mark.parametrize("path", PATHS)
def test_the_drift_is_the_derivative_of_the_path(path: type[eq.Path], method: eq.Method) -> None:
    linear = Linear()
    drift = path(linear.residual, tol=1e-13, method=method)
    for value in (0.0, 0.3, 1.0):
        s = torch.tensor(value, dtype=DOUBLE)
        z = linear.at(path, s)
        got = drift(s, z, **linear.cond)
        want = torch.autograd.functional.jvp(lambda s: linear.at(path, s), s, torch.ones_like(s))[1]
        # tol, times |(dH/dz)^-1| <= 1 / (1 - 0.7) = 3.3.
        assert worst((got.detach(),), (want.detach(),)) <= 1e-12


@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_the_drift(path: type[eq.Path]) -> None:
    """Off the path too, against the linear system solved by a factorisation."""
    linear, z = Linear(), draw(3, 5, seed=4).requires_grad_()
    s = torch.tensor(0.3, dtype=DOUBLE)
    r0, r = linear.residual(linear.z0, linear.x), linear.residual(z, linear.x)
    if path is eq.FixedPointHomotopy:
        want = -torch.linalg.solve(s * (ONE - linear.A) + (1 - s) * ONE, r - (z - linear.z0))
    else:
        want = -torch.linalg.solve(ONE - linear.A, r0)
    got = path(linear.residual, tol=1e-13)(s, z, **linear.cond)
    wanted = linear.leaves if path is eq.NewtonHomotopy else [*linear.leaves, z]
    assert worst(gradients(got, wanted), gradients(want, wanted)) <= 1e-11


@pytest.mark.parametrize("path", PATHS)
def test_gradients_of_a_nonlinear_drift(path: type[eq.Path]) -> None:
    """Second derivatives of the residual enter: against a Jacobian formed row by row."""
    layer, x = Layer(), draw(1, 3, seed=2).requires_grad_()
    z0, z = draw(1, 6, seed=3).requires_grad_(), draw(1, 6, seed=4).requires_grad_()
    s = torch.tensor(0.4, dtype=DOUBLE)

    def H(z: Tensor, s: Tensor) -> Tensor:
        r, r0 = (w - layer(w, x) for w in (z, z0))
        return s * r + (1 - s) * (z - z0) if path is eq.FixedPointHomotopy else r - (1 - s) * r0

    slope = torch.autograd.functional.jacobian(lambda z: H(z, s), z, create_graph=True)[0, :, 0]
    rate = torch.autograd.functional.jacobian(lambda s: H(z, s), s, create_graph=True)[0]
    want = -torch.linalg.solve(slope, rate)[None]
    got = path(lambda z, x: z - layer(z, x), tol=1e-13)(s, z, z0=z0, x=x)
    wanted = [x, z0, z, *layer.parameters()]
    assert worst((got.detach(),), (want.detach(),)) <= 1e-12
    assert worst(gradients(got, wanted), gradients(want, wanted)) <= 1e-11


@pytest.mark.parametrize("path", PATHS)
def test_paths_end_at_the_root_with_the_order_of_the_solver(path: type[eq.Path]) -> None:
    layer, x = Layer(), draw(4, 3)
    z0 = draw(4, 6, seed=3) / 2
    drift = path(lambda z, x: z - layer(z, x), tol=1e-12)
    with torch.no_grad():
        root = unrolled(lambda z: layer(z, x), z0)
        own, finer = (runge_kutta(lambda s, z: drift(s, z, z0=z0, x=x), z0, n) for n in (5, 10))
        errors = [float((end - root).norm()) for end in (own, finer)]
        assert errors[1] <= 1e-6
        assert 12 <= errors[0] / errors[1] <= 20  # 2^4 = 16
        by_solve = sa.solve(
            drift, z0, clock=torch.linspace(0, 1, 6, dtype=DOUBLE), solver=sa.RK4(), cond={"z0": z0, "x": x}
        )
    torch.testing.assert_close(by_solve, own, rtol=0, atol=1e-11)


def test_a_newton_homotopy_in_one_euler_step_is_a_newton_step() -> None:
    layer, x, z0 = Layer(), draw(1, 3), draw(1, 6, seed=3)
    drift = eq.NewtonHomotopy(lambda z, x: z - layer(z, x), tol=1e-13)
    got = sa.solve(drift, z0, clock=[0.0, 1.0], solver=sa.Euler(), cond={"z0": z0, "x": x})
    slope = torch.eye(6, dtype=DOUBLE) - torch.autograd.functional.jacobian(lambda z: layer(z, x), z0)[0, :, 0]
    want = z0 - torch.linalg.solve(slope, (z0 - layer(z0, x))[0])[None]
    torch.testing.assert_close(got.detach(), want.detach(), rtol=0, atol=1e-12)


@pytest.mark.parametrize("path", PATHS)
def test_gradients_through_the_path_under_every_adjoint(path: type[eq.Path]) -> None:
    layer, x = Layer(), draw(3, 3, seed=2).requires_grad_()
    z0 = draw(3, 6, seed=3).requires_grad_()
    drift, cond = path(lambda z, x: z - layer(z, x), tol=1e-13), {"z0": z0, "x": x}
    wanted, found = [x, z0, *layer.parameters()], []
    for adjoint in ADJOINTS:
        z = sa.solve(drift, z0, clock=[0.0, 0.4, 1.0], solver=sa.Midpoint(), cond=cond, adjoint=adjoint)
        found.append(gradients(z, wanted))
    assert all(worst(other, found[0]) <= 1e-12 for other in found[1:])
    assert float((found[0][1]).norm()) > 0  # two steps leave the path, by an error that z0 changes


@pytest.mark.parametrize("path", PATHS)
def test_the_corrector_leads_to_the_path_and_has_its_gradient(path: type[eq.Path]) -> None:
    linear = Linear()
    drift = path(linear.residual, tol=1e-8)
    for value in (0.3, 1.0):
        want = linear.at(path, torch.tensor(value, dtype=DOUBLE))
        near = want.detach() + 0.1
        got = drift.correct(value, near, z0=linear.z0, cond={"x": linear.x}, tol=1e-14)
        assert worst((got.detach(),), (want.detach(),)) <= 1e-12
        wanted = linear.leaves if value < 1 else [linear.x, linear.A]
        assert worst(gradients(got, wanted), gradients(want, wanted)) <= 1e-11
    assert float(torch.autograd.grad(got.sum(), linear.z0)[0].norm()) <= 1e-12  # the root knows no start
    with pytest.raises(RuntimeError, match=r"z0 requires a gradient"):
        drift.correct(1.0, near.requires_grad_(), z0=linear.z0, cond={"x": linear.x}, tol=1e-14)


def test_a_turning_point_is_warned_of() -> None:
    """``r = z^2 + 1`` has no root: dH/dz = 2 z vanishes on the way."""
    drift = eq.NewtonHomotopy(lambda z: z.square() + 1)
    z = torch.zeros(2, 1, dtype=DOUBLE)
    with pytest.warns(eq.EquilibriumWarning, match=r"derivative of the path was not reached.*turns back"):
        drift(torch.tensor(0.5, dtype=DOUBLE), z, z0=z + 1)
    # Steps may jump over the turn at 1/2; there is no root to be found from where they end.
    clock = torch.linspace(0, 1, 9, dtype=DOUBLE)
    beyond = sa.solve(drift, z + 1, clock=clock, solver=sa.Euler(), cond={"z0": z + 1})
    with pytest.warns(eq.EquilibriumWarning, match="was not reached by 2 of 2 samples"):
        drift.correct(1.0, beyond, z0=z + 1, tol=1e-6)


def test_nests_and_narrow_dtypes_of_paths() -> None:
    x = draw(3, 2, dtype=torch.float32).requires_grad_()

    def residual(z: dict[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        return {"a": z["a"] - torch.tanh(0.5 * z["b"].sum(2) + x), "b": z["b"] - 0.3 * z["a"][:, :, None]}

    z0 = {"a": torch.zeros(3, 2), "b": torch.zeros(3, 2, 2)}
    for path in PATHS:
        drift = path(residual, tol=1e-5)
        z = sa.solve(drift, z0, clock=[0.0, 0.5, 1.0], solver=sa.RK4(), cond={"z0": z0, "x": x})
        root = drift.correct(1.0, {k: v.detach() for k, v in z.items()}, z0=z0, cond={"x": x}, tol=1e-6)
        assert all(v.dtype == torch.float32 for v in root.values())
        for name in z:
            torch.testing.assert_close(z[name], root[name], rtol=0, atol=1e-3)
        a, b = (torch.autograd.grad(v["a"].sum(), x)[0] for v in (z, root))
        torch.testing.assert_close(a, b, rtol=1e-2, atol=0)


def test_bad_paths_are_refused() -> None:
    with pytest.raises(TypeError, match="residual: got int; pass"):
        eq.NewtonHomotopy(3)
    with pytest.raises(TypeError, match="method: got the class Newton"):
        eq.NewtonHomotopy(torch.cos, method=eq.Newton)
    with pytest.raises(ValueError, match="tol: got 0; pass"):
        eq.FixedPointHomotopy(torch.cos, tol=0)
    s, z = torch.tensor(0.5), torch.zeros(2, 3)
    with pytest.raises(ValueError, match="z0: it has not the shapes of z"):
        eq.FixedPointHomotopy(torch.cos)(s, z, z0=z[:1])
    with pytest.raises(ValueError, match="residual: returned Tensor with shapes"):
        eq.FixedPointHomotopy(lambda z: z[:1])(s, z, z0=z)
    with pytest.raises(ValueError, match=r"tol: got 1e-10, but torch\.float32"):
        eq.FixedPointHomotopy(torch.cos, tol=1e-10)(s, z, z0=z)


# -------------------------------------------------------------------------------------------- HomoODE


def test_a_linear_homotopy_and_its_gradients_in_closed_form() -> None:
    """``z' = M z + x``: dz(1)/dx = M^-1 (e^M - 1), dz(1)/dz0 = e^M."""
    M = (draw(5, 5, seed=1) / 3).requires_grad_()
    x, z0 = draw(3, 5, seed=2).requires_grad_(), draw(3, 5, seed=3).requires_grad_()
    g = draw(3, 5, seed=4)
    # RK4 errs by |M|^5 / (120 N^4), with |M| = 1.2 and 400 steps by 1e-12, and a little less
    # in the derivatives with respect to x and z0, relative to |e^M|.
    homotopy = eq.Homotopy(lambda z, x: z @ M.T + x, torch.linspace(0, 1, 401, dtype=DOUBLE), solver=sa.RK4())
    z = homotopy(z0, {"x": x})
    E = torch.linalg.matrix_exp(M)
    integral = torch.linalg.solve(M, E - ONE)
    want = z0 @ E.T + x @ integral.T
    assert worst((z.detach(),), (want.detach(),)) <= 1e-12
    got = torch.autograd.grad(z, [x, z0, M], g)
    assert worst(got[:2], (g @ integral.detach(), g @ E.detach())) <= 1e-12
    assert worst(got[2:], torch.autograd.grad(want, [M], g)) <= 1e-12


@pytest.mark.parametrize("adjoint", [*ADJOINTS, sa.Reversible()], ids=repr)
def test_homotopies_have_the_exact_gradient_of_the_discrete_solve(adjoint: sa.Adjoint) -> None:
    layer, x, z0 = Layer(), draw(3, 3, seed=2).requires_grad_(), draw(3, 6, seed=3).requires_grad_()
    solver = sa.Coupled(sa.Heun()) if adjoint == sa.Reversible() else sa.Heun()
    wanted, clock = [x, z0, *layer.parameters()], [0.0, 0.1, 0.5, 1.0]
    want = gradients(eq.Homotopy(layer, clock, solver=solver, adjoint=sa.Direct())(z0, {"x": x}), wanted)
    homotopy = eq.Homotopy(layer, clock, solver=solver, adjoint=adjoint)
    assert worst(gradients(homotopy(z0, {"x": x}), wanted), want) <= 1e-11
    assert {id(p) for p in homotopy.parameters()} == {id(p) for p in layer.parameters()}


def test_the_published_adjoint_is_the_conditioning_adjoint() -> None:
    """Its gradient tends to the discrete one with the order of its solver."""
    layer, x, z0 = Layer(), draw(3, 3, seed=2).requires_grad_(), draw(3, 6, seed=3).requires_grad_()
    wanted, errors = [x, z0, *layer.parameters()], []
    for steps in (8, 16, 32):
        clock, found = torch.linspace(0, 1, steps + 1, dtype=DOUBLE), []
        for adjoint in (sa.Direct(), sa.ContinuousAdjoint(sa.Heun())):
            homotopy = eq.Homotopy(layer, clock, solver=sa.Heun(), adjoint=adjoint)
            found.append(gradients(homotopy(z0, {"x": x}), wanted))
        errors.append(worst(found[1], found[0]))
    assert all(3 <= a / b <= 6 for a, b in pairwise(errors))


def test_trajectories_callbacks_and_a_clock_that_is_chosen() -> None:
    layer, x, z0 = Layer(), draw(3, 3, seed=2).requires_grad_(), draw(3, 6, seed=3)
    chosen: list[Any] = []

    def clock(drift: Callable[..., Tensor], z: Tensor, cond: dict[str, Tensor]) -> list[float]:
        assert not cond["x"].requires_grad
        assert torch.equal(drift(torch.tensor(0.0), z, **cond), layer(z, x))
        chosen.append((z, cond))
        return [0.0, 0.5, 1.0]

    homotopy, seen = eq.Homotopy(layer, clock, solver=sa.Euler()), []
    states = homotopy(z0, {"x": x}, trajectory=True, callback=lambda n, s, z: seen.append((n, s)))
    assert len(chosen) == 1
    assert seen == [(1, 0.5), (2, 1.0)]
    half = z0 + 0.5 * layer(z0, x)
    torch.testing.assert_close(states, torch.stack([z0, half, half + 0.5 * layer(half, x)]), rtol=0, atol=1e-15)
    assert torch.equal(homotopy(z0, {"x": x}), states[-1])


def test_bad_homotopies_are_refused() -> None:
    with pytest.raises(TypeError, match="f: got int; pass"):
        eq.Homotopy(3, [0.0, 1.0], solver=sa.Euler())
    with pytest.raises(TypeError, match="solver: got the class Euler"):
        eq.Homotopy(torch.cos, [0.0, 1.0], solver=sa.Euler)
    with pytest.raises(TypeError, match="adjoint: got str"):
        eq.Homotopy(torch.cos, [0.0, 1.0], solver=sa.Euler(), adjoint="exact")
    with pytest.raises(ValueError, match=r"clock: falls from 1\.0 to 0\.0; pass numbers that rise"):
        eq.Homotopy(torch.cos, [1.0, 0.5, 0.0], solver=sa.Euler())
    with pytest.raises(ValueError, match="clock: got the number 10"):
        eq.Homotopy(torch.cos, 10, solver=sa.Euler())


# --------------------------------------------------------------------------------------- shared start


def test_the_shared_start_is_spread_and_has_no_gradient() -> None:
    start = eq.SharedStart(3)
    start.value.copy_(torch.tensor([1.0, 2.0, 3.0]))
    for like in (torch.zeros(4, 3), torch.zeros(4, 3, 5, 2, dtype=DOUBLE), torch.zeros(4, 3, 2).bfloat16()):
        z0 = start(like)
        assert (z0.shape, z0.dtype, z0.requires_grad) == (like.shape, like.dtype, False)
        assert torch.equal(z0.flatten(2).mean(2) if like.ndim > 2 else z0, start.value.to(like).expand(4, 3))
        z0.zero_()
        assert torch.equal(start.value, torch.tensor([1.0, 2.0, 3.0]))
    assert list(start.parameters()) == []


def test_a_fit_is_a_step_of_smooth_l1_every_few_calls() -> None:
    """Against torch's own loss, its autograd, and its SGD."""
    start = eq.SharedStart(3, every=4, rate=0.3, beta=0.5).double()
    value = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    for call in range(1, 14):
        end = draw(5, 3, 2, seed=call).requires_grad_()
        assert not start.loss(end).requires_grad
        spread = value[:, None].expand(5, 3, 2)
        loss = 3 * functional.smooth_l1_loss(spread, end.detach(), beta=0.5)
        torch.testing.assert_close(start.loss(end), loss.detach(), rtol=1e-12, atol=0)
        start.fit(end)
        if call % 4 == 0:
            (grad,) = torch.autograd.grad(loss, value)
            value = (value - 0.3 * grad).detach().requires_grad_()
        torch.testing.assert_close(start.value, value.detach(), rtol=0, atol=1e-14)
        assert end.grad is None
    assert float(start.value.norm()) > 0


def test_a_fit_ends_at_the_mean_and_goes_on_where_it_was_interrupted() -> None:
    start = eq.SharedStart(2, every=2, rate=1.0)
    end = torch.tensor([[0.4, -0.2], [0.6, 0.2]])
    for _ in range(5):
        start.fit(end)
    saved, other = copy.deepcopy(start.state_dict()), eq.SharedStart(2, every=2, rate=1.0)
    other.load_state_dict(saved)
    for each in (start, other):
        each.fit(end + 1)  # the sixth call: it counts
    assert torch.equal(start.value, other.value)
    for _ in range(200):
        start.fit(end)
    torch.testing.assert_close(start.value, torch.tensor([0.5, 0.0]), rtol=0, atol=1e-6)


def test_the_shared_start_in_a_model() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.start = eq.SharedStart(6, every=1)
            self.homotopy = eq.Homotopy(Layer(), [0.0, 0.5, 1.0], solver=sa.Heun())

        def forward(self, x: Tensor) -> Tensor:
            z = self.homotopy(self.start(torch.empty(len(x), 6, dtype=DOUBLE)), {"x": x})
            self.start.fit(z)
            return z

    model, x = Model(), draw(5, 3)
    before = model(x)
    before.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert not torch.equal(model(x), before)  # the start has moved


def test_bad_starts_are_refused() -> None:
    with pytest.raises(ValueError, match="channels: got 0; pass an integer"):
        eq.SharedStart(0)
    with pytest.raises(ValueError, match="every: got True; pass an integer"):
        eq.SharedStart(2, every=True)
    with pytest.raises(ValueError, match="rate: got 0; pass a number"):
        eq.SharedStart(2, rate=0)
    with pytest.raises(ValueError, match=r"beta: got -1\.0; pass a number"):
        eq.SharedStart(2, beta=-1.0)
    with pytest.raises(ValueError, match=r"got shape \(4, 3\); pass \(batch, 2, ...\)"):
        eq.SharedStart(2)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="end: it holds NaN"):
        eq.SharedStart(2).fit(torch.full((4, 2), torch.nan))
