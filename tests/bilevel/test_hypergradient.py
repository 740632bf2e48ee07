"""Hypergradients by linear solves, against closed forms and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from jaxiter import Status, linear, tolerance, trees
from jaxiter.bilevel import hypergradient, neumann_series, solve_inner
from jaxiter.linear import cg
from jaxiter.testing.bilevel import Selection
from tests.bilevel.problems import B1, B2, B3, error

PROBLEMS = {"B1": B1, "B2": B2}


def at_argmin(problem, dtype=None, **keywords):
    dtype = dtype or jnp.result_type(float)
    x, y = (jnp.asarray(t, dtype) for t in (problem.x, problem.argmin(problem.x)))
    return jax.jit(lambda x, y: hypergradient(problem.outer, problem.inner, x, y, **keywords))(x, y)


def test_condition_number_of_ridge_is_the_published_one():
    problem = PROBLEMS["B2"]
    with jax.enable_x64(True):
        h = jax.hessian(problem.inner, 1)(jnp.asarray(problem.x), jnp.zeros(20))
    np.testing.assert_allclose(np.linalg.cond(h), 24.879, atol=0.001)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("solve, limit", [(linear.dense(), 1e-10), (None, 1e-8)])
def test_closed_forms(name, solve, limit, x64):
    problem = PROBLEMS[name]
    out = at_argmin(problem, solve=solve)
    assert error(out.grad, problem.gradient(problem.x)) < limit
    assert out.status == Status.CONVERGED and float(out.inner_residual) < 1e-12
    assert float(out.linear_residual) < max(limit, 1e-8)


@pytest.mark.parametrize("name", PROBLEMS)
def test_float32(name):
    problem = PROBLEMS[name]
    out = at_argmin(problem, jnp.float32)
    assert error(out.grad, problem.gradient(problem.x)) < 1e-4 and out.grad.dtype == jnp.float32


def test_corrected_value_and_error_estimate(x64):
    """Value errors fall with the square of the inner error; the estimate is of the right size."""
    problem = PROBLEMS["B2"]
    x, y = jnp.asarray(problem.x), problem.argmin(problem.x)
    best = float(problem.outer(x, jnp.asarray(y)))
    off = np.random.default_rng(2).normal(size=20)
    solve = jax.jit(lambda y: hypergradient(
        problem.outer, problem.inner, x, y, corrected_value=True, estimate_error=True))
    errors = []
    for size in (0.1, 0.01):
        out = solve(jnp.asarray(y + size * off))
        errors.append(abs(float(out.value) - best))
        true = np.linalg.norm(np.asarray(out.grad) - problem.gradient(problem.x))
        assert true / 3 < float(out.error_estimate) < 3 * true
    assert 80 < errors[0] / errors[1] < 125


def test_warm_start_damping_and_calls(x64):
    problem = PROBLEMS["B2"]
    cold = at_argmin(problem)
    warm = at_argmin(problem, v_init=cold.v)
    assert int(warm.calls["products"]) < int(cold.calls["products"]) / 3
    assert int(cold.calls["inner"]) == 1 == int(cold.calls["outer"])
    damped = at_argmin(problem, damping=0.5, solve=linear.dense())
    h = jax.hessian(problem.inner, 1)(jnp.asarray(problem.x), jnp.zeros(20))
    y = jnp.asarray(problem.argmin(problem.x))
    pull = jax.grad(problem.outer, 1)(jnp.asarray(problem.x), y)
    np.testing.assert_allclose(damped.v, np.linalg.solve(h + 0.5 * np.eye(20), pull), rtol=1e-9)


def test_batches_and_second_derivatives(x64):
    problem = PROBLEMS["B2"]
    xs = jnp.asarray(np.random.default_rng(3).normal(size=(8, 20)) - 3)
    ys = jnp.asarray(np.stack([problem.argmin(np.asarray(x)) for x in xs]))
    batch = jax.jit(jax.vmap(lambda x, y: hypergradient(problem.outer, problem.inner, x, y).grad))(
        xs, ys)
    for x, grad in zip(xs, batch, strict=True):
        assert error(grad, problem.gradient(np.asarray(x))) < 1e-7

    def through(x):  # the whole: inner solve, hypergradient, and its Jacobian
        y = solve_inner(problem.inner, jnp.zeros(20), x, max_steps=3000).value
        return hypergradient(problem.outer, problem.inner, x, y, solve=linear.dense()).grad

    jacobian = jax.jit(jax.jacrev(through))(xs[0])
    h = 1e-5
    for i in (0, 7):
        bump = h * np.eye(20)[i]
        column = (problem.gradient(np.asarray(xs[0]) + bump)
                  - problem.gradient(np.asarray(xs[0]) - bump)) / (2 * h)
        np.testing.assert_allclose(jacobian[:, i], column, atol=1e-6 * np.abs(jacobian).max())


def test_second_derivatives_where_some_leaf_of_y_does_not_see_x(x64):
    """F = |a - x|^2 + |b|^2 with a = x^3 and b = 1: the transposed solve has a leaf of zeros."""
    def outer(x, y):
        return jnp.sum((y["a"] - x) ** 2) + jnp.sum(y["b"] ** 2)

    def inner(x, y):
        return jnp.sum(jnp.exp(x) * (y["a"] - x**3) ** 2) + jnp.sum((y["b"] - 1) ** 2)

    def slope(x):
        return hypergradient(outer, inner, x, {"a": x**3, "b": jnp.ones(2)}).grad

    x = jnp.array([0.5, 2.0])
    np.testing.assert_allclose(slope(x), 2 * (x**3 - x) * (3 * x**2 - 1), rtol=1e-6)
    hessian = np.diag(30 * x**4 - 24 * x**2 + 2)
    for differentiate in (jax.jacrev, jax.jacfwd):
        np.testing.assert_allclose(differentiate(slope)(x), hessian, rtol=1e-6, atol=1e-8)


def test_warm_adjoints_need_a_third_of_the_products():
    """B3, 100 steps of size 0.1: at rtol 1e-2 at most a third, at 1e-5 0.45 to 0.77, published."""
    def outer(x, y):
        return Selection.outer(x, y, B3.validation)

    def inner(x, y):
        return Selection.inner(x, y, B3.train)

    def total(rtol, warm):
        def step(carry, _):
            x, y, v = carry
            y = solve_inner(inner, y, x, step_size=0.3, stop=tolerance(rtol=0, atol=1e-5)).value
            out = hypergradient(outer, inner, x, y, v_init=trees.scale(warm, v),
                                solve=cg(rtol=rtol, max_steps=100))
            return (x - 0.1 * out.grad, y, out.v), out.calls["products"]

        start = jnp.full(30, -2.0), jnp.zeros(30), jnp.zeros(30)
        return jnp.sum(jax.lax.scan(step, start, None, length=100)[1])

    solve = jax.jit(total)
    for rtol, low, high in ((1e-2, 0.0, 1 / 3), (1e-5, 0.3, 0.77)):
        ratio = int(solve(rtol, 1.0)) / int(solve(rtol, 0.0))
        assert low <= ratio <= high, (rtol, ratio)


def test_as_many_hyperparameters_as_weights():
    """Per-weight decay of a digits classifier: hypergradients align as terms are added."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = jnp.asarray(np.c_[np.asarray(pixels) / 16, np.ones(len(pixels))], jnp.float32)
    labels = jnp.asarray(labels)

    def loss(y, rows):
        chosen = jnp.take_along_axis(
            jax.nn.log_softmax(pixels[rows] @ y), labels[rows][:, None], axis=1)
        return -jnp.mean(chosen)

    def inner(x, y):
        return loss(y, slice(0, 200)) + jnp.sum(jnp.exp(x) * y * y) / 2

    def outer(x, y):
        return loss(y, slice(200, 250))

    x = jnp.full((65, 10), -5.0)
    y = jax.jit(lambda x: solve_inner(inner, jnp.zeros((65, 10)), x, max_steps=5000).value)(x)
    exact, *series = jax.jit(lambda x, y: [
        hypergradient(outer, inner, x, y, solve=solve).grad.ravel()
        for solve in (linear.dense(), *(neumann_series(n, 1.6) for n in (1, 2, 6, 21)))])(x, y)
    cosines = [float(g @ exact / jnp.linalg.norm(g) / jnp.linalg.norm(exact)) for g in series]
    np.testing.assert_allclose(cosines, [0.73, 0.80, 0.87, 0.92], atol=0.02)


