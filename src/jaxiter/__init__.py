"""jaxiter: differentiable fixed points in JAX."""

from jaxiter import linear
from jaxiter.adjoint import attach_implicit, frozen, implicit, neumann, one_step, unrolled
from jaxiter.driver import fixed_point, root
from jaxiter.lanes import over_mesh, solve_many
from jaxiter.monitor import callback, printer, progress, record
from jaxiter.problem import Problem
from jaxiter.solution import Solution, Status
from jaxiter.solvers import anderson, damped, guard, halpern, inertial, picard, restarted
from jaxiter.stop import all_of, any_of, divergence, no_fixed_point, stagnation, tolerance

__version__ = "0.1.0"
