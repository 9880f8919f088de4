"""Published adjoint methods, each a frame and a solver of ``ContinuousAdjoint``."""

from __future__ import annotations

from ...solvers import RK4, DPMSolverPP2M, Euler, Midpoint, Solver
from .adaptive import Adaptive
from .adjoint import ContinuousAdjoint

_DPM: dict[str, Solver] = {"euler": Euler(), "midpoint": Midpoint(), "rk4": RK4()}


def adjoint_deis(order: int = 1, states: str = "recorded", kind: str = "noise") -> ContinuousAdjoint:
    r"""AdjointDEIS: exponential integrators for the adjoint equation, ODE and SDE, on the sampler's grid.

    From t to the noisier s, with ``h = lambda_s - lambda_t < 0`` and ``V(t) = alpha_t^2 a_x(t)^T deps(x_t, t)/dx``,

        a_x(s) = alpha_t/alpha_s a_x(t) + c sigma_s (e^h - 1) / alpha_s^2 D

    with ``D = V(t)`` (order 1) or ``D = V(t) + (V(t) - V(r)) / (2 rho)``, ``rho = (lambda_t - lambda_r) / h`` (order
    2M, r the node before t, the first step of order 1), and ``c = 1 + eta``: 1 for the ODE, 2 for the SDE with eta = 1.
    For conditioning and weights, with ``V_z = alpha_t a_x(t)^T deps/dz`` in the place of V,
    ``a_z(s) = a_z(t) + c sigma_s (e^h - 1) / alpha_s D_z``. These are ``Euler()`` and ``DPMSolverPP2M()`` on the
    adjoint equation in the noise kind, with the same weights for the quadratures.

    Args:
        order: 1 or 2.
        states: see ``ContinuousAdjoint``; the paper recommends ``"recorded"``.
        kind: ``"noise"`` is the paper's. ``"data"``, from our derivation (theory/continuous.md): with the weight w and
            the clock s of that frame,
            ``a_x(s) = w_t/w_s a_x(t) + w_t^2/w_s (s(t) - s(s)) a_x(t)^T dx_0(x_t, t)/dx``.

    Order 2 needs states of order 2: with those of DDIM it is 1, and 1 on SDE paths. It is not the sampler's gradient:
    see ``ContinuousAdjoint`` for when not to use it.
    Errors: ``ValueError`` for other orders; those of ``ContinuousAdjoint``.
    Source: Blasingame and Liu (2024), eq. 2.14 (order 1), eq. 2.15 (2M), Propositions 2.1 and 3.1.
    """
    if isinstance(order, bool) or order not in (1, 2):
        raise ValueError(f"order: got {order!r}; pass 1 (AdjointDEIS-1) or 2 (AdjointDEIS-2M)")
    solver = Euler() if order == 1 else DPMSolverPP2M()
    return ContinuousAdjoint(solver, states, kind=kind)


def adjoint_dpm(
    method: str = "euler", states: str = "reconstructed", *, rtol: float | None = None, atol: float | None = None
) -> ContinuousAdjoint:
    """AdjointDPM: the augmented ODE of state, adjoint and parameters for ``y = x / alpha`` and ``rho = sigma / alpha``.

    Args:
        method: ``"euler"``, ``"midpoint"``, ``"rk4"``, or ``"adaptive"`` (``Adaptive``: DOP853, for small problems).
        states: ``"reconstructed"`` solves for y backwards with a, as the paper does; see ``ContinuousAdjoint``.
        rtol, atol: tolerances, for ``"adaptive"`` alone; 1e-6 and 1e-9 unless given.

    With ``"euler"`` and recorded states it is AdjointDEIS-1. ODE only: with eta > 0 the call of ``sample`` is refused.
    It is not the sampler's gradient: see ``ContinuousAdjoint`` for when not to use it.
    Errors: ``ValueError`` for other methods, for tolerances that would not be used, and those of ``ContinuousAdjoint``.
    Source: Pan, Liew, Tan, Feng and Yan (2024), AdjointDPM.
    """
    if method == "adaptive":
        solver: Solver | Adaptive = Adaptive(1e-6 if rtol is None else rtol, 1e-9 if atol is None else atol)
    elif method not in _DPM:
        raise ValueError(f"method: got {method!r}; pass one of {(*_DPM, 'adaptive')}")
    elif rtol is not None or atol is not None:
        raise ValueError(f"rtol, atol: {method!r} has fixed steps; leave them out, or pass method='adaptive'")
    else:
        solver = _DPM[method]
    return ContinuousAdjoint(solver, states, kind="noise", ode_only=True)
