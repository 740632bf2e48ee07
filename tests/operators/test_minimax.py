"""Saddle points and local minimax points against closed forms and spectral radii."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import classify_minimax, minimax
from jaxiter.stop import never

CLASSIFY = jax.jit(classify_minimax, static_argnums=0)


def quadratic(x, y, a, c, b):
    return a / 2 * x**2 + c * x * y + b / 2 * y**2


def radius(a, c, b, tau, eta, steps=40):
    """Of one step: how much a point shrinks, by the norms of two independent ones."""
    run = partial(minimax, quadratic, timescale=tau, step=eta, stop=never(), max_steps=2)
    columns = [run(jnp.array(x), jnp.array(y), a, c, b).solve.value
               for x, y in ((1.0, 0.0), (0.0, 1.0))]
    return np.abs(np.linalg.eigvals(np.array(columns).T)).max()


@pytest.mark.parametrize(("a", "c", "b", "tau", "eta", "expected"), [
    (-0.2, 1.0, 0.0, 10.0, 0.5, 0.99296),
    (-0.2, 1.0, 0.0, 10.0, 0.9, 0.97229),
    (-0.2, 1.0, 0.0, 10.0, 0.2, 1.00002),
    (-1.5, 1.5, -1.0, 1.0, 0.2, 1.041),
    (-1.5, 1.5, -1.0, 2.0, 0.2, 0.968),
    (-1.5, 1.5, -1.0, 4.0, 0.2, 0.939),
])
def test_spectral_radii_of_two_timescales(x64, a, c, b, tau, eta, expected):
    np.testing.assert_allclose(radius(a, c, b, tau, eta), expected, atol=6e-4)


def test_a_point_that_descent_ascent_misses():
    """f is concave in x and flat in y; 0 is a local minimax point, for y answers every x."""
    out = jax.jit(lambda x, y: minimax(
        quadratic, x, y, -0.2, 1.0, 0.0, timescale=10.0, step=0.9))(jnp.array(1.0), jnp.array(1.0))
    assert out.converged and abs(float(out.x)) < 1e-3 and abs(float(out.y)) < 1e-3
    both = np.array([[1 - 0.9 / 10 * -0.2, -0.9 / 10], [0.9, 1]])  # descent ascent
    np.testing.assert_allclose(np.abs(np.linalg.eigvals(both)).max(), 1.04833, atol=1e-5)


def least(x, y, target, matrix):
    return 0.5 * jnp.sum((x - target) ** 2) + jnp.vdot(y, jnp.matmul(matrix, x) - 1)


def test_a_constrained_saddle_point_and_its_derivative():
    """min |x - t|^2 / 2 where A x <= 1, by multipliers y >= 0: both rows bind."""
    rng = np.random.default_rng(0)
    matrix, target = rng.normal(size=(2, 3)), rng.normal(size=3) + 3
    matrix = 2 * np.eye(2, 3) + 0.2 * np.abs(matrix)
    gram = matrix @ matrix.T
    multiplier = np.linalg.solve(gram, matrix @ target - 1)
    assert (multiplier > 0).all()
    expected = target - matrix.T @ multiplier

    def answer(target):
        return minimax(least, jnp.zeros(3), jnp.zeros(2), target, jnp.asarray(matrix, jnp.float32),
                       resolvent_y=lambda v, step, *args: jnp.maximum(v, 0), max_steps=5000)

    out, jacobian = jax.jit(lambda t: (answer(t), jax.jacrev(lambda t: answer(t).x)(t)))(
        jnp.asarray(target, jnp.float32))
    assert out.converged
    np.testing.assert_allclose(out.x, expected, atol=2e-4)
    np.testing.assert_allclose(out.y, multiplier, atol=1e-3)
    np.testing.assert_allclose(out.value, 0.5 * np.sum((expected - target) ** 2), rtol=1e-3)
    np.testing.assert_allclose(
        jacobian, np.eye(3) - matrix.T @ np.linalg.solve(gram, matrix), atol=1e-3)


@pytest.mark.parametrize(("a", "c", "b", "name"), [
    (1.0, 0.5, -1.0, "local_minimax"),
    (-1.5, 1.5, -1.0, "local_minimax"),  # A - C B^-1 C' = 0.75
    (-3.0, 1.5, -1.0, "strict_non_minimax"),  # -0.75
    (-0.2, 1.0, 0.0, "local_minimax"),
    (-0.2, 0.0, 0.0, "strict_non_minimax"),
    (1.0, 0.3, 0.5, "strict_non_minimax"),
    (-1.0, 1.0, -1.0, "undecided"),
])
def test_three_answers(a, c, b, name):
    point = jax.jit(partial(classify_minimax, quadratic))(
        jnp.array(0.0), jnp.array(0.0), a, c, b)
    assert point.name == name
    assert point.gradient == 0


def test_flat_directions_of_y_answer_some_of_x():
    """y_2 is flat and meets x_2 alone: x_1 is judged, x_2 is not."""
    def f(x, y, bend):
        own = 0.5 * (bend * x[0] ** 2 - 5 * x[1] ** 2 - y[0] ** 2)
        return own + 0.3 * x[0] * y[0] + x[1] * y[1]

    kinds = [classify_minimax(f, jnp.zeros(2), jnp.zeros(2), bend) for bend in (1.0, -1.0)]
    assert [kind.name for kind in kinds] == ["local_minimax", "strict_non_minimax"]
    np.testing.assert_allclose([kind.schur for kind in kinds], [1.09, -0.91], rtol=1e-5)


@pytest.mark.parametrize("unit", [1.0, 1e-6, 1e6])
def test_what_is_left_for_x_in_any_units(unit):
    """f is flat along y_1, which answers x_1; the rest by numpy."""
    rng = np.random.default_rng(247)
    turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    bend = turn @ np.diag([0.0, -1.0, -2.0]) @ turn.T
    def f(x, y, own, cross, bend):
        return x @ own @ x / 2 + x @ cross @ y + y @ bend @ y / 2

    for _ in range(3):
        own, cross = rng.normal(size=(2, 3, 3))
        own = own + own.T
        free = np.linalg.svd(cross @ turn[:, :1])[0][:, 1:]
        left = free.T @ (own - cross @ np.linalg.pinv(bend, rcond=1e-9) @ cross.T) @ free
        point = CLASSIFY(f, *(jnp.asarray(v, jnp.float32) for v in (
            np.zeros(3), np.zeros(3), unit * own, unit * cross, unit * bend)))
        least = np.linalg.eigvalsh(left)[0]
        np.testing.assert_allclose(point.schur / unit, least, rtol=1e-3)
        assert int(point.kind) == np.sign(least)


def test_bad_input():
    x = jnp.array(1.0)
    with pytest.raises(ValueError, match="timescale must be a number of at least 1"):
        minimax(lambda x, y: x * y, x, x, timescale=0.5)
    status = jax.jit(lambda tau: minimax(
        lambda x, y: x * x - y * y, x, x, timescale=tau, step=0.1).status)
    assert status(2.0) == Status.CONVERGED
    assert status(0.5) not in (Status.CONVERGED, Status.RUNNING)
    with pytest.raises(ValueError, match="minimax takes no solver"):
        minimax(lambda x, y: x * y, x, x, solver=ji.anderson())
