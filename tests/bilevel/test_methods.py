"""What the methods share, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter.bilevel.methods import (
    directions,
    joint_optimizer,
    move,
    penalty_slope,
    product_pair,
    storm,
)

rng = np.random.default_rng(0)
HESSIAN = rng.normal(size=(4, 4))
HESSIAN = HESSIAN @ HESSIAN.T
MIXED, X, Y, Z, V = rng.normal(size=(4, 3)), *(rng.normal(size=n) for n in (3, 4, 4, 4))


def inner(x, y, batch):
    return y @ jnp.asarray(HESSIAN, y.dtype) @ y / 2 + y @ jnp.asarray(MIXED, y.dtype) @ x * batch


def outer(x, y, batch):
    return jnp.sum(x) * jnp.sum(y) * batch


def arrays(*parts):
    return [jnp.asarray(part, jnp.float32) for part in parts]


def test_directions_are_those_of_linear_algebra():
    x, y, z, v = arrays(X, Y, Z, V)
    slope, cross, image = jax.jit(lambda: product_pair(inner, x, y, v, 2.0))()
    np.testing.assert_allclose(slope, HESSIAN @ Y + 2 * MIXED @ X, rtol=1e-4)
    np.testing.assert_allclose(cross, 2 * MIXED.T @ V, rtol=1e-4)
    np.testing.assert_allclose(image, HESSIAN @ V, rtol=1e-4)
    of_x, of_y, of_v = jax.jit(lambda: directions(outer, inner, x, y, v, 2.0, 3.0))()
    np.testing.assert_allclose(of_x, 3 * Y.sum() - 2 * MIXED.T @ V, rtol=1e-4)
    np.testing.assert_allclose(of_y, slope, rtol=1e-6)
    np.testing.assert_allclose(of_v, HESSIAN @ V - 3 * X.sum(), rtol=1e-4)
    np.testing.assert_allclose(jax.jit(lambda: penalty_slope(inner, x, y, z, 2.0))(),
                               2 * MIXED.T @ (Y - Z), rtol=1e-4)


def test_storm_and_a_joint_optimizer():
    now, before, last = arrays(*rng.normal(size=(3, 5)))
    np.testing.assert_allclose(storm(0.3, now, before, last), now + 0.7 * (last - before),
                               rtol=1e-5)
    optimizer = joint_optimizer(optax.sgd(1.0), optax.sgd(0.5), None)
    point, slopes = tuple(arrays(X, Y, V)), tuple(arrays(X, Y, Y))
    moved, _ = move(optimizer, slopes, optimizer.init(point), point)
    for got, wanted in zip(moved, (X - X, Y - Y / 2, V - Y / 2), strict=True):
        np.testing.assert_allclose(got, wanted, atol=1e-6)
