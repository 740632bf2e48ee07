"""A linear map as the pair of products that splittings use: with it and with its adjoint."""

import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter.numerics import product

PyTree = Any
#: A matrix, a sparse matrix (BCOO, BCSR), a pair (matvec, rmatvec), or matvec alone.
LinearMap = Any


def is_sparse(operator: Any) -> bool:
    """Whether it is a BCOO or BCSR matrix.

    Who has one has imported `jax.experimental.sparse`, which takes a third of a second.
    """
    sparse = sys.modules.get("jax.experimental.sparse")
    return sparse is not None and isinstance(operator, sparse.BCOO | sparse.BCSR)


def is_pair(operator: Any) -> bool:
    """Whether it is a pair (matvec, rmatvec)."""
    return isinstance(operator, tuple) and len(operator) == 2 and all(map(callable, operator))


def linear_map(operator: LinearMap, like: PyTree = None) -> tuple[Callable, Callable]:
    """`(x -> K x, y -> K^H y)`, whichever way K is given.

    Args:
      operator: `[m, n]`, dense or sparse (BCOO, BCSR); `(matvec, rmatvec)`; or matvec alone.
      like: for matvec alone, a tree of the structure that it takes; values do not matter.

    Raises:
      TypeError: what is no linear map; matvec alone without `like`.
      ValueError: an array that is no matrix.
    """
    if is_pair(operator):
        return operator
    if is_sparse(operator):
        adjoint = (operator.to_bcoo() if hasattr(operator, "to_bcoo") else operator).T
        return lambda x: operator @ x, lambda y: jnp.conj(adjoint @ jnp.conj(y))
    if callable(operator):
        if like is None:
            raise TypeError("matvec alone needs the structure that it takes: give like=, or "
                            "the pair (matvec, rmatvec).")
        transposed = jax.linear_transpose(operator, like)
        return operator, lambda y: jax.tree.map(
            jnp.conj, transposed(jax.tree.map(jnp.conj, y))[0])
    if jnp.ndim(operator) != 2:
        raise ValueError(f"a linear map must be a matrix, got shape {jnp.shape(operator)}.")
    matrix = jnp.asarray(operator)
    return lambda x: product(matrix, x), lambda y: product(jnp.conj(matrix.T), y)
