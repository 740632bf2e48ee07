"""Estimates of a mean over data from a few rows at a time, by what was seen before.

An oracle is a mean over rows that depends on a point, such as the gradient of a loss; an
`Estimator` looks at a batch and answers for all rows. One that is written for one method works in
every method that is a map of directions.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.known import check_positive, check_share
from jaxiter.process import Batches
from jaxiter.values import as_value

PyTree = Any

__all__ = ["Drawn", "Estimator", "Oracle", "msvr", "page", "plain", "saga", "sarah", "storm"]


class Drawn(NamedTuple):
    """Data of which only a batch can be had, by `draw(key)`."""

    draw: Callable


def alone(value: PyTree) -> PyTree:
    """What a single part says is what the oracle says."""
    return value


class Oracle(NamedTuple):
    """`combine(part(point, batch), ...)`, with a part for every set of data; combine is linear.

    Attributes:
      parts: functions `(point, batch) -> tree`, means over the rows of the batch.
      data: `Batches`, or what else has `draw(key)`, one for each part.
      like: trees of the shapes of the parts' values, for memories: for a gradient the point.
    """

    parts: tuple[Callable, ...]
    data: tuple[Any, ...]
    like: tuple[PyTree, ...] = ()
    combine: Callable = alone

    def keys(self, key: jax.Array) -> tuple:
        """One for each part; a single part draws from the key itself."""
        return tuple(jax.random.split(key, len(self.data))) if len(self.data) > 1 else (key,)

    def draw(self, key: jax.Array) -> tuple:
        """A batch of each part."""
        return tuple(data.draw(key) for data, key in zip(self.data, self.keys(key), strict=True))

    def at(self, point: PyTree, batches: tuple) -> PyTree:
        """The combined value on these batches."""
        return self.combine(*(part(point, batch) for part, batch in zip(
            self.parts, batches, strict=True)))

    def all_rows(self, name: str) -> tuple:
        """All rows of every part.

        Raises:
          ValueError: where there are none to go through.
        """
        for data in self.data:
            if not isinstance(data, Batches) or not jax.tree.leaves(data.data):
                raise ValueError(
                    f"{name} goes through all rows, and there are no data: give them, or take an "
                    "estimator that only draws, such as plain() or storm().")
        return tuple(data.data for data in self.data)


class Estimator(NamedTuple):
    """A memory of what a stochastic oracle said, and what it answers by it.

    Attributes:
      init: `init(oracle, point) -> memory`, a tree of arrays.
      update: `update(oracle, point, memory, key) -> (estimate, memory)`.
      calls: `calls(oracle, memory, key)`: what that update costs, in batches of each part.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter import Batches
    >>> data = Batches(jnp.arange(8.0), 2)
    >>> oracle = Oracle((lambda x, rows: x - rows.mean(),), (data,), (jnp.float32(0),))
    >>> estimator = sarah()
    >>> memory = estimator.init(oracle, jnp.float32(0))
    >>> float(estimator.update(oracle, jnp.float32(0), memory, jax.random.key(0))[0])
    -3.5
    """

    init: Callable
    update: Callable
    calls: Callable


@as_value
def plain() -> Estimator:
    """The value on the batch itself."""
    return Estimator(
        lambda oracle, point: (),
        lambda oracle, point, memory, key: (oracle.at(point, oracle.draw(key)), memory),
        lambda oracle, memory, key: (1,) * len(oracle.data))


class Recursive(NamedTuple):
    """The point before, the estimate there, and how many were made."""

    before: PyTree
    estimate: PyTree
    count: jax.Array


def storm_value(weight: Any, now: PyTree, last: PyTree, kept: PyTree) -> PyTree:
    """`now + (1 - weight) (kept - last)`, now and last on one batch, kept the estimate at last."""
    return trees.axpy(1 - weight, trees.subtract(kept, last), now)


def msvr_value(weight: Any, correction: Any, now: PyTree, last: PyTree, kept: PyTree) -> PyTree:
    """`(1 - weight) kept + weight now + correction (now - last)`."""
    return trees.axpy(weight, trees.subtract(now, kept),
                      trees.axpy(correction, trees.subtract(now, last), kept))


def _recursive(
    follow: Callable, due: Callable | None = None, name: str = ""
) -> Estimator:
    """Of `follow(count, now, last, kept)` on one batch; of all rows where `due` says so."""
    def init(oracle: Oracle, point: PyTree) -> Recursive:
        if due is not None:
            oracle.all_rows(name)
        return Recursive(point, trees.zeros_like(oracle.combine(*oracle.like)), jnp.int32(0))

    def update(
        oracle: Oracle, point: PyTree, memory: Recursive, key: jax.Array
    ) -> tuple[PyTree, Recursive]:
        def on_batch() -> PyTree:
            batches = oracle.draw(key)
            now, last = oracle.at(point, batches), oracle.at(memory.before, batches)
            return follow(memory.count, now, last, memory.estimate)

        estimate = on_batch() if due is None else lax.cond(
            due(oracle, memory.count, key),
            lambda: oracle.at(point, oracle.all_rows(name)), on_batch)
        return estimate, Recursive(point, estimate, memory.count + 1)

    def calls(oracle: Oracle, memory: Recursive, key: jax.Array) -> tuple:
        if due is None:
            return (2,) * len(oracle.data)
        every, size = due(oracle, memory.count, key), _size(oracle)
        return tuple(jnp.where(every, -(-data.rows // size), 2) for data in oracle.data)

    return Estimator(init, update, calls)


def _at_first(first: float, number: Any, count: jax.Array) -> jax.Array:
    later: Any = number(count) if callable(number) else number
    return jnp.where(count == 0, first, later)


@as_value
def storm(weight: Any = 0.1) -> Estimator:
    """STORM: `now + (1 - w) (kept - last)`; at first now.

    now and last are the values of one batch here and at the point before, kept the estimate there.

    Args:
      weight: w in (0, 1], or a function of the steps made; 1 is `plain` at twice the cost.

    Raises:
      ValueError: a weight outside (0, 1].

    Reference: Cutkosky and Orabona, "Momentum-based variance reduction in non-convex SGD", 2019.
    """
    check_share(weight=weight)
    return _recursive(lambda count, *values: storm_value(_at_first(1.0, weight, count), *values))


@as_value
def msvr(weight: Any = 0.9, correction: Any = 1.0) -> Estimator:
    """MSVR: `(1 - w) kept + w now + c (now - last)`, which names what `storm` does; at first now.

    Args:
      weight: w in (0, 1], or a function of the steps made. correction: c; 1 - w is STORM.

    Raises:
      ValueError: a weight outside (0, 1].

    Reference: Jiang et al., "Multi-block-single-probe variance reduced estimator for coupled
    compositional optimization", 2022.
    """
    check_share(weight=weight)
    return _recursive(lambda count, *values: msvr_value(
        _at_first(1.0, weight, count), _at_first(0.0, correction, count), *values))


def _change(count: jax.Array, now: PyTree, last: PyTree, kept: PyTree) -> PyTree:
    return trees.add(kept, trees.subtract(now, last))


@as_value
def sarah(passes: float = 0.5) -> Estimator:
    """SARAH: the estimate before plus the change on a batch; all rows now and then, and at first.

    Args:
      passes: over all rows between two refreshes.

    Raises:
      ValueError: passes not positive; no data.

    Reference: Nguyen et al., "SARAH: a novel method for machine learning problems using
    stochastic recursive gradient", 2017.
    """
    check_positive(passes=passes)

    def due(oracle: Oracle, count: jax.Array, key: jax.Array) -> jax.Array:
        rows = sum(data.rows for data in oracle.data)
        return count % max(1, int(passes * rows / _size(oracle))) == 0

    return _recursive(_change, due, "sarah()")


@as_value
def page(probability: Any = 0.1) -> Estimator:
    """PAGE: all rows with this probability and at first, else the change on a batch as `sarah`.

    Raises:
      ValueError: a probability outside (0, 1]; no data.

    Reference: Li et al., "PAGE: a simple and optimal probabilistic gradient estimator for
    nonconvex optimization", 2021.
    """
    check_share(probability=probability)

    def due(oracle: Oracle, count: jax.Array, key: jax.Array) -> jax.Array:
        # Batches are drawn from keys that are split off this one.
        coin = jax.random.fold_in(key, 1 << 20)
        return (count == 0) | jax.random.bernoulli(coin, probability)

    return _recursive(_change, due, "page()")


def _size(oracle: Oracle) -> int:
    """Rows of a batch; without batches those of the longest data."""
    size = oracle.data[0].size
    return max(data.rows for data in oracle.data) if size is None else size


class Table(NamedTuple):
    """The last value on every block of rows, and the mean of these values."""

    rows: PyTree
    mean: PyTree


@as_value
def saga() -> Estimator:
    """SAGA: a block's new value minus its old one, plus the mean of all last values.

    The data are cut into fixed blocks of consecutive rows, as many as a batch has (shuffle them
    once), the last block shorter. Every part has a table of its own: its value on each block.

    Raises:
      ValueError: no data.

    Reference: Defazio, Bach and Lacoste-Julien, "SAGA: a fast incremental gradient method with
    support for non-strongly convex composite objectives", 2014.
    """
    def init(oracle: Oracle, point: PyTree) -> tuple:
        oracle.all_rows("saga()")
        return tuple(map(_table, oracle.data, oracle.like))

    def update(oracle: Oracle, point: PyTree, memory: tuple, key: jax.Array) -> tuple:
        looks = [_look(lambda batch, part=part: part(point, batch), *rest) for part, *rest in zip(
            oracle.parts, oracle.data, memory, oracle.keys(key), strict=True)]
        return oracle.combine(*(value for value, _ in looks)), tuple(table for _, table in looks)

    return Estimator(init, update, lambda oracle, memory, key: (1,) * len(memory))


def _blocks(data: Batches) -> tuple[int, int]:
    """Rows of a block, and how many blocks there are."""
    size = data.rows if data.size is None else data.size
    return size, -(-data.rows // size)


def _table(data: Batches, like: PyTree) -> Table:
    count = _blocks(data)[1]
    return Table(jax.tree.map(lambda leaf: jnp.zeros((count, *leaf.shape), leaf.dtype), like),
                 trees.zeros_like(like))


def _look(
    quantity: Callable, data: Batches, table: Table, key: jax.Array
) -> tuple[PyTree, Table]:
    """The estimate of the quantity from one random block, and the table with its value."""
    size, count = _blocks(data)
    index = jax.random.randint(key, (), 0, count)
    new, share = _on_block(quantity, data, index, size, count)
    change = trees.subtract(new, trees.at(table.rows, index))
    # Blocks are drawn alike, so a short block's change counts for less.
    estimate = trees.axpy(count * share, change, table.mean)
    return estimate, Table(
        jax.tree.map(lambda leaf, row: leaf.at[index].set(row), table.rows, new),
        trees.axpy(share, change, table.mean))


def _on_block(
    quantity: Callable, data: Batches, index: jax.Array, size: int, count: int
) -> tuple[PyTree, jax.Array]:
    """The quantity on a block, and the block's share of the rows."""
    def value(start: jax.Array, length: int) -> PyTree:
        return quantity(jax.tree.map(
            lambda leaf: lax.dynamic_slice_in_dim(leaf, start, length), data.data))

    rows, rest = data.rows, data.rows - size * (count - 1)
    if rest == size:
        return value(index * size, size), jnp.float32(1 / count)
    last = index == count - 1
    # Shapes are static: the short block is its own branch.
    return (lax.cond(last, lambda: value(jnp.int32(rows - rest), rest),
                     lambda: value(index * size, size)),
            jnp.where(last, rest / rows, size / rows).astype(jnp.float32))
