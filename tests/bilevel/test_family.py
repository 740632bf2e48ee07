"""Every stochastic method: closed forms, finite sums, many inner solutions, many blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxiter as ji
from jaxiter import trees
from jaxiter.bilevel import (
    Batches,
    bome,
    bsvrb_v1,
    bsvrb_v2,
    f2sa,
    f3sa,
    hypergradient,
    ift_neumann,
    lv_hba,
    mrbo,
    proximal_penalty,
    proximal_penalty_single,
    pzobo,
    run,
    saba,
    soba,
    solve_inner,
    srba,
    stocbio,
    ttsa,
    unrolled_hypergradient,
)
from jaxiter.linear import cg
from jaxiter.testing.bilevel import (
    Selection,
    coupled,
    equality,
    penalty_path,
    quadratic,
    regularisation,
    ridge,
    wavy,
)

B1 = quadratic()
START = jnp.asarray(B1.x, jnp.float32), jnp.zeros(10)
RATES = {"inner_optimizer": optax.sgd(0.3), "outer_optimizer": optax.sgd(0.05)}


def plain(function):
    return lambda x, y, batch: function(x, y)


OUTER, INNER = plain(B1.outer), plain(B1.inner)


@pytest.mark.parametrize("make, steps, accuracy, calls", [
    (lambda: saba(OUTER, INNER, blocks=(1, 1), **RATES), 3000, 1e-3, (1, 1, 1)),
    (lambda: srba(OUTER, INNER, **RATES), 3000, 1e-3, None),
    (lambda: stocbio(OUTER, INNER, neumann_rate=0.4, terms=40, **RATES), 1500, 1e-3,
     (10, 1, 40)),
    (lambda: ift_neumann(OUTER, INNER, neumann_rate=0.4, terms=40, inner_steps=5, **RATES), 1500,
     1e-3, (5, 1, 40)),
    (lambda: ttsa(OUTER, INNER, neumann_rate=0.4, inner_optimizer=optax.sgd(0.3), terms=30,
                  outer_optimizer=optax.sgd(lambda k: 0.03 / (1 + k / 300))), 12_000, 0.1,
     None),
    (lambda: mrbo(OUTER, INNER, neumann_rate=0.4, terms=40, **RATES), 1500, 1e-3, (2, 2, 80)),
    (lambda: f3sa(OUTER, INNER, inner_rate=0.4, penalty_rate=0.1, exponents=(1 / 3, 0.0)), 20_000,
     0.05, (8, 4, 0)),
    (lambda: bome(OUTER, INNER, rate=0.01, inner_rate=0.4, inner_steps=20), 6000, 0.05,
     (22, 1, 0)),
    (lambda: pzobo(OUTER, INNER, inner_rate=0.4, inner_steps=40,
                   outer_optimizer=optax.sgd(0.02)), 1000, 0.05, (440, 1, 0)),
    (lambda: proximal_penalty(OUTER, INNER, sigma=1e-3, rate=0.05, inner_rate=0.25, mixing=1.0),
     3000, 0.05, (22, 11, 0)),
], ids=["saba", "srba", "stocbio", "ift_neumann", "ttsa", "mrbo", "f3sa", "bome", "pzobo",
        "proximal_penalty"])
def test_closed_form(make, steps, accuracy, calls):
    """B1 without noise: x nears the optimum of the closed form, and the calls are as published."""
    method = make()
    state = jax.jit(lambda key: run(
        method, method.init(*START), None, None, num_steps=steps, key=key)[0])(jax.random.key(0))
    error = np.linalg.norm(state.x - B1.optimum)
    assert error < accuracy, error
    if calls is not None:
        assert [int(c) for c in state.counts] == [steps * c for c in calls]


def test_bias_of_bome_is_proportional_to_its_rate():
    """B1: at rates 0.05 and 0.02 it settles 0.136 and 0.062 from the optimum."""
    def settle(rate):
        method = bome(OUTER, INNER, rate=rate, inner_rate=0.4, inner_steps=20)
        return run(method, method.init(*START), None, None, num_steps=6000,
                   key=jax.random.key(0))[0].x

    ends = jax.jit(jax.vmap(settle))(jnp.array([0.05, 0.02]))
    np.testing.assert_allclose(np.linalg.norm(ends - B1.optimum, axis=1), [0.136, 0.062],
                               rtol=0.02)


B3 = regularisation()


def falling(rate):
    return lambda k: rate * jax.lax.rsqrt((k + 1).astype(jnp.float32))


@pytest.mark.parametrize("make, per_step, published", [
    (lambda: soba(Selection.outer, Selection.inner,
                  inner_optimizer=optax.sgd(falling(1.0)),
                  outer_optimizer=optax.sgd(falling(1 / 0.03))), 3, 2.8e-6),
    (lambda: saba(Selection.outer, Selection.inner, inner_optimizer=optax.sgd(0.1),
                  outer_optimizer=optax.sgd(0.1 / 0.03), blocks=(9, 9)), 3, 1.2e-6),
    (lambda: srba(Selection.outer, Selection.inner, inner_optimizer=optax.sgd(0.3),
                  outer_optimizer=optax.sgd(0.3 / 0.03)), 9, 1.2e-6),
], ids=["soba", "saba", "srba"])
def test_regularisation_selection(make, per_step, published):
    """B3, 400,000 calls in batches of 32: the squared hypergradient, by Newton in numpy."""
    method = make()
    steps = 400_000 // (32 * per_step)
    state = jax.jit(lambda key: run(
        method, method.init(jnp.full(30, -2.0), jnp.zeros(30)), B3.train, B3.validation,
        num_steps=steps, batch_size=32, key=key)[0])(jax.random.key(0))
    assert sum(int(c) for c in state.counts) * 32 <= 400_000
    _, slope = B3.solve(state.x)
    assert np.sum(slope**2) < 2 * published, np.sum(slope**2)


def test_warm_adjoints_need_a_third_of_the_products():
    """B3, 100 steps of size 0.1: at rtol 1e-2 at most a third, at 1e-5 0.45 to 0.77, published."""
    def outer(x, y):
        return Selection.outer(x, y, B3.validation)

    def inner(x, y):
        return Selection.inner(x, y, B3.train)

    def total(rtol, warm):
        def step(carry, _):
            x, y, v = carry
            y = solve_inner(inner, y, x, step_size=0.3, stop=ji.tolerance(rtol=0, atol=1e-5)).value
            out = hypergradient(outer, inner, x, y, v_init=trees.scale(warm, v),
                                solve=cg(rtol=rtol, max_steps=100))
            return (x - 0.1 * out.grad, y, out.v), out.counts.products

        start = jnp.full(30, -2.0), jnp.zeros(30), jnp.zeros(30)
        return jnp.sum(jax.lax.scan(step, start, None, length=100)[1])

    solve = jax.jit(total)
    for rtol, low, high in ((1e-2, 0.0, 1 / 3), (1e-5, 0.3, 0.77)):
        ratio = int(solve(rtol, 1.0)) / int(solve(rtol, 0.0))
        assert low <= ratio <= high, (rtol, ratio)


def test_a_batch_of_problems_by_vmap_and_lanes_is_the_loop():
    """256 starts x, F(x) and its gradient: lanes, vmap, one by one."""
    xs = 0.5 * jax.random.normal(jax.random.key(0), (256, 30)) - 1
    shrink = 0.3

    def descent(y, x):
        return y - shrink * jax.grad(Selection.inner, 1)(x, y, B3.train)

    stop = ji.tolerance(rtol=0, atol=1e-5)
    options = {"stop": stop, "solver": ji.anderson(5), "adjoint": ji.implicit(cg())}

    def lanes(xs):
        ys = ji.solve_many(descent, jnp.zeros((256, 30)), xs, lanes=64, **options).value
        return jnp.sum(jax.vmap(lambda x, y: Selection.outer(x, y, B3.validation))(xs, ys))

    def single(x):
        y = ji.fixed_point(descent, jnp.zeros(30), x, **options).value
        return Selection.outer(x, y, B3.validation)

    by_lanes = jax.jit(jax.grad(lanes))(xs)
    by_vmap = jax.jit(jax.vmap(jax.grad(single)))(xs)
    one = jax.jit(jax.grad(single))
    scale = float(jnp.abs(by_vmap).max())
    np.testing.assert_allclose(by_lanes, by_vmap, atol=1e-4 * scale)
    for i in (0, 100, 255):
        np.testing.assert_allclose(one(xs[i]), by_vmap[i], atol=1e-4 * scale)
        np.testing.assert_allclose(one(xs[i]), B3.solve(xs[i])[1], atol=2e-3 * scale)


def test_memory_does_not_grow_with_inner_steps():
    """Compiled temporaries of implicit and first-order methods; unrolling grows, as it must."""
    problem = ridge()
    x0, y0 = jnp.full(20, -3.0), jnp.zeros(20)

    def bytes_of(function):
        return jax.jit(function).lower(x0).compile().memory_analysis().temp_size_in_bytes

    def implicit(x, steps):
        y = solve_inner(problem.inner, y0, x, step_size=0.3, max_steps=steps,
                        solver=ji.picard()).value
        return hypergradient(problem.outer, problem.inner, x, y).grad

    def first_order(x, steps):
        method = f2sa(plain(problem.outer), plain(problem.inner), inner_rate=0.3,
                      penalty_rate=0.1, inner_steps=steps)
        return run(method, method.init(x, y0), None, None, num_steps=1,
                   key=jax.random.key(0))[0].x

    def unrolled(x, steps):
        def descent(x, y):
            return y - 0.5 * jax.grad(problem.inner, 1)(x, y)
        return unrolled_hypergradient(problem.outer, descent, x, y0, steps=steps).grad

    for function in (implicit, first_order):
        few, many = (bytes_of(lambda x, n=n, f=function: f(x, n)) for n in (10, 1000))
        assert many <= few + 64 * 1000, (few, many)  # at most the keys of the steps
    few, many = (bytes_of(lambda x, n=n: unrolled(x, n)) for n in (10, 1000))
    assert many > 20 * few


def test_variance_reduction_converges_where_soba_keeps_its_noise():
    """A finite sum with unequal blocks and constant rates: tables and recursions lose the noise."""
    rows = jax.random.normal(jax.random.key(1), (21, 10))
    data = rows - rows.mean(0)
    outer, inner = (lambda x, y, b, f=f: f(x, y) + y @ b.mean(0) for f in (B1.outer, B1.inner))
    errors = {}
    for name, method in {
            "soba": soba(outer, inner, **RATES),
            "saba": saba(outer, inner, blocks=(6, 6), **RATES),
            "srba": srba(outer, inner, **RATES)}.items():
        state, _ = jax.jit(lambda key, method=method: run(
            method, method.init(*START), data, data, num_steps=3000, batch_size=4, key=key))(
                jax.random.key(0))
        errors[name] = np.linalg.norm(state.x - B1.optimum)
    assert errors["soba"] > 0.02 and max(errors["saba"], errors["srba"]) < 2e-3, errors


def test_growth_reports_a_diverging_series():
    method = stocbio(OUTER, INNER, neumann_rate=1.2, **RATES)  # L = 2
    state = jax.jit(lambda key: method.step(method.init(*START), Batches(None, None, None), key))(
        jax.random.key(0))
    assert float(state.growth) > 1


def test_proximal_penalty_with_many_inner_solutions():
    """B6: exact in x and y[0]; z[1], which the inner problem does not see, keeps its start."""
    problem = penalty_path()
    outer, inner = plain(problem.outer), plain(problem.inner)
    start = jnp.asarray(problem.x, jnp.float32), jnp.full(2, -3.0)
    for method, steps in (
            (proximal_penalty(outer, inner, rate=0.05, inner_rate=0.3), 2000),
            (proximal_penalty_single(outer, inner, rate=0.02, inner_rate=0.2), 5000)):
        state = jax.jit(lambda key, method=method, steps=steps: run(
            method, method.init(*start), None, None, num_steps=steps, key=key)[0])(
                jax.random.key(0))
        np.testing.assert_allclose(state.x, 1, atol=1e-4)
        np.testing.assert_allclose(state.y, 1, atol=1e-3)
        assert float(state.z[1]) == -3.0


def test_a_thousand_starts_end_at_local_minima():
    """B9: several inner stationary points, several local minima of F in [0, 3]."""
    problem = wavy()
    method = proximal_penalty(
        plain(problem.outer), plain(problem.inner), sigma=0.01, rate=0.01, inner_rate=0.05,
        prox=0.05, mixing=0.5, project_x=lambda x: jnp.clip(x, 0, 3))
    starts = jax.random.uniform(jax.random.key(0), (1000, 2, 1), maxval=3.0)

    def solve(start):
        return run(method, method.init(start[0], -start[1]), None, None, num_steps=3000,
                   key=jax.random.key(1))[0].x

    ends = np.asarray(jax.jit(jax.vmap(solve))(starts), float)[:, 0]
    inside = (ends > 1e-3) & (ends < 3 - 1e-3)
    grid = np.linspace(0, 3, 30_001)
    slope = problem.gradient(grid)
    minima = grid[:-1][(slope[:-1] < 0) & (slope[1:] >= 0)]
    minima = np.concatenate([minima, [0.0] if slope[0] > 0 else [], [3.0] if slope[-1] < 0 else []])
    gap = np.abs(ends[:, None] - minima).min(1)
    assert np.all(gap < 0.02), (np.sort(gap)[-5:], minima)
    assert inside.mean() > 0.5


def test_constrained_inner_problems():
    """B8: the closed form within the published errors; B7's projection is its own inverse."""
    problem = equality()
    method = lv_hba(plain(problem.outer), plain(problem.inner), problem.constraint,
                    problem.project, equality=True, rate=0.1, value_rate=0.2, centre_rate=0.1)
    state = jax.jit(lambda key: run(method, method.init(jnp.zeros(6), jnp.zeros(6)), None, None,
                                    num_steps=10_000, key=key)[0])(jax.random.key(0))
    assert np.linalg.norm(state.x - problem.x) / np.linalg.norm(problem.x) < 0.04
    other = coupled()
    x, y = other.project(*other.project(jnp.ones(100), jnp.ones((2, 100))))
    np.testing.assert_allclose(other.constraint(x, y), 0, atol=1e-5)


