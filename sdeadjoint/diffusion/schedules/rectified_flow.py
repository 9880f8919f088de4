"""The straight-line schedule of flow matching and rectified flow."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .base import Schedule


@dataclass(frozen=True)
class RectifiedFlow(Schedule):
    """``alpha = 1 - t``, ``sigma = t``, ``lam = log((1 - t) / t)``, for ``t`` in [0, 1].

    ``t = 1`` is singular: ``alpha = 0``, so ``lam = -inf``, the noise frame's weight vanishes, and with eta >
    0 the state at ``t = 1`` has no influence on the sample. The default sampling ends are therefore 0.999 and
    1e-3 (``lam = -+6.9``). The velocity itself, dx/dt = eps - x_0 (``flow_prediction``), is regular at both
    ends. Sources: Liu et al. 2022 (rectified flow), Lipman et al. 2022 (flow matching), both with the time
    reversed.
    """

    @property
    def domain(self) -> tuple[float, float]:
        return 0.0, 1.0

    @property
    def t_max(self) -> float:
        return 0.999

    @property
    def t_min(self) -> float:
        return 1e-3

    def _log_alpha(self, t: Tensor) -> Tensor:
        return (-t).log1p()

    def _log_sigma(self, t: Tensor) -> Tensor:
        return t.log()

    def _time(self, lam: Tensor) -> Tensor:
        return (-lam).sigmoid()
