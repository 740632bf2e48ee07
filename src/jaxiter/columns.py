"""A few vectors shaped like a tree, stored as the rows of one matrix for each leaf.

What Anderson and GMRES remember; XLA multiplies such a history as a matrix.
"""

from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.numerics import HIGHEST, accumulation_dtype
from jaxiter.trees import total

PyTree = Any

#: So many vectors are combined term by term, in one loop with what is then done with the sum.
FEW = 12


def _row(leaf: jax.Array) -> jax.Array:
    """The leaf as one row of a history: flat, unless a trailing axis is explicitly sharded.

    XLA multiplies matrices; a history stored with the leaf's own axes would be
    copied into a matrix every step.
    """
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.eval_shape(_row, leaf)
    spec = jax.typeof(leaf).sharding.spec
    return leaf if any(axis is not None for axis in spec[1:]) else leaf.reshape(-1)


def empty(a: PyTree, count: int) -> PyTree:
    """An empty history of `count` vectors shaped like `a`: leaves `[count, size]`."""
    # Zeros like a row first: they are sharded like it.
    return jax.tree.map(lambda x: lax.broadcast(jnp.zeros_like(_row(x)), (count,)), a)


def put(history: PyTree, index: jax.Array | int, column: PyTree) -> PyTree:
    """The history with vector `index` replaced, in place inside a loop."""
    return jax.tree.map(
        lambda h, c: lax.dynamic_update_index_in_dim(h, _row(c), index, 0), history, column)


def push(history: PyTree, column: PyTree) -> PyTree:
    """The history without its first vector, and with another at the end."""
    return jax.tree.map(
        lambda h, c: lax.concatenate([h[1:], lax.broadcast(_row(c), (1,))], 0), history, column)


def dot(history: PyTree, *vectors: PyTree) -> jax.Array:
    """Inner products of each of the m stored vectors with each of k vectors, `[m, k]`.

    CPUs take a product with one vector at the speed of memory, with a few at a third of it.
    """

    def leaf(h: jax.Array, *xs: jax.Array) -> jax.Array:
        kind = h.dtype if jnp.iscomplexobj(h) else accumulation_dtype(h.dtype)
        axes = tuple(range(1, h.ndim))
        sharding = jax.typeof(h).sharding
        spread = any(axis is not None for axis in sharding.spec)
        everywhere = jax.sharding.NamedSharding(sharding.mesh, jax.P()) if spread else None
        one = len(xs) == 1
        right = _row(xs[0]) if one else jnp.stack([_row(x) for x in xs])
        out = lax.dot_general(
            jnp.conj(h), right, ((axes, tuple(axis - one for axis in axes)), ((), ())),
            precision=HIGHEST, preferred_element_type=kind, out_sharding=everywhere)
        return out[:, None] if one else out

    return total(jax.tree.leaves(jax.tree.map(leaf, history, *vectors)))


def combine(weights: jax.Array, history: PyTree, like: PyTree) -> PyTree:
    """`sum_i weights[i] * history[i]` in the shapes of `like`; weights: `[m]`."""

    def leaf(h: jax.Array, x: jax.Array) -> jax.Array:
        kind = h.dtype if jnp.iscomplexobj(h) else accumulation_dtype(h.dtype)
        if h.shape[0] > FEW:
            row = lax.dot_general(weights.astype(h.dtype), h, (((0,), (0,)), ((), ())),
                                  precision=HIGHEST, preferred_element_type=kind)
        else:
            rows = (lax.index_in_dim(h, i, 0, False).astype(kind) for i in range(h.shape[0]))
            row = reduce(lax.add, [weights[i].astype(kind) * row for i, row in enumerate(rows)])
        return row.astype(h.dtype).reshape(x.shape)

    return jax.tree.map(leaf, history, like)
