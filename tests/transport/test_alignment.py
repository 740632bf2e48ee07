"""Feature alignment against its divergences one by one, and a small problem of domains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter.transport import feature_alignment, sinkhorn_divergence


def domains():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(3, 6, 2)) + np.arange(3)[:, None, None] ** 2, jnp.float32)


@pytest.mark.slow  # compiles three solves and their derivatives
def test_the_largest_of_the_divergences_and_its_fall():
    features, shift = domains(), jnp.zeros((3, 2))

    def loss(shift, features):
        out = feature_alignment(features + shift[:, None], epsilon=0.5)
        return out.value, out

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, out), _ = step(shift, features)
    one = jax.jit(lambda x, y: sinkhorn_divergence(x, y, epsilon=0.5).value)
    pairs = [one(features[i], features[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    np.testing.assert_allclose(out.divergences, pairs, rtol=1e-4)
    assert out.converged and value == max(out.divergences)
    (_, broken), _ = step(shift, features.at[1, 0, 0].set(jnp.nan))
    assert broken.status in (ji.Status.BAD_INPUT, ji.Status.NONFINITE)
    for _ in range(60):  # a maximum has two movers at a time: the third waits for its turn
        (now, _), slope = step(shift, features)
        shift = shift - 0.1 * slope
    assert now < 0.1 * value


def test_bad_input():
    for features in (domains()[0], domains()[:1]):
        with pytest.raises(ValueError, match="at least two domains"):
            feature_alignment(features, epsilon=1.0)
