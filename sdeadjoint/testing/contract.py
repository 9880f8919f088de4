"""The runner of the contract checks: search for a case that breaks a promise, shrink it, and say it plainly."""

from __future__ import annotations

import re
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from textwrap import indent
from typing import Any, NamedTuple

import torch
from hypothesis import HealthCheck, Phase, Verbosity, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky, HypothesisException
from torch import Tensor


class ContractError(AssertionError):
    """An object breaks its contract: which item, the smallest counterexample, and the call that reproduces it."""


class ViolationError(Exception):
    """What the check of one case raises: what was got and what was due."""


class Case(ABC):
    """One input of a check. A frozen dataclass, so that its ``repr`` is code."""

    @abstractmethod
    def code(self, name: str) -> str:
        """Python that shows this case by hand; the checked object is the variable ``name``."""


@dataclass(frozen=True)
class Itself(Case):
    """No input but the object."""

    asks: str

    def code(self, name: str) -> str:
        return self.asks.format(name)


@dataclass(frozen=True)
class Item:
    """One item of a contract.

    Args:
        name: what ``only`` and ``skip`` call it.
        promise: the contract's sentence.
        cases: where counterexamples are looked for; they shrink to the simplest.
        check: ``check(subject, case)``, which raises ``ViolationError`` where the promise is broken.
        examples: cases tried at most.
    """

    name: str
    promise: str
    cases: st.SearchStrategy[Any]
    check: Callable[[Any, Any], None]
    examples: int = 20

    @cached_property
    def drawn(self) -> tuple[Any, ...]:
        """The cases of every search, equal ones once."""
        found: list[Any] = []
        _run(self, found.append, (Phase.generate,))
        try:
            return tuple(dict.fromkeys(found))
        except TypeError:  # one holds something that has no hash
            return tuple(found)


class Subject(NamedTuple):
    """The object that is checked: the function's name, its argument's name, and options to repeat."""

    function: str
    name: str
    value: Any
    options: str = ""

    @property
    def text(self) -> str:
        """The object as code where its ``repr`` is a call, its variable's name elsewhere."""
        text = repr(self.value)
        return text if re.fullmatch(r"\w+\(.*\)", text, re.DOTALL) and " at 0x" not in text else self.name

    def call(self, item: Item) -> str:
        return f'{self.function}({self.name}, only="{item.name}"{self.options})'

    def setup(self) -> str:
        given = self.text if self.text != self.name else "...  # the object that was checked"
        return f"{self.name} = {given}"


class _Failure(NamedTuple):
    case: Case
    error: Exception

    @property
    def text(self) -> str:
        if isinstance(self.error, ViolationError):
            return str(self.error)
        return f"it raised {type(self.error).__name__}: {self.error}{_place(self.error)}"

    def verdict(self, item: Item) -> str:
        """What is wrong: a promise is broken, or an error left the item unchecked."""
        if isinstance(self.error, ViolationError):
            return f'item "{item.name}" is broken: {item.promise}'
        return f'an error came while item "{item.name}" was checked'


def _place(error: Exception) -> str:
    """The last line of a traceback outside of this folder and of installed packages."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.parent != Path(__file__).parent and not {"site-packages", "dist-packages"} & set(path.parts):
            return f"\n  {frame.filename}:{frame.lineno}, in {frame.name}\n    {frame.line}"
    return ""


def hold(subject: Subject, items: Sequence[Item], only: str | None, skip: Collection[str]) -> None:
    """Check the items one by one; ``ContractError`` for the first that is broken."""
    names = [item.name for item in items]
    for name in [*([] if only is None else [only]), *skip]:
        if name not in names:
            raise ValueError(f"only, skip: got {name!r}; pass names from {', '.join(map(repr, names))}")
    for item in items:
        if item.name not in skip and only in (None, item.name):
            failure, repeats = _search(item, subject.value)
            if failure is not None:
                cause = None if isinstance(failure.error, ViolationError) else failure.error
                raise ContractError(_message(subject, item, failure, repeats)) from cause


def broken_at(item: Item, value: Any) -> tuple[Any, Exception] | None:
    """The first of the item's cases that fails, and its error; not the smallest."""
    for case in item.drawn:
        try:
            item.check(value, case)
        except Exception as error:
            return case, error
    return None


