"""What is proved about the solvers, one entry per claim; the derivations are the Markdown files beside this one."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Guarantee:
    """A proved order of convergence, under the hypotheses H(m) of ``orders.md``.

    Args:
        subject: the solver, as the call that makes it.
        quantity: ``"ode"`` (no noise; the solution, and its gradient by D2), ``"strong"`` (root mean square, pathwise,
            additive noise), ``"gradient"`` (the same of the gradient in x_T, conditioning or weights), ``"weak"``
            (expectations of smooth functions; of gradients too, by D4) or ``"log_prob"`` (``log_likelihood``).
        order: the proved order.
        hypotheses: what is assumed beyond H(m), with the m that the source states.
        source: the numbered statement, and where it comes from.
    """

    subject: str
    quantity: str
    order: float
    hypotheses: str
    source: str


_ANY = "any noise clock"
_REGULAR = "noise clock with nonzero derivative in the drift clock (any kind, eta > 0, ends not singular)"

_ONE_STEP = {
    "Euler()": 1,
    "Heun()": 2,
    "Midpoint()": 2,
    "BogackiShampine()": 3,
    "RK4()": 4,
    "Dopri5()": 5,
    "SRA1()": 2,
    "ShARK()": 2,
}
_EULER_START, _RK4_START = "Euler start", "started by a method of order 4"
_MULTISTEP = {"DPMSolverPP2M()": (2, _EULER_START)}
for _variable in ("log", "clock"):
    for _k in (1, 2, 3, 4):
        _MULTISTEP[f"AdamsBashforth(order={_k}, variable={_variable!r})"] = (min(_k, 2), _EULER_START)
    for _k in (3, 4):
        _MULTISTEP[f"AdamsBashforth(order={_k}, variable={_variable!r}, start=RK4())"] = (_k, _RK4_START)
_SINGLESTEP = tuple(f"DPMSolver3(variant={variant!r})" for variant in ("dpmsolver", "heun", "midpoint"))
_UNI_PC = {f"UniPC(order={k}, variant='bh2')": min(k + 1, 3) for k in (1, 2, 3)} | {"UniPC(order=2, variant='bh1')": 3}
_LOG = (*_SINGLESTEP, *_UNI_PC)
_THREE_HALVES = {"SRA1()": "Roessler (2010)", "ShARK()": "Foster, dos Reis and Strange (2024)"}
_WEAK_TWO = ("Heun()", *_THREE_HALVES)
_COUPLED = {f"Coupled(base={name}, zeta=0.999)": name for name in ("Euler()", "Heun()", "RK4()", "ShARK()")}

GUARANTEES: tuple[Guarantee, ...] = (
    *(Guarantee(name, "ode", order, "none", "orders.md, O1") for name, order in _ONE_STEP.items()),
    *(Guarantee(name, "ode", order, start, "orders.md, O2") for name, (order, start) in _MULTISTEP.items()),
    *(Guarantee(name, "ode", 3, "log s, away from s = 0", "orders.md, O6") for name in _SINGLESTEP),
    *(Guarantee(name, "ode", order, "log s, away from s = 0", "orders.md, O7") for name, order in _UNI_PC.items()),
    *(
        Guarantee(name, "ode", _ONE_STEP[base], "any grid, 0 < zeta <= 1", "reversible.md, R1")
        for name, base in _COUPLED.items()
    ),
    Guarantee("ReversibleHeun()", "ode", 2, "any grid", "reversible.md, R4"),
    *(
        Guarantee(name, "strong", 1.0, _ANY, "orders.md, O3")
        for name in (*_ONE_STEP, *_MULTISTEP, *_LOG)
        if name not in _THREE_HALVES
    ),
    *(Guarantee(name, "strong", 1.5, _REGULAR, f"orders.md, O4; {source}") for name, source in _THREE_HALVES.items()),
    *(
        Guarantee(name, "strong", 1.0, _ANY, "reversible.md, R2")
        for name, base in _COUPLED.items()
        if base not in _THREE_HALVES
    ),
    *(
        Guarantee(name, "strong", 1.5, _REGULAR, "reversible.md, R3")
        for name, b in _COUPLED.items()
        if b in _THREE_HALVES
    ),
    Guarantee("ReversibleHeun()", "strong", 1.0, _ANY, "reversible.md, R5; Kidger, Foster, Li and Lyons (2021)"),
    *(
        Guarantee(name, "gradient", 1.0, _ANY, "discrete_adjoint.md, D3")
        for name in (*_ONE_STEP, *_MULTISTEP, *_LOG)
        if name not in _THREE_HALVES
    ),
    *(Guarantee(name, "gradient", 1.5, _REGULAR, "discrete_adjoint.md, D3") for name in _THREE_HALVES),
    *(
        Guarantee(name, "gradient", 1.5, _REGULAR, "discrete_adjoint.md, D3; reversible.md, R3")
        for name, base in _COUPLED.items()
        if base in _THREE_HALVES
    ),
    *(
        Guarantee(name, "gradient", 1.0, _ANY, "discrete_adjoint.md, D3; reversible.md, R2")
        for name, base in _COUPLED.items()
        if base not in _THREE_HALVES
    ),
    Guarantee("ReversibleHeun()", "gradient", 1.0, _ANY, "discrete_adjoint.md, D3; reversible.md, R5"),
    *(Guarantee(name, "weak", 2 if name in _WEAK_TWO else 1, _ANY, "weak.md, W1") for name in _ONE_STEP),
    *(Guarantee(name, "weak", 1, _ANY, "weak.md, W1") for name in _SINGLESTEP),
    *(Guarantee(name, "weak", 2, _ANY, "weak.md, W2") for name in _UNI_PC),
    *(
        Guarantee(name, "weak", min(order, 2), f"{_ANY}; {start}", "weak.md, W2")
        for name, (order, start) in _MULTISTEP.items()
    ),
    *(
        Guarantee(name, "weak", 2, f"{_ANY}; 0 < zeta <= 1", "weak.md, W4")
        if base in _WEAK_TWO
        else Guarantee(name, "weak", 1, _ANY, "weak.md, W3; reversible.md, R2")
        for name, base in _COUPLED.items()
    ),
    Guarantee("ReversibleHeun()", "weak", 2, _ANY, "weak.md, W5"),
)

# The density is a part of an ordinary equation's solution.
GUARANTEES += tuple(
    replace(g, quantity="log_prob", source=f"likelihood.md, L1; {g.source}") for g in GUARANTEES if g.quantity == "ode"
)
