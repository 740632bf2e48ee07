"""Programs by restarted, reflected Halpern iteration on the hybrid gradient step."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.adjoint import Adjoint, frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint, implicit
from jaxiter.linear import dense, gmres
from jaxiter.numerics import anchor, numbers_in, stop_gradient, strong
from jaxiter.operators.programs.certificates import ray_of
from jaxiter.operators.programs.hybrid_gradient import advanced, hybrid_gradient, proof, step_units
from jaxiter.operators.programs.program import PrimalDual, Program, needed, within
from jaxiter.operators.programs.result import ProgramResult, result
from jaxiter.operators.programs.scaling import Scaling, scaling
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import as_point
from jaxiter.solution import Solution
from jaxiter.solvers.halpern import halpern
from jaxiter.stop import tolerance

#: Relative errors that are asked for by default, by the size of the dtype in bytes.
TOLERANCES = {4: 1e-4, 8: 1e-6}
#: The point is judged every so many steps.
EVERY = 20
#: Up to so many unknowns derivatives are by a dense solve.
DENSE = 1000


def solve_by_halpern(front: str, program: Program, x0: Any, options: SolveOptions) -> ProgramResult:
    """The result of a linear or quadratic program, by products with its matrices alone.

    Args:
      front: the function that was called, for messages. x0: None, an x, a `PrimalDual`, or an
        earlier `ProgramResult`.
      options: as `linear_program` takes and explains them.
    """
    start = _started(program, x0)
    # What Halpern's iteration wants is the nonexpansive map that the averaged one is made of.
    averaged = 0.5 if program.Q is None else 2 / 3
    chosen = choose(
        front, options, {}, keep_best=True, max_steps=100_000,
        solver=optax.chain(optax.scale(1 / averaged), halpern()),
        adjoint=implicit(dense() if numbers_in(start) <= DENSE else gmres()),
        stop=tolerance(rtol=TOLERANCES[program.q.dtype.itemsize], atol=0.0))
    units = scaling(program)
    every = EVERY if chosen.check_every == 1 else chosen.check_every
    adjoint = as_adjoint(chosen.adjoint)
    solves = adjoint.solves and not adjoint.sums_map
    if solves:  # a linear system: in units, and not as the driver would
        chosen = chosen._replace(adjoint=frozen())
    solution = fixed_point(hybrid_gradient(every), start, program, units, **chosen._asdict())
    pace = stop_gradient(solution.state.answer.memory)
    if solves:
        solution = solution._replace(value=_attached(adjoint, solution, pace.used, program, units))
    point = needed(program, advanced(solution.value, pace.used, program, units))
    return result(program, point, solution, ray_of(solution, proof, program, units))


def _attached(
    adjoint: Adjoint, solution: Solution, weight: jax.Array, program: Program, units: Scaling
) -> PrimalDual:
    """The answer, with derivatives by a linear system in units in which T is a contraction."""
    value = stop_gradient(solution.value)
    roots = stop_gradient(step_units(weight, units))

    def equations(moved: PrimalDual) -> PrimalDual:  # T(x) - x in these units, by x - value
        point = jax.tree.map(lambda x, root, way: x + root * way, value, roots, moved)
        gap = trees.subtract(advanced(point, weight, program, units), point)
        return jax.tree.map(jnp.divide, gap, roots)

    still = anchor(trees.zeros_like(value), value)
    moved = adjoint.attach(equations, still, (), solution.status)
    return jax.tree.map(lambda x, root, way: x + root * way, value, roots, moved)


def _started(program: Program, x0: Any) -> PrimalDual:
    """A start from an x within the bounds, multipliers 0 unless they are given.

    Raises:
      ValueError: other shapes, NaN or infinity.
      TypeError: another dtype.
    """
    none = PrimalDual(*map(jnp.zeros_like, (program.q, program.b, program.h)))
    if x0 is None:
        return none._replace(x=within(program, none.x))
    if isinstance(x0, ProgramResult):
        x0 = PrimalDual(x0.x, x0.equality_dual, x0.inequality_dual)
    given = as_point(x0 if isinstance(x0, PrimalDual) else none._replace(x=strong(x0)))
    for name, start, wanted in zip(given._fields, given, none, strict=True):
        if start.shape != wanted.shape or start.dtype != wanted.dtype:
            raise ValueError(f"x0 must be {wanted.dtype} of shape {wanted.shape} in {name}, got "
                             f"{start.dtype} of shape {start.shape}.")
    return given
