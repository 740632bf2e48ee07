"""Douglas-Rachford splitting: two proximal maps, and no gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.known import check_positive
from jaxiter.problem import Problem
from jaxiter.splitting import Splitting

PyTree = Any


def douglas_rachford(prox_f: Callable, prox_g: Callable, *, step_size: Any) -> Splitting:
    """Minimise `f(x) + g(x)` by the proximal maps of both; resolvents of monotone A, B as well.

        x = prox_f(z, step)
        y = prox_g(2 x - z, step)
        T(z) = z + y - x

    The governing point is z; the answer is x = prox_f(z), the dual (z - x) / step, a subgradient
    of f at x whose negative is one of g. Any step converges; a good one can save nine in ten
    of the evaluations. Tolerances are relative to z, which holds step times the dual: with a far
    too long one x is known less well. Where no solution exists, as with the projections onto two
    sets that do not meet, y - x tends to the gap: ask for `any_of(tolerance(), no_fixed_point())`.

    Args:
      prox_f, prox_g: `prox(v, step, *args)`, such as those of `jaxiter.operators`.
      step_size: positive scalar, in units of x per gradient.

    Returns:
      A `Splitting`, averaged with 1 / 2.

    Raises:
      ValueError: a step size that is not positive, where it is known; else BAD_INPUT.

    Reference: Lions and Mercier, "Splitting algorithms for the sum of two nonlinear operators",
    SIAM J. Numer. Anal. 16, 1979; Eckstein and Bertsekas, "On the Douglas-Rachford splitting
    method and the proximal point algorithm for maximal monotone operators", Math. Program. 55,
    1992.

    >>> import jax.numpy as jnp, jaxiter
    >>> from jaxiter.operators import prox_box
    >>> plane = lambda v, step, a: v - a * (jnp.sum(a * v) - 1.0) / jnp.sum(a * a)
    >>> positive = lambda v, step, a: prox_box(v, step, lower=0.0)
    >>> split = douglas_rachford(plane, positive, step_size=1.0)
    >>> out = jaxiter.solve_splitting(split, jnp.array([2.0, -1.0]), jnp.array([1.0, 1.0]))
    >>> [round(float(x), 3) for x in out.value], bool(out.converged)
    ([0.75, 0.25], True)
    """
    check_positive(step_size=step_size)

    def residual(z: PyTree, *args: PyTree) -> PyTree:
        x = prox_f(z, step_size, *args)
        mirrored = jax.tree.map(lambda x, z: 2 * x - z, x, z)
        return trees.subtract(prox_g(mirrored, step_size, *args), x)

    def extract(z: PyTree, *args: PyTree) -> tuple[PyTree, PyTree]:
        x = prox_f(z, step_size, *args)
        return x, trees.scale(1 / jnp.asarray(step_size), trees.subtract(z, x))

    def valid(z: PyTree, *args: PyTree) -> jax.Array:
        return jnp.asarray(step_size) > 0

    return Splitting(
        Problem(residual=residual, valid=valid),
        start=lambda x0, *args: x0, extract=extract, averaged=0.5)
