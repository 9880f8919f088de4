"""The discrete tables of trained models, made continuous by a monotone interpolation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from ...arguments import is_integer, is_number
from .base import Schedule

_EPS = torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Tabulated(Schedule):
    """A table of ``alpha^2`` (``alphas_cumprod`` of DDPM and diffusers), at the times 0, 1, ..., T-1.

    Clean data, ``alpha = 1`` and ``sigma = 0``, is at time -1, one step before the table, as diffusers has it (unless
    the table itself begins with 1): a grid may end there, and its last step is then the x_0 projection.

    Between the indices the angle ``phi = atan2(sigma, alpha)`` is interpolated by a monotone piecewise cubic
    (Fritsch & Butland 1984, the rule of scipy's ``PchipInterpolator``); ``alpha = cos phi``, ``sigma = sin
    phi``. At the indices the table is reproduced to round-off.

    Smoothness: ``phi``, and with it ``alpha``, ``sigma`` and ``lam``, is C^1 in ``t``; the second derivative
    jumps at every index. A one-step method of order above 2 may lose order on grids that step across indices;
    solvers that work in ``lam`` or a frame's clock see the schedule only through ``t(lam)``, the network's
    own argument.

    ``alphas_cumprod``: 1-D sequence or tensor of any float dtype, strictly decreasing, in [0, 1], with at
    least two entries strictly between; kept as a tuple of floats (so schedules compare and hash). A first
    value 1 (``sigma = 0``) and a last value 0 (zero terminal SNR) are regular points of ``phi``, where
    ``lam`` is infinite. Default ends: ``t_max`` is T-1, or T-2 if ``alpha(T-1) = 0``; ``t_min`` is 0, or 1 if
    ``sigma(0) = 0``: always times the network was trained on.

    ``time`` is exact at the indices. Elsewhere it is as good as ``lam`` allows: an absolute error of about
    ``ulp(lam) / |dlam/dt|``, 1e-13 for the usual tables. Cost: O(log T) per evaluation, up to 28 Newton steps
    for ``time``.
    """

    alphas_cumprod: Sequence[float] | Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "alphas_cumprod", _checked(self.alphas_cumprod))

    @classmethod
    def ddpm(
        cls,
        beta_start: float = 1e-4,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        num_train_timesteps: int = 1000,
    ) -> Tabulated:
        """Make the table of a network trained as DDPM is: ``alpha^2 = prod (1 - beta)``. Its times are timesteps.

            schedule = Tabulated.ddpm()                                         # DDPM's own, and DDPMScheduler()'s
            schedule = Tabulated.ddpm(0.00085, 0.012, "scaled_linear")          # Stable Diffusion

        The network is given t = T - 1 ... 0 on a grid of ``timesteps``, and fractions between them on other grids.

        Args:
            beta_start, beta_end: the first and the last beta, ``0 < beta_start <= beta_end < 1``. The cosine table has
                none and ignores them.
            beta_schedule: the names of diffusers' ``DDPMScheduler``. ``"linear"``: betas at equal distances, Ho et al.
                (2020), section 4. ``"scaled_linear"``: their roots at equal distances, Rombach et al. (2022).
                ``"squaredcos_cap_v2"``: the cosine table, betas of at most 0.999, Nichol and Dhariwal (2021), eq. 17.
            num_train_timesteps: T, the number of timesteps, at least 2.

        The arguments are those of a scheduler's configuration. The table is computed in float64; diffusers' own, in
        float32, differs from it by the rounding of T products. Errors: ``ValueError`` that names the argument.
        """
        return cls(_ddpm_table(beta_start, beta_end, beta_schedule, num_train_timesteps))

    def __repr__(self) -> str:
        table = tuple(self.alphas_cumprod)
        # The call that makes it, for tables that one may want to read; those of trained models are named by their ends.
        if len(table) <= 200:
            return f"Tabulated(alphas_cumprod={table})"
        return f"Tabulated(<{len(table)} values from {table[0]:.6g} to {table[-1]:.6g}>)"

    @property
    def domain(self) -> tuple[float, float]:
        return self._origin, float(len(self.alphas_cumprod) - 1)

    @property
    def t_max(self) -> float:
        last = len(self.alphas_cumprod) - 1
        return float(last if self.alphas_cumprod[-1] > 0 else last - 1)

    @property
    def t_min(self) -> float:
        return 0.0 if self.alphas_cumprod[0] < 1 else 1.0

    @property
    def _origin(self) -> float:
        """The time of clean data."""
        return -1.0 if self.alphas_cumprod[0] < 1 else 0.0

    @cached_property
    def _pieces(self) -> _Pieces:
        table = (1.0, *self.alphas_cumprod) if self._origin else self.alphas_cumprod
        return _interpolate(*_angles(torch.tensor(table, dtype=torch.float64, device="cpu")))

    @cached_property
    def _lam_knots(self) -> Tensor:
        return self._lam(torch.arange(self._origin, len(self.alphas_cumprod), dtype=torch.float64, device="cpu"))

    def _phi_psi(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """``phi`` and its complement ``pi/2 - phi``, each to relative accuracy."""
        k = t.floor().clamp(max=len(self.alphas_cumprod) - 2)
        u, w = t - k, (k + 1) - t
        piece = (k - self._origin).long()
        phi, psi = (_cubic(b.to(t.device)[:, piece], u, w) for b in self._pieces)
        return phi, psi

    def _log_alpha(self, t: Tensor) -> Tensor:
        phi, psi = self._phi_psi(t)
        return torch.where(phi < psi, (-(phi.sin() ** 2)).log1p() / 2, psi.sin().log())

    def _log_sigma(self, t: Tensor) -> Tensor:
        phi, psi = self._phi_psi(t)
        return torch.where(phi < psi, phi.sin().log(), (-(psi.sin() ** 2)).log1p() / 2)

    def _time(self, lam: Tensor) -> Tensor:
        knots = self._lam_knots.to(lam.device)
        piece = (torch.searchsorted(-knots, (-lam).contiguous(), right=True) - 1).clamp(0, len(knots) - 2)
        # Solve for whichever of phi and -psi (both increase with t) is small, to keep its relative accuracy.
        phi, psi = (b.to(lam.device)[:, piece] for b in self._pieces)
        clean = lam >= 0
        target = (-lam.abs()).exp().atan()
        place = piece + _solve(torch.where(clean, phi, -psi), torch.where(clean, target, -target))
        nearest = place.round()
        at_knot = (lam - knots[nearest.long()]).abs() <= 8 * _EPS * lam.abs().clamp(min=1.0)
        return torch.where(at_knot, nearest, place) + self._origin


def _ddpm_table(beta_start: float, beta_end: float, beta_schedule: str, count: int) -> Tensor:
    if not is_integer(count, least=2):
        raise ValueError(f"num_train_timesteps: got {count!r}; pass an integer >= 2, such as 1000")
    if beta_schedule == "squaredcos_cap_v2":
        angles = torch.linspace(0.0, 1.0, count + 1, dtype=torch.float64, device="cpu").add(0.008) / 1.008
        signal = (angles * (math.pi / 2)).cos().square()
        return (signal[1:] / signal[:-1]).clamp(min=1 - 0.999).cumprod(0)
    if beta_schedule not in ("linear", "scaled_linear"):
        raise ValueError(
            f"beta_schedule: got {beta_schedule!r}; pass 'linear', 'scaled_linear' or 'squaredcos_cap_v2', or make "
            "the schedule of the table itself, Tabulated(scheduler.alphas_cumprod)"
        )
    if not (is_number(beta_start) and is_number(beta_end) and 0 < beta_start <= beta_end < 1):
        raise ValueError(
            f"beta_start, beta_end: got {beta_start!r}, {beta_end!r}; pass 0 < beta_start <= beta_end < 1 (betas of "
            "single timesteps, such as 1e-4 and 0.02, not those of a continuous VPLinear)"
        )
    power = 2 if beta_schedule == "scaled_linear" else 1
    ends = beta_start ** (1 / power), beta_end ** (1 / power)
    betas = torch.linspace(*ends, count, dtype=torch.float64, device="cpu") ** power
    return (1 - betas).cumprod(0)


class _Pieces(NamedTuple):
    """Bernstein coefficients (4, T-1) of ``phi`` and of ``psi = pi/2 - phi``.

    All are non-negative, so the sums they enter cancel nothing: ``phi`` is accurate near ``sigma = 0``,
    ``psi`` near ``alpha = 0``, relative to themselves.
    """

    phi: Tensor
    psi: Tensor


def _interpolate(phi: Tensor, psi: Tensor) -> _Pieces:
    rise = _rises(phi, psi)
    slope = torch.empty_like(phi)
    slope[1:-1] = 2 * rise[:-1] * rise[1:] / (rise[:-1] + rise[1:])
    # At the ends the three-point rule, but not (as in scipy) down to 0, where lam would lose its strict
    # decrease.
    for end, near in ((0, rise[:2]), (-1, rise[-2:].flip(0))):
        slope[end] = torch.maximum((3 * near[0] - near[-1]) / 2, near[0] / 4)
    # Slopes of at most twice the rise: each inner coefficient below is at least a third of its neighbour.
    up = torch.stack([phi[:-1], phi[:-1] + slope[:-1] / 3, phi[1:] - slope[1:] / 3, phi[1:]])
    down = torch.stack([psi[:-1], psi[:-1] - slope[:-1] / 3, psi[1:] + slope[1:] / 3, psi[1:]])
    return _Pieces(up, down)


def _angles(table: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = table.sqrt(), (1 - table).sqrt()
    return torch.atan2(sigma, alpha), torch.atan2(alpha, sigma)


def _rises(phi: Tensor, psi: Tensor) -> Tensor:
    """Differences of ``phi``, taken from ``psi`` where that is the smaller and so the more accurate."""
    return torch.where(phi[1:] < psi[1:], phi.diff(), -psi.diff())


def _cubic(b: Tensor, u: Tensor, w: Tensor) -> Tensor:
    return w * w * (b[0] * w + 3 * b[1] * u) + u * u * (3 * b[2] * w + b[3] * u)


def _solve(b: Tensor, target: Tensor) -> Tensor:
    """The root in [0, 1] of a monotone cubic in Bernstein form, by Newton's method from the chord's root.

    A cubic whose end slopes are at most three times its rise bends so little that no bisection is needed: 28 steps at
    most, to round-off, over 1e6 random ones with slopes from 1e-12 to 3 rises and roots as close to an end.
    """
    u = ((target - b[0]) / (b[3] - b[0])).clamp(0, 1)
    for _ in range(60):
        w = 1 - u
        residual = _cubic(b, u, w) - target
        slope = 3 * (w * w * (b[1] - b[0]) + 2 * u * w * (b[2] - b[1]) + u * u * (b[3] - b[2]))
        u = (u - residual / slope).clamp(0, 1)
        if bool((residual.abs() <= 8 * _EPS * target.abs()).all()):
            break
    return u


def _checked(values: Sequence[float] | Tensor) -> tuple[float, ...]:
    # Numbers must not pass through the default dtype, nor a complex tensor lose its imaginary part.
    if isinstance(values, Tensor):
        if values.requires_grad:
            raise ValueError("alphas_cumprod requires a gradient, which schedules do not give; pass its .detach()")
        table = values.cpu()
    else:
        table = torch.tensor(values, dtype=torch.float64, device="cpu")
    if table.is_complex() or table.ndim != 1:
        raise ValueError(
            f"alphas_cumprod must be one real value per time, got shape {tuple(table.shape)} and dtype {table.dtype}"
        )
    table = table.double()
    if int(((table > 0) & (table < 1)).sum()) < 2 or not bool(((table >= 0) & (table <= 1)).all()):
        raise ValueError(
            "alphas_cumprod must lie in [0, 1], with at least two values strictly between; "
            f"got {len(table)} values, from {table.tolist()[:1]} to {table.tolist()[-1:]}"
        )
    flat = (_rises(*_angles(table)) <= 0) | (table.diff() >= 0)
    if bool(flat.any()):
        i = int(flat.nonzero()[0])
        raise ValueError(
            f"alphas_cumprod must strictly decrease (by more than round-off), "
            f"got {table[i].item()} at index {i} and {table[i + 1].item()} at index {i + 1}; "
            "pass the cumulative product of 1 - beta, in float32 or better"
        )
    return tuple(table.tolist())
