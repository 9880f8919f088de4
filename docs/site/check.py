"""Look through the built site, ``python docs/site/check.py site``: broken links and raw formulas are errors."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote


class Page(HTMLParser):
    """What a page links to, what can be linked to on it, and its text outside of code."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.text: list[str] = []
        self._code = 0
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.links += [link for name in ("href", "src") if (link := found.get(name))]
        self.anchors |= {anchor for name in ("id", "name") if (anchor := found.get(name))}
        self._code += tag in ("pre", "code", "script", "style")

    def handle_endtag(self, tag: str) -> None:
        self._code -= tag in ("pre", "code", "script", "style")

    def handle_data(self, data: str) -> None:
        if not self._code:
            self.text.append(data)


def faults(site: Path) -> Iterator[str]:
    """One sentence for each link that leads nowhere and each formula that was left as it was written."""
    pages = {path.resolve(): Page(path) for path in sorted(site.rglob("*.html"))}
    for path, page in pages.items():
        name = path.relative_to(site.resolve())
        for link in page.links:
            if re.match(r"[a-z]+:|//", link):
                continue
            to, _, anchor = link.partition("#")
            target = (path.parent / unquote(to.partition("?")[0])).resolve() if to else path
            if not target.exists():
                yield f"{name}: {link} leads nowhere"
            elif anchor and target in pages and unquote(anchor) not in pages[target].anchors:
                yield f"{name}: {link} has no such place"
        for formula in re.findall(r"\$\$?[^$\n]*\\\w+|\\(?:frac|alpha|sigma|partial)\b", "".join(page.text)):
            yield f"{name}: {formula} is not rendered"


if __name__ == "__main__":
    told = list(faults(Path(sys.argv[1])))
    print("\n".join(told) or "No broken link, no formula left over.")
    sys.exit(bool(told))
