"""Trees as vectors of one dtype, and the Jacobian of a function of trees as a matrix."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees

PyTree = Any


def flat(tree: PyTree, dtype: Any) -> jax.Array:
    """All entries in a row."""
    return jnp.concatenate([leaf.reshape(-1).astype(dtype) for leaf in jax.tree.leaves(tree)])


def unflat(vector: jax.Array, like: PyTree) -> PyTree:
    """The entries in the shapes and dtypes of a tree."""
    leaves, structure = jax.tree.flatten(like)
    ends = [sum(leaf.size for leaf in leaves[:i]) for i in range(len(leaves) + 1)]
    return jax.tree.unflatten(structure, [
        vector[a:b].reshape(leaf.shape).astype(leaf.dtype)
        for a, b, leaf in zip(ends, ends[1:], leaves, strict=False)])


def as_like(x: PyTree, value: PyTree, what: str) -> PyTree:
    """The value in the tree of x, entry by entry; another tree passes where the sizes agree.

    Raises:
      TypeError: another number of entries, or other dtypes.
    """
    ours, theirs = ([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
                    for tree in (x, value))
    same = jax.tree.structure(x) == jax.tree.structure(value) and ours == theirs
    kinds = {dtype for _, dtype in ours + theirs}
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (x, value)]
    if same or len(kinds) > 1 or sizes[0] != sizes[1]:
        trees.check_same_structure(x, value, what)
        return value
    return unflat(flat(value, kinds.pop()), x)


def value_and_jacobian(
    function: Callable, x: PyTree, dtype: Any
) -> tuple[PyTree, jax.Array, PyTree]:
    """`function(x) -> (value, aux)` with its Jacobian `[outputs, entries of x]`, by forward mode.

    Returns:
      The value as it is, the matrix in `dtype`, aux.
    """
    size = sum(leaf.size for leaf in jax.tree.leaves(x))

    def column(direction: jax.Array) -> tuple:
        value, change, aux = jax.jvp(function, (x,), (unflat(direction, x),), has_aux=True)
        return value, flat(change, dtype), aux

    along = partial(jax.vmap, out_axes=(None, -1, None))
    return along(column)(jnp.eye(size, dtype=dtype))
