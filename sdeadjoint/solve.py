"""One call that solves an equation with additive noise and can be differentiated."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import nests
from .adjoints import Adjoint, Checkpoint
from .arguments import check_types, has_values, named
from .compiling import eagerly
from .equation import Equation
from .field import Field
from .ledger import read_at_the_end
from .noise import BrownianPath, Noise
from .noise.packed import PackedNoise
from .progress import progress_bar
from .recursion import AfterStep, Carry, Recursion
from .solvers import Solver

Callback = Callable[[int, float, Any], None]
"""``callback(n, t, x)`` after step n = 1 .. N: the time reached and the detached state there."""

DTYPES = (torch.float64, torch.float32, torch.bfloat16)


@eagerly
def solve(
    drift: Callable[..., Any] | Equation,
    y0: Any,
    *,
    clock: Tensor | Sequence[float] | None = None,
    solver: Solver,
    noise: Any = None,
    noise_clock: Tensor | Sequence[float] | None = None,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    trajectory: bool = False,
    after_step: AfterStep | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    time_dtype: torch.dtype = torch.float64,
) -> Any:
    """Solve ``dy = F(s, y) ds + dB_nu`` from ``y0`` along ``clock``; the result can be differentiated.

        clock = torch.linspace(0, 1, 21)
        y1 = sa.solve(lambda s, y, x: torch.tanh(y) + x, y0, clock=clock, solver=sa.Heun(), cond={"x": x})
        loss(y1).backward()

    ``loss(solve(...)).backward()`` fills the ``.grad`` of y0, of every tensor in ``cond``, of the drift's parameters,
    of ``FixedNoise``'s tensors and of any other leaf the drift reads: exactly, for this discrete solve.

    Args:
        drift: ``drift(s, y, **cond)`` returns a tensor (or nest) like y; a module or any callable. ``s`` is a tensor of
            no dimension on y's device. It must be a function of its arguments, of which y and s are copies that it may
            change in place. What it returns is converted to y's dtype. Or an ``Equation`` of your own, which has its
            clocks and its tensors: then clock, noise_clock, cond and time_dtype are left out.
        y0: the state at ``clock[0]``, float64, float32 or bfloat16: a tensor, or a dict, list or tuple of tensors of
            one dtype (then the drift gets and returns the nest; names count, and not their order).
        clock: N + 1 numbers that strictly rise or fall.
        solver: the method; ``solver.claims`` says its orders and calls per step.
        noise: a ``Noise`` such as ``BrownianPath(seed)``, or for a nest of tensors a nest of them, with None where a
            part has no noise: ``{"x": None, "v": BrownianPath(0)}``. None solves the ODE.
        noise_clock: N + 1 numbers that rise in the direction of the solve: over a step the increment has the variance
            ``nu[n+1] - nu[n]``. For ``dy = F ds + g(s) dW`` it is ``sa.noise_clock(g, clock)``. None, with noise, is
            g = 1.
        cond: keyword arguments of the drift, by name: tensors, nests of them, ``Scheduled``, or anything else.
        adjoint: how gradients are computed; ``Checkpoint()`` stores states, ``Direct()`` every activation.
        trajectory: return all states, stacked, (N + 1, ...), y0 first; gradients flow from each.
        after_step: ``after_step(n, s, y)`` returns the state to go on from after step n = 1 .. N, at clock s: pure and
            differentiable, replayed in the backward pass.
        callback: ``callback(n, s, y)`` after each forward step, y detached; not called during recomputation.
        progress: show a progress bar (needs tqdm).
        time_dtype: the dtype of ``s``. A float32 network that takes s beside y needs ``torch.float32``.

    Returns the state at ``clock[-1]``, like y0; or the trajectory.

    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit, before any call of the drift; ``ValueError``
    for a drift that returns another shape or values that are not finite, with the step.
    Not for noise that depends on the state (multiplicative noise), nor for steps chosen on the way:
    ``sa.adaptive_clock`` chooses a clock first, and the gradient is then exact on it. For a diffusion model take
    ``sa.sample``, which knows its equation.
    """
    if isinstance(drift, Equation):
        _refuse_second(clock=clock, noise_clock=noise_clock, cond=cond)
        equation = drift
    else:
        field = Field.create(drift, y0, clock, cond=cond, noise_clock=noise_clock, time_dtype=time_dtype)
        noise = noise_of(noise, field)
        if noise is None and noise_clock is not None:
            raise ValueError(
                "noise: got None, but noise_clock is given; pass noise=BrownianPath(seed=0), or leave it out"
            )
        equation = field.with_unit_noise() if noise is not None and noise_clock is None else field
    _check_state(y0)
    call = Call(solver, noise, adjoint, trajectory, after_step, callback, progress)
    return call.run(equation, y0, "y0", "solving")


@dataclass(frozen=True)
class Call:
    """Hold what ``solve`` and ``sample`` have in common: everything but the equation and its initial state."""

    solver: Solver
    noise: Noise | None
    adjoint: Adjoint
    trajectory: bool
    after_step: AfterStep | None
    callback: Callback | None
    progress: bool

    def __post_init__(self) -> None:
        check_types(
            ("solver", self.solver, Solver, "a solver such as Heun()"),
            ("adjoint", self.adjoint, Adjoint, "an adjoint such as Checkpoint()"),
        )
        for name, function in (("callback", self.callback), ("after_step", self.after_step)):
            if function is not None and not callable(function):
                raise TypeError(f"{name}: got {named(function)}; pass a function {name}(n, t, x)")
        for name, switch in (("trajectory", self.trajectory), ("progress", self.progress)):
            if not isinstance(switch, bool):
                raise TypeError(f"{name}: got {switch!r}; pass True or False")

    def run(self, equation: Equation, x: Any, name: str, doing: str) -> Any:
        """Solve the equation from the user's initial state, called ``name`` in messages."""
        equation = equation.starting_at(x)
        y = equation.enter(x)
        recursion = Recursion.create(equation, self.solver, self.noise, y, self.after_step)
        _check_gradients_on(recursion, name, "sample" if name == "x_T" else "solve")
        with ExitStack() as stack:
            bar = stack.enter_context(progress_bar(recursion.steps, doing)) if self.progress else None
            checks = stack.enter_context(read_at_the_end())

            def observe(n: int, carry: Carry) -> None:
                if bar is not None:
                    bar.update()
                if self.callback is not None:
                    checks.settle()  # before anybody sees the state
                    shown = equation.leave(n, carry.y.detach())
                    _refuse_state(self.callback(n, equation.times[n], shown), shown)

            states = self.adjoint.solve(recursion, y, keep=self.trajectory, observe=observe)
        if not self.trajectory:
            return equation.leave(recursion.steps, states[-1])
        return nests.stacked([x, *(equation.leave(n, y) for n, y in enumerate(states, start=1))])


