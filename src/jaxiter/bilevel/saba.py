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
from jaxiter.bilevel.hypergradient import oracle_calls
from jaxiter.bilevel.methods import joint_optimizer, move, product_pair
from jaxiter.process import Batches, Process

PyTree = Any


class BlockTable(NamedTuple):
    """The last value of a quantity on every block, and the mean of these values."""

    rows: PyTree
    mean: PyTree


class SabaState(NamedTuple):
    """x, y, v and their optimizers; tables of the inner and of the outer quantities."""

    x: PyTree
    y: PyTree
    v: PyTree
    optimizers: PyTree
    inner: BlockTable
    outer: BlockTable


def saba(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    linear_optimizer: optax.GradientTransformation | None = None,
) -> Process:
    """Linear convergence with constant rates, for one copy of x, y and v per block of memory.

    The data are cut into fixed blocks of `batch_size` consecutive rows (shuffle them once), the
    last block shorter. Each step draws one block of each objective; the direction is its new
    value minus its old one plus the mean of the table, which is unbiased and loses its noise.

    Args:
      outer, inner: `(x, y, batch) -> scalar`, means over the rows of the batch.
      inner_optimizer, outer_optimizer, linear_optimizer: of y, x and v; v's default is y's.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import run
    >>> data = jnp.arange(8.0)
    >>> method = saba(lambda x, y, b: jnp.mean((y - b) ** 2),
    ...               lambda x, y, b: jnp.mean((y - x - b) ** 2),
    ...               inner_optimizer=optax.sgd(0.2), outer_optimizer=optax.sgd(0.05))
    >>> state = run(method, jnp.float32(1), jnp.float32(0), data, data,
    ...             max_steps=600, batch_size=2, key=jax.random.key(0)).state
    >>> abs(float(state.x)) < 1e-3
    True
    """
    optimizer = joint_optimizer(outer_optimizer, inner_optimizer, linear_optimizer)

    def init(start: tuple, *data: Batches) -> SabaState:
        x, y = start
        zero, flat = trees.zeros_like(y), trees.zeros_like(x)
        likes = (zero, flat, zero), (flat, zero)
        tables = [_table(like, part) for like, part in zip(likes, data, strict=True)]
        return SabaState(x, y, zero, optimizer.init((x, y, zero)), *tables)

    def step(
        state: SabaState, key: jax.Array, inner_data: Batches, outer_data: Batches
    ) -> SabaState:
        x, y, v, optimizers, inner_table, outer_table = state
        inner_key, outer_key = jax.random.split(key)
        (slope, cross, image), inner_table = _draw(
            inner_table, inner_data, inner_key,
            lambda batch: product_pair(inner, x, y, v, batch))
        (direct, pull), outer_table = _draw(
            outer_table, outer_data, outer_key,
            lambda batch: jax.grad(outer, (0, 1))(x, y, batch))
        slopes = trees.subtract(direct, cross), slope, trees.subtract(image, pull)
        (x, y, v), optimizers = move(optimizer, slopes, optimizers, (x, y, v))
        return SabaState(x, y, v, optimizers, inner_table, outer_table)

    return Process(init, step, calls=oracle_calls(1, 1, 1))


def _blocks(batches: Batches) -> tuple[int, int]:
    """Rows of a block, and how many blocks there are."""
    size = batches.rows if batches.size is None else batches.size
    return size, -(-batches.rows // size)


def _table(like: PyTree, batches: Batches) -> BlockTable:
    count = _blocks(batches)[1]
    return BlockTable(jax.tree.map(
        lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), like), like)


def _draw(
    table: BlockTable, batches: Batches, key: jax.Array, quantity: Callable
) -> tuple[PyTree, BlockTable]:
    """The corrected estimate of `quantity` from one random block, and the table with its value."""
    size, count = _blocks(batches)
    index = jax.random.randint(key, (), 0, count)
    new, share = _on_block(batches.data, batches.rows, size, count, index, quantity)
    old = jax.tree.map(lambda leaf: leaf[index], table.rows)
    change = trees.subtract(new, old)
    # Blocks are drawn alike, so a short block's change counts for less.
    estimate = trees.axpy(count * share, change, table.mean)
    table = BlockTable(jax.tree.map(lambda leaf, row: leaf.at[index].set(row), table.rows, new),
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
