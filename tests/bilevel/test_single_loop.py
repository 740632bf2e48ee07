"""SOBA, AmIGO, SABA, SRBA: closed forms, digits with wrong labels, sums whose noise is removed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxiter.bilevel import run, saba, single_loop, sl_bamm, soba, srba
from jaxiter.estimators import msvr, page, storm
from jaxiter.testing.bilevel import Cleaning, Selection, hyper_cleaning
from tests.bilevel.problems import (
    B1,
    INNER,
    OUTER,
    RATES,
    START,
    closed_form,
    distances,
    selection,
)

SAME = jnp.zeros((6, 1))  # rows that B1 does not look at


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


@pytest.mark.slow
def test_variance_reduction_converges_where_soba_keeps_its_noise():
    """A finite sum with unequal blocks and constant rates: tables and recursions lose the noise."""
    rows = jax.random.normal(jax.random.key(1), (21, 10))
    data = rows - rows.mean(0)
    outer, inner = (lambda x, y, b, f=f: f(x, y) + y @ b.mean(0) for f in (B1.outer, B1.inner))
    errors = {}
    for name, method in {
            "soba": soba(outer, inner, **RATES),
            "saba": saba(outer, inner, **RATES),
            "srba": srba(outer, inner, **RATES),
            "page": single_loop(outer, inner, estimator=page(0.2), **RATES),
            "storm": single_loop(outer, inner, estimator=storm(0.01), **RATES),
            "msvr": single_loop(outer, inner, estimator=msvr(0.01), **RATES)}.items():
        state = jax.jit(lambda key, method=method: run(
            method, *START, data, data, key=key, max_steps=3000, batch_size=4))(
                jax.random.key(0)).state
        errors[name] = np.linalg.norm(state.x - B1.optimum)
    assert errors["soba"] > 0.02, errors
    assert max(errors["saba"], errors["srba"], errors["page"]) < 2e-3, errors
    assert max(errors["storm"], errors["msvr"]) < errors["soba"] / 2, errors


@pytest.mark.parametrize("make, calls", [(saba, (1, 1, 1)), (srba, None)])
def test_closed_form(make, calls):
    closed_form(make(OUTER, INNER, **RATES), 3000, 1e-3, calls, SAME)


def test_sl_bamm_without_strong_convexity():
    """B5, a hundred copies: relative error below 0.1 and 0.01 after 893 and 1,977 steps."""
    method = sl_bamm(lambda x, y, _: jnp.sum((x - y[1]) ** 2) / 2 + jnp.sum((y[0] - 1) ** 2) / 2,
                     lambda x, y, _: jnp.sum(y[0] ** 2) / 2 - x @ y[0])
    error = jax.jit(lambda key: run(
        method, jnp.full(100, 0.01), jnp.full((2, 100), 0.01), key=key, max_steps=2500,
        trace=lambda s: jnp.sqrt(jnp.mean((jnp.concatenate([s.x[None], s.y]) - 1) ** 2))))(
            jax.random.key(0)).trace
    reached = [1 + int(np.argmax(np.asarray(error) < level)) for level in (0.1, 0.01)]
    assert abs(reached[0] / 893 - 1) < 0.15 and abs(reached[1] / 1977 - 1) < 0.15, reached
    for keywords in ({"average": 1.0}, {"rate": 0.0}):
        with pytest.raises(ValueError, match="must be"):
            sl_bamm(B1.outer, B1.inner, **keywords)


def falling(rate):
    return lambda k: rate * jax.lax.rsqrt((k + 1).astype(jnp.float32))


@pytest.mark.parametrize("make, inner_rate, outer_rate, per_step, published", [
    (soba, falling(1.0), falling(1 / 0.03), 3, 2.8e-6),
    (saba, 0.1, 0.1 / 0.03, 3, 1.2e-6),
    (srba, 0.3, 0.3 / 0.03, 9, 1.2e-6),
], ids=["soba", "saba", "srba"])
def test_regularisation_selection(make, inner_rate, outer_rate, per_step, published):
    """B3 of the sources."""
    selection(make(Selection.outer, Selection.inner, inner_optimizer=optax.sgd(inner_rate),
                   outer_optimizer=optax.sgd(outer_rate)), per_step, published)


def test_bad_input():
    for keywords in ({"period": 0.0}, {"radius": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            srba(OUTER, INNER, **RATES, **keywords)
    for make in (saba, srba):
        with pytest.raises(ValueError, match="goes through all rows, and there are no data"):
            run(make(OUTER, INNER, **RATES), *START, key=jax.random.key(0))
    with pytest.raises(TypeError, match="inner_optimizer"):
        soba(OUTER, INNER, outer_optimizer=optax.sgd(0.1))
