"""Persistent evolution strategies."""

import jax
import jax.numpy as jnp
import pytest

from jaxiter.optim import persistent_es


def test_persistent_evolution_is_unbiased_where_truncated_is_not():
    """Log learning rate of 100 steps on a quadratic: exact -3.99, PES -3.96, truncated -2.05."""
    h = jnp.array([1.0, 0.1])

    def step(state, theta, t):
        state = state - jnp.exp(theta) * h * state
        return state, jnp.sum(h * state * state) / 2

    theta = jnp.log(jnp.float32(0.1))

    def total(theta):
        def body(state, t):
            return step(state, theta, t)
        return jnp.sum(jax.lax.scan(body, jnp.ones(2), jnp.arange(100))[1])

    exact = float(jax.grad(total)(theta))
    means = {}
    for persistent in (True, False):
        init, estimate = persistent_es(step, lambda key: jnp.ones(2), horizon=100, truncation=10,
                                       pairs=4000, width=0.1, persistent=persistent)

        def body(state, key, estimate=estimate):
            state, grad, _ = estimate(state, theta, key)
            return state, grad

        grads = jax.jit(lambda s, keys, body=body: jax.lax.scan(body, s, keys)[1])(
            init(theta, jax.random.key(0)), jax.random.split(jax.random.key(1), 50))
        means[persistent] = float(grads.reshape(5, 10).sum(1).mean())
    assert abs(means[True] / exact - 1) < 0.1 and means[False] / exact < 0.65, (exact, means)
    with pytest.raises(ValueError, match="multiple of truncation"):
        persistent_es(step, lambda key: jnp.ones(2), horizon=10, truncation=3)


def test_numbers_are_arrays():
    init, estimate = persistent_es(lambda s, theta, t: (s, (theta - 1.0) ** 2), lambda key: 0.0,
                                   horizon=2, truncation=2)
    _, grad, _ = estimate(init(0.0, jax.random.key(0)), 0.0, jax.random.key(1))
    assert -5.5 < grad < -2.5
