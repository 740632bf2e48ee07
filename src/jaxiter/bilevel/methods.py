"""What the stochastic bilevel methods share.

Each is a `Process` of a start `(x, y)` and two `Batches`, of the inner and of the outer data.
Objectives are `inner(x, y, batch)` and `outer(x, y, batch)`, means over a batch.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter.estimators import Drawn
from jaxiter.process import Batches, Process
from jaxiter.solvers.residual import of_optax

PyTree = Any
Optimizer = optax.GradientTransformation


class NestedState(NamedTuple):
    """x, y, their optimizers, and growth: the last Neumann term's norm over the first's.

    A growth above 1 says that the series diverges: `neumann_rate` is above 2 / L. None where there
    is no series.
    """

    x: PyTree
    y: PyTree
    optimizers: tuple
    growth: jax.Array | None


def oracle_calls(inner: Any, outer: Any, products: Any = 0) -> dict[str, Any]:
    """The account of a bilevel problem: gradients of inner, of outer, inner Hessian products."""
    return {"inner": inner, "outer": outer, "products": products}


def move(optimizer: Optimizer, direction: PyTree, state: PyTree, point: PyTree) -> tuple:
    """One step of an optax transformation along a descent direction."""
    updates, state = of_optax(optimizer).update(direction, state, point)
    return optax.apply_updates(point, updates), state


def descend(
    inner: Callable, optimizer: Optimizer, x: PyTree, y: PyTree, state: PyTree,
    data: Batches | Drawn, key: jax.Array, steps: int,
) -> tuple:
    """y and its optimizer's state after `steps` steps on inner, a new batch for each."""
    def once(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        y, state = carry
        return move(optimizer, jax.grad(inner, 1)(x, y, data.draw(key)), state, y), None

    return lax.scan(once, (y, state), jax.random.split(key, steps))[0]


def nested(
    inner: Callable, inner_optimizer: Optimizer, outer_optimizer: Optimizer, inner_steps: int,
    slope: Callable, calls: Any, *, series: bool = True,
) -> Process:
    """Steps of y, then one of x along `slope(x, y, before, keys, *data) -> (slope, growth)`.

    before: the y that they began from; keys: three, of which the first was that of the steps.
    """
    def init(start: tuple, *data: Batches) -> NestedState:
        x, y = start
        optimizers = outer_optimizer.init(x), inner_optimizer.init(y)
        return NestedState(x, y, optimizers, jnp.float32(0) if series else None)

    def step(state: NestedState, key: jax.Array, *data: Batches) -> NestedState:
        x, before, (of_x, of_y), _ = state
        keys = jax.random.split(key, 3)
        y, of_y = descend(inner, inner_optimizer, x, before, of_y, data[0], keys[0], inner_steps)
        along, growth = slope(x, y, before, keys, *data)
        x, of_x = move(outer_optimizer, along, of_x, x)
        return NestedState(x, y, (of_x, of_y), growth)

    return Process(init, step, calls=calls)


def product_pair(inner: Callable, x: PyTree, y: PyTree, v: PyTree, batch: PyTree) -> tuple:
    """grad_y inner, cross(v) = d/de grad_x inner(x, y + e v), and H v, from one pass."""
    (_, slope), (cross, image) = jax.jvp(
        lambda y: jax.grad(inner, (0, 1))(x, y, batch), (y,), (v,))
    return slope, cross, image


def both(inner_data: Batches, outer_data: Batches) -> Drawn:
    """Pairs of an inner and an outer batch."""
    def draw(key: jax.Array) -> tuple[PyTree, PyTree]:
        return inner_data.draw(key), outer_data.draw(jax.random.fold_in(key, 1))

    return Drawn(draw)
