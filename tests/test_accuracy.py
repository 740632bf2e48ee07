"""The estimated error against the true distance to the fixed point, in float64 by numpy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status

SIZE, COUNT, RATES = 12, 24, (0.3, 0.9, 0.99)


def spectrum(kind, rate, rng):
    """A normal matrix whose eigenvalues have modulus at most `rate`."""
    basis = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    if kind == "complex":
        blocks = np.zeros((SIZE, SIZE))
        for i in range(0, SIZE, 2):
            radius, angle = rate * rng.uniform() ** 0.3, rng.uniform(0.1, 3.0)
            c, s = radius * np.cos(angle), radius * np.sin(angle)
            blocks[i:i + 2, i:i + 2] = [[c, -s], [s, c]]
        return basis @ blocks @ basis.T
    low = {"positive": 0, "negative": -1, "mixed": -1}[kind]
    values = rate * rng.uniform(low, kind != "negative", SIZE)
    values[0] = -rate if kind == "negative" else rate
    return basis @ np.diag(values) @ basis.T


@functools.cache
def problems():
    rng, rows = np.random.default_rng(0), []
    for kind in ("positive", "negative", "mixed", "complex"):
        for rate in RATES:
            for _ in range(COUNT // len(RATES)):
                rows.append((kind, rate, spectrum(kind, rate, rng),
                             rng.normal(size=SIZE) * 10 ** rng.uniform(-6, 6)))
    kinds, rates, a, b = map(np.asarray, zip(*rows, strict=True))
    a, b = a.astype(np.float32), b.astype(np.float32)
    exact = np.linalg.solve(np.eye(SIZE) - a.astype(float), b[..., None].astype(float))[..., 0]
    return kinds, rates, a, b, exact


@pytest.mark.parametrize("name", ["picard", "damped", "anderson"])
def test_estimate_is_within_its_bounds(name):
    solver = {"picard": ji.picard(), "damped": ji.damped(0.5), "anderson": ji.anderson(5)}[name]
    _, rates, a, b, exact = problems()
    out = jax.jit(jax.vmap(lambda a, b: ji.fixed_point(
        lambda x, a, b: a @ x + b, jnp.zeros(SIZE), a, b, solver=solver, max_steps=5000,
        stop=ji.accuracy(rtol=1e-3, atol=0.0))))(a, b)
    assert np.all(out.converged)
    error = np.linalg.norm(out.value - exact, axis=1)
    ratio = out.error / error
    assert np.all(ratio >= 1 / 3), ratio.min()
    assert np.all(ratio <= 3 * (1 + rates) / (1 - rates)), (ratio * (1 - rates)).max()
    assert np.all(error <= 3e-3 * np.linalg.norm(exact, axis=1))


def test_a_far_start_and_a_slow_map():
    """What the residual calls solved after one step: a projected gradient from 1e6."""
    def step(x):
        return jnp.clip(x - 0.5 * (x - 3.0), -1e7, 1e7)

    loose = ji.fixed_point(lambda x: 0.999999 * x + 3e-6, jnp.full(2, 1e6))
    assert loose.converged and loose.steps == 1  # relative to 1e6 nothing moves
    out = ji.fixed_point(step, jnp.full(2, 1e6), stop=ji.accuracy(1e-4))
    assert out.converged
    np.testing.assert_allclose(out.value, 3, rtol=1e-4)


def test_rounding_ends_at_the_floor(x64):
    """McCall's worker at discount 0.9999: in float32 no residual means an error of 1e-5."""
    wages = np.linspace(10, 60, 31)

    def solve(dtype, rule, q=0.9999):
        w = jnp.asarray(wages, dtype)
        return jax.jit(lambda: ji.fixed_point(
            lambda v: jnp.maximum(w / (1 - q), 25 + q * jnp.mean(v)), w / (1 - q), stop=rule,
            max_steps=400_000))()

    v = wages / 1e-4
    for _ in range(200_000):
        v = np.maximum(wages / (1 - 0.9999), 25 + 0.9999 * v.mean())
    fine = solve(jnp.float64, ji.accuracy(1e-9))
    assert fine.converged
    assert np.linalg.norm(fine.value - v) <= 3e-9 * np.linalg.norm(v)
    coarse = solve(jnp.float32, ji.accuracy())
    honest = np.linalg.norm(np.asarray(coarse.value, float) - v) <= 3e-5 * np.linalg.norm(v)
    assert honest or coarse.status == Status.PRECISION_FLOOR, coarse.message()


