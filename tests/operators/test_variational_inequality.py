"""Extragradient methods against published rates, closed forms, numpy and optax."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tests.games import RPS, gap

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import simplices, variational_inequality
from jaxiter.stop import never
from jaxiter.testing import check_front

METHODS = ("extragradient", "past", "reflected", "optimistic", "anchored", "mirror")


def simplex(v, step, *args):
    return simplices.project(v)


def rps(z):
    x, y = z
    a = jnp.asarray(RPS, x.dtype)
    return jnp.matmul(a, y), -jnp.matmul(x, a)


def slopes(values, steps):
    return np.diff(np.log(values)) / np.diff(np.log(steps))


@pytest.mark.parametrize(("method", "step", "expected"), [
    ("extragradient", 0.5, (1.145, 0.3352, 0.1050, 0.03314)),
    ("past", 0.45, (1.274, 0.3704, 0.1166, 0.03683)),
    ("anchored", 0.408, (1.072, 0.1535, 0.01945, 0.001684)),
])
def test_last_iterates_on_twenty_turns_of_all_speeds(x64, method, step, expected):
    """min x' S y max: the slope is -1/2, and -1 with an anchor; 20 times nearer after 10,000."""
    speeds = jnp.logspace(-3, 0, 20)
    run = jax.jit(lambda steps: variational_inequality(
        lambda z: (speeds * z[1], -speeds * z[0]), (jnp.ones(20), jnp.ones(20)), method=method,
        step=step, restart=None, stop=never(), max_steps=steps).residual)
    steps = (10, 100, 1000, 10_000)
    found = [float(run(k)) for k in steps]
    np.testing.assert_allclose(found, expected, rtol=2e-3)
    np.testing.assert_allclose(slopes(found[1::2], steps[1::2]),
                               -1 if method == "anchored" else -0.5, atol=0.05)


@pytest.mark.parametrize(("method", "step"), [
    ("extragradient", 0.9), ("past", 0.45), ("reflected", 0.4), ("optimistic", 0.45)])
def test_means_and_last_iterates_on_rock_paper_scissors(x64, method, step):
    """The gap of the mean falls like 1 / k, that of the last point geometrically."""
    start = jnp.array([1.0, 0, 0]), jnp.array([0.0, 1, 0])
    run = jax.jit(lambda steps: variational_inequality(
        rps, start, resolvent=simplex, method=method, step=step / 3**0.5, average=True,
        stop=never(), max_steps=steps))
    steps = (100, 1000, 10_000)
    outs = [run(k) for k in steps]
    found = [gap(RPS, *map(np.asarray, out.average)) for out in outs]
    np.testing.assert_allclose(slopes(found, steps), -1, atol=0.05)
    assert found[-1] < 5e-4
    assert gap(RPS, *map(np.asarray, outs[0].value)) < 1e-3
    assert gap(RPS, *map(np.asarray, outs[1].value)) < 1e-12


def test_a_restart_repairs_the_anchor_where_the_others_are_linear(x64):
    start = jnp.array([1.0, 0, 0]), jnp.array([0.0, 1, 0])

    @partial(jax.jit, static_argnums=0)
    def run(restart):
        return variational_inequality(
            rps, start, resolvent=simplex, method="anchored", step=0.408 / 3**0.5,
            restart=restart, stop=never(), max_steps=100).value

    assert gap(RPS, *map(np.asarray, run(None))) > 2e-2
    assert gap(RPS, *map(np.asarray, run(0.2))) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_finds_its_own_step(method):
    """float32; the first step from the derivative, later ones from what F does."""
    start = jnp.array([0.8, 0.1, 0.1]), jnp.array([0.1, 0.8, 0.1])
    out = jax.jit(lambda z: variational_inequality(
        rps, z, resolvent=None if method == "mirror" else simplex, method=method))(start)
    assert out.converged and int(out.solve.steps) < 200
    calls = 2 if method in ("extragradient", "mirror") else 1
    assert int(out.solve.calls["operator"]) == calls * int(out.solve.steps)
    np.testing.assert_allclose(np.stack(out.value), 1 / 3, atol=1e-4)


