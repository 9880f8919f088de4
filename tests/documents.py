"""Markdown files as tests see them: their code runs, their links lead somewhere, their commands are commands."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", flags=re.DOTALL | re.MULTILINE)


class Fence(NamedTuple):
    """A fenced block, and what is said of its outcome: the ``text`` fence right after it, if there is one."""

    language: str
    text: str
    said: str


def fences(text: str) -> list[Fence]:
    matches = list(FENCE.finditer(text))
    found = []
    for i, match in enumerate(matches):
        after = matches[i + 1] if i + 1 < len(matches) else None
        answers = after is not None and after[1] == "text" and not text[match.end() : after.start()].strip()
        found.append(Fence(match[1], match[2], after[2] if after and answers else ""))
    return found


def blocks(text: str) -> list[str]:
    return [fence.text for fence in fences(text) if fence.language == "python"]


def write_files(text: str) -> None:
    """Write each block whose first line is ``# name.py`` to that file, in the working directory."""
    for block in blocks(text):
        if name := re.match(r"# (\w+\.py)\n", block):
            Path(name[1]).write_text(block)


def run(name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> dict:
    """Run a page's blocks in order, in one namespace, which is returned.

    A block of which an error is said must raise it, with that message; ``...`` stands for anything, line breaks for
    spaces.
    """
    module = ModuleType(re.sub(r"\W", "_", name))
    monkeypatch.setitem(sys.modules, module.__name__, module)  # where dataclasses look up annotations
    write_files(text)
    for fence in fences(text):
        if fence.language != "python":
            continue
        code = compile(fence.text, name, "exec", dont_inherit=True)
        if not re.match(r"\w+Error: ", fence.said):
            exec(code, module.__dict__)
            continue
        with pytest.raises(Exception) as caught:  # noqa: PT011 (compared below)
            exec(code, module.__dict__)
        got, shown = (" ".join(said.split()) for said in (f"{caught.type.__name__}: {caught.value}", fence.said))
        pattern = ".*".join(re.escape(part) for part in shown.split("..."))
        assert re.fullmatch(pattern, got), f"{got!r} was raised by\n{fence.text}"
    return module.__dict__


def prose(text: str) -> str:
    """A page without its fences."""
    return FENCE.sub("", text)


def dangling(page: Path) -> Iterator[str]:
    """Links to nothing, and files named in code style that do not exist."""
    text = prose(page.read_text())
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", text):
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield link
    for name in re.findall(r"`((?:sdeadjoint|tests|theory|examples|docs)/[\w./]+)", text):
        if not (ROOT / name).exists():
            yield name


def anchors(text: str) -> set[str]:
    """The names of headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", prose(text), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def commands(text: str) -> list[list[str]]:
    """Shell commands as lists of words: lines of ``sh`` fences, indented ones, and those in code style."""
    lines = [line for fence in fences(text) if fence.language == "sh" for line in fence.text.splitlines()]
    known = r"(?:sdeadjoint|make|python|pip) "
    lines += re.findall(rf"^    ({known}.*)$", prose(text), flags=re.MULTILINE)
    lines += re.findall(rf"`({known}[^`]*)`", prose(text))
    return [words for line in lines if (words := shlex.split(line, comments=True))]
