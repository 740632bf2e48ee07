"""A direct solver: the matrix is built and factorised."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxiter import trees
from jaxiter.linear.factor import solve
from jaxiter.linear.ridge import with_ridge
from jaxiter.linear.system import (
    Gains,
    LinearSolution,
    LinearSolver,
    Matvec,
    direct_report,
    no_gains,
    stacked,
)
from jaxiter.numerics import HIGHEST, anchor, numbers_in, safe_divide
from jaxiter.values import as_value

PyTree = Any


@as_value
def dense(rtol: Any = None, *, scaled: bool = False, ridge: Any = 0.0) -> LinearSolver:
    """Build the matrix column by column and factorise it (LU); for up to about 1,000 unknowns.

    CONVERGED when the recomputed relative residual is within `rtol` (default ten
    times that of the iterative solvers), else PRECISION_FLOOR, LINEAR_FAILURE or NONFINITE.
    Half precision is solved in float32. `ridge` as in `cg`.

    Args:
      rtol: as said.
      scaled: rows and columns are first divided by the roots of the diagonal, so that units of
        the unknowns do not matter: for Hessians, such as those of fits. Condition and residual
        are then those of the scaled system.

    >>> import jax.numpy as jnp
    >>> dense()(lambda v: 4 * v, jnp.array([8.0])).value.tolist()
    [2.0]
    """

    def run(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        del x0  # a direct solve has no use for a start
        trees.check_same_structure(b, jax.eval_shape(matvec, b), "matvec")
        if scaled:
            flat, unravel = ravel_pytree(b)
            return _scaled(_matrix(matvec, b), flat, unravel, rtol)
        x, gains = eliminated(matvec, b)
        return direct_report(x, b, matvec(x), gains, rtol, numbers_in(b))

    return with_ridge(run, ridge)


def eliminated(matvec: Matvec, b: PyTree) -> tuple[PyTree, Gains]:
    """x of `A x = b` by LU, in float32 at least, and the gains of A that it shows."""
    flat, unravel = ravel_pytree(b)
    matrix = _matrix(matvec, b)
    # Beside b, a fixed vector: what the inverse does to them is nearly the worst it does.
    both = jnp.stack([flat, trees.probe_like(flat)], axis=1).astype(matrix.dtype)
    solved = solve(matrix, both)
    gains = no_gains(trees.norm(flat))
    lengths = jnp.linalg.norm(matrix, axis=0).astype(gains.largest.dtype)
    gains = gains.seeing(jnp.max(lengths))
    for known, image in ((both[:, 1], solved[:, 1]), (both[:, 0], solved[:, 0])):
        gains = gains.seeing(safe_divide(trees.norm(known), trees.norm(image)))
    return unravel(solved[:, 0].astype(flat.dtype)), gains


def _matrix(matvec: Matvec, b: PyTree) -> jax.Array:
    """A, `[n, n]`, from its products with all unit vectors side by side."""
    flat, unravel = ravel_pytree(b)
    basis = jax.vmap(unravel)(anchor(jnp.eye(flat.size, dtype=flat.dtype), b))
    columns = jax.vmap(lambda column: ravel_pytree(column)[0])(stacked(matvec, basis))
    # LAPACK knows no half precision.
    return columns.T.astype(np.promote_types(flat.dtype, np.float32))


def _scaled(matrix: jax.Array, b: jax.Array, unravel: Callable, rtol: Any) -> LinearSolution:
    """The solution of a system that is divided by the roots of its diagonal on both sides."""
    lengths = jnp.sqrt(jnp.abs(jnp.diagonal(matrix)))
    # Powers of two round nothing.
    units = jnp.where(lengths > 0, 2.0 ** jnp.round(jnp.log2(_positive(lengths))), 1)
    units = units.astype(matrix.dtype)
    system = matrix / units / units[:, None]

    def product(v: jax.Array) -> jax.Array:
        return jnp.matmul(system.astype(v.dtype), v, precision=HIGHEST)

    solution = dense(rtol)(product, b.astype(matrix.dtype) / units)
    value = (solution.value / units).astype(b.dtype)
    return solution._replace(value=unravel(value))


def _positive(lengths: jax.Array) -> jax.Array:
    return jnp.where(lengths > 0, lengths, 1)


def triangle(matrix: jax.Array) -> jax.Array:
    """R of the QR factorisation, `[n, n]`: rows of zeros below where the matrix has fewer."""
    rows, n = matrix.shape
    r = jnp.linalg.qr(matrix, mode="r")
    return r if rows >= n else jnp.pad(r, ((0, n - rows), (0, 0)))


def damped_triangle(
    matrix: jax.Array, b: jax.Array, damping: Any
) -> tuple[jax.Array, jax.Array]:
    """`(R, c)` such that R x = c minimises `|M x - b|^2 + damping^2 |x|^2`, M: `[m, n]`."""
    n = matrix.shape[1]
    upper = jnp.concatenate([matrix, b[:, None]], axis=1)
    lower = jnp.pad(damping * jnp.eye(n, dtype=matrix.dtype), ((0, 0), (0, 1)))
    r = jnp.linalg.qr(jnp.concatenate([upper, lower]), mode="r")
    return r[:n, :n], r[:n, n]
