"""Factorisations against numpy; two batches of them side by side come to an end."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxiter.linear.factor import cholesky, inverse_factor, solve

RNG = np.random.default_rng(0)
ROOTS = RNG.normal(size=(2, 3, 5, 5)).astype("float32")
SQUARES = ROOTS @ ROOTS.swapaxes(-1, -2) + np.eye(5, dtype="float32")


@jax.jit
@jax.vmap
@jax.vmap
def all_of_them(square, root, right):
    return cholesky(square), inverse_factor(square), solve(root, right)


def test_batches_of_batches_against_numpy():
    right = RNG.normal(size=(2, 3, 5, 2)).astype("float32")
    lower, inverse, x = all_of_them(SQUARES, ROOTS, right)
    np.testing.assert_allclose(lower, np.linalg.cholesky(SQUARES), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.swapaxes(inverse, -1, -2) @ inverse, np.linalg.inv(SQUARES), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(x, np.linalg.solve(ROOTS, right), rtol=1e-3, atol=1e-4)
    one = jax.vmap(solve, (None, 0))(ROOTS[0, 0], right[0])
    np.testing.assert_allclose(one, np.linalg.solve(ROOTS[0, 0], right[0]), rtol=1e-3, atol=1e-4)


def test_solve_has_derivatives_of_both_kinds(x64):
    matrix, right = (jnp.asarray(v, float) for v in (SQUARES[0, 0], ROOTS[0, 1][:, :2]))
    check_grads(solve, (matrix, right), order=2, modes=("fwd", "rev"))


def test_no_factor_is_nan():
    assert np.all(np.isnan(np.tril(cholesky(-jnp.eye(3)))[np.tril_indices(3)]))
    assert np.any(np.isnan(inverse_factor(-jnp.eye(3))))


SIDE_BY_SIDE = """
import jax, jax.numpy as jnp
from jaxiter.operators import quadratic_program
def layer(q):
    return quadratic_program(jnp.eye(8), q, G=jnp.ones((1, 8)), h=jnp.ones(1), lower=0.0).x
layers = jax.vmap(layer)
run = jax.jit(jax.grad(lambda p, q: jnp.sum(layers(p)) + jnp.sum(layers(q)), (0, 1)))
p, q = jax.random.normal(jax.random.key(0), (2, 64, 8))
for _ in range(5):
    jax.block_until_ready(run(p, q))
"""


@pytest.mark.slow
def test_two_batches_side_by_side_do_not_wait_for_each_other():
    """With LAPACK's batches jaxlib 0.10.2 hung here at the first or second call on two cores."""
    subprocess.run([sys.executable, "-c", SIDE_BY_SIDE], check=True, timeout=240)
