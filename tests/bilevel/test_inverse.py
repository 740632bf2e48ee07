"""Approximate inverses against numpy's solves and published errors."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter import Status
from jaxiter.bilevel import hypergradient, neumann_series, nystrom
from jaxiter.linear import cg
from tests.bilevel.problems import B2, error


def at_argmin(**keywords):
    x, y = (jnp.asarray(t) for t in (B2.x, B2.argmin(B2.x)))
    return jax.jit(lambda x, y: hypergradient(B2.outer, B2.inner, x, y, **keywords))(x, y)


def test_published_errors_of_linear_solvers(x64):
    """B2 at the argmin: CG at 2 and 10 products, Neumann at 20 and 100 terms."""
    problem = B2
    exact = problem.gradient(problem.x)
    for products, known in ((2, 0.38), (10, 1.3e-3)):
        got = error(at_argmin(solve=cg(rtol=1e-14, max_steps=products)).grad, exact)
        assert known / 2 < got < 2 * known, (products, got)
    h = jax.hessian(problem.inner, 1)(jnp.asarray(problem.x), jnp.zeros(20))
    step = 1 / float(np.linalg.eigvalsh(h).max())
    for terms, known in ((20, 0.115), (100, 1.9e-3)):
        got = error(at_argmin(solve=neumann_series(terms, step)).grad, exact)
        assert known / 2 < got < 2 * known, (terms, got)


def test_nystrom_with_all_columns_is_the_damped_solve(x64):
    problem = B2
    x = jnp.asarray(problem.x)
    h = jax.hessian(problem.inner, 1)(x, jnp.zeros(20))
    b = jnp.asarray(np.random.default_rng(0).normal(size=20))
    for rank, wanted in ((20, 1e-8), (5, None)):
        out = jax.jit(lambda b, k=rank: nystrom(k, 1e-2, jax.random.key(0))(lambda v: h @ v, b))(b)
        exact = np.linalg.solve(h + 1e-2 * np.eye(20), b)
        assert int(out.steps) == rank
        if wanted:
            np.testing.assert_allclose(out.value, exact, rtol=wanted)
        else:
            assert 0.05 < error(out.value, exact) and out.status == Status.MAX_STEPS
    # A matrix of low rank, all of it seen: exact from as many columns.
    low = np.random.default_rng(1).normal(size=(20, 4))
    out = jax.jit(lambda b: nystrom(4, 0.1, jax.random.key(0))(lambda v: low @ (low.T @ v), b))(b)
    np.testing.assert_allclose(out.value, np.linalg.solve(low @ low.T + 0.1 * np.eye(20), b),
                               rtol=1e-8)


def test_they_are_values():
    key = jax.random.key(0)
    assert neumann_series(5, 0.1) == neumann_series(terms=5, step_size=0.1) != neumann_series(6)
    assert hash(nystrom(3, 0.1, key)) == hash(nystrom(3, 0.1, key))
    assert pickle.loads(pickle.dumps(neumann_series(5))) == neumann_series(5)


def test_bad_input():
    with pytest.raises(ValueError, match="terms"):
        neumann_series(0)
    with pytest.raises(ValueError, match="damping must be positive"):
        nystrom(3, 0.0, jax.random.key(0))
