"""What README and CONTRIBUTING say runs, and their tables say what the code says."""

from __future__ import annotations

import inspect
import re
import sys
from types import ModuleType

import pytest
import torch

import sdeadjoint as sa

from .documents import ROOT, blocks, dangling, run

README, CONTRIBUTING = ((ROOT / name).read_text() for name in ("README.md", "CONTRIBUTING.md"))
SAMPLERS = (ROOT / "docs" / "samplers.md").read_text()


def test_readme_runs_and_fills_the_gradients_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(blocks(README)) == 4
    assert README.count("steps=50") == 2
    names = run("README.md", README.replace("steps=50", "steps=5"), monkeypatch)
    weights = [*names["unet"].parameters(), *names["ddpm_unet"].parameters()]
    for leaf in [names["latents"], names["prompt"], names["x_T"], *weights]:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
    for leaf in (names["latents"], names["prompt"], names["x_T"]):
        assert leaf.grad.count_nonzero() > 0


def test_the_first_screen_is_short() -> None:
    """The rest is for the guide; what is in a comment is not seen."""
    shown = re.sub(r"<!--.*?-->", "", README, flags=re.DOTALL)
    assert len(shown.splitlines()) <= 120
    first = blocks(shown)[0].splitlines()
    assert len([line for line in first if line and not line.startswith("import")]) <= 6


def sampler_rows() -> dict[str, list[str]]:
    """The samplers' table: cells by sampler."""
    lines = [line for line in SAMPLERS.splitlines() if line.startswith("| `")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: row for row in cells if len(row) == 6 for name in re.findall(r"`(\w+)", row[0])}


def test_the_table_lists_every_sampler() -> None:
    functions = inspect.getmembers(sa.samplers, inspect.isfunction)
    public = {name for name, function in functions if function.__module__ == sa.samplers.__name__}
    assert set(sampler_rows()) == public


@pytest.mark.parametrize("name", sorted(sampler_rows()))
def test_the_table_is_right(name: str) -> None:
    _, frame_cell, solver_cell, order, calls, _ = sampler_rows()[name]
    frame, solver = getattr(sa.samplers, name)(sa.VPLinear())
    assert frame_cell == f"{frame.kind}, eta = {frame.eta:g}"
    assert solver_cell.strip("`").split("(")[0] == type(solver).__name__
    assert int(calls) == solver.claims.evaluations
    if name != "deis":  # its order is an argument
        assert order == (f"strong {solver.claims.strong:g}" if frame.eta else f"{solver.claims.ode}")


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_links_lead_somewhere_and_files_that_are_named_exist(name: str) -> None:
    assert list(dangling(ROOT / name)) == []


def test_the_worked_example_is_a_solver_of_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = blocks(CONTRIBUTING)
    module = ModuleType("sdeadjoint.solvers.ralston")
    module.__package__ = "sdeadjoint.solvers"
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look up annotations
    exec(compile(block, "CONTRIBUTING.md", "exec"), module.__dict__)
    solver = module.Ralston()
    assert repr(solver) == "Ralston()"
    assert isinstance(solver, sa.Solver)
    errors = []
    for steps in (64, 128):  # y' = -y^2, y(0) = 1, y(1) = 1/2
        y, state, h = torch.ones((), dtype=torch.float64), solver.initial_state, 1 / steps
        for n in range(steps):
            y, state = solver.step(lambda s, y: -(y**2), sa.Interval(n * h, (n + 1) * h), y, state)
        errors.append(abs(float(y) - 0.5))
    # Halving h divides an error C h^2 (1 + O(h)) by 4 (1 + O(h)), h = 1/64.
    assert errors[0] / errors[1] == pytest.approx(2**solver.claims.ode, rel=1 / 16)
