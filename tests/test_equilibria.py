"""Equilibria and their gradients, against closed forms, unrolled iterations, and another library."""

from __future__ import annotations

import copy
import warnings
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import sdeadjoint as sa
from sdeadjoint import equilibria as eq

DOUBLE = torch.float64
METHODS = [
    eq.FixedPoint(max_iterations=1000),
    eq.Anderson(),
    eq.Broyden(),
    eq.Newton(),
    eq.Newton(krylov=4),
]


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, dtype=DOUBLE, generator=torch.Generator().manual_seed(seed)).to(dtype)


class Linear:
    """``z = A z + x``: z* = (1 - A)^-1 x, and dL/dx = (1 - A)^-T g."""

    def __init__(self, batch: int = 4, n: int = 7, size: float = 0.8) -> None:
        A = draw(batch, n, n, seed=1)
        self.A = (size * A / torch.linalg.matrix_norm(A, 2)[:, None, None]).requires_grad_()
        self.x = draw(batch, n, seed=2).requires_grad_()
        self.g = draw(batch, n, seed=3)
        self.inverse = torch.linalg.inv(torch.eye(n, dtype=DOUBLE) - self.A.detach())
        self.start = torch.zeros(batch, n, dtype=DOUBLE)

    def f(self, z: Tensor, x: Tensor) -> Tensor:
        return (self.A @ z[:, :, None])[:, :, 0] + x

    def solve(self, **options: Any) -> Tensor:
        options = {"tol": 1e-13, "method": eq.Newton()} | options
        return eq.solve(self.f, self.start, {"x": self.x}, **options)


class Layer(nn.Module):
    """``tanh(W z + U x + b)``, a contraction: its weights and the input matrix scaled to 0.7."""

    def __init__(self, width: int = 6, inputs: int = 3, dtype: torch.dtype = DOUBLE) -> None:
        super().__init__()
        self.hidden, self.read = nn.Linear(width, width), nn.Linear(inputs, width, bias=False)
        with torch.no_grad():
            self.hidden.weight.copy_(draw(width, width, seed=4))
            self.hidden.weight *= 0.7 / torch.linalg.matrix_norm(self.hidden.weight, 2)
            self.hidden.bias.copy_(draw(width, seed=5))
            self.read.weight.copy_(draw(width, inputs, seed=6))
        self.to(dtype)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(self.hidden(z) + self.read(x))


def unrolled(f: Callable[..., Any], z: Any, iterations: int = 120) -> Any:
    """Plain iteration under autograd: 0.7^120 = 3e-19."""
    for _ in range(iterations):
        z = f(z)
    return z


def gradients(z: Tensor, wanted: list[Tensor], seed: int = 9) -> tuple[Tensor, ...]:
    loss = (z * draw(*z.shape, seed=seed).to(z)).sum()
    return torch.autograd.grad(loss, wanted, retain_graph=True)


def worst(got: tuple[Tensor, ...], want: tuple[Tensor, ...]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(got, want, strict=True))


# ------------------------------------------------------------------------------------ closed forms


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_linear_equilibria_and_their_implicit_gradients(method: eq.Method) -> None:
    linear = Linear()
    z = linear.solve(method=method)
    want = (linear.inverse @ linear.x.detach()[:, :, None])[:, :, 0]
    # |(1 - A)^-1| <= 1 / (1 - 0.8) = 5 times tol = 1e-13, relative; a product of two such for A.
    assert worst((z.detach(),), (want,)) <= 5e-13
    dx, dA = torch.autograd.grad(z, [linear.x, linear.A], linear.g)
    u = (linear.inverse.mT @ linear.g[:, :, None])[:, :, 0]
    assert float((dx - u).norm() / u.norm()) <= 1e-12
    outer = u[:, :, None] * want[:, None, :]
    assert float((dA - outer).norm() / outer.norm()) <= 2e-12


def test_one_step_lacks_a_term_of_first_order() -> None:
    """JFB's error is ``A (1 - A)^-1``, transposed, exactly."""
    linear = Linear()
    exact = torch.autograd.grad(linear.solve(), linear.x, linear.g)[0]
    cheap = torch.autograd.grad(linear.solve(gradient=eq.OneStep()), linear.x, linear.g)[0]
    lacks = ((linear.A.detach() @ linear.inverse).mT @ linear.g[:, :, None])[:, :, 0]
    torch.testing.assert_close(exact - cheap, lacks, rtol=0, atol=1e-11)


