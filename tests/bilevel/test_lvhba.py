"""LV-HBA: coupled constraints in closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.bilevel import lv_hba, run
from jaxiter.testing.bilevel import coupled, equality
from tests.bilevel.problems import B1, plain


def test_lv_hba_on_a_coupled_constraint():
    """B7: x = -0.3, y = (0.7, -0.4), multiplier -sqrt(300): errors 0.0165, 0.0105 as published."""
    problem = coupled()
    method = lv_hba(plain(problem.outer), plain(problem.inner),
                    problem.constraint, problem.project, equality=True)
    exact = np.concatenate([problem.x, problem.y.ravel()])
    out = jax.jit(lambda key: run(
        method, jnp.zeros(100), jnp.zeros((2, 100)), key=key, max_steps=20_000, check_every=1000,
        trace=lambda s: jnp.linalg.norm(jnp.concatenate([s.x, s.y.ravel()]) - exact)
        / np.linalg.norm(exact)))(jax.random.key(0))
    error = out.trace
    assert 0.0165 / 1.5 < error[2] < 0.0165 * 1.5 and 0.0105 / 1.5 < error[-1] < 0.0105 * 1.5
    np.testing.assert_allclose(out.state.lam, problem.multiplier, rtol=5e-3)
    with pytest.raises(ValueError, match="growth must be in"):
        lv_hba(B1.outer, B1.inner, lambda x, y: x, problem.project, growth=0.6)


def test_constrained_inner_problems():
    """B8: the closed form within the published errors; B7's projection is its own inverse."""
    problem = equality()
    method = lv_hba(plain(problem.outer), plain(problem.inner), problem.constraint,
                    problem.project, equality=True, rate=0.1, value_rate=0.2, centre_rate=0.1)
    state = jax.jit(lambda key: run(
        method, jnp.zeros(6), jnp.zeros(6), key=key, max_steps=10_000))(jax.random.key(0)).state
    assert np.linalg.norm(state.x - problem.x) / np.linalg.norm(problem.x) < 0.04
    other = coupled()
    x, y = other.project(*other.project(jnp.ones(100), jnp.ones((2, 100))))
    np.testing.assert_allclose(other.constraint(x, y), 0, atol=1e-5)
