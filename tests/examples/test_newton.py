"""Gauss-Newton in the latent: what its table says, and that its parts do what they are said to do."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("rich")

import sdeadjoint as sa
from examples import newton as example


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> example.Result:
    out = tmp_path_factory.mktemp("newton")
    made = example.run(out)
    assert (out / "newton.png").stat().st_size > 10_000
    return made


def test_adam_has_no_fewer_passes(result: example.Result) -> None:
    newton = result.courses[example.NEWTON]
    for course in result.courses.values():
        assert newton.calls[-1] <= course.calls[-1] < newton.calls[-1] + 3 * example.STEPS
        assert torch.equal(course.losses[0], newton.losses[0])  # one start for all


def test_no_step_of_gauss_newton_raises_a_loss(result: example.Result) -> None:
    losses = result.courses[example.NEWTON].losses
    assert bool((losses.diff(dim=0) <= 0).all())


def test_adam_s_losses_rise_at_times(result: example.Result) -> None:
    assert bool((result.courses[result.best].losses.diff(dim=0) > 0).any())


def test_both_end_at_about_the_same_loss_and_adam_is_ahead_before(result: example.Result) -> None:
    newton, adam = result.courses[example.NEWTON], result.courses[result.best]
    ends = [float(course.losses[-1].median()) for course in (newton, adam)]
    assert max(ends) < 1.5 * min(ends)
    assert max(ends) < 0.25 * float(newton.losses[0].median())
    early = [float(course.losses[course.calls <= 300].median(1).values[-1]) for course in (newton, adam)]
    assert early[1] < early[0]


def test_passes_are_counted() -> None:
    """A gradient takes three for each step of the sampler, a product five."""
    task, truth = example.task_of(2)
    z = torch.zeros_like(truth).requires_grad_()
    x = task.image(z)
    assert (task.passes.forward, task.passes.backward) == (example.STEPS, 0)
    torch.autograd.grad(task.losses(x, z).sum(), z, retain_graph=True)
    assert (task.passes.forward, task.passes.backward) == (2 * example.STEPS, example.STEPS)
    before = task.passes.forward, task.passes.backward
    sa.gauss_newton_product(x, z, torch.ones_like(z), loss=lambda x: task.misfits(x).sum())
    forward, backward = task.passes.forward - before[0], task.passes.backward - before[1]
    assert (forward, backward) == (2 * example.STEPS, 3 * example.STEPS)


def test_what_counts_passes_leaves_the_network_as_it_is() -> None:
    """Bit by bit, its second derivatives too."""
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    tallied = example.Tallied(lambda x, t: x.sin() * x)
    found = []
    for network in (tallied, tallied.network):
        out = network(x, torch.zeros(3))
        (g,) = torch.autograd.grad(out.sum(), x, create_graph=True)
        found.append((out, g, torch.autograd.grad(g.sum(), x)[0]))
    for mine, plain in zip(*found, strict=True):
        assert torch.equal(mine, plain)


def test_conjugate_gradients_solve_each_system_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four numbers take four products, to round-off times the condition, which is below 1e3 here."""
    monkeypatch.setattr(example, "PRODUCTS", 4)
    monkeypatch.setattr(example, "RESIDUAL", 1e-14)
    generator = torch.Generator().manual_seed(0)
    half = torch.randn(3, 4, 4, dtype=torch.float64, generator=generator)
    A = half @ half.mT + 0.1 * torch.eye(4, dtype=torch.float64)
    b = (
        torch.randn(3, 1, 2, 2, dtype=torch.float64, generator=generator)
        * torch.tensor([1.0, 1e-3, 0.0])[:, None, None, None]
    )
    s, r = example.conjugate_gradients(lambda v: (A @ v.flatten(1)[:, :, None]).reshape(v.shape), b)
    assert float(torch.linalg.cond(A).max()) < 1e3
    want = torch.linalg.solve(A, b.flatten(1)).reshape(b.shape)
    torch.testing.assert_close(s, want, rtol=1e-9, atol=1e-12)
    assert float(r.abs().max()) < 1e-9
    assert not s[2].any()


def test_a_step_of_gauss_newton_solves_its_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the Jacobian written out: damping 1, and all the products that a system of rank 16 needs."""
    monkeypatch.setattr(example, "NEWTON_STEPS", 1)
    monkeypatch.setattr(example, "PRODUCTS", 40)
    monkeypatch.setattr(example, "RESIDUAL", 1e-12)
    steps: list[torch.Tensor] = []
    solve = example.conjugate_gradients
    monkeypatch.setattr(
        example, "conjugate_gradients", lambda product, b: steps.append(solve(product, b)[0]) or (steps[0], 0 * b)
    )
    task, truth = example.task_of(1)
    z = 0.1 * torch.ones_like(truth)
    made = example.gauss_newton(task, z)
    assert made.losses[1] < made.losses[0]
    z.requires_grad_()
    measured = (example.MEASUREMENT.apply(task.image(z)) - task.y).flatten() / example.ACCURACY
    J = torch.stack([torch.autograd.grad(part, z, retain_graph=True)[0].flatten() for part in measured])
    gradient = J.T @ measured.detach() + z.detach().flatten()
    want = torch.linalg.solve(J.T @ J + 2 * torch.eye(64, dtype=torch.float64), -gradient)
    torch.testing.assert_close(steps[0].flatten(), want, rtol=1e-6, atol=1e-8)
