"""Docstrings as reStructuredText: what is plain in a terminal is marked up for the site.

Indented formulas and code after a blank line, and tables of bars, become literal blocks; a star before a name, as in
``(batch, *event)``, is a star, and bars are those of a norm.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

STAR = re.compile(r"(?<![\w*`\\])\*(?=[A-Za-z_])(?![^*\n]*\w\*(?!\w))")


def marked_up(lines: Sequence[str]) -> list[str]:
    """The lines of a docstring, for napoleon and docutils."""
    out: list[str] = []
    literal = False
    for n, line in enumerate(lines):
        before = lines[n - 1] if n else ""
        bar = line.startswith("|")
        if literal and line.strip() and not (line.startswith(" ") or bar):
            literal = False
            if out[-1]:
                out.append("")
        if not literal and (bar or (line.startswith("    ") and not before.strip() and _ends_prose(lines[:n]))):
            out += ["::", ""] if not out or not out[-1] else ["", "::", ""]
            literal = True
        out.append(f"    {line}" if literal and bar else line if literal else _starred(line))
    return out


def _ends_prose(lines: Sequence[str]) -> bool:
    """Whether the last paragraph stands at the margin and is neither a heading of arguments nor an item of a list."""
    last = next((line for line in reversed(lines) if line.strip()), "")
    paragraph: list[str] = []
    for line in reversed(lines):
        if line.strip():
            paragraph.append(line)
        elif paragraph:
            break
    first = paragraph[-1] if paragraph else ""
    return not last.startswith(" ") and not re.match(r"(\d+\.|[-*]) |\w+:$", first)


def _starred(line: str) -> str:
    """Stars and bars escaped, but for those in code."""
    parts = re.split(r"(``.*?``|`.*?`)", line)
    return "".join(part if k % 2 else STAR.sub(r"\\*", part).replace("|", r"\|") for k, part in enumerate(parts))


def setup(app: object) -> None:
    def process(app: object, what: str, name: str, value: object, options: object, lines: list[str]) -> None:
        lines[:] = marked_up(lines)

    app.connect("autodoc-process-docstring", process, priority=100)  # type: ignore[attr-defined] # before napoleon
