"""Turn an approximate plan into one with exact marginals."""

import jax
import jax.numpy as jnp

from jaxiter.numerics import safe_divide


def round_to_polytope(plan: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
    """A plan with row sums a and column sums b, at l1 distance at most twice the violation.

    Rows, then columns are scaled down where they exceed; what is missing is added as a
    product of the two deficits.

    Args:
      plan: `[n, m]`, non-negative. a, b: weights `[n]`, `[m]` of equal sum.

    Reference: Altschuler, Weed and Rigollet, "Near-linear time approximation algorithms for
    optimal transport via Sinkhorn iteration", 2017, algorithm 2.

    >>> import jax.numpy as jnp
    >>> out = round_to_polytope(jnp.ones((2, 2)), jnp.array([1.0, 3.0]), jnp.array([2.0, 2.0]))
    >>> out.sum(1).tolist(), out.sum(0).tolist()
    ([1.0, 3.0], [2.0, 2.0])
    """
    plan = plan * jnp.minimum(safe_divide(a, plan.sum(1)), 1)[:, None]
    plan = plan * jnp.minimum(safe_divide(b, plan.sum(0)), 1)[None, :]
    rows, columns = a - plan.sum(1), b - plan.sum(0)
    missing = jnp.sum(jnp.abs(rows))
    return plan + safe_divide(rows[:, None] * columns[None, :], missing)
