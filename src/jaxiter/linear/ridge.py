"""Systems whose matrix has a multiple of the identity added."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.linear.system import LinearSolution, LinearSolver, Matvec, stacked
from jaxiter.numerics import is_concrete
from jaxiter.values import as_value

PyTree = Any


def with_ridge(solve: LinearSolver, ridge: Any) -> LinearSolver:
    """The solver of `(A + ridge I) x = b`; status, residual and condition are of that system.

    Raises:
      ValueError: a concrete ridge that is no finite scalar.
    """
    if isinstance(ridge, int | float) and ridge == 0:
        return solve
    if is_concrete(ridge) and (np.ndim(ridge) or not np.isfinite(ridge)):
        raise ValueError(f"ridge must be a finite scalar, got {ridge}.")
    return _of_shifted(solve, ridge)


@as_value
def _of_shifted(solve: LinearSolver, ridge: Any) -> LinearSolver:
    def shifted(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        start = {} if x0 is None else {"x0": x0}
        return solve(_Shifted(matvec, b, ridge), b, **start)

    return shifted


class _Shifted:
    """The product with `A + ridge I`, and what solvers ask of a product beyond calling it."""

    def __init__(self, matvec: Matvec, b: PyTree, ridge: Any) -> None:
        self._matvec, self._b, self._ridge = matvec, b, ridge

    def _plus(self, product: PyTree, v: PyTree) -> PyTree:
        return trees.axpy(jnp.asarray(self._ridge), v, product)

    def __call__(self, v: PyTree) -> PyTree:
        return self._plus(self._matvec(v), v)

    def transpose(self, v: PyTree) -> tuple[PyTree]:
        own = getattr(self._matvec, "transpose", None)
        own = jax.linear_transpose(self._matvec, self._b) if own is None else own
        return (self._plus(own(v)[0], v),)

    def stacked(self, vectors: PyTree) -> PyTree:
        return self._plus(stacked(self._matvec, vectors), vectors)
