"""Units in which all rows and columns of a dense program are about as long as each other."""

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import stop_gradient
from jaxiter.operators.programs.program import PrimalDual, Program

#: Rounds of scaling; after so many, entries are within a factor of two or so.
ROUNDS = 4


def equilibrated(program: Program) -> tuple[Program, PrimalDual]:
    """The program in other units, and these: a point of it times them is one of the program.

    The rows and columns of `[[Q, A', G'], [A, 0, 0], [G, 0, 0]]` are divided by the roots of their
    largest entries, a few times, and the objective by that of Q. Powers of two, which round
    nothing; constants for every derivative.

    Reference: Ruiz, "A scaling algorithm to equilibrate both rows and columns norms in matrices",
    2001; Stellato, Banjac, Goulart, Bemporad and Boyd, "OSQP: an operator splitting solver for
    quadratic programs", Math. Program. Comput. 12, 2020.
    """
    Q, q, A, b, G, h, lower, upper = program
    flat = jnp.zeros((q.size, q.size), q.dtype) if Q is None else Q
    sizes = [jnp.abs(matrix) for matrix in stop_gradient((flat, A, G))]
    x, y, z = jnp.ones_like(q), jnp.ones_like(b), jnp.ones_like(h)
    cost = jnp.ones((), q.dtype)
    for _ in range(ROUNDS):
        square, equal, unequal = sizes
        columns = _inverse_root(jnp.max(jnp.concatenate(sizes), axis=0, initial=0))
        rows = [_inverse_root(jnp.max(block, axis=1, initial=0)) for block in (equal, unequal)]
        square = square * columns * columns[:, None]
        ratio = 1 / _positive(jnp.max(square, initial=0))
        sizes = [ratio * square, equal * columns * rows[0][:, None],
                 unequal * columns * rows[1][:, None]]
        x, y, z, cost = x * columns, y * rows[0], z * rows[1], cost * ratio
    x, y, z = (_power_of_two(unit) for unit in (x, y, z))
    # Multipliers are to be no longer than x: where Q ties the two, it may be the shorter one.
    limits = stop_gradient((y * b, z * h, lower / x, upper / x))
    right = trees.max_norm([jnp.where(jnp.isfinite(limit), limit, 0) for limit in limits])
    equal = _positive(right) / _positive(trees.max_norm(stop_gradient(x * q)))
    tied = jnp.max(sizes[0], initial=0) > 0
    cost = _power_of_two(jnp.where(
        (right > 0) | ~tied, jnp.where(tied, jnp.minimum(cost, equal), equal), cost))
    scaled = Program(
        None if Q is None else cost * x * Q * x[:, None], cost * x * q, y[:, None] * A * x, y * b,
        z[:, None] * G * x, z * h, lower / x, upper / x)
    return scaled, PrimalDual(x, y / cost, z / cost)


def _positive(size: jax.Array) -> jax.Array:
    return jnp.where((size > 0) & jnp.isfinite(size), size, 1)


def _inverse_root(size: jax.Array) -> jax.Array:
    return 1 / jnp.sqrt(_positive(size))


def _power_of_two(unit: jax.Array) -> jax.Array:
    return jnp.exp2(jnp.round(jnp.log2(unit)))
