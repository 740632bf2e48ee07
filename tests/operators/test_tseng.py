"""Tseng's splitting against linear complementarity solved by enumeration, and a matrix game."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import prox_box, tseng
from jaxiter.testing import check_splitting


def simplex(v):
    with jax.numpy_dtype_promotion("standard"):
        return optax.projections.projection_simplex(v).astype(v.dtype)



def affine(z, m, q):
    return jnp.matmul(m, z) + q


def positive(v, step, *_):
    return prox_box(v, step, lower=0.0)


COMPLEMENTARITY = tseng(affine, positive)


def data(seed, n=6):
    """A monotone M, far from symmetric."""
    rng = np.random.default_rng(seed)
    root, skew = rng.normal(size=(n, n)), rng.normal(size=(n, n))
    return 0.1 * root @ root.T + skew - skew.T + 0.2 * np.eye(n), rng.normal(size=n)


def floats(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def by_enumeration(m, q):
    """z >= 0, M z + q >= 0, z (M z + q) = 0."""
    for bits in itertools.product((False, True), repeat=len(q)):
        on = np.array(bits)
        z = np.zeros(len(q))
        z[on] = np.linalg.solve(m[np.ix_(on, on)], -q[on]) if on.any() else 0
        if np.all(z >= 0) and np.all(m @ z + q >= -1e-12):
            return z
    raise AssertionError("no solution")


def test_complementarity_problems_and_their_derivative():
    solve = jax.jit(lambda m, q: ji.solve_splitting(
        COMPLEMENTARITY, jnp.zeros(6, jnp.float32), m, q, max_steps=3000))
    weights = jnp.arange(1, 7, dtype=jnp.float32)
    slope = jax.jit(jax.grad(lambda q, m: jnp.sum(weights * solve(m, q).value)))
    for seed in range(3):
        m, q = data(seed)
        expected = by_enumeration(m, q)
        np.testing.assert_allclose(solve(*floats(m, q)).check().value, expected, atol=2e-4)
        on = expected > 0
        closed = np.zeros(6)
        closed[on] = -np.linalg.solve(m[np.ix_(on, on)].T, np.arange(1.0, 7.0)[on])
        np.testing.assert_allclose(slope(*floats(q, m)), closed, atol=2e-3)


def test_a_matrix_game():
    matrix = np.random.default_rng(0).uniform(-1, 1, (5, 4))
    # min over x of max over y: x^T A y.
    program = linprog(np.append(np.zeros(5), 1), A_ub=np.c_[matrix.T, -np.ones(4)],
                      b_ub=np.zeros(4), A_eq=[np.append(np.ones(5), 0)], b_eq=[1],
                      bounds=[(0, None)] * 5 + [(None, None)])
    split = tseng(lambda z, a: (jnp.matmul(a, z[1]), -jnp.matmul(z[0], a)),
                  lambda v, step, a: (simplex(v[0]), simplex(v[1])))
    start = (jnp.full(5, 0.2, jnp.float32), jnp.full(4, 0.25, jnp.float32))
    out = jax.jit(lambda a: ji.solve_splitting(split, start, a, max_steps=20_000))(
        jnp.asarray(matrix, jnp.float32)).check()
    x, y = map(np.asarray, out.value)
    np.testing.assert_allclose([np.max(x @ matrix), np.min(matrix @ y)], program.fun, atol=1e-3)


def test_it_comes_nearer_to_the_solution_at_every_step(x64):
    m, q = data(4)
    target = by_enumeration(m, q)
    args = jnp.asarray(m), jnp.asarray(q)
    size = COMPLEMENTARITY.problem.memory(jnp.zeros(6), *args)
    z = 5 * jax.random.normal(jax.random.key(0), (100, 6))
    moved = z + jax.vmap(lambda z: COMPLEMENTARITY.problem.residual(z, size, *args)[0])(z)
    assert np.all(np.linalg.norm(moved - target, axis=1)
                  <= np.linalg.norm(z - target, axis=1) * (1 + 1e-9))


def test_bad_steps():
    with pytest.raises(ValueError, match="step_size must be positive"):
        tseng(affine, positive, step_size=-1.0)
    args = floats(*data(0))
    norm = np.linalg.norm(args[0], 2)
    found = jax.jit(jax.vmap(lambda size: ji.solve_splitting(
        tseng(affine, positive, step_size=size), jnp.ones(6, jnp.float32), *args,
        max_steps=3000).status))(jnp.array([-1.0, jnp.nan, 2 / norm, 0.9 / norm], jnp.float32))
    assert found[0] == found[1] == Status.BAD_INPUT and found[3] == Status.CONVERGED
    assert found[2] not in (Status.CONVERGED, Status.PRECISION_FLOOR)


@pytest.mark.slow
def test_conformance():
    kind = jnp.zeros(0).dtype
    check_splitting(COMPLEMENTARITY, jnp.zeros(6), *(jnp.asarray(x, kind) for x in data(9)),
                    max_steps=3000)


def test_a_step_that_underflows_solves_nothing():
    split = tseng(lambda z: 3e38 * z + 1, lambda v, step: v)
    out = ji.solve_splitting(split, jnp.zeros(2), max_steps=50)
    assert not out.converged
