"""What points and rays of programs are judged by: a row or an entry that others might hide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from jaxiter import Status
from jaxiter.operators.programs import linear_program, quadratic_program
from jaxiter.operators.programs.certificates import (
    displaced,
    in_other_units,
    relative_error,
)
from jaxiter.operators.programs.optimality import optimality
from jaxiter.operators.programs.program import PrimalDual, Program
from jaxiter.operators.programs.scaling import Scaling

INFINITE = np.full(2, np.inf, np.float32)
ONES = Scaling(PrimalDual(jnp.ones(1), jnp.ones(1), jnp.ones(1)), jnp.ones(()), jnp.zeros(()))


def program(A: list, b: list, G: list, h: list) -> Program:
    """Rows alone: no objective but `x'x / 2`, no bounds."""
    return Program(jnp.eye(2), jnp.zeros(2), *(jnp.array(rows, jnp.float32) for rows in (
        A, b, G, h)), -INFINITE, INFINITE)


def point(x: list, y: float = 0.0, z: float = 0.0) -> PrimalDual:
    return PrimalDual(jnp.array(x, jnp.float32), jnp.array([y]), jnp.array([z]))


def test_a_huge_row_with_room_hides_no_other() -> None:
    """`x = 1` is off by 2 where another row is 1e30 from its side and both objectives agree."""
    rows = Program(None, *(jnp.array(v, jnp.float32) for v in (
        [1], [[1]], [1], [[1e30]], [0], [-3], [np.inf])))
    at = point([-1], -0.5)
    assert float(jax.jit(optimality)(rows, at).alone) > 0.05
    assert float(jax.jit(relative_error)(rows, at, ONES)) > 0.5


def test_a_huge_entry_of_the_gradient_hides_no_other() -> None:
    rows = program([[1e30, 0]], [0], [[0, 1]], [9])._replace(q=jnp.array([-1e30, 1]))
    worst = jax.jit(lambda at: optimality(rows, at).worst())(point([0, 2], 1.0))
    assert float(worst) > 0.05  # the second entry is 3, and nothing explains it


def test_rounding_is_forgiven_row_by_row() -> None:
    """A row of terms of 1 is off by 1e-3, which is the rounding of another's, of terms of 2e4."""
    rows = program([[1, 0]], [1], [[1, 2e4]], [3e4])
    off = jax.jit(lambda at: optimality(rows, at).primal)(point([1.001, 1]))
    np.testing.assert_allclose(off, 1e-3, rtol=1e-3)
    long = program([[1, 2e4]], [2e4 + 1], [[1, 1]], [9])
    assert float(jax.jit(lambda at: optimality(long, at).primal)(point([1.001, 1]))) == 0


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_a_ray_in_other_units_keeps_every_entry(size: float) -> None:
    """Multipliers of rows in units 1e30 apart, of any length: `3e38 x1 = -1`, `x1 >= 0`."""
    rows = Program(None, jnp.zeros(2), jnp.array([[3e38, 0], [0, 1]]), jnp.array([-1.0, 0]),
                   jnp.zeros((0, 2)), jnp.zeros(0), jnp.zeros(2), INFINITE)
    ray = PrimalDual(jnp.zeros(2), size * jnp.array([1e-3, -1e-6]), jnp.zeros(0))
    units = PrimalDual(jnp.ones(2), jnp.array([1e-15, 1e15]), jnp.zeros(0))
    found = np.asarray(jax.jit(in_other_units)(rows, ray, units).equality_dual, float)
    assert np.all(np.isfinite(found)) and np.all(found != 0)
    np.testing.assert_allclose(found[0] / found[1], -1e-27, rtol=1e-5)


@pytest.mark.parametrize("method", ["admm", "interior", "halpern"])
def test_a_certificate_of_huge_rows_is_one(method: str) -> None:
    """`3e38 x1 + x2 = -1` for x1 >= 0.5 and x2 in [-1, 1]."""
    out = jax.jit(lambda A: quadratic_program(
        jnp.eye(2), jnp.ones(2), A=A, b=-jnp.ones(1), lower=jnp.array([0.5, -1]),
        upper=jnp.array([jnp.inf, 1]), method=method, max_steps=2000))(jnp.array([[3e38, 1]]))
    y = float(out.certificate.equality_dual[0])
    if out.solve.status == Status.PRIMAL_INFEASIBLE:  # the least of y (A x - b) is at x1 = 0.5
        assert y > 0
    else:
        assert not out.converged and y == 0


