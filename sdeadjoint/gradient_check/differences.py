"""Directional derivatives of a call's loss by central differences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from .call import Call

EPS = torch.finfo(torch.float64).eps
STEP = EPS ** (1 / 3)


class Quotient(NamedTuple):
    """``value`` is about ``<dL/dtheta, direction>``, within ``error``; ``direction`` is float64, of theta's shape."""

    direction: Tensor
    value: float
    error: float


def quotients(call: Call, wanted: Mapping[str, Tensor], count: int, seed: int) -> dict[str, list[Quotient]]:
    """For each wanted tensor theta of a float64 call, ``count`` random directions d and the quotients along them.

        D(h) = [L(theta + h d) - L(theta - h d)] / 2h,    h = eps^(1/3),    d = r theta_rms,    r ~ N(0, 1)

    with ``theta_rms`` the root mean square of theta's entries (of each step's, for noise), 1 where it is 0. The error
    of D(h) is ``h^2/6 L'''`` from truncation, about ``|D(2h) - D(h)| / 3``, and ``eps |L| / h`` from rounding; the
    stated one is ``|D(2h) - D(h)| + eps |L| / h``. Cost: four samples per tensor and direction, no graph.

    None of the call's tensors may require a gradient. They are changed in place and put back, bit for bit.
    """
    generator = torch.Generator(device="cpu").manual_seed(seed)
    found: dict[str, list[Quotient]] = {}
    for name, theta in wanted.items():
        found[name] = []
        for _ in range(count):
            r = torch.randn(theta.shape, generator=generator, dtype=torch.float64, device="cpu")
            direction = r.to(theta) * _scale(theta, by_step=name.startswith("noise"))
            found[name].append(_quotient(call, theta, direction))
    return found


def _quotient(call: Call, theta: Tensor, direction: Tensor) -> Quotient:
    original = theta.detach().clone()
    values = {}
    for k in (-2, -1, 1, 2):
        theta.detach().copy_(original + k * STEP * direction)
        values[k] = call.value()
    theta.detach().copy_(original)
    near, far = ((values[k] - values[-k]) / (2 * k * STEP) for k in (1, 2))
    rounding = EPS * max(abs(value) for value in values.values()) / STEP
    return Quotient(direction, near, abs(far - near) + rounding)


def _scale(theta: Tensor, *, by_step: bool) -> Tensor:
    dims = tuple(range(1, theta.ndim)) if by_step else tuple(range(theta.ndim))
    rms = theta.square().mean(dims, keepdim=True).sqrt() if dims else theta.abs()
    return torch.where(rms > 0, rms, 1.0)
