"""What the rows, the gradient and the slacks of a program are measured beside."""

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import stop_gradient
from jaxiter.operators.linear_map import LinearMap, linear_map
from jaxiter.operators.programs.program import (
    PrimalDual,
    Program,
    gradient,
    gradient_terms,
    right_sides,
)

#: The sides of rows with room at 0 count at most so many times the nearest one.
NARROW = 100.0


def near_sides(program: Program, rows: tuple | None = None) -> tuple[jax.Array, jax.Array]:
    """`right_sides`, in units of rows if there are any, with those of rows far away cut: they do
    not tell how long x is.
    """
    sides = b, h = right_sides(program)
    if rows is not None:
        b, h = (side * unit for side, unit in zip(sides, rows, strict=True))
    nearest = jnp.min(jnp.where(h > 0, h, jnp.inf), initial=jnp.inf)
    own = trees.max_norm(b)
    nearest = jnp.minimum(nearest, jnp.where(own > 0, own, jnp.inf))
    return b, jnp.minimum(h, NARROW * nearest)


def tight_norm(parts: tuple, tight: jax.Array) -> jax.Array:
    """The length of `(of A, of G)` without the rows of G that are not tight."""
    return trees.norm((parts[0], jnp.where(tight, parts[1], 0)))


def row_terms(program: Program, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The sizes of what the entries of A x and G x are sums of; where the matrices are not in
    memory, of the entries.
    """
    return _terms(program.A, x), _terms(program.G, x)


def gradient_sizes(program: Program, point: PrimalDual) -> jax.Array:
    """The sizes of what the entries of the gradient are sums of, as `row_terms`."""
    x, y, z = point
    parts = _terms(program.A, y, 1), _terms(program.G, z, 1), jnp.abs(program.q)
    bent = jnp.zeros_like(x) if program.Q is None else _terms(program.Q, x)
    return sum(parts, bent)


def _terms(rows: LinearMap, v: jax.Array, way: int = 0) -> jax.Array:
    if isinstance(rows, jax.Array):
        return linear_map(jnp.abs(rows))[way](jnp.abs(v))
    return jnp.abs(linear_map(rows, v)[way](v))


def sizes(program: Program, point: PrimalDual) -> tuple[jax.Array, jax.Array]:
    """The largest entries of what the slacks of G, and what the gradient is a sum of."""
    inequalities = near_sides(program)[1], row_terms(program, point.x)[1]
    return (trees.max_norm(inequalities), trees.max_norm(gradient_terms(program, point)))


def held(program: Program, point: PrimalDual) -> tuple[jax.Array, jax.Array]:
    """Which entries of x are held by their lower, and which by their upper bound.

    Where the gradient pushes against a bound, and more, in units of its terms, than there is room,
    in units of x: rounding pushes everywhere. Never differentiated.
    """
    program, point = stop_gradient((program, point))
    slope, x = gradient(program, point), point.x
    units = trees.max_norm(x), sizes(program, point)[1]
    low = (slope > 0) & ((x - program.lower) * units[1] <= slope * units[0])
    high = (slope < 0) & ((program.upper - x) * units[1] <= -slope * units[0])
    return low, high


def reduced_cost(program: Program, point: PrimalDual) -> jax.Array:
    """The gradient where a bound holds x, else 0."""
    low, high = held(program, point)
    return jnp.where(low | high, gradient(program, point), 0)
