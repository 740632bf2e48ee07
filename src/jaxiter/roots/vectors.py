"""F as a vector in the tree of x, and with its Jacobian as a matrix."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.jacobian import flat, unflat
from jaxiter.numerics import anchor, numbers_in

PyTree = Any


def as_like(x: PyTree, value: PyTree, what: str) -> PyTree:
    """The value in the tree of x, entry by entry; another tree passes where the sizes agree.

    Raises:
      TypeError: another number of entries, or other dtypes.
    """
    ours, theirs = ([(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(tree)]
                    for tree in (x, value))
    same = jax.tree.structure(x) == jax.tree.structure(value) and ours == theirs
    kinds = {dtype for _, dtype in ours + theirs}
    sizes = [numbers_in(tree) for tree in (x, value)]
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
    size = numbers_in(x)

    def column(direction: jax.Array) -> tuple:
        value, change, aux = jax.jvp(function, (x,), (unflat(direction, x),), has_aux=True)
        return value, flat(change, dtype), aux

    along = partial(jax.vmap, out_axes=(None, -1, None))
    return along(column)(anchor(jnp.eye(size, dtype=dtype), x))


def signed(x: PyTree) -> PyTree:
    """Entries of about the sizes of those of x, none of them 0, with random signs."""
    least = 1e-3 * trees.magnitude(x)

    def leaf(x: jax.Array, sign: jax.Array) -> jax.Array:
        size = jnp.abs(x)
        return sign * jnp.maximum(size, least.astype(size.dtype)).astype(x.dtype)

    return jax.tree.map(leaf, x, trees.probe_like(x))
