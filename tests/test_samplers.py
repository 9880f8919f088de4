"""Named samplers against their published updates, written out in x-space, independently of frames and solvers.

Both sides do the same few float64 operations a step in another order, so they agree to some roundings: 1e-12 relative.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable

import mpmath as mp
import pytest
import torch
from torch import Tensor

import sdeadjoint as sa

DOUBLE = torch.float64
STEPS = 7
MIX = torch.randn(4, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) / 3
VARIANCE_PRESERVING = (sa.VPLinear(), sa.VPCosine(), sa.Tabulated([0.999 * 0.5**k for k in range(12)]))
SCHEDULES = (*VARIANCE_PRESERVING, sa.VE(0.01, 20.0), sa.RectifiedFlow())


def network(x: Tensor, t: Tensor) -> Tensor:
    return torch.tanh(x @ MIX + torch.sin(t)[:, None])


class Setting:
    """A schedule with a non-uniform grid, a start and its coefficients at every node as plain numbers."""

    def __init__(self, schedule: sa.Schedule, prediction: str = "epsilon", grid: Tensor | None = None) -> None:
        self.schedule, self.prediction = schedule, prediction
        self.denoiser = sa.Denoiser(network, schedule, prediction)
        self.grid = sa.karras(schedule, STEPS, rho=5.0) if grid is None else grid
        self.alpha, self.sigma = schedule.alpha(self.grid).tolist(), schedule.sigma(self.grid).tolist()
        self.lam = schedule.lam(self.grid).tolist()
        self.x_T = torch.linspace(-1, 1, 12, dtype=DOUBLE).reshape(3, 4) * self.sigma[0]

    def raw(self, x: Tensor, n: int) -> Tensor:
        return network(x, self.grid[n].expand(3))

    def data(self, x: Tensor, n: int) -> Tensor:
        out = self.raw(x, n)
        return out if self.prediction == "sample" else (x - self.sigma[n] * out) / self.alpha[n]

    def noise(self, x: Tensor, n: int) -> Tensor:
        out = self.raw(x, n)
        return out if self.prediction == "epsilon" else (x - self.alpha[n] * out) / self.sigma[n]

    def sampled(self, sampler: sa.samplers.NamedSampler, noise: sa.Noise | None = None) -> Tensor:
        return sa.sample(self.denoiser, self.x_T, **sampler._asdict(), grid=self.grid, noise=noise)

    def normals(self, sampler: sa.samplers.NamedSampler, path: sa.BrownianPath) -> Tensor:
        """Standard normals of each step: the increments on the SNR clock, standardised."""
        snr = torch.tensor([math.exp(2 * lam) for lam in self.lam], dtype=DOUBLE)
        return path.increments(sampler.frame, self.grid, self.x_T) / snr.diff().sqrt()[:, None, None]


def agree(got: Tensor, want: Tensor) -> None:
    assert float((got - want).norm() / want.norm()) <= 1e-12


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
def test_ddim(schedule: sa.Schedule, prediction: str) -> None:
    """Song et al. (2021a), eq. 12 with sigma_t = 0."""
    case = Setting(schedule, prediction)
    x = case.x_T
    for n in range(STEPS):
        x = case.alpha[n + 1] * case.data(x, n) + case.sigma[n + 1] * case.noise(x, n)
    agree(case.sampled(sa.samplers.ddim(schedule)), x)
    agree(case.sampled(sa.samplers.dpm_solver_pp_1(schedule)), x)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_dpm_solver_pp_2m(schedule: sa.Schedule) -> None:
    """Lu et al. (2022b), Algorithm 2."""
    case = Setting(schedule)
    x, past, h_past = case.x_T, None, 0.0
    for n in range(STEPS):
        x_0, h = case.data(x, n), case.lam[n + 1] - case.lam[n]
        D = x_0
        if past is not None:
            r = h_past / h
            D = (1 + 1 / (2 * r)) * x_0 - 1 / (2 * r) * past
        x = case.sigma[n + 1] / case.sigma[n] * x - case.alpha[n + 1] * math.expm1(-h) * D
        past, h_past = x_0, h
    agree(case.sampled(sa.samplers.dpm_solver_pp_2m(schedule)), x)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("order", [1, 2])
def test_sde_dpm_solver_pp(schedule: sa.Schedule, order: int) -> None:
    """SDE-DPM-Solver++(1) and (2M), midpoint form, of Lu et al. (2022b), with the normals of the replayed path."""
    case, path = Setting(schedule), sa.BrownianPath(seed=4)
    name = "sde_dpm_solver_pp_1" if order == 1 else "sde_dpm_solver_pp_2m"
    sampler: sa.samplers.NamedSampler = getattr(sa.samplers, name)(schedule)
    z = case.normals(sampler, path)
    x, past, h_past = case.x_T, None, 0.0
    for n in range(STEPS):
        x_0, h = case.data(x, n), case.lam[n + 1] - case.lam[n]
        step = -math.expm1(-2 * h)
        drift = case.alpha[n + 1] * step * x_0
        if order == 2 and past is not None:
            drift = drift + 0.5 * case.alpha[n + 1] * step * (x_0 - past) / (h_past / h)
        ratio = case.sigma[n + 1] / case.sigma[n]
        x = ratio * math.exp(-h) * x + drift + case.sigma[n + 1] * math.sqrt(step) * z[n]
        past, h_past = x_0, h
    agree(case.sampled(sampler, path), x)


@pytest.mark.parametrize("order", [1, 2, 3, 4])
@pytest.mark.parametrize("variable", ["log", "clock"])
def test_deis(order: int, variable: str) -> None:
    """Zhang and Chen (2023): exact integrals of Lagrange polynomials in rho or log rho, here by mpmath's quadrature."""
    schedule = sa.VPLinear()
    case = Setting(schedule)
    rho = [math.exp(-lam) for lam in case.lam]
    u: Callable[[mp.mpf], mp.mpf] = mp.log if variable == "log" else (lambda value: value)
    x, history = case.x_T, []
    for n in range(STEPS):
        history = [(n, case.noise(x, n)), *history][:order]
        x = x * case.alpha[n + 1] / case.alpha[n]
        for j, eps in history:
            others = [k for k, _ in history if k != j]

            def lagrange(value: mp.mpf, j: int = j, others: list[int] = others) -> mp.mpf:
                return mp.fprod(
                    (u(value) - u(mp.mpf(rho[k]))) / (u(mp.mpf(rho[j])) - u(mp.mpf(rho[k]))) for k in others
                )

            with mp.workdps(30):
                weight = float(mp.quad(lagrange, [rho[n], rho[n + 1]]))
            x = x + case.alpha[n + 1] * weight * eps
    agree(case.sampled(sa.samplers.deis(schedule, order, variable)), x)


