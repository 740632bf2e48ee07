"""SABA: SOBA with a memory of every batch's directions (SAGA), for finite sums.

Source: Dagreou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables
stochastic and global variance reduction algorithms", 2022.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.bilevel.hypergradient import OracleCount
from jaxiter.bilevel.methods import (
    Batches,
    Method,
    add_counts,
    coupled,
    move,
    no_counts,
    product_pair,
    rows_of,
)

PyTree = Any


class Table(NamedTuple):
    """The last value of a quantity on every block, and the mean of these values."""

    rows: PyTree
    mean: PyTree


class SabaState(NamedTuple):
    """x, y, v and their optimisers; tables of the inner and of the outer quantities."""

    x: PyTree
    y: PyTree
    v: PyTree
    optimisers: PyTree
    inner: Table
    outer: Table
    counts: OracleCount


def saba(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    linear_optimizer: optax.GradientTransformation | None = None, blocks: tuple[int, int],
) -> Method:
    """Linear convergence with constant rates, for `blocks` times the memory of x, y and v.

    The data are cut into fixed blocks of `batch_size` consecutive rows (shuffle them once), the
    last block shorter. Each step draws one block of each objective; the direction is its new
    value minus its old one plus the mean of the table, which is unbiased and loses its noise.

    Args:
      outer, inner: `(x, y, batch) -> scalar`, means over the rows of the batch.
      inner_optimizer, outer_optimizer, linear_optimizer: of y, x and v; v's default is y's.
      blocks: numbers of inner and outer blocks, rows / batch_size rounded up.

    Raises:
      ValueError: at a step whose batch size does not cut the data into so many blocks.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import run
    >>> data = jnp.arange(8.0)
    >>> method = saba(lambda x, y, b: jnp.mean((y - b) ** 2),
    ...               lambda x, y, b: jnp.mean((y - x - b) ** 2), blocks=(4, 4),
    ...               inner_optimizer=optax.sgd(0.2), outer_optimizer=optax.sgd(0.05))
    >>> state, _ = run(method, method.init(jnp.float32(1), jnp.float32(0)), data, data,
    ...                num_steps=600, batch_size=2, key=jax.random.key(0))
    >>> abs(float(state.x)) < 1e-3
    True
    """
    optimizer = coupled(outer_optimizer, inner_optimizer, linear_optimizer)

    def init(x: PyTree, y: PyTree) -> SabaState:
        zero, flat = trees.zeros_like(y), trees.zeros_like(x)
        tables = (_table((zero, flat, zero), blocks[0]), _table((flat, zero), blocks[1]))
        return SabaState(x, y, zero, optimizer.init((x, y, zero)), *tables, no_counts())

    def step(state: SabaState, batches: Batches, key: jax.Array) -> SabaState:
        x, y, v, optimisers, inner_table, outer_table, counts = state
        first, second = jax.random.split(key)
        (slope, cross, image), inner_table = _draw(
            inner_table, batches.inner_data, batches.size, blocks[0], first,
            lambda batch: product_pair(inner, x, y, v, batch))
        (direct, pull), outer_table = _draw(
            outer_table, batches.outer_data, batches.size, blocks[1], second,
            lambda batch: jax.grad(outer, (0, 1))(x, y, batch))
        slopes = trees.subtract(direct, cross), slope, trees.subtract(image, pull)
        (x, y, v), optimisers = move(optimizer, slopes, optimisers, (x, y, v))
        return SabaState(x, y, v, optimisers, inner_table, outer_table,
                         add_counts(counts, 1, 1, 1))

    return Method(init, step)


def _table(like: PyTree, count: int) -> Table:
    return Table(jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), like), like)


def _draw(
    table: Table, data: PyTree, size: int | None, count: int, key: jax.Array, quantity: Callable
) -> tuple[PyTree, Table]:
    """The corrected estimate of `quantity` from one random block, and the table with its value."""
    rows = rows_of(data)
    size = rows if size is None else size
    if -(-rows // size) != count:
        raise ValueError(f"saba was built for {count} blocks, but {rows} rows in batches of {size} "
                         f"make {-(-rows // size)}.")
    index = jax.random.randint(key, (), 0, count)
    new, share = _on_block(data, rows, size, count, index, quantity)
    old = jax.tree.map(lambda leaf: leaf[index], table.rows)
    change = trees.subtract(new, old)
    # Blocks are drawn alike, so a short block's change counts for less.
    estimate = trees.axpy(count * share, change, table.mean)
    table = Table(jax.tree.map(lambda leaf, row: leaf.at[index].set(row), table.rows, new),
                  trees.axpy(share, change, table.mean))
    return estimate, table


def _on_block(
    data: PyTree, rows: int, size: int, count: int, index: jax.Array, quantity: Callable
) -> tuple[PyTree, jax.Array]:
    """The quantity on a block, and the block's share of the rows."""
    def block(start: jax.Array, length: int) -> PyTree:
        return jax.tree.map(
            lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, start, length), data)

    rest = rows - size * (count - 1)
    if rest == size:
        return quantity(block(index * size, size)), jnp.float32(1 / count)
    last = index == count - 1
    # Shapes are static: the short block is its own branch.
    value = jax.lax.cond(last, lambda: quantity(block(jnp.int32(rows - rest), rest)),
                         lambda: quantity(block(index * size, size)))
    return value, jnp.where(last, rest / rows, size / rows).astype(jnp.float32)
