"""Solvers of ``dy = F(s, y) ds + dB``: one file each, knowing nothing of diffusion."""

from .adams_bashforth import AdamsBashforth
from .base import Claims, Drift, Interval, ReversibleSolver, Solver, State
from .bogacki_shampine import BogackiShampine
from .coupled import Coupled
from .dopri5 import Dopri5
from .dpm_solver_3 import DPMSolver3
from .dpm_solver_pp_2m import DPMSolverPP2M
from .euler import Euler
from .heun import Heun
from .midpoint import Midpoint
from .reversible_heun import ReversibleHeun
from .rk4 import RK4
from .runge_kutta import RungeKutta, Tableau
from .shark import ShARK
from .sra1 import SRA1
from .uni_pc import UniPC

__all__ = [
    "RK4",
    "SRA1",
    "AdamsBashforth",
    "BogackiShampine",
    "Claims",
    "Coupled",
    "DPMSolver3",
    "DPMSolverPP2M",
    "Dopri5",
    "Drift",
    "Euler",
    "Heun",
    "Interval",
    "Midpoint",
    "ReversibleHeun",
    "ReversibleSolver",
    "RungeKutta",
    "ShARK",
    "Solver",
    "State",
    "Tableau",
    "UniPC",
]