@pytest.mark.parametrize("method", METHODS[:-1])
def test_steps_become_shorter_where_the_map_is_steeper(method):
    """The derivative at the start is a fifth of that at the solution, or a three-hundredth."""
    root = 10.0 if method == "extragradient" else 2.0
    out = variational_inequality(lambda z: z**3 - root**3 + jnp.roll(z, 1) - jnp.roll(z, -1),
                                 jnp.ones(3), method=method, max_steps=3000)
    assert out.converged
    np.testing.assert_allclose(out.value, root, rtol=1e-4)
    assert float(out.step) < 1 / (3 * root**2)


@pytest.mark.parametrize("method", METHODS[1:-1])
def test_a_step_is_shortened_before_it_is_taken_not_after(method):
    """From 1 the first step leads to some 1e2, where a step as long as that leads to 1e7."""
    out = variational_inequality(lambda z: z**3 - 1000, jnp.ones(2), method=method, max_steps=50)
    assert float(out.step) < 0.6 / 300  # F' = 300 at the solution
    np.testing.assert_allclose(out.value, 10, rtol=0.1)


@pytest.mark.parametrize("method", METHODS[1:-1])
@pytest.mark.parametrize(("field", "starts", "root"), [
    (lambda z: z**3 - 1000, (1.0, 100.0), 10.0),  # steeper, flatter on the way
    (lambda z: jnp.exp(z) - 2, (-20.0, -8.0, -4.5, -3.0, 3.0), np.log(2)),
    (lambda z: jnp.tanh(z + 1e3), (1.0,), -1e3),
])
def test_a_step_that_is_far_off_is_taken_back_or_grows(method, field, starts, root):
    """After 3 steps some were CONVERGED 20 off, for a step that fits where F is steep moves little
    where it is not; others took 1,300, and were CONVERGED 2e-3 off.
    """
    out = jax.jit(jax.vmap(lambda z: variational_inequality(field, z, method=method)))(
        jnp.asarray(starts)[:, None])
    assert out.converged.all() and (out.solve.steps < 330).all(), out.solve.steps
    np.testing.assert_allclose(out.value, root, rtol=2e-4)


@pytest.mark.parametrize(("field", "start", "root"), [
    (lambda z: jnp.sinh(z) - 1e4, 1.0, np.arcsinh(1e4)),
    (lambda z: jnp.exp(z) - 2, -20.0, np.log(2)),
])
def test_a_step_to_where_the_field_overflows_is_taken_back(field, start, root):
    """Not by what F does there, which makes a step of 0 of it."""
    out = variational_inequality(field, jnp.full(2, start))
    assert out.converged and int(out.solve.steps) < 200
    np.testing.assert_allclose(out.value, root, rtol=1e-4)


def test_the_optimistic_step_is_that_of_optax():
    matrix = jnp.array([[0.3, 1.0], [-1.0, 0.2]])

    def turn(z):
        return jnp.matmul(matrix, z)

    z = jnp.array([1.0, 2.0])
    steps = optax.optimistic_gradient_descent(0.3)
    state = steps.init(z)
    for _ in range(30):
        update, state = steps.update(turn(z), state)
        z = optax.apply_updates(z, update)
    out = variational_inequality(turn, jnp.array([1.0, 2.0]), method="optimistic", step=0.3,
                                 stop=never(), max_steps=31)
    np.testing.assert_allclose(out.value, z, atol=1e-6)


def affine(seed, n=6):
    rng = np.random.default_rng(seed)
    turn = rng.normal(size=(n, n))
    return turn - turn.T + 0.5 * np.eye(n), 2 * rng.normal(size=n)


def boxed(v, step, *args):
    return jnp.clip(v, -1.0, 0.7)


def reference(matrix, offset):
    """Of the inequality in the box, in numpy: plain projection steps, many of them."""
    z = np.zeros(len(offset))
    for _ in range(20_000):
        half = np.clip(z - 0.05 * (matrix @ z - offset), -1.0, 0.7)
        z = np.clip(z - 0.05 * (matrix @ half - offset), -1.0, 0.7)
    return z


