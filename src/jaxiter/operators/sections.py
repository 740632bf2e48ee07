"""Projections onto boxes cut by one plane: capped and weighted simplices among them."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter.known import check_floating, known
from jaxiter.line_search import monotone_root
from jaxiter.numerics import on_own_mesh, pin, safe_divide
from jaxiter.operators.domain import positive, real
from jaxiter.reuse import reused


@reused
@on_own_mesh
def projection_box_section(
    v: jax.Array, lower: Any, upper: Any, weights: Any = 1.0, total: Any = 1.0
) -> jax.Array:
    """Project every row onto `{p : lower <= p <= upper, sum weights p = total}`.

        p = clip(v - tau weights, lower, upper)

    tau is found by `monotone_root`, then from what lies between the bounds in closed form, which
    is exact and what derivatives go through.

    Args:
      v: `[..., n]`, real.
      lower, upper, weights: scalars, or arrays that broadcast with v; bounds may be infinite,
        weights of any sign.
      total: a scalar or `[...]`, one for every row.

    Raises:
      ValueError: an empty box, or a total that no point of it has, where they are known; else NaN.

    Reference: Pardalos and Kovoor, "An algorithm for a singly constrained class of quadratic
    programs subject to upper and lower bounds", Math. Program. 46, 1990.

    >>> import jax.numpy as jnp
    >>> out = projection_box_section(jnp.array([0.9, 0.3, -1.0]), 0.0, 0.6)
    >>> [round(float(x), 4) for x in out]
    [0.6, 0.4, 0.0]
    """
    return _section(v, lower, upper, weights, total)


def _section(v: jax.Array, lower: Any, upper: Any, weights: Any, total: Any) -> jax.Array:
    v = jnp.asarray(real("the projection onto a section", v))
    check_floating(v=v)
    known(partial(_check_section, v.shape), lower, upper, weights, total)
    # Pinned: sums of constants as large as v would be folded, for seconds, while compiling.
    low, high, w = pin(tuple(jnp.broadcast_to(jnp.asarray(x, v.dtype), v.shape)
                             for x in (lower, upper, weights)), v)
    goal, broken = _reachable(low, high, w, jnp.asarray(total, v.dtype)[..., None])
    tau = _section_threshold(*lax.stop_gradient((v, low, high, w, goal)))
    moved = v - tau * w
    free = (moved > low) & (moved < high)
    fixed = jnp.where(moved <= low, low, high)
    # From `moved`, not v: sums of large entries would be off by more than the box is wide.
    held = w * jnp.where(free, moved, fixed)
    squares = jnp.sum(jnp.where(free, w**2, 0), -1, keepdims=True)
    more = safe_divide(jnp.sum(held, -1, keepdims=True) - goal, squares)
    out = jnp.where(free, jnp.clip(moved - more * w, low, high), fixed)
    return jnp.where(broken | jnp.isnan(jnp.sum(v, -1, keepdims=True)), jnp.nan, out)


def _reachable(
    low: jax.Array, high: jax.Array, w: jax.Array, total: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The total, set right by rounding, and whether no point of the box has it."""
    ends = [w * jnp.where(w == 0, 0, bound) for bound in (low, high)]
    least, most = (jnp.sum(pick(*ends), -1, keepdims=True) for pick in (jnp.minimum, jnp.maximum))
    size = sum(jnp.sum(jnp.where(jnp.isfinite(end), jnp.abs(end), 0), -1, keepdims=True)
               for end in ends)
    slack = 8 * jnp.finfo(w.dtype).eps * size
    broken = ~((total >= least - slack) & (total <= most + slack)) | jnp.any(
        ~(low <= high), -1, keepdims=True)
    return total + lax.stop_gradient(jnp.clip(total, least, most) - total), broken


