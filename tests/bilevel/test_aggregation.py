"""Descent that listens to both objectives."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.bilevel import aggregated_descent, unrolled_hypergradient
from jaxiter.testing.bilevel import many_minimisers


def test_aggregated_descent_finds_the_optimistic_solution(x64):
    """B5: unrolling descent on the inner problem ends at c / (1 + c^2), aggregation at 1."""
    problem = many_minimisers()

    def train(step, start, readout, rounds):
        def update(x, _):
            return x - 0.1 * unrolled_hypergradient(
                problem.outer, step, x, start, steps=rounds, readout=readout).grad, None
        return jax.jit(lambda x: jax.lax.scan(update, x, length=500)[0])(jnp.zeros(1))

    zero = jnp.zeros(2)
    for rounds in (8, 16):
        c = 1 - 0.8**rounds
        plain = train(lambda x, y: y - 0.2 * jax.grad(problem.inner, 1)(x, y), zero, None, rounds)
        np.testing.assert_allclose(plain, c / (1 + c**2), rtol=1e-8)
    for settings, wanted in (
            ({"inner_rate": 0.5, "outer_rate": 1.0}, 1.0),
            ({"inner_rate": 0.2, "outer_rate": 0.7, "weight": 0.5}, 0.863)):
        step = aggregated_descent(problem.outer, problem.inner, **settings)
        x = train(step, (zero, jnp.int32(0)), lambda state: state[0], 8)
        np.testing.assert_allclose(x, wanted, atol=2e-3)
    with pytest.raises(ValueError, match="weight must be positive"):
        aggregated_descent(problem.outer, problem.inner, inner_rate=1, outer_rate=1, weight=0.0)
