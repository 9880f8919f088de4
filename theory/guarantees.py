"""What is proved about the solvers, one entry per claim; the derivations are the Markdown files beside this one."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Guarantee:
    """A proved order of convergence.

    Args:
        subject: the solver, as the call that makes it.
        quantity: ``"ode"`` (no noise) or ``"strong"`` (root mean square, pathwise, additive noise).
        order: the proved order.
        hypotheses: what is assumed beyond a smooth drift with bounded derivatives.
        source: the numbered statement, and where it comes from.
    """

    subject: str
    quantity: str
    order: float
    hypotheses: str
    source: str


_ANY = "any noise clock"
_AFFINE = "noise clock affine in the drift clock (data kind, eta = 1)"

_ONE_STEP = {"Euler()": 1, "Heun()": 2, "Midpoint()": 2, "RK4()": 4, "SRA1()": 2, "ShARK()": 2}
_MULTISTEP = {"DPMSolverPP2M()": 2} | {
    f"AdamsBashforth(order={k}, variable={variable!r})": min(k, 2)
    for k in (1, 2, 3, 4)
    for variable in ("log", "clock")
}

GUARANTEES: tuple[Guarantee, ...] = (
    *(Guarantee(name, "ode", order, "none", "orders.md, O1") for name, order in _ONE_STEP.items()),
    *(Guarantee(name, "ode", order, "Euler start", "orders.md, O2") for name, order in _MULTISTEP.items()),
    *(
        Guarantee(name, "strong", 1.0, _ANY, "orders.md, O3")
        for name in (*_ONE_STEP, *_MULTISTEP)
        if name not in ("SRA1()", "ShARK()")
    ),
    Guarantee("SRA1()", "strong", 1.5, _AFFINE, "orders.md, O4; Roessler (2010)"),
    Guarantee("ShARK()", "strong", 1.5, _AFFINE, "orders.md, O4; Foster, dos Reis and Strange (2024)"),
)