def test_bad_input():
    def outer(x, y):
        return jnp.sum(y**2)

    def inner(x, y):
        return jnp.sum((y - x) ** 2)

    one = jnp.ones(2)
    for call, kind, text in [
        (lambda: hypergradient(lambda x, y: y, inner, one, one), ValueError, "outer returns shape"),
        (lambda: hypergradient(outer, lambda x, y: (y, y), one, one), ValueError, "inner returns"),
        (lambda: hypergradient(outer, inner, jnp.arange(2), one), TypeError, "x must have"),
        (lambda: hypergradient(outer, inner, one, one, solve="lu"), TypeError, "solve must be"),
        (lambda: hypergradient(outer, inner, one, one, damping=-1.0), ValueError, "damping"),
        (lambda: hypergradient(outer, inner, one, one, v_init=jnp.ones(3)), TypeError, "v_init"),
    ]:
        with pytest.raises(kind, match=text):
            call()
    broken = jax.jit(lambda y: hypergradient(lambda x, y: jnp.sum(jnp.log(y)), inner, one, y))(
        jnp.array([-1.0, 1.0]) * jnp.nan)
    assert broken.status == Status.NONFINITE
    flat = jax.jit(lambda y: hypergradient(outer, lambda x, y: jnp.sum(x * y), one, y))(one)
    assert flat.status != Status.CONVERGED  # no curvature: no argmin
