"""Fingerprints: what differs in code or state is another study, and what cannot be compared is not continued."""

from __future__ import annotations

import functools
import importlib
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sdeadjoint as sa
from sdeadjoint.convergence import Gradient, Power, Reverse, Setting, Study, Weak, measure, settings
from sdeadjoint.convergence.fingerprint import NoDigestError
from sdeadjoint.convergence.fingerprint import fingerprint as digest

SOURCE = """
import sdeadjoint as sa
import {helper}
SCALE = 1.0
class Mine(sa.Solver):
    claims = sa.Claims(ode=2, strong=1.0, evaluations=2)
    def step(self, drift, interval, y, state):
        F = drift(interval.s0, y)
        G = drift(interval.s1, y + interval.ds * F + interval.dB)
        return y + SCALE * {helper}.mean(F, G) * interval.ds + interval.dB, state
"""
HELPER = """
def mean(F, G):
    return (F + G) / 2
"""


def loaded(name: str, source: str, folder: Path) -> ModuleType:
    """A module of this name, as if it had been imported from a file."""
    path = folder / f"{name}.py"
    path.write_text(source)
    module = ModuleType(name)
    module.__file__ = str(path)
    exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    return module


def mine(folder: Path, monkeypatch: pytest.MonkeyPatch, edit: tuple[str, str] = ("", ""), name: str = "mine") -> Study:
    """A study of a user's solver after an edit of its file or of the one that it imports."""
    helper, source = HELPER.replace(*edit), SOURCE.format(helper="helper_of_mine").replace(*edit)
    monkeypatch.setitem(sys.modules, "helper_of_mine", loaded("helper_of_mine", helper, folder))
    module = loaded(name, source, folder)
    monkeypatch.setitem(sys.modules, name, module)
    return Study(module.Mine(), settings.line(), steps=(8, 16, 32), paths=30)


EDITS = [
    ("helper_of_mine.mean(F, G)", "F"),  # Heun to Euler
    ("SCALE = 1.0", "SCALE = 1.1"),
    ("ode=2", "ode=1"),
    ("(F + G) / 2", "F"),
]


@pytest.mark.parametrize("edit", EDITS, ids=[new for _, new in EDITS])
def test_an_edited_solver_is_another_study(
    edit: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = mine(tmp_path, monkeypatch)
    first = before.fingerprint()
    measure(before, resume=tmp_path / "study.json")
    assert mine(tmp_path, monkeypatch).fingerprint() == first  # not edited: continued
    edited = mine(tmp_path, monkeypatch, edit)
    assert edited.fingerprint() != first
    with pytest.raises(ValueError, match="another study"):
        measure(edited, resume=tmp_path / "study.json")


def test_a_file_that_was_edited_after_its_import_has_no_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = mine(tmp_path, monkeypatch)
    path = tmp_path / "mine.py"
    path.write_text(path.read_text().replace("(F, G)", "(F, F)"))
    with pytest.raises(NoDigestError, match=r"Mine\.step, whose file was edited after it was imported"):
        study.fingerprint()


LAZY = """
import sdeadjoint as sa
class Mine(sa.Euler):
    def step(self, drift, interval, y, state):
        from folder_of_mine import lazy
        return lazy.step(drift, interval, y, state)
"""


def test_modules_that_are_imported_inside_of_functions_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    folder = tmp_path / "folder_of_mine"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for source in ("from .deep import step", "from .deep import step  # edited"):
        (folder / "lazy.py").write_text(source)
        for deep in ("one", "two"):
            (folder / "deep.py").write_text(f"step = {deep!r}")
            monkeypatch.syspath_prepend(tmp_path)
            monkeypatch.setitem(sys.modules, "folder_of_mine", importlib.import_module("folder_of_mine"))
            module = loaded("mine", LAZY, tmp_path)
            monkeypatch.setitem(sys.modules, "mine", module)
            found.append(digest(module.Mine))
    assert len(set(found)) == 4


def test_what_a_study_has_worked_out_does_not_count() -> None:
    study = Study(sa.Euler(), settings.mild(), steps=(2, 4, 8), paths=30)
    before = study.fingerprint()
    measure(study)
    assert study.fingerprint() == before


def test_solvers_of_one_name_in_two_modules_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = (mine(tmp_path, monkeypatch, name=name) for name in ("mine", "other"))
    assert repr(one.solver).split()[0].split(".")[-1] == repr(other.solver).split()[0].split(".")[-1]
    assert one.fingerprint() != other.fingerprint()


class Scale(nn.Module):
    """A network with a plain attribute."""

    def __init__(self, c: float) -> None:
        super().__init__()
        self.c = c

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.c * x


def around(network: Callable[..., Tensor], schedule: sa.Schedule | None = None, scale: float | None = None) -> Setting:
    schedule = schedule or sa.VPLinear()
    guidance = None if scale is None else sa.Guidance(torch.tensor(scale, dtype=torch.float64))
    denoiser = sa.Denoiser(network, schedule, "sample", guidance=guidance)
    return Setting(Reverse(denoiser, sa.Frame(schedule, 0.0), 0.9, 0.1), (2,))


def tabulated(factor: float) -> sa.Tabulated:
    betas = factor * torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)
    return sa.Tabulated((1 - betas).cumprod(0))


