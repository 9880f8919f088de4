"""Gaussian mixtures: nonlinear, multimodal data with an exact score, and in one dimension an exact ODE map."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdeadjoint.diffusion.schedules import Schedule
from sdeadjoint.problems.base import Cond, Numbers, Problem, call, constant, generator, no_cond, positive
from sdeadjoint.problems.rewards import Reward, coefficients, tilt

_EPS = torch.finfo(torch.float64).eps


class _Joint(NamedTuple):
    """``log(w_k N(x; alpha m_k, P_k))`` and what it was made of; b: batch, k: components, d: flat event (or 1)."""

    log_density: Tensor  # (b, k)
    x: Tensor  # (b, d), minus alpha times the centre
    P: Tensor  # (b or 1, k or 1, d or 1)
    offsets: Tensor  # (k, d): means minus the centre
    centre: Tensor  # (d,)


@dataclass(frozen=True, eq=False, repr=False, init=False)
class Mixture(Problem):
    """``x_0 ~ sum_k w_k N(m_k, v_k)``, hence ``x_t ~ sum_k w_k N(alpha m_k, P_k)``, ``P_k = alpha^2 v_k + sigma^2``.

    Args:
        weights: (K,) positive numbers; divided by their sum, so that they add up to 1.
        means: (K, *event); (K,) for scalar data, whose states have shape (batch,) or (batch, 1).
        variances: positive: a number, (K,) for isotropic components of different widths, or (K, *event) for
            diagonal covariances.

    With responsibilities ``r = softmax_k log(w_k N(x; alpha m_k, P_k))`` the posterior mean is
    ``sum_k r_k (sigma^2 m_k + alpha v_k x) / P_k`` and the score ``-sum_k r_k (x - alpha m_k) / P_k``.

    Memory: isotropic components need (batch, K) numbers; their squared distances come from a matrix product,
    centred on the data's mean c, with a relative error of r of about ``1e-16 |x - alpha c|^2 / P``. Diagonal
    ones (and one dimension) take differences, without that cancellation but with (batch, K, event) numbers.

    A well separated mixture is a hard target: near the ridges between its modes the ODE map is steep, and a
    few paths of the SDE change mode, so that rms errors converge late although medians do not.
    """

    weights: Tensor
    means: Tensor
    variances: Tensor

    def __init__(self, weights: Numbers, means: Numbers, variances: Numbers) -> None:
        w, m, v = positive(weights, "weights"), constant(means, "means"), positive(variances, "variances")
        if w.ndim != 1 or m.shape[:1] != w.shape or len(w) == 0:
            raise ValueError(
                f"weights, means: got shapes {tuple(w.shape)} and {tuple(m.shape)}; pass (K,) and (K, *event), K >= 1"
            )
        if v.shape not in ((), w.shape, m.shape):
            raise ValueError(
                f"variances: got shape {tuple(v.shape)}; pass a number, {tuple(w.shape)} or {tuple(m.shape)}"
            )
        for name, value in (("weights", w / math.fsum(w.tolist())), ("means", m), ("variances", v)):
            object.__setattr__(self, name, value)

    @property
    def event_shape(self) -> torch.Size:
        return self.means.shape[1:]

    def sample(self, n: int, seed: int, cond: Cond = None) -> Tensor:
        rng = generator(n, seed)
        weights = self._log_weights(cond, n, torch.device("cpu")).exp()
        each = n if weights.shape[0] == 1 else 1
        drawn = torch.multinomial(weights, each, replacement=True, generator=rng).flatten()
        v = self.variances if self.variances.ndim == 0 else self.variances[drawn]
        v = v.reshape(-1, *[1] * len(self.event_shape)) if v.ndim == 1 else v
        noise = torch.randn(n, *self.event_shape, generator=rng, dtype=torch.float64, device="cpu")
        return self.means[drawn] + v.sqrt() * noise

    def tilted(self, reward: Reward, cond: Cond = None) -> Mixture:
        """See ``Problem``: each component is tilted, and its weight multiplied by its own ``Z``.

        Components whose weights are zero in float64 are left out.
        """
        slope, curvature = coefficients(reward, self.event_shape)
        v = self.variances
        wide = v.reshape(-1, *[1] * len(self.event_shape)) if v.ndim == 1 else v
        means, narrow, log_z = tilt(self.means, wide, slope, curvature)
        log_z = log_z.expand_as(self.means).reshape(len(means), -1).sum(1)
        log_weights = self._log_weights(cond, 1, torch.device("cpu")).detach()
        weights = (log_weights[0] + log_z).softmax(0)
        kept = weights > 0
        if curvature.ndim > 0:
            narrow = narrow.expand_as(means)
        elif v.ndim < 2:
            narrow = narrow.reshape(v.shape)
        variances = narrow[kept] if narrow.ndim else narrow
        return Mixture(weights[kept], means[kept], variances)

    def ode_map(
        self, x_T: Tensor, schedule: Schedule, t_max: float | None = None, t_min: float | None = None
    ) -> Tensor:
        """The probability-flow ODE of *scalar* data, in closed form: quantile transport ``x_0 = F_0^-1(F_T(x_T))``.

        In one dimension the flow keeps the order of points, and it carries the marginal at ``t_max`` to the
        one at ``t_min``. ``x_T``: (batch,) or (batch, 1). The times default to the schedule's own; alpha = 0
        and sigma = 0 are allowed. Differentiable to any order, through ``ode_gradient``. Accurate to float64
        round-off times the map's own condition, in both tails: the equation is solved for the logarithm of
        the smaller tail, by Newton's method inside a bracket. Cost: about ten evaluations of K normal
        distribution functions, more in a steep gap.
        """
        x, start, end = self._line(x_T, schedule, t_max, t_min)
        result: Tensor = _Transport.apply(x, start, end)
        return result.to(x_T.dtype)

    def ode_gradient(
        self, x_T: Tensor, schedule: Schedule, t_max: float | None = None, t_min: float | None = None
    ) -> Tensor:
        """``d ode_map / d x_T = p_T(x_T) / p_0(x_0)``, of the shape of ``x_T``: the derivative of the line above."""
        x, start, end = self._line(x_T, schedule, t_max, t_min)
        return (start.log_pdf(x) - end.log_pdf(_Transport.apply(x, start, end))).exp().to(x_T.dtype)

    def _line(
        self, x_T: Tensor, schedule: Schedule, t_max: float | None, t_min: float | None
    ) -> tuple[Tensor, Line, Line]:
        self._check_state(x_T, "x_T")
        if self.event_shape.numel() != 1:
            raise ValueError(
                f"ode_map: the data has {self.event_shape.numel()} dimensions, and a mixture's ODE map is known in "
                "one only; integrate on a fine grid instead"
            )
        log_weights, centre, offsets, variances = self._on(x_T.device)[:4]
        lines = []
        for t in (schedule.t_max if t_max is None else t_max, schedule.t_min if t_min is None else t_min):
            alpha, sigma = schedule.alpha(t).to(x_T.device), schedule.sigma(t).to(x_T.device)
            sds = (alpha**2 * variances[:, 0] + sigma**2).sqrt()
            lines.append(Line(log_weights, alpha * (offsets[:, 0] + centre), sds))
        return x_T.double(), lines[0], lines[1]

    @property
    def _constants(self) -> tuple[Tensor, ...]:
        """Log-weights (K,), the mean (d,), means minus it (K, d), variances (K or 1, d or 1), their squares (K,)."""
        means, v = self.means.reshape(len(self.weights), -1), self.variances
        centre = self.weights @ means
        offsets = means - centre
        v = v.reshape(len(v), -1) if v.ndim else v.reshape(1, 1)
        return self.weights.log(), centre, offsets, v, (offsets**2).sum(1)

    def _fits(self, shape: torch.Size) -> bool:
        return shape == self.event_shape or (self.event_shape == () and shape == (1,))

    def _log_weights(self, cond: Cond, batch: int, device: torch.device) -> Tensor:
        """(1, K), or (batch, K) where they depend on the conditioning."""
        no_cond(cond)
        return self._on(device)[0][None]

    def _joint(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> _Joint:
        _, centre, offsets, v, sizes = self._on(x.device)[:5]
        a, s = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        X, P = x.reshape(x.shape[0], -1) - a[:, 0] * centre, a**2 * v + s**2
        dims = X.shape[1]
        if v.shape[1] == 1 < dims:
            squares = (X**2).sum(1, keepdim=True) - 2 * a[:, 0] * (X @ offsets.T) + a[:, 0] ** 2 * sizes
            exponent = squares / P[..., 0] + dims * P[..., 0].log()
        else:
            exponent = ((X[:, None] - a * offsets) ** 2 / P + P.log()).sum(2)
        log_weights = self._log_weights(cond, x.shape[0], x.device)
        return _Joint(log_weights - (exponent + dims * math.log(2 * math.pi)) / 2, X, P, offsets, centre)

    def _posterior_mean(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        if self.variances.ndim == 0:
            return self._of_one_width(x, alpha, sigma, cond)
        log_density, X, P, offsets, centre = self._joint(x, alpha, sigma, cond)
        a, s = alpha.reshape(-1, 1, 1), sigma.reshape(-1, 1, 1)
        r = log_density.softmax(1)[..., None] / P
        mean = centre + _mix(s**2 * r, offsets) + (a * self._on(x.device)[3] * r).sum(1) * X
        return mean.reshape(x.shape)

    def _of_one_width(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        """The posterior mean where all variances are one number: what all components share drops out of their weights.

        ``log r_k = log w_k + (alpha/P) <X, m_k> - alpha^2 |m_k|^2 / (2 P) + const``: two matrix products in all.
        """
        _, centre, offsets, v, sizes = self._on(x.device)[:5]
        a, s = alpha.reshape(-1, 1), sigma.reshape(-1, 1)
        X, P = x.reshape(x.shape[0], -1) - a * centre, a**2 * v + s**2
        log_weights = self._log_weights(cond, x.shape[0], x.device) - a**2 / (2 * P) * sizes
        r = torch.addmm(log_weights, a / P * X, offsets.T).softmax(1)
        return (centre + s**2 / P * (r @ offsets) + a * v / P * X).reshape(x.shape)

    def _score(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        log_density, X, P, offsets, _ = self._joint(x, alpha, sigma, cond)
        r = log_density.softmax(1)[..., None] / P
        return (alpha.reshape(-1, 1) * _mix(r, offsets) - r.sum(1) * X).reshape(x.shape)

    def _log_prob(self, x: Tensor, alpha: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return self._joint(x, alpha, sigma, cond).log_density.logsumexp(1)

    def __repr__(self) -> str:
        return call("Mixture", self.weights, self.means, self.variances)


def _mix(r: Tensor, offsets: Tensor) -> Tensor:
    """``sum_k r_k offsets_k``, by a matrix product where the r (b, k, 1 or d) are one number per component."""
    return r[..., 0] @ offsets if r.shape[2] == 1 else (r * offsets).sum(1)


class Line(NamedTuple):
    """A scalar mixture: log-weights, means and standard deviations, (K,) each, acting on tensors of any shape."""

    log_weights: Tensor
    means: Tensor
    sds: Tensor

    def standardised(self, x: Tensor) -> Tensor:
        return (x[..., None] - self.means) / self.sds

    def log_tail(self, x: Tensor, sign: Tensor | float) -> Tensor:
        """The log of the distribution function where ``sign`` is 1, of the survival function where it is -1."""
        z = self.standardised(x) * torch.as_tensor(sign, dtype=x.dtype, device=x.device)[..., None]
        return (self.log_weights + torch.special.log_ndtr(z)).logsumexp(-1)

    def log_pdf(self, x: Tensor) -> Tensor:
        squares = self.standardised(x) ** 2 + 2 * self.sds.log() + math.log(2 * math.pi)
        return (self.log_weights - squares / 2).logsumexp(-1)


class _Transport(torch.autograd.Function):
    """``x -> F_end^-1(F_start(x))``; its backward is a differentiable formula in its own output, hence any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, start: Line, end: Line) -> Tensor:
        y = transport(x, start, end)
        ctx.save_for_backward(x, y)
        ctx.lines = start, end
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (x, y), (start, end) = ctx.saved_tensors, ctx.lines
        return grad * (start.log_pdf(x) - end.log_pdf(y)).exp(), None, None


