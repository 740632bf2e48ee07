"""Linear solvers against numpy; statuses that tell the truth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter import Status, attach_implicit, fixed_point, implicit, linear

METHODS = {"bicgstab": linear.bicgstab, "gmres": linear.gmres, "normal_cg": linear.normal_cg,
           "dense": linear.dense}


def system(dtype, seed=0):
    rng = np.random.default_rng(seed)
    a = np.eye(24) + rng.normal(size=(24, 24)) / 12
    b = rng.normal(size=24)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        a, b = a + 1j * rng.normal(size=(24, 24)) / 12, b + 1j * rng.normal(size=24)
    return a, b


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [1.0, 1e-25, 1e25])
def test_against_numpy(method, dtype, size):
    a, b = system(dtype)
    matrix = jnp.asarray(a, dtype)
    rhs = jnp.asarray(b * size, dtype)
    out = jax.jit(lambda b: METHODS[method]()(lambda v: matrix @ v, b))(rhs)
    assert out.status == Status.CONVERGED
    exact = np.linalg.solve(a, b)
    error = np.linalg.norm(np.asarray(out.value, np.complex128) / size - exact)
    assert error < 1e-4 * np.linalg.norm(exact)
    assert out.residual < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_float16_systems_are_solved(method):
    """As many as there are: a basis that is complete leaves a vector of rounding to be divided."""
    rng = np.random.default_rng(1)
    a = jnp.asarray(np.eye(6) + rng.normal(size=(64, 6, 6)) / 6, jnp.float16)
    b = jnp.asarray(rng.normal(size=(64, 6)), jnp.float16)
    out = jax.jit(jax.vmap(lambda a, b: METHODS[method]()(lambda v: a @ v, b)))(a, b)
    x = np.asarray(out.value, float)
    right = np.asarray(b, float)
    off = np.linalg.norm(np.einsum("kij,kj->ki", np.asarray(a, float), x) - right, axis=1)
    assert np.all(off < 0.03 * np.linalg.norm(right, axis=1))
    assert np.mean(out.status == Status.CONVERGED) > 0.9


@pytest.mark.parametrize("method", [*METHODS, "cg"])
def test_zero_right_hand_side_and_pytrees(method):
    make = {**METHODS, "cg": linear.cg}[method]
    solve = make()

    def matvec(v):
        return {"p": 2 * v["p"] + v["q"], "q": 3 * v["q"] + jnp.sum(v["p"]) * jnp.ones(1)}

    b = {"p": jnp.array([3.0]), "q": jnp.array([4.0])}  # [[2, 1], [1, 3]] x = [3, 4]
    out = solve(matvec, b)
    np.testing.assert_allclose(out.value["p"], 1, rtol=1e-4)
    zero = solve(matvec, jax.tree.map(jnp.zeros_like, b))
    assert zero.status == Status.CONVERGED and zero.residual == 0
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(zero.value))
    warm = make(rtol=1e-5)(matvec, jax.tree.map(jnp.zeros_like, b), x0=b)  # no matter the start
    assert warm.status == Status.CONVERGED
    assert all(np.all(leaf == 0) for leaf in jax.tree.leaves(warm.value))


def test_cg_needs_the_square_root_of_the_condition_number(x64):
    d = jnp.linspace(1.0, 100.0, 60)
    out = linear.cg()(lambda v: d * v, jnp.ones(60))
    np.testing.assert_allclose(out.value, 1 / d, rtol=1e-8)
    assert out.steps < 140


@pytest.mark.parametrize("method", METHODS)
def test_singular_systems_are_reported(method):
    out = METHODS[method]()(lambda v: jnp.stack([v[0] + v[1], v[0] + v[1]]), jnp.array([1.0, -1.0]))
    assert out.status != Status.CONVERGED
    assert not out.residual <= 1e-2


def test_gmres_stagnation_is_reported():
    """A cyclic shift: restarts below the dimension make no progress at all."""
    shift = linear.gmres(restart=3)(lambda v: jnp.roll(v, 1), jnp.eye(8)[0])
    assert shift.status == Status.LINEAR_FAILURE
    whole = linear.gmres(restart=8)(lambda v: jnp.roll(v, 1), jnp.eye(8)[0])
    assert whole.status == Status.CONVERGED


@pytest.mark.parametrize("method", [*METHODS, "cg"])
def test_nan_is_not_a_zero_right_hand_side(method):
    """A NaN cotangent must not become a zero gradient."""
    out = {**METHODS, "cg": linear.cg}[method]()(lambda v: 2 * v, jnp.array([1.0, jnp.nan]))
    assert out.status in (Status.NONFINITE, Status.LINEAR_FAILURE) and not out.residual <= 1e-2


def test_max_steps_and_start():
    a, b = system(jnp.float32)
    matrix = jnp.asarray(a, jnp.float32)
    short = linear.bicgstab(max_steps=4)(lambda v: matrix @ v, jnp.asarray(b, jnp.float32))
    assert short.status == Status.MAX_STEPS and short.residual > 0
    exact = jnp.asarray(np.linalg.solve(a, b), jnp.float32)
    warm = linear.bicgstab()(lambda v: matrix @ v, jnp.asarray(b, jnp.float32), x0=exact)
    assert warm.steps <= 8


def test_reported_residual_is_recomputed():
    a, b = system(jnp.float32, 5)
    matrix, rhs = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    out = linear.bicgstab(rtol=1e-4)(lambda v: matrix @ v, rhs)
    true = np.linalg.norm(rhs - matrix @ out.value) / np.linalg.norm(rhs)
    np.testing.assert_allclose(out.residual, true, rtol=1e-2)


def test_batches_match_single_solves():
    a, _ = system(jnp.float32)
    matrix = jnp.asarray(a, jnp.float32)
    bs = jax.random.normal(jax.random.key(0), (5, 24), jnp.float32)
    batch = jax.jit(jax.vmap(lambda b: linear.bicgstab()(lambda v: matrix @ v, b)))(bs)
    np.testing.assert_allclose(batch.value, np.linalg.solve(a, np.asarray(bs).T).T, rtol=1e-3,
                               atol=1e-4)


def breakdowns():
    """Systems on which BiCGStab alone divides by zero or stalls, `[name, matrix, side]`."""
    rng = np.random.default_rng(7)
    for size in (2, 10, 30):
        a = rng.normal(size=(size, size))
        yield f"skew {size}", a - a.T, rng.normal(size=size)
    for size in (9, 30):
        rows = size // 3
        q = rng.normal(size=(size - rows, size - rows))
        q = q @ q.T / len(q) + 0.05 * np.eye(len(q))
        j = rng.normal(size=(rows, len(q))) / np.sqrt(len(q))
        saddle = np.block([[q, j.T], [j, np.zeros((rows, rows))]])
        yield f"saddle {size}", saddle, rng.normal(size=size)
        yield f"saddle {size}, constraints", saddle, np.r_[np.zeros(len(q)), rng.normal(size=rows)]
    # A residual that is orthogonal to all its images but the last.
    yield "shift", np.roll(np.eye(18), 1, 0), np.eye(18)[0]
    rotation = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    yield "rotation", rotation, rng.normal(size=30)


@pytest.mark.parametrize("name, a, b", [pytest.param(*case, id=case[0]) for case in breakdowns()])
def test_what_breaks_bicgstab_down_is_solved(name, a, b):
    matrix, side = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    out = jax.jit(lambda b: linear.bicgstab()(lambda v: matrix @ v, b))(side)
    a, b = np.asarray(matrix, float), np.asarray(side, float)
    assert np.linalg.norm(a @ np.asarray(out.value, float) - b) < 3e-5 * np.linalg.norm(b), name
    assert out.status in (Status.CONVERGED, Status.PRECISION_FLOOR)
    # A lower bound, where it broke down too.
    assert float(out.condition) < 1.1 * float(np.linalg.cond(a))


def test_gradient_through_a_saddle_point():
    """The default adjoint of an equality constrained quadratic program."""
    rng = np.random.default_rng(3)
    q = rng.normal(size=(12, 12))
    q, j = q @ q.T / 12 + 0.1 * np.eye(12), rng.normal(size=(5, 12))
    kkt = np.block([[q, j.T], [j, np.zeros((5, 5))]])
    c, w = rng.normal(size=17), np.r_[rng.normal(size=12), np.zeros(5)]
    matrix, x = jnp.asarray(kkt, jnp.float32), jnp.asarray(np.linalg.solve(kkt, c), jnp.float32)
    slope = jax.jit(jax.grad(lambda c: jnp.asarray(w, jnp.float32) @ attach_implicit(
        lambda x, c: matrix @ x - c, x, c)))(jnp.asarray(c, jnp.float32))
    exact = np.linalg.solve(kkt.T, w)
    assert np.linalg.norm(np.asarray(slope) - exact) < 1e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("size", [1e-44, 1e-38, 1e-36, 1e38])
def test_the_ends_of_the_float_range(size):
    a, b = system(jnp.float32)
    matrix = jnp.asarray(a, jnp.float32)
    with np.errstate(under="ignore"):
        side = jnp.asarray(b / np.abs(b).max() * size, jnp.float32)
    out = jax.jit(lambda b: linear.bicgstab()(lambda v: matrix @ v, b))(side)
    exact = np.linalg.solve(np.asarray(matrix, float), np.asarray(side, float))
    if size < 1e-37:  # processors may take subnormal numbers for zero
        assert np.linalg.norm(np.asarray(out.value, float) - exact) <= 1.01 * np.linalg.norm(exact)
    else:
        error = np.linalg.norm(np.asarray(out.value, float) - exact)
        assert out.status == Status.CONVERGED and error < 1e-4 * np.linalg.norm(exact)


@pytest.mark.parametrize("bad", [np.inf, -np.inf, np.nan])
def test_what_is_not_finite_is_no_answer(bad):
    a, b = system(jnp.float32)
    b[3] = bad
    matrix = jnp.asarray(a, jnp.float32)
    out = jax.jit(lambda b: linear.bicgstab()(lambda v: matrix @ v, b))(jnp.asarray(b, jnp.float32))
    assert out.status == Status.NONFINITE and not out.residual <= 1e-2


def test_lanes_of_a_batch_break_down_alone():
    rng = np.random.default_rng(2)
    a = rng.normal(size=(6, 10, 10)) / 20
    skew = a - np.swapaxes(a, 1, 2)
    a = np.where(np.arange(6)[:, None, None] % 2 == 0, 20 * skew, np.eye(10) - a)
    b = rng.normal(size=(6, 10))
    out = jax.jit(jax.vmap(lambda a, b: linear.bicgstab()(lambda v: a @ v, b)))(
        jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32))
    rest = np.einsum("bij,bj->bi", a, np.asarray(out.value, float)) - b
    assert np.all(np.linalg.norm(rest, axis=1) < 3e-5 * np.linalg.norm(b, axis=1))


RIDGED = {"cg": linear.cg, "normal_cg": linear.normal_cg, "gmres": linear.gmres,
          "dense": linear.dense}


@pytest.mark.parametrize("method", RIDGED)
def test_ridge_adds_the_identity(method):
    """Of a symmetric matrix with an eigenvalue of 0; traced, as a tree, and for rows alone."""
    rng = np.random.default_rng(3)
    basis = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    a = basis @ np.diag([0.0, 0.5, 1.0, 1.5, 2.0, 3.0]) @ basis.T
    b = rng.normal(size=6)
    exact = np.linalg.solve(a + 0.1 * np.eye(6), b)
    matrix, rhs = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)

    @jax.jit
    def solve(ridge):
        made = RIDGED[method](ridge=ridge)
        return (made(lambda v: matrix @ v, rhs),
                linear.by_rows(made)(lambda v: v @ matrix, jnp.stack([rhs, 2 * rhs])))

    one, rows = solve(0.1)
    assert one.converged and rows.converged.all()
    np.testing.assert_allclose(one.value, exact, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(rows.value, [exact, 2 * exact], rtol=1e-3, atol=1e-4)


def test_ridge_of_an_adjoint():
    """A map with a line of fixed points has no derivative; with a ridge that of the ridge."""
    flat = np.array([[0.5, 0.5], [0.5, 0.5]])

    def loss(c, ridge):
        adjoint = implicit(ridge=ridge)
        return jnp.sum(jnp.array([1.0, 2.0]) * fixed_point(
            lambda x, c: jnp.asarray(flat, x.dtype) @ x + c, jnp.ones(2), c, adjoint=adjoint).value)

    zero = jnp.zeros(2)
    assert np.all(np.isnan(jax.jit(jax.grad(lambda c: loss(c, 0.0)))(zero)))
    exact = np.linalg.solve(np.eye(2) - flat + 0.5 * np.eye(2), [1.0, 2.0])
    for ridge in (0.5, jnp.array(0.5)):
        np.testing.assert_allclose(
            jax.jit(jax.grad(lambda c, r=ridge: loss(c, r)))(zero), exact, rtol=1e-4)
    assert implicit(ridge=0.5) == implicit(ridge=0.5) != implicit(ridge=0.25)
    with pytest.raises(ValueError, match="finite scalar"):
        linear.cg(ridge=jnp.ones(2))
