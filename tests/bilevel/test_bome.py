"""BOME: a bias in proportion to its rate."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.bilevel import bome, run
from tests.bilevel.problems import B1, INNER, OUTER, START, closed_form


def test_bias_of_bome_is_proportional_to_its_rate():
    """B1: at rates 0.05 and 0.02 it settles 0.136 and 0.062 from the optimum."""
    def settle(rate):
        method = bome(OUTER, INNER, rate=rate, inner_rate=0.4, inner_steps=20)
        return run(method, *START, key=jax.random.key(0), max_steps=6000).state.x

    ends = jax.jit(jax.vmap(settle))(jnp.array([0.05, 0.02]))
    np.testing.assert_allclose(np.linalg.norm(ends - B1.optimum, axis=1), [0.136, 0.062],
                               rtol=0.02)


def test_closed_form():
    closed_form(bome(OUTER, INNER, rate=0.01, inner_rate=0.4, inner_steps=20), 6000, 0.05,
                (22, 1, 0))
