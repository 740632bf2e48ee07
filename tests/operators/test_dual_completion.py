"""Completed duals against HiGHS and closed forms: any guess is a bound, optimal ones are tight."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxiter.operators import (
    complete_dual,
    dual_bound,
    linear_program,
    projection_psd,
    projection_rotated_cone,
    projection_second_order_cone,
    radial_psd,
    radial_rotated_cone,
    radial_second_order_cone,
)

N, P, M = 7, 2, 4


def program(seed):
    """A feasible program within finite bounds; its optimum and multipliers, by HiGHS."""
    rng = np.random.default_rng(seed)
    c, a, g = rng.normal(size=N), rng.normal(size=(P, N)), rng.normal(size=(M, N))
    lower, upper = rng.uniform(-2, 0, N), rng.uniform(0, 2, N)
    x = rng.uniform(lower, upper)
    b, h = a @ x, g @ x + rng.uniform(0, 0.5, M)
    out = linprog(c, A_ub=g, b_ub=h, A_eq=a, b_eq=b, bounds=list(zip(lower, upper, strict=True)))
    return (c, a, b, g, h, lower, upper), out.fun, -out.eqlin.marginals, -out.ineqlin.marginals


@jax.jit
def completed(c, y, z, a, b, g, h, lower, upper):
    return complete_dual(c, y, z, A=a, b=b, G=g, h=h, lower=lower, upper=upper)


def test_any_guess_is_a_bound_and_the_optimal_one_is_tight(x64):
    many = jax.jit(jax.vmap(completed, in_axes=(None, 0, 0, *[None] * 6)))
    for seed in range(5):
        (c, *rest), optimum, y, z = program(seed)
        rng = np.random.default_rng(100 + seed)
        far = rng.choice([0.0, 1e-3, 1.0, 100.0], size=(50, 1))
        out = many(c, y + far * rng.normal(size=(50, P)), z + far * rng.normal(size=(50, M)), *rest)
        assert np.all(out.bound <= optimum + 1e-9 * (1 + np.abs(out.bound)))
        np.testing.assert_allclose(out.bound[far[:, 0] == 0], optimum, atol=1e-9)
        assert np.all(out.bound[far[:, 0] > 1] < optimum - 1)
        # It is feasible in the dual: stationary, with signs.
        a, _, g, *_ = rest
        left = c + out.equality_dual @ a + out.inequality_dual @ g - out.lower_dual + out.upper_dual
        np.testing.assert_allclose(left, 0, atol=1e-10 * (1 + far).max())
        assert min(map(np.min, out[1:4])) >= 0


@pytest.mark.slow
def test_multipliers_of_linear_program_pass_as_they_are():
    (c, a, b, g, h, lower, upper), optimum, *_ = program(3)
    given = {"A": a, "b": b, "G": g, "h": h, "lower": lower, "upper": upper}
    given = {name: jnp.asarray(value, jnp.float32) for name, value in given.items()}
    c = jnp.asarray(c, jnp.float32)
    out = linear_program(c, **given)
    bound = dual_bound(c, out.equality_dual, out.inequality_dual, **given)
    assert optimum - 1e-3 < bound < optimum + 1e-5


def test_the_slope_is_that_of_differences(x64):
    (c, a, b, g, h, lower, upper), _, y, z = program(1)
    rng = np.random.default_rng(0)
    operands = [c, y + rng.normal(size=P), z + rng.normal(size=M), a, b, g, h, lower, upper]
    prove = jax.jit(lambda *operands: completed(*operands).bound)
    slopes = jax.jit(jax.grad(lambda *operands: completed(*operands).bound, range(9)))(*operands)
    for i, slope in enumerate(slopes):
        direction = rng.normal(size=np.shape(operands[i]))
        ends = [prove(*operands[:i], operands[i] + t * direction, *operands[i + 1:])
                for t in (1e-6, -1e-6)]
        np.testing.assert_allclose(
            np.sum(slope * direction), (ends[0] - ends[1]) / 2e-6, rtol=1e-6, atol=1e-7)


def knapsack(seed, m=5, n=30):
    rng = np.random.default_rng(seed)
    weights = rng.uniform(0, 1000, (m, n))
    return weights.mean(0) + 100 * rng.uniform(size=n), weights, 0.25 * weights.sum(1)


def test_the_knapsacks_bound_in_closed_form(x64):
    """`h'z + sum max(p - W'z, 0)` is never below the best value, for any z >= 0."""
    values, weights, room = knapsack(0)
    best = linprog(-values, A_ub=weights, b_ub=room, bounds=(0, 1))
    z = np.random.default_rng(1).uniform(0, 2, (20, 5)) * np.r_[0, np.ones(19)][:, None]
    z[0] -= best.ineqlin.marginals
    bounds = jax.jit(jax.vmap(partial(
        dual_bound, -values, None, G=weights, h=room, lower=0.0, upper=1.0)))(z)
    expected = [room @ one + np.maximum(values - weights.T @ one, 0).sum() for one in z]
    np.testing.assert_allclose(-bounds, expected, rtol=1e-12)
    np.testing.assert_allclose(bounds[0], best.fun, rtol=1e-12)


def test_a_ball_is_a_second_order_cone(x64):
    """min c'x, |x - m| <= r: the optimum `c'm - r |c|`, at multipliers (|c|, c)."""
    rng = np.random.default_rng(4)
    c, middle, radius = rng.normal(size=3), rng.normal(size=3), 0.7
    given = {"G": np.vstack([np.zeros(3), -np.eye(3)]), "h": np.r_[radius, -middle],
             "lower": -5.0, "upper": 5.0}
    optimum = c @ middle - radius * np.linalg.norm(c)
    for cone in (radial_second_order_cone, projection_second_order_cone):
        prove = jax.jit(jax.vmap(partial(dual_bound, c, None, cone=cone, **given)))
        bounds = prove(np.vstack([np.r_[0, c], 5 * rng.normal(size=(30, 4))]))
        assert np.all(bounds <= optimum + 1e-9)
        if cone is radial_second_order_cone:  # which finds t = |c| by itself
            np.testing.assert_allclose(bounds[0], optimum, atol=1e-12)


def test_the_least_eigenvalue_is_a_semidefinite_program(x64):
    """min <C, X>, trace X = 1, X in the cone, by a pair of products."""
    rng = np.random.default_rng(5)
    c = rng.normal(size=(3, 3))
    c = c + c.T
    values = np.linalg.eigvalsh(c)
    given = {"A": np.eye(3).reshape(1, 9), "b": np.ones(1), "G": (lambda x: -x, lambda z: -z),
             "h": np.zeros(9), "lower": -1.0, "upper": 1.0}

    def prove(y, z):
        return dual_bound(c.ravel(), y[None], z.ravel(), **given,
                          cone=lambda z: radial_psd(z.reshape(3, 3)).ravel())

    best = c - values[0] * np.eye(3)
    guesses = rng.normal(size=20), 2 * rng.normal(size=(20, 3, 3))
    guesses[0][0], guesses[1][0] = -values[0], best
    bounds = jax.jit(jax.vmap(prove))(*guesses)
    assert np.all(bounds <= values[0] + 1e-9)
    np.testing.assert_allclose(bounds[0], values[0], atol=1e-12)


def in_second_order(v):
    return np.linalg.norm(v[..., 1:], axis=-1) - v[..., 0]


def in_rotated(v):
    return np.maximum((v[..., 2:] ** 2).sum(-1) - 2 * v[..., 0] * v[..., 1], -v[..., :2].min(-1))


@pytest.mark.parametrize("radial, euclidean, outside, interior, size", [
    (radial_second_order_cone, projection_second_order_cone, in_second_order,
     np.r_[1.0, 0, 0, 0], 4),
    (radial_rotated_cone, projection_rotated_cone, in_rotated, np.r_[1.0, 1, 0, 0], 4),
    (lambda v: radial_psd(v.reshape(-1, 3, 3)).reshape(-1, 9),
     lambda v: projection_psd(v.reshape(-1, 3, 3)).reshape(-1, 9),
     lambda v: -np.linalg.eigvalsh(v.reshape(-1, 3, 3))[:, 0], np.eye(3).ravel(), 9),
])
def test_radial_projections(radial, euclidean, outside, interior, size):
    """Into the cone, along its direction, no further than the boundary; points of it stay."""
    v = np.random.default_rng(6).normal(size=(40, size)).astype(np.float32)
    if size == 9:
        v = v.reshape(-1, 3, 3)
        v = (v + v.transpose(0, 2, 1)).reshape(-1, 9) / 2
    given = outside(v.astype(float))
    found = np.asarray(radial(jnp.asarray(v)), float)
    left = outside(found)
    assert np.all(left <= 2e-5)
    moved = (found - v) @ interior / (interior @ interior)
    np.testing.assert_allclose(found - v, moved[:, None] * interior, atol=1e-5)
    assert np.all(moved[given < -1e-3] <= 1e-6)
    np.testing.assert_allclose(left[given > 1e-3], 0, atol=2e-5)
    inside = np.asarray(euclidean(jnp.asarray(v)))
    np.testing.assert_allclose(radial(jnp.asarray(inside)), inside, atol=1e-5)


@pytest.mark.parametrize("function, shape", [
    (radial_psd, (3, 3)), (radial_second_order_cone, (4,)), (radial_rotated_cone, (4,))])
def test_radial_projections_have_slopes(function, shape, x64):
    rng = np.random.default_rng(7)
    v, direction = -np.ones(shape[0]) + rng.normal(size=shape), rng.normal(size=shape)
    points = np.stack([v, v + 1e-6 * direction, v - 1e-6 * direction, 0 * v])
    found, slopes = jax.jit(jax.vmap(lambda v: jax.jvp(function, (v,), (direction,))))(points)
    np.testing.assert_allclose(slopes[0], (found[1] - found[2]) / 2e-6, atol=1e-7)
    assert np.all(np.isfinite(slopes[3]))


def test_infinite_bounds_prove_nothing_without_the_right_sign():
    c = jnp.array([1.0, 1.0])
    given = {"G": jnp.array([[-1.0, -1.0]]), "h": jnp.array([-1.0]), "lower": 0.0,
             "upper": jnp.inf}  # x1 + x2 >= 1
    prove = jax.jit(jax.vmap(lambda z: dual_bound(c, None, z[None], **given)))
    np.testing.assert_allclose(prove(jnp.array([-1.0, 0.5, 1.0, 1.5])), [0, 0.5, 1, -np.inf])
    slope = jax.grad(lambda z: dual_bound(c, None, z[None], **given))(jnp.float32(1.5))
    assert jnp.isfinite(slope)
    # A row without a right-hand side has no multiplier.
    out = complete_dual(c, None, jnp.ones(1), **{**given, "h": jnp.array([jnp.inf])})
    assert out.inequality_dual == 0 and out.bound == 0


def test_bad_input():
    c, rows, right = jnp.ones(2), jnp.ones((1, 2)), jnp.ones(1)
    box = {"lower": 0.0, "upper": 1.0}
    for match, guess, given in (
        ("inequality_dual must have shape", (None, None), {"G": rows, "h": right}),
        ("equality_dual must have shape", (jnp.ones(2), None), {"A": rows, "b": right}),
        ("equality_dual must have shape", (jnp.ones(1), None), {}),
        ("NaN", (None, jnp.array([jnp.nan])), {"G": rows, "h": right}),
        ("lower > upper", (None, None), {"lower": 2.0}),
        ("cone must keep", (None, right), {"G": rows, "h": right, "cone": lambda z: z[:0]}),
    ):
        with pytest.raises(ValueError, match=match):
            complete_dual(c, *guess, **{**box, **given})
    traced = jax.jit(lambda z: dual_bound(c, None, z, G=rows, h=right, **box))
    assert jnp.isnan(traced(jnp.array([jnp.nan])))


@pytest.mark.parametrize("sizes", [(1e30, 1.0), (1.0, 1e30), (1e30, 1e-30), (3e38, 3e38)])
def test_numbers_that_overflow_still_bound(sizes):
    """Against the same sums in float64: within rounding of them, -inf or the largest number."""
    rng = np.random.default_rng(0)
    costs, sides = (rng.choice([1.0, size], (20, 40)) for size in sizes)
    draws = rng.normal(size=(20, 40)).clip(-1, 1)
    finite, largest = 0, float(np.finfo(np.float32).max)
    for seed in range(20):
        rows = np.random.default_rng(seed).normal(size=(P + M, N)).astype("float32")
        c, y, z, *_ = np.split((draws * costs)[seed].astype("float32"), [N, N + P, N + P + M])
        b, h, lower, upper, _ = np.split(
            (draws * sides)[-1 - seed].astype("float32"), np.cumsum([P, M, N, N]))
        lower, upper = -np.abs(lower), np.abs(upper)
        out = completed(c, y, z, rows[:P], b, rows[P:], h, lower, upper)
        c, y, z, rows, b, h, lower, upper = (
            np.asarray(v, np.float64) for v in (c, y, z, rows, b, h, lower, upper))
        z = np.maximum(z, 0)
        slope = c + np.r_[y, z] @ rows
        exact = np.minimum(slope * lower, slope * upper).sum() - b @ y - h @ z
        unit = (np.abs(c) + np.r_[np.abs(y), z] @ np.abs(rows)) @ np.maximum(upper, -lower)
        unit += np.abs(b * y).sum() + np.abs(h * z).sum()
        assert float(out.bound) <= min(exact + 1e-5 * unit, largest)
        if abs(exact) < largest / 2:
            finite += 1
            np.testing.assert_allclose(float(out.bound), exact, atol=1e-5 * unit)
    assert finite > 10 or sizes == (3e38, 3e38)


def test_nan_is_not_bounded_away():
    half = jax.jit(lambda v: dual_bound(-jnp.ones(2), jnp.ones(1), A=jnp.ones((1, 2)), b=v[:1],
                                        lower=v[1], upper=1.0))
    assert float(half(jnp.array([2.0, 0.0]))) == -2
    assert np.isnan(half(jnp.array([jnp.nan, 0.0])))
    slope = jax.grad(lambda y: dual_bound(-jnp.ones(2), y, A=jnp.ones((1, 2)), b=jnp.ones(1),
                                          lower=0.0, upper=1.0))
    assert slope(jnp.array([1e30])).tolist() == [-1.0]
