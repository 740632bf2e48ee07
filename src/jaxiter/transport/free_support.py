"""Barycentres whose points move: to the mean of where the plans send them."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint
from jaxiter.known import check_count, check_floating, check_positive, known
from jaxiter.numerics import on_own_mesh, product, safe_divide, stop_gradient, strong
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.transport.checks import check_simplex, on_simplex, only_implicit
from jaxiter.transport.entries import softmin
from jaxiter.transport.inner import Warm, cold, inner_plan
from jaxiter.transport.points import PointCloud


@reports
class FreeBarycentre(NamedTuple):
    """What `free_support_barycentre` has found.

    Attributes:
      points: the support `[k, d]`, each point of mass `1 / k`.
      inner: Sinkhorn steps of all outer steps and measures together, int32.
      solve: the Solution of the support.
    """

    points: jax.Array
    inner: jax.Array
    solve: Solution


class Measures(NamedTuple):
    """Points `[K, n, d]`, their masses `[K, n]`, shares `[K]` and epsilon."""

    points: jax.Array
    masses: jax.Array
    shares: jax.Array
    epsilon: jax.Array


@reused
@on_own_mesh
def free_support_barycentre(
    points: jax.Array,
    k: int,
    weights: jax.Array | None = None,
    *,
    epsilon: Any,
    masses: jax.Array | None = None,
    init: jax.Array | None = None,
    **options: Unpack[SolveOptions],
) -> FreeBarycentre:
    """k points of equal mass, nearest in entropic transport by squared distance to K measures.

        y_i <- sum_l weights_l (P_l x_l)_i / (P_l 1)_i,    P_l the plan from y to measure l

    A local optimum, as that of k means; it depends on the start. Entropy draws the points
    together, by about epsilon in their variance.

    Args:
      points: `[K, n, d]`, n points a measure; fill up shorter ones with masses of 0.
      k: how many points.
      weights: shares `[K]` of the measures; default equal.
      epsilon: regularisation in units of the squared distance, positive.
      masses: `[K, n]`, each row at least 0 and of sum 1; default uniform.
      init: the support `[k, d]` to begin with; default every so many of all points, those of mass
        0 and all but one of equal ones left out. Where fewer than k are left some are drawn twice,
        and equal points of the support stay equal: then pass other ones.
      **options: those of `fixed_point`. No `resume`: `init` starts warm. No `unrolled()`, no
        series.

    Returns:
      A `FreeBarycentre`, whose points have exact implicit derivatives.

    Raises:
      ValueError: shapes that do not fit, weights or masses that are not on the simplex, epsilon
        <= 0. Under jit: BAD_INPUT. TypeError: points that are not floating point.

    Reference: Cuturi and Doucet, "Fast computation of Wasserstein barycenters", ICML, 2014.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0, 0.0], [1.0, 0.0]])
    >>> out = free_support_barycentre(jnp.stack([x, x + 2]), 2, epsilon=0.01)
    >>> bool(jnp.allclose(jnp.sort(out.points, 0), jnp.array([[1.0, 1.0], [2.0, 1.0]]), atol=1e-4))
    True
    """
    chosen = choose("free_support_barycentre", options, {"resume": "start warm by init"})
    adjoint = as_adjoint(chosen.adjoint)
    only_implicit("free_support_barycentre", adjoint, sums=False)
    check_count(k=k)
    check_positive(epsilon=epsilon)
    known(lambda host: check_simplex("masses", host), masses)
    known(lambda host: check_simplex("weights", host), weights)
    measures = _measures(points, masses, weights, epsilon)
    held: Measures = stop_gradient(measures)
    pooled = held.points.reshape(-1, held.points.shape[-1])
    if init is None and k > len(pooled):
        raise ValueError(f"{k} points of {len(pooled)}: pass a start init [k, d].")
    begin = _start(pooled, held.masses.reshape(-1) > 0, k) if init is None else stop_gradient(
        strong(init).astype(pooled.dtype))
    if begin.shape != (k, pooled.shape[1]):
        raise ValueError(f"init must have shape {(k, pooled.shape[1])}, got {begin.shape}.")
    solve = fixed_point(
        _problem(), begin, held, **chosen._replace(adjoint=frozen())._asdict())
    warm = solve.state.answer.memory
    g = _at_all(solve.value, warm.g / held.epsilon, held)
    g = g - jnp.sum(held.masses * g, 1, keepdims=True)
    found, _ = adjoint.attach(_equations, (solve.value, g), (measures,), solve.status)
    return FreeBarycentre(found, warm.steps, solve._replace(state=None))


def _measures(points: Any, masses: Any, weights: Any, epsilon: Any) -> Measures:
    points = strong(points)
    if points.ndim != 3 or not points.size:
        raise ValueError(f"points must be [K, n, d], n points a measure, got shape "
                         f"{points.shape}.")
    check_floating(points=points)
    (count, n, _), dtype = points.shape, points.dtype
    masses = jnp.full((count, n), 1 / n, dtype) if masses is None else strong(masses)
    shares = jnp.full(count, 1 / count, dtype) if weights is None else strong(weights)
    for name, given, shape in (("masses", masses, (count, n)), ("weights", shares, (count,))):
        if given.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, got {given.shape}.")
    return Measures(points, masses.astype(dtype), shares.astype(dtype),
                    jnp.asarray(epsilon, dtype))


def _start(points: jax.Array, massive: jax.Array, k: int) -> jax.Array:
    """k points `[k, d]`, evenly by their index among the different ones of positive mass."""
    # Equal points have one key, and are neighbours in its order, those of mass first.
    key = jnp.sum(points * np.cos(np.arange(points.shape[1])).astype(points.dtype), 1)
    order = jnp.lexsort((~massive, key))
    ordered = points[order]
    first = jnp.any(ordered != jnp.roll(ordered, 1, 0), 1).at[0].set(True)
    usable = massive & jnp.zeros_like(massive).at[order].set(first)
    whole, part = jnp.divmod(jnp.sum(usable, dtype=jnp.int32) - 1, max(k - 1, 1))
    places = jnp.arange(k, dtype=jnp.int32)
    places = places * whole + places * part // max(k - 1, 1)
    return points[jnp.argsort(~usable, stable=True)[places]]


def _problem() -> Problem:
    def step(y: jax.Array, warm: Warm, measures: Measures) -> tuple[jax.Array, Warm]:
        uniform = jnp.full(y.shape[:1], 1 / y.shape[0], y.dtype)

        def one(x: jax.Array, b: jax.Array, g: jax.Array) -> tuple:
            plan, g, steps = inner_plan(
                PointCloud(y, x).matrix(), uniform, b, measures.epsilon, g, warm.change)
            return safe_divide(product(plan, x), jnp.sum(plan, 1, keepdims=True)), g, steps

        images, g, steps = jax.vmap(one)(measures.points, measures.masses, warm.g)
        image = jnp.tensordot(measures.shares, images, 1, precision="highest")
        change = safe_divide(trees.norm(image - y), trees.norm(image)).astype(y.dtype)
        return image, Warm(g, change, warm.steps + jnp.sum(steps, dtype=jnp.int32))

    return Problem(step=step, valid=_valid,
                   memory=lambda y, measures: cold(jnp.zeros_like(measures.masses)))


def _valid(y: jax.Array, measures: Measures) -> jax.Array:
    del y
    return (measures.epsilon > 0) & jnp.all(jnp.isfinite(measures.points)) & on_simplex(
        measures.masses) & on_simplex(measures.shares)


def _at_all(y: jax.Array, potentials: jax.Array, measures: Measures) -> jax.Array:
    """The potentials `[K, n]` with those of points without mass, which no step has asked for."""
    def each(x: jax.Array, b: jax.Array, g: jax.Array) -> jax.Array:
        cost = PointCloud(y, x).matrix() / measures.epsilon
        return jnp.where(b > 0, g, _updated(g, b, cost)[1])

    return jax.vmap(each)(measures.points, measures.masses, potentials)


def _updated(g: jax.Array, b: jax.Array, cost: jax.Array) -> tuple[jax.Array, jax.Array]:
    """f(g) `[k]` and g(f) `[n]`, in units of epsilon as the cost is."""
    one = jnp.ones((), cost.dtype)
    f = softmin(cost, g, b, one)
    return f, softmin(cost.T, f, jnp.full_like(f, 1 / len(f)), one)


def _equations(x: tuple, measures: Measures) -> tuple:
    """Zero at a support and the centred potentials `[K, n]` of its plans, in units of epsilon."""
    y, potentials = x

    def each(x: jax.Array, b: jax.Array, g: jax.Array) -> tuple:
        cost = PointCloud(y, x).matrix() / measures.epsilon
        f, image = _updated(g, b, cost)
        rows = b * jnp.exp(f[:, None] + g[None, :] - cost)
        return product(rows, x), image - jnp.sum(b * image) - g

    images, off = jax.vmap(each)(measures.points, measures.masses, potentials)
    return jnp.tensordot(measures.shares, images, 1, precision="highest") - y, off
