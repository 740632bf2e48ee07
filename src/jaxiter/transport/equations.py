"""What the adjoint of transport linearises: potentials that one iteration gives back.

Where a plan nearly is a permutation, a target gets back nearly all that it gives, and what is
left, the coupling to the others, is lost to rounding when `T(g) - g` is differentiated term by
term. Here its tangent is taken of differences, so that it keeps its digits however small it is.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxiter.numerics import HIGHEST, machine_epsilon, safe_divide, stop_gradient
from jaxiter.transport.entries import finite
from jaxiter.transport.geometry import Dense, Geometry
from jaxiter.transport.iteration import Marginals, sources, targets
from jaxiter.transport.result import with_weights

Pair = tuple[jax.Array, jax.Array]


def equations(potentials: Pair, geometry: Geometry, marginals: Marginals) -> Pair:
    """Zero at the solution (f, g): one iteration less the identity.

    Balanced potentials are defined up to a constant: there g has mean 0.
    """
    f, g = potentials
    rows = sources(g, geometry, marginals)
    columns = targets(rows, geometry, marginals)
    if marginals.balanced:
        columns = columns - jnp.mean(columns)
    return rows - f, columns - g


def scaled_equations(potentials: Pair, geometry: Geometry, marginals: Marginals) -> Pair:
    """The same zero; once f is eliminated, the linearisation has a diagonal of 1.

    The condition on the mean is added, not projected out: it must not mix small rows with large
    ones.
    """
    f, g = potentials
    rows = sources(g, geometry, marginals)
    fixed = stop_gradient((g, geometry, marginals))
    if geometry.in_memory:
        gap = return_gap(geometry.matrix(), g, marginals)
        left = _left(fixed[1].matrix(), fixed[0], fixed[2])
        smallest = machine_epsilon(g) ** 2
    else:
        gap = targets(rows, geometry, marginals) - g
        left = 1 - _returned(*fixed)
        smallest = machine_epsilon(g) ** 0.5  # below, rounding decides
    gap = gap / jnp.maximum(left, smallest)
    return rows - f, gap - jnp.mean(g) if marginals.balanced else gap


def _returned(g: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    """The share of each target `[m]` in itself over one iteration, `sum_i P_ij^2 / (a_i b_j)`."""
    a, b, epsilon = marginals[:3]
    f = sources(g, geometry, marginals)
    inverse = safe_divide(1, marginals.held(f))
    squares = geometry.T.weigh(
        with_weights(g, b, epsilon), with_weights(f, a, epsilon), epsilon / 2, inverse[:, None])
    damping = marginals.damping[0] * marginals.damping[1]
    return damping * safe_divide(squares[:, 0], marginals.T.held(g))


def _conditionals(
    cost: jax.Array, g: jax.Array, marginals: Marginals
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the plan for (f(g), g): rows scaled to 1, columns scaled to 1, the largest in a row."""
    geometry, epsilon = Dense(cost), marginals.epsilon
    free_f = geometry.softmin(g, marginals.b, epsilon)
    f = marginals.damped(free_f)
    free_g = geometry.T.softmin(f, marginals.a, epsilon)
    allowed, cost = cost < jnp.inf, finite(cost)

    def conditional(z: jax.Array, weights: jax.Array) -> jax.Array:
        live = allowed & (weights > 0)
        return jnp.where(live, weights * jnp.exp(jnp.where(live, z - cost, 0) / epsilon), 0)

    p = conditional(free_f[:, None] + g[None, :], marginals.b[None, :])
    q = conditional(f[:, None] + free_g[None, :], marginals.a[:, None])
    return p, q, jnp.argmax(stop_gradient(p), axis=1)