@pytest.mark.parametrize("damping", [1.0, 0.6])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_phantom_gradients_are_partial_sums(k: int, damping: float) -> None:
    linear = Linear()
    z = linear.solve(gradient=eq.Phantom(k, damping))
    got = torch.autograd.grad(z, linear.x, linear.g)[0]
    K = (1 - damping) * torch.eye(7, dtype=DOUBLE) + damping * linear.A.detach()
    partial = sum(torch.linalg.matrix_power(K, j) for j in range(k))
    want = damping * (partial.mT @ linear.g[:, :, None])[:, :, 0]
    torch.testing.assert_close(got, want, rtol=0, atol=1e-12)


def test_phantom_gradients_tend_to_the_implicit_one() -> None:
    layer, x = Layer(), draw(5, 3).requires_grad_()
    wanted = [x, *layer.parameters()]

    def error(gradient: eq.Gradient) -> float:
        z = eq.solve(layer, torch.zeros(5, 6, dtype=DOUBLE), {"x": x}, tol=1e-14, gradient=gradient)
        return worst(gradients(z, wanted), exact)

    exact = gradients(unrolled(lambda z: layer(z, x), torch.zeros(5, 6, dtype=DOUBLE)), wanted)
    errors = [error(eq.Phantom(k)) for k in (1, 2, 4, 8, 16)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] <= 0.7**16 / (1 - 0.7)
    assert error(eq.OneStep()) == errors[0]


# ----------------------------------------------------------------------------- unrolled iterations


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_implicit_gradients_are_those_of_infinitely_many_iterations(method: eq.Method) -> None:
    layer, x = Layer(), draw(5, 3).requires_grad_()
    wanted = [x, *layer.parameters()]
    start = torch.zeros(5, 6, dtype=DOUBLE)
    want = gradients(unrolled(lambda z: layer(z, x), start), wanted)
    z = eq.solve(layer, start, {"x": x}, tol=1e-14, method=method)
    # tol / (1 - 0.7) once for z, through second derivatives, and once for u.
    assert worst(gradients(z, wanted), want) <= 1e-12


def test_the_system_may_have_its_own_method_and_tolerance() -> None:
    layer, x = Layer(), draw(5, 3).requires_grad_()
    wanted, start = [x, *layer.parameters()], torch.zeros(5, 6, dtype=DOUBLE)
    want = gradients(unrolled(lambda z: layer(z, x), start), wanted)
    for tol in (1e-2, 1e-5, 1e-9):
        reports: list[eq.Report] = []
        gradient = eq.Implicit(eq.FixedPoint(), tol)
        z = eq.solve(layer, start, {"x": x}, tol=1e-13, gradient=gradient, watch=reports.append)
        error = worst(gradients(z, wanted), want)
        assert tol / 1e3 <= error <= tol / (1 - 0.7)  # plain iteration: no more than is asked for
        assert bool((reports[1].residual <= tol).all())


def test_gradients_reach_nests_closures_and_shared_parameters_and_leave_frozen_ones() -> None:
    layer, scale = Layer(), torch.tensor(0.9, dtype=DOUBLE, requires_grad=True)
    layer.read.weight.requires_grad_(False)
    x, bias = draw(5, 3).requires_grad_(), draw(6, seed=7).requires_grad_()
    root = draw(6, seed=8).requires_grad_()
    computed = root.square()  # not a leaf, and read through a closure

    def f(z: Tensor, inputs: Any) -> Tensor:
        twice = torch.tanh(0.3 * layer.hidden(z)) + layer(z, inputs["x"])
        return 0.5 * scale * twice + 0.1 * inputs["bias"][0] * computed

    wanted = [x, bias, scale, root, layer.hidden.weight, layer.hidden.bias]
    cond = {"inputs": {"x": x, "bias": (bias, None)}}
    start = torch.zeros(5, 6, dtype=DOUBLE)
    want = gradients(unrolled(lambda z: f(z, **cond), start), wanted)
    z = eq.solve(f, start, cond, tol=1e-14)
    assert worst(gradients(z, wanted), want) <= 1e-12
    assert layer.read.weight.grad is None


def test_tensors_in_cond_that_were_computed_are_not_counted_twice() -> None:
    """From a parameter that f reads too, from another tensor of cond, and given twice."""
    layer, x = Layer(), draw(5, 3).requires_grad_()
    start = torch.zeros(5, 6, dtype=DOUBLE)

    def f(z: Tensor, x: Tensor, shift: Tensor, again: Tensor) -> Tensor:
        return 0.5 * layer(z, x + again) + shift

    def cond() -> dict[str, Tensor]:
        mixed = 0.1 * x.sin()
        return {"x": mixed, "again": mixed, "shift": 0.2 * layer.hidden.bias + mixed.sum(1)[:, None]}

    wanted = [x, layer.hidden.weight, layer.hidden.bias]
    given = cond()
    want = gradients(unrolled(lambda z: f(z, **given), start), [*wanted, given["x"]])
    z = eq.solve(f, start, given, tol=1e-14)
    assert worst(gradients(z, [*wanted, given["x"]]), want) <= 1e-12


