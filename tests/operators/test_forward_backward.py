"""Forward-backward splitting against scikit-learn, scipy and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import nnls
from sklearn.linear_model import Lasso

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import forward_backward, prox_box, prox_l1
from jaxiter.testing import check_splitting


def slope(x, a, b, lam):
    return jnp.matmul(jnp.matmul(a, x) - b, a)


LASSO = forward_backward(slope, lambda v, step, a, b, lam: prox_l1(v, step, lam))


def card(seed=0, m=100, n=200, share=0.1):
    """The lasso of the method cards."""
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(m, n))
    x = np.zeros(n)
    x[:min(10, n // 2)] = rng.normal(size=min(10, n // 2))
    b = a @ x + 0.1 * rng.normal(size=m)
    return a, b, share * np.abs(a.T @ b).max()


def sklearn(a, b, lam, positive=False):
    return Lasso(alpha=lam / len(b), fit_intercept=False, tol=1e-12, max_iter=100_000,
                 positive=positive).fit(a, b).coef_


def objective(x, a, b, lam):
    x = np.asarray(x, np.float64)
    return 0.5 * np.sum((a @ x - b) ** 2) + lam * np.abs(x).sum()


def test_the_lasso_is_scikit_learns_and_accelerates():
    a, b, lam = card()
    best = objective(sklearn(a, b, lam), a, b, lam)
    np.testing.assert_allclose(best, 123.274923, rtol=1e-7)
    data = [jnp.asarray(v, jnp.float32) for v in (a, b, lam)]
    steps = {}
    averaged = LASSO.averaged
    for name, solver in {
        "picard": None, "anderson": ji.anderson(),
        "halpern": optax.chain(optax.scale(1 / averaged), ji.halpern("adaptive")),
    }.items():
        out = jax.jit(lambda *data, s=solver: ji.solve_splitting(
            LASSO, jnp.zeros(200, jnp.float32), *data, solver=s))(*data)
        assert out.converged and out.dual is None, out.message()
        np.testing.assert_allclose(objective(out.value, a, b, lam), best, rtol=1e-5)
        steps[name] = int(out.solve.steps)
    assert steps["anderson"] <= steps["picard"] / 2, steps
    assert steps["halpern"] <= 2 * steps["picard"], steps


def test_the_rate_of_the_card(x64):
    """Errors 1e-3, 1e-6 and 1e-9 of the objective after 38, 68 and 99 maps, at step 1 / L."""
    a, b, lam = card()
    split = forward_backward(slope, lambda v, step, a, b, lam: prox_l1(v, step, lam),
                             step_size=1 / np.linalg.norm(a, 2) ** 2)
    run = jax.jit(lambda steps: ji.solve_splitting(
        split, jnp.zeros(200), jnp.asarray(a), jnp.asarray(b), lam, max_steps=steps,
        stop=ji.tolerance(0.0, 1e-14)).value)
    for level, maps in ((1e-3, 38), (1e-6, 68), (1e-9, 99)):
        # The value is the point that was evaluated last: one map behind.
        errors = [objective(run(n), a, b, lam) / 123.27492302879436 - 1 for n in (maps + 1, maps)]
        assert errors[0] <= level < errors[1]


def test_non_negative_least_squares_with_a_given_step():
    a, b, _ = card(1, 30, 8)
    expected, _ = nnls(a, b - 1)
    size = 1 / np.linalg.norm(a, 2) ** 2
    split = forward_backward(
        lambda x, a, b: slope(x, a, b, 0), lambda v, t, a, b: prox_box(v, t, lower=0.0),
        step_size=size)
    assert split.averaged is None  # L is not known
    out = jax.jit(lambda *data: ji.solve_splitting(split, jnp.zeros(8, jnp.float32), *data))(
        *(jnp.asarray(v, jnp.float32) for v in (a, b - 1)))
    assert out.converged
    np.testing.assert_allclose(out.value, expected, atol=1e-4)


def test_the_derivative_in_the_penalty(x64):
    a, b, lam = card(2, 40, 20)

    @jax.jit
    def weights(lam):
        return ji.solve_splitting(LASSO, jnp.zeros(20), jnp.asarray(a), jnp.asarray(b), lam,
                                  solver=ji.anderson(), stop=ji.tolerance(1e-12, 0.0)).value

    slopes = jax.jacobian(weights)(lam)
    h = 1e-4 * lam
    np.testing.assert_allclose(
        slopes, (weights(lam + h) - weights(lam - h)) / (2 * h), atol=1e-8)
    support = np.abs(sklearn(a, b, lam)) > 0
    closed = -np.linalg.solve(a[:, support].T @ a[:, support], np.sign(weights(lam)[support]))
    np.testing.assert_allclose(slopes[support], closed, atol=1e-8)
    assert np.all(slopes[~support] == 0)


def test_complex_trees():
    target = {"u": jnp.array([3 + 4j, 0.1], jnp.complex64), "v": jnp.array(2.0)}
    split = forward_backward(
        lambda x: jax.tree.map(lambda x, b: 2 * (x - b), x, target),
        lambda v, step: prox_l1(v, step, 2.0))
    out = jax.jit(lambda x0: ji.solve_splitting(split, x0))(jax.tree.map(jnp.zeros_like, target))
    assert out.converged
    np.testing.assert_allclose(out.value["u"], [2.4 + 3.2j, 0], atol=1e-4)
    np.testing.assert_allclose(out.value["v"], 1.0, atol=1e-4)


def test_bad_steps():
    with pytest.raises(ValueError, match="step_size must be positive"):
        forward_backward(slope, prox_l1, step_size=0.0)
    data = [jnp.asarray(v, jnp.float32) for v in card(1, 30, 8)]

    def status(size):
        split = forward_backward(slope, lambda v, t, a, b, lam: prox_l1(v, t, lam),
                                 step_size=size)
        return ji.solve_splitting(split, jnp.zeros(8, jnp.float32), *data).status

    # Signs and twice too long, in one program.
    norm = np.linalg.norm(data[0], 2) ** 2
    found = jax.jit(jax.vmap(status))(jnp.array([-1.0, jnp.nan, 3 / norm, 1 / norm]))
    assert found[0] == found[1] == Status.BAD_INPUT and found[3] == Status.CONVERGED
    assert found[2] not in (Status.CONVERGED, Status.PRECISION_FLOOR)


@pytest.mark.slow  # the default run has that of Douglas-Rachford
def test_conformance():
    a, b, lam = card(3, 30, 10)
    check_splitting(LASSO, jnp.zeros(10), *(jnp.asarray(v, jnp.zeros(0).dtype)
                                            for v in (a, b, lam)))
