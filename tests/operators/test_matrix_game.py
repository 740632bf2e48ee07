"""Matrix games against linear programs, closed forms and differences in float64."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from tests.games import RPS, by_linear_program, gap, kuhn

import jaxiter as ji
from jaxiter import Status
from jaxiter.operators import matrix_game
from jaxiter.operators.game_maps import sharp_problem
from jaxiter.operators.matrix_game import reflected_halpern
from jaxiter.testing import check_front

#: Shared: what is compiled for a shape is compiled once.
ONE, MANY = jax.jit(matrix_game), jax.jit(jax.vmap(matrix_game))


def random_game(seed, m, n):
    return np.random.default_rng(seed).uniform(-1, 1, (m, n))


def floats(payoff):
    return jnp.asarray(payoff, jnp.float32)


def test_kuhns_poker():
    payoff = kuhn()
    out = ONE(floats(payoff))
    assert out.converged and int(out.solve.steps) <= 400
    assert gap(payoff, np.asarray(out.x, float), np.asarray(out.y, float)) <= 2.1e-5
    np.testing.assert_allclose(out.exploitability, gap(payoff, *map(np.asarray, (out.x, out.y))),
                               atol=1e-6)
    np.testing.assert_allclose(out.value, -1 / 18, atol=1e-5)
    np.testing.assert_allclose(by_linear_program(payoff)[1], -1 / 18, atol=1e-12)


@pytest.mark.slow
def test_eleven_random_games_of_a_hundred_strategies():
    """Steps, and what is left to win, against linear programs."""
    games = np.stack([random_game(seed, 100, 100) for seed in range(11)])
    outs = jax.jit(partial(jax.lax.map, matrix_game))(floats(games))
    assert outs.converged.all()
    assert outs.solve.steps.max() <= 200
    assert (outs.exploitability <= 1e-5).all()
    for payoff, value in zip(games, outs.value, strict=True):
        np.testing.assert_allclose(value, by_linear_program(payoff)[1], atol=1e-5)


@pytest.mark.parametrize("shape", [
    (1, 4), *(pytest.param(shape, marks=pytest.mark.slow) for shape in ((1, 1), (3, 1), (20, 30)))])
def test_shapes_and_units(shape):
    """Payoffs of 1e-6 or 1e6, shifted by a constant, are the same game."""
    payoff = random_game(3, *shape)
    x, value = by_linear_program(payoff)
    for unit, shift in ((1, 0.0), (1e-6, 0.0), (1e6, 0.0), (1, 5.0)):
        out = ONE(floats(unit * (payoff + shift)))
        assert out.converged, out.message()
        np.testing.assert_allclose(out.value / unit - shift, value, atol=1e-4)
        np.testing.assert_allclose(out.x, x, atol=2e-3)


@pytest.mark.slow
def test_a_batch_is_a_loop():
    games = floats(np.stack([random_game(seed, 6, 5) for seed in range(4)]))
    many = MANY(games)
    for i, payoff in enumerate(games):
        out = ONE(payoff)
        assert many.solve.steps[i] == out.solve.steps
        np.testing.assert_allclose(many.x[i], out.x, atol=1e-6)


def test_units_of_rows_are_no_matter():
    """Rows from 1e-4 to 1e2, where guesses by plain steps alone took 1,969 to over 10,000."""
    games = []
    for seed in (2, 3, 4, 7):
        rng = np.random.default_rng(seed)
        games.append(rng.normal(size=(6, 5)) * 10.0 ** rng.uniform(-4, 2, (6, 1)))
    outs = MANY(floats(np.stack(games)))
    assert outs.converged.all() and outs.solve.steps.max() <= 100
    for payoff, x, y in zip(games, np.float64(outs.x), np.float64(outs.y), strict=True):
        assert gap(payoff, x, y) <= 1.1e-5 * np.abs(payoff).max()


def test_lanes_are_vmap():
    games = floats(np.stack([random_game(seed, 6, 5) for seed in range(4)]))
    starts = jnp.full((4, 6), 1 / 6), jnp.full((4, 5), 0.2)
    stop = ji.tolerance(atol=0.0)
    out = jax.jit(lambda a: ji.solve_many(sharp_problem(True), starts, a, lanes=2, stop=stop,
                                          solver=reflected_halpern()))(games)
    one = MANY(games).solve
    assert out.converged.all()
    for ours, other in zip(out.value, one.value, strict=True):
        np.testing.assert_allclose(ours, other, atol=1e-6)


def differences(payoff, direction, solve, size=1e-6):
    high, low = solve(payoff + size * direction), solve(payoff - size * direction)
    return [(a - b) / (2 * size) for a, b in zip(high, low, strict=True)]


def test_derivatives_of_a_unique_equilibrium():
    payoff, direction = random_game(0, 6, 5), np.random.default_rng(1).normal(size=(6, 5))

    def exact(payoff):
        x, value = by_linear_program(payoff)
        y, _ = by_linear_program(-payoff.T)
        return x, y, np.asarray(value)

    expected = differences(payoff, direction, exact)
    _, dots = jax.jit(lambda a, d: jax.jvp(lambda a: matrix_game(a)[:3], (a,), (d,)))(
        floats(payoff), floats(direction))
    for dot, reference in zip(dots, expected, strict=True):
        np.testing.assert_allclose(dot, reference, atol=2e-3)


@pytest.mark.slow
def test_where_strategies_are_not_unique_only_the_value_has_a_derivative():
    value, x = jax.jit(lambda a: (jax.grad(lambda a: matrix_game(a).value)(a),
                                  jax.grad(lambda a: matrix_game(a).x[0])(a)))(jnp.ones((3, 3)))
    np.testing.assert_allclose(value, 1 / 9, atol=1e-6)
    assert jnp.isnan(x).any() or jnp.isfinite(x).all()


def quantal(payoff, temperature):
    """In numpy float64: damped steps of the two responses."""
    x, y = np.ones(len(payoff)), np.ones(len(payoff[0]))
    p, q = x - x, y - y
    for _ in range(2_000):
        x, y = softmax(p), softmax(q)
        p = p + 0.1 * (payoff @ y / temperature - p)
        q = q + 0.1 * (-payoff.T @ x / temperature - q)
    return softmax(p), softmax(q)


@pytest.mark.parametrize("temperature", [1.0, 0.2])
def test_quantal_responses_and_their_derivatives(temperature):
    payoff, direction = random_game(2, 5, 4), np.random.default_rng(3).normal(size=(5, 4))
    x, y = quantal(payoff, temperature)
    expected = differences(payoff, direction, partial(quantal, temperature=temperature), 1e-5)
    warmer = [(a - b) / 2e-5 for a, b in zip(
        quantal(payoff, temperature + 1e-5), quantal(payoff, temperature - 1e-5), strict=True)]

    def answer(a, t):
        out = matrix_game(a, temperature=t)
        return out[:2], out

    def both(a, d, t):
        value, dot, out = jax.jvp(lambda a: answer(a, t), (a,), (d,), has_aux=True)
        return value, dot, jax.jvp(lambda t: answer(a, t)[0], (t,), (jnp.ones(()),))[1], out

    value, dot, heat, out = jax.jit(both)(
        floats(payoff), floats(direction), jnp.float32(temperature))
    assert out.converged and int(out.solve.steps) < 100
    for found, reference in zip((*value, *dot, *heat), (x, y, *expected, *warmer), strict=True):
        np.testing.assert_allclose(found, reference, atol=2e-4)


def test_cold_players_play_the_game_itself():
    out = matrix_game(floats(RPS + 0.3 * np.eye(3)), temperature=0.01, max_steps=3000)
    assert out.converged
    x, value = by_linear_program(RPS + 0.3 * np.eye(3))
    np.testing.assert_allclose(out.x, x, atol=1e-3)
    np.testing.assert_allclose(out.value, value, atol=1e-2)


@pytest.mark.parametrize("temperature", [1e-4, 1e-3, 1.0])
def test_who_has_no_choice_leaves_a_softmax_however_cold(temperature):
    """Weights that are not played fall by a share of the temperature a step, or at once."""
    payoff = random_game(3, 1, 4)
    out = matrix_game(floats(payoff), temperature=jnp.float32(temperature))
    assert out.converged and int(out.solve.steps) < 30  # the first guess comes at the 25th
    np.testing.assert_allclose(out.y, softmax(-payoff[0] / temperature), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_the_front(temperature):
    check_front(partial(matrix_game, temperature=temperature), floats(random_game(5, 4, 3)))


def test_bad_input():
    with pytest.raises(ValueError, match=r"at least one row and one column, got shape \(3, 0\)"):
        matrix_game(jnp.ones((3, 0)))
    with pytest.raises(ValueError, match="NaN or infinity"):
        matrix_game(jnp.array([[1.0, jnp.nan]]))
    with pytest.raises(ValueError, match="temperature must not be negative"):
        matrix_game(jnp.ones((2, 2)), temperature=-1.0)
    with pytest.raises(ValueError, match="start must be strategies"):
        matrix_game(jnp.ones((2, 2)), start=(jnp.ones(3) / 3, jnp.ones(2) / 2))
    with pytest.raises(TypeError, match="matrix_game needs real arrays"):
        matrix_game(jnp.full((2, 2), 1j))
    status = jax.jit(lambda a, t: matrix_game(a, temperature=t).status)
    assert status(jnp.ones((2, 2)), 0.0) == Status.BAD_INPUT
    assert ONE(jnp.full((2, 2), jnp.nan)).status == Status.BAD_INPUT
    assert ji.operators.matrix_game([[1, 2], [3, 4]]).converged