def transport(x: Tensor, start: Line, end: Line) -> Tensor:
    """The ``y`` with ``F_end(y) = F_start(x)``, elementwise: Newton's method, bisecting when that is slow or leaves.

    Each component's own image of x has the same ``Phi(z_k)`` before and after. At the greatest of these images
    no component has less than that, at the least none has more, and F is an average of them: a bracket
    without a search.
    """
    sign = torch.where(start.log_tail(x, 1.0) <= start.log_tail(x, -1.0), 1.0, -1.0).to(x)
    target = start.log_tail(x, sign)
    images = end.means + end.sds * start.standardised(x)
    low, high = images.amin(-1), images.amax(-1)
    y, last = (low + high) / 2, high - low
    for _ in range(200):  # a step that fails to halve is replaced by a bisection, so about 110 suffice
        tail = end.log_tail(y, sign)
        residual = sign * (tail - target)  # increases with y
        low, high = torch.where(residual <= 0, y, low), torch.where(residual >= 0, y, high)
        newton = y - residual * (tail - end.log_pdf(y)).exp()
        good = (newton >= low) & (newton <= high) & ((newton - y).abs() <= last / 2)
        following = torch.where(good, newton, (low + high) / 2)
        y, last = following, (following - y).abs()
        if bool((last <= 2 * _EPS * torch.maximum(y.abs(), end.sds.min())).all()):
            break
    return y
