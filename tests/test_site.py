"""The documentation's site: every public name has its place and its docstring, and versions are told once."""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
import sys
import tomllib
from types import ModuleType

import pytest

import sdeadjoint as sa

from .documents import ROOT

sys.path.insert(0, str(ROOT / "docs" / "site"))
reference, docstrings = (importlib.import_module(name) for name in ("reference", "docstrings"))
sys.path.remove(str(ROOT / "docs" / "site"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LISTED = [pair for listed in reference.names().values() for pair in listed]


def test_every_public_name_is_in_the_reference() -> None:
    modules = [module for name in sa.__all__ if isinstance(module := getattr(sa, name), ModuleType)]
    wanted = {("sdeadjoint", name) for name in sa.__all__ if not isinstance(getattr(sa, name), ModuleType)}
    for module in (*modules, sa.testing):
        assert module in reference.MODULES
        exported = getattr(module, "__all__", None)
        functions = dict(inspect.getmembers(module, inspect.isfunction))
        own = [name for name, value in functions.items() if value.__module__ == module.__name__ and name[0] != "_"]
        wanted |= {(module.__name__, name) for name in (own if exported is None else exported)}
    found = [getattr(importlib.import_module(module), name) for module, name in LISTED]
    for module_name, name in wanted:
        value = getattr(importlib.import_module(module_name), name)
        assert any(value is each for each in found), (module_name, name)
    assert len(LISTED) == len(set(LISTED))


@pytest.mark.parametrize(("module", "name"), LISTED, ids=lambda part: part)
def test_every_public_name_says_what_it_is(module: str, name: str) -> None:
    value = getattr(importlib.import_module(module), name)
    told = inspect.getdoc(value) or ""
    assert re.match(r"\S.*[.:!?]$", told.splitlines()[0] if told else ""), told
    if inspect.isclass(value):  # dataclasses without a docstring are given their signature for one
        assert not told.startswith(f"{name}(")


def test_pages_hold_every_name() -> None:
    for page, listed in reference.names().items():
        text = reference.page(*reference.PAGES[page], listed)
        for module, name in listed:
            assert re.search(rf"^\.\. auto\w+:: (?:{re.escape(module)}\.)?{name}$", text, flags=re.MULTILINE)


def test_the_version_is_told_once() -> None:
    assert PROJECT["version"] == sa.__version__
    assert f"\nversion: {sa.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert newest is not None
    assert newest[1] == sa.__version__


def test_supported_versions_are_those_of_the_project() -> None:
    said = (ROOT / "docs" / "start.md").read_text()
    needed = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["diffusers"]]
    for requirement in needed:
        name, _, version = requirement.partition(">=")
        assert f"{'PyTorch' if name == 'torch' else name} {version} or later" in said
    assert f"Python {PROJECT['requires-python'].removeprefix('>=')} or later" in said


# ---------------------------------------------------------------- markup


def marked(text: str) -> str:
    return "\n".join(docstrings.marked_up(text.splitlines()))


def test_formulas_become_literal_blocks() -> None:
    assert marked("Do it:\n\n    y = *x\n    z\n\nThen ``*a`` more.") == (
        "Do it:\n\n::\n\n    y = *x\n    z\n\nThen ``*a`` more."
    )


def test_tables_of_bars_become_literal_blocks() -> None:
    assert marked("Do it:\n\n| a | b |\n|---|---|\nMore.") == "Do it:\n\n::\n\n    | a | b |\n    |---|---|\n\nMore."


def test_arguments_and_items_stay_what_they_are() -> None:
    text = "Do it.\n\nArgs:\n    x: of shape\n        two lines.\n\n    y: another.\n\n1. one\n\n    of it"
    assert marked(text) == text


def test_stars_before_names_are_stars() -> None:
    assert marked("x (batch, *event) and *this word* and ``(n, *x)``") == (
        "x (batch, \\*event) and *this word* and ``(n, *x)``"
    )


def test_formulas_become_mathml() -> None:
    converter = pytest.importorskip("latex2mathml.converter", reason="the extra docs is not installed")
    assert "<math" in converter.convert(r"\frac{dx}{dt}")
