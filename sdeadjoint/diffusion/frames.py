"""Frames: coordinates in which every diffusion sampler is an ordinary solver with unit additive noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Real

import torch
from torch import Tensor

from . import kinds
from .schedules import Schedule
from .schedules.base import check_schedule

KINDS = tuple(kinds.KINDS)


@dataclass(frozen=True)
class Frame:
    r"""Coordinates ``y = x / w`` and a clock ``s`` in which the reverse diffusion has unit additive noise.

    With ``lambda = log(alpha / sigma)`` the family of reverse equations

        dx = [ (d log alpha / dt) x - (1 + eta) / 2 g^2 score ] dt + sqrt(eta) g dw,   g^2 = -2 sigma^2 dlambda/dt

    has the forward process' marginals for every ``eta >= 0``: 0 is the probability-flow ODE, 1 the diffusion
    SDE. Dividing by a weight ``w`` that solves the linear part and changing the clock turns each member into

        dy = F(s, y) ds + dB_nu

    | kind  | weight w                       | clock s                   | noise clock nu         | F          |
    |-------|--------------------------------|---------------------------|------------------------|------------|
    | data  | sigma e^(-eta lambda)          | e^((1+eta) lambda)        | e^(2 eta lambda)       | x_0        |
    | noise | alpha                          | (1+eta) e^(-lambda)       | -eta e^(-2 lambda)     | eps        |
    | flow  | (alpha + sigma) (1+r)^eta      | 1 - (1+r)^(-(1+eta))      | see ``noise_clock``    | eps - x_0  |

    with ``r = e^(-lambda) = sigma / alpha``, and ``F`` the network's prediction of that quantity at ``(w y, t)``.
    Euler's method in the data or noise kind is DDIM (eta = 0) and SDE-DPM-Solver(++)-1 (eta = 1); Heun's in
    the noise kind is EDM's sampler; in the flow kind with eta = 0, ``y = x / (alpha + sigma)`` and ``s =
    sigma / (alpha + sigma)``, so that solvers act on ``dx/dt = velocity`` of a rectified flow itself.

    Args:
        schedule: the noise schedule.
        eta: multiplies the *power* of the injected noise (``dpmpp_2m_sde``'s eta). The eta of the DDIM paper
            is another number: it scales the standard deviation of one discrete step.
        kind: which prediction the solver integrates. ``"data"`` is regular at alpha = 0 (the start of
            rectified flows and of zero-terminal-SNR tables) and ``"noise"`` is not; with eta > 0 and alpha(T) = 0
            the latent x_T reaches the sample through the network's first evaluation only, as y_T = 0.

    Between regular ends (alpha > 0 and sigma > 0) strong order 1.5 (``SRA1``, ``ShARK``) holds in every kind with
    eta > 0, for paths on ``noise_clock``. Increments standardised on another clock, such as sigma, cap it at 1
    (theory/clocks.md). From alpha = 0 it holds in the data kind with eta = 1 (theory/frames.md, F5).

    Sources: Lu et al. (2022b), DPM-Solver++ (data kind, eta 0 and 1); Lu et al. (2022a), DPM-Solver (noise kind);
    Karras et al. (2022), EDM, section 4 (SDEs with equal marginals); Blasingame and Liu (2024), AdjointDEIS.
    """

    schedule: Schedule
    eta: float = 0.0
    kind: str = "data"

    def __post_init__(self) -> None:
        check_schedule(self.schedule)
        if self.kind not in KINDS:
            raise ValueError(f"kind: got {self.kind!r}; pass one of {KINDS}")
        if isinstance(self.eta, bool) or not isinstance(self.eta, Real):
            raise TypeError(f"eta: got {self.eta!r}; pass a number >= 0 (0 is the ODE, 1 the diffusion SDE)")
        object.__setattr__(self, "eta", float(self.eta))
        if not (math.isfinite(self.eta) and self.eta >= 0):
            raise ValueError(f"eta: got {self.eta}; pass a finite number >= 0 (0 is the ODE, 1 the diffusion SDE)")

    @property
    def prediction(self) -> str:
        """The prediction that this frame's drift ``F`` is: ``"sample"``, ``"epsilon"`` or ``"flow_prediction"``."""
        return self._kind.prediction

    def weight(self, t: Tensor | float) -> Tensor:
        """``w(t)``, float64, same shape as ``t``: the state of the equation is ``x = w y``."""
        schedule = self.schedule
        return self._kind.weight(schedule.log_alpha(t), schedule.log_sigma(t), schedule.lam(t), self.eta)

    def clock(self, t: Tensor | float) -> Tensor:
        """``s(t)``, float64, same shape as ``t``: the drift's clock."""
        return self._kind.clock(self.schedule.lam(t), self.eta)

    def noise_clock(self, t: Tensor | float) -> Tensor:
        """``nu(t)``, float64, same shape as ``t``: increments of the driving path over a step have variance ``dnu``.

        In the flow kind ``nu = (1+r)^(-2 eta) (1 - 2 eta / ((1 + 2 eta) (1+r)))``. It is constant for eta = 0.

        Error: a few ulps of nu, times ``1 + 2 eta |lambda|``. What that makes of the noise is small against
        ``sigma^2``, but in the flow kind against ``(alpha + sigma)^2`` only.
        """
        lam = self.schedule.lam(t)
        return torch.zeros_like(lam) if self.eta == 0 else self._kind.noise_clock(lam, self.eta)

    def time(self, s: Tensor | float) -> Tensor:
        """``t`` with ``clock(t) = s``, float64, same shape as ``s``.

        Error in lambda: a few ulps; in the flow kind ``1 / (1 - s)`` of them, as s rounds to 1 where alpha is small.
        """
        s = s.double() if isinstance(s, Tensor) else torch.tensor(s, dtype=torch.float64, device="cpu")
        least = self.schedule.lam(self.schedule.domain[1])
        return self.schedule.time(self._kind.lam(s, self.eta, least))

    @property
    def _kind(self) -> kinds.Kind:
        return kinds.KINDS[self.kind]
