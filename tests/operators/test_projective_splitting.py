"""Projective splitting on the lasso in row blocks, against scikit-learn and closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import jaxiter as ji
from jaxiter.operators import projective_splitting, prox_l1
from jaxiter.testing import check_front


def lasso():
    rng = np.random.default_rng(0)
    a, x = rng.normal(size=(100, 200)), np.zeros(200)
    x[:10] = rng.normal(size=10)
    b = a @ x + 0.1 * rng.normal(size=100)
    return a, b, 0.1 * np.abs(a.T @ b).max()


A, B, LAM = lasso()
BEST = 123.274923


def shrink(v, step, lam):
    return prox_l1(v, step, lam)


def squares(v, step, block, lam):
    return (v + step * block[1]) / (1 + step)


def rows(count):
    return (jnp.asarray(A.reshape(count, -1, 200), jnp.float32),
            jnp.asarray(B.reshape(count, -1), jnp.float32))


def product(x, block):
    return jnp.matmul(block[0], x)


SOLVE = partial(projective_splitting, shrink, squares, product, jnp.zeros(200))


def objective(x):
    x = np.asarray(x, float)
    return 0.5 * np.sum((A @ x - B) ** 2) + LAM * np.abs(x).sum()


@pytest.mark.parametrize(("count", "probability", "relaxation", "steps"), [
    (1, 1.0, 1.0, 106), (4, 1.0, 1.0, 120), (4, 0.5, 1.0, 307),
    (4, 0.5, ((1.2, 2.4), (0.75, 0.25)), 179)])
def test_steps_to_a_millionth_of_the_objective(count, probability, relaxation, steps):
    """Of the card, for its draws; at probability 1/2 the same work, and lam beyond 2 converges."""
    run = jax.jit(lambda most: SOLVE(
        rows(count), LAM, key=jax.random.key(1), probability=probability, relaxation=relaxation,
        stop=ji.stop.never(), max_steps=most).value)
    reached = [k for k in (0.5, 0.75, 1.0, 1.25, 1.5) if objective(run(int(k * steps)))
               <= BEST * (1 + 1e-6)]
    assert reached


def test_the_answer_its_dual_and_derivative_in_the_penalty():
    model = Lasso(alpha=LAM / 100, fit_intercept=False, tol=1e-12, max_iter=10**5).fit(A, B)
    support = np.abs(model.coef_) > 1e-9
    slope = np.zeros(200)
    slope[support] = -np.linalg.solve(A[:, support].T @ A[:, support],
                                      np.sign(model.coef_[support]))

    def answer(lam):
        out = SOLVE(rows(4), lam, key=jax.random.key(0), probability=0.5, max_steps=3000)
        return out.value, out

    value, dot, out = jax.jit(lambda lam: jax.jvp(answer, (lam,), (1.0,), has_aux=True))(LAM)
    assert out.converged
    np.testing.assert_allclose(value, model.coef_, atol=1e-3)
    np.testing.assert_allclose(out.dual.reshape(-1), A @ model.coef_ - B, atol=1e-2)
    np.testing.assert_allclose(dot, slope, atol=1e-3)


def test_distances_to_the_solution_never_grow(x64):
    """Fejer: in the units of the method, for lam in (0, 2)."""
    solve = partial(projective_splitting, shrink, squares, product, jnp.zeros(200, float))
    run = jax.jit(lambda most: solve(
        (jnp.asarray(A.reshape(4, 25, 200)), jnp.asarray(B.reshape(4, 25))), LAM,
        key=jax.random.key(2), probability=0.3, relaxation=1.7, stop=ji.stop.never(),
        max_steps=most).solve.value)
    end = run(6000)
    assert end.merit < 1e-6
    away = [float(jnp.sum((s.x - end.x) ** 2) + jnp.sum((s.v - end.v) ** 2))
            for s in map(run, range(1, 60, 3))]
    assert np.all(np.diff(away) <= 1e-9) and away[-1] < 0.5 * away[0]


@pytest.mark.slow
def test_the_front():
    def front(b, **options):
        return projective_splitting(
            lambda v, step: prox_l1(v, step), lambda v, step, b: (v + step * b) / (1 + step),
            lambda x, b: x, jnp.zeros(2), b, key=jax.random.key(0), probability=0.5, **options)

    check_front(front, jnp.array([[2.0, 3.0], [4.0, -1.0], [1.0, 0.5]]))


def test_bad_input():
    solve = partial(SOLVE, rows(4), LAM, key=jax.random.key(0))
    with pytest.raises(ValueError, match="probability must be in"):
        solve(probability=0.0)
    with pytest.raises(ValueError, match=r"E\[lam \(2 - lam\)\] >= 0: the mean is -0.5"):
        solve(relaxation=((1.0, 3.0), (0.625, 0.375)))
    with pytest.raises(ValueError, match="leading axes"):
        SOLVE((rows(4)[0], rows(2)[1]), LAM, key=jax.random.key(0))
    with pytest.raises(ValueError, match="takes no solver"):
        solve(solver=ji.anderson())