def wide(last: float) -> Setting:
    return settings.of_problem(sa.problems.Mixture([0.5, 0.5], [[0.0] * 64, [1.0] * 63 + [last]], 0.2))


def scaled_by(factor: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: factor * x


def times(c: float, x: Tensor, t: Tensor) -> Tensor:
    return c * x


def with_an_attribute(c: float) -> Callable[[Tensor, Tensor], Tensor]:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return network.c * x  # type: ignore[attr-defined, no-any-return]

    network.c = c  # type: ignore[attr-defined]
    return network


def heir_of(c: float) -> nn.Module:
    class Base(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return c * x

    class Heir(Base):
        pass

    return Heir()


def frozen(setting: Setting) -> Setting:
    assert setting.equation.module is not None
    setting.equation.module.requires_grad_(False)
    return setting


PAIRS: dict[str, tuple[Setting, Setting]] = {
    "functions": (around(torch.clamp_min), around(torch.clamp_max)),
    "partials": tuple(around(functools.partial(torch.clamp, min=m)) for m in (0.0, 0.1)),  # type: ignore[dict-item]
    "positional partials": tuple(around(functools.partial(times, c)) for c in (0.1, 0.2)),  # type: ignore[dict-item]
    "frozen weights": (settings.steered(), frozen(settings.steered())),
    "attributes": (around(Scale(0.1)), around(Scale(0.9))),
    "guidance": (around(Scale(0.1), scale=3.00001), around(Scale(0.1), scale=3.00002)),
    "tables": (around(Scale(0.1), tabulated(1.0)), around(Scale(0.1), tabulated(1.0001))),
    "problems": (wide(1.0), wide(1.5)),
    "weights": (settings.steered(), settings.steered()),
}

MADE_WHERE_USED: dict[str, Setting] = {
    "lambdas": around(lambda x, t: 0.1 * x),
    "closures": around(scaled_by(0.1)),
    "defaults": around(lambda x, t, c=0.1: c * x),
    "attributes of functions": around(with_an_attribute(0.1)),
    "classes": around(heir_of(0.1)),
}


@pytest.mark.parametrize("what", MADE_WHERE_USED)
def test_functions_and_classes_that_no_module_names_are_not_continued(what: str) -> None:
    with pytest.raises(NoDigestError, match="made where it is used"):
        Study(sa.Heun(), MADE_WHERE_USED[what]).fingerprint()


@pytest.mark.parametrize("what", PAIRS)
def test_settings_that_differ_are_told_apart(what: str) -> None:
    one, other = PAIRS[what]
    if what == "weights":
        with torch.no_grad():
            next(other.equation.weights)[0, 0] += 1e-12
    assert Study(sa.Heun(), one).fingerprint() == Study(sa.Heun(), one).fingerprint()
    assert Study(sa.Heun(), one).fingerprint() != Study(sa.Heun(), other).fingerprint()


def test_everything_else_of_a_study_counts() -> None:
    study = Study(sa.Heun(), settings.line(), steps=(8, 16, 32), paths=50)
    changes: list[dict[str, object]] = [
        {"solver": sa.Midpoint()},
        {"setting": settings.line(1.0)},
        {"quantity": Weak()},
        {"quantity": Weak(Power(3))},
        {"quantity": Weak(torch.sum)},
        {"quantity": Gradient()},
        {"quantity": Gradient(adjoint=sa.Direct())},
        {"steps": (8, 16, 64)},
        {"paths": 60},
        {"seed": 1},
        {"finer": 8},
        {"reference": sa.RK4()},
        {"dtype": torch.float32},
    ]
    found = {study.fingerprint(), *(replace(study, **change).fingerprint() for change in changes)}  # type: ignore[arg-type]
    assert len(found) == 1 + len(changes)


def test_the_source_of_the_library_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Study(sa.Heun()).fingerprint()
    monkeypatch.setattr("sdeadjoint.convergence.fingerprint.library", lambda: "edited")
    assert Study(sa.Heun()).fingerprint() != before


def test_tensors_count_by_dtype_shape_and_bytes() -> None:
    ones = torch.ones(4)
    values = [ones, ones.double(), ones.reshape(2, 2), ones.bfloat16(), -ones, torch.zeros(0), torch.zeros(0, 2)]
    assert len({digest(value) for value in values}) == len(values)
    assert digest(torch.arange(4.0)[::2]) == digest(torch.tensor([0.0, 2.0]))
    assert digest(np.arange(3)) != digest(np.arange(3.0))


@pytest.mark.parametrize(
    "value",
    [
        torch.Generator(),
        random.Random(0),
        np.random.default_rng(0),
        threading.Lock(),
        (n for n in range(3)),
        np.array([object()]),
        torch.eye(2).to_sparse(),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_compared_is_refused(value: object) -> None:
    with pytest.raises(NoDigestError):
        digest([value])


@dataclass(frozen=True)
class Hidden(sa.Euler):
    """Euler with something in it that has no digest."""

    generator: torch.Generator


def test_a_study_that_cannot_be_told_from_another_runs_afresh(tmp_path: Path) -> None:
    study = Study(Hidden(torch.Generator()), settings.line(), steps=(8, 16, 32), paths=30)
    for _ in range(2):
        with pytest.warns(UserWarning, match="runs afresh"):
            measure(study, resume=tmp_path / "study.json")
    assert not (tmp_path / "study.json").exists()
