"""`proximal_gradient` and `regularisation_path` against scikit-learn, scipy and closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from sklearn.linear_model import Lasso, LogisticRegression, lasso_path

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import prox_box, prox_l1, proximal_gradient, regularisation_path
from jaxiter.operators.descent import descent
from jaxiter.testing import check_front


def least_squares(x, a, b, lam):
    return 0.5 * jnp.sum((jnp.matmul(a, x) - b) ** 2)


def logistic(x, a, b, lam):
    return jnp.sum(jnp.logaddexp(0.0, -b * jnp.matmul(a, x)))


def poisson(x, a, b, lam):
    eta = jnp.matmul(a, x)
    return jnp.sum(jnp.exp(eta) - b * eta)


def threshold(v, step, a, b, lam):
    return prox_l1(v, step, lam)


def card(seed=0, m=100, n=200, share=0.1):
    rng = np.random.default_rng(seed)
    a, x = rng.normal(size=(m, n)), np.zeros(n)
    x[:min(10, n // 2)] = rng.normal(size=min(10, n // 2))
    b = a @ x + 0.1 * rng.normal(size=m)
    return a, b, share * np.abs(a.T @ b).max()


def floats(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def sklearn(a, b, lam):
    return Lasso(alpha=lam / len(b), fit_intercept=False, tol=1e-12, max_iter=100_000).fit(
        a, b).coef_


def run(f, data, **options):
    n = data[0].shape[1]
    return jax.jit(lambda *data: proximal_gradient(
        f, threshold, jnp.zeros(n, jnp.float32), *data, **options))(*floats(*data))


def test_the_lasso_of_the_card():
    """At most 89 / 2.5 steps where Picard takes 89 at 1 / L, and the zeros are zeros."""
    data = card()
    out = run(least_squares, data).check()
    slow = run(least_squares, data, solver=ji.picard(), step=1 / np.linalg.norm(data[0], 2) ** 2)
    expected = sklearn(*data)
    np.testing.assert_allclose(out.value, expected, atol=1e-4)
    np.testing.assert_array_equal(np.asarray(out.value) == 0, expected == 0)
    steps = int(out.solve.steps), int(slow.solve.steps)
    assert steps[0] <= 89 / 2.5 and steps[0] <= steps[1] / 2.5, steps
    assert out.dual is None


def test_the_logistic_lasso_is_scikit_learns():
    a, b, _ = card(1, 80, 30)
    b, lam = np.sign(b), 3.0
    model = LogisticRegression(l1_ratio=1, C=1 / lam, fit_intercept=False, solver="liblinear",
                               tol=1e-8, max_iter=10_000, random_state=0).fit(a, b)
    out = run(logistic, (a, b, lam)).check()
    np.testing.assert_allclose(out.value, model.coef_[0], atol=2e-3)


def test_a_step_that_is_a_thousandfold_too_long_shrinks():
    """Counts: exp overflows for what the curvature at 0 suggests; the gradient is not finite."""
    a, b, lam = card(2, 60, 8)
    a, b = 6 * a, np.random.default_rng(0).poisson(3.0, size=60).astype(float)
    out = run(poisson, (a, b, 5.0), max_steps=20_000)
    assert out.converged, out.message()

    def objective(x):
        return np.sum(np.exp(a @ x) - b * (a @ x)) + 5.0 * np.abs(x).sum()

    start = np.asarray(out.value, float)
    best = minimize(lambda z: objective(z[:8] - z[8:]), np.r_[np.maximum(start, 0),
                    np.maximum(-start, 0)], bounds=[(0, None)] * 16, method="L-BFGS-B")
    assert objective(start) <= best.fun + 1e-4 * abs(best.fun)
    assert out.solve.state.answer.memory.pace.changes > 0


@pytest.mark.parametrize("f, start, end", [
    (lambda x: jnp.sum((x - 1) ** 4), 100.0, 1 - 0.25 ** (1 / 3)),
    (lambda x: jnp.sum(jnp.exp(x) - 3 * x), 30.0, np.log(2)),
    (lambda x: jnp.sum(x - jnp.log(x)), 1e-3, 0.5),
])
def test_a_step_that_is_short_where_it_starts_grows(f, start, end):
    """Steps of the curvature at x0 would be so short in the end that the residual says nothing."""
    out = jax.jit(lambda x0: proximal_gradient(f, lambda v, step: prox_l1(v, step), x0))(
        jnp.full(3, start, jnp.float32)).check()
    np.testing.assert_allclose(out.value, end, atol=1e-3)
    assert out.solve.steps < 300


@pytest.mark.parametrize("push", [1.0, 1e4])
def test_a_gradient_that_a_bound_holds_says_nothing_of_the_others(push):
    """The first entry is held at 0 by a gradient of `push`; the others have little curvature."""
    bend, aim = jnp.asarray([1, 0.02, 0.02], jnp.float32), jnp.asarray([-push, 1, 1], jnp.float32)
    for options in ({}, {"solver": ji.picard()}):
        out = jax.jit(lambda x0, options=options: proximal_gradient(
            lambda x: 0.5 * jnp.sum(bend * (x - aim) ** 2),
            lambda v, step: prox_box(v, step, lower=0.0), x0, **options))(
                jnp.zeros(3, jnp.float32)).check()
        np.testing.assert_allclose(out.value, [0, 1, 1], atol=2e-2)


def test_where_the_gradient_is_never_finite_it_says_so():
    """A root outside its domain."""
    out = jax.jit(lambda x0: proximal_gradient(
        lambda x: jnp.sum(jnp.sqrt(x)), lambda v, step: prox_box(v, step, upper=-1.0), x0))(
            jnp.full(2, -2.0, jnp.float32))
    assert out.status == Status.NONFINITE


def test_the_derivative_in_the_penalty():
    a, b, lam = card()
    expected = sklearn(a, b, lam)
    on = expected != 0
    closed = np.zeros(200)
    closed[on] = -np.linalg.solve(a[:, on].T @ a[:, on], np.sign(expected[on]))

    @jax.jit
    def slopes(a, b, lam):
        return jax.jvp(lambda lam: proximal_gradient(
            least_squares, threshold, jnp.zeros(200, jnp.float32), a, b, lam).value,
            (lam,), (jnp.ones_like(lam),))[1]

    np.testing.assert_allclose(slopes(*floats(a, b, lam)), closed,
                               atol=1e-4 * np.abs(closed).max())


def test_complex_unknowns_and_a_given_step():
    target = {"u": jnp.array([3 + 4j, 0.1], jnp.complex64), "v": jnp.float32(2)}

    def f(x):
        return sum(jnp.sum(jnp.abs(x[k] - target[k]) ** 2) for k in x)

    for step in (None, 0.4):
        out = jax.jit(lambda x0, step=step: proximal_gradient(
            f, lambda v, step: prox_l1(v, step, 2.0), x0, step=step))(
                jax.tree.map(jnp.zeros_like, target)).check()
        np.testing.assert_allclose(out.value["u"], [2.4 + 3.2j, 0], atol=1e-4)
        np.testing.assert_allclose(out.value["v"], 1.0, atol=1e-4)


def test_many_by_lanes():
    problems = [floats(*card(seed, 30, 10)) for seed in range(5)]
    batch = [jnp.stack(leaves) for leaves in zip(*problems, strict=True)]
    split = descent(least_squares, threshold)
    many = ji.solve_many(split.problem, jnp.zeros((5, 10), jnp.float32), *batch, lanes=2,
                         solver=ji.anderson())
    values = jax.vmap(split.result)(many, *batch).check().value
    for seed, value in enumerate(values):
        np.testing.assert_allclose(value, sklearn(*card(seed, 30, 10)), atol=2e-4)


def test_bad_input():
    with pytest.raises(ValueError, match="step must be positive"):
        proximal_gradient(least_squares, threshold, jnp.zeros(8), *floats(*card(1, 20, 8)),
                          step=-1.0)
    found = jax.jit(lambda step: proximal_gradient(
        least_squares, threshold, jnp.zeros(8, jnp.float32), *floats(*card(1, 20, 8)),
        step=step).status)(jnp.float32(0))
    assert found == Status.BAD_INPUT
    with pytest.raises(TypeError, match="scalar"):
        proximal_gradient(lambda x: x, lambda v, step: v, jnp.zeros(2))
    with pytest.raises(ValueError, match="takes no resume"):
        regularisation_path(least_squares, threshold, jnp.zeros(8), jnp.ones(3), resume=3)
    for penalties in (1.0, {"a": jnp.ones(2), "b": jnp.ones(3)}):
        with pytest.raises(ValueError, match="common leading axis"):
            regularisation_path(least_squares, threshold, jnp.zeros(8), penalties)


@pytest.mark.slow
def test_conformance():
    check_front(partial(proximal_gradient, least_squares, threshold), jnp.zeros(10),
                *(jnp.asarray(x, jnp.zeros(0).dtype) for x in card(3, 30, 10)))


def residuals(x, lam, a, b):
    return 0.5 * jnp.sum((jnp.matmul(a, x) - b) ** 2)


def soft(v, step, lam, a, b):
    return prox_l1(v, step, lam)


def test_a_path_is_scikit_learns_and_has_derivatives():
    a, b, top = card(4, 60, 40, share=1.0)
    penalties = np.geomspace(top, 0.02 * top, 12)
    expected = lasso_path(a, b, alphas=penalties / 60, tol=1e-12, max_iter=100_000)[1].T

    def path(penalties, a, b):
        return regularisation_path(residuals, soft, jnp.zeros(40, jnp.float32), penalties, a, b)

    out = jax.jit(path)(*floats(penalties, a, b)).check()
    np.testing.assert_allclose(out.value, expected, atol=2e-3)
    assert out.solve.steps.shape == (12,) and out.solve.steps[0] <= 3
    # A cold start of the last one alone takes more than what the warm one took.
    cold = run(least_squares, (a, b, penalties[-1]))
    assert out.solve.steps[-1] < cold.solve.steps
    slopes = jax.jit(lambda p, a, b: jax.jvp(
        lambda p: path(p, a, b).value, (p,), (jnp.ones_like(p),))[1])(*floats(penalties, a, b))
    gradient = jax.jit(jax.grad(lambda p, a, b: jnp.sum(path(p, a, b).value)))(
        *floats(penalties, a, b))
    for row, slope in zip(expected[1:], slopes[1:], strict=True):
        on = row != 0
        closed = np.zeros(40)
        closed[on] = -np.linalg.solve(a[:, on].T @ a[:, on], np.sign(row[on]))
        np.testing.assert_allclose(slope, closed, atol=2e-3 * np.abs(closed).max())
    np.testing.assert_allclose(gradient, np.asarray(slopes).sum(1), rtol=1e-2, atol=1e-3)