def _section_threshold(
    v: jax.Array, low: jax.Array, high: jax.Array, w: jax.Array, goal: jax.Array
) -> jax.Array:
    """tau with `sum w clip(v - tau w, low, high) = goal`, or the end nearest to it."""
    def over(tau: jax.Array) -> jax.Array:
        parts = jnp.where(w == 0, 0, w * jnp.clip(v - tau * w, low, high))
        return jnp.sum(parts, -1, keepdims=True) - goal

    # The breakpoints, and where all entries without a bound are alone with what the others have
    # at theirs: no farther, for what is rounded in a point is the size of the bracket.
    unit = jnp.where(w == 0, 1, w)
    bends = [jnp.where(w == 0, jnp.nan, (v - bound) / unit) for bound in (low, high)]
    bends = [jnp.where(jnp.isfinite(bend), bend, jnp.nan) for bend in bends]
    products = [w * jnp.where(w == 0, 0, bound) for bound in (low, high)]
    for extreme in (jnp.maximum, jnp.minimum):
        end = extreme(*products)
        free = jnp.isinf(end)
        rest = jnp.sum(jnp.where(free, w * v, end), -1, keepdims=True) - goal
        square = jnp.sum(jnp.where(free, w**2, 0), -1, keepdims=True)
        bends.append(jnp.where(square > 0, rest / jnp.where(square > 0, square, 1), jnp.nan))
    bends = jnp.concatenate(bends, -1)
    first, last = jnp.nanmin(bends, -1, keepdims=True), jnp.nanmax(bends, -1, keepdims=True)
    # A little wider, so that all entries are at a bound at both ends whatever is rounded.
    wider = 0.01 * (last - first) + jnp.finfo(v.dtype).eps * (jnp.abs(first) + jnp.abs(last))
    first, last = first - wider, last + wider
    return jnp.where(over(first) <= 0, first, jnp.where(
        over(last) >= 0, last, monotone_root(over, first, last)))


def _check_section(shape: tuple, lower: Any, upper: Any, weights: Any, total: Any) -> None:
    low, high, w = (np.broadcast_to(np.asarray(x, float), shape) for x in (lower, upper, weights))
    if np.any(low > high):
        raise ValueError("empty box: lower is above upper in some entry.")
    ends = [w * np.where(w == 0, 0, bound) for bound in (low, high)]
    least, most = (pick(*ends).sum(-1) for pick in (np.minimum, np.maximum))
    slack = 1e-6 * sum(np.abs(np.where(np.isfinite(end), end, 0)).sum(-1) for end in ends)
    if not np.all((np.asarray(total) >= least - slack) & (np.asarray(total) <= most + slack)):
        raise ValueError(f"no point of the box has the total {total}: those that it has lie "
                         f"between {least} and {most}.")


@reused
@on_own_mesh
def projection_weighted_simplex(v: jax.Array, weights: Any, scale: Any = 1.0) -> jax.Array:
    """Project every row onto `{p : p >= 0, sum weights p = scale}`.

    Args:
      v: `[..., n]`, real. weights: positive, broadcasts with v.
      scale: positive; a scalar or `[...]`, one for every row.

    Raises:
      ValueError: a weight or scale that is not positive, where it is known; else NaN.

    Reference: Perez, Ament, Gomes and Barlaud, "Efficient projection algorithms onto the weighted
    l1 ball", 2022.

    >>> import jax.numpy as jnp
    >>> out = projection_weighted_simplex(jnp.ones(2), jnp.array([1.0, 2.0]))
    >>> [round(float(x), 4) for x in out]
    [0.6, 0.2]
    """
    sound = positive("weights", weights, v.dtype) * positive("scale", scale, v.dtype)[..., None]
    out = _section(v, 0.0, jnp.inf, weights, scale)
    return jnp.where(jnp.any(jnp.isnan(sound), -1, keepdims=True), jnp.nan, out)


@reused
@on_own_mesh
def projection_capped_simplex(v: jax.Array, cap: Any = 1.0, scale: Any = 1.0) -> jax.Array:
    """Project every row onto `{p : 0 <= p <= cap, sum p = scale}`.

    With cap = 1 and scale = k this is the hull of the choices of k entries: a top-k that has a
    derivative.

    Args:
      v: `[..., n]`, real. cap: at least 0, broadcasts with v.
      scale: a scalar or `[...]`, one for every row; at most the sum of the caps.

    Raises:
      ValueError: a negative cap, or a scale that no point has, where they are known; else NaN.

    Reference: Wang and Lu, "Projection onto the capped simplex", 2015.

    >>> import jax.numpy as jnp
    >>> out = projection_capped_simplex(jnp.array([3.0, 1.2, 0.9, 0.0]), 1.0, 2.0)
    >>> [round(float(x), 4) for x in out]
    [1.0, 0.65, 0.35, 0.0]
    """
    return _section(v, 0.0, cap, 1.0, scale)
