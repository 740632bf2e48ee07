"""The whole library from one table: optimality in numpy, nonexpansiveness, slopes, float32."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog, minimize_scalar
from scipy.special import xlogy

from jaxiter import operators as op

STEP = 0.7
PAIRS = 200
rng = np.random.default_rng(0)
Q = np.array([[2.0, 0.5, 0, 0, 0.1], [0.5, 1, 0.2, 0, 0], [0, 0.2, 0.5, 0, 0], [0, 0, 0, 3, 1],
              [0.1, 0, 0, 1, 1]])
q, A, b = rng.normal(size=5), rng.normal(size=(3, 5)), rng.normal(size=3)
TALL, tall = rng.normal(size=(7, 5)), rng.normal(size=7)
W = np.array([0.5, 1, 2, 1.5, 3])


class Case(NamedTuple):
    """An operator, `call(v, step, constants)`, and what holds of `u = call(v, step)` in numpy."""

    call: Any
    oracle: Any
    shape: tuple = (5,)
    kind: str = "prox"
    constants: tuple = ()
    largest: float = 1e4  # of the entries in float32


def separable(g, low=-np.inf):
    """The minimum by brute force, entry by entry."""
    def oracle(v, u, t):
        for x, found in zip(v.ravel(), u.ravel(), strict=True):
            def cost(y, x=x):
                return g(y) + (y - x) ** 2 / (2 * t)

            grid = np.linspace(max(x - 8, low), x + 8, 4001)
            i = np.argmin(cost(grid))
            best = minimize_scalar(cost, bounds=(grid[max(i - 1, 0)], grid[min(i + 1, 4000)]),
                                   method="bounded", options={"xatol": 1e-10})
            assert cost(found) <= min(best.fun, cost(grid[i]), cost(max(0.0, low))) + 1e-9
    return oracle


def norm(size, dual, weight):
    """`s = (v - u) / t` is a subgradient of `weight * size` at u."""
    def oracle(v, u, t):
        s = (v - u) / t
        assert dual(s) <= weight * (1 + 1e-9)
        np.testing.assert_allclose(np.sum(s * u), weight * size(u), atol=1e-9)
    return oracle


def polytope(bounds, A_eq=None, b_eq=None, A_ub=None, b_ub=None):
    """No point of the set, by linear programming, is farther in the direction `v - u` than u."""
    def oracle(v, u, t):
        out = linprog(-(v - u), bounds=bounds, A_eq=A_eq, b_eq=b_eq, A_ub=A_ub, b_ub=b_ub)
        np.testing.assert_allclose(-out.fun, np.sum((v - u) * u), atol=1e-7)
        if A_eq is not None:
            np.testing.assert_allclose(A_eq @ u, b_eq, atol=1e-9)
        low, high = np.asarray(bounds, float).T
        assert np.all((np.isnan(low) | (u >= low - 1e-9)) & (np.isnan(high) | (u <= high + 1e-9)))
    return oracle


def cone(inside, dual):
    def oracle(v, u, t):
        assert inside(u) and dual(u - v)
        np.testing.assert_allclose(np.sum(u * (u - v)), 0, atol=1e-8)
    return oracle


def stationary(slope):
    def oracle(v, u, t):
        np.testing.assert_allclose(slope(u) + (u - v) / t, 0, atol=1e-8)
    return oracle


def pair(v, u, t):
    s, d = (v[0] - u[0]) / t, u[0] - u[1]
    np.testing.assert_allclose(u.sum(0), v.sum(0), atol=1e-12)
    norm(np.linalg.norm, np.linalg.norm, 1.3)(u[0] - u[1] + t * s, d, t)


def scad(u, w=1.3, a=3.7):
    u = np.abs(u)
    return np.where(u <= w, w * u, np.where(
        u <= a * w, (2 * a * w * u - u**2 - w**2) / (2 * (a - 1)), w**2 * (a + 1) / 2))


def mcp(u, w=1.3, gamma=3.0):
    u = np.abs(u)
    return np.where(u <= gamma * w, w * u - u**2 / (2 * gamma), gamma * w**2 / 2)


def huber(u, d=0.8):
    return np.where(np.abs(u) <= d, u**2 / 2, d * np.abs(u) - d**2 / 2)


def second_order(u):
    return np.linalg.norm(u[1:]) <= u[0] + 1e-9


def rotated(u):
    return u[0] >= -1e-9 and u[1] >= -1e-9 and u[2:] @ u[2:] <= 2 * u[0] * u[1] + 1e-8


def exponential(u):
    x, y, z = u
    return y > -1e-9 and (y * np.exp(x / y) <= z + 1e-8 if y > 1e-9 else x < 1e-9 and z > -1e-9)


def exponential_dual(u):
    x, y, z = u
    return x < 1e-9 and (-x * np.exp(y / x) <= np.e * z + 1e-8 if x < -1e-9 else
                         y > -1e-9 and z > -1e-9)


def psd(u):
    return np.linalg.eigvalsh(u).min() >= -1e-9


def nuclear(u):
    return np.linalg.svd(u)[1].sum()


def spectral(u):
    return np.linalg.norm(u, 2)


def spectral_ball(v, u, t):
    assert spectral(u) <= 1 + 1e-9
    np.testing.assert_allclose(np.sum((v - u) * u), nuclear(v - u), atol=1e-9)


def sets(project, *constants):
    return {"call": lambda v, t, *c: project(v, *c), "kind": "projection", "constants": constants}


FREE, POSITIVE = [(None, None)] * 5, [(0, None)] * 5
SIGNS = np.array(np.meshgrid(*[[-1, 1]] * 5)).reshape(5, -1).T
PROX = {
    "l1": Case(partial(op.prox_l1, weight=1.3), separable(lambda u: 1.3 * np.abs(u))),
    "non_negative_l1": Case(partial(op.prox_non_negative_l1, weight=1.3),
                            separable(lambda u: 1.3 * u, 0.0)),
    "squared_l2": Case(partial(op.prox_squared_l2, weight=1.3), separable(lambda u: 0.65 * u**2)),
    "elastic_net": Case(partial(op.prox_elastic_net, l1=1.3, l2=0.4),
                        separable(lambda u: 1.3 * np.abs(u) + 0.2 * u**2)),
    "huber": Case(partial(op.prox_huber, delta=0.8, weight=1.3),
                  separable(lambda u: 1.3 * huber(u))),
    "l0": Case(partial(op.prox_l0, weight=1.3), separable(lambda u: 1.3 * (u != 0)),
               kind="nonconvex"),
    "scad": Case(partial(op.prox_scad, weight=1.3), separable(scad), kind="nonconvex"),
    "mcp": Case(partial(op.prox_mcp, weight=1.3), separable(mcp), kind="nonconvex"),
    "log_barrier": Case(partial(op.prox_log_barrier, weight=1.3), separable(
        lambda u: -1.3 * np.log(np.maximum(u, 1e-300)), 1e-12)),
    "entropy": Case(partial(op.prox_entropy, weight=1.3),
                    separable(lambda u: 1.3 * xlogy(u, u), 1e-12)),
    "l2": Case(partial(op.prox_l2, weight=1.3), norm(np.linalg.norm, np.linalg.norm, 1.3)),
    "linf": Case(partial(op.prox_linf, weight=1.3),
                 norm(lambda u: np.abs(u).max(), lambda s: np.abs(s).sum(), 1.3)),
    "nuclear": Case(partial(op.prox_nuclear, weight=1.3), norm(nuclear, spectral, 1.3), (4, 3)),
    "wide nuclear": Case(partial(op.prox_nuclear, weight=1.3), norm(nuclear, spectral, 1.3),
                         (2, 4)),
    "log_det": Case(partial(op.prox_log_det, weight=1.3), lambda v, u, t: stationary(
        lambda u: -1.3 * np.linalg.inv(u))((v + v.T) / 2, u, t), (4, 4)),
    "pair": Case(lambda v, t: jnp.stack(op.prox_pair((v[0], v[1]), t, 1.3)), pair, (2, 4)),
    "quadratic": Case(op.prox_quadratic, stationary(lambda u: Q @ u + q), constants=(Q, q)),
    "least_squares, wide": Case(partial(op.prox_least_squares, weight=1.3), stationary(
        lambda u: 1.3 * A.T @ (A @ u - b)), constants=(A, b), largest=10),
    "least_squares, tall": Case(partial(op.prox_least_squares, weight=1.3), stationary(
        lambda u: 1.3 * TALL.T @ (TALL @ u - tall)), constants=(TALL, tall), largest=10),
}
SETS = {
    "simplex": Case(oracle=polytope(POSITIVE, np.ones((1, 5)), [2.0]),
                    **sets(lambda v: op.projection_simplex(v, 2.0))),
    "l1_ball": Case(oracle=polytope(FREE, A_ub=SIGNS, b_ub=np.full(32, 2.0)),
                    **sets(lambda v: op.projection_l1_ball(v, 2.0))),
    "weighted_simplex": Case(oracle=polytope(POSITIVE, W[None], [2.0]), **sets(
        lambda v, w: op.projection_weighted_simplex(v, w, 2.0), W)),
    "capped_simplex": Case(oracle=polytope([(0, 0.7)] * 5, np.ones((1, 5)), [2.0]), **sets(
        lambda v: op.projection_capped_simplex(v, 0.7, 2.0))),
    "box_section": Case(oracle=polytope(
        [(-1, 1)] * 4 + [(None, None)], np.array([[1.0, -2, 0.5, 0, 1]]), [0.3]), **sets(
        lambda v, low, w: op.projection_box_section(v, low, -low, w, 0.3),
        np.array([-1, -1, -1, -1, -np.inf]), np.array([1, -2, 0.5, 0, 1]))),
    "affine": Case(oracle=polytope([(-100, 100)] * 5, A, b), **sets(op.projection_affine, A, b)),
    "psd": Case(oracle=lambda v, u, t: cone(psd, psd)((v + v.T) / 2, u, t), shape=(4, 4),
                **sets(op.projection_psd)),
    "second_order_cone": Case(oracle=cone(second_order, second_order),
                              **sets(op.projection_second_order_cone)),
    "rotated_cone": Case(oracle=cone(rotated, rotated), **sets(op.projection_rotated_cone)),
    "exponential_cone": Case(oracle=cone(exponential, exponential_dual), shape=(3,),
                             **sets(op.projection_exponential_cone)),
    "spectral_ball": Case(oracle=spectral_ball, shape=(4, 3), **sets(op.projection_spectral_ball)),
}
CASES = PROX | SETS


def program(case):
    """`(v, step, dot, cotangent) -> (u, J dot, J^T cotangent)` of a batch, compiled."""
    def one(v, t, dot, back):
        constants = [jnp.asarray(c, v.dtype) for c in case.constants]

        u, along = jax.linearize(lambda v: case.call(v, t, *constants), v)
        return u, along(dot), jax.linear_transpose(along, v)(back)[0]

    return jax.jit(jax.vmap(one))


@pytest.mark.parametrize("name", CASES)
def test_operator(name):
    case = CASES[name]
    rng = np.random.default_rng(1)
    v, dot, back = (1.5 * rng.normal(size=(2 * PAIRS, *case.shape)) for _ in range(3))
    steps = np.full(2 * PAIRS, STEP)
    with jax.enable_x64(True):
        run = program(case)
        u, along, pulled = (np.asarray(x) for x in run(v, steps, dot, back))
        again = np.asarray(run(u, steps, dot, back)[0])
        h = 1e-6
        up, down = (np.asarray(run(v + s * h * dot, steps, dot, back)[0]) for s in (1, -1))
    for i in range(12):
        case.oracle(v[i], u[i], STEP)
    axes = tuple(range(1, v.ndim))
    np.testing.assert_allclose((up - down) / (2 * h), along, atol=2e-6)
    np.testing.assert_allclose(
        np.sum(back * along, axes), np.sum(pulled * dot, axes), atol=1e-9)
    du, dv = u[:PAIRS] - u[PAIRS:], v[:PAIRS] - v[PAIRS:]
    firm = np.sum(du**2, axes) <= np.sum(du * dv, axes) + 1e-9
    assert firm.all() == (case.kind != "nonconvex"), firm.mean()
    if case.kind == "projection":
        np.testing.assert_allclose(again, u, atol=1e-9)
    single_precision(case, run, v, dot, back)


def test_trees_of_mixed_precision():
    """Leaf by leaf, in the dtype of each; rows in 16 bits."""
    v = {"a": jnp.array([3.0, -0.5], jnp.bfloat16), "b": (jnp.full((2, 2), 2.0),)}

    @jax.jit
    def run(v, t):
        return [f(v, t) for f in (
            op.prox_l1, op.prox_non_negative_l1, op.prox_squared_l2, op.prox_elastic_net,
            op.prox_huber, op.prox_l0, op.prox_scad, op.prox_mcp, op.prox_log_barrier,
            op.prox_entropy, op.conjugate(op.prox_huber), op.add_quadratic(op.prox_l1, 0.5),
            lambda v, t: op.mirror_orthant(v, v, t))]

    for out in run(v, jnp.float32(0.5)):
        assert jax.tree.map(jnp.result_type, out) == jax.tree.map(jnp.result_type, v)
        assert all(np.isfinite(np.asarray(leaf, float)).all() for leaf in jax.tree.leaves(out))
        assert np.all(out["b"][0] == out["b"][0][0, 0])
    half = jnp.array([1.0, 0.75, -2.0], jnp.bfloat16)
    assert op.projection_simplex(half).tolist() == [0.625, 0.375, 0]
    for f in (lambda v: op.prox_linf(v, 1.0), op.projection_second_order_cone,
              op.projection_l1_ball, lambda v: op.prox_l2(v, 0.5)):
        assert f(half).dtype == jnp.bfloat16 and np.isfinite(np.asarray(f(half), float)).all()


def single_precision(case, double, v, dot, back):
    """Sizes up to 1e4, steps from 1e-3 to 1e3; slopes finite at 0 and where values repeat."""
    count = len(v)
    sizes = np.geomspace(1e-3, case.largest, count).reshape(-1, *[1] * len(case.shape))
    points = (v[:count] * sizes)
    square = len(case.shape) == 2 and case.shape[0] <= case.shape[1]
    points[0], points[1] = 0, 1
    points[2] = 3 * np.eye(*case.shape) if len(case.shape) == 2 else -1
    points[3] = np.ones(case.shape) if square else 0
    steps = np.random.default_rng(2).permutation(np.geomspace(1e-3, 1e3, count))
    if case.kind == "nonconvex":
        steps = np.minimum(steps, 2.5)
    given = [x.astype(np.float32) for x in (points, steps, dot, back)]
    run = program(case)
    u, along, pulled = (np.asarray(x) for x in run(*given))
    assert u.dtype == np.float32
    assert np.isfinite(along).all() and np.isfinite(pulled).all()
    with jax.enable_x64(True):
        exact = np.asarray(double(*(x.astype(np.float64) for x in given))[0])
    axes = tuple(range(1, v.ndim))
    unit = 1 + np.maximum(np.abs(points), np.abs(exact)).max(axes, keepdims=True)
    np.testing.assert_allclose(u / unit, exact / unit, atol=4e-6)
    if case.kind == "projection":
        np.testing.assert_allclose(np.asarray(run(u, *given[1:])[0]) / unit, u / unit, atol=4e-6)


PARAMETERS = {
    "l1": lambda v, w: op.prox_l1(v, STEP, w),
    "step": lambda v, w: op.prox_huber(v, w[0], w[1], w[2]),
    "scad": lambda v, w: op.prox_scad(v, 0.3 * w[0], w[1], 3 + w[2]),
    "entropy": lambda v, w: op.prox_entropy(v, w[0], w),
    "l2": lambda v, w: op.prox_l2(v[:4].reshape(2, 2), STEP, w[:2]),
    "linf": lambda v, w: op.prox_linf(v, STEP, w[0]),
    "nuclear": lambda v, w: op.prox_nuclear(jnp.outer(v, w), STEP, w[1]),
    "log_det": lambda v, w: op.prox_log_det(jnp.outer(v, v), w[0], w[1]),
    "least_squares": lambda v, w: op.prox_least_squares(v, w[0], jnp.outer(w, v)[:2], w[:2], w[1]),
    "affine": lambda v, w: op.projection_affine(v, jnp.outer(w, v)[:1] + w, w[:1]),
    "simplex": lambda v, w: op.projection_simplex(v, w[0]),
    "l1_ball": lambda v, w: op.projection_l1_ball(v, w[0]),
    "section": lambda v, w: op.projection_box_section(v, -w, w[0] * w, v[::-1], 0.1 * w[1]),
    "weighted": lambda v, w: op.projection_weighted_simplex(v, w, w[1]),
    "spectral_ball": lambda v, w: op.projection_spectral_ball(jnp.outer(v, w) + 1, w[1]),
    "rotate": lambda v, w: op.rotate(op.translate(op.scale(op.add_quadratic(
        op.prox_l1, w[0], w), w[1]), w), jnp.eye(5)[::-1])(v, w[2]),
}


def test_derivatives_in_the_parameters(x64):
    v, dot = (jnp.asarray(np.random.default_rng(5).normal(size=5)) for _ in range(2))
    v, w = v + jnp.arange(5) / 3, jnp.array([0.9, 0.6, 0.7, 1.1, 0.8])
    dot = jnp.asarray(np.random.default_rng(6).normal(size=5))

    @jax.jit
    def run(w):
        return {name: jax.jvp(lambda w, f=f: f(v, w), (w,), (dot,))
                for name, f in PARAMETERS.items()}

    h = 1e-6
    here, up, down = run(w), run(w + h * dot), run(w - h * dot)
    for name, (_, slope) in here.items():
        assert np.any(slope), name
        np.testing.assert_allclose(
            slope, (up[name][0] - down[name][0]) / (2 * h), atol=1e-6, err_msg=name)
