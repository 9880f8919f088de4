"""Schedules: the inverse, monotony, and float64 accuracy near both ends against 60-digit references."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import mpmath as mp
import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from scipy.interpolate import PchipInterpolator

from sdeadjoint.diffusion.grids import karras, uniform_logsnr, uniform_time, validate_grid
from sdeadjoint.diffusion.schedules import VE, RectifiedFlow, Schedule, Tabulated, VPCosine, VPLevel, VPLinear
from sdeadjoint.diffusion.schedules.tabulated import _cubic, _solve
from sdeadjoint.testing.strategies import schedules, tables, times

EPS = torch.finfo(torch.float64).eps
TINY = torch.finfo(torch.float64).tiny
DEFAULTS = [VPLinear(), VPCosine(), VPLevel(), VE(), RectifiedFlow()]


def ddpm(total: int = 1000) -> torch.Tensor:
    """Stable Diffusion's table ("scaled linear" betas), in float32 as models store it."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, total, dtype=torch.float32) ** 2
    return torch.cumprod(1 - betas, 0)


def f64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


@st.composite
def schedule_times(draw: st.DrawFn, ends: bool = True) -> tuple[Schedule, torch.Tensor]:
    schedule = draw(schedules())
    return schedule, f64(draw(st.lists(times(schedule, ends=ends), min_size=1, max_size=20)))


# ---------------------------------------------------------------- the inverse and the shape


@given(schedule_times())
def test_time_inverts_lam(case: tuple[Schedule, torch.Tensor]) -> None:
    schedule, t = case
    back = schedule.time(schedule.lam(t))
    # The stated accuracy; a table's t counts in indices from clean data at -1, with no relative accuracy at t = 0.
    absolute = 1e-10 if isinstance(schedule, Tabulated) else 0.0
    torch.testing.assert_close(back, t, rtol=1e-10, atol=absolute)
    # An element's value does not depend on its neighbours beyond round-off.
    torch.testing.assert_close(schedule.time(schedule.lam(t[0])), back[0], rtol=1e-10, atol=absolute)


@pytest.mark.parametrize(
    "schedule", [*DEFAULTS, VPLinear(0, 20), VPLinear(5, 5), VPLinear(1, 100), VPCosine(0)], ids=repr
)
def test_time_inverts_lam_on_a_dense_set_of_times(schedule: Schedule) -> None:
    high = min(schedule.domain[1], 10 * schedule.t_max)
    small = high * torch.logspace(-12, 0, 2001, dtype=torch.float64)
    t = torch.cat([small, high - small])
    # 100 ulp: the worst condition number, |lam| / (t |dlam/dt|), is below 30 here.
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t, rtol=100 * EPS, atol=0)


@given(schedule_times())
def test_lam_strictly_decreases_and_sigma_increases(case: tuple[Schedule, torch.Tensor]) -> None:
    schedule, t = case
    t = t.unique()  # sorted
    apart = t.diff() > 1e-10 * (t[1:] + 1)
    assert (schedule.lam(t).diff()[apart] < 0).all()
    assert (schedule.sigma(t).diff() >= 0).all()
    assert (schedule.alpha(t).diff() <= 0).all()


@given(schedule_times())
def test_coefficients_keep_their_family_s_identity(case: tuple[Schedule, torch.Tensor]) -> None:
    schedule, t = case
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if isinstance(schedule, VE):
        assert (alpha == 1).all()
        # exp(log t) magnifies an ulp by |log t| < 40.
        torch.testing.assert_close(sigma, t, rtol=40 * EPS, atol=0)
    else:
        total = alpha + sigma if isinstance(schedule, RectifiedFlow) else alpha**2 + sigma**2
        torch.testing.assert_close(total, torch.ones_like(t), rtol=8 * EPS, atol=0)
    assert torch.equal(alpha, schedule.log_alpha(t).exp())
    assert torch.equal(sigma, schedule.log_sigma(t).exp())


