"""The pages of the reference: every public name, from its docstring, on the page of its subject."""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType

import sdeadjoint
import sdeadjoint.testing

# Title and first words, by page; and the modules, longest first, whose names stand there.
PAGES = {
    "sampling": ("Sampling and solving", "The entry points: a sample, a solution, a latent, a check of a gradient."),
    "models": ("Networks, schedules, grids", "What a network is, what its time means, and where it is called."),
    "samplers": ("Samplers", "Samplers that have names: a frame, a solver and a customary grid."),
    "solvers": ("Solvers", "Methods for one step of a differential equation."),
    "noise": ("Noise", "The noise of an SDE, replayed or given."),
    "gradients": ("Gradients", "How a solve is differentiated."),
    "adapters": ("Adapters", "Models of other libraries."),
    "probability": ("Probabilities", "Of a sampler's steps, of its paths, and of samples."),
    "control": ("Tuning by a reward", "Adjoint matching, and what it needs of a sampler."),
    "problems": ("Problems", "Distributions whose denoiser is known exactly."),
    "equilibria": ("Equilibria", "Fixed points and their gradients."),
    "accuracy": ("Accuracy", "How far a gradient is from that of the equation, and grids on which it is nearer."),
    "convergence": ("Convergence", "Orders, measured on nested grids over the same paths."),
    "comparison": ("Comparison", "The gradient methods side by side."),
    "testing": ("Testing", "Contracts that objects of your own are held to."),
    "others": ("Others", "What belongs to none of the other pages."),
}
SUBJECTS = {
    "diffusion": "models",
    "conditioning": "models",
    "solvers": "solvers",
    "noise": "noise",
    "field": "noise",
    "adjoints": "gradients",
    "probability": "probability",
    "control": "control",
    "sample": "sampling",
    "solve": "sampling",
    "encode": "sampling",
    "clocks": "sampling",
    "gradient_check": "sampling",
    "accuracy": "accuracy",
    "equation": "sampling",
}
MODULES = (
    sdeadjoint.samplers,
    sdeadjoint.adapters,
    sdeadjoint.probability,
    sdeadjoint.problems,
    sdeadjoint.equilibria,
    sdeadjoint.convergence,
    sdeadjoint.comparison,
    sdeadjoint.testing,
)


def names() -> dict[str, list[tuple[str, str]]]:
    """``(module, name)`` by page, in the order of the exports; what the package itself exports stands there alone."""
    exported = [getattr(sdeadjoint, name) for name in sdeadjoint.__all__]
    found: dict[str, list[tuple[str, str]]] = {page: [] for page in PAGES}
    for name in sdeadjoint.__all__:
        value = getattr(sdeadjoint, name)
        if not isinstance(value, ModuleType):
            subject = value.__module__.removeprefix("sdeadjoint.").partition(".")[0]
            found[SUBJECTS.get(subject, "others")].append(("sdeadjoint", name))
    for module in MODULES:
        page = module.__name__.rpartition(".")[2]
        own = [name for name in public(module) if not any(getattr(module, name) is value for value in exported)]
        found[page] += [(module.__name__, name) for name in own]
    return found


def public(module: ModuleType) -> list[str]:
    """What a module exports; of one that does not say, its own functions and classes."""
    own = [
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isfunction(value) or inspect.isclass(value))
        and value.__module__ == module.__name__
    ]
    return list(getattr(module, "__all__", own))


def pages() -> list[str]:
    """The names of the pages that are not empty."""
    return [page for page, listed in names().items() if listed]


def page(title: str, first: str, listed: list[tuple[str, str]]) -> str:
    """A page in reStructuredText."""
    parts = [title, "=" * len(title), "", first, ""]
    for module, name in listed:
        value = getattr(__import__(module, fromlist=[name]), name)
        kind = "class" if inspect.isclass(value) else "function" if callable(value) else "module"
        kind = "exception" if inspect.isclass(value) and issubclass(value, BaseException) else kind
        if kind == "module":
            parts += [f".. automodule:: {module}.{name}", "   :members:", ""]
        else:
            parts += [f".. currentmodule:: {module}", "", f".. auto{kind}:: {name}", ""]
    return "\n".join(parts)


def write(folder: Path) -> None:
    """Write the pages, and take away those of another time."""
    folder.mkdir(exist_ok=True)
    wanted = {folder / f"{name}.rst": page(*PAGES[name], names()[name]) for name in pages()}
    for old in set(folder.glob("*.rst")) - set(wanted):
        old.unlink()
    for path, text in wanted.items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
