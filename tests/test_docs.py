"""The guide: its code runs and its claims hold, its commands are commands, its links lead somewhere."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import sdeadjoint as sa
from sdeadjoint import testing
from sdeadjoint.cli import _parser, main

from .documents import ROOT, blocks, commands, dangling, fences, run, write_files

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
NOTEBOOKS = sorted(DOCS.glob("notebooks/*.ipynb"))  # make docs runs them
ALL = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES]
NAMES = [str(page.relative_to(ROOT)) for page in ALL]
STUDIES = [
    (page, line, fence.said)
    for page in PAGES
    for fence in fences(page.read_text())
    if fence.language == "sh"
    for line in fence.text.splitlines()
    if line.startswith("sdeadjoint study")
]

# The compiler looks at every tensor's grad, which warns for those that are no leaves.
pytestmark = [
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning"),
    # PyTorch's forward mode loads scripts of its own.
    pytest.mark.filterwarnings("ignore:.torch.jit.script:DeprecationWarning"),
    # diffusers hands tensors to numpy in a way that numpy 2 dislikes.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory of its own, from which modules can be imported, and nothing that stays imported from there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None)).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.mark.whole_run
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page.read_text())], ids=lambda page: page.name)
def test_pages_run(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their assertions are in the blocks, and the errors that they show are raised."""
    torch.manual_seed(0)
    run(page.name, page.read_text(), monkeypatch)


@pytest.mark.parametrize(("page", "line", "said"), STUDIES, ids=[line for _, line, _ in STUDIES])
def test_studies_end_as_is_said(page: Path, line: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(page.read_text())
    assert main(shlex.split(line)[1:]) == 0
    verdicts = re.findall(r"^(?:holds|violated|inconclusive): .*$", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(verdicts) == line.count("--solver")
    for verdict, shown in zip(verdicts, said.splitlines(), strict=bool(said)):
        assert verdict.startswith(shown)


@pytest.mark.parametrize("page", ALL, ids=NAMES)
def test_commands_are_commands(page: Path) -> None:
    Path("mine.py").write_text("from sdeadjoint import Heun as MySolver\n")
    write_files(page.read_text())
    targets = re.findall(r"^([a-z-]+(?: [a-z-]+)*):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    for program, *words in commands(page.read_text()):
        if program == "sdeadjoint":
            _parser().parse_args(words)
        elif program == "make":
            assert words[0] in " ".join(targets).split()
        elif program == "python" and words[0] == "-m":
            file = ROOT.joinpath(*words[1].split("."))
            assert file.with_suffix(".py").exists() or (file / "__main__.py").exists(), words


@pytest.mark.parametrize("page", ALL, ids=NAMES)
def test_names_of_the_package_exist(page: Path) -> None:
    for dotted in re.findall(r"\bsa((?:\.[A-Za-z_]\w*)+)", page.read_text()):
        found: object = sa
        for name in dotted.strip(".").split("."):
            found = getattr(found, name)
    checks = re.findall(r"`(check_\w+)\(", page.read_text())
    assert set(checks) <= set(testing.__all__)


@pytest.mark.parametrize("page", [*PAGES, *NOTEBOOKS], ids=lambda page: page.name)
def test_links_lead_somewhere_and_files_that_are_named_exist(page: Path) -> None:
    assert list(dangling(page)) == []


def test_the_index_lists_every_page() -> None:
    index = (DOCS / "README.md").read_text()
    listed = re.findall(r"^\| \[.*?\]\(((?:notebooks/)?\w+\.\w+)\)", index, flags=re.MULTILINE)
    assert {DOCS / page for page in [*listed, "README.md"]} == {*PAGES, *NOTEBOOKS}
    assert len(set(listed)) == len(listed)


@pytest.mark.parametrize("page", NOTEBOOKS, ids=lambda page: page.name)
def test_notebooks_are_kept_without_results(page: Path) -> None:
    cells = [cell for cell in json.loads(page.read_text())["cells"] if cell["cell_type"] == "code"]
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    for cell in cells:
        compile("".join(cell["source"]), page.name, "exec")


def test_every_picture_is_shown() -> None:
    shown = {Path(name).name for page in ALL for name in re.findall(r"!\[.*?\]\(([^)]+)\)", page.read_text())}
    assert shown == {picture.name for picture in DOCS.glob("*.png")}


def test_every_example_is_listed() -> None:
    listed = re.findall(r"python -m examples\.(\w+) --out", (DOCS / "examples.md").read_text())
    scripts = [path for path in (ROOT / "examples").glob("*.py") if "__main__" in path.read_text()]
    assert sorted(listed) == sorted(path.stem for path in scripts)
