"""Few dear gradients, many of a proxy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter import iterate, record
from jaxiter.optim import proxy_prox


def test_proxy_saves_dear_gradients():
    """L / delta = 138, rate 1 / delta: F always falls, 80 times fewer dear gradients."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(50, 50)))[0]
    a = (basis * np.logspace(-3, 0, 50)) @ basis.T
    noise = rng.normal(size=(50, 50))
    noise = (noise + noise.T) / 2
    noise *= 1 / 137.7 / np.linalg.norm(noise, 2)
    proxy_matrix = a + noise  # F - proxy has curvature in [-delta, delta]
    best = rng.normal(size=50)
    a, p, best = (jnp.asarray(part, jnp.float32) for part in (a, proxy_matrix, best))
    process = proxy_prox(lambda x, _: a @ (x - best),
                         lambda x: (x - best) @ (p @ (x - best)) / 2, rate=137.7)

    def objective(x):
        return (x - best) @ (a @ (x - best)) / 2

    def seen(state):
        return objective(state.x), jnp.linalg.norm(state.x - best)

    zero = jnp.zeros(50)
    out = jax.jit(lambda key: iterate(process, zero, key=key, max_steps=81, monitor=record(
        81, value=seen)))(jax.random.key(0))
    values, far = (rows[1:] for rows in out.trace["value"])  # after 1 to 80 dear gradients
    assert int(out.calls["gradients"]) == 81
    start = float(objective(zero))
    assert np.all(np.diff(np.asarray(values)) <= 1e-6 * start)
    plain = jax.jit(lambda x: jax.lax.scan(
        lambda x, _: (x - a @ (x - best), jnp.linalg.norm(x - best)), x, None,
        length=8000)[1])(zero)
    target = 0.05 * float(jnp.linalg.norm(best))
    ours, theirs = (1 + int(np.argmax(np.asarray(v) < target)) for v in (far, plain))
    assert 1 < ours and theirs > 80 * ours, (ours, theirs)
    with pytest.raises(ValueError, match="rate must be positive"):
        proxy_prox(lambda x, _: x, jnp.sum, rate=0.0)
    with pytest.raises(ValueError, match="takes no monitor"):
        proxy_prox(lambda x, _: x, jnp.sum, rate=1.0, monitor=record())
