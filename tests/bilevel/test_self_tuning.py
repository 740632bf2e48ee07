"""Best responses by a hypernetwork."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter.bilevel import run, self_tuning
from tests.bilevel.problems import B1, START


def test_affine_response_is_exact_on_quadratics():
    """B1: the best response is affine, so phi finds it and x the optimum of the closed form."""
    problem = B1
    phi = {"w": jnp.zeros((10, 5)), "b": jnp.zeros(10)}
    method = self_tuning(
        lambda x, y, _: problem.outer(x, y), lambda x, y, _: problem.inner(x, y),
        lambda phi, x: phi["w"] @ x + phi["b"], phi, width=0.5,
        inner_optimizer=optax.sgd(0.02), outer_optimizer=optax.sgd(0.02), inner_steps=5)
    state = jax.jit(lambda key: run(method, START[0], None, key=key, max_steps=5000))(
        jax.random.key(0)).state
    np.testing.assert_allclose(state.x, problem.optimum, atol=0.02)
    np.testing.assert_allclose(state.y, problem.argmin(np.asarray(state.x)), atol=0.02)


def test_learnt_width_grows_where_noise_is_free():
    flat = self_tuning(lambda x, y, _: 0.0 * y, lambda x, y, _: (y - x) ** 2, lambda phi, x: phi,
                       jnp.float32(0), inner_optimizer=optax.sgd(0.1), entropy=0.1,
                       outer_optimizer=optax.sgd(0.1), width=0.1)
    state = jax.jit(lambda key: run(flat, jnp.float32(0), None, key=key, max_steps=100))(
        jax.random.key(0)).state
    np.testing.assert_allclose(state.log_width, np.log(0.1) + 100 * 0.1 * 0.1, rtol=1e-4)
