"""A direct solver: the matrix is built and factorised."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxiter import trees
from jaxiter.linear.ridge import with_ridge
from jaxiter.linear.system import (
    LinearSolution,
    LinearSolver,
    Matvec,
    direct_report,
    no_gains,
    stacked,
)
from jaxiter.numerics import safe_divide
from jaxiter.values import as_value

PyTree = Any


@as_value
def dense(rtol: Any = None, *, ridge: Any = 0.0) -> LinearSolver:
    """Build the matrix column by column and factorise it (LU); for up to about 1,000 unknowns.

    CONVERGED when the recomputed relative residual is within `rtol` (default ten
    times that of the iterative solvers), else PRECISION_FLOOR, LINEAR_FAILURE or NONFINITE.
    Half precision is solved in float32. `ridge` as in `cg`.

    >>> import jax.numpy as jnp
    >>> dense()(lambda v: 4 * v, jnp.array([8.0])).value.tolist()
    [2.0]
    """

    def solve(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        del x0  # a direct solve has no use for a start
        trees.check_same_structure(b, jax.eval_shape(matvec, b), "matvec")
        flat, unravel = ravel_pytree(b)
        # LAPACK knows no half precision.
        wide = np.promote_types(flat.dtype, np.float32)
        basis = jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
        columns = jax.vmap(lambda column: ravel_pytree(column)[0])(stacked(matvec, basis))
        # Beside b, a fixed vector: what the inverse does to them is nearly the worst it does.
        both = jnp.stack([flat, trees.probe_like(flat)], axis=1).astype(wide)
        solved = jnp.linalg.solve(columns.T.astype(wide), both)
        x = unravel(solved[:, 0].astype(flat.dtype))
        gains = no_gains(trees.norm(flat))
        lengths = jnp.linalg.norm(columns.astype(wide), axis=1).astype(gains.largest.dtype)
        gains = gains.seeing(jnp.max(lengths))
        for known, image in ((both[:, 1], solved[:, 1]), (both[:, 0], solved[:, 0])):
            gains = gains.seeing(safe_divide(trees.norm(known), trees.norm(image)))
        return direct_report(x, b, matvec(x), gains, rtol, flat.size)

    return with_ridge(solve, ridge)