def test_a_leaf_that_is_given_and_read_directly_has_both_parts() -> None:
    x = draw(4, 3).requires_grad_()
    start = torch.zeros(4, 3, dtype=DOUBLE)

    def f(z: Tensor, x_: Tensor) -> Tensor:
        return torch.tanh(0.4 * z + x_) * x.cos()

    want = gradients(unrolled(lambda z: f(z, x), start), [x])
    assert worst(gradients(eq.solve(f, start, {"x_": x}, tol=1e-14), [x]), want) <= 1e-12


def test_nests_of_states() -> None:
    """Two scales that read each other, of different shapes."""
    x = draw(3, 4).requires_grad_()

    def f(z: dict[str, Any], x: Tensor) -> dict[str, Any]:
        wide, narrow = z["wide"], z["narrow"][0]
        pooled = wide.mean((1, 2))
        new = torch.tanh(0.3 * pooled + 0.4 * narrow.flip(1)[:, 0] + x[:, 0])
        spread = 0.5 * narrow[:, :1, None]
        return {"wide": torch.tanh(0.4 * wide + spread + x[:, None, :]), "narrow": (new[:, None] * x[:, :2],)}

    start = {"wide": torch.zeros(3, 2, 4, dtype=DOUBLE), "narrow": (torch.zeros(3, 2, dtype=DOUBLE),)}
    z, want = eq.solve(f, start, {"x": x}, tol=1e-14), unrolled(lambda z: f(z, x), start)
    assert type(z["narrow"]) is tuple
    for got, exact in ((z["wide"], want["wide"]), (z["narrow"][0], want["narrow"][0])):
        torch.testing.assert_close(got, exact, rtol=0, atol=1e-12)
        assert worst(gradients(got, [x]), gradients(exact, [x])) <= 1e-11
    both, exact = (w["wide"].sum() + w["narrow"][0].sin().sum() for w in (z, want))
    assert worst(torch.autograd.grad(both, [x]), torch.autograd.grad(exact, [x])) <= 1e-11


@pytest.mark.parametrize("shape", [(5,), (5, 3, 2, 2)])
def test_states_of_any_shape_and_strides(shape: tuple[int, ...]) -> None:
    x = draw(*shape).requires_grad_()
    start = torch.zeros(*reversed(shape), dtype=DOUBLE).permute(*range(len(shape))[::-1])
    weights = draw(*reversed(shape), seed=1).permute(*range(len(shape))[::-1]) * 0.2

    def f(z: Tensor, x: Tensor) -> Tensor:
        out = torch.tanh(weights * z + x)
        return out.transpose(1, -1).contiguous().transpose(1, -1) if z.ndim > 1 else out

    z = eq.solve(f, start, {"x": x}, tol=1e-14)
    assert z.shape == shape
    want = unrolled(lambda z: f(z, x), start)
    torch.testing.assert_close(z, want, rtol=0, atol=1e-13)
    assert worst(gradients(z, [x]), gradients(want, [x])) <= 1e-12


@pytest.mark.parametrize("method", METHODS, ids=repr)
@pytest.mark.parametrize(("dtype", "tol"), [(torch.float32, 1e-6), (torch.bfloat16, 2e-2)])
def test_narrow_dtypes(method: eq.Method, dtype: torch.dtype, tol: float) -> None:
    layer, wide = Layer(dtype=dtype), Layer(dtype=dtype).double()
    x = draw(5, 3, dtype=dtype).requires_grad_()
    x64 = x.detach().double().requires_grad_()
    start = torch.zeros(5, 6, dtype=dtype)
    z = eq.solve(layer, start, {"x": x}, tol=tol, method=method)
    assert z.dtype == dtype
    want = unrolled(lambda z: wide(z, x64), start.double())
    # Round-off of a few operations, and tol, both times |(1 - J)^-1| <= 3.3; then u likewise.
    bound = 4 * (tol + 4 * torch.finfo(dtype).eps)
    assert worst((z.detach().double(),), (want.detach(),)) <= bound
    got = gradients(z, [x, *layer.parameters()])
    assert [grad.dtype for grad in got] == [dtype] * 4
    exact = gradients(want, [x64, *wide.parameters()])
    assert worst(tuple(grad.double() for grad in got), exact) <= 4 * bound


