"""jaxiter: differentiable fixed points in JAX, accelerated, with honest statuses."""

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from jaxiter import estimators, linear
from jaxiter.accuracy import accuracy
from jaxiter.adjoint import frozen, neumann, one_step, unrolled
from jaxiter.citation import cite
from jaxiter.diagnose import adjoint_report, diagnose
from jaxiter.driver import fixed_point
from jaxiter.gauss_newton import gauss_newton
from jaxiter.implicit import attach_implicit, implicit
from jaxiter.infeasibility import no_fixed_point
from jaxiter.lanes import over_mesh, solve_many
from jaxiter.least_squares import LeastSquares, least_squares, least_squares_many
from jaxiter.levenberg_marquardt import levenberg_marquardt
from jaxiter.losses import cauchy, huber, soft_l1
from jaxiter.monitor import callback, printer, progress, record
from jaxiter.problem import Problem
from jaxiter.process import Batches, Process, iterate, iterate_many
from jaxiter.roots import bracketed_root, root, root_many
from jaxiter.solution import Solution, Status
from jaxiter.solvers import (
    anderson,
    damped,
    descending,
    guard,
    halpern,
    inertial,
    overrelaxed,
    picard,
    restarted,
    squarem,
)
from jaxiter.spectral import spectral_norm
from jaxiter.splitting import SplitResult, Splitting, solve_splitting
from jaxiter.stability import jacobian_penalty, spectral_rescale
from jaxiter.stages import in_stages
from jaxiter.stop import all_of, any_of, divergence, stagnation, tolerance

if TYPE_CHECKING:
    from jaxiter import bilevel, diffusion, operators, optim, recurrence, transport

__version__ = "0.1.0"

#: Imported when they are first asked for: together they would take as long as all the rest.
_FAMILIES = ("bilevel", "diffusion", "operators", "optim", "recurrence", "transport")


def __getattr__(name: str) -> ModuleType:
    """A family, `jaxiter.transport` say, without an import of its own."""
    if name in _FAMILIES:
        return import_module(f"jaxiter.{name}")
    raise AttributeError(f"module 'jaxiter' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


__all__ = [
    "Batches", "LeastSquares", "Problem", "Process", "Solution", "SplitResult", "Splitting",
    "Status", "accuracy", "adjoint_report", "all_of", "anderson", "any_of", "attach_implicit",
    "bilevel", "bracketed_root", "callback", "cauchy", "cite", "damped", "descending", "diagnose",
    "diffusion", "divergence", "estimators", "fixed_point", "frozen", "gauss_newton", "guard",
    "halpern", "huber", "implicit", "in_stages", "inertial", "iterate", "iterate_many",
    "jacobian_penalty", "least_squares", "least_squares_many", "levenberg_marquardt", "linear",
    "neumann", "no_fixed_point", "one_step", "operators", "optim", "over_mesh", "overrelaxed",
    "picard", "printer", "progress", "record", "recurrence", "restarted", "root", "root_many",
    "soft_l1", "solve_many", "solve_splitting", "spectral_norm", "spectral_rescale", "squarem",
    "stagnation", "tolerance", "transport", "unrolled",
]