def _left(cost: jax.Array, g: jax.Array, marginals: Marginals) -> jax.Array:
    """What one iteration does not give back to each target `[m]`: `1 - sum_i q_ij p_ij`, damped."""
    p, q, pivot = _conditionals(cost, g, marginals)
    at_pivot = jnp.arange(p.shape[1]) == pivot[:, None]
    others = jnp.sum(jnp.where(at_pivot, 0, p), 1)[:, None]
    damping = marginals.damping[0] * marginals.damping[1]
    return 1 - damping + damping * jnp.sum(q * jnp.where(at_pivot, others, 1 - p), 0)


@jax.custom_jvp
def return_gap(cost: jax.Array, g: jax.Array, marginals: Marginals) -> jax.Array:
    """`T(g) - g` `[m]` for a cost matrix."""
    return _plain_gap(cost, g, marginals)


def _plain_gap(cost: jax.Array, g: jax.Array, marginals: Marginals) -> jax.Array:
    geometry = Dense(cost)
    return targets(sources(g, geometry, marginals), geometry, marginals) - g


def _is_zero(tangents: Any) -> bool:
    return all(isinstance(leaf, SymbolicZero) for leaf in jax.tree.leaves(tangents))


def _return_rule(primals: tuple, tangents: tuple) -> tuple:
    """With t_ij = dg_j - dC_ij: `-sum_i q_ij (t_ij - sum_k p_ik t_ik)`.

    t is taken relative to its entry at the largest p of a row: what cancels is never added. A
    linear solver asks with dC = 0, and then all are products with a matrix.
    """
    cost, g, marginals = primals
    out = return_gap(*primals)
    zero = [_is_zero(part) for part in tangents]
    d_cost, d_g, d_marginals = (
        jax.tree.map(lambda x, dx: jnp.zeros_like(x) if isinstance(dx, SymbolicZero) else dx,
                     *pair) for pair in zip(primals, tangents, strict=True))
    tangent = jnp.zeros_like(out)
    if not (zero[0] and zero[1]):
        conditionals = _conditionals(cost, g, marginals)
    if not zero[0]:
        tangent = tangent + _moved_by_cost(d_cost, cost, marginals, *conditionals)
    if not zero[1]:
        tangent = tangent + _moved_by_targets(d_g, marginals, *conditionals)
    if not zero[2]:
        tangent = tangent + jax.jvp(
            lambda m: _plain_gap(cost, g, m), (marginals,), (d_marginals,))[1]
    return out, tangent


return_gap.defjvp(_return_rule, symbolic_zeros=True)


def _moved_by_cost(
    d_cost: jax.Array, cost: jax.Array, marginals: Marginals, p: jax.Array, q: jax.Array,
    pivot: jax.Array,
) -> jax.Array:
    t = -jnp.where(cost < jnp.inf, d_cost, 0)
    tau = t - jnp.take_along_axis(t, pivot[:, None], axis=1)
    moved = tau - jnp.sum(p * tau, axis=1, keepdims=True)
    damp_a, damp_b = marginals.damping
    if not marginals.balanced:
        moved = (1 - damp_a) * t + damp_a * moved
    return -damp_b * jnp.sum(q * moved, axis=0)


def _moved_by_targets(
    d_g: jax.Array, marginals: Marginals, p: jax.Array, q: jax.Array, pivot: jax.Array
) -> jax.Array:
    there = jnp.arange(p.shape[1]) == pivot[:, None]
    p, others = jnp.where(there, 0, p), jnp.where(there, 0, q)
    here = jnp.sum(jnp.where(there, d_g, 0), 1)  # no gather, for explicit meshes
    mean = jnp.matmul(p, d_g, precision=HIGHEST) - jnp.sum(p, 1) * here
    moved = (jnp.sum(others, 0) * d_g - jnp.matmul(here, others, precision=HIGHEST)
             - jnp.matmul(mean, q, precision=HIGHEST))
    damp_a, damp_b = marginals.damping
    if not marginals.balanced:
        moved = (1 - damp_a) * jnp.sum(q, 0) * d_g + damp_a * moved
        return -damp_b * moved - (1 - damp_b) * d_g
    return -moved