def test_dpm_solver_3() -> None:
    """Lu et al. (2022a), Algorithm 2 with r1 = 1/3, r2 = 2/3."""
    schedule = sa.VPLinear()
    case = Setting(schedule)
    x = case.x_T
    for n in range(STEPS):
        h = case.lam[n + 1] - case.lam[n]
        inner = schedule.time(torch.tensor([case.lam[n] + h / 3, case.lam[n] + 2 * h / 3], dtype=DOUBLE))
        scales, sigmas = (schedule.alpha(inner) / case.alpha[n]).tolist(), schedule.sigma(inner).tolist()
        first = case.noise(x, n)
        u1 = scales[0] * x - sigmas[0] * math.expm1(h / 3) * first
        difference = network(u1, inner[0].expand(3)) - first
        phi = math.expm1(2 * h / 3) / (2 * h / 3) - 1
        u2 = scales[1] * x - sigmas[1] * math.expm1(2 * h / 3) * first - sigmas[1] * 2 * phi * difference
        difference = network(u2, inner[1].expand(3)) - first
        x = case.alpha[n + 1] / case.alpha[n] * x - case.sigma[n + 1] * math.expm1(h) * first
        x = x - case.sigma[n + 1] * 1.5 * (math.expm1(h) / h - 1) * difference
    agree(case.sampled(sa.samplers.dpm_solver_3(schedule)), x)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_uni_pc(schedule: sa.Schedule) -> None:
    """Zhao et al. (2023), Algorithms 1 and 2 for p = 2 on the data prediction; a_2 of the corrector from its system."""
    case = Setting(schedule)
    x, history = case.x_T, [case.data(case.x_T, 0)]
    for n in range(STEPS):
        h, m0 = case.lam[n + 1] - case.lam[n], history[0]
        B = math.expm1(-h)
        base = case.sigma[n + 1] / case.sigma[n] * x - case.alpha[n + 1] * B * m0
        predicted, r, D = base, 0.0, torch.zeros_like(m0)
        if n:
            r = (case.lam[n - 1] - case.lam[n]) / h
            D = (history[1] - m0) / r
            predicted = base - case.alpha[n + 1] * B * 0.5 * D
        if n + 1 == STEPS:
            x = predicted
            break
        new = case.data(predicted, n + 1)
        # The corrector's system, sum_k a_k r_k^(m-1) = b_m for m = 1, 2 and r = 1 at the new drift.
        first = (B / -h - 1) / B
        second = 2 * ((B / -h - 1) / -h - 0.5) / B
        if n:
            past = (second - first) / (r - 1)
            x = base - case.alpha[n + 1] * B * (past * D + (first - past) * (new - m0))
        else:
            x = base - case.alpha[n + 1] * B * 0.5 * (new - m0)
        history = [new, m0]
    agree(case.sampled(sa.samplers.uni_pc(schedule)), x)


def test_edm_heun() -> None:
    """Karras et al. (2022), Algorithm 1, with its last step to sigma = 0."""
    schedule = sa.VE()
    case = Setting(schedule, "sample", sa.karras(schedule, STEPS, final_zero=True))
    x, sigma = case.x_T, case.sigma
    for n in range(STEPS):
        d = (x - case.raw(x, n)) / sigma[n]
        new = x + (sigma[n + 1] - sigma[n]) * d
        if sigma[n + 1] != 0:
            d_new = (new - case.raw(new, n + 1)) / sigma[n + 1]
            new = x + (sigma[n + 1] - sigma[n]) * (d / 2 + d_new / 2)
        x = new
    agree(case.sampled(sa.samplers.edm_heun(schedule)), x)


