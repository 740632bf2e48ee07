"""What the stochastic bilevel methods share.

Each is a `Process` of a start `(x, y)` and two `Batches`, of the inner and of the outer data.
Objectives are `inner(x, y, batch)` and `outer(x, y, batch)`, means over a batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import optax
from jax import lax

from jaxiter import trees
from jaxiter.process import Batches

PyTree = Any


def move(
    optimizer: optax.GradientTransformation, direction: PyTree, state: PyTree, point: PyTree
) -> tuple[PyTree, PyTree]:
    """One step of an optax transformation along a descent direction."""
    updates, state = optimizer.update(direction, state, point)
    return optax.apply_updates(point, updates), state


def descend(
    inner: Callable, optimizer: optax.GradientTransformation, x: PyTree, y: PyTree, state: PyTree,
    data: Batches, key: jax.Array, steps: int,
) -> tuple[PyTree, PyTree]:
    """y and its optimizer's state after `steps` steps on inner, a new batch for each."""
    def once(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        y, state = carry
        return move(optimizer, jax.grad(inner, 1)(x, y, data.draw(key)), state, y), None

    return lax.scan(once, (y, state), jax.random.split(key, steps))[0]


def joint_optimizer(
    outer_optimizer: optax.GradientTransformation, inner_optimizer: optax.GradientTransformation,
    linear_optimizer: optax.GradientTransformation | None,
) -> optax.GradientTransformation:
    """One optimizer of (x, y, v) from one for each; that of v is that of y where none is given."""
    each = (outer_optimizer, inner_optimizer, linear_optimizer or inner_optimizer)

    def init(point: tuple) -> tuple:
        return tuple(one.init(part) for one, part in zip(each, point, strict=True))

    def update(slopes: tuple, state: tuple, point: tuple) -> tuple[tuple, tuple]:
        moved = [one.update(*parts) for one, *parts in zip(each, slopes, state, point, strict=True)]
        updates, states = zip(*moved, strict=True)
        return updates, states

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


def penalty_slope(
    inner: Callable, x: PyTree, y: PyTree, z: PyTree, batch: PyTree
) -> PyTree:
    """grad_x of `inner(x, y) - inner(x, z)`: on one batch the noise of the difference cancels."""
    return jax.grad(lambda x: inner(x, y, batch) - inner(x, z, batch))(x)


def product_pair(inner: Callable, x: PyTree, y: PyTree, v: PyTree, batch: PyTree) -> tuple:
    """grad_y inner, cross(v) = d/de grad_x inner(x, y + e v), and H v, from one pass."""
    (_, slope), (cross, image) = jax.jvp(
        lambda y: jax.grad(inner, (0, 1))(x, y, batch), (y,), (v,))
    return slope, cross, image


def directions(
    outer: Callable, inner: Callable, x: PyTree, y: PyTree, v: PyTree, a: PyTree, b: PyTree
) -> tuple:
    """Descent directions of x, y and v on one batch a of inner and b of outer, all at one point."""
    slope, cross, image = product_pair(inner, x, y, v, a)
    direct, pull = jax.grad(outer, (0, 1))(x, y, b)
    return trees.subtract(direct, cross), slope, trees.subtract(image, pull)


def storm(momentum: Any, now: PyTree, before: PyTree, last: PyTree) -> PyTree:
    """STORM: `now + (1 - momentum) (last - before)`, both gradients on one batch.

    `now` is at the new point, `before` at the old one, `last` the estimate there.
    """
    return trees.axpy(1 - momentum, trees.subtract(last, before), now)
