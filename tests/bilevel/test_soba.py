"""SOBA and AmIGO: a closed form, digits with wrong labels, batches of seeds."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxiter.bilevel import run, soba
from jaxiter.testing.bilevel import Cleaning, Selection, hyper_cleaning
from tests.bilevel.problems import B1, INNER, OUTER, RATES, START, distances, selection


@pytest.mark.parametrize("inner_steps, linear_steps", [(1, 1), (5, 3)])
def test_soba_finds_the_closed_form(inner_steps, linear_steps):
    method = soba(OUTER, INNER, inner_steps=inner_steps, linear_steps=linear_steps, **RATES)
    out, errors = distances(method, 4000, 1000)
    assert float(errors[-1]) < 1e-3 and np.all(np.diff(errors) <= 1e-5)
    np.testing.assert_allclose(out.state.y, B1.argmin(B1.optimum), atol=2e-3)
    expected = (1, 1, 1) if inner_steps == 1 else (inner_steps, 1, linear_steps + 1)
    spent = [int(out.solve.calls[name]) for name in ("inner", "outer", "products")]
    assert spent == [4000 * e for e in expected]


def test_noise_seeds_and_step_sizes_vmap():
    """Noisy gradients by random data rows; a batch of seeds and rates is the loop over them."""
    noise = np.random.default_rng(0).normal(size=(64, 10))
    data = jnp.asarray(noise - noise.mean(0), jnp.float32)

    def solve(seed, rate):
        method = soba(lambda x, y, b: B1.outer(x, y) + y @ b.mean(0),
                      lambda x, y, b: B1.inner(x, y) + y @ b.mean(0),
                      inner_optimizer=optax.sgd(rate), outer_optimizer=optax.sgd(rate / 10))
        return run(method, *START, data, data, key=jax.random.key(seed), max_steps=500,
                   batch_size=16).state.x

    seeds, rates = jnp.arange(3, dtype=jnp.uint32), jnp.array([0.05, 0.1, 0.2])
    batch = jax.jit(jax.vmap(solve))(seeds, rates)
    single = jax.jit(solve)
    for i in range(3):
        np.testing.assert_allclose(batch[i], single(seeds[i], rates[i]), rtol=1e-4, atol=1e-5)
    assert float(jnp.max(jnp.std(batch, axis=0))) > 1e-3


def test_second_order_hyper_cleaning():
    cleaning = hyper_cleaning()
    method = soba(Cleaning.outer, Cleaning.inner, inner_optimizer=optax.sgd(0.5),
                  outer_optimizer=optax.sgd(100.0))
    state = jax.jit(lambda key: run(
        method, jnp.zeros(1000), jnp.zeros((65, 10)), cleaning.train, cleaning.validation,
        key=key, max_steps=6000, batch_size=64))(jax.random.key(0)).state
    assert cleaning.detection(state.x) > 0.94, cleaning.detection(state.x)


def test_regularisation_selection():
    """B3: published 2.8e-6."""
    def falling(rate):
        return lambda k: rate * jax.lax.rsqrt((k + 1).astype(jnp.float32))

    selection(soba(Selection.outer, Selection.inner, inner_optimizer=optax.sgd(falling(1.0)),
                   outer_optimizer=optax.sgd(falling(1 / 0.03))), 3, 2.8e-6)
