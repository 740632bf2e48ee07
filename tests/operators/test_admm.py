"""ADMM against Douglas-Rachford on the dual, closed forms, scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Lasso

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import admm, douglas_rachford, prox_l1, prox_quadratic
from jaxiter.testing import check_splitting


def quadratic(v, step, a, b, lam):
    return prox_quadratic(v, step, jnp.matmul(a.T, a), -jnp.matmul(b, a))


def threshold(v, step, a, b, lam):
    return prox_l1(v, step, lam)


def data(seed, m=30, n=8, unit=1.0):
    rng = np.random.default_rng(seed)
    a = rng.normal(size=(m, n))
    b = unit * (a @ np.maximum(rng.normal(size=n), 0) + 0.1 * rng.normal(size=m))
    return a, b, 2.0 * unit


def floats(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def sklearn(a, b, lam):
    return Lasso(alpha=lam / len(b), fit_intercept=False, tol=1e-14, max_iter=10**6).fit(a, b).coef_


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_the_lasso_in_any_unit(unit):
    """The penalty finds its way, whatever the data are measured in."""
    problem = data(0, unit=unit)
    out = jax.jit(lambda *data: ji.solve_splitting(
        admm(quadratic, threshold), jnp.zeros(8, jnp.float32), *data))(*floats(*problem)).check()
    expected = sklearn(*problem)
    np.testing.assert_allclose(out.value / unit, expected / unit, atol=1e-3)
    a, b, lam = problem
    np.testing.assert_allclose(
        out.dual / unit, -a.T @ (a @ expected - b) / unit, atol=2e-2)


def test_a_far_penalty_is_balanced_and_the_map_then_stays():
    """The units of A x are those of x a millionfold: the penalty 1 is wrong by 1e6 or so."""
    problem = data(1)
    scaled = problem[0] * 1e3, problem[1] * 1e3, problem[2] * 1e6

    def run(penalty):
        return jax.jit(lambda *data: ji.solve_splitting(
            admm(quadratic, threshold, penalty=penalty), jnp.zeros(8, jnp.float32), *data,
            max_steps=3000))(*floats(*scaled))

    balanced = run(None).check()
    np.testing.assert_allclose(balanced.value, sklearn(*problem), atol=1e-3)
    memory = balanced.solve.state.answer.memory
    assert 1e4 < memory.now < 1e9 and 1 <= memory.epoch <= 10
    assert balanced.solve.steps < 100
    far = run(1.0)
    assert not far.converged or far.solve.steps > 1000


def test_short_moves_under_a_far_penalty_prove_nothing():
    """It begins too large by 1e6: from 1 this was CONVERGED at once, and from 0 DIVERGED."""
    a, b, lam = data(1)
    scaled = floats(2e-4 * a, 2e-4 * b, 4e-8 * lam)
    solve = jax.jit(lambda x0, *data: ji.solve_splitting(admm(quadratic, threshold), x0, *data))
    for start in (jnp.zeros(8, jnp.float32), jnp.ones(8, jnp.float32)):
        out = solve(start, *scaled).check()
        np.testing.assert_allclose(out.value, sklearn(a, b, lam), atol=1e-3)


def test_it_is_douglas_rachford_step_by_step(x64):
    """Of both functions with z = w + u, and, in numpy, of the dual with the multiplier."""
    a, b, lam = data(2)
    rho, k = 3.0, 6
    args = tuple(map(jnp.asarray, (a, b, lam)))
    w, u = ji.solve_splitting(
        admm(quadratic, threshold, penalty=rho), jnp.zeros(8), *args, max_steps=k,
        stop=ji.tolerance(0.0, 1e-30)).solve.value
    z = ji.solve_splitting(
        douglas_rachford(threshold, quadratic, step_size=1 / rho), jnp.zeros(8), *args,
        max_steps=k, stop=ji.tolerance(0.0, 1e-30)).solve.value
    np.testing.assert_allclose(w + u, z, atol=1e-12)

    def conjugate(prox, v, step):  # of f*, by Moreau
        return v - step * prox(v / step, 1 / step)

    inverse = np.linalg.inv(np.eye(8) + a.T @ a / rho)
    near = lambda v, t: inverse @ (v + a.T @ b / rho)  # noqa: E731
    soft = lambda v, t: np.sign(v) * np.maximum(np.abs(v) - lam * t, 0)  # noqa: E731
    # max over y: -f*(-y) - g*(y), whose iterate is the multiplier less what w adds.
    s = np.zeros(8)
    for _ in range(k - 1):
        y = conjugate(soft, s, rho)
        s = s + -conjugate(near, -(2 * y - s), rho) - y
    np.testing.assert_allclose(rho * u, conjugate(soft, s, rho), atol=1e-11)


def test_general_constraints():
    """min |x - p|^2 / 2 + |w|_1, D x - 2 w = c: total variation about a slope, by optimality."""
    n, rng = 12, np.random.default_rng(3)
    d, p, c = np.diff(np.eye(n), axis=0), rng.normal(size=n), 0.3 * np.ones(n - 1)

    def prox_f(v, step, d, p):
        matrix = jnp.eye(n, dtype=v.dtype) + jnp.matmul(d.T, d) / step
        return jnp.linalg.solve(matrix, p + jnp.matmul(v, d) / step)

    def prox_g(v, step, d, p):  # argmin |w|_1 + |-2 w - v|^2 / (2 step)
        return prox_l1(-v / 2, step / 4)

    split = admm(prox_f, prox_g, A=(lambda x, d, p: jnp.matmul(d, x), lambda y, d, p: y @ d),
                 B=(lambda w, d, p: -2 * w, lambda y, d, p: -2 * y),
                 c=lambda d, p: jnp.full(n - 1, 0.3, d.dtype))
    out = jax.jit(lambda *data: ji.solve_splitting(split, jnp.zeros(n, jnp.float32), *data))(
        *floats(d, p)).check()
    x, w = np.asarray(out.value, float), np.asarray(out.solve.value[0], float)
    np.testing.assert_allclose(d @ x - 2 * w, c, atol=1e-3)
    # Optimality: x - p + D' y = 0, 2 y in the subdifferential of |w|_1.
    y = np.asarray(out.dual, float)
    np.testing.assert_allclose(x - p + d.T @ y, 0, atol=2e-3)
    assert np.all(np.abs(2 * y) <= 1 + 2e-3)
    np.testing.assert_allclose((2 * y)[np.abs(w) > 1e-3],
                               np.sign(w)[np.abs(w) > 1e-3], atol=2e-3)


def test_it_is_nonexpansive_as_it_says(x64):
    args = tuple(map(jnp.asarray, data(4)))
    split = admm(quadratic, threshold, penalty=2.0)
    m = split.problem.memory((jnp.zeros(8), jnp.zeros(8)), *args)
    image = jax.vmap(lambda s: split.problem.step(s, m, *args)[0])
    u, v = ((3 * jax.random.normal(key, (200, 8)), jax.random.normal(key, (200, 8)))
            for key in jax.random.split(jax.random.key(1)))
    assert split.averaged == 1.0

    def apart(a, b):
        return sum(jnp.sum((x - y) ** 2, 1) for x, y in zip(a, b, strict=True))

    assert jnp.all(apart(image(u), image(v)) <= apart(u, v) * (1 + 1e-9))


def test_the_derivative_is_that_of_differences(x64):
    a, b, lam = map(jnp.asarray, data(5))

    @jax.jit
    def value(lam):
        out = ji.solve_splitting(admm(quadratic, threshold), jnp.zeros(8), a, b, lam,
                                 stop=ji.tolerance(1e-12, 1e-13), solver=ji.anderson())
        return jnp.concatenate([out.value, out.dual])

    h = 1e-4
    np.testing.assert_allclose(jax.jacfwd(value)(lam), (value(lam + h) - value(lam - h)) / (2 * h),
                               atol=1e-6)


def test_bad_penalties():
    with pytest.raises(ValueError, match="penalty must be positive"):
        admm(quadratic, threshold, penalty=0.0)
    with pytest.raises(TypeError, match="give the pair"):
        admm(quadratic, threshold, B=lambda w: w)
    found = jax.jit(lambda penalty: ji.solve_splitting(
        admm(quadratic, threshold, penalty=penalty), jnp.zeros(8, jnp.float32),
        *floats(*data(0))).status)(jnp.float32(-1))
    assert found == Status.BAD_INPUT


@pytest.mark.slow
@pytest.mark.parametrize("penalty", [None, 5.0])
def test_conformance(penalty):
    kind = jnp.zeros(0).dtype
    check_splitting(admm(quadratic, threshold, penalty=penalty), jnp.zeros(8),
                    *(jnp.asarray(x, kind) for x in data(9)))
