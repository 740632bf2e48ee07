"""sl-BAMM without strong convexity."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.bilevel import run, sl_bamm
from tests.bilevel.problems import B1


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