def test_where_nothing_contracts_nothing_is_claimed():
    turn = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    out = ji.fixed_point(lambda x: turn @ x, jnp.ones(2), solver=ji.halpern(),
                         stop=ji.accuracy(1e-2), max_steps=300)
    assert not out.converged and np.isinf(out.error)
    assert np.isnan(ji.fixed_point(jnp.cos, 1.0).error)  # the default rule does not estimate


@pytest.mark.parametrize("name", ["halpern", "damped"])
def test_steps_below_rounding_show_no_rate(name):
    """x moves by one unit in the last place and its image not at all: that is no fast map."""
    solver = {"halpern": ji.halpern(), "damped": ji.damped(0.01)}[name]
    rates = jnp.array([0.9, 0.99, 0.999])

    def solve(q):
        return ji.fixed_point(lambda x: q * x + (1 - q), jnp.zeros(1), solver=solver,
                              stop=ji.accuracy(1e-4, 1e-4), max_steps=30_000)

    out = jax.jit(jax.vmap(solve))(rates)
    error = np.abs(np.asarray(out.value)[:, 0] - 1)
    assert np.all(~np.asarray(out.converged) | (error <= 3 * 2e-4)), (out.status, error)


def test_a_direction_that_shows_late():
    """Fast from 0 to (1, 1) in one direction, slow in the other: seen before it is too late."""
    rates = jnp.stack([jnp.linspace(0, 0.85, 18), jnp.full(18, 0.99)], 1)

    def solve(q):
        return ji.fixed_point(
            lambda x: q * x + (1 - q), jnp.zeros(2), stop=ji.accuracy(1e-2, 1e-2), max_steps=3000)

    out = jax.jit(jax.vmap(solve))(rates)
    assert np.all(out.converged)
    assert np.max(np.linalg.norm(out.value - 1, axis=1)) <= 0.03


def test_an_exact_fixed_point_and_combinations():
    constant = ji.fixed_point(lambda x: 0 * x + 2, jnp.zeros(3), stop=ji.accuracy())
    assert constant.converged and constant.error == 0
    both = ji.any_of(ji.accuracy(1e-4), ji.no_fixed_point())
    out = ji.fixed_point(lambda x: 0.5 * x + 1, jnp.zeros(2), stop=both)
    np.testing.assert_allclose(out.error, np.linalg.norm(out.value - 2), rtol=0.1)


@pytest.mark.parametrize("name", ["picard", "anderson"])
def test_every_scale_has_an_estimate(name):
    solver = {"picard": ji.picard(), "anderson": ji.anderson()}[name]

    @jax.jit
    @jax.vmap
    def solve(b):
        slopes = jnp.array([0.9, -0.5, 0.2])
        return ji.fixed_point(lambda x, b: slopes * x + b, jnp.zeros(3), b, solver=solver,
                              stop=ji.accuracy(1e-3, 0.0), max_steps=500)

    sizes = np.array([1e-30, 1e-20, 1.0, 1e20, 1e30])
    out = solve(jnp.asarray(sizes, jnp.float32))
    exact = sizes[:, None] / (1 - np.array([0.9, -0.5, 0.2]))
    error = np.linalg.norm(np.asarray(out.value, float) / sizes[:, None] - exact / sizes[:, None],
                           axis=1)
    assert np.all(out.converged)
    rounding = np.spacing(np.float32(10)) / 2 / (1 - 0.9)  # of x = 10, carried on by the map
    assert np.all(error <= 3 * np.asarray(out.error, float) / sizes + rounding)
    if name == "picard":  # the Gram matrices of anderson leave the float range
        assert np.all(np.asarray(out.steps) == np.asarray(out.steps)[2])


def test_fronts_that_look_once_more_take_the_rule():
    """Their last look is one measurement without a history."""
    root = ji.root(lambda x: x * x - 2, jnp.float32(1.0), stop=ji.accuracy())
    assert abs(float(root.value) - 2**0.5) < 1e-4 and int(root.status) > Status.RUNNING
    cost = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 5)), jnp.float32)
    out = ji.transport.sinkhorn(cost, epsilon=0.5, method="log", stop=ji.accuracy(1e-3))
    assert float(out.marginal_error) < 1e-2 and int(out.status) > Status.RUNNING
