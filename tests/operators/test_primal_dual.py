"""Primal-dual splitting against linear programs, a closed form of total variation, scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO, BCSR
from scipy.optimize import linprog, lsq_linear
from sklearn.linear_model import Lasso

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import primal_dual, prox_box, prox_l1
from jaxiter.testing import check_splitting


def near(v, step, b, *_):
    """Of `|x - b|^2 / 2`."""
    return (v + step * b) / (1 + step)


def threshold(v, step, *_):
    return prox_l1(v, step, 0.5)


def differences(n):
    return np.diff(np.eye(n), axis=0)


def total_variation(b, weight):
    """`argmin |x - b|^2 / 2 + weight |D x|_1` by its dual, a box of differences."""
    d = differences(len(b))
    dual = lsq_linear(d.T, b, (-weight, weight), tol=1e-14).x
    return b - d.T @ dual, dual


def floats(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


SIGNAL = np.repeat([0.0, 2.0, -1.0], 5) + 0.3 * np.random.default_rng(0).normal(size=15)
WAYS = {
    "matrix": jnp.asarray(differences(15), jnp.float32),
    "sparse": BCOO.fromdense(jnp.asarray(differences(15), jnp.float32)),
    "function": lambda x, *_: jnp.diff(x),
    "pair": (lambda x, *_: jnp.diff(x),
             lambda y, *_: -jnp.diff(jnp.pad(y, 1))),
}


@pytest.mark.parametrize("way", WAYS)
def test_total_variation_however_the_map_is_given(way):
    x, y = total_variation(SIGNAL, 0.5)
    split = primal_dual(near, threshold, WAYS[way])
    assert split.averaged == 0.5
    out = jax.jit(lambda b: ji.solve_splitting(split, jnp.zeros(15, jnp.float32), b))(
        *floats(SIGNAL)).check()
    np.testing.assert_allclose(out.value, x, atol=1e-3)
    np.testing.assert_allclose(out.dual, y, atol=2e-3)


def test_a_linear_program_and_its_multipliers():
    """min c x, A x = b, x >= 0: h is the indicator of b."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 12))
    x = np.maximum(rng.normal(size=12), 0)
    c = a.T @ rng.normal(size=6) + np.where(x > 0, 0, rng.uniform(size=12))
    expected = linprog(c, A_eq=a, b_eq=a @ x)
    split = primal_dual(
        lambda v, t, a, b, c: prox_box(v - t * c, t, lower=0.0),
        lambda v, t, a, b, c: b,
        (lambda x, a, b, c: jnp.matmul(a, x), lambda y, a, b, c: jnp.matmul(y, a)))
    out = jax.jit(lambda *data: ji.solve_splitting(
        split, jnp.zeros(12, jnp.float32), *data, solver=ji.anderson(), max_steps=5000,
        stop=ji.tolerance(rtol=1e-6)))(*floats(a, a @ x, c)).check()
    np.testing.assert_allclose(c @ np.asarray(out.value), expected.fun, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(out.dual, -expected.eqlin.marginals, atol=2e-3)


@pytest.mark.parametrize("smooth", [False, True])
def test_the_units_of_an_objective_do_not_matter(smooth):
    """c (|x - b|^2 / 2 + |D x|_1 / 2), c from 1e-6 to 1e6; the dual is c times that of c = 1."""
    x, y = total_variation(SIGNAL, 0.5)
    split = primal_dual(
        (lambda v, t, b, c: v) if smooth else (lambda v, t, b, c: (v + t * c * b) / (1 + t * c)),
        lambda v, t, b, c: prox_l1(v, t, 0.5 * c), WAYS["function"],
        gradient=(lambda x, b, c: c * (x - b)) if smooth else None)
    units = np.array([1e-6, 1e-3, 1.0, 1e3, 1e6])

    weights = np.random.default_rng(3).normal(size=15)

    def weighted(b, unit):
        out = ji.solve_splitting(split, jnp.zeros(15, jnp.float32), b, unit)
        return jnp.sum(jnp.asarray(weights, jnp.float32) * out.value), (
            out.value, out.dual, out.status, out.solve.steps)

    slope, (value, dual, status, steps) = jax.jit(jax.vmap(
        jax.grad(weighted, has_aux=True), (None, 0)))(*floats(SIGNAL, units))
    assert np.all(status == Status.CONVERGED) and np.all(steps <= 250), steps
    np.testing.assert_allclose(value, np.tile(x, (5, 1)), atol=1e-3)
    np.testing.assert_allclose(dual / units[:, None], np.tile(y, (5, 1)), atol=2e-3)
    # Where x is constant, each entry of b moves the mean.
    group = np.cumsum(np.append(0, np.abs(np.diff(x)) > 1e-6))
    means = np.bincount(group, weights) / np.bincount(group)
    np.testing.assert_allclose(slope, np.tile(means[group], (5, 1)), atol=1e-4)


def test_steps_that_grow_are_no_divergence():
    """Moves become a thousand times as long; the merits of each map have a minimum of their own."""
    split = primal_dual(lambda v, t, b: (v + t * 1e-6 * b) / (1 + t * 1e-6),
                        lambda v, t, b: prox_l1(v, t, 0.5e-6), WAYS["function"])
    out = ji.solve_splitting(split, jnp.zeros(15, jnp.float32), *floats(SIGNAL), stop=ji.any_of(
        ji.tolerance(), ji.divergence(patience=5))).check()
    np.testing.assert_allclose(out.value, total_variation(SIGNAL, 0.5)[0], atol=1e-3)


def test_an_answer_of_zero_and_a_dual_that_rests():
    """A lasso whose weight is too large; bounds on differences that hold by themselves."""
    a, b, lam = lasso(2, 20, 15)
    zero = primal_dual(lambda v, t, *_: prox_l1(v, t, 20 * lam), near, jnp.asarray(
        a, jnp.float32))
    idle = primal_dual(near, lambda v, t, *_: prox_box(v, t, -1e3, 1e3), WAYS["function"])
    out = ji.solve_splitting(zero, jnp.zeros(15, jnp.float32), *floats(b)).check()
    assert np.all(np.asarray(out.value) == 0)
    np.testing.assert_allclose(out.dual, -b, rtol=1e-4, atol=1e-5)
    out = ji.solve_splitting(idle, jnp.zeros(15, jnp.float32), *floats(SIGNAL)).check()
    np.testing.assert_allclose(out.value, SIGNAL, rtol=1e-4)
    assert np.all(np.asarray(out.dual) == 0)


def lasso(seed=0, m=100, n=200):
    rng = np.random.default_rng(seed)
    a, x = rng.normal(size=(m, n)), np.zeros(n)
    x[:10] = rng.normal(size=10)
    b = a @ x + 0.1 * rng.normal(size=m)
    return a, b, 0.1 * np.abs(a.T @ b).max()


def test_the_ratio_of_the_steps_matters_tenfold_as_on_the_card(x64):
    """Errors 1e-3, 1e-6, 1e-9: 17, 31, 46 steps at r = 0.1; 36, 82, 114 at 1; 234, 674, 732."""
    a, b, lam = lasso()
    norm = np.linalg.norm(a, 2)

    @jax.jit
    def run(ratio, steps):
        split = primal_dual(
            lambda v, t: prox_l1(v, t, lam), lambda v, t: (v + t * b) / (1 + t), jnp.asarray(a),
            tau=0.99 * ratio / norm, sigma=0.99 / ratio / norm)
        return ji.solve_splitting(split, jnp.zeros(200), max_steps=steps,
                                  stop=ji.tolerance(0.0, 1e-14)).value

    def error(ratio, maps):
        x = np.asarray(run(ratio, maps + 1))  # the value is one map behind
        f = 0.5 * np.sum((a @ x - b) ** 2) + lam * np.abs(x).sum()
        return f / 123.27492302879436 - 1

    for ratio, counts in ((0.1, (17, 31, 46)), (1.0, (36, 82, 114)), (10.0, (234, 674, 732))):
        for level, maps in zip((1e-3, 1e-6, 1e-9), counts, strict=True):
            assert error(ratio, maps) <= level < error(ratio, maps - 1), (ratio, level)


def test_with_a_gradient_it_is_condat_and_vus():
    """The lasso with a bound on its first differences, against a long run of nothing of ours."""
    a, b, lam = lasso(1, 40, 15)
    k = jnp.asarray(differences(15), jnp.float32)
    split = primal_dual(
        lambda v, t, *_: prox_l1(v, t, lam), lambda v, t, *_: prox_box(v, t, -1e3, 1e3), k,
        gradient=lambda x, a, b: jnp.matmul(jnp.matmul(a, x) - b, a))
    assert split.averaged == 2 / 3
    out = jax.jit(lambda *data: ji.solve_splitting(split, jnp.zeros(15, jnp.float32), *data))(
        *floats(a, b)).check()
    expected = Lasso(alpha=lam / len(b), fit_intercept=False, tol=1e-12).fit(a, b).coef_
    np.testing.assert_allclose(out.value, expected, atol=2e-4)
    np.testing.assert_allclose(out.dual, 0, atol=1e-3)


@pytest.mark.parametrize("smooth", [False, True])
def test_it_is_averaged_in_its_metric(smooth, x64):
    k = jnp.asarray(np.random.default_rng(1).normal(size=(6, 9)))
    q = jnp.asarray(np.random.default_rng(2).normal(size=(9, 9)))
    split = primal_dual(
        lambda v, t: prox_box(v, t, -1.0, 1.0), threshold, k,
        gradient=(lambda x: jnp.matmul(q.T, jnp.matmul(q, x))) if smooth else None)
    m = split.problem.memory((jnp.ones(9), jnp.zeros(6)))
    unit = jnp.sqrt(m.sigma / m.tau)

    def metric(s):
        x, y = s[0], unit * s[1]
        return (jnp.sum(x * x, 1) / m.tau + jnp.sum(y * y, 1) / m.sigma
                - 2 * jnp.sum(y * jnp.matmul(x, k.T), 1))

    keys = jax.random.split(jax.random.key(0), 2)
    u, v = ((jax.random.normal(key, (200, 9)), jax.random.normal(key, (200, 6))) for key in keys)
    image = jax.vmap(lambda s: split.problem.step(s, m)[0])
    minus = lambda a, b: jax.tree.map(jnp.subtract, a, b)  # noqa: E731
    tu, tv = image(u), image(v)
    moved = minus(minus(u, tu), minus(v, tv))
    bound = metric(minus(u, v)) - (1 / split.averaged - 1) * metric(moved)
    assert jnp.all(metric(minus(tu, tv)) <= bound * (1 + 1e-9))


def test_steps_that_are_too_long_are_refused():
    k = jnp.asarray(differences(15), jnp.float32)
    with pytest.raises(ValueError, match=r"tau sigma \|K\|\^2 must be below 1, got 3\."):
        primal_dual(near, threshold, k, tau=1.0, sigma=1.0)
    for sparse in (BCOO.fromdense(k), BCSR.fromdense(k)):
        with pytest.raises(ValueError, match=r"must be below 1"):  # in a trace as well
            jax.jit(lambda b, k=sparse: ji.solve_splitting(
                primal_dual(near, threshold, k, tau=1.0, sigma=1.0), b, b))(*floats(SIGNAL))
    with pytest.raises(ValueError, match="sigma must be positive"):
        primal_dual(near, threshold, k, sigma=0.0)

    def status(tau, sigma):
        return ji.solve_splitting(primal_dual(near, threshold, k, tau=tau, sigma=sigma),
                                  jnp.zeros(15, jnp.float32), *floats(SIGNAL)).status

    found = jax.jit(jax.vmap(status))(*floats([-1.0, 1.0, 0.5, jnp.nan], [1.0, 1.0, 0.45, 1.0]))
    assert found.tolist() == [Status.BAD_INPUT, Status.BAD_INPUT, Status.CONVERGED,
                              Status.BAD_INPUT]


def test_one_step_gives_the_other():
    k = jnp.asarray(differences(15), jnp.float32)
    start = (jnp.zeros(15, jnp.float32), jnp.zeros(14, jnp.float32))
    for given in ({"tau": 0.1}, {"sigma": 0.1}, {}):
        m = primal_dual(near, threshold, k, **given).problem.memory(start, *floats(SIGNAL))
        assert 0.9 < m.tau * m.sigma * np.linalg.norm(k, 2) ** 2 < 1
        assert all(np.isclose(getattr(m, name), value) for name, value in given.items())


@pytest.mark.slow
def test_conformance():
    kind = jnp.zeros(0).dtype
    split = primal_dual(near, threshold, lambda x, *_: jnp.diff(x))
    check_splitting(split, jnp.zeros(15), jnp.asarray(SIGNAL, kind))
