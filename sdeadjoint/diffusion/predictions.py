"""The five things a diffusion network may predict, and the one function that turns any into any other.

Every kind is linear in ``(x0, eps)``, up to a scale:

| kind | scale * value | x0 coefficient | eps coefficient | source |
|---|---|---|---|---|
| sample | x0 | 1 | 0 | |
| epsilon | eps | 0 | 1 | Ho et al. 2020 |
| v_prediction | alpha eps - sigma x0 | -sigma | alpha | Salimans & Ho 2022 |
| flow_prediction | eps - x0 | -1 | 1 | Lipman et al. 2022; dx/dt of ``RectifiedFlow`` |
| score | sigma * score = -eps | 0 | -1 | Tweedie: score = -eps / sigma |

With ``x`` itself the row ``(alpha, sigma)``, ``target = a x + b source``, where Cramer's rule on the rows
``s`` of the source and ``r`` of the target gives, before the scales,

    a = (r0 s1 - r1 s0) / d,    b = (alpha r1 - sigma r0) / d,    d = alpha s1 - sigma s0

| source | d | x0 | eps |
|---|---|---|---|
| sample | -sigma | x0 | (x - alpha x0) / sigma |
| epsilon | alpha | (x - sigma eps) / alpha | eps |
| v_prediction | alpha^2 + sigma^2 | (alpha x - sigma v) / d | (sigma x + alpha v) / d |
| flow_prediction | alpha + sigma | (x - sigma u) / d | (x + alpha u) / d |
| score | -alpha | (x + sigma^2 score) / alpha | -sigma score |

No term cancels before it meets the data, and nothing assumes ``alpha^2 + sigma^2 = 1``. Conversions there and
back are inverse up to round-off, which a nearly singular one magnifies by its own ``|b|``.
"""

from __future__ import annotations

import torch
from torch import Tensor

PREDICTIONS = ("epsilon", "sample", "v_prediction", "flow_prediction", "score")


def convert(value: Tensor, x: Tensor, alpha: float | Tensor, sigma: float | Tensor, source: str, target: str) -> Tensor:
    """The prediction of kind ``target`` that equals a ``value`` of kind ``source`` at the state ``x``.

    ``value`` and ``x`` have one shape; ``alpha`` and ``sigma`` are floats or tensors, at least 0, that
    broadcast to it (a per-sample coefficient needs its trailing ones). Coefficients are computed in float64
    and then rounded to the dtype of ``value`` and ``x`` (the wider, if they differ), which the result has.
    Differentiable in every tensor argument. With ``source == target`` the result is ``value`` itself. Tensor
    coefficients are checked for zeros, which on a GPU waits for the device: pass floats in loops.

    Errors: ValueError for an unknown kind, for shapes that do not fit, for coefficients that are negative or
    not finite, and for a singular conversion: a score where ``sigma = 0``; ``sample`` to others where ``sigma
    = 0``; ``epsilon`` or ``score`` to others than themselves where ``alpha = 0``.
    """
    for name, kind in (("source", source), ("target", target)):
        if kind not in PREDICTIONS:
            raise ValueError(f"{name} must be one of {', '.join(map(repr, PREDICTIONS))}, got {kind!r}")
    if value.shape != x.shape:
        raise ValueError(f"value and x must have one shape, got {tuple(value.shape)} and {tuple(x.shape)}")
    if not (value.is_floating_point() and x.is_floating_point()):
        raise TypeError(f"value and x must be floating point, got {value.dtype} and {x.dtype}")
    if source == target:
        return value
    a, b = _coefficients(_coefficient(alpha, "alpha"), _coefficient(sigma, "sigma"), source, target)
    result = _cast(b, value, x) * value
    if a is not None:
        result = torch.add(_cast(a, value, x) * x, result)
    if result.shape != value.shape:
        raise ValueError(
            f"alpha and sigma must broadcast to the shape of x, {tuple(x.shape)}, but the result has shape "
            f"{tuple(result.shape)}; reshape a per-sample coefficient to (batch, 1, ..., 1)"
        )
    return result


def _row(kind: str, alpha: float | Tensor, sigma: float | Tensor) -> tuple[float | Tensor, ...]:
    """The coefficients of ``x0`` and ``eps`` in ``scale * value``, and that scale."""
    if kind == "sample":
        return 1.0, 0.0, 1.0
    if kind == "epsilon":
        return 0.0, 1.0, 1.0
    if kind == "v_prediction":
        return -sigma, alpha, 1.0
    if kind == "flow_prediction":
        return -1.0, 1.0, 1.0
    return 0.0, -1.0, sigma


def _coefficients(
    alpha: float | Tensor, sigma: float | Tensor, source: str, target: str
) -> tuple[float | Tensor | None, float | Tensor]:
    """``a`` and ``b`` of ``target = a x + b source``; ``a`` is None where ``x`` does not enter."""
    s0, s1, source_scale = _row(source, alpha, sigma)
    r0, r1, target_scale = _row(target, alpha, sigma)
    if {source, target} == {"epsilon", "score"}:
        # Both are multiples of eps: x drops out, and alpha = 0 does no harm.
        _refuse_zero((sigma,), alpha, sigma, source, target)
        return None, -source_scale / target_scale
    d = alpha * s1 - sigma * s0
    _refuse_zero((d, source_scale, target_scale), alpha, sigma, source, target)
    a = (r0 * s1 - r1 * s0) / d / target_scale
    b = (alpha * r1 - sigma * r0) / d * source_scale / target_scale
    return a, b


def _refuse_zero(
    factors: tuple[float | Tensor, ...],
    alpha: float | Tensor,
    sigma: float | Tensor,
    source: str,
    target: str,
) -> None:
    if not any(_any(factor == 0) for factor in factors):
        return
    refusal = f"{source!r} cannot be converted to {target!r} where"
    if _any(sigma == 0) and (source == "sample" or "score" in (source, target)):
        zero = "sigma"
        good_source = {"sample": "v_prediction", "score": "epsilon"}.get(source, source)
        good_target = "epsilon" if target == "score" else target
    elif source in ("epsilon", "score"):
        zero, good_source, good_target = "alpha", "v_prediction", target
    else:
        raise ValueError(f"{refusal} alpha = sigma = 0, and nothing else can: the state is 0 there")
    raise ValueError(f"{refusal} {zero} = 0; there, predict {good_source!r} and ask for {good_target!r}")


def _coefficient(value: float | Tensor, name: str) -> float | Tensor:
    value = value.to(torch.float64) if isinstance(value, Tensor) else float(value)
    if _any((value < 0) | (value == torch.inf) | (value != value)):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
    return value


def _any(condition: bool | Tensor) -> bool:
    return bool(condition.any()) if isinstance(condition, Tensor) else condition


def _cast(coefficient: float | Tensor, value: Tensor, x: Tensor) -> float | Tensor:
    if isinstance(coefficient, Tensor):
        return coefficient.to(device=value.device, dtype=torch.promote_types(value.dtype, x.dtype))
    return coefficient
