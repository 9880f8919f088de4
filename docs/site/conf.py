"""Sphinx builds the site from the repository's own Markdown and docstrings: ``make docs``.

The source directory is the repository, so that the links between guide, theory and examples are those of GitHub. The
pages of the reference are written anew at each build, into docs/reference, from what the package exports.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "README.md"
sys.path[:0] = [str(ROOT), str(Path(__file__).parent)]

import docstrings  # noqa: E402
import mathml  # noqa: E402
import reference  # noqa: E402

import sdeadjoint  # noqa: E402

project, author, release = "sdeadjoint", "The sdeadjoint developers", sdeadjoint.__version__
copyright = author
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

root_doc = "README"
PROJECT = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
include_patterns = [*PROJECT, "docs/*.md", "docs/notebooks/*", "docs/reference/*", "theory/*.md"]
exclude_patterns = [".*", "build", "demo-out", "dist", "site", "sdeadjoint", "tests", "examples"]
source_suffix = {".md": "myst-nb", ".ipynb": "myst-nb", ".rst": "restructuredtext"}
nb_execution_mode = "force"
nb_execution_raise_on_error = True
nb_execution_timeout = 600
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True}
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88

html_math_renderer = "mathml"
html_theme = "furo"
html_title = f"sdeadjoint {release}"
html_extra_path = ["extra"]
html_copy_source = False

CONTENTS = """
```{{toctree}}
:hidden:
:caption: Guide

{guide}
```

```{{toctree}}
:hidden:
:caption: Notebooks

{notebooks}
```

```{{toctree}}
:hidden:
:caption: Reference

{reference}
```

```{{toctree}}
:hidden:
:caption: Theory

{theory}
```

```{{toctree}}
:hidden:
:caption: Project

CHANGELOG
CONTRIBUTING
```
"""


def add_contents(app: object, name: str, source: list[str]) -> None:
    """The navigation is no part of the README that GitHub shows; neither is a comment that the tests run."""
    if name == "README":
        listed = re.findall(r"^\| \[.*?\]\((\w+)\.md\)", GUIDE.read_text(), re.MULTILINE)
        notebooks = re.findall(r"^\| \[.*?\]\(notebooks/(\w+)\.ipynb\)", GUIDE.read_text(), re.MULTILINE)
        theory = sorted(page.stem for page in (ROOT / "theory").glob("*.md") if page.stem != "README")
        source[0] = re.sub(r"<!--.*?-->", "", source[0], flags=re.DOTALL) + CONTENTS.format(
            guide="\n".join(f"docs/{page}" for page in ("README", *listed)),
            notebooks="\n".join(f"docs/notebooks/{page}" for page in notebooks),
            reference="\n".join(f"docs/reference/{page}" for page in reference.pages()),
            theory="\n".join(f"theory/{page}" for page in ("README", *theory)),
        )


def setup(app: object) -> None:
    reference.write(ROOT / "docs" / "reference")
    app.connect("source-read", add_contents)  # type: ignore[attr-defined]
    docstrings.setup(app)
    mathml.setup(app)
