"""Light bridges: Gaussians in closed form, the paper's formulas as written, a swiss roll."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.spatial.distance import cdist
from sklearn.datasets import make_swiss_roll

from jaxiter.transport import (
    LightBridge,
    bridge_path,
    drift,
    init_light_bridge,
    light_bridge_loss,
    plan_sample,
)


def trained(bridge, draw, epsilon, steps, rate):
    """Adam on batches of `draw(key)`, one program."""
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def step(carry, key):
        bridge, state = carry
        slope = jax.grad(light_bridge_loss)(bridge, *draw(key), epsilon)
        with jax.numpy_dtype_promotion("standard"):
            update, state = optimizer.update(slope, state, bridge)
        return (optax.apply_updates(bridge, update), state), None

    keys = jax.random.split(jax.random.key(1), steps)
    return jax.jit(lambda b: jax.lax.scan(step, (b, optimizer.init(b)), keys)[0][0])(bridge)


def test_gaussians_have_their_closed_form():
    """One component: S, r and the variance within 5 percent, epsilon 0.5, N(0, 1) to N(m, .49)."""
    mean = jnp.array([1.0, -2.0])

    def draw(key):
        one, other = jax.random.split(key)
        return (jax.random.normal(one, (512, 2)),
                mean + 0.7 * jax.random.normal(other, (512, 2)))

    start = init_light_bridge(jax.random.key(0), draw(jax.random.key(3))[1], 1)
    bridge = trained(start, draw, 0.5, 600, 0.1)
    cross = (np.sqrt(4 * 0.7**2 + 0.5**2) - 0.5) / 2
    np.testing.assert_allclose(np.exp(bridge.log_s[0]), cross, rtol=0.05)
    np.testing.assert_allclose(0.5 * np.exp(bridge.log_s[0]), 0.7**2 - cross**2, rtol=0.05)
    np.testing.assert_allclose(bridge.r[0], mean, rtol=0.05)
    x = jax.random.normal(jax.random.key(5), (20_000, 2))
    y = jax.jit(plan_sample)(bridge, x, 0.5, jax.random.key(6))
    np.testing.assert_allclose(np.mean(x * (y - mean), 0), cross, rtol=0.06)
    np.testing.assert_allclose(np.std(y, 0), 0.7, rtol=0.05)
    path = jax.jit(bridge_path)(bridge, x, jnp.array([0.0, 0.3, 1.0]), 0.5, jax.random.key(6))
    np.testing.assert_allclose(path[0], x, atol=1e-6)
    spread = 0.7**2 + 0.3**2 * 0.49 + 2 * 0.21 * cross + 0.5 * 0.21
    np.testing.assert_allclose(np.var(path[1], 0), spread, rtol=0.06)
    np.testing.assert_allclose(np.var(path[2], 0), 0.49, rtol=0.06)


def mixture():
    rng = np.random.default_rng(0)
    return LightBridge(*(jnp.asarray(part) for part in (
        rng.normal(size=4), rng.normal(size=(4, 2)), rng.normal(size=(4, 2)) - 1)))


def test_drift_is_the_papers_gradient(x64):
    """As written there, with A_k and its inverse; ours has no 1 / (1 - t)."""
    bridge, epsilon, x = mixture(), 0.3, jnp.array([0.4, -1.1])

    def log_sum(x, t):
        s, r = jnp.exp(bridge.log_s), bridge.r
        a = t / (epsilon * (1 - t)) + 1 / (epsilon * s)
        c = x / (epsilon * (1 - t)) + r / (epsilon * s)
        return jax.nn.logsumexp(bridge.log_alpha + jnp.sum(
            -jnp.log(s) / 2 - jnp.log(a) / 2 - r**2 / s / (2 * epsilon) + c**2 / a / 2, -1))

    for t in (0.0, 0.4, 0.99):
        expected = -x / (1 - t) + epsilon * jax.grad(log_sum)(x, t)
        np.testing.assert_allclose(drift(bridge, x, t, epsilon), expected, rtol=1e-9)
    assert np.all(np.isfinite(drift(bridge, x, 1.0, epsilon)))
    batch = drift(bridge, jnp.stack([x, -x]), jnp.array([[0.4], [0.9]]), epsilon)
    np.testing.assert_allclose(batch[1], drift(bridge, -x, 0.9, epsilon), rtol=1e-12)


def test_loss_is_the_relative_entropy_of_its_own_plan(x64):
    """`log c(x)` normalises `v(y) exp(x'y / epsilon)`, by quadrature; differences."""
    bridge, epsilon, x = mixture(), 0.5, np.array([0.3, -0.2])
    axis = np.linspace(-15, 15, 601)
    y = np.stack(np.meshgrid(axis, axis), -1).reshape(-1, 2)
    one = jax.vmap(lambda y: light_bridge_loss(bridge, x[None], y[None], epsilon))(y)
    # exp(-one) = v(y) / c(x), of which p(y | x) = exp(x'y / epsilon) v(y) / c(x).
    np.testing.assert_allclose(np.sum(np.exp(-one + y @ x / epsilon)) * 0.05**2, 1, rtol=1e-6)
    rng = np.random.default_rng(1)
    points = rng.normal(size=(2, 5, 2))
    loss = jax.jit(lambda b, e: light_bridge_loss(b, points[0], points[1], e))
    slopes = jax.grad(loss, argnums=(0, 1))(bridge, epsilon)
    ways = jax.tree.map(lambda p: rng.normal(size=np.shape(p)), (bridge, epsilon))
    up, down = (loss(*jax.tree.map(lambda p, w, h=h: p + h * w, (bridge, epsilon), ways))
                for h in (1e-6, -1e-6))
    slope = sum(np.sum(g * w) for g, w in zip(
        jax.tree.leaves(slopes), jax.tree.leaves(ways), strict=True))
    np.testing.assert_allclose(slope, (up - down) / 2e-6, rtol=1e-6)


def test_bad_input():
    bridge, points = jax.tree.map(lambda x: x.astype(jnp.float32), mixture()), jnp.ones((3, 2))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="at least as many"):
        init_light_bridge(key, points, 4)
    with pytest.raises(ValueError, match="epsilon must be positive"):
        light_bridge_loss(bridge, points, points, 0.0)
    with pytest.raises(ValueError, match="2 dimensions"):
        plan_sample(bridge, jnp.ones((3, 3)), 0.1, key)
    with pytest.raises(ValueError, match="ascends"):
        bridge_path(bridge, points, jnp.array([0.5, 0.1]), 0.1, key)
    path = jax.jit(lambda times: bridge_path(bridge, points, times, 0.1, key))
    assert np.all(np.isnan(path(jnp.array([0.5, 0.1])))) and np.all(
        np.isfinite(path(jnp.array([0.1, 0.5]))))
    assert np.isnan(jax.jit(partial(light_bridge_loss, bridge, points, points))(-1.0))


def test_integer_points_are_floats():
    bridge, whole = jax.tree.map(lambda x: x.astype(jnp.float32), mixture()), jnp.array([[1, 2]])
    points, key = whole.astype(jnp.float32), jax.random.key(0)
    run = jax.jit(lambda x: drift(bridge, x, 0.7, 0.5))
    np.testing.assert_allclose(run(whole), run(points), rtol=1e-6)
    path = jax.eval_shape(lambda x: bridge_path(bridge, x, jnp.ones(2), 0.5, key), whole)
    loss = jax.eval_shape(lambda x: light_bridge_loss(bridge, x, x, 0.5), whole)
    assert path.dtype == loss.dtype == jnp.float32
    first = init_light_bridge(key, whole, 1)
    assert first.r.dtype == jnp.float32 and np.isclose(first.log_s[0, 0], np.log(0.1))


def energy_distance(a, b):
    return 2 * cdist(a, b).mean() - cdist(a, a).mean() - cdist(b, b).mean()


@pytest.mark.slow
def test_swiss_roll():
    """K = 200, epsilon 0.1: the energy distance below twice that of two draws of the target."""
    def roll(seed, n):
        return make_swiss_roll(n, noise=0.8, random_state=seed)[0][:, [0, 2]].astype("f4") / 7.5

    data = jnp.asarray(roll(0, 20_000))

    def draw(key):
        one, other = jax.random.split(key)
        return jax.random.normal(one, (128, 2)), jax.random.choice(other, data, (128,))

    start = init_light_bridge(jax.random.key(0), data, 200)
    bridge = trained(start, draw, 0.1, 3000, 1e-2)
    ratios = []
    for seed in range(3):
        x = jax.random.normal(jax.random.key(10 + seed), (2000, 2))
        y = plan_sample(bridge, x, 0.1, jax.random.key(20 + seed))
        one, other = roll(30 + seed, 2000), roll(40 + seed, 2000)
        ratios.append((energy_distance(y, one), energy_distance(one, other)))
    ours, theirs = np.mean(ratios, 0)
    assert ours < 2 * theirs, (ours, theirs)