@pytest.mark.parametrize("method", ["extragradient", "anchored"])
def test_an_affine_inequality_in_a_box_and_its_derivative(method):
    matrix, offset = affine(0)
    direction = np.random.default_rng(1).normal(size=6)
    expected = reference(matrix, offset)
    moved = (reference(matrix, offset + 1e-5 * direction)
             - reference(matrix, offset - 1e-5 * direction)) / 2e-5
    assert 0 < np.sum((expected > -1) & (expected < 0.7)) < 6

    def answer(b):
        return variational_inequality(
            lambda z, m, b: jnp.matmul(m, z) - b, jnp.zeros(6), jnp.asarray(matrix, jnp.float32),
            b, resolvent=boxed, method=method, stop=ji.tolerance(rtol=1e-6)).value

    value, dot = jax.jit(lambda b, d: jax.jvp(answer, (b,), (d,)))(
        *(jnp.asarray(v, jnp.float32) for v in (offset, direction)))
    np.testing.assert_allclose(value, expected, atol=2e-5)
    np.testing.assert_allclose(dot, moved, atol=1e-4)
    gradient = jax.jit(jax.grad(lambda b: jnp.sum(answer(b))))(jnp.asarray(offset, jnp.float32))
    np.testing.assert_allclose(jnp.dot(gradient, jnp.asarray(direction, jnp.float32)),
                               moved.sum(), atol=1e-3)


def test_anderson_accelerates_the_map_of_a_given_step():
    matrix, offset = affine(2)
    expected = np.linalg.solve(matrix, offset)
    solve = partial(variational_inequality, lambda z: jnp.matmul(
        jnp.asarray(matrix, jnp.float32), z) - jnp.asarray(offset, jnp.float32), jnp.zeros(6),
        step=0.5 / np.linalg.norm(matrix, 2))
    plain, fast = solve(), solve(solver=ji.anderson())
    assert plain.converged and fast.converged
    assert int(fast.solve.steps) < 0.5 * int(plain.solve.steps)
    np.testing.assert_allclose(fast.value, expected, atol=1e-3)


@pytest.mark.slow
def test_the_front():
    def front(b, **options):
        return variational_inequality(
            lambda z, b: z - b + jnp.array([z[1], -z[0]]), jnp.zeros(2), b, resolvent=boxed,
            **options)

    check_front(front, jnp.array([0.5, 0.1]))


def test_bad_input():
    z = jnp.ones(2)
    with pytest.raises(ValueError, match="method must be one of"):
        variational_inequality(lambda z: z, z, method="prox")
    with pytest.raises(ValueError, match=r"step must be below 0.5 / L = 0.25"):
        variational_inequality(lambda z: z, z, method="past", step=0.3, lipschitz=2.0)
    with pytest.raises(ValueError, match="step must be positive"):
        variational_inequality(lambda z: z, z, step=0.0)
    with pytest.raises(TypeError, match="F"):
        variational_inequality(lambda z: (z, z), z)
    with pytest.raises(ValueError, match="no resolvent"):
        variational_inequality(lambda z: z, z, method="mirror", resolvent=simplex)
    with pytest.raises(ValueError, match="must be positive"):
        variational_inequality(lambda z: z, jnp.array([1.0, 0.0]), method="mirror")
    with pytest.raises(ValueError, match="takes no solver"):
        variational_inequality(lambda z: z, z, method="past", step=0.1, solver=ji.anderson())
    long = jax.jit(lambda step: variational_inequality(
        lambda z: z, jnp.ones(2), step=step, lipschitz=1.0).status)
    assert long(1.5) == Status.BAD_INPUT and long(0.5) == Status.CONVERGED
    broken = variational_inequality(lambda z, a: a * z, z, jnp.nan, step=0.1)
    assert not broken.converged
    ascent = variational_inequality(lambda z: -z, z, step=0.5, max_steps=500)
    assert not ascent.converged


@pytest.mark.parametrize("method", METHODS)
def test_nan_in_the_data_ends_nonfinite(method):
    """It shortened its step a thousand times instead."""
    out = jax.jit(lambda b: variational_inequality(
        lambda z: z - b, jnp.full(4, 0.25), method=method))(jnp.asarray([0, 0, jnp.nan, 0]))
    assert out.status == Status.NONFINITE and np.all(np.isfinite(out.value))


@pytest.mark.parametrize("method", ["extragradient", "past"])
def test_a_step_that_underflows_solves_nothing(method):
    out = variational_inequality(lambda z: 3e38 * z + 1, jnp.zeros(2), method=method, max_steps=50)
    assert not out.converged
