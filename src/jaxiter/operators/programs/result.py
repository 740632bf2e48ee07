"""What the fronts for programs return."""

from typing import NamedTuple

import jax

from jaxiter import trees
from jaxiter.operators.programs.optimality import optimality
from jaxiter.operators.programs.program import PrimalDual, Program, objective, within
from jaxiter.operators.programs.sizes import reduced_cost
from jaxiter.solution import Solution, reports


@reports
class ProgramResult(NamedTuple):
    """The answer of a linear or quadratic program.

    The Lagrangian is `x'Qx/2 + q'x + y'(A x - b) + z'(G x - h) - r'(x - bound)`, so that

        Q x + q + A' equality_dual + G' inequality_dual - reduced_cost = 0

    and the derivatives of the objective are `-equality_dual` with respect to b,
    `-inequality_dual` with respect to h, and `reduced_cost` with respect to an active bound.

    Attributes:
      x: `[n]`, within its bounds.
      equality_dual, inequality_dual: `[p]`, `[m]`; the latter are at least 0.
      reduced_cost: `[n]`: positive where x is held at its lower bound, negative at its upper.
      objective: `x'Qx/2 + q'x`. gap: by how much the dual's objective is below, scalar.
      certificate: zeros, but for two statuses. PRIMAL_INFEASIBLE: multipliers y, z >= 0 for which
        every x within its bounds has `y'(A x - b) + z'(G x - h) > 0` (a Farkas ray).
        DUAL_INFEASIBLE: an x along which the objective falls for ever, `q'x < 0`, `Q x = 0`,
        `A x = 0`, `G x <= 0`, and which leaves no bound. Equalities are to a thousandth: a ray
        says nothing about solutions a thousand times as long as right-hand sides, q / Q and the
        last point.
      solve: the untouched `Solution`; its value is in the units that the method works in.
    """

    x: jax.Array
    equality_dual: jax.Array
    inequality_dual: jax.Array
    reduced_cost: jax.Array
    objective: jax.Array
    gap: jax.Array
    certificate: PrimalDual
    solve: Solution


def result(
    program: Program, point: PrimalDual, solve: Solution, certificate: PrimalDual | None = None
) -> ProgramResult:
    """The result that a point in the units of the program stands for."""
    point = point._replace(x=within(program, point.x))
    if certificate is None:
        certificate = trees.zeros_like(point)
    return ProgramResult(
        point.x, point.equality_dual, point.inequality_dual, reduced_cost(program, point),
        objective(program, point.x), optimality(program, point).gap, certificate, solve)
