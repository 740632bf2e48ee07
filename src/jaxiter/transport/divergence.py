"""The Sinkhorn divergence: entropic transport without its bias, zero between equal measures."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint
from jaxiter.numerics import on_own_mesh, stop_gradient
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.reuse import reused
from jaxiter.solution import Solution, most_severe, reports
from jaxiter.solvers.mixing import damped
from jaxiter.transport.checks import (
    MAX_STEPS,
    NO_RESUME,
    judged,
    only_implicit,
    prepare,
    reduce,
    valid,
)
from jaxiter.transport.geometry import Dense, Geometry
from jaxiter.transport.iteration import Marginals, from_units, log_problem, sources
from jaxiter.transport.points import PointCloud
from jaxiter.transport.result import dual_objective, present
from jaxiter.transport.sinkhorn import sinkhorn

#: Costs with at most this many entries are kept in memory (64 MB in float32).
DENSE_ENTRIES = 2**24


@reports
class SinkhornDivergence(NamedTuple):
    """The value (scalar, at least 0 up to the tolerance) and how its three solves ended.

    `status` is the most severe of `cross`, `self_x` and `self_y` (None with static_b).
    """

    value: jax.Array
    status: jax.Array
    cross: Solution
    self_x: Solution
    self_y: Solution | None


@reused
@on_own_mesh
def sinkhorn_divergence(
    x: jax.Array,
    y: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    epsilon: Any,
    cost: Callable | None = None,
    rho: Any = float("inf"),
    static_b: bool = False,
    **options: Unpack[SolveOptions],
) -> SinkhornDivergence:
    """`S = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2` between weighted points.

    OT is `min <C, P> + epsilon KL(P | a b^T)`, with rho penalties on the marginals when
    it is finite (then `epsilon/2 (sum a - sum b)^2` is added). The self terms have one
    potential and an averaged update, about 30 steps at any epsilon. Gradients with
    respect to points and weights need no linear solve; second derivatives are exact too.

    Args:
      x, y: points `[n, d]`, `[m, d]`. a, b: weights; default uniform of mass 1.
      epsilon: regularisation in units of the cost, or `relative(0.05)`: of its mean over x, y.
      cost: a symmetric `cost(x_i, y_j)`; default `|x - y|^2 / 2`.
      rho: strength of the marginal penalties; inf for equal masses.
      static_b: leave out the y-y term, a constant when y and b do not change.
      **options: as in `sinkhorn`, of each of the three solves. No `solver`, no `monitor`: they
        are of two kinds. No `unrolled()`.

    Raises:
      ValueError: as `sinkhorn`.

    Reference: Genevay, Peyre and Cuturi, "Learning generative models with Sinkhorn divergences",
    2018; Feydy et al., "Interpolating between optimal transport and MMD using Sinkhorn
    divergences", 2019.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0], [1.0]])
    >>> round(float(sinkhorn_divergence(x, x + 1, epsilon=100.0).value), 3)
    0.5
    """
    kinds = "the three solves are of two kinds, each with a solver of its own"
    chosen = choose("sinkhorn_divergence", options, {
        **NO_RESUME, "solver": kinds, "monitor": kinds}, max_steps=MAX_STEPS)
    only_implicit("sinkhorn_divergence", as_adjoint(chosen.adjoint))
    geometry = _geometry(x, y, cost)
    cross = sinkhorn(geometry, a, b, epsilon=epsilon, rho_a=rho, rho_b=rho, **chosen._asdict())
    _, marginals = prepare(geometry, a, b, epsilon, rho, rho)
    own, self_x = _self_term(_geometry(x, x, cost), marginals, chosen)
    value = cross.dual_value - own / 2
    statuses, self_y = [cross.status, self_x.status], None
    if not static_b:
        own, self_y = _self_term(_geometry(y, y, cost), marginals.T, chosen)
        value = value - own / 2
        statuses.append(self_y.status)
    if not marginals.balanced:
        gap = jnp.sum(marginals.a) - jnp.sum(marginals.b)
        value = value + 0.5 * marginals.epsilon * gap**2
    return SinkhornDivergence(value, most_severe(*statuses), cross.solve, self_x, self_y)


def _geometry(x: jax.Array, y: jax.Array, cost: Callable | None) -> Geometry:
    x, y = jnp.asarray(x), jnp.asarray(y)
    if cost is None:
        half = jnp.sqrt(jnp.asarray(0.5, x.dtype))
        cloud = PointCloud(half * x, half * y)  # |x - y|^2 / 2
    else:
        cloud = PointCloud(x, y, cost)
    small = x.shape[0] * y.shape[0] <= DENSE_ENTRIES
    return Dense(cloud.matrix()) if small else cloud


def _self_term(
    geometry: Geometry, marginals: Marginals, options: Options
) -> tuple[jax.Array, Solution]:
    """OT(a, a): both potentials are one f, the fixed point of its averaged update."""
    own = marginals._replace(b=marginals.a, rho_b=marginals.rho_a)
    stop, adjoint = options.rule, as_adjoint(options.adjoint)
    parts, own = reduce(geometry, own)
    half = (parts.shift_rows + parts.shift_columns) / 2  # a cost as symmetric as before
    parts = parts.placed(half, half)
    own = own._replace(rows=parts.shifts[0], columns=parts.shifts[1])
    operands = stop_gradient((parts.geometry, own))
    solve = fixed_point(log_problem(valid, step=sources), jnp.zeros_like(own.a), *operands,
                        **options._replace(solver=damped(0.5), adjoint=frozen())._asdict())
    solve = from_units(solve, operands[1])
    f = sources(solve.value, *operands)  # without the lag of the average
    returned = present(*stop_gradient(((f, f), parts, own)))
    solve = judged(solve, (f, f), returned, parts, own, stop)
    f = adjoint.attach(lambda f, *args: sources(f, *args) - f, f, (parts.geometry, own),
                       solve.status)
    return dual_objective((f, f), (parts.geometry, own)), solve
