"""Two faces in, the latent whose one sample passes for both."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from ...adjoints import Adjoint, Checkpoint, Direct
from ...diffusion.denoiser import Denoiser
from ...diffusion.grids import uniform_logsnr
from ...encode import encode
from ...sample import sample
from ...samplers import ddim
from .eigenfaces import Eigenfaces
from .images import SIDE, faces
from .unet import SCHEDULE

PAIRS = ((42, 79), (63, 38), (52, 50))  # faces a and b, chosen so that half-way is nearer to one of them
STEPS = 15
LAST_LAMBDA = 3.0  # sigma / alpha = 0.05 in the end
RATE = 0.06  # of the first iteration; it falls to a twentieth
FRAME, SOLVER = ddim(SCHEDULE)
GRID = uniform_logsnr(SCHEDULE, STEPS, t_min=float(SCHEDULE.time(LAST_LAMBDA)))
# Relative. An image is encoded where the network is steep, and what float32 leaves of it is still invisible.
ENCODING = 1e-3


@dataclass(frozen=True)
class Likeness:
    """Of images to the faces a and b of their pairs: distances, and whether these two are the nearest of all 100."""

    a: list[float]
    b: list[float]
    nearest: list[bool]

    @classmethod
    def of(cls, x: Tensor, pairs: Tensor, measure: Eigenfaces) -> Likeness:
        distances = 1 - measure.embedding(x) @ measure.embedding(portraits()).T
        a, b = distances.gather(1, pairs).T.tolist()
        found = distances.topk(2, largest=False).indices.sort(1).values
        return cls(a, b, (found == pairs.sort(1).values).all(1).tolist())


@dataclass(frozen=True)
class Morphs:
    """``pairs``: faces a and b; the others are images (n, 1, 24, 24).

    ``a``, ``b`` are the faces, ``middle`` comes of the latent half-way, ``morph`` of the latent found. ``losses``: one
    curve for each pair. ``gradient_error``: relative, against plain autograd, at the latents half-way.
    """

    pairs: list[tuple[int, int]]
    a: Tensor
    b: Tensor
    middle: Tensor
    morph: Tensor
    before: Likeness
    after: Likeness
    losses: list[list[float]]
    gradient_error: float
    encoding_error: float

    def as_json(self) -> dict[str, Any]:
        names = ("pairs", "losses", "gradient_error", "encoding_error")
        return {
            **{name: getattr(self, name) for name in names},
            "before": asdict(self.before),
            "after": asdict(self.after),
        }


@dataclass(frozen=True)
class _Task:
    denoiser: Denoiser
    measure: Eigenfaces
    a: Tensor
    b: Tensor

    def generate(self, x_T: Tensor, adjoint: Adjoint = Checkpoint()) -> Tensor:  # noqa: B008 (frozen)
        return sample(self.denoiser, x_T, frame=FRAME, grid=GRID, solver=SOLVER, adjoint=adjoint)

    def losses(self, x: Tensor) -> Tensor:
        """The larger of the distances to a and b, (n,)."""
        return torch.maximum(self.measure.distance(x, self.a), self.measure.distance(x, self.b))


def morphs(denoiser: Denoiser, measure: Eigenfaces, pairs: int, iterations: int) -> Morphs:
    """Encode a and b, meet half-way on the arc, and descend from there on the larger of the distances to a and b.

    Everything in float32. Source: Blasingame and Liu (2024), whose loss ``d_a + d_b + |d_a - d_b|`` is twice ours.
    """
    chosen = PAIRS[:pairs]
    index = torch.tensor(chosen)
    a, b = (portraits()[index[:, side]] for side in (0, 1))
    task = _Task(denoiser, measure, a, b)
    both = torch.cat([a, b])
    latents = encode(denoiser, both, frame=FRAME, grid=GRID, solver=SOLVER, tol=ENCODING).x_T
    with torch.no_grad():
        off = task.generate(latents) - both
    x_T = slerp(*latents.chunk(2))
    middle, morph, losses = _descend(task, x_T, iterations)
    return Morphs(
        list(chosen),
        a,
        b,
        middle,
        morph,
        Likeness.of(middle, index, measure),
        Likeness.of(morph, index, measure),
        losses,
        _gradient_error(task, x_T),
        float(off.square().mean().sqrt()),
    )


def portraits() -> Tensor:
    """Each of the 100 faces once, float32 (100, 1, 24, 24)."""
    return faces()[..., :SIDE, :SIDE].float()


def slerp(a: Tensor, b: Tensor) -> Tensor:
    """Half-way on the arc from a to b: ``sin(w/2) (a + b) / sin(w)``, w their angle."""
    half = torch.nn.functional.cosine_similarity(a.flatten(1), b.flatten(1)).acos() / 2
    return (a + b) / (2 * half.cos().reshape(-1, 1, 1, 1))


def _descend(task: _Task, x_T: Tensor, iterations: int) -> tuple[Tensor, Tensor, list[list[float]]]:
    """Adam on ``x_T``, which keeps its length. The first images, those of least loss, and the curves."""
    x_T = x_T.clone().requires_grad_()
    radius = _norm(x_T.detach())
    optimizer = torch.optim.Adam([x_T], lr=RATE, betas=(0.3, 0.99))
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.05, max(1, iterations))
    curves: list[list[float]] = []
    first = best = least = torch.empty(())
    for i in range(iterations + 1):
        x = task.generate(x_T)
        losses, now = task.losses(x), x.detach()
        if i == 0:
            first, best, least = now, now, losses.detach()
        best = torch.where((losses < least)[:, None, None, None], now, best)
        least = torch.minimum(losses.detach(), least)
        curves.append(losses.tolist())
        if i == iterations:
            break
        (x_T.grad,) = torch.autograd.grad(losses.sum(), [x_T])
        optimizer.step()
        decay.step()
        with torch.no_grad():
            x_T *= radius / _norm(x_T)
    return first, best, [list(curve) for curve in zip(*curves, strict=True)]


def _gradient_error(task: _Task, x_T: Tensor) -> float:
    found, exact = (
        torch.autograd.grad(task.losses(task.generate(leaf, adjoint)).sum(), [leaf])[0]
        for adjoint in (Checkpoint(), Direct())
        for leaf in [x_T.clone().requires_grad_()]
    )
    return float((found - exact).norm() / exact.norm())


def _norm(x: Tensor) -> Tensor:
    return x.flatten(1).norm(dim=1)[:, None, None, None]
