"""Linear and quadratic programs in their canonical form, and points of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.numerics import product
from jaxiter.operators.linear_map import LinearMap, linear_map


class Program(NamedTuple):
    """minimise `x' Q x / 2 + q' x` subject to `A x = b`, `G x <= h`, `lower <= x <= upper`.

    Vectors of one dtype; A and G are matrices, sparse ones or pairs of products (`linear_map`).
    Where there are no constraints they have no rows; bounds that were not given are infinite. Q is
    None for a linear program, else symmetric.
    """

    Q: LinearMap | None
    q: jax.Array
    A: LinearMap
    b: jax.Array
    G: LinearMap
    h: jax.Array
    lower: jax.Array
    upper: jax.Array


class PrimalDual(NamedTuple):
    """A point of a program and the multipliers of its rows: what all methods iterate on.

    x: `[n]`. equality_dual: `[p]`. inequality_dual: `[m]`, not negative.
    """

    x: jax.Array
    equality_dual: jax.Array
    inequality_dual: jax.Array


def right_sides(program: Program) -> tuple[jax.Array, jax.Array]:
    """b, and h with 0 where it is infinite and so no constraint."""
    return program.b, jnp.where(jnp.isfinite(program.h), program.h, 0)


def curvature(program: Program, x: jax.Array) -> jax.Array:
    """Q x; zeros for a linear program."""
    return jnp.zeros_like(x) if program.Q is None else linear_map(program.Q, x)[0](x)


def gradient(program: Program, point: PrimalDual) -> jax.Array:
    """`Q x + q + A' y + G' z`, which at a solution is the reduced cost."""
    first, *others = gradient_terms(program, point)
    return sum(others, first)


def gradient_terms(program: Program, point: PrimalDual) -> tuple:
    """Q x, q, A' y and G' z."""
    x, y, z = point
    back, again = (linear_map(rows, x)[1] for rows in (program.A, program.G))
    return curvature(program, x), program.q, back(y), again(z)


def objective(program: Program, x: jax.Array) -> jax.Array:
    """`x'Qx/2 + q'x`."""
    return product(curvature(program, x) / 2 + program.q, x)


def within(program: Program, x: jax.Array) -> jax.Array:
    """x, clipped to its bounds; the derivatives are those of x."""
    fixed = lax.stop_gradient(x)
    return lax.stop_gradient(jnp.clip(fixed, program.lower, program.upper)) + (x - fixed)


def needed(program: Program, point: PrimalDual) -> PrimalDual:
    """The point; where there is no objective, without multipliers, which are the right ones."""
    some = jnp.any(program.q != 0)
    if program.Q is not None and not isinstance(program.Q, tuple):
        some |= jnp.any(getattr(program.Q, "data", program.Q) != 0)
    elif program.Q is not None:
        return point
    return PrimalDual(point.x, *(jnp.where(some, dual, 0) for dual in point[1:]))


def explained(program: Program, slope: jax.Array) -> jax.Array:
    """What bounds can explain of a gradient: its positive part at lower ones, else negative."""
    below = jnp.where(program.lower > -jnp.inf, jnp.maximum(slope, 0), 0)
    return below + jnp.where(program.upper < jnp.inf, jnp.minimum(slope, 0), 0)
