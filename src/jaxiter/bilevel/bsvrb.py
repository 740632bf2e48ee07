"""BSVRB: many inner problems that share x, a few of them sampled in every step.

`F(x) = mean_i outer(x, y_i(x), data_i)` with `y_i = argmin inner(x, ., data_i)`. Estimates of
every block's quantities are kept and corrected only when the block is drawn (MSVR).

Source: Hu, Qiu, Guo, Zhang and Yang, "Blockwise stochastic variance-reduced methods with parallel
speedup for multi-block bilevel optimization", 2023.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from jaxiter import trees
from jaxiter.bilevel.methods import oracle_calls, product_pair
from jaxiter.bilevel.single_loop import three_directions
from jaxiter.estimators import msvr_value, storm_value
from jaxiter.known import check_positive, check_share
from jaxiter.numerics import numbers_in
from jaxiter.process import Batches, Process

PyTree = Any


class BsvrbState(NamedTuple):
    """x; y stacked by block; what gives the adjoints; estimates; the point and adjoints before.

    adjoint: v_i for `bsvrb_v2`, the Hessians H_i for `bsvrb_v1`. estimates: of the inner
    gradients and, for `bsvrb_v2`, of the residuals H_i v_i - grad_y outer, else ().
    """

    x: PyTree
    y: PyTree
    adjoint: PyTree
    estimates: tuple
    before: tuple
    slope: PyTree


def bsvrb_v2(
    outer: Callable, inner: Callable, *, blocks: int, rate: Any, inner_rate: Any,
    linear_rate: Any = None, smoothing: float = 0.9, correction: float = 1.0,
    momentum: float = 0.9, radius: float = 10.0,
) -> Process:
    """Version 2: steps on `H_i v_i = grad_y outer`; its cost does not depend on the block count.

    Data have leading axes (block, row); `batch_size` rows of every sampled block are drawn, and
    y is given stacked: leaves `[m, ...]`.

    Args:
      outer, inner: `(x, y_i, batch) -> scalar` of one block; inner strongly convex in y_i.
      blocks: sampled per step. rate: of x. inner_rate: of y. linear_rate: of v; default the same.
      smoothing, correction: a and gamma of MSVR. With few blocks per step the theory's gamma
        amplifies noise: prefer 1. momentum: weight of a new slope in STORM.
      radius: of the ball that holds every v_i.

    Raises:
      ValueError: smoothing or momentum outside (0, 1], rates not positive, more blocks than y has.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter.bilevel import run
    >>> centres = jnp.arange(4.0)[:, None]
    >>> method = bsvrb_v2(lambda x, y, c: jnp.sum((y - 1) ** 2) / 2,
    ...                   lambda x, y, c: jnp.sum((y - x - c) ** 2) / 2,
    ...                   blocks=4, rate=0.1, inner_rate=0.5)
    >>> state = run(method, jnp.zeros(1), jnp.zeros((4, 1)), centres, centres,
    ...             max_steps=300, key=jax.random.key(0)).state
    >>> round(float(state.x[0]), 2)
    -0.5
    """
    linear_rate = inner_rate if linear_rate is None else linear_rate
    check_positive(linear_rate=linear_rate, radius=radius)

    def move(v: PyTree, residual: PyTree) -> PyTree:
        return trees.into_ball(radius, trees.axpy(-linear_rate, residual, v))

    return _bsvrb(outer, inner, blocks, rate, inner_rate, smoothing, correction, momentum,
                  move, None)


def bsvrb_v1(
    outer: Callable, inner: Callable, *, blocks: int, rate: Any, inner_rate: Any,
    curvature: float, smoothing: float = 0.9, correction: float = 1.0, momentum: float = 0.9,
) -> Process:
    """Version 1: an estimate of every Hessian (`p^2` floats per block), inverted exactly.

    All blocks move at every step, by estimates up to m / blocks steps old: keep
    `inner_rate * L * m / blocks` below about 1.

    Args:
      curvature: strong convexity of inner; eigenvalues of the H_i are lifted to it.
      The rest as in `bsvrb_v2`.

    Raises:
      ValueError: as `bsvrb_v2`.
    """
    check_positive(curvature=curvature)

    def invert(matrix: jax.Array, pull: PyTree) -> PyTree:
        values, basis = jnp.linalg.eigh((matrix + matrix.T) / 2)
        flat, unravel = ravel_pytree(pull)
        return unravel(basis @ ((basis.T @ flat) / jnp.maximum(values, curvature)))

    return _bsvrb(outer, inner, blocks, rate, inner_rate, smoothing, correction, momentum,
                  None, invert)


def _bsvrb(
    outer: Callable, inner: Callable, blocks: int, rate: Any, inner_rate: Any, smoothing: Any,
    correction: Any, momentum: Any, move: Callable | None, invert: Callable | None,
) -> Process:
    """Both versions: adjoints that move along their residuals, or Hessians that are inverted."""
    check_positive(blocks=blocks, rate=rate, inner_rate=inner_rate)
    check_share(smoothing=smoothing, momentum=momentum)
    estimate = partial(msvr_value, smoothing, correction)

    def init(start: tuple, *data: Batches) -> BsvrbState:
        x, y = start
        if _count(y) < blocks:
            raise ValueError(f"blocks={blocks} is more than the {_count(y)} blocks of y.")
        zero = trees.zeros_like(y)
        adjoint, u = (zero, zero) if invert is None else (jax.vmap(_identity)(y), ())
        return BsvrbState(x, y, adjoint, (zero, u), (x, y, adjoint), trees.zeros_like(x))

    def at(x: PyTree, y: PyTree, adjoint: PyTree, a: PyTree, b: PyTree) -> tuple:
        """Slopes of x and of y, and the adjoint's residual or the Hessian."""
        pulls = jax.grad(outer, (0, 1))(x, y, b)
        v = adjoint if invert is None else invert(adjoint, pulls[1])
        of_x, of_y, residual = three_directions(product_pair(inner, x, y, v, a), pulls)
        return of_x, of_y, residual if invert is None else _hessian(inner, x, y, a)

    def one(x: PyTree, x_was: PyTree, block: tuple, was: tuple, a: PyTree, b: PyTree) -> tuple:
        """A sampled block with new estimates and adjoint, and its slopes at the two points."""
        y, adjoint, s, u = block
        slope, down, now = at(x, y, adjoint, a, b)
        slope_was, down_was, last = at(x_was, *was, a=a, b=b)
        s = estimate(down, down_was, s)
        if move is None:
            return (y, estimate(now, last, adjoint), s, u), slope, slope_was
        u = estimate(now, last, u)
        return (trees.axpy(-inner_rate, s, y), move(adjoint, u), s, u), slope, slope_was

    def step(state: BsvrbState, key: jax.Array, *data: Batches) -> BsvrbState:
        inner_data, outer_data = data
        x, y, adjoint, estimates, before, slope = state
        block_key, inner_key, outer_key = jax.random.split(key, 3)
        index = jax.random.choice(block_key, _count(y), (blocks,), replace=False)
        a, b = _rows(inner_data, index, inner_key), _rows(outer_data, index, outer_key)
        block, was = trees.at(((y, adjoint, *estimates), before[1:]), index)
        block, now, last = jax.vmap(partial(one, x, before[0]))(block, was, a, b)
        new_y, new_adjoint, s, u = jax.tree.map(
            lambda leaf, rows: leaf.at[index].set(rows), (y, adjoint, *estimates), block)
        slope = storm_value(momentum, *trees.mean_rows((now, last)), kept=slope)
        new_y = new_y if invert is None else trees.axpy(-inner_rate, s, y)
        return BsvrbState(trees.axpy(-rate, slope, x), new_y, new_adjoint, (s, u),
                          (x, y, adjoint), slope)

    spent = 2 * blocks
    return Process(init, step, calls=oracle_calls(spent, spent, spent))


def _identity(y: PyTree) -> jax.Array:
    return jnp.eye(numbers_in(y), dtype=jax.tree.leaves(y)[0].dtype)


def _hessian(inner: Callable, x: PyTree, y: PyTree, batch: PyTree) -> jax.Array:
    flat, unravel = ravel_pytree(y)
    return jax.hessian(lambda flat: inner(x, unravel(flat), batch))(flat)


def _count(stacked: PyTree) -> int:
    return jax.tree.leaves(stacked)[0].shape[0]


def _rows(batches: Batches, index: jax.Array, key: jax.Array) -> PyTree:
    """The sampled blocks, and `size` random rows of each."""
    return jax.vmap(lambda rows, key: replace(batches, data=rows).draw(key))(
        trees.at(batches.data, index), jax.random.split(key, index.shape[0]))
