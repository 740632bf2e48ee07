"""Factorisations against numpy; two batches of them side by side come to an end."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxiter.linear.factor import cholesky, inverse_factor, solve, solve_positive

RNG = np.random.default_rng(0)
ROOTS = RNG.normal(size=(2, 3, 5, 5)).astype("float32")
SQUARES = ROOTS @ ROOTS.swapaxes(-1, -2) + np.eye(5, dtype="float32")


@jax.jit
@jax.vmap
@jax.vmap
def all_of_them(square, root, right):
    return cholesky(square), inverse_factor(square), solve(root, right), solve_positive(
        square, right)


def test_batches_of_batches_against_numpy():
    right = RNG.normal(size=(2, 3, 5, 2)).astype("float32")
    lower, inverse, x, y = all_of_them(SQUARES, ROOTS, right)
    np.testing.assert_allclose(lower, np.linalg.cholesky(SQUARES), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        np.swapaxes(inverse, -1, -2) @ inverse, np.linalg.inv(SQUARES), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(x, np.linalg.solve(ROOTS, right), rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(y, np.linalg.solve(SQUARES, right), rtol=1e-3, atol=1e-4)
    for solver, matrix in ((solve, ROOTS[0, 0]), (solve_positive, SQUARES[0, 0])):
        one = jax.vmap(solver, (None, 0))(matrix, right[0])
        np.testing.assert_allclose(one, np.linalg.solve(matrix, right[0]), rtol=1e-3, atol=1e-4)


def test_solve_has_derivatives_of_both_kinds(x64):
    matrix, right = (jnp.asarray(v, float) for v in (SQUARES[0, 0], ROOTS[0, 1][:, :2]))
    check_grads(solve, (matrix, right), order=2, modes=("fwd", "rev"))

    def symmetric(matrix, right):
        return solve_positive(matrix + matrix.T, right)

    check_grads(symmetric, (matrix, right), order=2, modes=("fwd", "rev"))


def test_a_hermitian_system_and_its_transpose():
    matrix = jnp.asarray(np.array([[2, 1j], [-1j, 3]], "complex64"))
    right = jnp.asarray(np.array([[1], [2j]], "complex64"))
    exact = np.linalg.inv(matrix)
    np.testing.assert_allclose(solve_positive(matrix, right), exact @ right, atol=1e-6)
    (back,) = jax.linear_transpose(lambda b: solve_positive(matrix, b), right)(right)
    np.testing.assert_allclose(back, exact.T @ right, atol=1e-6)


def test_no_factor_is_nan():
    assert np.all(np.isnan(np.tril(cholesky(-jnp.eye(3)))[np.tril_indices(3)]))
    assert np.any(np.isnan(inverse_factor(-jnp.eye(3))))
    assert np.all(np.isnan(solve_positive(-jnp.eye(3), jnp.ones((3, 1)))))


PROGRAMS = """
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

MAPS = """
import jax, jax.numpy as jnp
from jaxiter.least_squares import _covariance
from jaxiter.operators import prox_least_squares, prox_quadratic
def layer(a):
    return (prox_quadratic(a[0], 0.5, a @ a.T), prox_least_squares(a[0], 0.5, a[:60], a[:60, 1]),
            _covariance(a[:, :40], a[0], False))
run = jax.jit(lambda p, q: (jax.vmap(layer)(p), jax.vmap(layer)(q)))
p, q = jax.random.normal(jax.random.key(0), (2, 16, 70, 70))
for _ in range(20):
    jax.block_until_ready(run(p, q))
"""


@pytest.mark.slow
@pytest.mark.parametrize("program", [PROGRAMS, MAPS], ids=["programs", "maps"])
def test_two_batches_side_by_side_do_not_wait_for_each_other(program):
    """With LAPACK's batches jaxlib 0.10.2 hung here, mostly at an early call, on two cores."""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=240)
