"""Derivatives of potentials: the pair (f, g) is attached, the linear system solved for g alone."""

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.adjoint import Adjoint
from jaxiter.implicit import as_adjoint, attach_implicit
from jaxiter.linear import LinearSolution, LinearSolver, Matvec, default_rtol
from jaxiter.numerics import anchor, safe_divide
from jaxiter.solution import Status
from jaxiter.transport.geometry import Geometry
from jaxiter.transport.iteration import Marginals, sources, targets

Pair = tuple[jax.Array, jax.Array]


def equations(potentials: Pair, geometry: Geometry, marginals: Marginals) -> Pair:
    """Zero at the solution (f, g); its linearisation is regular, so that the adjoint can solve it.

    Balanced potentials are defined up to a constant: there g has mean 0.
    """
    f, g = potentials
    rows = sources(g, geometry, marginals)
    columns = targets(rows, geometry, marginals)
    if marginals.balanced:
        columns = columns - jnp.mean(columns)
    return rows - f, columns - g


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


def attach(
    g: jax.Array, geometry: Geometry, marginals: Marginals, adjoint: Adjoint | None
) -> Pair:
    """Potentials (f, g) with their implicit derivatives; balanced ones are centred first."""
    if marginals.balanced:
        g = g - jnp.mean(g)  # the normalisation that `equations` knows
    pair = sources(g, geometry, marginals), g
    return attach_implicit(
        equations, pair, geometry, marginals, adjoint=as_adjoint(adjoint).with_solver(eliminated))
