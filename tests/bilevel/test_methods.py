"""What the methods share, against numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter import Batches
from jaxiter.bilevel.methods import (
    both,
    descend,
    move,
    product_pair,
)
from jaxiter.bilevel.penalty import slopes_near, slopes_of_x
from jaxiter.bilevel.single_loop import three_directions

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
    of_x, of_y, of_v = jax.jit(lambda: three_directions(
        product_pair(inner, x, y, v, 2.0), jax.grad(outer, (0, 1))(x, y, 3.0)))()
    np.testing.assert_allclose(of_x, 3 * Y.sum() - 2 * MIXED.T @ V, rtol=1e-4)
    np.testing.assert_allclose(of_y, slope, rtol=1e-6)
    np.testing.assert_allclose(of_v, HESSIAN @ V - 3 * X.sum(), rtol=1e-4)
    near, (direct, gap) = jax.jit(lambda: [
        slopes(outer, inner, (x, y, z), (2.0, 3.0)) for slopes in (slopes_near, slopes_of_x)])()
    np.testing.assert_allclose(direct, np.full(3, 3 * Y.sum()), rtol=1e-4)
    np.testing.assert_allclose(gap, 2 * MIXED.T @ (Y - Z), rtol=1e-4)
    for ours, exact in zip(near, (HESSIAN @ Z + 2 * MIXED @ X, np.full(4, 3 * X.sum()),
                                  HESSIAN @ Y + 2 * MIXED @ X), strict=True):
        np.testing.assert_allclose(ours, exact, rtol=1e-4, atol=1e-5)


def test_steps_of_an_optimizer_and_pairs_of_batches():
    x, y, v = arrays(X, Y, V)
    optimizer = optax.sgd(0.5)
    moved, _ = move(optimizer, v, optimizer.init(y), y)
    np.testing.assert_allclose(moved, Y - V / 2, rtol=1e-5)
    ended, _ = jax.jit(lambda: descend(inner, optax.sgd(0.01), x, y, optimizer.init(y),
                                       Batches(jnp.float32(2)), jax.random.key(0), 3))()
    expected = Y
    for _ in range(3):
        expected = expected - 0.01 * (HESSIAN @ expected + 2 * MIXED @ X)
    np.testing.assert_allclose(ended, expected, rtol=1e-4)
    rows = jnp.arange(10.0)
    a, b = both(Batches(rows, 3), Batches(-rows, 5)).draw(jax.random.key(0))
    assert a.shape == (3,) and b.shape == (5,) and not np.array_equal(a, -b[:3])