def blocks(m=8, p=5, q=3):
    """m quadratics with one x; the closed form of their mean."""
    rng = np.random.default_rng(0)
    b, c = rng.normal(size=(m, p, q)) / np.sqrt(q), rng.normal(size=(m, p))
    a = np.linspace(0.5, 1.5, p)
    m_x = sum(bi.T @ (bi / a[:, None] ** 2) for bi in b) / m + 0.1 * np.eye(q)
    rhs = sum(bi.T @ ((1 - ci / a) / a) for bi, ci in zip(b, c, strict=True)) / m

    def inner(x, y, batch):
        b, c = batch
        return jnp.sum(jnp.asarray(a, y.dtype) * y * y) / 2 - y @ (b.mean(0) @ x + c.mean(0))

    def outer(x, y, batch):
        return jnp.sum((y - 1) ** 2) / 2 + 0.05 * x @ x

    # Rows within a block: the block's value plus noise of mean zero.
    noise = rng.normal(size=(m, 8, p)) * 0.3
    noise -= noise.mean(1, keepdims=True)
    data = (jnp.asarray(np.repeat(b[:, None], 8, 1), jnp.float32),
            jnp.asarray(c[:, None] + noise, jnp.float32))
    return outer, inner, data, np.linalg.solve(m_x, rhs)


