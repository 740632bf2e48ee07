"""Many inner problems, a few of them sampled in every step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.bilevel import bsvrb_v1, bsvrb_v2, run
from tests.bilevel.problems import INNER, OUTER


def blocks(m=8, p=5, q=3):
    """m quadratics with one x; the closed form of their mean."""
    rng = np.random.default_rng(0)
    b, c = rng.normal(size=(m, p, q)) / np.sqrt(q), rng.normal(size=(m, p))
    a = np.linspace(0.5, 1.5, p)
    m_x = sum(bi.T @ (bi / a[:, None] ** 2) for bi in b) / m + 0.1 * np.eye(q)
    rhs = sum(bi.T @ ((1 - ci / a) / a) for bi, ci in zip(b, c, strict=True)) / m

    def inner(x, y, batch):
        b, c = batch
        return jnp.sum(jnp.asarray(a, y.dtype) * y * y) / 2 - y @ (b.mean(0) @ x + c.mean(0))

    def outer(x, y, batch):
        return jnp.sum((y - 1) ** 2) / 2 + 0.05 * x @ x

    # Rows within a block: the block's value plus noise of mean zero.
    noise = rng.normal(size=(m, 8, p)) * 0.3
    noise -= noise.mean(1, keepdims=True)
    data = (jnp.asarray(np.repeat(b[:, None], 8, 1), jnp.float32),
            jnp.asarray(c[:, None] + noise, jnp.float32))
    return outer, inner, data, np.linalg.solve(m_x, rhs)


@pytest.mark.parametrize("make, sampled, size, accuracy", [
    (lambda o, i, n: bsvrb_v2(o, i, blocks=n, rate=0.05, inner_rate=0.4), 8, None, 1e-3),
    (lambda o, i, n: bsvrb_v2(o, i, blocks=n, rate=0.005, inner_rate=0.4, smoothing=0.5,
                              momentum=0.1), 2, 4, 0.15),
    (lambda o, i, n: bsvrb_v1(o, i, blocks=n, rate=0.005, inner_rate=0.1, curvature=0.4,
                              momentum=0.1), 2, 4, 0.15),
], ids=["all_v2", "two_v2", "two_v1"])
def test_blocks(make, sampled, size, accuracy):
    """Noise and few blocks per step leave a floor; without both the closed form is reached."""
    outer, inner, data, best = blocks()
    method = make(outer, inner, sampled)
    state = jax.jit(lambda key: run(
        method, jnp.zeros(3), jnp.zeros((8, 5)), data, data, max_steps=4000, batch_size=size,
        key=key))(jax.random.key(0)).state
    error = np.linalg.norm(state.x - best) / np.linalg.norm(best)
    assert error < accuracy, error


def test_batches_are_of_the_rows_of_a_block():
    """More of them than there are blocks, but no more than a block has rows."""
    outer, inner, data, _ = blocks(m=3)
    method = bsvrb_v2(outer, inner, blocks=2, rate=0.05, inner_rate=0.4)

    def solve(size):
        return run(method, jnp.zeros(3), jnp.zeros((3, 5)), data, data, max_steps=3,
                   batch_size=size, key=jax.random.key(0)).state

    assert np.all(np.isfinite(solve(6).x))
    with pytest.raises(ValueError, match=r"larger than inner_data, whose leaf of shape .8,"):
        solve(9)


def test_bad_input():
    method = bsvrb_v2(OUTER, INNER, blocks=4, rate=0.1, inner_rate=0.1)
    with pytest.raises(ValueError, match="more than the 3 blocks"):
        run(method, jnp.zeros(2), jnp.zeros((3, 2)), key=jax.random.key(0))