@given(schedules())
def test_ends(schedule: Schedule) -> None:
    low, high = schedule.domain
    assert low <= schedule.t_min < schedule.t_max <= high
    assert schedule.lam(f64([schedule.t_min, schedule.t_max])).isfinite().all()
    for end in (low, high):
        at = schedule.lam(end)
        assert schedule.time(at) == end
        assert not at.isnan()
        # The ratio is infinite exactly where a coefficient is 0 (or, for VE, sigma infinite).
        assert at.isposinf() == schedule.log_sigma(end).isneginf()
        assert at.isneginf() == (schedule.log_alpha(end).isneginf() | schedule.log_sigma(end).isposinf())
    for end, lam in ((low, math.inf), (high, -math.inf)):
        if schedule.lam(end) == lam:
            assert schedule.time(lam) == end
        else:
            with pytest.raises(ValueError, match=r"lam must lie in .* got -?inf"):
                schedule.time(lam)


def test_ends_are_what_samplers_expect() -> None:
    ends = [(1, 1e-3), (0.9946, 1e-3), (150, 0.01), (80, 0.002), (0.999, 1e-3)]
    assert [(s.t_max, s.t_min) for s in DEFAULTS] == ends
    assert VPLinear().lam(0).isposinf()
    assert VPLinear().lam(1).isfinite()
    assert VPCosine().lam(0).isposinf()
    assert VPCosine().alpha(1) == 0
    assert VE().lam(0).isposinf()
    assert VE().domain == (0, math.inf)
    assert RectifiedFlow().lam(0).isposinf()
    assert RectifiedFlow().lam(1).isneginf()
    assert (Tabulated([0.9, 0.5, 0.1]).t_max, Tabulated([0.9, 0.5, 0.1]).t_min) == (2, 0)
    assert (Tabulated([1, 0.9, 0.5, 0]).t_max, Tabulated([1, 0.9, 0.5, 0]).t_min) == (2, 1)


# ---------------------------------------------------------------- high-precision references


def reference(schedule: Schedule, t: float) -> tuple[mp.mpf, mp.mpf]:
    """log alpha and log sigma from the textbook formulas, in mpmath's precision."""
    t = mp.mpf(t)
    if isinstance(schedule, VE):
        return mp.mpf(0), mp.log(t)
    if isinstance(schedule, VPLevel):
        return -mp.log1p(t**2) / 2, mp.log(t) - mp.log1p(t**2) / 2
    if isinstance(schedule, RectifiedFlow):
        return mp.log(1 - t), mp.log(t)
    if isinstance(schedule, VPLinear):
        low, high = mp.mpf(schedule.beta_min), mp.mpf(schedule.beta_max)
        log_alpha = -(low * t / 2 + (high - low) * t**2 / 4)
        return log_alpha, mp.log1p(-mp.exp(2 * log_alpha)) / 2
    if isinstance(schedule, VPCosine):
        s = mp.mpf(schedule.s)
        alpha = mp.cos(mp.pi / 2 * (t + s) / (1 + s)) / mp.cos(mp.pi / 2 * s / (1 + s))
        return mp.log(alpha), mp.log(1 - alpha**2) / 2
    phi = reference_angle(schedule, t)
    return mp.log(mp.cos(phi)), mp.log(mp.sin(phi))


def reference_angle(schedule: Schedule, t: mp.mpf) -> mp.mpf:
    """The monotone cubic through acos(sqrt(table)), in Hermite form, from clean data on."""
    assert isinstance(schedule, Tabulated)
    table = schedule.alphas_cumprod
    if table[0] < 1:
        table, t = (1.0, *table), t + 1
    phi = [mp.acos(mp.sqrt(mp.mpf(a))) for a in table]
    rise = [b - a for a, b in itertools.pairwise(phi)]

    def end(near: mp.mpf, far: mp.mpf) -> mp.mpf:
        return max((3 * near - far) / 2, near / 4)

    inner = [2 * a * b / (a + b) for a, b in itertools.pairwise(rise)]
    slope = [end(rise[0], rise[1]), *inner, end(rise[-1], rise[-2])]
    k = min(int(t), len(rise) - 1)
    u = t - k
    return (
        phi[k] * (1 + 2 * u) * (1 - u) ** 2
        + slope[k] * u * (1 - u) ** 2
        + phi[k + 1] * u**2 * (3 - 2 * u)
        - slope[k + 1] * u**2 * (1 - u)
    )


