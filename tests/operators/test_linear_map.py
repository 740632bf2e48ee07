"""Linear maps given as matrices, sparse matrices, pairs and functions, against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR

from jaxiter.operators.linear_map import linear_map

RNG = np.random.default_rng(3)
MATRIX = np.where(RNG.uniform(size=(3, 5)) < 0.6, RNG.normal(size=(3, 5)), 0).astype("float32")
WAYS = {
    "dense": lambda a: linear_map(a),
    "coordinates": lambda a: linear_map(BCOO.fromdense(a)),
    "rows": lambda a: linear_map(BCSR.fromdense(a)),
    "pair": lambda a: linear_map((lambda x: a @ x, lambda y: jnp.conj(a.T) @ y)),
    "function": lambda a: linear_map(lambda x: a @ x, jnp.zeros(5, a.dtype)),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("turn", [1, 1j])
def test_both_products(way, turn):
    matrix = (MATRIX * turn).astype("complex64" if turn == 1j else "float32")
    x, y = (RNG.normal(size=k).astype(matrix.dtype) for k in (5, 3))
    forward, adjoint = WAYS[way](jnp.asarray(matrix))
    np.testing.assert_allclose(forward(jnp.asarray(x)), matrix @ x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(adjoint(jnp.asarray(y)), matrix.conj().T @ y, rtol=1e-5, atol=1e-6)


def test_what_is_no_linear_map_is_refused():
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        linear_map(jnp.ones(3))
    with pytest.raises(TypeError, match="like="):
        linear_map(lambda x: x)
