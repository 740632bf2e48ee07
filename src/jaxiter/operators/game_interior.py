"""Interior-point steps for matrix games: neither ties nor units of payoffs make them many."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.linear import dense
from jaxiter.numerics import machine_epsilon, product

#: The share of the way to the boundary that a step goes, and of the products that it leaves.
NEAR, CENTRE = 0.99, 0.1
#: Products of so many machine epsilons are none.
FLOOR = 8


class Inner(NamedTuple):
    """Strategies within their simplices, and what each pure one lacks to the best; all positive.

    worth: `v, w` with `slack_x = v - A y` and `slack_y = A' x - w`.
    """

    x: jax.Array
    y: jax.Array
    slack_x: jax.Array
    slack_y: jax.Array
    worth: tuple[jax.Array, jax.Array]

    @property
    def gap(self) -> jax.Array:
        """The sum of all products of a strategy and its slack."""
        return product(self.x, self.slack_x) + product(self.y, self.slack_y)


def _in_units(A: jax.Array) -> jax.Array:
    """The same game with payoffs from -1 to 1."""
    most, least = jnp.max(A) / 2, jnp.min(A) / 2
    return (A - (most + least)) / jnp.where(most > least, most - least, 1)


def centre(A: jax.Array) -> Inner:
    """Uniform strategies, worth all payoffs."""
    A = _in_units(A)
    x, y = (jnp.full(n, 1 / n, A.dtype) for n in A.shape)
    v, w = jnp.max(product(A, y)) + 1, jnp.min(product(x, A)) - 1
    return Inner(x, y, v - product(A, y), product(x, A) - w, (v, w))


def inner_step(at: Inner, A: jax.Array) -> Inner:
    """Newton's step to where all products of a strategy and its slack are a tenth of their mean.

    Its unknowns are in units that make the system 1 plus a skew one, with a border: no strategy
    and no slack is too small for it. Where rounding leaves no step, the point stays.
    """
    A = _in_units(A)
    x, y, s, r, (v, w) = at
    aim = CENTRE * at.gap / (x.size + y.size)
    d, e = jnp.sqrt(x / s), jnp.sqrt(y / r)

    def system(z: tuple) -> tuple:
        dx, dy, dv, dw = z
        return (dx + d * (dv - product(A, e * dy)), dy + e * (product(d * dx, A) - dw),
                product(d, dx), product(e, dy))

    wanted = (d * (aim / x - (v - product(A, y))), e * (aim / y - (product(x, A) - w)),
              1 - jnp.sum(x), 1 - jnp.sum(y))
    dx, dy, dv, dw = dense()(system, wanted).value
    dx, dy = d * dx, e * dy
    change = Inner(dx, dy, aim / x - s - dx * s / x, aim / y - r - dy * r / y, (dv, dw))
    falls = [jnp.max(-part / whole) for part, whole in zip(change[:4], at[:4], strict=True)]
    moved = trees.axpy(1 / jnp.maximum(1, jnp.max(jnp.stack(falls)) / NEAR), change, at)
    inside = jnp.all(jnp.stack([jnp.min(part) > 0 for part in moved[:4]]))
    return trees.where(trees.finite(moved) & inside, moved, at)


def settled(new: Inner, old: Inner) -> jax.Array:
    """Whether rounding leaves no more to win: products of nothing, or as large as before."""
    return (new.gap <= FLOOR * machine_epsilon(new.x)) | (new.gap > old.gap / 2)