@given(schedule_times(ends=False))
@example((VPCosine(1e4), f64([0.01, 0.2, 0.5])))
def test_log_alpha_and_log_sigma_are_accurate_near_both_ends(case: tuple[Schedule, torch.Tensor]) -> None:
    schedule, t = case
    t = t[:4]  # references are slow
    # Relative to the logarithm's own size, however small, until it underflows: some ten roundings each. Where
    # alpha is tiny, log sigma = -alpha^2 / 2 has the relative error of an exponential of log alpha.
    got_alpha, got_sigma = schedule.log_alpha(t).tolist(), schedule.log_sigma(t).tolist()
    with mp.workdps(60):
        for time, *got in zip(t.tolist(), got_alpha, got_sigma, strict=True):
            expected = reference(schedule, time)
            for value, want in zip(got, expected, strict=True):
                error = abs(mp.mpf(value) - want)
                assert error <= 32 * EPS * abs(want) * (1 + abs(expected[0])) + TINY, (time, value, want)
            lam = expected[0] - expected[1]
            assert abs(mp.mpf(schedule.lam(time).item()) - lam) <= 32 * EPS * max(1, abs(lam))


@given(schedule_times(ends=False))
@example((VPCosine(1e4), f64([0.2])))
def test_time_is_accurate_not_only_an_inverse(case: tuple[Schedule, torch.Tensor]) -> None:
    schedule, t = case
    if isinstance(schedule, Tabulated):
        return  # no textbook inverse
    lam = schedule.lam(t[0]).item()
    with mp.workdps(60):
        ratio = mp.exp(-2 * mp.mpf(lam))  # sigma^2 / alpha^2
        if isinstance(schedule, VE | VPLevel):
            want = mp.sqrt(ratio)
        elif isinstance(schedule, RectifiedFlow):
            want = mp.sqrt(ratio) / (1 + mp.sqrt(ratio))
        elif isinstance(schedule, VPCosine):
            s = mp.mpf(schedule.s)
            start = mp.pi / 2 * s / (1 + s)
            want = mp.acos(mp.cos(start) / mp.sqrt(1 + ratio)) * 2 / mp.pi * (1 + s) - s
        else:
            assert isinstance(schedule, VPLinear)
            low, high, area = mp.mpf(schedule.beta_min), mp.mpf(schedule.beta_max), mp.log1p(ratio)
            rise = high - low
            want = (mp.sqrt(low**2 + 2 * rise * area) - low) / rise if rise else area / low
        assert abs(mp.mpf(schedule.time(lam).item()) - want) <= 64 * EPS * want


# ---------------------------------------------------------------- tables


@given(tables())
def test_a_table_is_reproduced_at_its_indices(schedule: Tabulated) -> None:
    table = f64(schedule.alphas_cumprod)
    index = torch.arange(len(table))
    # exp(log alpha)^2 magnifies an ulp by 2 |log alpha| < 20.
    torch.testing.assert_close(schedule.alpha(index) ** 2, table, rtol=32 * EPS, atol=0)
    torch.testing.assert_close(schedule.sigma(index) ** 2, 1 - table, rtol=32 * EPS, atol=0)
    assert torch.equal(schedule.time(schedule.lam(index)), index.double())


@given(tables())
def test_clean_data_lies_one_step_before_a_table(schedule: Tabulated) -> None:
    last = len(schedule.alphas_cumprod) - 1
    clean = 0 if schedule.alphas_cumprod[0] == 1 else -1
    assert schedule.domain == (clean, last)
    for value in (schedule.sigma(clean), schedule.log_alpha(clean)):
        assert value == 0
    assert schedule.log_sigma(clean).isneginf()
    assert schedule.lam(clean).isposinf()
    assert schedule.time(math.inf) == clean
    # sigma falls to it linearly: the slope at the start is what it is at 1e-6 from it, to some 1e-5.
    t = clean + f64([1e-9, 1e-6])
    sigma = schedule.sigma(t) / (t - clean)
    torch.testing.assert_close(sigma[0], sigma[1], rtol=2e-5, atol=0)


