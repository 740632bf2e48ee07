"""Gradients of convex functions: the integral they are, their symmetry, a fit."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxiter.transport import icgn, init_icgn


def some(seed=0):
    rng = np.random.default_rng(seed)
    params = init_icgn(jax.random.key(0), 3, 7)
    return jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)


def test_it_is_the_integral_of_squared_jacobians(x64):
    params, x = some(), np.array([0.3, -1.2, 0.7])
    nodes, weights = np.polynomial.legendre.leggauss(30)
    total = np.asarray(params.shift)
    for s, w in zip((nodes + 1) / 2, weights / 2, strict=True):
        hidden = (1 - np.tanh(params.weight @ (s * x) + params.bias) ** 2)[:, None] * params.weight
        for jacobian in (hidden, params.linear):
            total = total + w * jacobian.T @ (jacobian @ x)
    np.testing.assert_allclose(icgn(params, jnp.asarray(x)), total, rtol=1e-13, atol=1e-14)
    batch = icgn(params, jnp.stack([x, 2 * x]))
    np.testing.assert_allclose(batch[0], total, rtol=1e-13, atol=1e-14)


def test_jacobian_is_symmetric_and_positive_and_the_map_monotone():
    params = jax.tree.map(lambda p: p.astype(jnp.float32), some(1))
    points = jax.random.normal(jax.random.key(1), (50, 2, 3)) * 3
    slopes = jax.vmap(jax.jacobian(lambda x: icgn(params, x)))(points[:, 0])
    np.testing.assert_allclose(slopes, slopes.transpose(0, 2, 1), atol=1e-5)
    assert np.linalg.eigvalsh(slopes).min() > -1e-5
    images = icgn(params, points)
    assert np.all(np.sum((images[:, 0] - images[:, 1]) * (points[:, 0] - points[:, 1]), -1) > 0)
    assert jax.jit(icgn)(params, points[0]).dtype == jnp.float32


def test_fits_the_gradient_of_log_sum_exp():
    """To a hundredth of the variance that is to be explained, with 64 hidden units."""
    vertices = jnp.array([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])

    def target(x):
        return jax.nn.softmax(x @ vertices.T) @ vertices

    x = jax.random.normal(jax.random.key(0), (256, 2)) * 1.5
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, 1500))

    def loss(params):
        return jnp.mean((icgn(params, x) - target(x)) ** 2)

    def step(carry, _):
        params, state = carry
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimizer.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, update), state), None

    start = init_icgn(jax.random.key(1), 2, 64, scale=2.0)
    params = jax.jit(lambda p: jax.lax.scan(
        step, (p, optimizer.init(p)), length=1500)[0][0])(start)
    test = jax.random.normal(jax.random.key(2), (1000, 2)) * 1.5
    error = jnp.mean((icgn(params, test) - target(test)) ** 2)
    print("explained", error / jnp.var(target(test)))
    assert error < 0.01 * jnp.var(target(test))


def test_bad_input():
    with pytest.raises(ValueError, match="hidden"):
        init_icgn(jax.random.key(0), 2, 0)
    with pytest.raises(ValueError, match="3 dimensions"):
        icgn(some(), jnp.ones(2))
