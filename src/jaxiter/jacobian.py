"""The Jacobian of a function of trees as a matrix."""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.numerics import anchor

PyTree = Any


def flat(tree: PyTree, dtype: Any = None) -> jax.Array:
    """All entries as one vector; in the widest of their dtypes, at least float32, if not told."""
    leaves = jax.tree.leaves(tree)
    kind = reduce(np.promote_types, (leaf.dtype for leaf in leaves), np.dtype(np.float32))
    kind = kind if dtype is None else dtype
    parts = [leaf.reshape(-1).astype(kind) for leaf in leaves]
    return parts[0] if len(parts) == 1 else jnp.concatenate(parts)


def unflat(vector: jax.Array, like: PyTree) -> PyTree:
    """The tree of the shapes and dtypes of `like` whose entries `flat` would give."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])[:-1].tolist()
    parts = jnp.split(vector, ends) if ends else [vector]
    return jax.tree.unflatten(structure, [
        part.reshape(leaf.shape).astype(leaf.dtype)
        for part, leaf in zip(parts, leaves, strict=True)])


def dense_jacobian(function: Callable, x: PyTree) -> tuple[jax.Array, jax.Array]:
    """`(f [m], J [m, n])` of `function(x)`, both flat, by one product for every entry of x.

    >>> f, j = dense_jacobian(lambda x: {"a": x["u"] ** 2}, {"u": jnp.array([1.0, 3.0])})
    >>> f.tolist(), j.tolist()
    ([1.0, 9.0], [[2.0, 0.0], [0.0, 6.0]])
    """
    basis = anchor(jnp.eye(flat(x).size, dtype=flat(x).dtype), x)
    value, product = jax.linearize(lambda x: flat(function(x)), x)
    columns = jax.vmap(lambda row: product(unflat(row, x)))(basis)
    return value, columns.T


def positive(lengths: jax.Array) -> jax.Array:
    """The lengths to divide by: 1 for one of 0."""
    return jnp.where(lengths > 0, lengths, 1)


def column_lengths(matrix: jax.Array) -> jax.Array:
    """Norms of the columns, each in units of its largest entry: squares stay in the float range."""
    units = positive(jnp.max(jnp.abs(matrix), axis=0, initial=0))
    return jnp.sqrt(jnp.sum((matrix / units) ** 2, axis=0)) * units
