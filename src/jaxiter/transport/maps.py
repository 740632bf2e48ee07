"""Maps from plans, also for points that were not transported, and a penalty that makes maps."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxiter.numerics import on_own_mesh, product, safe_divide
from jaxiter.options import SolveOptions
from jaxiter.reuse import reused
from jaxiter.solution import Solution, most_severe, reports
from jaxiter.transport.divergence import SinkhornDivergence, sinkhorn_divergence
from jaxiter.transport.geometry import Dense
from jaxiter.transport.points import PointCloud, squared_euclidean
from jaxiter.transport.result import TransportResult
from jaxiter.transport.sinkhorn import sinkhorn


def barycentric_map(
    result: TransportResult, x: jax.Array | None = None, y: jax.Array | None = None
) -> Callable:
    """The map of a plan that sends a source to the mean of where its mass goes.

        T(x_i) = sum_j P_ij y_j / sum_j P_ij,    T(x_new) = x_new + T(x_i) - x_i

    the second for a new point whose nearest source, of those with mass, is x_i.

    Args:
      result: a solve of `sinkhorn`.
      x: sources `[n, d]`; only needed for new points. Default: those of a `PointCloud`.
      y: targets `[m, d]`, or anything else `[m, k]` that is to be carried over, such as labels
        (then without new points). Default: those of a `PointCloud`.

    Returns:
      `map(x_new=None)`: the images `[q, d]` of new points `[q, d]`, or of the sources `[n, d]`; 0
      for a source without mass.

    Raises:
      ValueError: no targets, or no sources for new points; new points of another width.

    Reference: Ferradans, Papadakis, Peyre and Aujol, "Regularized discrete optimal transport",
    SIAM J. Imaging Sci. 7, 2014.

    >>> import jax.numpy as jnp, jaxiter
    >>> x = jnp.array([[0.0], [1.0]])
    >>> out = jaxiter.transport.sinkhorn(jaxiter.transport.PointCloud(x, x + 2), epsilon=0.01)
    >>> round(float(barycentric_map(out)(jnp.array([[0.9]]))[0, 0]), 3)
    2.9
    """
    x, y = _points(result, x, y)
    masses = result.apply(jnp.ones_like(y[:, 0]))
    images = safe_divide(result.apply(y), masses[:, None])

    def image(x_new: jax.Array | None = None) -> jax.Array:
        if x_new is None:
            return images
        if x is None:
            raise ValueError("new points are moved as their nearest sources are: pass the sources "
                             "x [n, d].")
        _check_width("x_new", x_new, x)
        gaps = jnp.where(masses > 0, PointCloud(x_new, x).matrix(), jnp.inf)
        nearest = jnp.argmin(gaps, axis=1)
        return x_new + (images - x)[nearest]

    return image


def entropic_map(
    result: TransportResult, x_new: jax.Array, y: jax.Array | None = None, *,
    cost: Callable | None = None,
) -> jax.Array:
    """Images of new points under the map that a solve's potentials g define everywhere.

        T(x) = sum_j w_j(x) y_j,    w(x) = softmax_j((g_j - c(x, y_j)) / epsilon)

    At a source this is the barycentric map; for the squared distance it is `x - grad f(x) / 2`.

    Args:
      result: a converged solve of `sinkhorn`.
      x_new: points `[q, d]`.
      y: targets `[m, d]`; default those of a `PointCloud`.
      cost: `cost(x, y_j)` of two points, the one of the solve; default that of a `PointCloud`,
        else the squared distance.

    Returns:
      Images `[q, d]`, smooth in x_new and in all that the solve was made of.

    Raises:
      ValueError: no targets, points of another width.

    Reference: Pooladian and Niles-Weed, "Entropic estimation of optimal transport maps", 2021.

    >>> import jax.numpy as jnp, jaxiter
    >>> x = jnp.array([[0.0], [1.0]])
    >>> out = jaxiter.transport.sinkhorn(jaxiter.transport.PointCloud(x, x + 2), epsilon=0.01)
    >>> bool(jnp.allclose(entropic_map(out, x), x + 2, atol=1e-5))
    True
    """
    _, y = _points(result, None, y)
    _check_width("x_new", x_new, y)
    if cost is None:
        cloud = isinstance(result.geometry, PointCloud)
        cost = result.geometry.cost if cloud else squared_euclidean
    logits = (result.g - PointCloud(x_new, y, cost).matrix()) / result.epsilon
    return product(jax.nn.softmax(logits, axis=1), y)


def _points(result: TransportResult, x: Any, y: Any) -> tuple[Any, jax.Array]:
    if isinstance(result.geometry, PointCloud):
        x = result.geometry.x if x is None else x
        y = result.geometry.y if y is None else y
    if y is None:
        raise ValueError("a plan of a cost matrix knows no points: pass the targets y [m, d].")
    y = jnp.asarray(y, result.g.dtype)
    if y.ndim != 2 or y.shape[0] != result.g.shape[0]:
        raise ValueError(f"y must have shape [{result.g.shape[0]}, d], got {y.shape}.")
    return None if x is None else jnp.asarray(x, result.f.dtype), y


def _check_width(name: str, points: jax.Array, like: jax.Array) -> None:
    if points.ndim != 2 or points.shape[1] != like.shape[1]:
        raise ValueError(f"{name} must be points [q, {like.shape[1]}], got {points.shape}.")


@reports
class MongeGap(NamedTuple):
    """What `monge_gap` says.

    Attributes:
      value: the gap, a scalar.
      solve: the Solution of the transport from x to its images.
    """

    value: jax.Array
    solve: Solution


@reused
@on_own_mesh
def monge_gap(
    x: jax.Array, tx: jax.Array, *, epsilon: Any, cost: Callable = squared_euclidean,
    centred: bool = True, **options: Unpack[SolveOptions],
) -> MongeGap:
    """How much more a map spends than the best transport to where it leads: 0 for optimal maps.

        mean_i c(x_i, T x_i) - min_P (<C, P> - epsilon H(P)) - epsilon log n,
        C_ij = c(x_i, T x_j),    H(P) = -sum P log P

    over plans of uniform weights. It is never negative, as the map itself is such a plan, of
    entropy log n; it tends to the gap without entropy as epsilon falls. In the P convention it
    is `epsilon log n` more, also for the best of maps (`centred=False`); with the Kullback
    divergence to `a b^T` in place of -H it would be `2 epsilon log n` less than that.

    Args:
      x, tx: points and their images, both `[n, d]`.
      epsilon: regularisation in units of the cost, or `relative(0.05)`.
      cost: `cost(x_i, y_j)` of two points.
      centred: whether `epsilon log n` is subtracted.
      **options: as in `sinkhorn`.

    Returns:
      A `MongeGap`; its gradient needs no linear solve.

    Raises:
      ValueError: points of different shapes; as `sinkhorn`.

    Reference: Uscidda and Cuturi, "The Monge gap: a regularizer to learn all transport maps",
    ICML, 2023.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0], [1.0], [3.0]])
    >>> shift, flip = monge_gap(x, x + 5, epsilon=0.01), monge_gap(x, 3 - x, epsilon=0.01)
    >>> round(abs(float(shift.value)), 3), round(float(flip.value), 2)
    (0.0, 6.0)
    """
    x, tx = jnp.asarray(x), jnp.asarray(tx)
    if x.shape != tx.shape or x.ndim != 2:
        raise ValueError(f"x and its images must both be points [n, d], got {x.shape} and "
                         f"{tx.shape}.")
    out = sinkhorn(Dense(PointCloud(x, tx, cost).matrix()), epsilon=epsilon, **options)
    # Of the dual, whose derivative is the plan's.
    own = jnp.mean(jax.vmap(cost)(x, tx)) - out.dual_value
    count = jnp.log(jnp.asarray(x.shape[0], x.dtype))
    return MongeGap(own + (1 if centred else 2) * out.epsilon * count, out.solve)


class MongeGapLoss(NamedTuple):
    """The parts of `monge_gap_loss`: `fit` to the targets, `gap` of the map, `status` of both."""

    fit: SinkhornDivergence
    gap: MongeGap
    status: jax.Array


def monge_gap_loss(
    apply: Callable, params: Any, x: jax.Array, y: jax.Array, *, epsilon: Any,
    strength: Any = 1.0, cost: Callable = squared_euclidean,
) -> tuple[jax.Array, MongeGapLoss]:
    """`S(T(x), y) + strength * gap(T)`: a map that leads to y, and by the shortest way.

    Args:
      apply: `apply(params, x)` the map T, of all points `[n, d]` at once.
      params: its parameters, any tree.
      x, y: samples `[n, d]`, `[m, d]` of source and target.
      epsilon: regularisation of both terms in units of the squared distance.
      strength: weight of `monge_gap`; 0 fits without regard to the way.
      cost: what the way costs; the fit is always by half the squared distance.

    Returns:
      The loss and its parts, for `jax.value_and_grad(..., has_aux=True)`.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([[0.0], [1.0], [3.0]])
    >>> loss, parts = monge_gap_loss(lambda shift, x: x + shift, 2.0, x, x + 2, epsilon=0.1)
    >>> bool(loss < 0.05), bool(parts.gap.converged)
    (True, True)
    """
    tx = apply(params, x)
    fit = sinkhorn_divergence(tx, y, epsilon=epsilon, static_b=False)
    gap = monge_gap(x, tx, epsilon=epsilon, cost=cost)
    loss = fit.value + strength * gap.value
    return loss, MongeGapLoss(fit, gap, most_severe(fit.status, gap.status))