@pytest.mark.parametrize("ends", [(1.0, 0.0), (0.9, 0.05)])
@pytest.mark.parametrize("name", ["flow_euler", "flow_heun"])
def test_flow(name: str, ends: tuple[float, float]) -> None:
    """Euler's and Heun's methods on dx/dt = v(x, t), from pure noise at t = 1 to data at t = 0 and in between."""
    schedule = sa.RectifiedFlow()
    start, stop = ends
    grid = stop + (start - stop) * torch.linspace(1, 0, STEPS + 1, dtype=DOUBLE) ** 1.5
    case = Setting(schedule, "flow_prediction", grid)
    x, t = case.x_T, grid.tolist()
    for n in range(STEPS):
        v, dt = case.raw(x, n), t[n + 1] - t[n]
        new = x + dt * v
        if name == "flow_heun" and t[n + 1] > 0:
            new = x + dt * (v + case.raw(new, n + 1)) / 2
        x = new
    agree(case.sampled(getattr(sa.samplers, name)(schedule)), x)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_rex(eta: float) -> None:
    """Blasingame and Liu (2025): Heun with an integrating factor in x_0, coupled as McCallum and Foster (2024) do."""
    schedule, path, zeta = sa.VPLinear(), sa.BrownianPath(seed=2), 0.9
    case = Setting(schedule)
    sampler = sa.samplers.rex(schedule, zeta=zeta, eta=eta)
    z = case.normals(sampler, path) if eta else torch.zeros(STEPS, 1, 1, dtype=DOUBLE)

    def moved(x: Tensor, n: int, m: int) -> tuple[float, Tensor]:
        """By what x is multiplied from node n to node m, and what Heun adds to it there."""
        low, h = min(n, m), case.lam[m] - case.lam[n]
        ratio = case.sigma[m] / case.sigma[n] * math.exp(-eta * h)
        gain = -case.alpha[m] * math.expm1(-(1 + eta) * h)
        noise = math.copysign(1, h) * case.sigma[m] * math.sqrt(abs(math.expm1(-2 * h))) * z[low]
        first = case.data(x, n)
        return ratio, gain * (first + case.data(ratio * x + gain * first + noise, m)) / 2 + noise

    x = xh = case.x_T
    for n in range(STEPS):
        ratio, up = moved(xh, n, n + 1)
        x = ratio * (zeta * x + (1 - zeta) * xh) + up
        back, down = moved(x, n + 1, n)
        xh = (xh - down) / back
    agree(case.sampled(sampler, path if eta else None), x)
    assert sa.samplers.rex(schedule) == (sa.Frame(schedule), sa.Coupled(sa.Heun(), 0.999))
    flow = sa.samplers.rex(schedule, sa.ShARK(), 1.0, 0.5, "flow")
    assert flow == (sa.Frame(schedule, 0.5, "flow"), sa.Coupled(sa.ShARK(), 1.0))


@pytest.mark.parametrize("name", ["sra1_sde", "shark_sde"])
def test_strong_order_three_halves(name: str) -> None:
    """Roessler (2010), Table 6.3, and Foster et al. (2024), on dy = x_0 dSNR + dB_SNR with y = x alpha / sigma^2."""
    schedule, path = sa.VPLinear(), sa.BrownianPath(seed=9)
    case = Setting(schedule, "sample")
    sampler: sa.samplers.NamedSampler = getattr(sa.samplers, name)(schedule)
    W, H = (f(sampler.frame, case.grid, case.x_T) for f in (path.increments, path.levy_areas))
    snr = [math.exp(2 * lam) for lam in case.lam]

    def data(y: Tensor, s: float) -> Tensor:
        t = schedule.time(0.5 * math.log(s))
        return network(y * float(schedule.sigma(t) ** 2 / schedule.alpha(t)), t.expand(3))

    y = case.x_T * case.alpha[0] / case.sigma[0] ** 2
    for n in range(STEPS):
        s, h = snr[n], snr[n + 1] - snr[n]
        if name == "sra1_sde":
            chi = W[n] / 2 + H[n]  # I_(1,0) / h
            first = data(y, s)
            second = data(y + 0.75 * h * first + 1.5 * chi, s + 0.75 * h)
            y = y + h * (first / 3 + 2 * second / 3) + W[n]
        else:
            shifted = y + H[n]
            first = data(shifted, s)
            second = data(shifted + 5 / 6 * (h * first + W[n]), s + 5 / 6 * h)
            y = y + h * (0.4 * first + 0.6 * second) + W[n]
    agree(case.sampled(sampler, path), y * case.sigma[-1] ** 2 / case.alpha[-1])


def test_every_named_sampler_is_tested_here() -> None:
    source = inspect.getsource(inspect.getmodule(test_ddim))  # type: ignore[arg-type]
    functions = ((name, f) for name, f in vars(sa.samplers).items() if inspect.isfunction(f))
    named = [name for name, f in functions if f.__module__ == sa.samplers.__name__]
    assert named
    for name in named:
        assert name in source
