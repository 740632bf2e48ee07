"""Many cheap steps per dear gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_breast_cancer

from jaxiter import Batches, iterate, record
from jaxiter.optim import target_surrogate


def test_target_surrogates_reuse_a_dear_gradient():
    """Logistic regression: published losses 0.1231, 0.0631 after 10, 100 gradients with 10 steps;
    one inner step is gradient descent: 0.1513, 0.0763.
    """
    x, labels = load_breast_cancer(return_X_y=True)
    x = (np.asarray(x) - np.asarray(x).mean(0)) / np.asarray(x).std(0)
    x = jnp.asarray(np.c_[x, np.ones(len(x))], jnp.float32)
    signs = jnp.asarray(2.0 * np.asarray(labels) - 1, jnp.float32)
    smoothness = float(np.linalg.eigvalsh(np.asarray(x.T @ x, float) / len(x))[-1])

    def loss(z, s):
        return jnp.logaddexp(0.0, -s * z)

    def full(w):
        return jnp.mean(loss(x @ w, signs))

    got = {}
    for m in (1, 10):
        process = target_surrogate(lambda w, x: x @ w, loss, rate=4.0, inner_steps=m,
                                   optimizer=optax.sgd(4 / smoothness))
        out = jax.jit(lambda key, process=process: iterate(
            process, jnp.zeros(31), Batches((x, signs)), key=key, max_steps=101,
            monitor=record(101, value=lambda state: full(state.w))))(jax.random.key(0))
        got[m] = out.trace["value"][1:]  # after 1 to 100 gradients
    plain = jnp.zeros(31)
    for _ in range(3):
        plain = plain - 4 / smoothness * jax.grad(full)(plain)
    np.testing.assert_allclose(got[1][2], full(plain), rtol=1e-5)
    np.testing.assert_allclose([got[1][9], got[1][99]], [0.1513, 0.0763], rtol=0.1)
    np.testing.assert_allclose([got[10][9], got[10][99]], [0.1231, 0.0631], rtol=0.1)
    assert np.all(np.diff(np.asarray(got[10])) <= 1e-7)
    with pytest.raises(ValueError, match="scalar for every row"):
        iterate(process, jnp.zeros(31), Batches((x, jnp.ones((len(x), 2)))),
                key=jax.random.key(0))
