"""Many independent systems behind one product."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter.linear.system import LinearSolution, LinearSolver, Matvec
from jaxiter.numerics import hoist
from jaxiter.values import as_value

PyTree = Any


@as_value
def by_rows(solve: LinearSolver) -> LinearSolver:
    """Solve each row of a batch by itself where the product is that of the whole batch.

    For block-diagonal systems: the leading axis of every leaf counts independent systems, and
    row i of `matvec(v)` depends on row i of v alone. The solver runs on all rows side by side,
    with scalars of their own, so that a singular row fails alone.

    Args:
      solve: a linear solver of one row.

    Returns:
      A solver; all fields of its `LinearSolution` have the leading axis.

    >>> import jax.numpy as jnp
    >>> from jaxiter.linear import bicgstab, by_rows
    >>> rates = jnp.array([[2.0], [0.0], [4.0]])  # the second system has no solution
    >>> out = by_rows(bicgstab())(lambda v: rates * v, jnp.ones((3, 2)))
    >>> out.value[::2].round(3).tolist(), out.converged.tolist()
    ([[0.5, 0.5], [0.25, 0.25]], [True, False, True])
    """

    def run(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(b)}
        if len(sizes) != 1 or () in sizes:
            raise ValueError("by_rows needs one leading axis of the same length in every leaf.")
        products = _Products(matvec, b)

        def of_row(row: jax.Array, b: PyTree, *start: PyTree) -> LinearSolution:
            return solve(_OfOneRow(products, row), b, **({"x0": start[0]} if start else {}))

        rows = jnp.arange(sizes.pop()[0], dtype=jnp.int32)
        return jax.vmap(of_row)(rows, b, *(() if x0 is None else (x0,)))

    return run


class _Products:
    """The batch's product, its transpose, and that of several batches, as functions of a row."""

    def __init__(self, matvec: Matvec, b: PyTree) -> None:
        transposed = jax.linear_transpose(matvec, b)
        self.one = _under_vmap(matvec, b)
        self.transpose = _under_vmap(lambda v: transposed(v)[0], b)
        self.matvec, self.b = matvec, b

    def several(self, row: jax.Array, vectors: PyTree) -> PyTree:
        count = jax.tree.leaves(vectors)[0].shape[0]
        example = jax.tree.map(
            lambda leaf: jnp.zeros((leaf.shape[0], count, *leaf.shape[1:]), leaf.dtype), self.b)
        return _under_vmap(jax.vmap(self.matvec, in_axes=1, out_axes=1), example)(row, vectors)


class _OfOneRow:
    """The product with one row's matrix, and what solvers ask of a product beyond calling it."""

    def __init__(self, products: _Products, row: jax.Array) -> None:
        self._products, self._row = products, row

    def __call__(self, v: PyTree) -> PyTree:
        return self._products.one(self._row, v)

    def transpose(self, v: PyTree) -> tuple[PyTree]:
        return (self._products.transpose(self._row, v),)

    def stacked(self, vectors: PyTree) -> PyTree:
        return self._products.several(self._row, vectors)


def _under_vmap(product: Matvec, example: PyTree) -> Callable:
    """A product of one row, which calls that of the batch once vmap has put the rows together.

    It takes the row's number, too, so that vmap finds a batch also where v is the same for all.
    """
    pure, constants, _ = hoist(product, example)

    @jax.custom_batching.custom_vmap
    def one(constants: list, row: jax.Array, v: PyTree) -> PyTree:
        del constants, row
        return v  # for its structure only: there is no product of a single row

    @one.def_vmap
    def batched(size: int, is_batched: Any, constants: list, row: jax.Array, v: PyTree) -> tuple:
        del row
        rows = jax.tree.map(
            lambda leaf, known: leaf if known else jnp.broadcast_to(leaf, (size, *leaf.shape)),
            v, is_batched[2])
        out = pure(constants, rows)
        return out, jax.tree.map(lambda _: True, out)

    return lambda row, v: one(constants, row, v)
