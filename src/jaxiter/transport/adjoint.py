"""From solved potentials to a result: their status, their derivatives, the values.

The pair (f, g) is attached, the linear system solved for g alone.
"""

import jax.numpy as jnp

from jaxiter import trees
from jaxiter.adjoint import Adjoint
from jaxiter.linear import LinearSolution, LinearSolver, Matvec, default_rtol
from jaxiter.numerics import anchor, safe_divide, stop_gradient
from jaxiter.solution import Solution, Status
from jaxiter.stop import Stop
from jaxiter.transport.checks import judged
from jaxiter.transport.equations import Pair, equations, scaled_equations
from jaxiter.transport.geometry import Geometry, Reduced
from jaxiter.transport.iteration import Marginals
from jaxiter.transport.result import TransportResult, assemble, present


def eliminated(solve: LinearSolver) -> LinearSolver:
    """A solver of the pair's system, or of its transpose, by one of half its size.

    One of the two off-diagonal blocks is zero, so f costs no solve. The residual is reported
    relative to both right-hand sides: where a loss asks of f and g what cancels once f is
    eliminated, the rest is rounding, and where the plan nearly falls into blocks no solver
    could reduce that.
    """
    def of_pair(matvec: Matvec, b: Pair, *, x0: Pair | None = None) -> LinearSolution:
        no_f, no_g = anchor(trees.zeros_like(b), b)
        rhs = b[1] - matvec((b[0], no_g))[1]
        warm = {} if x0 is None else {"x0": x0[1]}
        out = solve(lambda v: matvec((no_f, v))[1], rhs, **warm)
        residual = out.residual * safe_divide(trees.norm(rhs), trees.norm(b))
        small = (residual <= default_rtol(b)) & trees.finite(out.value)
        status = jnp.where(small, jnp.int32(Status.CONVERGED), out.status)
        f = b[0] - matvec((no_f, out.value))[0]
        return LinearSolution((f, out.value), status, out.steps, residual, out.condition)

    return of_pair


def conclude(
    pair: Pair, solve: Solution, given: Geometry, parts: Reduced, marginals: Marginals,
    stop: Stop, adjoint: Adjoint,
) -> TransportResult:
    """The result for solved potentials (f, g) of a reduced cost; `given` is the cost itself."""
    unrolled = adjoint.differentiates_loop
    if marginals.balanced and not unrolled:
        middle = jnp.mean(pair[1])  # 0 is the normalisation that `equations` knows
        pair = pair[0] + middle, pair[1] - middle
    returned = present(*stop_gradient((pair, parts, marginals)))
    solve = judged(solve, pair, returned, parts, marginals, stop)
    if not unrolled:
        rule = adjoint.with_solver(eliminated)
        # Series and single steps are those of the iteration itself.
        zero = equations if rule is adjoint else scaled_equations
        pair = rule.attach(zero, stop_gradient(pair), (parts.geometry, marginals), solve.status)
    return assemble(pair, solve, given, parts, marginals, returned)
