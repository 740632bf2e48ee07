"""The state and the steps of variance-reduced Halpern iterations, both algorithms."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.numerics import anchor
from jaxiter.operators.steps import beside, on_moving
from jaxiter.process import Process

PyTree = Any


class Halpern(NamedTuple):
    """The point, the first one, `step F` at the point, the natural residual and what that is
    beside, inner steps so far.
    """

    point: PyTree
    anchor: PyTree
    forward: PyTree
    residual: jax.Array
    scale: jax.Array
    count: jax.Array


def mean_of(component: Callable, z: PyTree, data: PyTree, args: tuple) -> PyTree:
    """The mean of F_i(z) over the rows."""
    values = jax.vmap(lambda row: component(z, row, *args))(data)
    trees.check_same_structure(z, trees.first(values), "F_i(z), like z,")
    return trees.mean_rows(values)


def _drawn(data: PyTree, key: jax.Array, batch: int) -> PyTree:
    rows = jax.tree.leaves(data)[0].shape[0]
    chosen = jax.random.randint(key, (batch,), 0, rows)
    return trees.at(data, chosen)


def halpern_process(mean: Callable, near: Callable, moves: Callable, spent: int) -> Process:
    """Moves, each ended by a look with all components, which cost `spent` of them."""
    def measured(point: PyTree, first: PyTree, age: jax.Array, data: PyTree, numbers: tuple,
                 args: tuple) -> Halpern:
        size = numbers[0]
        forward = trees.scale(size, mean(point, data, args))
        back = near(trees.subtract(point, forward), size, *args)
        move = trees.subtract(point, back)
        scale = beside(trees.norm(point), trees.norm(on_moving(forward, move)), point)
        return Halpern(point, first, forward, trees.norm(move), scale, age)

    def init(z: PyTree, data: PyTree, numbers: tuple, *args: PyTree) -> Halpern:
        return measured(z, z, jnp.int32(0), data, numbers, args)

    def step(
        state: Halpern, key: jax.Array, data: PyTree, numbers: tuple, *args: PyTree
    ) -> Halpern:
        point, age = moves(state, key, data, numbers, args)
        return measured(point, state.anchor, age, data, numbers, args)

    return Process(init, step, merit=lambda state, *args: state.residual,
                   calls={"components": spent}, scale=lambda state, *args: state.scale)


def single(
    component: Callable, near: Callable, batch: int, period: int, state: Halpern, key: jax.Array,
    data: PyTree, numbers: tuple, args: tuple,
) -> tuple[PyTree, jax.Array]:
    """A period of Algorithm I: the first step with all of F, the others with batches."""
    size = numbers[0]

    def moved(point: PyTree, forward: PyTree, k: jax.Array) -> PyTree:
        lam = 2 / (k.astype(size.dtype) + 4)
        pulled = jax.tree.map(lambda a, z: lam.astype(z.dtype) * a + (1 - lam).astype(z.dtype) * z,
                              state.anchor, point)
        return near(trees.subtract(pulled, forward), size, *args)

    def inner(carry: tuple, number: jax.Array) -> tuple:
        point, before, forward = carry
        rows = _drawn(data, jax.random.fold_in(key, number), batch)
        change = trees.subtract(mean_of(component, point, rows, args),
                                mean_of(component, before, rows, args))
        forward = trees.axpy(size, change, forward)
        return (moved(point, forward, state.count + number), point, forward), None

    first = moved(state.point, state.forward, state.count)
    carry = first, state.point, state.forward
    numbers_left = jnp.arange(1, period, dtype=jnp.int32)
    (point, _, _), _ = lax.scan(inner, anchor(carry, (carry, key, data, numbers, args)),
                                numbers_left)
    return point, state.count + period


def nested(
    component: Callable, near: Callable, batch: int, period: int, state: Halpern, key: jax.Array,
    data: PyTree, numbers: tuple, args: tuple,
) -> tuple[PyTree, jax.Array]:
    """One step of Algorithm II: an inexact resolvent of c (F + A), anchored."""
    size, scale, gamma = numbers
    rows_in_all = jax.tree.leaves(data)[0].shape[0]
    alpha = jnp.asarray(1 - 1 / rows_in_all, size.dtype)
    # c F at the snapshot, which is the point itself.
    snapshot = trees.scale(scale / size, state.forward)

    def inner(v: PyTree, number: jax.Array) -> tuple:
        rows = _drawn(data, jax.random.fold_in(key, number), batch)
        change = trees.subtract(mean_of(component, v, rows, args),
                                mean_of(component, state.point, rows, args))
        slope = trees.add(trees.axpy(scale, change, snapshot), trees.subtract(v, state.point))
        mixed = jax.tree.map(lambda v, u: alpha.astype(v.dtype) * v
                             + (1 - alpha).astype(v.dtype) * u, v, state.point)
        return near(trees.axpy(-gamma, slope, mixed), gamma * scale, *args), None

    counts = jnp.arange(period, dtype=jnp.int32)
    start = anchor(state.point, (state.point, key, data, numbers, args))
    v, _ = lax.scan(inner, start, counts)
    k = state.count.astype(size.dtype)
    point = jax.tree.map(lambda a, v: (1 / (k + 2)).astype(v.dtype) * a
                         + ((k + 1) / (k + 2)).astype(v.dtype) * v, state.anchor, v)
    return point, state.count + 1