def test_f_may_work_in_place() -> None:
    x = draw(4, 3).requires_grad_()

    def f(z: Tensor, x: Tensor) -> Tensor:
        return z.mul_(0.3).add_(x).tanh_()

    start = torch.ones(4, 3, dtype=DOUBLE)
    z = eq.solve(f, start, {"x": x}, tol=1e-14)
    assert torch.equal(start, torch.ones(4, 3, dtype=DOUBLE))
    want = unrolled(lambda z: torch.tanh(0.3 * z + x), start)
    assert worst(gradients(z, [x]), gradients(want, [x])) <= 1e-12


def test_an_equilibrium_that_does_not_depend_on_z() -> None:
    x = draw(4, 3).requires_grad_()
    for method in METHODS:
        z = eq.solve(lambda z, x: x.sin(), torch.zeros(4, 3, dtype=DOUBLE), {"x": x}, tol=1e-14, method=method)
        torch.testing.assert_close(z, x.sin(), rtol=0, atol=1e-14)
        assert worst(gradients(z, [x]), gradients(x.sin(), [x])) <= 1e-14


def test_inside_of_another_equilibrium() -> None:
    x = draw(4, 3).requires_grad_()
    start = torch.zeros(4, 3, dtype=DOUBLE)

    def inner(w: Tensor, z: Tensor, x: Tensor) -> Tensor:
        return torch.tanh(0.4 * w + 0.5 * z + x)

    def outer(z: Tensor, x: Tensor) -> Tensor:
        return 0.5 * eq.solve(inner, start, {"z": z, "x": x}, tol=1e-14) + 0.1 * x

    def plain(z: Tensor) -> Tensor:
        return 0.5 * unrolled(lambda w: inner(w, z, x), start, 60) + 0.1 * x

    want = unrolled(plain, start, 60)
    z = eq.solve(outer, start, {"x": x}, tol=1e-13)
    assert worst(gradients(z, [x]), gradients(want, [x])) <= 1e-11


# ---------------------------------------------------------------------------------- another library


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_same_as_torchdeq() -> None:
    torchdeq = pytest.importorskip("torchdeq", reason="torchdeq is no dependency, silent since 2023")
    layer, x = Layer(), draw(5, 3).requires_grad_()
    start, wanted = torch.zeros(5, 6, dtype=DOUBLE), [x, *layer.parameters()]
    deq = torchdeq.get_deq(ift=True, f_tol=1e-13, b_tol=1e-13, f_max_iter=200, b_max_iter=200, f_solver="anderson")
    theirs, _ = deq(lambda z: layer(z, x), start)
    ours = eq.solve(layer, start, {"x": x}, tol=1e-14)
    torch.testing.assert_close(ours, theirs[-1], rtol=0, atol=1e-11)
    assert worst(gradients(ours, wanted), gradients(theirs[-1], wanted)) <= 1e-10


# ------------------------------------------------------------------------- samples and convergence


def test_samples_converge_on_their_own() -> None:
    """One is done at once, one is easy, one is hard, one never gets there: none changes another."""
    rate = torch.tensor([0.1, 0.5, 0.99, -1.5], dtype=DOUBLE)[:, None]

    def f(z: Tensor, rate: Tensor) -> Tensor:
        return rate * z + 1

    start = (1 / (1 - rate)).expand(4, 2).clone()
    start[1:] = 0
    method = eq.FixedPoint(max_iterations=300)
    reports: list[eq.Report] = []
    with pytest.warns(eq.EquilibriumWarning, match=r"2 of 4 samples.*of sample 3; pass"):
        z = eq.solve(f, start, {"rate": rate}, tol=1e-9, method=method, watch=reports.append)
    assert torch.equal(z[0], start[0])
    report = reports[0]
    counts = report.iterations.tolist()
    assert counts[0] == 1
    assert 25 <= counts[1] <= 35  # 2^-30 = 1e-9
    assert counts[2:] == [300, 300]
    assert bool((report.residual[:2] <= 1e-9).all())
    assert 1e-9 < float(report.residual[2]) < float(report.residual[3])
    for i in range(2):
        alone = eq.solve(f, start[i : i + 1], {"rate": rate[i : i + 1]}, tol=1e-9, method=method)
        assert torch.equal(alone[0], z[i])


