"""Units in which all rows and columns of a dense program are about as long as each other."""

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import product, stop_gradient
from jaxiter.operators.programs.program import PrimalDual, Program, objective, within
from jaxiter.operators.programs.sizes import near_sides, row_terms

#: Rounds of scaling; after so many, entries are within a factor of two or so.
ROUNDS = 4
#: The largest exponent of a unit.
MOST = 100
#: A point that violates its rows by more than this share of their terms says nothing about x.
OBEYED = 0.5


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
    if Q is None:  # then nothing ties the units of the objective to those of x
        near = trees.max_norm(stop_gradient(near_sides(program, (y, z))))
        cost = _positive(near) / _positive(trees.max_norm(stop_gradient(x * q)))
    cost = _power_of_two(cost)
    scaled = Program(
        None if Q is None else cost * x * Q * x[:, None], cost * x * q, y[:, None] * A * x, y * b,
        z[:, None] * G * x, z * h, lower / x, upper / x)
    return scaled, PrimalDual(x, y / cost, z / cost)


def balanced(
    scaled: Program, units: PrimalDual, point: PrimalDual
) -> tuple[Program, PrimalDual, PrimalDual]:
    """The same with multipliers that are no longer than x: Q may be the shorter one.

    How long x is the right-hand sides say, or the point where it obeys its rows by half and is
    worth more than 0; another point is made as short as they are.
    """
    if scaled.Q is None:
        return scaled, units, point
    fixed, x = stop_gradient((scaled, point.x))
    right = trees.max_norm((near_sides(fixed), _right(fixed.lower, fixed.upper)))
    equal, unequal = product(fixed.A, x), product(fixed.G, x)
    left = trees.max_norm((equal - fixed.b, jnp.maximum(unequal - fixed.h, 0)))
    size, terms = trees.max_norm(x), trees.max_norm(row_terms(fixed, x))
    near = (left <= OBEYED * terms) & (objective(fixed, x) < 0)
    length = jnp.where(near, jnp.maximum(right, size), right)
    short = jnp.where(length > 0, jnp.minimum(1, _positive(length) / _positive(size)), 1)
    share = _positive(length) / _positive(trees.max_norm(fixed.q))
    tied = jnp.max(jnp.abs(fixed.Q), initial=0) > 0
    share = _power_of_two(jnp.where(tied, jnp.where(length > 0, jnp.minimum(share, 1), 1), share))
    point = trees.scale(short, point)
    point = PrimalDual(within(scaled, point.x), *(share * dual for dual in point[1:]))
    return (scaled._replace(Q=share * scaled.Q, q=share * scaled.q),
            PrimalDual(units.x, *(unit / share for unit in units[1:])), point)


def _right(*limits: jax.Array) -> jax.Array:
    """The largest finite entry of right-hand sides."""
    return trees.max_norm([jnp.where(jnp.isfinite(limit), limit, 0)
                           for limit in stop_gradient(limits)])


def _positive(size: jax.Array) -> jax.Array:
    return jnp.where((size > 0) & jnp.isfinite(size), size, 1)


def _inverse_root(size: jax.Array) -> jax.Array:
    return 1 / jnp.sqrt(_positive(size))


def _power_of_two(unit: jax.Array) -> jax.Array:
    """The nearest, such that no unit and no inverse of one leaves the float range."""
    # Not exp2, which XLA rounds on CPUs.
    return 2.0 ** jnp.clip(jnp.round(jnp.log2(unit)), -MOST, MOST)
