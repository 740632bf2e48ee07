"""The rows of `jaxiter.testing.matrix` whose fronts are those of transport."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import jaxiter as ji
from jaxiter import transport
from jaxiter.testing.matrix_cases import COST, POINTS, TIGHT, WEIGHTS, cost_of


def _plan(result: Any) -> jax.Array:
    return jnp.sum(WEIGHTS * result.plan())


def _sinkhorn_many(theta: jax.Array) -> jax.Array:
    costs = cost_of(theta) * jnp.array([1.0, 2.0])[:, None, None]
    out = transport.sinkhorn_many(costs, epsilon=0.5, lanes=2)
    return jnp.sum(out.f**2)


def _rows(theta: jax.Array) -> jax.Array:
    """Two histograms."""
    return jax.nn.softmax(jnp.stack([theta[0] * WEIGHTS[0], theta[1] * WEIGHTS[1]]), -1)


def _histograms(theta: jax.Array) -> jax.Array:
    out = transport.sinkhorn_histograms(COST, jnp.full(4, 0.25), _rows(theta), epsilon=0.5)
    return jnp.sum(out.f**2 + out.g**2)


def _clouds(theta: jax.Array) -> tuple[jax.Array, jax.Array]:
    return POINTS * theta[:2], POINTS[::-1] + theta[2]


def _divergence(theta: jax.Array) -> jax.Array:
    return transport.sinkhorn_divergence(*_clouds(theta), epsilon=0.5).value


def _sparse(theta: jax.Array) -> jax.Array:
    return jnp.sum(WEIGHTS * transport.sparse_transport(
        cost_of(theta), gamma=1.0, stop=ji.tolerance(rtol=1e-6, atol=0.0)).plan)


def _barycentre(theta: jax.Array, **keywords: Any) -> jax.Array:
    distances = transport.PointCloud(POINTS, POINTS).matrix()
    out = transport.barycentre(
        distances * (1 + theta[2]), _rows(5 * theta), jnp.stack([theta[0], 1 - theta[0]]),
        epsilon=0.5, stop=TIGHT, **keywords)
    return jnp.sum(10 * WEIGHTS[0] * out.weights) + jnp.sum(out.f**2)


def _free_support(theta: jax.Array) -> jax.Array:
    out = transport.free_support_barycentre(
        jnp.stack(_clouds(theta)), 2, epsilon=0.5, stop=TIGHT)
    return jnp.sum(WEIGHTS[:2, :2] * out.points**2)


def _gromov(theta: jax.Array) -> jax.Array:
    x, y = (transport.PointCloud(points, points).matrix() for points in _clouds(theta))
    out = transport.gromov_wasserstein(x, y, epsilon=0.5, fused=0.4, cost=cost_of(theta))
    return _plan(out) + out.value


def _partial(theta: jax.Array) -> jax.Array:
    out = transport.partial_transport(
        cost_of(theta), jnp.full(4, 0.25), jax.nn.softmax(theta[1] * WEIGHTS[0]),
        0.5 + 0.2 * theta[2], epsilon=0.5, solver=ji.picard())
    return 4 * _plan(out) + jnp.sum(WEIGHTS[0] * out.left)


def _maps(theta: jax.Array) -> jax.Array:
    out = transport.sinkhorn(transport.PointCloud(*_clouds(theta)), epsilon=0.5)
    return jnp.sum(transport.entropic_map(out, theta[1] * POINTS[:2]) ** 2) + jnp.sum(
        WEIGHTS[:, :2] * transport.barycentric_map(out)())


def _chain(theta: jax.Array) -> jax.Array:
    out = transport.multimarginal_sinkhorn(
        [cost_of(theta), theta[0] * WEIGHTS[:, :3] ** 2],
        [jnp.full(4, 0.25), _rows(theta)[0], jax.nn.softmax(theta)], epsilon=0.5)
    return jnp.sum(WEIGHTS[:3].T * out.plan()[0]) + sum(jnp.sum(f**2) for f in out.potentials)


def _attention(theta: jax.Array, **keywords: Any) -> jax.Array:
    queries, keys = _clouds(theta)
    return jnp.sum(WEIGHTS[:, :2] * transport.sinkhorn_attention(
        queries, keys, POINTS * theta[:2], **keywords))


def _routed(theta: jax.Array) -> jax.Array:
    scores = WEIGHTS * theta[0] + theta[1] * jnp.eye(4)
    indices = transport.balanced_topk(scores, 2).indices
    return jnp.sum(jnp.sin(theta[2] * jnp.take_along_axis(scores, indices, 1)) * WEIGHTS[:, :2])


def _classes(theta: jax.Array) -> jax.Array:
    out = transport.class_transport(
        cost_of(theta), None, None, [0, 0, 1, 1], 0.2 * theta[2])
    return out.value + jnp.sum(WEIGHTS * out.plan)


def _bridge(theta: jax.Array) -> jax.Array:
    bridge = transport.LightBridge(theta, WEIGHTS[:3, :2] * theta[:, None], WEIGHTS[:3, 2:])
    return transport.light_bridge_loss(bridge, *_clouds(theta), epsilon=1.0)


def _quantised(theta: jax.Array) -> jax.Array:
    # Of the part that moves the features: what is held fixed in a derivative moves in differences.
    return transport.sinkhorn_quantise(10 * POINTS * theta[:2] + theta[2], POINTS, beta=0.0).loss


def _quantiles(theta: jax.Array) -> jax.Array:
    x, y = _clouds(theta)
    return transport.exact_1d(x[:, 0], y[:, 1], _rows(theta)[0], _rows(theta)[1]) + (
        transport.sliced_distance(x, y, jax.random.key(0), 5))


CASES: dict[str, Callable] = {
    "sinkhorn": lambda t: _plan(transport.sinkhorn(cost_of(t), epsilon=0.5)),
    "sinkhorn, unbalanced": lambda t: _plan(transport.sinkhorn(
        cost_of(t), epsilon=0.5, rho_a=1.0, rho_b=2.0)),
    "sinkhorn_many": _sinkhorn_many,
    "sinkhorn_histograms": _histograms,
    "sinkhorn_divergence": _divergence,
    "sinkhorn_layer": lambda t: jnp.sum(WEIGHTS * transport.sinkhorn_layer(cost_of(t))),
    "gumbel_sinkhorn": lambda t: jnp.sum(WEIGHTS * transport.gumbel_sinkhorn(
        jax.random.key(0), cost_of(t), adjoint=ji.unrolled(), max_steps=20)),
    "sparse_transport": _sparse,
    "barycentre": _barycentre,
    "barycentre, debiased": lambda t: _barycentre(t, debiased=True),
    "free_support_barycentre": _free_support,
    "gromov_wasserstein": _gromov,
    "partial_transport": _partial,
    "entropic_map, barycentric_map": _maps,
    "monge_gap": lambda t: 10 * transport.monge_gap(
        POINTS, jnp.sin(3 * POINTS * t[:2]) + t[2] * POINTS**2, epsilon=0.5).value,
    "multimarginal_sinkhorn": _chain,
    "sinkhorn_attention": _attention,
    "sinkhorn_attention, tolerance": lambda t: _attention(t, tolerance=1e-6),
    "balanced_topk, scores at its indices": _routed,
    "class_transport": _classes,
    "light_bridge_loss": _bridge,
    "sinkhorn_quantise, loss at beta=0": _quantised,
    "sinkhorn_distillation": lambda t: transport.sinkhorn_distillation(
        *(3 * cloud for cloud in _clouds(t))),
    "exact_1d, sliced_distance": _quantiles,
}
