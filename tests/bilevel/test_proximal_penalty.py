"""The proximal penalty method: many inner solutions, many local minima."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.bilevel import proximal_penalty, proximal_penalty_single, run
from jaxiter.testing.bilevel import penalty_path, wavy
from tests.bilevel.problems import INNER, OUTER, closed_form, plain


def test_proximal_penalty_with_many_inner_solutions():
    """B6: exact in x and y[0]; z[1], which the inner problem does not see, keeps its start."""
    problem = penalty_path()
    outer, inner = plain(problem.outer), plain(problem.inner)
    start = jnp.asarray(problem.x, jnp.float32), jnp.full(2, -3.0)
    for method, steps in (
            (proximal_penalty(outer, inner, rate=0.05, inner_rate=0.3), 2000),
            (proximal_penalty_single(outer, inner, rate=0.02, inner_rate=0.2), 5000)):
        state = jax.jit(lambda key, method=method, steps=steps: run(
            method, *start, key=key, max_steps=steps))(jax.random.key(0)).state
        np.testing.assert_allclose(state.x, 1, atol=1e-4)
        np.testing.assert_allclose(state.y, 1, atol=1e-3)
        assert float(state.z[1]) == -3.0


def test_a_thousand_starts_end_at_local_minima():
    """B9: several inner stationary points, several local minima of F in [0, 3]."""
    problem = wavy()
    method = proximal_penalty(
        plain(problem.outer), plain(problem.inner), sigma=0.01, rate=0.01, inner_rate=0.05,
        prox=0.05, mixing=0.5, project_x=lambda x: jnp.clip(x, 0, 3))
    starts = jax.random.uniform(jax.random.key(0), (1000, 2, 1), maxval=3.0)

    def solve(start):
        return run(method, start[0], -start[1], key=jax.random.key(1), max_steps=3000,
                   check_every=100).state.x

    ends = np.asarray(jax.jit(jax.vmap(solve))(starts), float)[:, 0]
    inside = (ends > 1e-3) & (ends < 3 - 1e-3)
    grid = np.linspace(0, 3, 30_001)
    slope = problem.gradient(grid)
    minima = grid[:-1][(slope[:-1] < 0) & (slope[1:] >= 0)]
    minima = np.concatenate([minima, [0.0] if slope[0] > 0 else [], [3.0] if slope[-1] < 0 else []])
    gap = np.abs(ends[:, None] - minima).min(1)
    assert np.all(gap < 0.02), (np.sort(gap)[-5:], minima)
    assert inside.mean() > 0.5


def test_closed_form():
    closed_form(proximal_penalty(OUTER, INNER, sigma=1e-3, rate=0.05, inner_rate=0.25, mixing=1.0),
                3000, 0.05, (22, 11, 0))


def test_bad_input():
    with pytest.raises(ValueError, match="sigma must be positive"):
        proximal_penalty(OUTER, INNER, sigma=0.0, rate=0.1, inner_rate=0.1)
    with pytest.raises(ValueError, match="mixing must be in"):
        proximal_penalty_single(OUTER, INNER, rate=0.1, inner_rate=0.1, mixing=1.5)
