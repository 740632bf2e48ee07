"""`regularisation_path`: one model for many penalties, each solve started from the one before."""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.numerics import on_own_mesh, stop_gradient, strong, typed_by
from jaxiter.operators.descent import descent, first_step
from jaxiter.operators.momentum import restarted_momentum
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import as_point
from jaxiter.reuse import reused
from jaxiter.splitting import SplitResult, solve_splitting

PyTree = Any


@reused
@on_own_mesh
def regularisation_path(
    f: Callable, prox: Callable, x0: PyTree, penalties: PyTree, *args: PyTree, step: Any = None,
    **options: Unpack[SolveOptions],
) -> SplitResult:
    """`proximal_gradient(f, prox, x, penalty, *args)` for one penalty after the other.

    Every solve starts from the answer of the one before, and with its step: give the penalties in
    order, the strongest first, where x0 = 0 is nearly the answer. Where they are many and uneven
    starts do not matter, `solve_many` is wider.

    Args:
      f, prox: `f(x, penalty, *args)` and `prox(v, step, penalty, *args)`.
      x0: start of the first solve.
      penalties: `[k]`, or a tree of leaves `[k, ...]`.
      *args, step, **options: as in `proximal_gradient`, for every solve; no `resume`.

    Returns:
      A batched `SplitResult`, all its fields with a leading axis k. Derivatives are those of every
      answer, with respect to penalties and args.

    Raises:
      ValueError: penalties without a common leading axis; else as `proximal_gradient`.

    Reference: Friedman, Hastie and Tibshirani, "Regularization paths for generalized linear models
    via coordinate descent", J. Stat. Softw. 33, 2010 (the warm starts).

    >>> import jax.numpy as jnp
    >>> from jaxiter.operators import prox_l1, regularisation_path
    >>> out = regularisation_path(
    ...     lambda x, w, b: jnp.sum((x - b) ** 2) / 2, lambda v, step, w, b: prox_l1(v, step, w),
    ...     jnp.zeros(2), jnp.array([2.0, 1.0]), jnp.array([3.0, 1.5]))
    >>> out.value.round(3).tolist(), bool(out.converged.all())
    ([[1.0, 0.0], [2.0, 0.5]], True)
    """
    chosen = choose("regularisation_path", options, {
        "resume": "start from the last value, with the penalties that are left"},
        solver=restarted_momentum())
    x0, penalties = as_point(x0), jax.tree.map(strong, penalties)
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(penalties)}
    if len(sizes) != 1 or () in sizes:
        raise ValueError("penalties must have a common leading axis, one entry per solve; got "
                         f"shapes {[leaf.shape for leaf in jax.tree.leaves(penalties)]}.")

    def solve(carry: tuple, penalty: PyTree) -> tuple[tuple, SplitResult]:
        x, size = carry
        out = solve_splitting(
            descent(f, prox, step, size), x, penalty, *args, **chosen._asdict())
        size = out.solve.state.answer.memory.size
        return stop_gradient((out.value, size)), out._replace(
            solve=out.solve._replace(state=None))

    first = trees.first(penalties)
    size = jnp.asarray(first_step(f, x0, (first, *args), step), trees.norm_dtype(x0))
    carry = typed_by(
        lambda x, size: (f(x, first, *args), prox(x, size, first, *args)), (x0, size),
        stop_gradient((x0, size)))
    return lax.scan(solve, carry, penalties)[1]
