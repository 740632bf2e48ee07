"""Newton's method on the dual of balanced transport: few steps where Sinkhorn needs thousands.

Inexact Newton-CG, matrix-free, with the damping and acceptance rules of SSNS. Sources:
Tang et al., "Accelerating Sinkhorn algorithm with sparse Newton iterations", 2024 (the
Newton stage); Tang and Qiu, "Safe and sparse Newton method for entropic-regularized
optimal transport", 2024 (damping mu, ratio test).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import linear
from jaxiter.line_search import Trial, halve
from jaxiter.numerics import machine_epsilon, product, safe_divide
from jaxiter.problem import Problem
from jaxiter.transport.entries import finite, gibbs
from jaxiter.transport.geometry import Geometry
from jaxiter.transport.iteration import Marginals, rounding, weighted, with_rounding

#: The shortest step is a fraction 2^-3 of Newton's.
HALVINGS = 3
SMALLEST_DAMPING = 1e-3
#: Below this an entry of the plan's logarithm may change by multiplication in one step.
LARGEST_CHANGE = 8.0
CG_STEPS = 500


class Plan(NamedTuple):
    """The plan at the current point, updated by multiplication; damping; products so far."""

    matrix: jax.Array
    damping: jax.Array
    products: jax.Array


def newton_problem(valid: Any = None) -> Problem:
    """Newton steps on x = (f, g), potentials of the "P" convention in units; memory: a `Plan`.

    Multiplying the plan by exp(change) instead of rebuilding it keeps float32 accurate:
    rebuilt, its entries carry errors of eps max(C) / epsilon.
    """
    return Problem(
        step=_step, merit=_merit, memory=_first_plan, valid=valid, floor=_floor,
        scale=lambda x, image, plan, geometry, marginals: jnp.sum(marginals.a))


def _scaled(geometry: Geometry, marginals: Marginals) -> tuple[jax.Array, jax.Array]:
    """The cost and epsilon in units."""
    one = marginals.unit
    return geometry.matrix() / one, marginals.epsilon / one


def _first_plan(x: tuple, geometry: Geometry, marginals: Marginals) -> Plan:
    plan = _gibbs(x, *_scaled(geometry, marginals), marginals)
    return Plan(plan, jnp.ones_like(plan[0, 0]), jnp.int32(1))


def _gibbs(
    x: tuple, cost: jax.Array, epsilon: jax.Array, marginals: Marginals
) -> jax.Array:
    """The plan of (f, g); rows and columns without weight are 0."""
    f = jnp.where(marginals.a > 0, x[0], -jnp.inf)
    g = jnp.where(marginals.b > 0, x[1], -jnp.inf)
    return gibbs(f, g, cost, epsilon)


def _merit(
    x: tuple, image: tuple, plan: Plan, geometry: Geometry, marginals: Marginals
) -> jax.Array:
    del image, geometry
    own, other = _rounding(x, marginals)
    return with_rounding(_error(plan.matrix, marginals), own + other)


def _rounding(x: tuple, marginals: Marginals) -> tuple[jax.Array, jax.Array]:
    """The marginal errors that rounding makes, about: in x, and in the potentials returned."""
    size = weighted(marginals.a, jnp.abs(x[0])) + weighted(marginals.b, jnp.abs(x[1]))
    own = machine_epsilon(x) / 3 * size * marginals.unit / marginals.epsilon
    return own, rounding(jnp.zeros_like(x[1]), marginals)


def _error(plan: jax.Array, marginals: Marginals) -> jax.Array:
    """The l1 marginal error; inf for a plan that is not finite."""
    error = (jnp.sum(jnp.abs(plan.sum(1) - marginals.a))
             + jnp.sum(jnp.abs(plan.sum(0) - marginals.b)))
    return jnp.where(jnp.isnan(error), jnp.inf, error)


def _floor(x: tuple, plan: Plan, geometry: Geometry, marginals: Marginals) -> jax.Array:
    del plan, geometry
    own, other = _rounding(x, marginals)
    return with_rounding(30 * machine_epsilon(x) * jnp.sum(marginals.a) + own, own + other)


def _step(x: tuple, plan: Plan, geometry: Geometry, marginals: Marginals) -> tuple:
    a, b = marginals[:2]
    cost, epsilon = _scaled(geometry, marginals)
    T = plan.matrix
    r1, r2 = T.sum(1), T.sum(0)
    g1, g2 = r1 - a, r2 - b
    norm = jnp.sqrt(jnp.sum(g1**2) + jnp.sum(g2**2))
    # In units of the costs that carry mass: a forbidding one must not switch the damping off.
    largest = jnp.max(jnp.where(T > 0, jnp.abs(finite(cost)), 0))
    shift = plan.damping * safe_divide(norm, largest)
    d1, d2, products = _direction(T, r1, r2, g1, g2, shift, epsilon)

    trial = _line_search(T, g1, g2, d1, d2, epsilon)
    alpha, decrease = trial.step, trial.value
    slope = jnp.sum(g1 * d1) + jnp.sum(g2 * d2)
    curvature = jnp.sum(r1 * d1**2) + jnp.sum(r2 * d2**2) + 2 * d1 @ product(T, d2)
    predicted = -alpha * slope - 0.5 * alpha**2 * curvature / epsilon
    ratio = -decrease / predicted
    f, g = x[0] + alpha * d1, x[1] + alpha * d2
    change = alpha * (d1[:, None] + d2[None, :]) / epsilon
    # An entry that underflowed cannot come back by multiplication.
    matrix = lax.cond(
        jnp.max(jnp.abs(change)) < LARGEST_CHANGE,
        lambda: T * jnp.exp(change),
        lambda: _gibbs((f, g), cost, epsilon, marginals))
    # Near the float floor rounding drowns the objective before it drowns the gradient.
    falls = _error(matrix, marginals) < 0.9 * _error(T, marginals)
    accepted = ((decrease < 0) & (predicted > 0) & jnp.isfinite(ratio)) | falls  # false for NaN
    good = jnp.where(falls, 1.0, ratio)
    damping = jnp.where(good > 0.75, jnp.maximum(plan.damping / 2, SMALLEST_DAMPING), plan.damping)
    damping = jnp.where(accepted & (good >= 0.25), damping, 4 * plan.damping)
    f, g, matrix = (jnp.where(accepted, new, old)
                    for new, old in ((f, x[0]), (g, x[1]), (matrix, T)))
    # Passes over the matrix: sums, CG's two a step, preconditioner, curvature, the update.
    passes = plan.products + 2 * products + 6 + trial.tries
    return (f, g), Plan(matrix, damping, passes)


def _direction(
    T: jax.Array, r1: jax.Array, r2: jax.Array, g1: jax.Array, g2: jax.Array,
    shift: jax.Array, epsilon: Any,
) -> tuple:
    """The Newton direction by CG on the Schur complement of the sources."""
    tiny = jnp.finfo(T.dtype).tiny
    A1 = jnp.maximum(r1 / epsilon + shift, tiny)
    A2 = jnp.maximum(r2 / epsilon + shift, tiny)

    def schur(w: jax.Array) -> jax.Array:
        return A2 * w - product(product(T, w) / A1, T) / epsilon**2

    diagonal = A2 - product(1 / A1, T * T) / epsilon**2
    # Without the floor the difference cancels to 0 in float32 and the solve stalls.
    diagonal = jnp.maximum(diagonal, 1e-4 * A2)
    rhs = -g2 + product(g1 / A1, T) / epsilon
    error = jnp.sum(jnp.abs(g1)) + jnp.sum(jnp.abs(g2))
    rtol = jnp.minimum(0.1, jnp.sqrt(error / jnp.sum(r1)))
    solve = linear.cg(rtol=rtol, max_steps=CG_STEPS, precondition=lambda r: r / diagonal)
    solution = solve(schur, rhs)
    d2 = solution.value
    return (-g1 - product(T, d2) / epsilon) / A1, d2, solution.steps


def _line_search(
    T: jax.Array, g1: jax.Array, g2: jax.Array, d1: jax.Array, d2: jax.Array, epsilon: Any
) -> Trial:
    """The first step length that lowers the objective, and the change there."""
    slope = jnp.sum(g1 * d1) + jnp.sum(g2 * d2)
    def change(alpha: jax.Array) -> jax.Array:
        h = alpha * (d1[:, None] + d2[None, :]) / epsilon
        # The difference itself: two objective values would cancel near the solution, and so
        # would expm1(h) - h for small h.
        series = h * h * (0.5 + h * (1 / 6 + h * (1 / 24 + h / 120)))
        excess = jnp.where(jnp.abs(h) < 0.1, series, jnp.expm1(h) - h)
        return epsilon * jnp.sum(T * excess) + alpha * slope

    return halve(change, lambda alpha, value: value < 0, jnp.ones_like(slope), HALVINGS)