def test_a_grid_may_end_at_a_tables_clean_data() -> None:
    schedule = Tabulated(ddpm())
    for grid in (
        uniform_logsnr(schedule, 10, final_zero=True),
        karras(schedule, 10, final_zero=True),
        uniform_time(schedule, 10, t_min=-1),
    ):
        assert grid[-1] == -1
        assert torch.equal(validate_grid(grid, schedule), grid)
        assert schedule.sigma(grid[-1]) == 0
        assert schedule.lam(grid).tolist()[-1] == math.inf
        assert schedule.lam(grid)[:-1].isfinite().all()
    with pytest.raises(ValueError, match=r"outside the times \[0\.0, 3\.0\]"):
        validate_grid([3, 2, -1], Tabulated([1.0, 0.9, 0.5, 0.1]))


def test_a_trained_models_table() -> None:
    schedule = Tabulated(ddpm())
    t = torch.arange(-10, 9991).double() / 10
    lam = schedule.lam(t)[::10]
    for same in (lam, torch.nextafter(lam, lam + 1), torch.nextafter(lam, lam - 1)):  # up to round-off
        assert torch.equal(schedule.time(same), t[::10])
    # 2e-12: ulp(|lam| < 5) / |dlam/dt| (at least 0.002 there), with a factor 4.
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t, rtol=0, atol=2e-12)
    assert (schedule.t_max, schedule.t_min) == (999, 0)


def test_a_table_rescaled_to_zero_terminal_snr() -> None:
    root = ddpm().double().sqrt()
    schedule = Tabulated(((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2)
    assert schedule.alpha(999) == 0
    assert schedule.lam(999).isneginf()
    assert schedule.t_max == 998
    distance = torch.logspace(-12, -0.1, 300, dtype=torch.float64)
    t = 999 - distance  # rounds to multiples of 1e-13, exactly represented
    # alpha vanishes linearly: alpha / (999 - t) tends to a constant, monotonically.
    slope = schedule.alpha(t) / (999 - t)
    torch.testing.assert_close(slope[:100], slope[:1].expand(100), rtol=1e-6, atol=0)
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t, rtol=0, atol=1e-12)


def test_the_interpolation_is_scipys_pchip() -> None:
    table = ddpm(50).double()
    angles = torch.atan2((1 - table).sqrt(), table.sqrt()).tolist()
    oracle = PchipInterpolator(np.arange(-1, 50), [0.0, *angles])
    t = torch.linspace(-1, 49, 977, dtype=torch.float64)
    schedule = Tabulated(table)
    phi = torch.atan2(schedule.sigma(t), schedule.alpha(t))
    torch.testing.assert_close(phi, torch.from_numpy(oracle(t.numpy())), rtol=0, atol=16 * EPS)


def test_a_table_is_differentiable_once_across_its_indices() -> None:
    schedule = Tabulated(ddpm(20))
    knot = torch.arange(0.0, 19.0, dtype=torch.float64)
    sides = []
    for t in (knot - 1e-9, knot + 1e-9):
        t.requires_grad_()
        sides.append(torch.autograd.grad(schedule.lam(t).sum(), t)[0])
    # The second derivative jumps but is bounded, by about 1 here: 2e-9 apart, the first agrees to 1e-8.
    torch.testing.assert_close(sides[0], sides[1], rtol=1e-8, atol=0)


def test_a_table_that_flattens_at_its_ends_stays_strictly_monotone() -> None:
    # scipy's end rule would make both end slopes zero, and the inverse lose half its digits.
    angles = f64([0.0, 0.01, 0.4, 0.8, 1.19, 1.2])
    schedule = Tabulated(angles.cos() ** 2)
    near = torch.logspace(-9, -1, 50, dtype=torch.float64)
    t = torch.cat([near, (5 - near).flip(0)])
    assert (schedule.lam(t).diff() < 0).all()
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t, rtol=0, atol=1e-12)


