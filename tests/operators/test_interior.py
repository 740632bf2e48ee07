"""The interior-point method where all of x vanishes, in all units, and its certificates."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tests.linear_programs import in_bad_units, infeasible, solvable, unbounded

from jaxiter import Status
from jaxiter.operators.programs import linear_program, quadratic_program

COUNT, N = 40, 12


def random_programs():
    """Q of cond about 1e3 and q >= 0, each in units of 1e-3 to 1e3."""
    rng = np.random.default_rng(7)
    Q = rng.normal(size=(COUNT, N, N))
    Q = np.einsum("kij,klj->kil", Q, Q) / N * 10 ** rng.uniform(-3, 3, size=(COUNT, 1, 1))
    q = rng.uniform(size=(COUNT, N)) * 10 ** rng.uniform(-3, 3, size=(COUNT, 1))
    G = rng.normal(size=(COUNT, 10, N))
    h = rng.uniform(size=(COUNT, 10)) * 10 ** rng.uniform(-2, 2, size=(COUNT, 1))
    return [part.astype(np.float32) for part in (Q, q, G, h)]


@jax.jit
@jax.vmap
def quadratic(Q, q, G, h):
    return quadratic_program(Q, q, G=G, h=h, lower=0.0, method="interior")


def test_a_solution_that_vanishes_is_one():
    """`q >= 0, x >= 0`: the minimum is at 0, where nothing of x is left to measure it by."""
    Q, q, G, h = random_programs()
    for curved in (Q, 0 * Q):
        out = quadratic(curved, q, G, h)
        assert out.converged.all() and not np.any(out.x) and not np.any(out.inequality_dual)
        np.testing.assert_array_equal(out.reduced_cost, q)


def test_units_of_the_right_hand_side_do_not_matter():
    """On simplices of size 1 and 1e-6, whatever the units of Q and q."""
    Q, q, *_ = random_programs()
    solve = jax.jit(jax.vmap(lambda Q, q, b: quadratic_program(
        Q, q, A=jnp.ones((1, N)), b=b, lower=0.0, method="interior")))
    for size in (1.0, 1e-6):
        out = solve(Q, q, np.full((COUNT, 1), size, np.float32))
        assert out.converged.all()
        x, wide = np.asarray(out.x, np.float64), Q.astype(np.float64)
        np.testing.assert_allclose(x.sum(1), size, rtol=1e-5)
        # First-order optimality on a simplex: where x is, the slope is as low as anywhere.
        slope = np.einsum("kij,kj->ki", wide, x) + q
        least = slope.min(1, keepdims=True)
        unit = np.abs(np.einsum("kij,kj->ki", np.abs(wide), x)).max(1) + q.max(1)
        assert np.all(np.sum(x * (slope - least), 1) <= 1e-4 * size * unit)


@pytest.mark.slow
def test_short_limits_of_a_long_solution():
    """`x1 - x2 <= h` and `x1 >= l`, both tiny beside the solution: no ray, and the right x."""
    q = jnp.array([-3.0, -1.0])
    row = jax.jit(jax.vmap(lambda q, h: quadratic_program(
        jnp.eye(2), q, G=jnp.array([[1.0, -1.0]]), h=h, method="interior")))
    h = jnp.array([0.0, 1e-8, 1e-6, 1e-4, 1e-2, 1.0])[:, None]
    size = jnp.array([1.0, 1.0, 1.0, 1.0, 1.0, 1e8])[:, None]
    out = row(q * size, h)
    gap = np.where(size > 1, 1.0, h / 2) / size
    assert out.converged.all(), out.status
    np.testing.assert_allclose(out.x / size, 2 + gap * np.array([1.0, -1.0]), atol=3e-5)
    bound = jax.jit(jax.vmap(lambda low: quadratic_program(
        jnp.eye(2), q, lower=jnp.array([low, -jnp.inf]), method="interior")))
    out = bound(jnp.array([1e-6, 1e-4, 1e-2]))
    assert out.converged.all(), out.status
    np.testing.assert_allclose(out.x, jnp.tile(-q, (3, 1)), atol=3e-5)


@pytest.mark.parametrize("method", ["halpern", "interior"])
def test_without_an_objective_any_feasible_point_will_do(method):
    """Its multipliers are 0; an x that sums its rows to 1 within its bounds."""
    out = linear_program(jnp.zeros(2), A=jnp.array([[1.0, 2.0]]), b=jnp.array([1.0]),
                         lower=-1.0, upper=3.0, method=method)
    assert out.converged and not np.any(out.equality_dual) and not np.any(out.reduced_cost)
    np.testing.assert_allclose(out.x @ jnp.array([1.0, 2.0]), 1.0, rtol=1e-4)


@partial(jax.jit, static_argnames="method")
def proofs(a, b, c, method="interior"):
    return jax.vmap(lambda a, b, c: linear_program(
        c, A=a, b=b, lower=0.0, method=method))(a, b, c)


def stacked(programs):
    return [np.stack([np.asarray(part, np.float32) for part in parts])
            for parts in zip(*programs, strict=True)]


@pytest.mark.slow
def test_a_dozen_steps_prove_that_there_is_no_solution():
    """Farkas rays and directions of unlimited descent, judged in float64; none of solvable ones."""
    seeds = range(20)
    empty, endless = ([make(20, 40, seed) for seed in seeds] for make in (infeasible, unbounded))
    fine = [solvable(20, 40, seed)[:3] for seed in seeds]
    fine += [in_bad_units(*program, seed) for seed, program in enumerate(fine)]
    a, b, c = stacked(empty + endless + fine)
    out = proofs(a, b, c)
    none, falls = out.status == Status.PRIMAL_INFEASIBLE, out.status == Status.DUAL_INFEASIBLE
    assert none[:20].sum() >= 18, out.status[:20]  # of the others rays are found where G has rows
    assert not np.any(none[20:]) and not np.any(falls[:20]) and not np.any(falls[40:])
    assert not np.any(out.converged[:40])
    assert np.all(out.solve.steps[:40][none[:40] | falls[:40]] <= 50)
    a, b, c = (part.astype(np.float64) for part in (a, b, c))
    for row in np.flatnonzero(none):
        y = np.asarray(out.certificate.equality_dual[row], np.float64)
        np.testing.assert_allclose(-y @ b[row], 1, rtol=1e-3)
        assert np.max(-(a[row].T @ y), initial=0) <= 1e-3 * np.abs(a[row]).max() * np.abs(y).max()
    for row in np.flatnonzero(falls):
        d = np.asarray(out.certificate.x[row], np.float64)
        assert d.min() >= 0
        np.testing.assert_allclose(c[row] @ d, -1, rtol=1e-3)
        assert np.linalg.norm(a[row] @ d) <= 1e-3 * np.linalg.norm(a[row], 2) * np.linalg.norm(d)
    rest = ~np.asarray(none | falls)
    assert not np.any(out.certificate.x[rest]) and not np.any(out.certificate.equality_dual[rest])


def test_admm_proves_it_too():
    """Of a quadratic program with `x_1 + x_2 <= -1, x >= 0`, and of one that falls for ever."""
    run = partial(quadratic_program, lower=0.0, method="admm")
    out = run(jnp.eye(2), jnp.ones(2), G=jnp.ones((1, 2)), h=jnp.array([-1.0]))
    assert out.status == Status.PRIMAL_INFEASIBLE
    np.testing.assert_allclose(out.certificate.inequality_dual, 1.0, rtol=1e-3)
    out = run(jnp.diag(jnp.array([1.0, 0.0])), jnp.array([1.0, -1.0]))
    assert out.status == Status.DUAL_INFEASIBLE
    np.testing.assert_allclose(out.certificate.x, jnp.array([0.0, 1.0]), atol=1e-3)
