"""``check_schedule``: is this a noise schedule?"""

from __future__ import annotations

import copy
import math
import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from ..arguments import named
from ..diffusion.schedules import Schedule
from .contract import Case, Item, Itself, Subject, hold, require
from .strategies import times

EPS = torch.finfo(torch.float64).eps
JUMP = 1e-7
"""What both logarithms may change by, together, at one time."""


@dataclass(frozen=True)
class Times(Case):
    """Some times of the domain."""

    t: tuple[float, ...]

    @property
    def tensor(self) -> Tensor:
        return torch.tensor(self.t, dtype=torch.float64, device="cpu")

    def code(self, name: str) -> str:
        lines = ["import torch", f"t = torch.tensor({list(self.t)}, dtype=torch.float64)"]
        lines.append(f"print({name}.log_alpha(t), {name}.log_sigma(t), {name}.lam(t), {name}.time({name}.lam(t)))")
        return "\n".join(lines)


def _functions(schedule: Schedule) -> dict[str, Callable[[Any], Tensor]]:
    return {name: getattr(schedule, name) for name in ("log_alpha", "log_sigma", "alpha", "sigma", "lam")}


def _check_domain(schedule: Schedule, case: Itself) -> None:
    low, high = schedule.domain
    require(isinstance(low, float) and isinstance(high, float), f"domain is {(low, high)!r}; it is a pair of floats")
    require(-math.inf < low < high, f"domain is {(low, high)}; it is (low, high) with low < high, low finite")
    t_min, t_max = schedule.t_min, schedule.t_max
    ordered = low <= t_min < t_max <= high and math.isfinite(t_max)
    require(ordered, f"t_min, t_max are {t_min}, {t_max}; they are finite, ordered and inside of {(low, high)}")
    for name, t in (("t_min", t_min), ("t_max", t_max)):
        lam = float(schedule.lam(t))
        require(math.isfinite(lam), f"lam({name}) is {lam}; it is finite at the default ends of a sampling run")


def _check_types(schedule: Schedule, case: Times) -> None:
    values = case.tensor
    arguments: list[Any] = [case.t[0], values, values.reshape(1, -1, 1), values[0]]
    for name, function in {**_functions(schedule), "time": lambda t: schedule.time(schedule.lam(t))}.items():
        for argument in arguments:
            out = function(argument)
            shape = argument.shape if isinstance(argument, Tensor) else torch.Size(())
            if isinstance(out, Tensor) and (out.dtype, out.shape) == (torch.float64, shape):
                continue
            call = f"{name}({argument!r})"
            require(isinstance(out, Tensor), f"{call} is {type(out).__name__}; it is a tensor")
            require(out.dtype == torch.float64, f"{call} is {out.dtype}; it is float64")
            require(False, f"{call} has shape {tuple(out.shape)}; it has {tuple(shape)}")
    kept = case.tensor
    require(torch.equal(kept, values), f"t was changed in place from {kept.tolist()} to {values.tolist()}")


def _check_numbers(schedule: Schedule, case: Times) -> None:
    log_alpha, log_sigma, lam = (f(case.tensor) for f in (schedule.log_alpha, schedule.log_sigma, schedule.lam))
    for name, value in (("log_alpha", log_alpha), ("log_sigma", log_sigma), ("lam", lam)):
        require(not value.isnan().any(), f"{name}({list(case.t)}) is {value.tolist()}, which is not a number")
    for name, value, log in (
        ("alpha", schedule.alpha(case.tensor), log_alpha),
        ("sigma", schedule.sigma(case.tensor), log_sigma),
    ):
        off = float((value - log.exp()).abs().max())
        require(
            off <= 1e-12 * float(log.exp().max()),
            f"{name}(t) is {value.tolist()}, and exp(log_{name}(t)) is {log.exp().tolist()}",
        )
    want = log_alpha - log_sigma
    bound = 8 * EPS * (log_alpha.abs() + log_sigma.abs()).clamp(min=1)
    wrong = ~(((lam - want).abs() <= bound) | (lam == want))
    require(not wrong.any(), f"lam(t) is {lam.tolist()}, and log_alpha(t) - log_sigma(t) is {want.tolist()}")