def test_newtons_method_inverts_the_most_crooked_of_monotone_pieces() -> None:
    generator = torch.Generator().manual_seed(0)

    def uniform() -> torch.Tensor:
        return torch.rand(100_000, dtype=torch.float64, generator=generator)

    def slopes() -> torch.Tensor:  # from 0 to 3 rises, crowded at both limits
        small = 10 ** (-12 * uniform())
        return torch.where(uniform() < 0.5, small, 3 - small)

    zero, tiny = torch.zeros(100_000, dtype=torch.float64), 10 ** (-14 * uniform())
    b = torch.stack([zero, slopes() / 3, 1 - slopes() / 3, zero + 1])
    b += torch.where(uniform() < 0.5, zero, 10 ** (4 * uniform() - 2))
    where = torch.where(uniform() < 0.5, uniform(), torch.where(uniform() < 0.5, tiny, 1 - tiny))
    target = b[0] + where * (b[3] - b[0])
    u = _solve(b, target)
    # The residual of the root, rounded to the next float64, is its own few roundings and slope * ulp(u) <= 3 ulp(1).
    torch.testing.assert_close(_cubic(b, u, 1 - u), target, rtol=8 * EPS, atol=3 * EPS)
    assert ((_cubic(b, u, 1 - u) - target).abs() <= 16 * EPS * target)[where < 0.5].all()  # relative, near the start


def test_a_crooked_table_is_inverted() -> None:
    # Rises from 1e-10 to 0.5 side by side.
    schedule = Tabulated([1.0, 0.5, 0.499, 0.498999, 0.2, 0.1999, 1e-20, 0.0])
    t = torch.cat([torch.linspace(0, 7, 2001, dtype=torch.float64), torch.logspace(-12, 0, 101).double()])
    # The flattest piece has dlam/dt = 1e-6, and lam a few ulp of 1 of noise.
    torch.testing.assert_close(schedule.time(schedule.lam(t)), t, rtol=0, atol=16 * EPS / 1e-6)


def test_small_angles_are_interpolated_to_relative_accuracy() -> None:
    schedule = Tabulated([1 - 2**-50, 1 - 2**-48, 0.5, 1e-16, 1e-20, 1e-24])
    with mp.workdps(60):
        for time in (-0.999999, -0.3, 0.3, 1.4, 2.6, 3.1, 3.5, 3.9, 4.3, 4.9):
            expected = reference(schedule, time)
            for value, want in zip((schedule.log_alpha(time), schedule.log_sigma(time)), expected, strict=True):
                assert abs(mp.mpf(value.item()) - want) <= 32 * EPS * abs(want), (time, value, want)


def test_equal_rises_of_the_shortest_table_are_a_straight_line_in_the_angle() -> None:
    schedule = Tabulated([0.75, 0.25])  # angles pi/6 and pi/3, after 0
    torch.testing.assert_close(schedule.sigma(-0.5), f64(math.sin(math.pi / 12)), rtol=8 * EPS, atol=0)
    torch.testing.assert_close(schedule.alpha(0.5), f64(math.sqrt(0.5)), rtol=8 * EPS, atol=0)
    torch.testing.assert_close(schedule.sigma(0.25), f64(math.sin(math.pi * 5 / 24)), rtol=8 * EPS, atol=0)
    assert schedule.time(schedule.lam(0.25)) == pytest.approx(0.25, rel=1e-14)


