"""Proximal maps against scipy's minimiser, numpy's solves and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.special import lambertw

from jaxiter.operators import (
    prox_box,
    prox_entropy,
    prox_huber,
    prox_l1,
    prox_log_barrier,
    prox_log_det,
    prox_non_negative_l1,
    prox_quadratic,
)

rng = np.random.default_rng(0)
FACTOR = rng.normal(size=(4, 4))
Q, q, V = FACTOR @ FACTOR.T / 4, rng.normal(size=4), 2 * rng.normal(size=4)


def floats(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def brute(g, v, t, bounds=None):
    """Nelder-Mead and numbers alone, entry by entry where g separates."""
    return np.array([minimize(lambda u, x=x: g(u[0]) + (u[0] - x) ** 2 / (2 * t), [0.1],
                              method="Nelder-Mead", bounds=bounds,
                              options={"xatol": 1e-9, "fatol": 1e-12}).x[0] for x in v])


def test_l1_and_box_are_the_minimisers():
    v, = floats(V)
    np.testing.assert_allclose(
        prox_l1(v, 0.7, 1.3), brute(lambda u: 1.3 * abs(u), V, 0.7), atol=1e-4)
    np.testing.assert_allclose(
        prox_box(v, 0.7, -0.5, 1.0), brute(lambda u: 0.0, V, 0.7, [(-0.5, 1.0)]), atol=1e-4)


def test_a_complex_l1_shortens_every_entry():
    z = jnp.array([3 + 4j, 0.3j, 0, -2], jnp.complex64)
    np.testing.assert_allclose(prox_l1(z, 1.0, 2.0), [1.8 + 2.4j, 0, 0, 0], atol=1e-6)
    slope = jax.grad(lambda z: jnp.sum(jnp.abs(prox_l1(z, 0.5)) ** 2))(z)
    assert np.all(np.isfinite(slope))
    # |prox(z)|^2 = (|z| - 1/2)^2 has the gradient 2 (|z| - 1/2) z / |z|, conjugated by JAX.
    np.testing.assert_allclose(slope, [2 * 4.5 * (0.6 - 0.8j), 0, 0, -3], atol=1e-5)


def test_trees_weights_and_half_precision():
    v = {"a": jnp.array([3.0, -3.0], jnp.bfloat16), "b": jnp.ones((2, 2))}
    out = prox_l1(v, jnp.float32(0.5), 2.0)
    assert out["a"].dtype == jnp.bfloat16 and out["b"].dtype == v["b"].dtype
    assert out["a"].tolist() == [2.0, -2.0] and float(jnp.max(out["b"])) == 0
    boxed = prox_box(v, 1.0, lower={"a": 0.0, "b": 2.0}, upper=2.5)
    assert boxed["a"].tolist() == [2.5, 0.0] and float(jnp.min(boxed["b"])) == 2
    weighted = prox_l1(jnp.array([3.0, 3.0]), 1.0, jnp.array([0.0, 2.0]))
    assert weighted.tolist() == [3.0, 1.0]


def test_the_quadratic_by_factors_and_by_products():
    matrix, linear, v = floats(Q, q, V)
    expected = np.linalg.solve(np.eye(4) + 0.7 * Q, V - 0.7 * q)

    def dense(args):
        return prox_quadratic(args[0], 0.7, args[1], args[2])

    def products(args):
        return prox_quadratic(args[0], 0.7, lambda u: jnp.matmul(args[1], u), args[2])

    def slopes(prox):
        return jax.jit(jax.value_and_grad(lambda args: jnp.sum(jnp.sin(prox(args)))))(
            (v, matrix, linear))

    for prox in (dense, products):
        np.testing.assert_allclose(jax.jit(prox)((v, matrix, linear)), expected, atol=1e-5)
    ours, theirs = slopes(dense), slopes(products)
    for a, b in zip(ours[1], theirs[1], strict=True):
        # Off the symmetric matrices Q means nothing, so its slopes are compared along them.
        a, b = (x if x.ndim == 1 else x + x.T for x in (a, b))
        np.testing.assert_allclose(a, b, atol=2e-5)
    h = 1e-5
    up, down = (np.sin(np.linalg.solve(np.eye(4) + 0.7 * s * Q, V - 0.7 * q)).sum()
                for s in (1 + h, 1 - h))
    np.testing.assert_allclose(
        jnp.sum(ours[1][1] * matrix), (up - down) / (2 * h), rtol=1e-3)


def test_a_quadratic_of_complex_trees():
    z = {"a": jnp.array([1 + 1j, 2.0], jnp.complex64), "b": jnp.array(3j, jnp.complex64)}
    out = prox_quadratic(z, 0.5, lambda u: jax.tree.map(lambda x: 2 * x, u), z)
    for key in z:
        np.testing.assert_allclose(out[key], z[key] * 0.5 / 2, atol=1e-6)
    hermitian = jnp.array([[2, 1j], [-1j, 2]], jnp.complex64)
    np.testing.assert_allclose(
        prox_quadratic(z["a"], 1.0, hermitian),
        np.linalg.solve(np.eye(2) + np.asarray(hermitian), z["a"]), atol=1e-6)


def test_at_a_kink_the_derivative_is_the_mean_of_both_sides():
    assert float(jax.grad(lambda v: prox_l1(v, 1.0))(1.0)) == 0.5
    assert float(jax.grad(lambda v: prox_box(v, 1.0, lower=0.0))(0.0)) == 0.5
    assert float(jax.grad(lambda w: prox_l1(jnp.float32(3), 1.0, w))(2.0)) == -1


def test_numbers_far_from_one():
    """In float32, against closed forms: squares and products of these leave its range."""
    v = jnp.array([-1e30, 1e30, 3e20], jnp.float32)
    np.testing.assert_allclose(prox_log_barrier(v, 1e12), [1e-18, 1e30, 3e20], rtol=1e-6)
    np.testing.assert_allclose(prox_log_det(jnp.diag(v), 1e12).diagonal()[1:], v[1:], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda v: jnp.sum(prox_log_barrier(v, 1.0)))(v)).all()
    np.testing.assert_allclose(prox_entropy(v[1:], 1e6), v[1:], rtol=1e-6)
    # u = step w, w e^w = e^-1 / step
    np.testing.assert_allclose(prox_entropy(jnp.zeros(1, jnp.float32), 1e-25),
                               [1e-25 * lambertw(np.exp(-1) / 1e-25).real], rtol=1e-5)
    long = jax.value_and_grad(lambda v: prox_huber(v, 1e8))(jnp.float32(3))
    np.testing.assert_allclose(long, [3e-8, 1e-8], rtol=1e-5)


def test_nan_passes_and_traced_nonsense_is_nan():
    nan = jnp.array([jnp.nan, 2.0])
    for out in (prox_l1(nan, 1.0), prox_box(nan, 1.0, 0.0, 1.0)):
        assert np.isnan(out[0]) and out[1] == 1
    one = jnp.ones(1)
    bad = jax.jit(lambda t: (prox_l1(one, t), prox_l1(one, 1.0, t), prox_box(one, 1.0, 0.0, t),
                             prox_quadratic(one, t, jnp.eye(1)),
                             prox_quadratic(one, t, lambda u: u)))(-1.0)
    assert all(np.isnan(leaf[0]) for leaf in bad)
    assert np.isnan(prox_quadratic(one, 1.0, -2 * jnp.eye(1))[0])  # no minimum


@pytest.mark.parametrize("call, match", [
    (lambda: prox_l1(jnp.ones(2), 0.0), "step must be positive"),
    (lambda: prox_l1(jnp.ones(2), jnp.array(-1.0)), "step must be positive"),
    (lambda: prox_l1(jnp.ones(2), 1.0, -1.0), "weight must not be negative"),
    (lambda: prox_quadratic(jnp.ones(2), float("nan"), jnp.eye(2)), "step must be positive"),
    (lambda: prox_quadratic(jnp.ones(3), 1.0, jnp.eye(2)), r"\(2, 2\) and \(3,\)"),
    (lambda: prox_box(jnp.ones(2), 1.0, 1.0, 0.0), "empty box"),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_whole_numbers_and_a_complex_box_are_refused():
    for prox in (prox_huber, prox_non_negative_l1):  # among integers a step of a half is 0
        with pytest.raises(TypeError, match="must be floating point, got int32"):
            prox(jnp.arange(3), 0.5)
    with pytest.raises(TypeError, match="no order"):
        prox_box(jnp.ones(2, jnp.complex64), 1.0, 0.0)
