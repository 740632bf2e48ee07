"""Saddle points: Gaussian maps and steps of flows in closed form, divergences by quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats

from jaxiter.transport import (
    class_guided_cost,
    jko_losses,
    js_divergence,
    kl_divergence,
    neural_transport_losses,
    power_entropy,
)

LEVELS = scipy.stats.norm.ppf((np.arange(400) + 0.5) / 400)
LEVELS = LEVELS / LEVELS.std()


def test_quadratic_cost_has_the_gaussian_map_for_its_saddle(x64):
    """T = ((1.5, .9), (.9, 1)) x + 1 and v = |y|^2 / 2 less the conjugate of its potential."""
    slope, shift = np.array([[1.5, 0.9], [0.9, 1.0]]), np.ones(2)
    x = np.sqrt(2) * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])  # moments of N(0, I)
    losses = neural_transport_losses(
        lambda x, tx: jnp.mean(jnp.sum((x - tx) ** 2, -1)) / 2,
        lambda p, x: x @ p[0].T + p[1],
        lambda p, y: jnp.sum((y @ p[0]) * y, -1) / 2 + y @ p[1])
    inverse = np.linalg.inv(slope)
    best_map, best_potential = (slope, shift), (np.eye(2) - inverse, inverse @ shift)
    y = x[::-1] @ slope + shift
    for gradient in (jax.grad(losses.transport)(best_map, best_potential, x),
                     jax.grad(losses.potential)(best_potential, best_map, x, y)):
        for leaf in gradient:
            np.testing.assert_allclose(leaf, 0, atol=1e-12)
    rng = np.random.default_rng(0)
    least = losses.transport(best_map, best_potential, x)
    for _ in range(5):
        other = tuple(p + rng.normal(size=p.shape) for p in best_map)
        assert losses.transport(other, best_potential, x) > least


def test_class_guided_cost_is_numpys_loop(x64):
    rng = np.random.default_rng(0)
    tx, y = rng.normal(size=(3, 4, 2)), rng.normal(size=(3, 5, 2))
    total = 0
    for c in range(3):
        to = np.mean([np.linalg.norm(a - b) for a in tx[c] for b in y[c]])
        within = np.mean([np.linalg.norm(tx[c, i] - tx[c, k])
                          for i in range(4) for k in range(4) if i != k])
        total += (to - within / 2) / 3
    np.testing.assert_allclose(class_guided_cost(None, tx, y), total, rtol=1e-12)
    gradient = jax.grad(lambda t: class_guided_cost(None, t, y))
    assert np.all(np.isfinite(gradient(np.concatenate([tx[:, :1], tx[:, :1]], 1))))
    with pytest.raises(ValueError, match="at least 2"):
        class_guided_cost(None, tx[:, :1], y)


def stretched(p, x):
    return p[0] * (x - jnp.mean(x)) + jnp.mean(x) + p[1]


def log_normal(x, mean, spread):
    return -((x - mean) ** 2) / (2 * spread**2) - jnp.log(spread) - np.log(2 * np.pi) / 2


def test_steps_of_a_gaussian_flow(x64):
    """Five steps of 0.1 from N(3, 0.25) towards N(0, 1), each map affine, within 3 percent."""
    size, wide = 0.1, 3.0
    mu = (wide * LEVELS)[:, None]
    losses = jko_losses(
        kl_divergence(lambda y: log_normal(y[:, 0], 0.0, wide), lambda y: -y[:, 0] ** 2 / 2),
        size, stretched,
        lambda p, y: p[0] + p[1] * y[:, 0] + p[2] * y[:, 0] ** 2)

    def ratio(mean, spread):  # log dP / dmu, a quadratic
        return jnp.array([
            -mean**2 / (2 * spread**2) - jnp.log(spread / wide), mean / spread**2,
            1 / (2 * wide**2) - 1 / (2 * spread**2)])

    @jax.jit
    def best_map(x):
        def descend(_, p):
            tx = stretched(p, x)
            h = ratio(jnp.mean(tx), jnp.std(tx))
            return p - 0.05 * jax.grad(losses.transport)(p, h, x)

        return jax.lax.fori_loop(0, 300, descend, jnp.array([1.0, 0.0]))

    x, mean, spread = (3 + 0.5 * LEVELS)[:, None], 3.0, 0.5
    h = ratio(mean, spread)
    off = jax.grad(losses.potential)(h, jnp.array([1.0, 0.0]), x, mu)
    np.testing.assert_allclose(off, 0, atol=0.05)  # 400 samples of the reference
    divergence = -losses.potential(h, jnp.array([1.0, 0.0]), x, mu)
    exact = -np.log(spread) + (spread**2 + mean**2) / 2 - 0.5 - np.log(2 * np.pi) / 2
    np.testing.assert_allclose(divergence, exact, atol=0.02)  # q was not normalised
    for _ in range(5):
        p = best_map(x)
        x = stretched(p, x)
        mean, spread = mean / (1 + size), (spread + np.sqrt(
            spread**2 + 4 * size * (1 + size))) / (2 * (1 + size))
        np.testing.assert_allclose([x.mean(), x.std()], [mean, spread], rtol=0.03)


def same(params, x):
    return x


def test_divergences_by_quadrature(x64):
    y = (np.arange(4000) + 0.5)[:, None] / 4000
    grid = scipy.stats.norm.ppf(y)
    axis = np.linspace(-12, 12, 4001)
    p, q = scipy.stats.norm.pdf(axis), scipy.stats.norm.pdf(axis, 1)
    exact = np.trapezoid(p * np.log(2 * p / (p + q)) + q * np.log(2 * q / (p + q)), axis) / 2
    losses = jko_losses(js_divergence(), 1.0, same, lambda s, y: s * (0.5 - y[:, 0]))
    values = [-losses.potential(s, None, grid, grid + 1) for s in (0.8, 1.0, 1.2)]
    np.testing.assert_allclose(values[1], exact, rtol=1e-3)
    assert values[1] == max(values)
    # The density 2 x on [0, 1]: int p^m = 2^m / (m + 1).
    for m in (1.5, 2.0):
        losses = jko_losses(power_entropy(m, 1.0), 1.0, same, lambda s, y: s * jnp.log(2 * y[:, 0]))
        values = [-losses.potential(s, None, np.sqrt(y), y) for s in (0.9, 1.0, 1.1)]
        np.testing.assert_allclose(values[1], 2**m / (m + 1) / (m - 1), rtol=1e-3)
        assert values[1] == max(values)


def test_bad_input():
    with pytest.raises(ValueError, match="step must be positive"):
        jko_losses(js_divergence(), 0.0, same, same)
    with pytest.raises(ValueError, match="power_minus_1"):
        power_entropy(1.0, 1.0)
    with pytest.raises(ValueError, match="density"):
        power_entropy(2.0, -1.0)
    x = jnp.ones((2, 1))
    under = jax.jit(lambda step: jko_losses(
        js_divergence(), step, same, lambda p, y: y[:, 0]).transport(None, None, x))
    assert np.isnan(under(-0.1)) and np.isfinite(under(0.1))


def perceptron(key, *sizes):
    keys = jax.random.split(key, len(sizes) - 1)
    return [(jax.random.normal(k, (m, n)) * np.sqrt(2 / m).astype(np.float32), jnp.zeros(n))
            for k, m, n in zip(keys, sizes[:-1], sizes[1:], strict=True)]


def network(params, x):
    for w, b in params[:-1]:
        x = jax.nn.relu(x @ w + b)
    return x @ params[-1][0] + params[-1][1]


@pytest.mark.slow
def test_classes_are_guided_to_their_modes():
    """16 modes to permuted ones, 10 labels each: at least 90 percent in the right one."""
    axis = jnp.arange(4.0) * 2 - 3
    grid = jnp.stack(jnp.meshgrid(axis, axis), -1).reshape(-1, 2)
    spots = grid[jax.random.permutation(jax.random.key(7), 16)]
    labelled = spots[:, None] + 0.1 * jax.random.normal(jax.random.key(8), (16, 10, 2))
    losses = neural_transport_losses(
        class_guided_cost, network, lambda p, y: network(p, y)[..., 0])
    optimizer = optax.adam(1e-3)

    def batch(key):
        a, b, c, d = jax.random.split(key, 4)
        classes = jax.random.randint(a, (32,), 0, 16)
        x = grid[classes][:, None] + 0.1 * jax.random.normal(b, (32, 2, 2))
        y = spots[jax.random.randint(c, (64,), 0, 16)] + 0.1 * jax.random.normal(d, (64, 2))
        return classes, x, y

    def moved(params, state, slope):
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimizer.update(slope, state)
        return optax.apply_updates(params, update), state

    def outer(carry, key):
        keys = jax.random.split(key, 11)

        def inner(mapping, key):
            classes, x, _ = batch(key)
            slope = jax.grad(losses.transport)(mapping[0], carry[1][0], x, labelled[classes])
            return moved(*mapping, slope), None

        mapping, _ = jax.lax.scan(inner, carry[0], keys[:10])
        _, x, y = batch(keys[10])
        slope = jax.grad(losses.potential)(carry[1][0], mapping[0], x, y)
        return (mapping, moved(*carry[1], slope)), None

    @jax.jit
    def trained(mapping, potential):
        start = (mapping, optimizer.init(mapping)), (potential, optimizer.init(potential))
        return jax.lax.scan(outer, start, jax.random.split(jax.random.key(2), 200))[0][0][0]

    mapping = trained(perceptron(jax.random.key(0), 2, 128, 128, 2),
                      perceptron(jax.random.key(1), 2, 128, 128, 1))
    x = grid[:, None] + 0.1 * jax.random.normal(jax.random.key(5), (16, 100, 2))
    gaps = jnp.sum((network(mapping, x)[:, :, None] - spots) ** 2, -1)
    assert jnp.mean(jnp.argmin(gaps, -1) == jnp.arange(16)[:, None]) >= 0.9
