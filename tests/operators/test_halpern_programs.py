"""Certificates of linear programs, quadratic programs by products alone, and the scaling."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.sparse import BCOO
from tests.linear_programs import in_bad_units, infeasible, solvable, unbounded

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import linear_program, quadratic_program
from jaxiter.operators.programs.checks import canonical
from jaxiter.operators.programs.halpern import solve_by_halpern
from jaxiter.operators.programs.scaling import scaling

SEEDS = range(20, 28)


@functools.cache
def forty():
    """Programs of 20 x 40, one kind after the other, and what float32 says of them at once."""
    data = [infeasible(20, 40, s) for s in SEEDS] + [unbounded(20, 40, s) for s in SEEDS]
    for seed in SEEDS:
        plain = solvable(20, 40, seed)[:3]
        data += [plain, in_bad_units(*plain, seed), in_bad_units(*plain, seed + 1, decades=4)]
    batch = [jnp.asarray(np.stack(parts), jnp.float32) for parts in zip(*data, strict=True)]
    run = jax.jit(jax.vmap(lambda a, b, c: linear_program(
        c, A=a, b=b, lower=0.0, max_steps=6000)))
    return data, run(*batch)


def test_infeasible_programs_are_proved_so():
    data, out = forty()
    for row, (a, b, _) in enumerate(data[:8]):
        assert out.status[row] == Status.PRIMAL_INFEASIBLE and out.solve.steps[row] <= 5000
        y = np.asarray(out.certificate.equality_dual[row], np.float64)
        assert not np.any(out.certificate.x[row])
        # Every x >= 0 has y'(A x - b) > 0.
        assert np.linalg.norm(np.minimum(a.T @ y, 0)) <= 1e-3 * -(b @ y)


def test_unbounded_programs_have_a_ray():
    data, out = forty()
    for row, (a, _, c) in enumerate(data[8:16], 8):
        assert out.status[row] == Status.DUAL_INFEASIBLE
        d = np.asarray(out.certificate.x[row], np.float64)
        assert np.all(d >= 0) and np.linalg.norm(a @ d) <= 1e-3 * -(c @ d)


def test_solvable_programs_are_never_proved_otherwise():
    _, out = forty()
    assert set(out.status[16:].tolist()) == {Status.CONVERGED}
    assert not np.any(out.certificate.x[16:]) and not np.any(out.certificate.equality_dual[16:])
    values = [solvable(20, 40, seed) for seed in SEEDS for _ in range(3)]
    exact = [c @ x for _, _, c, x in values]
    np.testing.assert_allclose(out.objective[16:], exact, rtol=2e-3)


def test_rays_of_bounds_and_inequalities():
    """x <= 1 beside x >= 2; a fall between no bounds."""
    ones = jnp.ones((1, 2))
    out = linear_program(jnp.ones(2), G=-ones, h=jnp.array([-3.0]), lower=0.0, upper=1.0)
    assert out.status == Status.PRIMAL_INFEASIBLE
    np.testing.assert_allclose(out.certificate.inequality_dual, 1.0, rtol=1e-2)
    out = linear_program(jnp.array([1.0, 0.0]), G=ones, h=jnp.array([1.0]), lower=jnp.array(
        [-jnp.inf, 0.0]))
    assert out.status == Status.DUAL_INFEASIBLE and out.certificate.x[0] < 0


def quadratic(seed, n=12, p=3, m=5):
    """A quadratic program with a solution and multipliers that are known; the active set."""
    rng = np.random.default_rng(seed)
    root = rng.normal(size=(n // 2, n))
    Q, a, g = root.T @ root / n, rng.normal(size=(p, n)), rng.normal(size=(m, n))
    lower, upper = np.full(n, -1.0), np.full(n, np.inf)
    x = rng.uniform(-0.8, 1, size=n)
    x[:4] = lower[:4]
    y, z = rng.normal(size=p), rng.uniform(0.3, 1, size=m) * (np.arange(m) < 2)
    h = g @ x + np.where(z > 0, 0, 1)
    cost = np.where(x == lower, rng.uniform(0.3, 1, size=n), 0)
    q = cost - a.T @ y - g.T @ z - Q @ x
    return (Q, q, a, a @ x, g, h, lower, upper), x, y, z


def test_quadratic_programs_and_their_derivatives():
    """Answers are the known ones, derivatives in q those of the system of what is active."""
    data, x, y, z = quadratic(0)
    n, rows = len(x), np.concatenate([data[2], data[4][:2], np.eye(len(x))[:4]])
    system = np.block([[data[0], rows.T], [rows, np.zeros((len(rows),) * 2)]])
    slope = -np.linalg.inv(system)[:n, :n]

    def solve(q, Q=data[0]):
        program = canonical(Q, q, *(jnp.asarray(v, jnp.float32) for v in data[2:]))
        return solve_by_halpern("quadratic_program", program, None, {
            "stop": ji.tolerance(rtol=1e-6, atol=0)})

    q, Q = jnp.asarray(data[1], jnp.float32), jnp.asarray(data[0], jnp.float32)
    out = jax.jit(solve)(q, Q)
    assert out.solve.merit < 1e-5 and out.solve.steps < 5000, out.message()
    np.testing.assert_allclose(out.x, x, atol=1e-3)
    np.testing.assert_allclose(out.equality_dual, y, atol=2e-3)
    np.testing.assert_allclose(out.inequality_dual, z, atol=2e-3)
    jacobian = jax.jit(jax.jacrev(lambda q, Q: solve(q, Q).x))(q, Q)
    np.testing.assert_allclose(jacobian, slope, atol=2e-3 * np.abs(slope).max())


def test_scaling():
    """Norm one at most, whatever the units; the same for a sparse matrix."""
    a, b, c, _ = solvable(20, 40, 0)
    bad = in_bad_units(a, b, c, 0)
    sparse = BCOO.fromdense(jnp.asarray(bad[0], jnp.float32))
    found = []
    for matrix, right, cost in ((a, b, c), bad, (sparse, *bad[1:])):
        right, cost = (jnp.asarray(v, jnp.float32) for v in (right, cost))
        matrix = matrix if matrix is sparse else jnp.asarray(matrix, jnp.float32)
        units, norm, _ = scaling(canonical(None, cost, matrix, right, lower=0.0))
        dense = bad[0] if matrix is sparse else np.asarray(matrix, np.float64)
        scaled = np.asarray(units.equality_dual)[:, None] * dense * np.asarray(units.x)
        exact = np.linalg.norm(scaled, 2)
        assert exact <= 1 and 0.99 * exact <= norm <= 1.001 * exact
        found.append(float(norm))
    np.testing.assert_allclose(found[1:], found[0], rtol=0.1)
    np.testing.assert_allclose(found[1], found[2], rtol=1e-4)


@pytest.mark.parametrize("bent", [False, True], ids=["linear", "quadratic"])
def test_derivatives_in_units_far_apart(bent):
    """Of a vertex, or of the free unknowns of a quadratic program, by the optimality system.

    In float32, rows and columns over eight decades: all were NaN.
    """
    rng, rows, n = np.random.default_rng(0), 3, 6
    matrix, root = rng.normal(size=(rows, n)), rng.normal(size=(n, n))
    free = rows + bent  # the others are at their bound
    x = np.where(np.arange(n) < free, rng.uniform(0.5, 1, n), 0)
    bend = (root @ root.T + np.eye(n)) * bent
    cost = -matrix.T @ rng.normal(size=rows) - bend @ x + np.where(x > 0, 0, 1)
    unit, row = (10 ** rng.uniform(-4, 4, size=size) for size in (n, rows))
    by_x, by_y = rng.normal(size=n), rng.normal(size=rows)

    def loss(q, b, A, Q, by_x, by_y):
        given = {"A": A, "b": b, "lower": 0.0, "method": "halpern"}
        out = quadratic_program(Q, q, **given) if bent else linear_program(q, **given)
        return by_x @ out.x + by_y @ out.equality_dual, out

    given = [jnp.asarray(v, jnp.float32) for v in (
        cost * unit, matrix @ x * row, row[:, None] * matrix * unit,
        unit[:, None] * bend * unit, by_x * unit, by_y * row)]
    (by_cost, by_side), out = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(*given)
    assert out.converged
    np.testing.assert_allclose(out.x * unit, x, atol=1e-2)  # judged in the units given
    active = matrix[:, :free]
    system = np.block([[bend[:free, :free], active.T], [active, np.zeros((rows, rows))]])
    answer = np.linalg.solve(system, np.r_[by_x[:free], by_y])
    np.testing.assert_allclose(by_cost[:free] * unit[:free], -answer[:free], atol=1e-3)
    np.testing.assert_allclose(by_cost[free:], 0, atol=1e-3)
    np.testing.assert_allclose(by_side * row, answer[free:], atol=1e-3)
