"""The map whose fixed point is a barycentre: Sinkhorn's step for all histograms at once.

Potentials are those of the "ab" convention, `P_k = a_k b exp((f_k + g_k - C) / epsilon)`, in the
units of `Marginals`. A point is g `[K, m]`, or, debiased, (g, t) with weights `exp(t / epsilon)`
`[m]`, against which the entropy of the barycentre is measured. A constant in any g_k is nobody's
business: steps keep what there is, and the equations of the derivative take it out.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.numerics import machine_epsilon, product
from jaxiter.problem import Problem
from jaxiter.transport.checks import on_simplex
from jaxiter.transport.geometry import Geometry
from jaxiter.transport.iteration import Marginals, absorb, kernel_problem, log_problem

#: The least weight of a point inside the iteration: it carries nothing, and has a logarithm.
LEAST = 1e-30


class Data(NamedTuple):
    """Histograms `[K, n]`, their shares `[K]`, epsilon, and the unit of potentials."""

    histograms: jax.Array
    shares: jax.Array
    epsilon: jax.Array
    unit: Any

    @classmethod
    def at(cls, histograms: jax.Array, shares: jax.Array, epsilon: jax.Array) -> "Data":
        """With the unit for this epsilon."""
        unit = Marginals(shares, shares, epsilon).at(epsilon).unit
        return cls(histograms, shares, epsilon, unit)

    def marginals(self, b: jax.Array) -> Marginals:
        """Those of the plans, all histograms in one place."""
        return Marginals(self.histograms, b, self.epsilon, unit=self.unit)

    def each(self, function: Any, g: jax.Array, b: jax.Array, *kernels: Any) -> Any:
        """`function(g_k, *kernels_k, marginals_k)` for every histogram k."""
        shared = self.marginals(jnp.maximum(b, LEAST))
        return jax.vmap(lambda g, a, *kernel: function(g, *kernel, shared._replace(a=a)))(
            g, self.histograms, *kernels)


def split(x: Any) -> tuple[jax.Array, Any]:
    """g and t of a point; a t of None is not there."""
    return x if isinstance(x, tuple) else (x, None)


def _joined(g: jax.Array, t: Any) -> Any:
    return g if t is None else (g, t)


def log_weights_of(x: Any, data: Data) -> jax.Array:
    """`log b` `[m]`: the geometric mean of the `K^T u_k`, of mass 1."""
    g, t = split(x)
    logs = (0 if t is None else t) - product(data.shares, g)
    logs = logs * (data.unit / data.epsilon)
    return logs - jax.nn.logsumexp(logs)


def start(geometry: Geometry, data: Data, debiased: bool) -> Any:
    """Where it begins: one half step, from source potentials that all histograms share.

    Those for uniform weights, or, in memory, the least cost of a row; there the half step sums down
    the columns as they lie, nine times as fast on a CPU as along the rows of a transpose.
    """
    m, dtype, epsilon = geometry.shape[1], geometry.dtype, data.epsilon
    zero = jnp.zeros(m, dtype)
    if geometry.in_memory:
        cost = geometry.matrix()
        f = jnp.min(cost, axis=1)

        def half(a: jax.Array) -> jax.Array:
            reduced = (f + epsilon * jnp.log(a))[:, None] - cost
            # Taken apart, or XLA computes it anew for every entry.
            peak = lax.optimization_barrier(jnp.max(reduced, axis=0))
            return -peak - epsilon * jnp.log(jnp.sum(jnp.exp((reduced - peak) / epsilon), 0))
    else:
        f = geometry.softmin(zero, jnp.full(m, 1 / m, dtype), epsilon)

        def half(a: jax.Array) -> jax.Array:
            return geometry.T.softmin(f, a, epsilon)

    g = jax.vmap(half)(data.histograms) / data.unit
    # Bad input, such as a histogram of nothing but zeros, is the driver's to report.
    g = jnp.where(jnp.isfinite(g), g, 0)
    return _joined(g, zero if debiased else None)


def _step(x: Any, *rest: Any) -> Any:
    *kernels, geometry, data = rest
    (g, t), log_b = split(x), log_weights_of(x, data)
    if kernels:
        inner: Any = kernel_problem().step
        g = data.each(lambda g, kernel, marginals: inner(g, kernel, geometry, marginals), g,
                      jnp.exp(log_b), *kernels)
    else:
        inner: Any = log_problem().step
        g = data.each(lambda g, marginals: inner(g, geometry, marginals), g, jnp.exp(log_b))
    if t is not None:
        blurred = geometry.softmin(t * data.unit, jnp.ones_like(t), data.epsilon) / data.unit
        t = (t + log_b * (data.epsilon / data.unit) + blurred) / 2
    return _joined(g, t)


def _error(x: Any, image: Any, data: Data) -> jax.Array:
    """The l1 errors of the plans' second marginals, `b exp((g_k - image_k) / epsilon)`.

    Debiased, and of `b = d K d`.
    """
    (g, t), (image_g, image_t) = split(x), split(image)
    b, scale = jnp.exp(log_weights_of(x, data)), data.unit / data.epsilon

    def off(ratio: jax.Array) -> jax.Array:
        return jnp.sum(jnp.where(b > 0, b * jnp.abs(jnp.expm1(jnp.where(b > 0, ratio, 0))), 0), -1)

    error = product(data.shares, off((g - image_g) * scale))
    return error if t is None else error + off(2 * (t - image_t) * scale)


def _floor(x: Any, data: Data) -> jax.Array:
    """What rounding of the potentials where there is mass does to the error."""
    g, b = split(x)[0], jnp.exp(log_weights_of(x, data))
    size = product(data.shares, jnp.sum(b * jnp.abs(g), 1)) * (data.unit / data.epsilon)
    return machine_epsilon(g) * (4 * jnp.sum(b) + size / 2)


def _kernels(x: Any, geometry: Geometry, data: Data) -> Any:
    return data.each(lambda g, marginals: absorb(g * data.unit, geometry, marginals),
                     split(x)[0], jnp.exp(log_weights_of(x, data)))


def _valid(x: Any, geometry: Geometry, data: Data) -> jax.Array:
    """Whether the operands make sense, for values that are not concrete."""
    del x, geometry
    good = (data.epsilon > 0) & jnp.isfinite(1 / data.epsilon)
    return good & on_simplex(data.histograms) & on_simplex(data.shares)


def barycentre_problem(kernels: bool) -> Problem:
    """The iteration, on one absorbed kernel a histogram or in the log domain."""
    return Problem(
        step=_step, cache=_kernels if kernels else None, valid=_valid,
        merit=lambda x, image, *rest: _error(x, image, rest[-1]),
        scale=lambda x, image, *rest: jnp.ones_like(rest[-1].epsilon),
        floor=lambda x, *rest: _floor(x, rest[-1]))


def centred(x: Any, data: Data) -> Any:
    """The point with every g_k of mean 0 over b."""
    (g, t), b = split(x), jnp.exp(log_weights_of(x, data))
    return _joined(g - product(g, b)[:, None], t)


def equations(x: Any, geometry: Geometry, data: Data) -> Any:
    """Zero at a centred fixed point; regular, for the constants are taken out."""
    image = centred(_step(x, geometry, data), data)
    return jax.tree.map(jnp.subtract, image, x)