def test_the_residual_is_relative_to_f() -> None:
    reports: list[eq.Report] = []
    x = draw(5, 3)
    for size in (1e-8, 1.0, 1e8):
        eq.solve(
            lambda z, x: 0.5 * z + x, torch.zeros(5, 3, dtype=DOUBLE), {"x": size * x},
            tol=1e-6, method=eq.FixedPoint(), watch=reports.append,
        )  # fmt: skip
    for report in reports:
        assert report.iterations.tolist() == reports[0].iterations.tolist()
        torch.testing.assert_close(report.residual, reports[0].residual, rtol=1e-6, atol=0)
        # z_k = 2 x (1 - 2^-k), so that |f(z) - z| / |f(z)| = 2^-(k+1) / (1 - 2^-(k+1)).
        k = report.iterations.double() - 1
        torch.testing.assert_close(report.residual, 1 / (2 ** (k + 1) - 1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_an_equilibrium_of_zero_is_reached(method: eq.Method) -> None:
    z = eq.solve(lambda z: torch.sin(z) / 2, draw(3, 4), tol=1e-6, method=method)
    assert float(z.abs().max()) <= 1e-18


def test_the_value_is_the_same_with_and_without_gradients() -> None:
    layer, x = Layer(), draw(5, 3).requires_grad_()
    start = torch.zeros(5, 6, dtype=DOUBLE)
    values = [
        eq.solve(layer, start, {"x": x}, tol=1e-6, gradient=gradient)
        for gradient in (eq.Implicit(), eq.Phantom(3, 0.5), eq.OneStep())
    ]
    with torch.no_grad():
        values.append(eq.solve(layer, start, {"x": x}, tol=1e-6))
    assert all(torch.equal(value, values[0]) for value in values)
    assert [value.requires_grad for value in values] == [True, True, True, False]
    assert not eq.solve(lambda z: z.cos(), start, tol=1e-6).requires_grad
    residual = layer(values[0], x) - values[0]
    assert bool((residual.norm(dim=1) <= 1e-6 * layer(values[0], x).norm(dim=1) * (1 + 1e-9)).all())


def test_reports_count_calls_and_products() -> None:
    calls = 0
    layer, x = Layer(), draw(5, 3).requires_grad_()

    def f(z: Tensor, x: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return layer(z, x)

    start = torch.zeros(5, 6, dtype=DOUBLE)
    for method in METHODS:
        reports: list[eq.Report] = []
        calls = 0
        z = eq.solve(f, start, {"x": x}, tol=1e-10, method=method, watch=reports.append)
        forward = reports[0]
        assert forward.phase == "forward"
        # A product in forward mode is one evaluation, of values and tangents.
        assert calls == forward.calls + forward.products
        assert (forward.products > 0) == isinstance(method, eq.Newton)
        calls = 0
        z.sum().backward()
        backward = reports[1]
        assert backward.phase == "backward"
        assert calls == backward.calls == 1
        assert backward.products >= int(backward.iterations.max())
        assert bool((backward.residual <= 1e-10).all())


def test_a_gradient_that_is_not_reached_is_warned_of() -> None:
    linear = Linear(size=0.95)
    z = linear.solve(gradient=eq.Implicit(eq.FixedPoint(max_iterations=5), 1e-8))
    with pytest.warns(eq.EquilibriumWarning, match=r"linear system of the implicit gradient"):
        z.sum().backward()


def test_samples_without_a_cotangent_cost_nothing_and_get_zeros() -> None:
    linear, reports = Linear(), []
    z = linear.solve(watch=reports.append)
    linear.g[1] = 0
    dx = torch.autograd.grad(z, linear.x, linear.g)[0]
    assert torch.equal(dx[1], torch.zeros(7, dtype=DOUBLE))
    assert int(reports[1].iterations[1]) == 1


# ------------------------------------------------------------------------------------------ memory


def test_memory_does_not_depend_on_the_iterations() -> None:
    layer = Layer(width=64)
    x = draw(16, 3).requires_grad_()

    def peak(rate: float) -> tuple[int, int]:
        def f(z: Tensor, x: Tensor) -> Tensor:
            return (1 - rate) * z + rate * layer(z, x)

        reports: list[eq.Report] = []
        method = eq.FixedPoint(max_iterations=2000)
        with sa.memory.PeakMemory() as memory:
            start = torch.zeros(16, 64, dtype=DOUBLE)
            z = eq.solve(f, start, {"x": x}, tol=1e-5, method=method, watch=reports.append)
            z.sum().backward()
        return memory.peak, int(reports[0].iterations.max())

    (few, short), (many, long) = peak(0.5), peak(0.06)
    assert long > 5 * short
    assert many == few


def test_no_graph_is_kept_between_the_passes() -> None:
    layer, made = Layer(), []

    def f(z: Tensor, x: Tensor) -> Tensor:
        out = layer(z, x)
        made.append(weakref.ref(out))
        return out

    x = draw(5, 3).requires_grad_()
    z = eq.solve(f, torch.zeros(5, 6, dtype=DOUBLE), {"x": x}, tol=1e-8)
    assert all(reference() is None for reference in made)
    z.sum().backward()
    assert all(reference() is None for reference in made)
    gone = weakref.ref(z)
    del z
    assert gone() is None


# ------------------------------------------------------------------------------- ways around solve


def test_backward_twice_as_autograd_has_it() -> None:
    layer, x = Layer(), draw(5, 3).requires_grad_()
    z = eq.solve(layer, torch.zeros(5, 6, dtype=DOUBLE), {"x": x}, tol=1e-10)
    first = torch.autograd.grad(z.sum(), x, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(z.sum(), x)[0], first)
    with pytest.raises(RuntimeError, match="second time"):
        z.sum().backward()


def test_hooks_see_total_gradients_once() -> None:
    layer, x = Layer(), draw(5, 3).requires_grad_()
    seen: list[str] = []
    x.register_hook(lambda g: seen.append("x"))
    layer.hidden.weight.register_hook(lambda g: 2 * g)
    mixed = x * 2
    mixed.register_hook(lambda g: seen.append("mixed"))
    z = eq.solve(layer, torch.zeros(5, 6, dtype=DOUBLE), {"x": mixed}, tol=1e-12)
    z.sum().backward()
    assert sorted(seen) == ["mixed", "x"]
    doubled = layer.hidden.weight.grad
    layer.hidden.weight.grad = None
    plain = copy.deepcopy(layer)
    eq.solve(plain, torch.zeros(5, 6, dtype=DOUBLE), {"x": x * 2}, tol=1e-12).sum().backward()
    torch.testing.assert_close(doubled, 2 * plain.hidden.weight.grad, rtol=1e-10, atol=0)


def test_under_torchs_checkpoint() -> None:
    layer, x = Layer(), draw(5, 3).requires_grad_()

    def run(x: Tensor) -> Tensor:
        return eq.solve(layer, torch.zeros(5, 6, dtype=DOUBLE), {"x": x}, tol=1e-10)

    plain = torch.autograd.grad(run(x).sum(), x)[0]
    again = torch.autograd.grad(checkpoint(run, x, use_reentrant=False).sum(), x)[0]
    assert torch.equal(plain, again)


@pytest.mark.parametrize("gradient", [eq.Implicit(), eq.Phantom(2), eq.OneStep()], ids=repr)
def test_autocast_does_not_lose_the_parameters(gradient: eq.Gradient) -> None:
    """Its cache of cast parameters would hand those made without a graph to the evaluation with one."""
    layer, x = Layer(dtype=torch.float32), draw(5, 3, dtype=torch.float32).requires_grad_()
    wanted, start = [x, *layer.parameters()], torch.zeros(5, 6)

    def f(z: Tensor, x: Tensor) -> Tensor:
        return layer(z, x).float()

    want = gradients(eq.solve(f, start, {"x": x}, tol=1e-6, gradient=gradient), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = eq.solve(f, start, {"x": x}, tol=1e-2, gradient=gradient)
    got = gradients(z, wanted)
    # bfloat16 has 2^-8 = 4e-3, a few times, and tol = 1e-2; both times 3.3, and again for u.
    assert worst(got, want) <= 0.1


def test_a_drift_may_hold_an_equilibrium() -> None:
    """A step of ``sa.solve`` that is recomputed finds it again, with its gradient."""
    layer, x = Layer(), draw(5, 3).requires_grad_()
    y0 = draw(5, 6, seed=1).requires_grad_()

    def drift(s: Tensor, y: Tensor, x: Tensor) -> Tensor:
        def f(z: Tensor, y: Tensor, x: Tensor) -> Tensor:
            return layer(z + 0.3 * y, x)

        return eq.solve(f, torch.zeros_like(y.detach()), {"y": y, "x": x}, tol=1e-13) - y

    wanted, found = [x, y0, *layer.parameters()], []
    for adjoint in (sa.Direct(), sa.Checkpoint(), sa.Checkpoint(snapshots=2)):
        y1 = sa.solve(
            drift, y0, clock=torch.linspace(0, 1, 5), solver=sa.Heun(), cond={"x": x}, adjoint=adjoint
        )
        found.append(gradients(y1, wanted))
    assert worst(found[1], found[0]) <= 1e-13
    assert worst(found[2], found[0]) <= 1e-13


# ------------------------------------------------------------------------------------------ errors


def test_second_derivatives_are_refused() -> None:
    linear = Linear()
    for gradient in (eq.Implicit(), eq.Phantom(2), eq.OneStep()):
        z = linear.solve(gradient=gradient)
        with pytest.raises(RuntimeError, match=r"first derivatives only.*iterate f in a loop"):
            torch.autograd.grad(z.sum(), linear.x, create_graph=True)


@pytest.mark.parametrize("closed", [False, True])
def test_transforms_are_refused(closed: bool) -> None:
    x, start = draw(4, 1, 3), torch.zeros(1, 3, dtype=DOUBLE)

    def run(x: Tensor) -> Tensor:
        if closed:
            return eq.solve(lambda z: torch.tanh(0.3 * z + x), start, tol=1e-6)
        return eq.solve(lambda z, x: torch.tanh(0.3 * z + x), start, {"x": x}, tol=1e-6)

    message = r"transform of torch.func|forward-mode"
    with pytest.raises(RuntimeError, match=message):
        torch.func.vmap(run)(x)
    with pytest.raises(RuntimeError, match=message):
        torch.func.grad(lambda x: run(x).sum())(x[0])
    with pytest.raises(RuntimeError, match=message):
        torch.func.jvp(run, (x[0],), (x[0],))
    with torch.autograd.forward_ad.dual_level(), pytest.raises(RuntimeError, match=message):
        run(torch.autograd.forward_ad.make_dual(x[0], x[0]))


def test_a_start_that_requires_a_gradient_is_refused() -> None:
    start = torch.zeros(2, 3, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"z0 requires a gradient.*zero; pass z0.detach\(\)"):
        eq.solve(torch.cos, start, tol=1e-6)
    with torch.no_grad():
        eq.solve(torch.cos, start, tol=1e-6)


@pytest.mark.filterwarnings("ignore::sdeadjoint.equilibria.EquilibriumWarning")
def test_dropout_is_refused() -> None:
    layer, drop, x = Layer(), nn.Dropout(0.5), draw(5, 3).requires_grad_()  # two masks of 30 numbers differ
    start = torch.zeros(5, 6, dtype=DOUBLE)
    with pytest.raises(RuntimeError, match=r"another value than before.*eval\(\)"):
        eq.solve(lambda z, x: drop(layer(z, x)), start, {"x": x}, tol=1e-6)
    drop.eval()
    eq.solve(lambda z, x: drop(layer(z, x)), start, {"x": x}, tol=1e-6)


def test_changes_between_the_passes_are_refused() -> None:
    start = torch.zeros(5, 6, dtype=DOUBLE)

    def solved() -> tuple[Layer, Tensor, Tensor]:
        layer, x = Layer(), draw(5, 3)
        layer.read.requires_grad_(False)
        return layer, x, eq.solve(layer, start, {"x": x}, tol=1e-6)

    layer, _, z = solved()
    with torch.no_grad():
        layer.hidden.weight.mul_(1.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.sum().backward()
    layer, x, z = solved()
    x.mul_(1.1)  # requires no gradient
    with pytest.raises(RuntimeError, match="another value than before"):
        z.sum().backward()
    layer, _, z = solved()
    layer.read.weight.mul_(1.1)
    with pytest.raises(RuntimeError, match="another value than before"):
        z.sum().backward()


def test_what_f_records_is_not_for_the_loss() -> None:
    layer, x, kept = Layer(), draw(5, 3).requires_grad_(), []

    def f(z: Tensor, x: Tensor) -> Tensor:
        kept.append(layer(z, x))
        return kept[-1]

    for gradient in (eq.Implicit(), eq.Phantom(2), eq.OneStep()):
        z = eq.solve(f, torch.zeros(5, 6, dtype=DOUBLE), {"x": x}, tol=1e-6, gradient=gradient)
        with pytest.raises(RuntimeError, match=r"recorded by it.*measure the loss on what solve"):
            (z.sum() + kept[-1].square().sum()).backward()


def test_a_computed_tensor_that_is_given_and_read_directly_is_refused() -> None:
    x = draw(5, 3).requires_grad_() * 2
    with pytest.raises(RuntimeError, match=r"not only as an argument but also directly"):
        eq.solve(
            lambda z, x_: torch.tanh(0.3 * z + x_ * x), torch.zeros(5, 3, dtype=DOUBLE), {"x_": x}, tol=1e-6
        )


class Opaque(torch.autograd.Function):
    """``tanh`` with first derivatives in reverse mode alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(out := x.tanh())
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - ctx.saved_tensors[0] ** 2)


class Reverse(torch.autograd.Function):
    """``tanh`` with any derivatives in reverse mode, none in forward mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.tanh()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g * (1 - ctx.saved_tensors[0].tanh() ** 2)


def test_newton_without_forward_mode_differentiates_twice() -> None:
    x, start = draw(5, 3).requires_grad_(), torch.zeros(5, 3, dtype=DOUBLE)

    def solved(tanh: Callable[[Tensor], Tensor], method: eq.Method) -> Tensor:
        return eq.solve(lambda z, x: tanh(0.9 * z + x), start, {"x": x}, tol=1e-13, method=method)

    want = solved(torch.tanh, eq.Newton())
    got = solved(Reverse.apply, eq.Newton())
    torch.testing.assert_close(got, want, rtol=0, atol=1e-14)
    assert worst(gradients(got, [x]), gradients(want, [x])) <= 1e-13
    with pytest.raises(RuntimeError, match=r"neither a derivative in forward mode.*pass Anderson\(\)"):
        solved(Opaque.apply, eq.Newton())
    torch.testing.assert_close(solved(Opaque.apply, eq.Anderson()), want, rtol=0, atol=1e-12)


Z = torch.zeros(2, 3)


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (lambda: eq.solve(3, Z, tol=1e-3), TypeError, "f: got int; pass a function"),
        (lambda: eq.solve(torch.cos, [], tol=1e-3), TypeError, "z0: got a list without tensors; pass"),
        (lambda: eq.solve(torch.cos, Z.half(), tol=1e-3), TypeError, "z0: got dtype torch.float16"),
        (lambda: eq.solve(torch.cos, Z[0, 0], tol=1e-3), ValueError, "z0: got shapes"),
        (lambda: eq.solve(torch.cos, Z[:0], tol=1e-3), ValueError, "z0: got shapes"),
        (lambda: eq.solve(torch.cos, (Z, Z[:1]), tol=1e-3), ValueError, "z0: got shapes"),
        (lambda: eq.solve(torch.cos, (Z, Z.double()), tol=1e-3), TypeError, "z0: its tensors have the dtypes"),
        (lambda: eq.solve(torch.cos, Z / 0, tol=1e-3), ValueError, "z0: it is on meta or holds NaN"),
        (lambda: eq.solve(torch.cos, Z.to("meta"), tol=1e-3), ValueError, "z0: it is on meta or holds NaN"),
        (lambda: eq.solve(torch.cos, Z, [Z], tol=1e-3), TypeError, "cond: got list; pass a mapping"),
        (lambda: eq.solve(torch.cos, Z, {1: Z}, tol=1e-3), TypeError, "cond: got the key 1"),
        (lambda: eq.solve(torch.cos, Z, {"x": sa.Scheduled(Z)}, tol=1e-3), TypeError, "cond: got Scheduled"),
        (lambda: eq.solve(torch.cos, Z, tol=0), ValueError, "tol: got 0; pass"),
        (lambda: eq.solve(torch.cos, Z, tol=1e-8), ValueError, "tol: got 1e-08, but torch.float32"),
        (lambda: eq.solve(torch.cos, Z, tol=1e-3, method=eq.Newton), TypeError, "method: got the class Newton"),
        (lambda: eq.solve(torch.cos, Z, tol=1e-3, gradient="ift"), TypeError, "gradient: got str"),
        (lambda: eq.solve(lambda z: z[:1], Z, tol=1e-3), ValueError, "f: returned Tensor with shapes"),
        (lambda: eq.solve(lambda z: (z,), Z, tol=1e-3), ValueError, "f: returned tuple with shapes"),
        (lambda: eq.solve(lambda z: None, Z, tol=1e-3), ValueError, "f: returned None with shapes"),
        (lambda: eq.solve(torch.Tensor.double, Z, tol=1e-3), TypeError, "f: returned torch.float64"),
        (lambda: eq.Implicit(method=eq.Newton), TypeError, "method: got the class Newton"),
        (lambda: eq.Implicit(tol=2), ValueError, "tol: got 2; pass"),
        (lambda: eq.Phantom(0), ValueError, "k: got 0; pass"),
        (lambda: eq.Phantom(1, 0.0), ValueError, "damping: got 0.0; pass"),
    ],
)
def test_bad_arguments_are_refused(call: Callable[[], object], kind: type[Exception], words: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(kind, match=words):
            call()


def test_representations_are_the_calls_that_make_them() -> None:
    for made in (*METHODS, eq.Implicit(), eq.Implicit(eq.Newton(), 1e-3), eq.Phantom(3, 0.5), eq.OneStep()):
        assert eval(repr(made), vars(eq)) == made


def test_a_function_without_a_value_at_the_start_is_refused() -> None:
    z0 = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match=r"f: returned NaN or infinite numbers at z0 \(sample 1\)"):
        eq.solve(torch.sqrt, z0, tol=1e-9)
