"""Functions of eigenvalues and singular values, with derivatives where these coincide.

The derivative of an eigenvector blows up where two eigenvalues meet, that of the function does
not: by divided differences of f (Daleckii and Krein), `d F(X) = U (G o (U^H dX U)) U^H`,
`G_ij = (f(l_i) - f(l_j)) / (l_i - l_j)`. Second derivatives do go through the vectors and want
distinct values.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter.numerics import product, safe_divide


def hermitian(matrix: jax.Array) -> jax.Array:
    """`(X + X^H) / 2`, of the last two axes.

    Raises:
      ValueError: matrices that are not square.
    """
    if jnp.ndim(matrix) < 2 or matrix.shape[-1] != matrix.shape[-2]:
        raise ValueError(f"the matrices must be square, got shape {jnp.shape(matrix)}.")
    return (matrix + _adjoint(matrix)) / 2


def _adjoint(matrix: jax.Array) -> jax.Array:
    return jnp.conj(jnp.swapaxes(matrix, -1, -2))


def _diagonal(entries: jax.Array, dtype: Any) -> jax.Array:
    return entries[..., None].astype(dtype) * jnp.eye(entries.shape[-1], dtype=dtype)


def _between(left: jax.Array, core: jax.Array, right: jax.Array) -> jax.Array:
    return product(product(left, core), right)


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def of_hermitian(
    f: Callable, quotients: Callable, matrix: jax.Array, number: jax.Array
) -> jax.Array:
    """`U f(l, number) U^H` for a Hermitian matrix `U l U^H`.

    Args:
      f: of eigenvalues and the number. quotients: `(l_i, l_j, number) -> G_ij`, exact where l_i
        and l_j are close or equal. matrix: `[..., n, n]`. number: a scalar, with derivatives.
    """
    del quotients
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    return product(vectors * f(values, number)[..., None, :].astype(vectors.dtype),
                   _adjoint(vectors))


@of_hermitian.defjvp
def _of_hermitian_jvp(
    f: Callable, quotients: Callable, primals: tuple, tangents: tuple
) -> tuple[jax.Array, jax.Array]:
    matrix, number = primals
    values, vectors = jnp.linalg.eigh(matrix, symmetrize_input=False)
    back = _adjoint(vectors)
    _, change = jax.jvp(lambda number: f(values, number), (number,), (tangents[1],))
    weights = quotients(values[..., :, None], values[..., None, :], number).astype(matrix.dtype)
    core = weights * _between(back, tangents[0], vectors) + _diagonal(change, matrix.dtype)
    return of_hermitian(f, quotients, matrix, number), _between(vectors, core, back)


@jax.custom_jvp
def excess(matrix: jax.Array, level: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`U max(s - level, 0) V^H` and `U min(s, level) V^H`, which add up to the matrix `U s V^H`.

    Args:
      matrix: `[..., m, n]`. level: a scalar, at least 0.
    """
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    kind = matrix.dtype
    return (product(left * jnp.maximum(values - level, 0)[..., None, :].astype(kind), right),
            product(left * jnp.minimum(values, level)[..., None, :].astype(kind), right))


@excess.defjvp
def _excess_jvp(primals: tuple, tangents: tuple) -> tuple[tuple, tuple]:
    """The first part changes by f = max(s - level, 0) in three blocks.

    The Hermitian part of `U^H dX V` gets the divided differences of f, the other part those of
    its odd continuation, and what is outside of U or V gets f / s.
    """
    matrix, level = primals
    change, lift = tangents
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    above = values >= level
    over = jnp.maximum(values - level, 0)
    pairs = [(x[..., :, None], x[..., None, :]) for x in (values, over, above)]
    (s_i, s_j), (f_i, f_j), (a_i, a_j) = pairs
    mixed = safe_divide(jnp.maximum(f_i, f_j), jnp.abs(s_i - s_j))
    even = jnp.where(a_i & a_j, 1, jnp.where(a_i | a_j, mixed, 0))
    none = s_i + s_j == 0
    odd = jnp.where(none, jnp.where(a_i & a_j, 1, 0), (f_i + f_j) / jnp.where(none, 1, s_i + s_j))
    gone = values == 0
    share = jnp.where(gone, jnp.where(above, 1, 0), over / jnp.where(gone, 1, values))
    even, odd, share = (part.astype(matrix.dtype) for part in (even, odd, share))
    back = _adjoint(left), _adjoint(right)
    inner = _between(back[0], change, back[1])
    core = (even * (inner + _adjoint(inner)) + odd * (inner - _adjoint(inner))) / 2
    core = core - _diagonal(jnp.where(above, lift, 0), matrix.dtype)
    beside = product(change, back[1]) - product(left, inner)
    below = product(back[0], change) - product(inner, right)
    moved = _between(left, core, right) + product(beside * share[..., None, :], right) + product(
        left * share[..., None, :], below)
    return excess(matrix, level), (moved, change - moved)
