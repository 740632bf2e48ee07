"""Stochastic bilevel methods as `init` / `step` pairs, and the loop that runs them.

Objectives are `inner(x, y, batch)` and `outer(x, y, batch)`, means over a batch. A step takes
the state, `Batches` to draw from and a key; all of it jits, scans and vmaps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import process, trees
from jaxiter.bilevel.hypergradient import OracleCount
from jaxiter.monitor import Monitor
from jaxiter.stop import StepInfo

PyTree = Any


class Batches(NamedTuple):
    """Data with leading axes n and m, and rows per batch; size None: all rows (or no data)."""

    inner_data: PyTree
    outer_data: PyTree
    size: int | None

    def inner(self, key: jax.Array) -> PyTree:
        """A batch for the inner objective."""
        return process.Batches(self.inner_data, self.size).draw(key)

    def outer(self, key: jax.Array) -> PyTree:
        """A batch for the outer objective."""
        return process.Batches(self.outer_data, self.size).draw(key)


def rows_of(data: PyTree) -> int:
    """Rows of data, the length of its leading axes; 1 without data."""
    return process.Batches(data).rows


class Method(NamedTuple):
    """`init(x, y) -> state`; `step(state, batches, key) -> state` with fields x, y and counts."""

    init: Callable
    step: Callable


def as_process(method: Method) -> process.Process:
    """The method as a `Process` of `(x, y)`, whose args are `jaxiter.Batches` of inner and outer.

    So `iterate` runs it, with a status, resume, lanes and monitors.
    """
    return process.Process(
        init=lambda start, inner, outer: method.init(*start),
        step=lambda state, key, inner, outer: method.step(
            state, Batches(inner.data, outer.data, inner.size), key))


def no_counts() -> OracleCount:
    """No call yet."""
    return OracleCount(jnp.int32(0), jnp.int32(0), jnp.int32(0))


def add_counts(counts: OracleCount, *more: int | jax.Array) -> OracleCount:
    """More calls of inner, outer and products."""
    return OracleCount(*(old + new for old, new in zip(counts, more, strict=True)))


def move(
    optimizer: optax.GradientTransformation, direction: PyTree, state: PyTree, point: PyTree
) -> tuple[PyTree, PyTree]:
    """One step of an optax optimiser along a descent direction."""
    updates, state = optimizer.update(direction, state, point)
    return optax.apply_updates(point, updates), state


def descend(
    inner: Callable, optimizer: optax.GradientTransformation, x: PyTree, y: PyTree, state: PyTree,
    batches: "Batches", key: jax.Array, steps: int,
) -> tuple[PyTree, PyTree]:
    """y and its optimiser's state after `steps` steps on inner, a new batch for each."""
    def once(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        y, state = carry
        return move(optimizer, jax.grad(inner, 1)(x, y, batches.inner(key)), state, y), None

    return lax.scan(once, (y, state), jax.random.split(key, steps))[0]


def coupled(
    outer_optimizer: optax.GradientTransformation, inner_optimizer: optax.GradientTransformation,
    linear_optimizer: optax.GradientTransformation | None,
) -> optax.GradientTransformation:
    """One optimiser of (x, y, v) from one for each; that of v is that of y where none is given."""
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


def run(
    method: Method, state: PyTree, inner_data: PyTree, outer_data: PyTree, *, num_steps: int,
    key: jax.Array, batch_size: int | None = None, trace: Callable | None = None, every: int = 1,
    monitor: Monitor | None = None,
) -> tuple[PyTree, PyTree]:
    """`num_steps` steps of a method in one scan.

    Args:
      inner_data, outer_data: pytrees with one leading axis each; None without data.
      batch_size: rows of a batch, drawn with replacement; default all rows.
      trace: `trace(state) -> pytree`, recorded after every so many steps.
      monitor: `progress(num_steps // every)`, `printer()` or `callback(f)`, told after every so
        many steps; its merit is how far x moved in them.

    Returns:
      The last state and the stacked records (None without trace).

    Raises:
      ValueError: a batch larger than the data, steps that `every` does not divide.
    """
    for name, data in (("inner_data", inner_data), ("outer_data", outer_data)):
        for leaf in jax.tree.leaves(data) if batch_size is not None else ():
            if leaf.shape[0] < batch_size:
                raise ValueError(f"batch_size={batch_size} is larger than {name}, which has "
                                 f"{leaf.shape[0]} rows.")
    if num_steps < 1 or num_steps % every:
        raise ValueError(f"num_steps={num_steps} must be a positive multiple of every={every}.")
    batches = Batches(inner_data, outer_data, batch_size)

    def once(state: PyTree, key: jax.Array) -> tuple[PyTree, None]:
        return method.step(state, batches, key), None

    def block(carry: tuple, keys: jax.Array) -> tuple[tuple, PyTree]:
        old, count, watched = carry
        state, _ = lax.scan(once, old, keys)
        if monitor is not None:
            moved = trees.subtract(state.x, old.x)
            info = _progress(state.x, moved, count + 1)
            watched = monitor.update(info, watched, jnp.bool_(True))
        return (state, count + 1, watched), None if trace is None else trace(state)

    keys = jax.random.split(key, num_steps).reshape(num_steps // every, every)
    watched = () if monitor is None else monitor.init(_progress(state.x, state.x, jnp.int32(0)))
    (state, _, _), records = lax.scan(block, (state, jnp.int32(0), watched), keys)
    return state, records


def _progress(x: PyTree, moved: PyTree, count: jax.Array) -> StepInfo:
    merit = trees.norm(moved)
    return StepInfo(count, x, moved, merit, trees.norm(x), jnp.zeros_like(merit), jnp.bool_(True))
