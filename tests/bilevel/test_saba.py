"""SABA: closed forms, and a finite sum where SOBA keeps its noise."""

import jax
import numpy as np
import optax

from jaxiter.bilevel import run, saba, soba, srba
from jaxiter.testing.bilevel import Selection
from tests.bilevel.problems import B1, INNER, OUTER, RATES, START, closed_form, selection


def test_variance_reduction_converges_where_soba_keeps_its_noise():
    """A finite sum with unequal blocks and constant rates: tables and recursions lose the noise."""
    rows = jax.random.normal(jax.random.key(1), (21, 10))
    data = rows - rows.mean(0)
    outer, inner = (lambda x, y, b, f=f: f(x, y) + y @ b.mean(0) for f in (B1.outer, B1.inner))
    errors = {}
    for name, method in {
            "soba": soba(outer, inner, **RATES),
            "saba": saba(outer, inner, **RATES),
            "srba": srba(outer, inner, **RATES)}.items():
        state = jax.jit(lambda key, method=method: run(
            method, *START, data, data, key=key, max_steps=3000, batch_size=4))(
                jax.random.key(0)).state
        errors[name] = np.linalg.norm(state.x - B1.optimum)
    assert errors["soba"] > 0.02 and max(errors["saba"], errors["srba"]) < 2e-3, errors


def test_closed_form():
    closed_form(saba(OUTER, INNER, **RATES), 3000, 1e-3, (1, 1, 1))


def test_regularisation_selection():
    """B3: published 1.2e-6."""
    method = saba(Selection.outer, Selection.inner, inner_optimizer=optax.sgd(0.1),
                  outer_optimizer=optax.sgd(0.1 / 0.03))
    selection(method, 3, 1.2e-6)