def _check_monotone(schedule: Schedule, case: Times) -> None:
    low, high = schedule.domain
    width = min(high, 10 * schedule.t_max) - low
    t0, t1 = sorted(case.t)
    if t1 - t0 <= 1e-6 * width:
        return
    for name, sign in (("lam", -1), ("log_sigma", 1)):
        function = _functions(schedule)[name]
        a, b = float(function(t0)), float(function(t1))
        says = "increases" if sign < 0 else "decreases"
        fine = sign * (b - a) > 0 if sign < 0 else b >= a
        require(fine, f"{name} {says} with t: {name}({t0}) = {a}, {name}({t1}) = {b}")


def _check_inverse(schedule: Schedule, case: Times) -> None:
    low, high = schedule.domain
    for t in case.t:
        lam = schedule.lam(t)
        back = schedule.time(lam)
        if not math.isfinite(float(lam)):
            require(float(back) == t, f"time({float(lam)}) is {float(back)}; it is the end of the domain, {t}")
            continue
        # What one ulp of t is worth in lam: near alpha = 0 that is much.
        near = [float(schedule.lam(min(max(math.nextafter(t, end), low), high))) for end in (low, high)]
        bound = 1e-9 * max(1.0, abs(float(lam))) + 8 * abs(near[1] - near[0])
        error = abs(float(schedule.lam(back)) - float(lam))
        require(
            not error > bound,
            f"time(lam(t)) is {float(back)} for t = {t}: lam is {float(schedule.lam(back))} there, {float(lam)} at t",
        )


def _check_ends(schedule: Schedule, case: Itself) -> None:
    low, high = schedule.domain
    for t, log, name in ((low, schedule.log_sigma, "sigma"), (high, schedule.log_alpha, "alpha")):
        if math.isinf(t):
            continue
        lam, value = float(schedule.lam(t)), float(log(t))
        require(not math.isnan(lam), f"lam({t}) is NaN at the end of the domain; it is finite or the limit, +-inf")
        if math.isinf(lam):
            want = math.inf if name == "sigma" else -math.inf
            require(lam == want, f"lam({t}) is {lam}; at that end of the domain it may be {want}")
            require(value == -math.inf, f"lam({t}) is {lam}, and log_{name}({t}) is {value}; it is -inf: {name} = 0")
            back = float(schedule.time(lam))
            require(back == t, f"time({lam}) is {back}; it is the end of the domain, {t}")
        else:
            back = float(schedule.time(lam))
            require(back == t, f"time(lam({t})) is {back}; at the ends of the domain it is exact")
    beyond = [low - 0.1 * (1 + abs(low)), math.nan] + ([] if math.isinf(high) else [high + 0.1 * (1 + abs(high))])
    for t in beyond:
        try:
            out = float(schedule.lam(t))
        except ValueError:
            continue
        require(False, f"lam({t}) is {out}, outside of the domain {(low, high)}; it is a ValueError")


def _check_continuous(schedule: Schedule, case: Times) -> None:
    """In the cells of a fine grid that stand out among their neighbours, a jump is what is left of halving the cell."""
    t0, t1 = sorted(min(max(t, schedule.t_min), schedule.t_max) for t in case.t)
    grid = torch.linspace(t0, t1, 4097, dtype=torch.float64, device="cpu")
    changes = _changes(schedule, grid)
    beside = torch.maximum(changes.roll(1), changes.roll(-1))
    for k in (changes - beside).topk(3).indices.tolist():
        low, high = float(grid[k]), float(grid[k + 1])
        for _ in range(60):
            thirds = torch.tensor([low, (low + high) / 2, high], dtype=torch.float64, device="cpu")
            left, right = _changes(schedule, thirds).tolist()
            if left + right <= JUMP:  # of monotone functions no change inside is larger
                break
            low, high = (low, float(thirds[1])) if left >= right else (float(thirds[1]), high)
        jump = max(left, right)
        require(jump <= JUMP, f"log_alpha and log_sigma together jump by {jump:.3g} at t = {low}")


