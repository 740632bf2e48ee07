"""Steps, Barzilai-Borwein lengths and bracketed roots against numpy and scipy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize
from jax.test_util import check_grads

from jaxiter.line_search import barzilai_borwein, halve, monotone_root


def test_halving_is_a_loop_in_numpy_and_takes_nothing_that_is_not_finite():
    seen = []

    def evaluate(limit):
        def run(step):
            jax.debug.callback(lambda s: seen.append(float(s)), step)
            return {"f": jnp.log(limit - step), "count": jnp.int32(7)}
        return run

    @jax.jit
    def one(limit, least):
        return halve(evaluate(limit), lambda step, v: ~(v["f"] < least), jnp.float32(8), 5)

    limits, leasts = np.float32([3, 9, 1.1, 1e-9]), np.float32([0.6, -5, -9, 0])
    for limit, least in zip(limits, leasts, strict=True):
        seen.clear()
        trial = one(limit, least)
        jax.effects_barrier()
        step, tries = np.float32(8), 1
        with np.errstate(invalid="ignore", divide="ignore"):
            while not np.log(limit - step) >= least and tries < 6:
                step, tries = step / 2, tries + 1
            good = np.log(limit - step) >= least
        assert (float(trial.step), int(trial.tries), bool(trial.accepted)) == (step, tries, good)
        assert seen == [8 / 2**k for k in range(tries)]  # no length twice
        assert trial.value["count"] == 7
        if good:
            np.testing.assert_allclose(trial.value["f"], np.log(limit - step), rtol=1e-6)
    batch = jax.vmap(one)(limits, leasts)
    np.testing.assert_array_equal(batch.accepted, [True, True, True, False])
    for k in range(4):
        np.testing.assert_array_equal(batch.step[k], one(limits[k], leasts[k]).step)


@pytest.mark.parametrize("kind", ["long", "short", "mean"])
def test_barzilai_borwein_at_any_scale(kind):
    rng = np.random.default_rng(0)
    x, scales = rng.normal(size=7), rng.uniform(0.1, 5, size=7)
    g = scales * x
    exact = {"long": x @ x / (x @ g), "short": x @ g / (g @ g),
             "mean": np.sqrt(x @ x / (g @ g))}[kind]
    run = jax.jit(lambda dx, dg: barzilai_borwein(dx, dg, kind, 1e-35, 1e35))
    for a, b in ((1, 1), (1e-30, 1e-30), (1e30, 1e30), (1e-20, 1e10)):
        dx, dg = ({"u": jnp.float32(s * v[:3]), "v": jnp.float32(s * v[3:])}
                  for s, v in ((a, x), (b, g)))
        np.testing.assert_allclose(run(dx, dg), exact * a / b, rtol=1e-5)
    one = jax.tree.map(jnp.ones_like, dx)
    none, bad = jax.tree.map(jnp.zeros_like, one), jax.tree.map(lambda v: v / 0, one)
    assert run(one, none) == run(none, none) == jnp.float32(1e35)
    assert run(one, bad) == run(bad, one) == jnp.float32(1e-35)
    down = jax.tree.map(lambda v: -2 * v, one)
    assert run(one, down) == (0.5 if kind == "mean" else jnp.float32(1e35))
    half = jnp.float16([3, 4])
    np.testing.assert_allclose(barzilai_borwein(half, 2 * half, kind), 0.5)


def test_barzilai_borwein_knows_its_kinds():
    with pytest.raises(ValueError, match="kind"):
        barzilai_borwein(jnp.ones(2), jnp.ones(2), "longest")


#: Functions of (x, theta) with a root between the bounds for theta in (0.1, 5).
MONOTONE = {
    "cube": (lambda x, t, np: x**3 - t, -1e6, 1e6),
    "falling": (lambda x, t, np: t - x - np.exp(x), -50.0, 50.0),
    "flat": (lambda x, t, np: (x - t) ** 5, -10.0, 30.0),
    "steep": (lambda x, t, np: np.tanh(1e4 * (x - t)) + 1e-3 * (x - t), -1e3, 1e6),
    "tiny": (lambda x, t, np: x * 1e20 - t, 0.0, 1e30),
    "jump": (lambda x, t, np: np.where(x < t, -1.0, 5.0) + 0 * x, -1e8, 1e8),
}


@pytest.mark.parametrize("name", MONOTONE)
def test_roots_to_the_last_digit(name):
    f, low, high = MONOTONE[name]
    theta = np.random.default_rng(0).uniform(0.1, 5, size=(3, 4)).astype(np.float32)
    evaluations = []

    def run(theta):
        def function(x):
            jax.debug.callback(lambda: evaluations.append(1))
            return f(x, theta, jnp)

        return monotone_root(function, jnp.float32(low), jnp.full(theta.shape, high, jnp.float32))

    root = np.asarray(jax.jit(run)(theta))
    jax.effects_barrier()
    assert 2 < len(evaluations) <= 68
    below, above = (np.nextafter(root, np.float32(side)) for side in (-np.inf, np.inf))
    values = [np.asarray(f(jnp.asarray(x), jnp.asarray(theta), jnp)) for x in (below, root, above)]
    # The function changes its sign at the root, as this arithmetic has it, and is smallest there.
    assert np.all((values[1] == 0) | (values[0] * values[1] <= 0) | (values[1] * values[2] <= 0))
    if name not in ("jump", "steep"):
        exact = np.vectorize(lambda t: scipy.optimize.brentq(
            lambda x: f(x, float(t), np), low, high, xtol=1e-300, maxiter=1000))(theta)
        np.testing.assert_allclose(root, exact, rtol=1e-2 if name == "flat" else 3e-7)


def test_no_root_and_nan_are_nan():
    def function(x):
        return jnp.where(x > 100, jnp.nan, x) - jnp.float32([0.5, 3.0, -2.0, 0.0, 1.0])

    high = jnp.float32([1.0, 1.0, 1.0, 1.0, 200.0])
    root = monotone_root(function, jnp.zeros(5), high)
    np.testing.assert_array_equal(root, np.float32([0.5, np.nan, np.nan, 0.0, np.nan]))
    swapped = monotone_root(function, high, jnp.zeros(5))
    np.testing.assert_array_equal(root, swapped)


def test_derivatives_of_a_root(x64):
    @jax.jit
    def root(a, b):
        return monotone_root(lambda x: x + jnp.exp(b * x) - a, jnp.full(a.shape, -90.0),
                             jnp.float64(90))

    a, b = jnp.array([0.5, 2.0, 7.0]), jnp.array([1.0, 0.5, 0.2])
    check_grads(root, (a, b), order=2, modes=["fwd", "rev"], rtol=1e-4)
    x = root(a, b)
    slope = 1 + b * jnp.exp(b * x)
    np.testing.assert_allclose(jax.grad(lambda a: jnp.sum(root(a, b)))(a), 1 / slope, rtol=1e-12)


@jax.vmap
def onto_section(v, weights):
    """The nearest point of the box [0, 1] with `<weights, x> = 1`."""
    bound = jnp.max(jnp.abs(v) + 1) / jnp.min(weights)
    tau = monotone_root(
        lambda tau: jnp.vdot(weights, jnp.clip(v - tau * weights, 0, 1)) - 1, -bound, bound)
    return jnp.clip(v - tau * weights, 0, 1)


def test_a_projection_onto_a_box_and_a_plane():
    rng = np.random.default_rng(1)
    v = rng.normal(size=(4, 6)).astype(np.float32)
    weights = rng.uniform(0.5, 2, size=(4, 6)).astype(np.float32)
    points = jax.jit(onto_section)(v, weights)
    for point, start, w in zip(points, v, weights, strict=True):
        exact = scipy.optimize.minimize(
            lambda x, start=start: np.sum((x - start) ** 2) / 2, np.full(6, 0.1),
            jac=lambda x, start=start: x - start, bounds=[(0, 1)] * 6, method="SLSQP",
            constraints={"type": "eq", "fun": lambda x, w=w: w @ x - 1}, tol=1e-12)
        np.testing.assert_allclose(point, exact.x, atol=1e-5)
    slope = jax.jit(jax.jacobian(lambda v: onto_section(v[None], weights[:1])[0]))(v[0])
    free = (points[0] > 0) & (points[0] < 1)
    w = np.where(free, weights[0], 0)
    np.testing.assert_allclose(slope, np.diag(free) - np.outer(w, w) / (w @ w), atol=1e-5)


def test_over_devices():
    """Under a checked shard_map, over values that a function closes over too."""
    mesh = jax.make_mesh((2,), ("batch",), devices=jax.devices()[:2],
                         axis_types=(jax.sharding.AxisType.Auto,))
    limits = jnp.float32([3.0, 9.0, 1.5, 5.0])

    def both(limits):
        def one(limit):
            trial = halve(lambda s: limit - s, lambda s, value: value > 0, jnp.float32(8), 5)
            root = monotone_root(lambda x: x**3 - limit, jnp.float32(0), jnp.float32(9))
            return trial.step, root

        return jax.vmap(one)(limits)

    spec = jax.P("batch")
    over = jax.jit(jax.shard_map(both, mesh=mesh, in_specs=spec, out_specs=spec))
    np.testing.assert_array_equal(over(limits)[0], [2, 8, 1, 4])
    np.testing.assert_allclose(over(limits)[1], np.cbrt(limits), rtol=2e-7)
    slope = jax.grad(lambda limits: jnp.sum(over(limits)[1]))(limits)
    np.testing.assert_allclose(slope, limits ** (-2 / 3) / 3, rtol=1e-5)


def test_far_bounds_do_not_move_the_root():
    """A secant that is computed twice differs by roundings of the bracket, here 1e10 wide."""
    w = np.float32([1, -2, 0.5, 1])
    low = np.float32([-1, -1, -1, -np.inf])
    v = np.float32([-1750, -1165, -1457, -1823])

    @jax.jit
    def root(v, w, bound):
        return monotone_root(lambda t: jnp.sum(
            w * jnp.clip(v - t * w, low, -low), -1, keepdims=True) - 0.3, -bound, bound)

    roots = [float(root(v, w, bound)[0]) for bound in np.linspace(
        1e10, 1.6e10, 16, dtype=np.float32)[:, None]]

    def exact(t):
        return np.sum(w.astype(float) * np.clip(v - t * w.astype(float), low, -low)) - 0.3

    wanted = scipy.optimize.brentq(exact, -1e5, 1e5, xtol=1e-9)
    np.testing.assert_allclose(roots, wanted, rtol=1e-6)
