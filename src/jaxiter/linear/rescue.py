"""What a breakdown of BiCGStab is handed to."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.linear.dense import eliminated
from jaxiter.linear.residuals import WINDOW, conjugate_residuals
from jaxiter.linear.system import Gains, Matvec, no_gains
from jaxiter.numerics import if_needed, numbers_in

PyTree = Any


def small_enough(r: PyTree) -> bool:
    """Whether the rescue is a direct one."""
    return numbers_in(r) <= WINDOW


def rescue(
    matvec: Matvec, x: PyTree, r: PyTree, norm: jax.Array, tol: jax.Array, budget: Any
) -> tuple:
    """A cycle for `restarted`: the matrix, where it is small, else conjugate residuals.

    As many products as conjugate residuals may take in the end, but all at once: on 128 rows of
    64 unknowns a twentieth of the time.
    """
    if not small_enough(r):
        return conjugate_residuals(matvec, x, r, norm, tol, budget)

    def direct(x: PyTree, r: PyTree) -> tuple[PyTree, Gains]:
        change, gains = eliminated(matvec, r)
        return trees.add(x, change), gains

    size = numbers_in(r)
    needed = jnp.asarray(budget) >= size
    x, gains = if_needed(needed, direct, (x, r), (x, r, tol), (x, no_gains(norm)))
    return x, jnp.where(needed, size, 0).astype(jnp.int32), gains
