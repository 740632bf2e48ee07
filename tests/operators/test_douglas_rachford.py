"""Douglas-Rachford splitting against scipy's bounded least squares, linear programs, geometry."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linprog, lsq_linear

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import douglas_rachford, prox_box, prox_l1, prox_quadratic
from jaxiter.testing import check_splitting


def quadratic(v, step, a, b):
    return prox_quadratic(v, step, jnp.matmul(a.T, a), -jnp.matmul(b, a))


def boxed(v, step, a, b):
    return prox_box(v, step, -0.1, 0.15)


BOUNDED = douglas_rachford(quadratic, boxed, step_size=0.1)


def data(seed, m, n):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(m, n)), rng.normal(size=m)


def floats(*arrays):
    return [jnp.asarray(a, jnp.float32) for a in arrays]


def test_bounded_least_squares_and_its_multiplier():
    a, b = data(0, 30, 8)
    expected = lsq_linear(a, b, (-0.1, 0.15), tol=1e-12)
    out = jax.jit(lambda *data: ji.solve_splitting(BOUNDED, jnp.zeros(8, jnp.float32), *data))(
        *floats(a, b))
    assert out.converged
    np.testing.assert_allclose(out.value, expected.x, atol=2e-5)
    # The dual is the gradient of f at the answer: zero inside, of the right sign at the bounds.
    gradient = a.T @ (a @ expected.x - b)
    np.testing.assert_allclose(out.dual, gradient, atol=2e-3)
    assert np.abs(gradient).max() > 1


def test_the_rates_of_the_card(x64):
    """The lasso by two proximal maps: errors 1e-3, 1e-6, 1e-9 after so many evaluations."""
    rng = np.random.default_rng(0)
    a, x = rng.normal(size=(100, 200)), np.zeros(200)
    x[:10] = rng.normal(size=10)
    b = a @ x + 0.1 * rng.normal(size=100)
    lam = 0.1 * np.abs(a.T @ b).max()

    @jax.jit
    def run(size, inverse, steps):
        split = douglas_rachford(
            lambda v, t: prox_l1(v, t, lam),
            lambda v, t: jnp.matmul(inverse, v + t * jnp.asarray(a.T @ b)), step_size=size)
        return ji.solve_splitting(split, jnp.zeros(200), max_steps=steps,
                                  stop=ji.tolerance(0.0, 1e-14)).value

    def error(*args):
        value = np.asarray(run(*args))
        f = 0.5 * np.sum((a @ value - b) ** 2) + lam * np.abs(value).sum()
        return f / 123.27492302879436 - 1

    for size, counts in ((0.01, (9, 21, 34)), (0.03, (13, 44, 90))):
        inverse = jnp.asarray(np.linalg.inv(np.eye(200) + size * a.T @ a))
        for level, steps in zip((1e-3, 1e-6, 1e-9), counts, strict=True):
            assert error(size, inverse, steps) <= level < error(size, inverse, steps - 1)


@pytest.fixture(scope="module")
def program():
    """A linear program with a known solution."""
    rng = np.random.default_rng(0)
    a = rng.normal(size=(6, 12))
    x, y = np.maximum(rng.normal(size=12), 0), rng.normal(size=6)
    c = a.T @ y + np.where(x > 0, 0, rng.uniform(size=12))
    return a, a @ x, c


def test_a_linear_program_by_two_projections(program):
    a, b, c = program
    expected = linprog(c, A_eq=a, b_eq=b)
    inverse = np.linalg.pinv(a)

    def affine(v, step, a, b, c, inverse):
        v = v - step * c
        return v - jnp.matmul(inverse, jnp.matmul(a, v) - b)

    split = douglas_rachford(affine, lambda v, t, *_: prox_box(v, t, lower=0.0), step_size=0.5)
    steps = {}
    for name, solver in {
        "picard": None, "anderson": ji.anderson(),
        "halpern": optax.chain(optax.scale(1 / split.averaged), ji.halpern("adaptive")),
    }.items():
        out = jax.jit(lambda *args, s=solver: ji.solve_splitting(
            split, jnp.zeros(12, jnp.float32), *args, solver=s, max_steps=5000))(
                *floats(a, b, c, inverse))
        assert out.converged, out.message()
        np.testing.assert_allclose(c @ np.asarray(out.value), expected.fun, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(a @ np.asarray(out.value), b, atol=1e-4)
        assert np.min(out.value) > -1e-3
        steps[name] = int(out.solve.steps)
    assert steps["anderson"] <= steps["picard"] and steps["halpern"] <= 3 * steps["picard"], steps


@pytest.mark.parametrize("solver", [ji.picard(), ji.halpern()], ids=["picard", "halpern"])
def test_two_sets_that_do_not_meet(solver):
    def box(v, step, low):
        return prox_box(v, step, low, low + 1)

    split = douglas_rachford(
        lambda v, t: box(v, t, jnp.float32(0)), lambda v, t: box(v, t, jnp.float32(3)),
        step_size=1.0)
    out = jax.jit(lambda x0: ji.solve_splitting(
        split, x0, solver=solver, stop=ji.any_of(ji.tolerance(), ji.no_fixed_point())))(
            jnp.array([0.3, 0.7], jnp.float32))
    assert out.status == Status.NO_FIXED_POINT, out.message()
    np.testing.assert_allclose(out.solve.displacement, [2, 2], rtol=1e-2)
    np.testing.assert_allclose(out.value, [1, 1], atol=1e-5)


def test_the_step_changes_neither_answer_nor_derivative(x64):
    a, b = data(1, 20, 5)
    a, b = jnp.asarray(a), jnp.asarray(b)

    @jax.jit
    def run(step, scale):
        split = douglas_rachford(quadratic, boxed, step_size=step)
        return ji.solve_splitting(split, jnp.zeros(5), a, scale * b,
                                  stop=ji.tolerance(1e-12, 0.0), max_steps=5000)[:2]

    both, ones = jax.jacfwd(run, (0, 1)), [run(step, 1.0) for step in (0.05, 0.2)]
    for one, other in zip(*ones, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-7)
    for by_step, by_scale, ends in zip(*zip(*both(0.05, 1.0), strict=True), zip(
            run(0.05, 1 + 1e-5), run(0.05, 1 - 1e-5), strict=True), strict=True):
        np.testing.assert_allclose(by_step, 0, atol=1e-6)
        np.testing.assert_allclose(by_scale, (ends[0] - ends[1]) / 2e-5, atol=1e-5)


def test_bad_steps():
    with pytest.raises(ValueError, match="step_size must be positive"):
        douglas_rachford(quadratic, boxed, step_size=-1.0)
    args = floats(*data(0, 6, 3))
    found = jax.jit(lambda step: ji.solve_splitting(
        douglas_rachford(quadratic, boxed, step_size=step), jnp.zeros(3, jnp.float32),
        *args).status)(jnp.float32(0))
    assert found == Status.BAD_INPUT


@pytest.mark.slow
def test_conformance():
    a, b = data(2, 20, 6)
    kind = jnp.zeros(0).dtype
    check_splitting(BOUNDED, jnp.zeros(6), jnp.asarray(a, kind), jnp.asarray(b, kind))