@pytest.mark.parametrize("make, sampled, size, accuracy", [
    (lambda o, i, n: bsvrb_v2(o, i, blocks=n, rate=0.05, inner_rate=0.4), 8, None, 1e-3),
    (lambda o, i, n: bsvrb_v2(o, i, blocks=n, rate=0.005, inner_rate=0.4, smoothing=0.5,
                              momentum=0.1), 2, 4, 0.15),
    (lambda o, i, n: bsvrb_v1(o, i, blocks=n, rate=0.005, inner_rate=0.1, curvature=0.4,
                              momentum=0.1), 2, 4, 0.15),
], ids=["all_v2", "two_v2", "two_v1"])
def test_blocks(make, sampled, size, accuracy):
    """Noise and few blocks per step leave a floor; without both the closed form is reached."""
    outer, inner, data, best = blocks()
    method = make(outer, inner, sampled)
    state = jax.jit(lambda key: run(
        method, method.init(jnp.zeros(3), jnp.zeros((8, 5))), data, data, num_steps=4000,
        batch_size=size, key=key)[0])(jax.random.key(0))
    error = np.linalg.norm(state.x - best) / np.linalg.norm(best)
    assert error < accuracy, error


def test_bad_input():
    with pytest.raises(ValueError, match="neumann_rate must be positive"):
        stocbio(OUTER, INNER, neumann_rate=0.0, **RATES)
    with pytest.raises(ValueError, match="sigma must be positive"):
        proximal_penalty(OUTER, INNER, sigma=0.0, rate=0.1, inner_rate=0.1)
    with pytest.raises(ValueError, match="mixing must be in"):
        proximal_penalty_single(OUTER, INNER, rate=0.1, inner_rate=0.1, mixing=1.5)
    with pytest.raises(ValueError, match="more than the 3 blocks"):
        bsvrb_v2(OUTER, INNER, blocks=4, rate=0.1, inner_rate=0.1).init(
            jnp.zeros(2), jnp.zeros((3, 2)))
    method = saba(OUTER, INNER, blocks=(3, 1), **RATES)
    with pytest.raises(ValueError, match="built for 3 blocks, but 10 rows in batches of 2 make 5"):
        run(method, method.init(*START), jnp.ones((10, 1)), None, num_steps=1, batch_size=2,
            key=jax.random.key(0))