def test_multipliers_that_cancel_hide_no_gradient() -> None:
    """An equation is also an inequality: `y + z = 0`, of 1 each, beside a q of 1e-6."""
    rows = program([[1, 0]], [1], [[1, 0]], [1])._replace(Q=None, q=jnp.array([1e-6, 0]))
    assert float(jax.jit(lambda at: optimality(rows, at).worst())(point([1, 0], -1.0, 1.0))) > 0.5


def test_a_gradient_whose_terms_cancel_is_rounding() -> None:
    """The least largest deviation `max_i |X x - t|_i`: entries of q are 0, x has no bounds."""
    rng = np.random.default_rng(0)
    rows, t = rng.normal(size=(4, 3)), rng.normal(size=4)
    ones = np.ones((4, 1))
    given = {"A_ub": np.block([[rows, -ones], [-rows, -ones]]), "b_ub": np.r_[t, -t]}
    exact = linprog([0, 0, 0, 1], **given, bounds=(None, None)).fun
    out = linear_program(jnp.array([0.0, 0, 0, 1]), G=given["A_ub"].astype(np.float32),
                         h=given["b_ub"].astype(np.float32), method="interior")
    assert out.converged, out.message()
    np.testing.assert_allclose(out.objective, exact, rtol=1e-5)


@pytest.mark.parametrize("matrix", ["array", "pair"])
def test_rows_without_sides_are_judged_beside_what_they_sum(matrix: str) -> None:
    """`|x - a|^2 / 2` with `w'x = 0`: that sum is never 0 but for rounding."""
    a, w = np.random.default_rng(1).normal(size=(2, 7)).astype(np.float32)
    row = jnp.asarray(w[None])
    A = row if matrix == "array" else (lambda x: row @ x, lambda y: row.T @ y)
    out = quadratic_program(jnp.eye(7), -a, A=A, b=jnp.zeros(1), method="halpern", max_steps=4000)
    assert out.converged, out.message()
    np.testing.assert_allclose(out.x, a - w * (w @ a) / (w @ w), atol=1e-3)


@pytest.mark.parametrize("method", ["admm", "interior", "halpern"])
def test_rows_far_away_change_nothing(method: str) -> None:
    """A knapsack, beside rows without entries and rows with sides of 1e6."""
    rng = np.random.default_rng(2)
    value, weight = rng.uniform(0.1, 1, (2, 6)).astype(np.float32)
    far = np.where(np.arange(4)[:, None] < 2, 0, rng.normal(size=(4, 6))).astype(np.float32)
    G, h = np.r_[weight[None], far], np.r_[weight.sum() / 2, [0, 1e6, 1e6, 1e5]]
    exact = linprog(-value, A_ub=weight[None], b_ub=h[:1], bounds=(0, 1)).fun
    out = quadratic_program(jnp.zeros((6, 6)), -value, G=G, h=h.astype(np.float32), lower=0.0,
                            upper=1.0, method=method, max_steps=10_000)
    assert out.converged, out.message()
    np.testing.assert_allclose(out.objective, exact, rtol=1e-3)
    assert np.all(np.asarray(out.inequality_dual)[1:] == 0)


def test_sides_that_differ_by_rounding_are_no_contradiction() -> None:
    """One equation twice, its side once rounded up: the difference of both says `0 x = 1e-7`."""
    one = np.float32(1)
    rows = Program(None, jnp.ones(3), jnp.ones((2, 3)), jnp.array(
        [one, np.nextafter(one, np.float32(2))]), jnp.zeros((0, 3)), jnp.zeros(0), jnp.zeros(3),
        jnp.full(3, jnp.inf))
    none = PrimalDual(jnp.zeros(3), jnp.zeros(2), jnp.zeros(0))
    moved = none._replace(equality_dual=jnp.array([1.0, -1]))
    prove = jax.jit(lambda rows: displaced(rows, none, moved)[0])
    assert prove(rows) == Status.RUNNING
    assert prove(rows._replace(b=jnp.array([1, 1.001]))) == Status.PRIMAL_INFEASIBLE