def _changes(schedule: Schedule, t: Tensor) -> Tensor:
    """What both logarithms change by from each time to the next."""
    return schedule.log_alpha(t).diff().abs() + schedule.log_sigma(t).diff().abs()


def _check_pure(schedule: Schedule, case: Times) -> None:
    for name, function in {**_functions(schedule), "time": lambda t: schedule.time(schedule.lam(t))}.items():
        one, two = function(case.tensor), function(case.tensor)
        require(torch.equal(one, two), f"{name} of the same times is {one.tolist()}, then {two.tolist()}")
        each = torch.stack([function(t) for t in case.t])
        off = torch.where(one == each, torch.zeros_like(one), (one - each).abs() / one.abs().clamp(min=1))
        # Vectorised and scalar kernels differ by an ulp or two.
        if name != "time":
            require(bool((off <= 64 * EPS).all()), f"{name} of all times is {one.tolist()}, of each {each.tolist()}")


def _check_value(schedule: Schedule, case: Itself) -> None:
    require(isinstance(hash(schedule), int), "hash(schedule) is not an integer")
    require(copy.deepcopy(schedule) == schedule, "a deep copy is not equal to the schedule")
    text = repr(schedule)
    require(" object at 0x" not in text, f"repr is {text}; it is the call that makes the schedule")
    names = {**vars(sys.modules["sdeadjoint"]), **vars(sys.modules[type(schedule).__module__])}
    if type(schedule).__name__ in names:
        made = eval(text, names)
        require(made == schedule, f"repr is {text}, which evaluates to something else: {made!r}")


def check_schedule(schedule: Schedule, *, only: str | None = None, skip: Collection[str] = ()) -> None:
    """Hold a schedule against the contract of ``Schedule``; None, or ``ContractError`` with a smallest counterexample.

    Items: ``"domain"`` (and the default ends), ``"numbers"`` (``lam = log_alpha - log_sigma``, no NaN), ``"types"``
    (float64 in and out, shapes, Python numbers), ``"monotone"``, ``"continuous"``, ``"inverse"`` (``time(lam(t)) = t``
    to 1e-9 in lam, or what an ulp of t is worth), ``"ends"`` (exact limits, ``ValueError`` beyond), ``"pure"``, and
    ``"value"`` (repr, equality, hash, copies). Times are crowded towards both ends of the domain, to 1e-12 of it.

    Args:
        schedule: an object.
        only: check this item alone.
        skip: items left out.

    Errors: ``TypeError`` for something that is not a ``Schedule``, ``ValueError`` for unknown items.
    """
    if not isinstance(schedule, Schedule):
        got = named(schedule)
        raise TypeError(f"schedule: got {got}; pass an object of a subclass of sdeadjoint.Schedule, such as VPLinear()")
    subject = Subject("check_schedule", "schedule", schedule)
    itself = st.just(Itself("print({0}, {0}.domain, {0}.t_min, {0}.t_max)"))
    first = Item("domain", "the domain and the default ends are sane", itself, _check_domain)
    hold(subject, (first,), None, ())  # times are drawn from it
    inner, all_times = (
        st.lists(times(schedule, ends=ends), min_size=2, max_size=2).map(lambda t: Times(tuple(t)))
        for ends in (False, True)
    )
    items = (
        first,
        Item("numbers", "lam = log_alpha - log_sigma, and nothing is NaN", all_times, _check_numbers, 40),
        Item("types", "float64 in and out, elementwise, for tensors of any shape and numbers", all_times, _check_types),
        Item("monotone", "lam decreases strictly with t, and sigma does not decrease", all_times, _check_monotone, 40),
        Item("continuous", "log_alpha and log_sigma are continuous", inner, _check_continuous, 10),
        Item("inverse", "time is the inverse of lam", all_times, _check_inverse, 40),
        Item("ends", "limits are exact at the ends of the domain, and beyond is a ValueError", itself, _check_ends),
        Item("pure", "the same times give the same bits, alone or together", all_times, _check_pure),
        Item("value", "it is a value: hash, equality, copies and a repr that makes it", itself, _check_value),
    )
    hold(subject, items, only, skip)
