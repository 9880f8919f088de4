"""The page of the guide that an audit writes."""

from __future__ import annotations

from .measure import Plan
from .result import Audit
from .subjects import OURS, THEIRS

TOP = """# An audit of samplers

Does a sampler do what is said of it? `sdeadjoint audit --out docs` measures every named sampler of this library, and
every scheduler of diffusers that the [adapters](schedulers.md) support. It writes this page with its picture, and
`audit.csv` and `audit.json` with all digits. It takes a few minutes on one core. `--quick` measures a few of them.

![Orders, spread of the samples and gradient errors of every sampler](audit.png)

## What is measured

The network is the perfect one of a problem whose answer is known, so that every error belongs to the sampler. A
scheduler is read by `sa.adapters.from_diffusers`. Its grid, its method and its noise are then those of its own loop
(the tests compare the two). What is left out is its rounding of timesteps: the perfect network is given the noise
level itself.

| column | what it is |
|---|---|
| eta | 0 for the probability-flow ODE, 1 for the diffusion SDE; see [samplers](samplers.md) |
| ODE | order of the states without noise, measured *of* stated |
| strong | order along Brownian paths, for samplers with noise |
| gradient | order of the gradient in x_T against the equation's |
| weak | order of the variance of the samples for Gaussian data, without sampling |
| on its grid | order of the states on the sampler's own grids, ends included, from 10 to 100 calls |
| std, N | standard deviation of the samples at N network calls against the exact one, for data `N(0, 1/4)` |
| gradient, N | relative error of the gradient of `sum x_0^2 / 2` in x_T against the equation's, at N network calls |

The first four orders are measured on nested grids of {steps} steps, uniform in lambda, whose ends are regular: they
are the method's. The problem is a mixture of two Gaussians on the line without noise, whose solution is known in
closed form, and a mixture of three in the plane with noise. An order is bold if its 95 % interval lies below the
stated one by more than 0.15. A dash is an order that does not apply or that does not show. Standard deviations are
computed from the gradients in x_T and in the noise, without sampling, and x_T has the exact law at the first time.
Gradients are those of the mixture on the line.

What is stated: for this library's samplers their `claims`. For a scheduler it is `solver_order`, one more for UniPC
as its documentation has it; for LMS and PNDM the order of their weights; 2 for methods of two stages. Along paths it
is the order 1 that methods without Levy areas can have. LCM and TCD are for distilled models. They state no order,
and with the mean of a perfect network they do not solve the equation.

"""


def page(audit: Audit, plan: Plan) -> str:
    """The whole page in Markdown."""
    steps = f"{', '.join(map(str, plan.steps[:-1]))} and {plan.steps[-1]}"
    parts = [TOP.format(steps=steps), "## What was found\n\n", _findings(audit)]
    for family, title in ((OURS, "The samplers of this library"), (THEIRS, "The schedulers of diffusers")):
        if any(row.family == family for row in audit.rows):
            parts += [f"\n## {title}\n\n", audit.markdown(family), "\n"]
    return "".join(parts)


def _findings(audit: Audit) -> str:
    """A line for each sampler that departs from what is stated, or is far off at the most calls."""
    lines = []
    for row in audit.rows:
        found = [finding.sentence for finding in row.findings()]
        if found:
            lines.append(f"- `{row.name}`: {'; '.join(found)}.\n")
    return "".join(lines) or "Nothing: orders are as stated, spreads and gradients within five per cent.\n"
