"""One call that samples and can be differentiated, as a function and as a module."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from . import nests
from .adjoints import Adjoint, Checkpoint
from .arguments import check_state, check_types
from .compiling import eagerly
from .diffusion.denoiser import Denoiser
from .diffusion.equation import Diffusion
from .diffusion.frames import Frame
from .diffusion.timewatch import watch_time
from .noise import Noise
from .recursion import AfterStep
from .samplers import NamedSampler
from .solve import Call, Callback
from .solvers import Solver


@eagerly
def sample(
    denoiser: Denoiser,
    x_T: Tensor,
    *,
    frame: Frame | None = None,
    grid: Tensor | Sequence[float] | None = None,
    solver: Solver | None = None,
    sampler: NamedSampler | None = None,
    steps: int | None = None,
    noise: Noise | None = None,
    cond: Mapping[str, Any] | None = None,
    adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
    trajectory: bool = False,
    after_step: AfterStep | None = None,
    callback: Callback | None = None,
    progress: bool = False,
) -> Tensor:
    """Solve the reverse diffusion from ``x_T`` along ``grid``; the result can be differentiated.

    In the frame's coordinates ``y = x / w`` this integrates ``dy = F(s, y) ds + dB_nu`` from ``s(grid[0])`` to
    ``s(grid[-1])``. ``loss(sample(...)).backward()`` fills the ``.grad`` of x_T, of every tensor in ``cond``, of the
    parameters, of ``FixedNoise``'s tensors and of any other leaf the network reads; all of them, exactly, for this
    discrete sampler.

    Args:
        denoiser: the network with its schedule and prediction kind.
        x_T: state at ``grid[0]``, (batch, ...), float64, float32 or bfloat16; it sets dtype, device and memory layout.
            Standard normal times ``sigma(grid[0])`` for a sample from pure noise.
        frame: the member of the family (``eta``) and the coordinates (``kind``); over the denoiser's schedule.
        grid: N + 1 strictly decreasing times; a last one with sigma = 0 makes the last step the x_0 projection.
        solver: the method; ``solver.claims`` says its orders and network calls per step.
        sampler: in the place of frame and solver, one that has a name: ``samplers.dpm_solver_pp_2m(schedule)``.
        steps: in the place of a grid, so many steps of the grid that is customary with the sampler.
        noise: for eta > 0, ``BrownianPath(seed)`` or ``FixedNoise(increments)``.
        cond: keyword arguments of the network, by name: tensors, nests of them, or anything else.
        adjoint: how gradients are computed; ``Checkpoint()`` stores states, ``Direct()`` every activation.
        trajectory: return all states, (N + 1, batch, ...), x_T first; gradients flow from each.
        after_step: ``after_step(n, t, x)`` returns the state to go on from after step n = 1 .. N, at time t: inpainting
            masks, projections, known regions. Pure and differentiable; it is replayed, and it acts after a last step to
            sigma = 0, too.
        callback: ``callback(n, t, x)`` after each forward step, x detached; not called during recomputation.
        progress: show a progress bar (needs tqdm).

    Returns ``x`` at ``grid[-1]``, shape, dtype and device of x_T; or the trajectory.

    Errors: ``TypeError`` or ``ValueError`` for arguments that do not fit, before any network call; ``ValueError`` for a
    network that returns a wrong shape or non-finite values, with the step; ``RuntimeError`` when gradients are
    globally off although x_T, cond or the noise requires one.

    Not for adaptive step sizes: the grid is data here, so that the gradient is that of what was computed.
    Source: Blasingame and Liu (2024); Griewank and Walther (2000) for ``Checkpoint(snapshots=...)``.
    """
    frame, solver, grid = _parts(sampler, frame, solver, steps, grid)
    call = Call(solver, noise, adjoint, trajectory, after_step, callback, progress)
    equation = Diffusion.create(denoiser, frame, grid, {} if cond is None else cond)
    check_state("x_T", x_T)
    watch_time(denoiser.network, denoiser.schedule, equation.times[0])
    out: Tensor = call.run(equation, x_T, "x_T", "sampling")
    return out


class Sampler(nn.Module):
    """A whole call of ``sample`` as a module: ``Sampler(denoiser, sampler=..., steps=20)(x_T)``.

    It has the network's parameters, and those among its own tensors (``nn.Parameter``s in ``cond`` or noise). An
    optimiser, ``state_dict``, ``DistributedDataParallel`` and ``fully_shard`` see a network of one forward pass, not of
    one per step: wrap the sampler, not the network inside of it.

    Args:
        denoiser, frame, grid, solver, sampler, steps, cond, noise, adjoint, after_step: as for ``sample``.

    ``forward(x_T, cond=None, noise=None)`` returns the sample. A ``cond`` given there is laid over the sampler's own,
    name by name; a ``noise`` given there replaces it. Errors: those of ``sample``.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        *,
        frame: Frame | None = None,
        grid: Tensor | Sequence[float] | None = None,
        solver: Solver | None = None,
        sampler: NamedSampler | None = None,
        steps: int | None = None,
        cond: Mapping[str, Any] | None = None,
        noise: Noise | None = None,
        adjoint: Adjoint = Checkpoint(),  # noqa: B008 (frozen)
        after_step: AfterStep | None = None,
    ) -> None:
        super().__init__()
        self.frame, self.solver, self.grid = _parts(sampler, frame, solver, steps, grid)
        check_types(("adjoint", adjoint, Adjoint, "an adjoint such as Checkpoint()"))
        Diffusion.create(denoiser, self.frame, self.grid, {} if cond is None else cond)
        self.denoiser = denoiser
        self.cond = {} if cond is None else cond
        self.noise = noise
        self.adjoint = adjoint
        self.after_step = after_step
        given = [*nests.tensors(self.cond), *(noise.tensors.values() if noise is not None else ())]
        # Whoever moves or shards the module's parameters may put others in their places.
        self._given = [tensor for tensor in given if isinstance(tensor, nn.Parameter)]
        self.learned = nn.ParameterList(self._given)

    def forward(self, x_T: Tensor, cond: Mapping[str, Any] | None = None, noise: Noise | None = None) -> Tensor:
        """The sample from ``x_T``."""
        own, own_noise = self._own()
        return sample(
            self.denoiser,
            x_T,
            frame=self.frame,
            grid=self.grid,
            solver=self.solver,
            noise=own_noise if noise is None else noise,
            cond={**own, **(cond or {})},
            adjoint=self.adjoint,
            after_step=self.after_step,
        )

    def _own(self) -> tuple[Mapping[str, Any], Noise | None]:
        """The sampler's own conditioning and noise, with the module's present parameters in their places."""
        pairs = zip(self._given, self.learned, strict=True)
        moved = {id(given): present for given, present in pairs if present is not given}
        if not moved:
            return self.cond, self.noise
        cond, noise = nests.map_tensors(lambda tensor: moved.get(id(tensor), tensor), self.cond), self.noise
        if noise is not None and any(id(tensor) in moved for tensor in noise.tensors.values()):
            noise = noise.on({name: moved.get(id(tensor), tensor) for name, tensor in noise.tensors.items()})
        return cond, noise

    def __repr__(self) -> str:
        return (
            f"Sampler({self.denoiser!r}, frame={self.frame!r}, grid=<{len(self.grid) - 1} steps>, "
            f"solver={self.solver!r}, noise={self.noise!r}, adjoint={self.adjoint!r})"
        )


def _parts(
    sampler: NamedSampler | None,
    frame: Frame | None,
    solver: Solver | None,
    steps: int | None,
    grid: Tensor | Sequence[float] | None,
) -> tuple[Frame, Solver, Tensor | Sequence[float]]:
    """Frame, solver and grid, given one by one or by a sampler that has a name."""
    if sampler is not None:
        check_types(("sampler", sampler, NamedSampler, "one such as samplers.ddim(schedule)"))
        if frame is not None or solver is not None:
            raise ValueError("sampler: it has a frame and a solver; leave these out, or leave the sampler out")
        frame, solver = sampler
    if frame is None or solver is None:
        missing = "frame" if frame is None else "solver"
        raise TypeError(
            f"{missing}: missing; pass frame=Frame(schedule, ...) and solver=Heun(), or sampler=samplers.ddim(schedule)"
        )
    if grid is None and steps is None:
        raise ValueError("grid: got None; pass a grid such as uniform_logsnr(schedule, 20), or steps=20")
    if grid is not None and steps is not None:
        raise ValueError("grid, steps: got both, and the grid has its steps; leave one of them out")
    if grid is None:
        assert steps is not None
        grid = (sampler or NamedSampler(frame, solver)).grid(steps)
    return frame, solver, grid
