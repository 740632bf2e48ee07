"""Factorisations that wait for nothing but their operands.

jaxlib 0.10 deals a batch of LAPACK's factorisations and triangular solves out over all threads of
the CPU and waits for them. Two batches that do not depend on each other, as those of two layers
side by side, can so wait for each other for ever where there are two threads. Here the matrices of
a batch are treated one after the other on CPUs; elsewhere all at once.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.scipy.linalg import cho_solve, solve_triangular

from jaxiter.numerics import product, stop_gradient


def one_by_one(function: Callable) -> Callable:
    """`function` of arrays; a vmap calls it for one after the other on CPUs. No derivatives."""
    single = custom_vmap(function)

    def batch(size: int, batched: list, *operands: jax.Array) -> tuple:
        full = [operand if has else jnp.broadcast_to(operand, (size, *operand.shape))
                for operand, has in zip(operands, batched, strict=True)]
        return lax.platform_dependent(
            *full, cpu=lambda *each: lax.map(lambda one: single(*one), each),
            default=jax.vmap(function)), True

    single.def_vmap(batch)
    return single


@one_by_one
def _inverse_factor(matrix: jax.Array) -> jax.Array:
    identity = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return solve_triangular(jnp.linalg.cholesky(matrix), identity, lower=True)


def _side_by_side(function: Callable) -> Callable:
    """`function(matrix, right)`, one by one; all right-hand sides of one matrix in one call."""
    single, each = custom_vmap(function), one_by_one(function)

    def batch(size: int, batched: list, matrix: jax.Array, right: jax.Array) -> tuple:
        if batched[0]:
            return jax.vmap(each, (0, 0 if batched[1] else None))(matrix, right), True
        rows, columns = right.shape[1:]
        found = single(matrix, jnp.swapaxes(right, 0, 1).reshape(rows, size * columns))
        return jnp.swapaxes(found.reshape(rows, size, columns), 0, 1), True

    single.def_vmap(batch)
    return single


_cholesky = one_by_one(jnp.linalg.cholesky)
_solved = _side_by_side(jnp.linalg.solve)
_solved_by_factor = _side_by_side(lambda factor, right: cho_solve((factor, True), right))


def cholesky(matrix: jax.Array) -> jax.Array:
    """The lower Cholesky factor of `[n, n]`, NaN where there is none; a constant."""
    return _cholesky(stop_gradient(matrix))


def inverse_factor(matrix: jax.Array) -> jax.Array:
    """W with `W' W` the inverse of `[n, n]`, by Cholesky; NaN where there is none; a constant.

    What is solved with it is two products; refine where digits count.
    """
    return _inverse_factor(stop_gradient(matrix))


def solve(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """x of `matrix x = right`, `[n, n]` and `[n, k]`, by LU; with derivatives in both modes."""
    fixed = stop_gradient(matrix)
    return lax.custom_linear_solve(
        lambda x: product(matrix, x), right, lambda _, b: _solved(fixed, b),
        lambda _, b: _solved(fixed.T, b))


def solve_positive(matrix: jax.Array, right: jax.Array) -> jax.Array:
    """x of `matrix x = right`, `[n, n]` and `[n, k]`, by Cholesky; with derivatives in both modes.

    The matrix is Hermitian, its lower triangle is what is factorised; NaN where it is not
    positive definite.
    """
    factor = cholesky(matrix)

    def transposed(_: Callable, b: jax.Array) -> jax.Array:  # of a Hermitian matrix: its conjugate
        return jnp.conj(_solved_by_factor(factor, jnp.conj(b)))

    return lax.custom_linear_solve(
        lambda x: product(matrix, x), right, lambda _, b: _solved_by_factor(factor, b), transposed)