def test_tables_come_from_lists_arrays_and_tensors() -> None:
    table = ddpm(10)
    frozen = table.numpy().copy()
    frozen.flags.writeable = False
    made = [Tabulated(v) for v in (table, table.double())]
    made += [Tabulated(v) for v in (table.tolist(), tuple(table.tolist()))]
    made.append(Tabulated(frozen))  # type: ignore[arg-type]
    assert len({*made}) == 1
    assert isinstance(made[0].alphas_cumprod, tuple)
    assert Tabulated(table) != Tabulated(table[:9])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ([0.9, 0.5, 0.6], r"strictly decrease .* 0\.5 at index 1 and 0\.6 at index 2; pass the cumulative"),
        ([0.9, 0.5, 0.5], "strictly decrease"),
        ([0.9, math.nextafter(0.1, 1), 0.1], "by more than round-off"),
        ([1.1, 0.5, 0.2], r"in \[0, 1\]"),
        ([0.9, 0.5, -0.1], r"in \[0, 1\]"),
        ([0.9, math.nan, 0.1], r"in \[0, 1\]"),
        ([1.0, 0.5, 0.0], "at least two values strictly between"),
        ([], "at least two"),
        (torch.full((2, 2), 0.5), r"shape \(2, 2\)"),
        (torch.tensor(0.5), r"shape \(\)"),
        (torch.tensor([0.5j, 0.2]), "complex64"),
        (torch.tensor([0.9, 0.5, 0.1], requires_grad=True), r"requires a gradient, .*; pass its \.detach\(\)"),
    ],
)
def test_bad_tables_are_refused(table: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Tabulated(table)  # type: ignore[arg-type]


# ---------------------------------------------------------------- the door


@given(schedules(), st.sampled_from(["log_alpha", "log_sigma", "alpha", "sigma", "lam"]))
def test_times_outside_the_domain_are_refused(schedule: Schedule, method: str) -> None:
    low, high = schedule.domain
    outside = [math.nextafter(low, -math.inf), math.nan, -math.inf]
    outside += [math.nextafter(high, math.inf), math.inf] if high < math.inf else []
    for bad in outside:
        got = "nan" if math.isnan(bad) else f"{bad}".replace("+", r"\+")
        with pytest.raises(ValueError, match=rf"t must lie in \[{low}, {high}\].*{type(schedule).__name__}.*{got}$"):
            getattr(schedule, method)(f64([[schedule.t_max], [bad]]))


def test_round_off_at_the_ends_of_the_range_is_forgiven() -> None:
    table = Tabulated([0.9, 0.5, 0.1])
    assert VPLinear().time(math.nextafter(VPLinear().lam(1).item(), -math.inf)) == 1
    assert table.time(math.nextafter(table.lam(2).item(), -math.inf)) == 2
    assert table.time(math.nextafter(table.lam(0).item(), math.inf)) == 0  # an inner knot


def test_lams_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"lam must lie in \[-5\.02.*, inf\], the range of this VPLinear; got -6\.0"):
        VPLinear().time(-6.0)
    with pytest.raises(ValueError, match=r"lam must lie in \[-1\.09.*, inf\], .*Tabulated; got -5\.0"):
        Tabulated([0.9, 0.5, 0.1]).time(f64([0.0, -5.0]))
    for schedule in [*DEFAULTS, Tabulated([0.9, 0.5, 0.1])]:
        with pytest.raises(ValueError, match="got nan"):
            schedule.time(math.nan)


def test_wrong_types_are_refused() -> None:
    for bad in (torch.tensor([1j]), torch.tensor([True]), True, "0.5", [0.5], None):
        with pytest.raises(TypeError, match=r"^t must be"):
            VPLinear().lam(bad)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match=r"^lam must be"):
            VPLinear().time(bad)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "make",
    [
        lambda: VPLinear(-0.1, 20),
        lambda: VPLinear(2, 1),
        lambda: VPLinear(0, 0),
        lambda: VPLinear(0.1, math.inf),
        lambda: VPLinear(math.nan, 1),
        lambda: VPCosine(-1e-3),
        lambda: VPCosine(math.inf),
        lambda: VE(0, 1),
        lambda: VE(2, 1),
        lambda: VE(1, math.inf),
    ],
)
def test_bad_parameters_are_refused(make: object) -> None:
    with pytest.raises(ValueError, match="must be finite"):
        make()  # type: ignore[operator]


