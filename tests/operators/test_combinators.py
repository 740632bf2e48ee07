"""Combinators and mirror steps against the objectives that they stand for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.fft import dct
from scipy.optimize import minimize

import jaxiter as ji
from jaxiter import operators as op

rng = np.random.default_rng(0)
V, C, ROTATION = 2 * rng.normal(size=4), rng.normal(size=4), np.linalg.qr(
    rng.normal(size=(4, 4)))[0]


def single(x):
    return jnp.asarray(x, jnp.zeros(0).dtype)


def smallest(cost, v, t):
    """By SLSQP in the positive and negative parts of what is in the norm."""
    best = minimize(lambda u: cost(u) + np.sum((u - v) ** 2) / (2 * t), v, method="Powell",
                    options={"xtol": 1e-10, "ftol": 1e-14, "maxiter": 100_000})
    return best.fun


def test_each_is_the_minimiser_of_what_it_says():
    def l1(u):
        return np.sum(np.abs(u))

    for prox, cost in (
        (op.translate(op.prox_l1, single(C)), lambda u: l1(u - C)),
        (op.scale(op.prox_l1, -2.0), lambda u: l1(-2 * u)),
        (op.add_quadratic(op.prox_l1, 0.5, single(C)),
         lambda u: l1(u) + 0.25 * np.sum((u - C) ** 2)),
        (op.rotate(op.prox_l1, single(ROTATION)), lambda u: l1(ROTATION @ u)),
        (op.rotate(op.prox_l1, lambda u: jnp.matmul(single(ROTATION), u)),
         lambda u: l1(ROTATION @ u)),
        (op.conjugate(op.prox_squared_l2), lambda u: np.sum(u**2) / 2),
    ):
        u = np.asarray(prox(single(V), 0.7), np.float64)
        value = cost(u) + np.sum((u - V) ** 2) / 1.4
        assert value <= smallest(cost, V, 0.7) + 1e-5


def test_they_take_trees_and_args_and_nest():
    v = {"a": single(V), "b": single(C[:2])}
    weighted = op.conjugate(op.conjugate(lambda v, step, w: op.prox_l1(v, step, w)))
    moved = op.translate(weighted, {"a": 1.0, "b": jnp.ones(2)})
    out, plain = jax.jit(lambda v, w: (
        moved(v, 0.5, w), op.prox_l1(jax.tree.map(lambda x: x - 1, v), 0.5, w)))(v, 0.3)
    for key in v:
        np.testing.assert_allclose(out[key], plain[key] + 1, atol=1e-6)
    slope = jax.grad(lambda s: jnp.sum(op.scale(op.prox_l1, s)(single(V), 1.0) ** 2))(0.9)
    h = 1e-3
    ends = [np.sum(np.asarray(op.scale(op.prox_l1, 0.9 + s)(single(V), 1.0), float) ** 2)
            for s in (h, -h)]
    np.testing.assert_allclose(slope, (ends[0] - ends[1]) / (2 * h), rtol=1e-2)


def test_a_conjugate_in_a_splitting():
    """Total variation by its dual: min |u - b|^2 / 2 + |D u|_1, against the primal by scipy."""
    b = np.array([0.0, 0.2, 2.0, 2.2])
    difference = np.eye(4)[1:] - np.eye(4)[:-1]
    # The dual: min |b - D^T y|^2 / 2 + (0.5 |.|_1)*(y).
    dual = ji.solve_splitting(
        op.forward_backward(
            lambda y: jnp.matmul(single(difference), jnp.matmul(y, single(difference)) - single(b)),
            op.conjugate(lambda v, step: op.prox_l1(v, step, 0.5))),
        jnp.zeros(3), solver=ji.anderson(3))
    u = b - difference.T @ np.asarray(dual.value, np.float64)
    found = np.sum((u - b) ** 2) / 2 + 0.5 * np.abs(difference @ u).sum()
    best = smallest(lambda u: 0.5 * np.abs(difference @ u).sum(), b, 1.0)
    assert dual.converged and found <= best + 1e-5


def test_a_cosine_transform_is_a_rotation():
    v = single(V)
    out = op.rotate(op.prox_l1, lambda u: jax.scipy.fft.dct(u, norm="ortho"))(v, 0.5)
    coefficients = dct(V, norm="ortho")
    shrunk = np.sign(coefficients) * np.maximum(np.abs(coefficients) - 0.5, 0)
    np.testing.assert_allclose(dct(np.asarray(out, float), norm="ortho"), shrunk, atol=1e-5)


def test_mirror_steps_minimise_over_the_distance_of_their_entropy():
    """Stationary: the gradient of the entropy moves by -step gradient, up to the constraint."""
    x, g = np.array([0.2, 0.5, 0.3]), np.array([1.0, -2, 0.5])
    one = single(x), single(g), 0.7
    logits = np.asarray(op.mirror_simplex(jnp.log(one[0]), *one[1:]), float)
    np.testing.assert_allclose(np.exp(logits).sum(), 1, atol=1e-6)
    np.testing.assert_allclose(np.ptp(logits - np.log(x) + 0.7 * g), 0, atol=1e-6)
    box = np.asarray(op.mirror_box(*one, -1.0, 2.0), float)
    np.testing.assert_allclose(
        np.log((box + 1) / (2 - box)), np.log((x + 1) / (2 - x)) - 0.7 * g, atol=1e-5)
    np.testing.assert_allclose(np.log(op.mirror_orthant(*one)), np.log(x) - 0.7 * g, atol=1e-6)
    np.testing.assert_allclose(1 / np.asarray(op.mirror_burg(*one)), 1 / x + 0.7 * g, atol=1e-5)
    assert np.isnan(op.mirror_burg(single([1.0]), single([-2.0]), 1.0)).all()


def test_mirror_steps_far_out():
    far = jnp.array([0.5, 0.5, 1.0])
    assert op.mirror_box(far, jnp.array([1e4, -1e4, 1e4]), 1.0).tolist() == [0, 1, 1]
    outside = op.mirror_box(jnp.array([1.5, 0.5, -0.1]), jnp.ones(3), 1.0)
    assert np.isnan(outside).tolist() == [True, False, True]
    with pytest.raises(ValueError, match="lower must be below upper"):
        op.mirror_box(far, far, 1.0, 1.0, 0.0)
    logits = op.mirror_simplex(jnp.zeros(2), jnp.array([0.0, 1e4]), 1.0)
    assert logits.tolist() == [0, -1e4]
    slope = jax.grad(lambda g: jnp.sum(op.mirror_box(far, g, 1.0)))(jnp.array([1e4, 0.0, -1e4]))
    assert np.isfinite(slope).all()
