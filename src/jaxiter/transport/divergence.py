"""The Sinkhorn divergence: entropic transport without its bias, zero between equal measures."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter.adjoint import Adjoint, frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import attach_implicit
from jaxiter.numerics import stop_gradient
from jaxiter.problem import Problem
from jaxiter.solution import Solution, most_severe
from jaxiter.solvers.mixing import damped
from jaxiter.stop import Stop
from jaxiter.transport.checks import prepare
from jaxiter.transport.geometry import Dense, Geometry, PointCloud
from jaxiter.transport.iteration import Marginals, column_error, log_floor
from jaxiter.transport.result import dual_objective
from jaxiter.transport.sinkhorn import sinkhorn

#: Costs with at most this many entries are kept in memory (64 MB in float32).
DENSE_ENTRIES = 2**24


class SinkhornDivergence(NamedTuple):
    """The value (scalar, at least 0 up to the tolerance) and how its three solves ended.

    `status` is the most severe of `cross`, `self_x` and `self_y` (None with static_b).
    """

    value: jax.Array
    status: jax.Array
    cross: Solution
    self_x: Solution
    self_y: Solution | None


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
    stop: Stop | None = None,
    adjoint: Adjoint | None = None,
    max_steps: Any = 2000,
) -> SinkhornDivergence:
    """`S = OT(a, b) - OT(a, a) / 2 - OT(b, b) / 2` between weighted points.

    OT is `min <C, P> + epsilon KL(P | a b^T)`, with rho penalties on the marginals when
    it is finite (then `epsilon/2 (sum a - sum b)^2` is added). The self terms have one
    potential and an averaged update, about 30 steps at any epsilon. Gradients with
    respect to points and weights need no linear solve; second derivatives are exact too.

    Args:
      x, y: points `[n, d]`, `[m, d]`. a, b: weights; default uniform of mass 1.
      epsilon: regularisation in units of the cost.
      cost: a symmetric `cost(x_i, y_j)`; default `|x - y|^2 / 2`.
      rho: strength of the marginal penalties; inf for equal masses.
      static_b: leave out the y-y term, a constant when y and b do not change.
      stop, adjoint, max_steps: as in `sinkhorn`.

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
    keywords = {"stop": stop, "adjoint": adjoint, "max_steps": max_steps}
    geometry = _geometry(x, y, cost)
    cross = sinkhorn(geometry, a, b, epsilon=epsilon, rho_a=rho, rho_b=rho, **keywords)
    _, marginals = prepare(geometry, a, b, epsilon, rho, rho)
    value = dual_objective(
        tuple(_without(p, w, marginals.epsilon) for p, w in (
            (cross.f, marginals.a), (cross.g, marginals.b))), (geometry, marginals))
    own, self_x = _self_term(_geometry(x, x, cost), marginals.a, marginals, **keywords)
    value = value - own / 2
    statuses, self_y = [cross.solve.status, self_x.status], None
    if not static_b:
        own, self_y = _self_term(_geometry(y, y, cost), marginals.b, marginals, **keywords)
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


def _without(potential: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
    """From the "P" to the "ab" convention; 0 where the weight is 0."""
    positive = weights > 0
    logs = jnp.log(jnp.where(positive, weights, 1))
    return jnp.where(positive, jnp.where(positive, potential, 0) - epsilon * logs, 0)


def _update(f: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    return marginals.damping[0] * geometry.softmin(f, marginals.a, marginals.epsilon)


def _self_term(
    geometry: Geometry, weights: jax.Array, marginals: Marginals, *, stop: Stop | None,
    adjoint: Adjoint | None, max_steps: Any,
) -> tuple[jax.Array, Solution]:
    """OT(a, a): both potentials are one f, the fixed point of its averaged update."""
    own = marginals._replace(a=weights, b=weights, rho_b=marginals.rho_a)
    problem = Problem(
        step=_update, floor=log_floor,
        merit=lambda f, image, geometry, marginals: column_error(f, image, marginals),
        scale=lambda f, image, geometry, marginals: jnp.sum(marginals.a))
    operands = stop_gradient((geometry, own))
    solve = fixed_point(problem, jnp.zeros_like(weights), *operands, solver=damped(0.5), stop=stop,
                        adjoint=frozen(), max_steps=max_steps)
    f = _update(solve.value, *operands)  # without the lag of the average
    f = attach_implicit(lambda f, *args: _update(f, *args) - f, f, geometry, own,
                        adjoint=adjoint)
    return dual_objective((f, f), (geometry, own)), solve
