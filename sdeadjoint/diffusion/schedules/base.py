"""The interface of a noise schedule, and the one door at which its arguments are checked."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

# Round-off allowed to a log-SNR at the ends of its range. Vectorised and scalar kernels (and other devices)
# differ by an ulp or two in ``log``, so ``time(lam(end))`` may arrive just outside.
_ULPS = 8 * torch.finfo(torch.float64).eps


class Schedule(ABC):
    """A forward process ``x_t = alpha(t) x_0 + sigma(t) eps``, ``eps`` standard normal.

    Times and results are float64 tensors of any shape, elementwise, on the device of the argument. Python
    numbers give 0-d CPU tensors; integers and other float dtypes are promoted (exactly) to float64. Where
    ``sigma = 0``, ``log_sigma = -inf`` and ``lam = inf``; where ``alpha = 0``, ``log_alpha = -inf`` and ``lam
    = -inf``: exact limits, no NaN. Arguments outside the domain, and NaN, are refused by ValueError; on a GPU
    that check waits for the device, so evaluate whole grids at once, not one time per step.

    A subclass is a frozen dataclass that states

    1. ``domain``: the closed interval ``(low, high)`` of its times, ``sigma`` increasing and ``alpha /
       sigma`` strictly decreasing on it (``high`` may be ``inf``);
    2. ``t_max``, ``t_min``: the default ends of a sampling run, inside the domain, where ``lam`` is finite;
    3. ``_log_alpha(t)``, ``_log_sigma(t)``: float64 tensor in the domain -> float64 tensor, relative error of
       a few ulp *everywhere*: use expm1, log1p and friends rather than ``log(1 - exp(...))``;
    4. ``_time(lam)``: the inverse of ``lam``, for ``lam`` in the range of the schedule. The ends of the range
       are not its concern (``time`` overwrites them with the ends of the domain).
    """

    @property
    @abstractmethod
    def domain(self) -> tuple[float, float]:
        """The closed interval ``(low, high)`` of times where the schedule is defined."""

    @property
    @abstractmethod
    def t_max(self) -> float:
        """The default start of sampling: nearly pure noise, with finite ``lam``."""

    @property
    @abstractmethod
    def t_min(self) -> float:
        """The default end of sampling: nearly clean data, with finite ``lam``."""

    @abstractmethod
    def _log_alpha(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _log_sigma(self, t: Tensor) -> Tensor: ...

    @abstractmethod
    def _time(self, lam: Tensor) -> Tensor: ...

    def log_alpha(self, t: float | Tensor) -> Tensor:
        """``log alpha(t)``, float64, to a few ulp; ``-inf`` where ``alpha = 0``."""
        return self._log_alpha(self._times(t))

    def log_sigma(self, t: float | Tensor) -> Tensor:
        """``log sigma(t)``, float64, to a few ulp; ``-inf`` where ``sigma = 0``."""
        return self._log_sigma(self._times(t))

    def alpha(self, t: float | Tensor) -> Tensor:
        """The signal's coefficient ``alpha(t) = exp(log_alpha(t))``."""
        return self.log_alpha(t).exp()

    def sigma(self, t: float | Tensor) -> Tensor:
        """The noise's coefficient ``sigma(t) = exp(log_sigma(t))``."""
        return self.log_sigma(t).exp()

    def lam(self, t: float | Tensor) -> Tensor:
        """Half the log signal-to-noise ratio, ``log(alpha(t) / sigma(t))``, strictly decreasing in ``t``."""
        return self._lam(self._times(t))

    def time(self, lam: float | Tensor) -> Tensor:
        """The time with ``lam(time) = lam``: the inverse of ``lam``.

        ``time(lam(t))`` is ``t`` to 1e-10 relative for the closed forms (see ``Tabulated`` for tables).
        ``inf`` and ``-inf`` give the end of the domain where the schedule reaches them. A ``lam`` that the
        schedule never reaches is refused.
        """
        lam = _float64(lam, "lam")
        low, high = self.domain
        least, most = self._lam(torch.tensor([high, low], dtype=torch.float64, device="cpu")).tolist()
        # Within round-off of an end is that end. An infinite end has no round-off.
        bottom, top = (_ULPS * max(1.0, abs(end)) if abs(end) < torch.inf else 0.0 for end in (least, most))
        rule = f"lam must lie in [{least}, {most}], the range of this {type(self).__name__}"
        _refuse_outside(lam, least - bottom, most + top, rule)
        t = self._time(lam.clamp(least, most)).clamp(low, high)
        t = torch.where(lam >= most - top, torch.full_like(t, low), t)
        return torch.where(lam <= least + bottom, torch.full_like(t, high), t)

    def _lam(self, t: Tensor) -> Tensor:
        # Loses nothing: the two logarithms are never both large and of one sign.
        return self._log_alpha(t) - self._log_sigma(t)

    def _times(self, t: float | Tensor) -> Tensor:
        t = _float64(t, "t")
        low, high = self.domain
        _refuse_outside(t, low, high, f"t must lie in [{low}, {high}], the domain of this {type(self).__name__}")
        return t


def check_schedule(schedule: object) -> None:
    """Refuse what is not a schedule, and one whose parameters want gradients: clocks are numbers and give none."""
    if not isinstance(schedule, Schedule):
        raise TypeError(f"schedule: got {type(schedule).__name__}; pass a Schedule such as VPLinear()")
    with torch.enable_grad():
        wanted = schedule.lam(schedule.t_max).requires_grad
    if wanted:
        raise ValueError(
            f"schedule: got {schedule!r}, whose parameters require gradients; gradients in the schedule are not "
            "computed: pass numbers, such as parameter.item()"
        )


def _float64(value: float | Tensor, name: str) -> Tensor:
    if isinstance(value, Tensor):
        if value.is_complex() or value.dtype == torch.bool:
            raise TypeError(f"{name} must be real, got a tensor of dtype {value.dtype}; pass a float tensor")
        return value.to(torch.float64)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}; pass a float or a Tensor")
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _refuse_outside(value: Tensor, low: float, high: float, rule: str) -> None:
    if value.numel() == 0:
        return
    least, most = torch.aminmax(value.detach())
    # Written so that NaN, which compares false, is outside.
    if not (low <= least.item() and most.item() <= high):
        outside = ~((value >= low) & (value <= high))
        raise ValueError(f"{rule}; got {value[outside].flatten()[0].item()}")
