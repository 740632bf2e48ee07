"""What the implicit adjoint does where its linear solve fails, and in half precision."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status, linear
from jaxiter.linear import by_rows

RATES = jnp.array([0.5, 1.0, 0.9])  # the second row has no adjoint


def rowwise(x, a, b):
    return a[:, None] * x + b


def gradient(**options):
    """Of a batch in one array, whose second row is singular."""
    def loss(b, failures):
        adjoint = ji.implicit(failures=failures, **options)
        return jnp.sum(ji.fixed_point(rowwise, jnp.zeros((3, 2)), RATES, b, max_steps=20,
                                      adjoint=adjoint).value)

    return jax.jit(jax.grad(loss, (0, 1)))(jnp.ones((3, 2)), 0.0)


EXACT = np.array([2.0, np.nan, 10.0])


@pytest.mark.parametrize("mode", ["jvp", "vjp"])
@pytest.mark.parametrize("on_failure, second", [
    ("nan", np.nan), ("zero", 0.0), (ji.one_step(), 1.0), (ji.neumann(4), 4.0)])
def test_rows_fail_alone(mode, on_failure, second):
    slope, failures = gradient(rows=True, on_failure=on_failure, mode=mode)
    np.testing.assert_allclose(slope[:, 0], np.where(np.isnan(EXACT), second, EXACT), rtol=1e-4)
    assert failures == 1


def test_without_rows_they_fail_together_and_are_counted_once():
    slope, failures = gradient()
    assert np.all(np.isnan(slope)) and failures == 1
    slope, failures = gradient(on_failure=ji.neumann(2))
    np.testing.assert_allclose(slope[:, 0], 1 + np.asarray(RATES), rtol=1e-5)


@pytest.mark.parametrize("solve", [linear.bicgstab(), linear.gmres(), linear.normal_cg(),
                                   linear.dense()])
def test_every_solver_by_rows(solve):
    slope, failures = gradient(rows=True, on_failure="zero", solve=solve)
    np.testing.assert_allclose(slope[::2, 0], EXACT[::2], rtol=1e-4)
    assert np.all(slope[1] == 0) and failures == 1


def test_vmapped_problems_decide_for_themselves():
    def one(a, b, failures):
        adjoint = ji.implicit(on_failure="zero", failures=failures)
        return jnp.sum(ji.fixed_point(lambda x, b: a * x + b, jnp.zeros(2), b, max_steps=20,
                                      adjoint=adjoint).value)

    def loss(b, failures):
        return jnp.sum(jax.vmap(one, (0, 0, None))(RATES, b, failures))

    slope, failures = jax.jit(jax.grad(loss, (0, 1)))(jnp.ones((3, 2)), 0.0)
    np.testing.assert_allclose(slope[:, 0], np.where(np.isnan(EXACT), 0, EXACT), rtol=1e-4)
    assert failures == 1
    # Not asked for, nothing changes.
    plain = jax.jit(jax.grad(lambda b: loss(b, 0.0)))(jnp.ones((3, 2)))
    np.testing.assert_array_equal(plain, slope)


def test_second_derivatives_with_rows():
    def loss(b):
        out = ji.fixed_point(lambda x, b: 0.5 * jnp.sin(x) + b[:, None], jnp.zeros((2, 1)), b,
                             adjoint=ji.implicit(rows=True))
        return jnp.sum(out.value**2)

    b = jnp.array([0.3, 0.7])
    hessian = jax.jit(jax.hessian(loss))(b)
    reference = jax.jit(jax.hessian(lambda b: jnp.sum(
        jax.lax.fori_loop(0, 40, lambda _, x: 0.5 * jnp.sin(x) + b, jnp.zeros(2)) ** 2)))(b)
    np.testing.assert_allclose(hessian, reference, rtol=1e-3, atol=1e-3)


def test_any_function_may_solve():
    def exact(matvec, b):
        return b / (1 - 0.5)

    def loss(b, solve):
        return jnp.sum(ji.fixed_point(lambda x, b: 0.5 * x + b, jnp.zeros(2), b,
                                      adjoint=ji.implicit(solve, mode="vjp")).value)

    np.testing.assert_allclose(jax.grad(loss)(jnp.ones(2), exact), 2)
    assert np.all(np.isnan(jax.grad(loss)(jnp.ones(2), lambda matvec, b: 3 * b)))


def test_bad_options_are_named():
    for bad in ("none", ji.frozen(), ji.implicit(), 3):
        with pytest.raises(ValueError, match="on_failure must be"):
            ji.implicit(on_failure=bad)
    with pytest.raises(ValueError, match="leading axis"):
        by_rows(linear.cg())(lambda v: v, {"a": jnp.ones(3), "b": jnp.ones(4)})


@pytest.mark.parametrize("dtype, limit", [(jnp.bfloat16, 4e-3), (jnp.float16, 5e-4)])
@pytest.mark.parametrize("how", ["arguments", "closure", "dense"])
def test_half_precision_gradients_are_those_of_float32(dtype, limit, how):
    rng = np.random.default_rng(0)
    for rate in (0.8, 0.9):
        a = jnp.asarray(rate * np.linalg.qr(rng.normal(size=(64, 64)))[0], dtype)
        b = jnp.asarray(rng.normal(size=64), dtype)
        adjoint = ji.implicit(linear.dense() if how == "dense" else None)

        def solve(step, *args, adjoint=adjoint):
            return jnp.sum(ji.fixed_point(
                step, jnp.zeros(64, dtype), *args, max_steps=200, adjoint=adjoint).value)

        if how == "closure":  # the map itself works in half precision
            slope = jax.jit(jax.grad(lambda b, a=a: solve(lambda x, b: a @ x + b, b)))(b)
        else:
            slope = jax.jit(jax.grad(lambda b, a=a: solve(
                lambda x, a, b: a @ x + b, a, b)))(b)
        exact = np.linalg.solve(np.eye(64) - np.asarray(a, float).T, np.ones(64))
        error = np.linalg.norm(np.asarray(slope, float) - exact) / np.linalg.norm(exact)
        assert error < limit * (6 if how == "closure" else 1), error


def test_what_rounding_alone_decides_is_nan():
    """An eigenvalue of 1 - 1e-6 in float32 is known to 6 percent, whatever the residual."""
    def slope_by(solve):
        return jax.jit(jax.grad(lambda b, a: jnp.sum(ji.fixed_point(
            lambda x, b: a @ x + b, jnp.zeros(6), b, max_steps=30,
            adjoint=ji.implicit(solve)).value)))

    rng = np.random.default_rng(1)
    slopes = [slope_by(solve) for solve in (linear.bicgstab(), linear.gmres(), linear.dense())]
    for gap, usable in ((1e-2, True), (1e-3, True), (1e-6, False)):
        values = np.array([1 - gap, 0.5, 0.2, -0.3, 0.1, 0.7])
        for slope_of in slopes:
            errors = []
            for _ in range(3):
                basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
                a = jnp.asarray(basis @ np.diag(values) @ basis.T, jnp.float32)
                slope = slope_of(jnp.ones(6), a)
                exact = np.linalg.solve(np.eye(6) - np.asarray(a, float).T, np.ones(6))
                errors.append(np.abs(slope - exact).max() / np.abs(exact).max())
            wrong = np.nan_to_num(np.asarray(errors), nan=0.0) > 2e-2
            assert not wrong.any(), errors
            assert not usable or np.isfinite(errors).all(), errors


def test_reports_probe_with_what_centred_maps_do_not_annihilate():
    def centred(x):
        y = 1.0 * x + 0.1  # every x of mean 0 and no more is a fixed point: singular
        return y - jnp.mean(y)

    solution = ji.fixed_point(centred, jnp.array([1.0, -1.0, 0.0]))
    assert not ji.adjoint_report(centred, solution).residual <= 1e-2
    assert not ji.diagnose(centred, jnp.array([1.0, -1.0, 0.0])).adjoint_residual <= 1e-2


def test_condition_and_rounding_of_linear_solves():
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(5, 5)))[0] for _ in range(2))
    a = jnp.asarray(u @ np.diag(np.logspace(0, -3.25, 5)) @ v.T, jnp.float32)
    b = jnp.asarray(rng.normal(size=5), jnp.float32)
    exact = np.linalg.solve(np.asarray(a, float), np.asarray(b, float))
    for solve in (linear.gmres(), linear.dense(), linear.gmres(rtol=1e-9)):
        out = jax.jit(lambda b, solve=solve: solve(lambda v: a @ v, b))(b)
        assert out.status in (Status.CONVERGED, Status.PRECISION_FLOOR), out.message()
        assert np.linalg.norm(out.value - exact) <= 1e-4 * np.linalg.norm(exact)
        assert 100 < out.condition < 5000


def test_stability_tools():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(6, 6)), jnp.float32)
    exact = np.linalg.norm(w, 2)
    np.testing.assert_allclose(ji.spectral_norm(w), exact, rtol=2e-3)
    np.testing.assert_allclose(ji.spectral_norm(lambda v: {"y": w @ v["x"]}, {"x": w[0]}), exact,
                               rtol=2e-3)
    u, _, v = np.linalg.svd(w)
    np.testing.assert_allclose(jax.jit(jax.grad(ji.spectral_norm))(w), np.outer(u[:, 0], v[0]),
                               atol=0.05)
    short = jax.jit(ji.spectral_rescale)(w, 0.9)
    np.testing.assert_allclose(np.linalg.norm(short, 2), 0.9, rtol=2e-3)
    np.testing.assert_array_equal(ji.spectral_rescale(0.01 * w), 0.01 * w)
    np.testing.assert_array_equal(ji.spectral_rescale(0 * w), 0 * w)
    x = jnp.ones(6)

    def penalty(w, key):
        return ji.jacobian_penalty(lambda x, w: jnp.tanh(w @ x), x, w, key=key, samples=512)

    jacobian = jax.jacobian(lambda x: jnp.tanh(w @ x))(x)
    value, slope = jax.jit(jax.value_and_grad(penalty))(w, jax.random.key(0))
    np.testing.assert_allclose(value, jnp.sum(jacobian**2) / 6, rtol=0.15)
    assert np.all(np.isfinite(slope))


@pytest.mark.slow
def test_keyword_arguments_by_partial():
    """Derivatives by what a partial holds are those by args."""
    def step(x, rate, *, shift, power=1.0):
        return rate * jnp.cos(x) ** power + shift

    def by_keyword(shift):
        return ji.fixed_point(
            functools.partial(step, shift=shift, power=2.0), jnp.zeros(2), 0.3).value.sum()

    def by_position(shift):
        return ji.fixed_point(lambda x, rate, shift: step(x, rate, shift=shift, power=2.0),
                              jnp.zeros(2), 0.3, shift).value.sum()

    shift = jnp.array([0.5, 0.8])
    for derivative in (jax.grad, jax.hessian):
        ours, other = (jax.jit(derivative(by))(shift) for by in (by_keyword, by_position))
        np.testing.assert_allclose(ours, other, rtol=1e-5)
    root = jax.jit(jax.grad(lambda a: ji.attach_implicit(
        functools.partial(lambda x, *, a: x * x - a, a=a), jnp.array(3.0))))(9.0)
    np.testing.assert_allclose(root, 1 / 6, rtol=1e-5)