@given(schedules(), st.sampled_from([(), (1,), (0,), (2, 3), (1, 17)]))
def test_shape_dtype_and_device_of_results(schedule: Schedule, shape: tuple[int, ...]) -> None:
    t = torch.full(shape, schedule.t_max, dtype=torch.float64)
    for result in (schedule.log_alpha(t), schedule.log_sigma(t), schedule.alpha(t), schedule.lam(t)):
        assert (result.shape, result.dtype, result.device) == (t.shape, torch.float64, t.device)
    back = schedule.time(schedule.lam(t))
    assert (back.shape, back.dtype, back.device) == (t.shape, torch.float64, t.device)


@pytest.mark.parametrize("schedule", [*DEFAULTS, Tabulated(ddpm(30))], ids=lambda s: type(s).__name__)
def test_numbers_and_narrow_dtypes_are_promoted_exactly(schedule: Schedule) -> None:
    for number in (0.1, 1, np.float64(0.3)):
        result = schedule.log_sigma(number)
        assert result.shape == ()
        assert torch.equal(result, schedule.log_sigma(f64([number]))[0])
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        t = torch.tensor([0.1, 0.7], dtype=dtype)
        assert torch.equal(schedule.log_sigma(t), schedule.log_sigma(t.double()))
    assert torch.equal(schedule.log_sigma(torch.tensor([1])), schedule.log_sigma(f64([1.0])))
    lam = schedule.lam(f64([[0.1, 0.2], [0.3, 0.4]]))
    torch.testing.assert_close(schedule.time(lam.T), schedule.time(lam).T, rtol=1e-12, atol=0)  # strides


@pytest.mark.parametrize("schedule", [*DEFAULTS, Tabulated(ddpm(30))], ids=lambda s: type(s).__name__)
def test_defaults_of_torch_do_not_matter(schedule: Schedule) -> None:
    lam = schedule.lam(0.3).item()
    expected = schedule.lam(0.3), schedule.time(lam)
    fresh = eval(repr(schedule))  # with no cached tables
    try:
        torch.set_default_dtype(torch.float16)
        torch.set_default_device("meta")
        got = fresh.lam(0.3), fresh.time(lam)
        rebuilt = Tabulated([0.9, 0.5, 0.1])
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    assert got == expected
    assert rebuilt.alphas_cumprod == (0.9, 0.5, 0.1)


@given(schedules())
def test_repr_equality_hash_and_copies(schedule: Schedule) -> None:
    schedule.lam(schedule.t_max)  # fill the caches
    for other in (eval(repr(schedule)), copy.deepcopy(schedule), pickle.loads(pickle.dumps(schedule))):
        assert other == schedule
        assert hash(other) == hash(schedule)
        assert type(other) is type(schedule)
        assert torch.equal(other.lam(schedule.t_max), schedule.lam(schedule.t_max))
    with pytest.raises(AttributeError):
        schedule.domain = (0.0, 1.0)  # type: ignore[misc]


class Short(Schedule):
    """``lam = 1 - t`` on [0, 1]: both ends of its range are finite, and one is zero."""

    domain = (0.0, 1.0)
    t_max, t_min = 1.0, 0.0

    def _log_alpha(self, t: torch.Tensor) -> torch.Tensor:
        return (1 - t) + self._log_sigma(t)

    def _log_sigma(self, t: torch.Tensor) -> torch.Tensor:
        return -torch.nn.functional.softplus(2 * (1 - t)) / 2

    def _time(self, lam: torch.Tensor) -> torch.Tensor:
        return 1 - lam


@pytest.mark.parametrize(("end", "t", "outwards"), [(0.0, 1.0, -1), (1.0, 0.0, 1)])
def test_finite_ends_of_the_range_are_met_to_round_off_and_no_further(end: float, t: float, outwards: int) -> None:
    eps = torch.finfo(torch.float64).eps
    for ulps in (0, 2, 6):
        assert Short().time(end + outwards * ulps * eps) == t
    with pytest.raises(ValueError, match="lam must lie in"):
        Short().time(end + outwards * 64 * eps)