def _refuse_state(returned: object, shown: Any) -> None:
    """Refuse another state from a callback: pipelines of diffusers go on from what theirs returns, in a dictionary."""
    if returned is None or not isinstance(returned, Tensor | Mapping):
        return
    own = list(nests.tensors(shown))
    for tensor in nests.tensors(returned):
        if all(tensor is not each for each in own) and any(tensor.shape == each.shape for each in own):
            raise TypeError(
                f"callback: returned {named(returned)} with a state, but a callback only looks on; pass the function "
                "as after_step, which returns the state to go on from and is differentiated"
            )


def _refuse_second(**given: object) -> None:
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{name}: the equation has its own; leave it out, or pass a drift, not an Equation")


def _check_gradients_on(recursion: Recursion, start: str, caller: str) -> None:
    """Tensors that were made to require gradients are a request that a disabled gradient mode would drop in silence."""
    if torch.is_grad_enabled():
        return
    tensors = recursion.equation.tensors
    given = dict(tensors) if isinstance(tensors, Mapping) else {"equation": tensors}
    given["noise"] = () if recursion.noise is None else recursion.noise.tensors
    for name, nest in given.items():
        if any(tensor.requires_grad for tensor in nests.tensors(nest)):
            shown = start if name == "start" else name
            raise RuntimeError(
                f"{shown} requires a gradient, but gradients are globally off (torch.no_grad or torch.inference_mode); "
                f"call {caller} outside of it, or pass a detached {shown} to {caller} without gradients"
            )


def _check_state(y0: Any) -> None:
    for tensor in nests.tensors(y0):
        if tensor.is_complex():
            raise TypeError(f"y0: got dtype {tensor.dtype}, but states are real; pass (y0.real, y0.imag), a nest")
        if tensor.layout != torch.strided:
            raise TypeError(f"y0: got layout {tensor.layout}; pass a dense tensor, such as y0.to_dense()")
        if tensor.dtype not in DTYPES:
            raise TypeError(f"y0: got dtype {tensor.dtype}; pass float64, float32 or bfloat16")
        if tensor.numel() == 0:
            raise ValueError(f"y0: got a tensor of shape {tuple(tensor.shape)}; pass at least one number")
        if not has_values(tensor):
            raise ValueError("y0: it is on meta, where tensors have no values; pass it on the drift's device")
        if not torch.isfinite(tensor).all():
            raise ValueError("y0: it holds NaN or infinite values; pass a finite state")


def noise_of(noise: Any, equation: Field) -> Noise | None:
    """The noise of the packed state."""
    if noise is None or (isinstance(noise, Noise) and equation.packing.is_trivial):
        return noise
    if not isinstance(noise, Noise):
        packed = PackedNoise.of(noise, equation.packing)
        return packed if any(part is not None for part in packed.parts) else None
    if noise.tensors:
        raise ValueError(
            f"noise: y0 is a nest of tensors, and {named(noise)} is made of tensors itself; pass a nest like y0, "
            f"with a {named(noise)}, another noise or None in the place of each tensor"
        )
    if equation.packing.batch is None and isinstance(noise, BrownianPath) and not isinstance(noise.seed, int):
        raise ValueError(
            f"noise: seed lists {len(noise.seed)} paths, one per sample, but the tensors of y0 have no first dimension "
            f"in common: {equation.packing.outline}; pass one integer, or a nest like y0"
        )
    return noise
