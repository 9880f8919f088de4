"""The layers of the design, read from the syntax tree: imports go down, never up."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "sdeadjoint"

# From the bottom up. A module imports from lower layers, and from its own folder.
LAYERS: tuple[frozenset[str], ...] = (
    frozenset({"nests", "arguments", "ledger", "progress", "memory", "workers", "compiling"}),
    frozenset({"packing", "fixed_point", "curvature"}),
    frozenset({"solvers", "noise", "conditioning"}),
    frozenset({"equation"}),
    frozenset({"recursion", "field", "adaptive"}),
    frozenset({"adjoints", "diffusion"}),
    frozenset({"solve", "problems", "inversion", "samplers"}),
    frozenset({"sample", "encode", "equilibria", "clocks", "control", "probability"}),
    frozenset({"adapters", "gradient_check", "command_line"}),
    frozenset({"comparison", "convergence", "accuracy"}),
    frozenset({"testing", "demo", "audit"}),
    frozenset({"cli"}),
    frozenset({"__init__", "__main__"}),
)
LEVEL = {name: level for level, layer in enumerate(LAYERS) for name in layer}
OPTIONAL = {"sklearn", "skimage", "tqdm", "matplotlib", "hypothesis", "diffusers"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def top(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports(tree: ast.AST, path: Path) -> Iterator[tuple[str, ast.AST]]:
    """Absolute names of everything imported, with the statement."""
    package = ("sdeadjoint", *path.relative_to(PACKAGE).parent.parts)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            if module == "sdeadjoint":
                yield from ((f"sdeadjoint.{alias.name}", node) for alias in node.names)
            else:
                yield module, node


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    own = top(path)
    assert own in LEVEL, f"{own} belongs to no layer yet: add it to LAYERS"
    for name, _ in imports(ast.parse(path.read_text()), path):
        assert not name.startswith(("theory", "tests")), f"{path} imports {name}"
        parts = name.split(".")
        if parts[0] == "sdeadjoint" and len(parts) > 1 and parts[1] != own:
            assert parts[1] in LEVEL, f"{path} imports {name}, which belongs to no layer"
            assert LEVEL[parts[1]] < LEVEL[own], f"{path} imports {name}, which is not below it"


@pytest.mark.parametrize("path", sorted((PACKAGE / "solvers").glob("*.py")), ids=lambda p: p.name)
def test_solvers_know_nothing_of_diffusion(path: Path) -> None:
    for name, _ in imports(ast.parse(path.read_text()), path):
        assert not name.startswith("sdeadjoint") or name.startswith("sdeadjoint.solvers")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_inside_functions_are_of_optional_extras_only(path: Path) -> None:
    tree = ast.parse(path.read_text())
    inside = {id(node) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for node in ast.walk(f)}
    for name, node in imports(tree, path):
        if id(node) in inside:
            assert name.split(".")[0] in OPTIONAL, f"{path}:{node.lineno} imports {name} inside a function"  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", sorted((PACKAGE / "adjoints").rglob("*.py")), ids=lambda p: p.name)
def test_adjoints_know_nothing_of_diffusion(path: Path) -> None:
    """Nor do they know which equation they differentiate."""
    for name, _ in imports(ast.parse(path.read_text()), path):
        assert not name.startswith(("sdeadjoint.diffusion", "sdeadjoint.field", "sdeadjoint.problems"))


@pytest.mark.parametrize("path", sorted((PACKAGE / "diffusion").rglob("*.py")), ids=lambda p: p.name)
def test_the_diffusion_knows_nothing_of_adjoints(path: Path) -> None:
    for name, _ in imports(ast.parse(path.read_text()), path):
        assert not name.startswith(("sdeadjoint.adjoints", "sdeadjoint.recursion"))
