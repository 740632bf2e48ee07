"""Matrix-free linear solvers; every solve recomputes its true residual and returns a status.

Each factory returns a `LinearSolver`: `solve(matvec, b, *, x0=None) -> LinearSolution`, on pytrees.
"""

from jaxiter.linear.bicgstab import bicgstab
from jaxiter.linear.conjugate_gradients import cg, normal_cg
from jaxiter.linear.dense import dense
from jaxiter.linear.gmres import gmres
from jaxiter.linear.rows import by_rows
from jaxiter.linear.system import LinearSolution, LinearSolver, Matvec, default_rtol

__all__ = ["LinearSolution", "LinearSolver", "Matvec", "bicgstab", "by_rows", "cg", "default_rtol",
           "dense", "gmres", "normal_cg"]
