"""What points and rays of programs are judged by: a row or an entry that others might hide."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter import Status
from jaxiter.operators.programs import quadratic_program
from jaxiter.operators.programs.certificates import in_other_units, relative_error
from jaxiter.operators.programs.program import PrimalDual, Program, optimality

INFINITE = np.full(2, np.inf, np.float32)


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
    assert float(jax.jit(relative_error)(rows, at)) > 0.5


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
