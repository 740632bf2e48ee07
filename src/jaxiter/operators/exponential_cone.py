"""Projection onto the exponential cone: one root, then closed forms.

Boundary and polar cone of `K = cl {(x, y, z) : y > 0, y exp(x / y) <= z}` are two families of
rays, `g = (r, 1, e^r)` and `n = (1, 1 - r, -e^-r)`, orthogonal for every r. A point outside of
both cones is `a g + b n`, and the projection is `a g`: r is the root of an increasing function.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxiter.line_search import monotone_root
from jaxiter.numerics import on_own_mesh, safe_divide, safe_log
from jaxiter.operators.domain import lengths, real
from jaxiter.reuse import reused


@reused
@on_own_mesh
def projection_exponential_cone(v: jax.Array) -> jax.Array:
    """Project every row (x, y, z) onto the closure of `{y > 0, y exp(x / y) <= z}`.

        (x, y, z) = a (r, 1, e^r) + b (1, 1 - r, -e^-r),    a, b >= 0:    p = a (r, 1, e^r)

    r is found by `monotone_root`, to the last digit; the derivative is
    `g g^T + k e e^T` for the unit ray g, the unit tangent e and a number k in [0, 1].

    Args:
      v: `[..., 3]`, real.

    Raises:
      ValueError: a last axis that is not 3.

    Reference: Friberg, "Projection onto the exponential cone: a univariate root-finding problem",
    Optim. Methods Softw. 38, 2023.

    >>> import jax.numpy as jnp
    >>> [round(float(x), 4) for x in projection_exponential_cone(jnp.array([1.0, 1.0, 1.0]))]
    [0.4263, 0.7517, 1.3254]
    """
    v = jnp.asarray(real("projection_exponential_cone", v))
    if v.ndim < 1 or v.shape[-1] != 3:
        raise ValueError(f"the last axis must be (x, y, z), got shape {v.shape}.")
    return _project(v)


class _Rays(NamedTuple):
    """The row in units of its largest entry, r, and where it lies: in K, in its polar, beside."""

    unit: jax.Array
    x: jax.Array
    y: jax.Array
    z: jax.Array
    r: jax.Array
    inside: jax.Array
    polar: jax.Array
    beside: jax.Array


def _rays(v: jax.Array) -> _Rays:
    largest = jnp.max(jnp.abs(v), -1)
    unit = jnp.where(largest > 0, largest, 1)
    x, y, z = (v[..., i] / unit for i in range(3))
    tiny = float(jnp.finfo(v.dtype).tiny)
    # So that neither quotient, squared, leaves the float range.
    x, y = (jnp.where(jnp.abs(part) < tiny ** (1 / 3), 0, part) for part in (x, y))
    right, over = x > 0, y > 0
    start = 1 - y / jnp.where(right, x, 1)
    end = x / jnp.where(over, y, 1)
    far = -2 * math.log(tiny)
    low = jnp.where(right, start, jnp.where(over, 2 * jnp.minimum(end, -1) - far, 0))
    high = jnp.where(over, end, jnp.where(right, 2 * jnp.maximum(start, 1) + far, 1))
    inside = over & (y * jnp.exp(jnp.minimum(end, far)) <= z)
    polar = right & (-x * jnp.exp(-jnp.maximum(start, -far)) >= z)
    beside = ~right & ~over

    def height(r: jax.Array) -> jax.Array:
        size = r * r - r + 1
        a = jnp.where(right, x * (r - start), (r - 1) * x + y) / size
        b = jnp.where(over, y * (end - r), x - r * y) / size
        return jnp.exp(r + safe_log(a)) - jnp.exp(safe_log(b) - r) - z

    # By the arsinh of r, so that what is rounded in a point is never more than a share of it.
    ends = jnp.arcsinh(low), jnp.arcsinh(high)
    below, above = height(jnp.sinh(ends[0])) < 0, height(jnp.sinh(ends[1])) > 0
    root = jnp.sinh(monotone_root(lambda u: height(jnp.sinh(u)), *ends))
    # One Newton step, no longer than what sinh has rounded.
    left, slope = jax.jvp(height, (root,), (jnp.ones_like(root),))
    rounded = 64 * jnp.finfo(v.dtype).eps * (1 + jnp.abs(root))
    step = jnp.where(slope > 0, jnp.clip(left / slope, -rounded, rounded), 0)
    root = jnp.clip(root - step, low, high)
    r = jnp.where(below, jnp.where(above, root, high), low)
    return _Rays(unit, x, y, z, jnp.where(inside | polar | beside, 0, r), inside, polar, beside)


@jax.custom_jvp
def _project(v: jax.Array) -> jax.Array:
    rays = _rays(v)
    x, y, z, r = rays.x, rays.y, rays.z, rays.r
    size, small = r * r - r + 1, jnp.exp(-jnp.abs(r))
    a, b = ((r - 1) * x + y) / size, (x - r * y) / size
    # For large r the first is a small number times a large one, for r far below 0 the second.
    edge = jnp.where((r > 0)[..., None],
                     jnp.stack([x - b, y - b * (1 - r), z + b * small], -1),
                     jnp.stack([a * r, a, a * small], -1))
    flat = jnp.stack([jnp.minimum(x, 0), jnp.zeros_like(y), jnp.maximum(z, 0)], -1)
    out = jnp.where(rays.beside[..., None], flat, edge) * rays.unit[..., None]
    out = jnp.where(rays.inside[..., None], v, jnp.where(rays.polar[..., None], 0, out))
    return jnp.where(jnp.isfinite(jnp.sum(v, -1, keepdims=True)), out, jnp.nan)


@_project.defjvp
def _project_jvp(primals: tuple, tangents: tuple) -> tuple[jax.Array, jax.Array]:
    (v,), (dot,) = primals, tangents
    rays = _rays(v)
    r, small = rays.r, jnp.exp(-jnp.abs(rays.r))
    large, one = (r > 0)[..., None], jnp.ones_like(r)
    ray = jnp.where(large, jnp.stack([r * small, small, one], -1), jnp.stack([r, one, small], -1))
    normal = jnp.where(large, jnp.stack([one, 1 - r, -small], -1),
                       jnp.stack([small, small * (1 - r), -one], -1))
    ray, normal = ray / lengths(ray), normal / lengths(normal)
    tangent = jnp.cross(ray, normal)
    share = _share(rays, small)
    moved = sum(weight[..., None] * along * jnp.sum(along * dot, -1, keepdims=True)
                for weight, along in ((one, ray), (share, tangent)))
    flat = dot * jnp.stack([one, 0 * one, (rays.z > 0).astype(v.dtype)], -1)
    moved = jnp.where(rays.beside[..., None], flat, moved)
    moved = jnp.where(rays.inside[..., None], dot, jnp.where(rays.polar[..., None], 0, moved))
    return _project(v), moved


def _share(rays: _Rays, small: jax.Array) -> jax.Array:
    """`a |e|^2 / (a |e|^2 + b)` for the part e of dg / dr that is orthogonal to g."""
    x, y, z, r = rays.x, rays.y, rays.z, rays.r
    size, curve, large = r * r - r + 1, (r - 1) ** 2 + 1, r > 0
    b_large = (x - r * y) / size
    a_small = ((r - 1) * x + y) / size
    a = jnp.where(large, (z + b_large * small) * small, a_small)
    b = jnp.where(large, b_large, (a_small * small - z) * small)
    one = small**2
    square = jnp.where(large, (one + curve) / ((r * r + 1) * one + 1),
                       (1 + one * curve) / (r * r + 1 + one))
    top = jnp.maximum(a, 0) * square
    return safe_divide(top, top + jnp.maximum(b, 0))
