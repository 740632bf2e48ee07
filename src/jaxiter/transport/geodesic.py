"""Geodesic distances on an image, by the relaxation of all edges at once."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.known import check_not_negative, known
from jaxiter.numerics import on_own_mesh, stop_gradient
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.stop import tolerance

#: Half of the eight neighbours of a pixel, by rows and columns; the others are their opposites.
NEIGHBOURS = ((0, 1), (1, 0), (1, 1), (1, -1))


@reports
class GeodesicCost(NamedTuple):
    """Geodesic distances of an image.

    Attributes:
      cost: from each seed to each pixel `[k, h w]`, divided by the largest one.
      solve: the `Solution` of the distances `[k, h, w]` before that.
    """

    cost: jax.Array
    solve: Solution


@reused
@on_own_mesh
def geodesic_cost(
    features: jax.Array, seeds: jax.Array, *, length: Any = 0.0, **options: Unpack[SolveOptions]
) -> GeodesicCost:
    """Lengths of the shortest paths from seeds to all pixels, over features that change little.

        d_p <- min(d_p, min over its 8 neighbours q of d_q + w_pq),   d = 0 at the seed,
        w_pq = |features_p - features_q|_1 + length |p - q|

    All pixels at once, until none changes: as many steps as the longest such path has pixels.

    Args:
      features: `[h, w, c]`, such as class probabilities and boundary scores, weighted as wanted.
      seeds: `[k, 2]` integers, row and column of each seed, within the image.
      length: what one pixel's way costs beside them, not negative.
      **options: those of `fixed_point`; default `stop`: no pixel changes. No `adjoint`, no
        `solver`: a path is not mixed from others.

    Raises:
      ValueError: other shapes, seeds that are no integers; features that are not finite, a negative
        length, seeds outside the image, which under jit are BAD_INPUT.

    Reference: Li et al., "Point-supervised panoptic segmentation via optimal transport", 2023
    (Point2Mask).

    >>> import jax.numpy as jnp
    >>> image = jnp.array([[0.0, 0.0, 1.0, 3.0]])[..., None]
    >>> [round(float(c), 2) for c in geodesic_cost(image, jnp.array([[0, 0]])).cost[0]]
    [0.0, 0.0, 0.33, 1.0]
    """
    chosen = choose("geodesic_cost", options, {
        "adjoint": "pseudo-labels have no derivatives", "solver": "the minimum of sums is exact"},
        stop=tolerance(rtol=0.0, atol=0.5), adjoint=frozen(), max_steps=2000)
    if features.ndim != 3 or seeds.ndim != 2 or seeds.shape[1] != 2 or 0 in (
            *features.shape, *seeds.shape):
        raise ValueError(f"features must be [h, w, c] and seeds [k, 2], at least one, got shapes "
                         f"{features.shape} and {seeds.shape}.")
    if not jnp.issubdtype(seeds.dtype, jnp.integer):
        raise ValueError(f"seeds must be integers, rows and columns of pixels, got {seeds.dtype}; "
                         "round them.")
    check_not_negative(length=length)
    known(_check_image, features, seeds)
    seeds = jnp.asarray(seeds, jnp.int32)
    features = stop_gradient(features.astype(jnp.float32))
    weights = _weights(features, jnp.asarray(length, jnp.float32))
    height, width = features.shape[:2]
    # No path is longer than one through all pixels.
    longest = 2 * height * width * jnp.max(jnp.stack([jnp.max(jnp.where(
        jnp.isfinite(w), w, 0)) for w in weights])) + 1
    start = jnp.broadcast_to(longest, (seeds.shape[0], height, width))
    start = start.at[jnp.arange(seeds.shape[0]), seeds[:, 0], seeds[:, 1]].set(0.0)
    inside = jnp.all((seeds >= 0) & (seeds < jnp.array([height, width])))
    good = inside & jnp.all(jnp.isfinite(features)) & (jnp.asarray(length) >= 0)

    solve = fixed_point(
        Problem(step=_relaxed, merit=_changes, scale=1.0, floor=0.0,
                valid=lambda d, weights, good: good),
        start, weights, good, **chosen._asdict())
    flat = solve.value.reshape(seeds.shape[0], -1)
    largest = jnp.max(flat)
    return GeodesicCost(flat / jnp.where(largest > 0, largest, 1), solve)


def _check_image(features: Any, seeds: Any) -> None:
    features, seeds = np.asarray(features), np.asarray(seeds)
    if not np.all(np.isfinite(features)):
        raise ValueError("features contain NaN or infinity.")
    if np.any((seeds < 0) | (seeds >= np.array(features.shape[:2]))):
        raise ValueError(f"seeds lie outside the image of {features.shape[0]} rows and "
                         f"{features.shape[1]} columns.")


def _changes(distance: jax.Array, image: jax.Array, *rest: Any) -> jax.Array:
    """1 where some distance changes, else 0: how much says nothing of how many steps are left."""
    return jnp.any(image < distance).astype(jnp.float32)


def _shifted(x: jax.Array, rows: int, columns: int, fill: float) -> jax.Array:
    """`y[..., i, j] = x[..., i + rows, j + columns]`, and `fill` from outside the image."""
    sides = [(0, 0, 0)] * (x.ndim - 2) + [(-rows, rows, 0), (-columns, columns, 0)]
    return lax.pad(x, jnp.asarray(fill, x.dtype), sides)


def _weights(features: jax.Array, length: jax.Array) -> list[jax.Array]:
    """For each of `NEIGHBOURS` the weight `[h, w]` of the edge there; inf where it leads out."""
    channels = jnp.moveaxis(features, 2, 0)
    return [jnp.where(_shifted(jnp.ones(features.shape[:2], bool), *way, False),
                      jnp.sum(jnp.abs(_shifted(channels, *way, 0) - channels), axis=0)
                      + length * float(np.hypot(*way)), jnp.inf) for way in NEIGHBOURS]


def _relaxed(distance: jax.Array, weights: list[jax.Array], good: jax.Array) -> jax.Array:
    """One relaxation of all edges."""
    best = distance
    for (rows, columns), weight in zip(NEIGHBOURS, weights, strict=True):
        there = _shifted(distance, rows, columns, jnp.inf) + weight
        back = _shifted(distance + weight, -rows, -columns, jnp.inf)
        best = jnp.minimum(best, jnp.minimum(there, back))
    return best