def _search(item: Item, value: Any) -> tuple[_Failure | None, bool]:
    """The smallest failing case found, if any, and whether it fails every time.

    The cases are tried as they are; hypothesis runs the same ones again where one fails, and shrinks it unless its
    profile in use has no ``Phase.shrink``.
    """
    first = broken_at(item, value)
    if first is None:
        return None, True
    found = [_Failure(*first)]
    if Phase.shrink not in settings().phases:
        return found[0], broken_at(replace(item, cases=st.just(first[0]), examples=1), value) is not None

    def tried(case: Case) -> None:
        try:
            item.check(value, case)
        except HypothesisException:
            raise
        except Exception as error:
            found[:] = [_Failure(case, error)]  # the last one that is replayed is the smallest
            raise

    try:
        _run(item, tried, (Phase.generate, Phase.shrink))
    except Flaky:
        return found[-1], False
    except Exception as error:
        if error is not found[-1].error:
            raise
        return found[-1], True
    return found[-1], False


def _run(item: Item, body: Callable[[Any], None], phases: Collection[Phase]) -> None:
    """The body on the cases that hypothesis draws, the same ones every time."""

    def tried(case: Any) -> None:
        body(case)

    quiet = settings(
        max_examples=item.examples,
        database=None,
        deadline=None,
        derandomize=True,
        phases=phases,
        report_multiple_bugs=False,
        print_blob=False,
        verbosity=Verbosity.quiet,
        suppress_health_check=list(HealthCheck),
    )
    quiet(given(item.cases)(tried))()


def _message(subject: Subject, item: Item, failure: _Failure, repeats: bool) -> str:
    lines = [f"{subject.function}({subject.text}): {failure.verdict(item)}", ""]
    lines.append(indent(failure.text, "  "))
    if not repeats:
        lines.append(
            "  The same case passed when it was repeated: something is kept between calls, on the object or elsewhere."
        )
    code = "\n".join(
        [
            f"from sdeadjoint.testing import {subject.function}",
            subject.setup(),
            subject.call(item),
            "# or by hand:",
            failure.case.code(subject.name),
        ]
    )
    if not isinstance(failure.case, Itself):
        lines += ["", f"  smallest counterexample: {failure.case!r}"]
    lines += ["  to reproduce:", indent(code, "    ")]
    return "\n".join(lines)


def numbers(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normals of three decimals, the same for the same arguments."""
    generator = torch.Generator(device="cpu").manual_seed(seed)
    drawn = torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu")
    return drawn.round(decimals=3).to(dtype)


def literal(value: Any) -> str:
    """A tensor, a nest of tuples of them, or a number, as code."""
    if isinstance(value, Tensor):
        text = f"torch.tensor({value.tolist()}, dtype={value.dtype})"
        return text if value.is_contiguous() else f"torch.stack([{text}] * 2, -1)[..., 0]"
    if isinstance(value, tuple):
        return f"({', '.join(map(literal, value))}{',' if len(value) == 1 else ''})"
    return repr(value)


def require(condition: bool, sentence: str) -> None:
    """``ViolationError(sentence)`` unless the condition holds. Where tensors are printed, ask first: that is slow."""
    if not condition:
        raise ViolationError(sentence)


def distance(got: Tensor, want: Tensor) -> float:
    """The largest difference of two tensors, in float64; inf where one is not finite and the other differs."""
    if got.shape != want.shape:
        return torch.inf
    gap = (got.detach().double() - want.detach().double()).abs()
    gap = torch.where(torch.isnan(gap), torch.full_like(gap, torch.inf), gap)
    return float(gap.max()) if gap.numel() else 0.0
