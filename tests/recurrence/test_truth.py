"""What a solved chain says of itself: residuals, statuses, options."""

import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.recurrence import (
    attach_recurrence,
    diagonal,
    elk,
    gauss_seidel,
    jacobi,
    newton,
    parallel,
    picard,
    secant,
    sequential,
    solve_causal,
    solve_recurrence,
)
from jaxiter.recurrence.methods import GaussSeidel
from tests.recurrence.beds import COUNT, cell, chain, loop


def own_gaps(w, xs, s0, rows):
    """How far each row is from what the loop makes of the row before, largest entry; no jax."""
    w, xs, rows = (np.asarray(part, np.float64) for part in (w, xs, rows))
    before = np.concatenate([np.asarray(s0, np.float64)[None], rows[:-1]])
    return np.abs(rows - np.tanh(before @ w.T + xs)).max(1)


@pytest.mark.parametrize("method, window", [
    ("newton", None), ("secant", 12), ("jacobi", None), (gauss_seidel(12), None),
    pytest.param("elk", 12, marks=pytest.mark.slow)])
def test_the_residual_is_that_of_the_rows_returned(method, window):
    w, xs, s0 = chain(scale=1.2)
    out = jax.jit(lambda w, k: solve_recurrence(
        cell(w), s0, xs, method=method, window=window, rtol=0.0, atol=1e-2, max_steps=k))
    done, early = out(w, COUNT), out(w, 2)
    gap = own_gaps(w, xs, s0, done.value).max()
    assert done.converged
    assert done.merit <= 1 and gap <= 1e-2 + 1e-6
    np.testing.assert_allclose(gap, jnp.abs(done.displacement).max(), atol=1e-6)
    known = int(early.aux)
    assert early.status == Status.MAX_STEPS and known < COUNT
    assert own_gaps(w, xs, s0, early.value)[:known].max(initial=0) <= 1e-2 + 1e-6
    for out in (done, early):
        inputs = np.concatenate([np.asarray(s0)[None], out.value[:-1]])
        block = 12 if isinstance(method, GaussSeidel) else 1  # whose map runs blocks at once
        own = np.concatenate([loop(w, xs[t:t + block], inputs[t])
                              for t in range(0, COUNT, block)]) - out.value
        if out is done or method == "jacobi":  # norm(T(value) - value) == residual
            np.testing.assert_allclose(out.residual, np.linalg.norm(own), rtol=1e-4, atol=2e-6)
            np.testing.assert_allclose(out.displacement, own, atol=1e-6)
        elif window is None:  # of the round, which is not the chain's own map yet
            np.testing.assert_allclose(out.residual, np.linalg.norm(out.displacement), rtol=1e-5)
        else:  # rows that nobody measured have no residual that could be told
            assert np.isinf(out.residual) and np.isinf(out.merit)
    # The point of the loop is the trajectory too.
    assert jax.tree.leaves(done.state.x)[0].shape == done.value.shape


def test_order_two_is_judged_on_the_states_returned():
    """The state that a row remembers of the row before is that row itself."""
    xs = jnp.asarray(np.random.default_rng(1).normal(size=(COUNT, 3)), jnp.float32)
    out = jax.jit(lambda: solve_recurrence(
        lambda s, previous, x: 0.9 * jnp.sin(s) - 0.5 * previous + x,
        (jnp.zeros(3), jnp.ones(3)), xs, order=2, method="secant", window=8, rtol=0.0,
        atol=1e-2))()
    s = np.concatenate([np.ones((1, 3)), np.zeros((1, 3)), np.asarray(out.value, np.float64)])
    gap = s[2:] - (0.9 * np.sin(s[1:-1]) - 0.5 * s[:-2] + np.asarray(xs))
    assert out.converged and np.abs(gap).max() <= 1e-2 + 1e-6
    np.testing.assert_allclose(out.residual, np.linalg.norm(gap), atol=1e-5)
    np.testing.assert_allclose(out.displacement, -gap, atol=1e-6)


def test_a_chain_that_breaks_ends_nonfinite():
    """By a driver or by a step, in vectors, trees and causal maps; finite rows are kept."""
    w, xs, s0 = chain()

    def chains(xs):
        vectors = [solve_recurrence(lambda s, x: 0.1 * w @ s + x, s0, xs, **choice)
                   for choice in ({"method": "secant", "window": 8}, {"method": gauss_seidel(8)})]
        mixed = solve_recurrence(
            lambda s, x: {"n": s["n"] + 1, "x": 0.5 * s["x"] + x},
            {"n": jnp.int32(0), "x": jnp.float32(0)}, xs[:, 0], method="jacobi")
        causal = solve_causal(
            lambda s: jnp.concatenate([xs[:1, 0], 0.5 * s[:-1] + xs[1:, 0]]), jnp.zeros(COUNT))
        return [*vectors, mixed, causal]

    run = jax.jit(chains)
    assert all(out.converged for out in run(xs))
    for bad in (np.nan, np.inf):
        for out in run(xs.at[20, 0].set(bad)):
            assert out.status == Status.NONFINITE and np.isinf(out.residual)
            assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(out.value))
            assert 12 < int(out.aux) <= 20  # row 20 broke; blocks are final or not as a whole
    # In a large batch too, where a maximum may drop NaN.
    small, drivers = w[:3, :3], jax.vmap(lambda t: xs[:24, :3].at[t, 0].set(jnp.nan))(
        jnp.arange(200) % 24)
    many = jax.jit(jax.vmap(lambda xs: solve_recurrence(
        lambda s, x: jnp.tanh(small @ s + x), s0[:3], xs, method="secant", window=6)))(drivers)
    assert np.all(many.status == Status.NONFINITE)
    wide = jnp.zeros((200, 24, 16)).at[jnp.arange(200), 5, jnp.arange(200) % 16].set(jnp.nan)
    many = jax.jit(jax.vmap(lambda xs: solve_recurrence(
        lambda s, x: jnp.tanh(0.5 * s + x), jnp.ones(16), xs, method="jacobi")))(wide)
    assert np.all(many.status == Status.NONFINITE)


def test_integers_carry_their_own_check():
    """Rows of integers are equal or they are not: no tolerance makes a wrong one right."""
    step = lambda s, x: (s * 3 + x) % 101  # noqa: E731
    xs = jnp.asarray(np.random.default_rng(2).integers(0, 101, size=32), jnp.int32)
    exact, s = [], 7
    for x in np.asarray(xs):
        s = (s * 3 + int(x)) % 101
        exact.append(s)
    solve = jax.jit(lambda k: solve_recurrence(
        step, jnp.int32(7), xs, method="jacobi", rtol=1.0, atol=1e3, max_steps=k))
    done, early = solve(32), solve(5)
    np.testing.assert_array_equal(done.value, exact)
    assert done.converged and done.residual == 0
    assert early.status == Status.MAX_STEPS and np.isinf(early.residual)
    assert np.isinf(early.merit) and 4 <= int(early.aux) < 32
    np.testing.assert_array_equal(early.value[:int(early.aux)], exact[:int(early.aux)])
    causal = jax.jit(lambda: solve_causal(
        lambda s: step(jnp.concatenate([jnp.full(1, 7, jnp.int32), s[:-1]]), xs),
        jnp.zeros(32, jnp.int32), rtol=1.0, atol=1e3))()
    np.testing.assert_array_equal(causal.value, exact)
    assert causal.converged and causal.residual == 0


def test_causal_residual_is_that_of_the_rows_returned():
    function = lambda s: jnp.concatenate(  # noqa: E731
        [jnp.ones(1), 0.9 * jnp.cos(s[:-1]) + 0.01 * jnp.cumsum(s)[:-1]])
    out = jax.jit(lambda: solve_causal(function, jnp.zeros(40), rtol=0.0, atol=1e-2))()
    s = np.asarray(out.value, np.float64)
    image = np.r_[1.0, 0.9 * np.cos(s[:-1]) + 0.01 * np.cumsum(s)[:-1]]
    assert out.converged and np.abs(image - s).max() <= 1e-2 + 1e-6
    np.testing.assert_allclose(out.residual, np.linalg.norm(image - s), atol=1e-5)


def test_methods_and_adjoints_are_values():
    makers = (newton, diagonal, lambda: elk(0.5), secant, picard, jacobi, lambda: gauss_seidel(4),
              parallel, sequential)
    values = [make() for make in makers]
    for make, value in zip(makers, values, strict=True):
        assert value == make() == pickle.loads(pickle.dumps(value))
        assert hash(value) == hash(make()) and sum(value == other for other in values) == 1
    assert elk() == elk(1e-3) != elk(0.5) and gauss_seidel(4) != gauss_seidel(5)
    for call, error, text in [
        (lambda: elk(-1.0), ValueError, "damping must not be negative"),
        (lambda: gauss_seidel(0), ValueError, "block must be an integer of at least 1"),
    ]:
        with pytest.raises(error, match=text):
            call()


def test_a_method_is_its_name_and_its_numbers_are_operands():
    w, xs, s0 = chain()
    solve = jax.jit(lambda w, method: solve_recurrence(cell(w), s0, xs, method=method).value)
    named = jax.jit(lambda w: solve_recurrence(cell(w), s0, xs, method="elk").value)
    np.testing.assert_array_equal(solve(w, elk(1e-3)), named(w))
    many = jax.jit(jax.vmap(lambda d: solve_recurrence(
        cell(w), s0, xs, method=elk(d), max_steps=COUNT)))(jnp.array([0.0, 1e-3, 1.0]))
    assert np.all(many.converged) and many.steps[2] > many.steps[0]


def test_objects_of_other_kinds_are_refused():
    step, s0, xs = cell(jnp.eye(2)), jnp.zeros(2), jnp.zeros((4, 2))
    for keywords, text in [
        ({"method": ji.picard()}, "secant.*names diagonal, elk.*got GradientTransf"),
        ({"method": newton}, "got function"), ({"method": ji.diffusion.jvp()}, "got 'jvp'"),
        ({"damping": 0.1}, "unexpected argument 'damping'"),
        *(({"adjoint": other}, r"parallel\(\).*sequential\(\).*jaxiter.frozen\(\)")
          for other in ("parallel", parallel, ji.implicit(), ji.unrolled())),
    ]:
        with pytest.raises(TypeError, match=text):
            solve_recurrence(step, s0, xs, **keywords)
    for other in (parallel(), ji.implicit(), "frozen"):
        with pytest.raises(ValueError, match="no derivatives"):
            solve_causal(lambda s: s * 0, xs, adjoint=other)
    with pytest.raises(TypeError, match=r"derivatives of chains.*implicit\(\)"):
        ji.fixed_point(jnp.cos, 1.0, adjoint=parallel())


def test_frozen_rows_have_no_derivatives():
    w, xs, s0 = chain()

    def rows(w, adjoint):
        out = solve_recurrence(cell(w), s0, xs, adjoint=adjoint).value
        return out, attach_recurrence(cell(w), out, s0, xs, adjoint=ji.frozen())

    def slope(w):
        return jax.grad(lambda w: sum(map(jnp.sum, rows(w, ji.frozen()))))(w)

    assert not np.any(jax.jit(slope)(w))
    values, attached = jax.jit(lambda w: rows(w, parallel()))(w)
    np.testing.assert_array_equal(values, attached)


@pytest.mark.parametrize("method", ["jacobi", "secant"])
def test_a_solver_of_the_library_moves_the_rows(method):
    """Anderson on the rounds of a slow chain: the loop's answer, and its own residual."""
    w, xs, s0 = chain(scale=1.2)
    solve = jax.jit(lambda w, solver: solve_recurrence(
        cell(w), s0, xs, method=method, solver=solver), static_argnums=1)
    plain, mixed = solve(w, None), solve(w, ji.anderson(5))
    assert mixed.converged and int(mixed.steps) <= int(plain.steps) + 1
    np.testing.assert_allclose(mixed.value, loop(w, xs, s0), atol=1e-4)
    own = jax.vmap(cell(w))(jnp.concatenate([s0[None], mixed.value[:-1]]), xs) - mixed.value
    np.testing.assert_allclose(mixed.residual, np.linalg.norm(own), rtol=1e-2, atol=2e-6)


def test_options_of_rounds():
    """The monitor and a rule of one's own see the largest change. A full window goes on from a
    state, all whose rows are measured again; one that slides is refused, for its first rows would
    be taken on trust, and say CONVERGED of other drivers."""
    w, xs, s0 = chain(scale=1.2)

    def solve(k, resume=None, stop=None, xs=xs, init=None, window=None):
        return solve_recurrence(cell(w), s0, xs, method="secant", window=window, max_steps=k,
                                monitor=ji.record(COUNT), init=init, stop=stop, resume=resume)

    whole, first = jax.jit(solve)(COUNT), jax.jit(solve)(3)
    assert first.status == Status.MAX_STEPS and int(first.steps) == 3
    again = jax.jit(lambda state: solve(COUNT, state))
    rest, same = again(first.state), again(whole.state)
    assert rest.converged and int(rest.steps) == int(whole.steps)
    np.testing.assert_array_equal(rest.value, whole.value)
    assert same.converged and int(same.steps) == int(whole.steps) + 1
    for late in (6, int(whole.steps)):  # many rows final, for the old drivers
        state = jax.jit(solve)(late).state
        other = jax.jit(lambda state: solve(2 * COUNT, state, xs=2 * xs))(state)
        assert other.converged
        np.testing.assert_allclose(other.value, loop(w, 2 * xs, s0), atol=1e-4)
    with pytest.raises(ValueError, match="slides takes no resume"):
        solve(COUNT, first.state, window=12)
    with pytest.raises(TypeError, match="resume"):
        solve(COUNT, ji.fixed_point(jnp.cos, 1.0).state)
    change = np.asarray(whole.trace["merit"])[:int(whole.steps)]
    assert change[-1] <= 1 and np.all(change[:-1] > 1) and change[2] == first.merit
    early = jax.jit(lambda k: solve(k, stop=ji.tolerance(rtol=0, atol=100.0)))(COUNT)
    assert early.converged and 1 < early.merit <= 100 and early.steps < whole.steps
    assert early.residual > whole.residual


@pytest.mark.parametrize("method, window", [("secant", 8), ("jacobi", None)])
def test_small_states_are_not_still_because_they_are_small(method, window):
    """The default atol shrinks with the rows."""
    w = np.float32([[0.5, -0.6], [0.6, 0.5]])
    xs = np.random.default_rng(0).normal(size=(24, 2)).astype(np.float32)
    out = jax.jit(lambda size: solve_recurrence(
        lambda s, x: size * jnp.tanh(w @ s / size) + x, jnp.zeros(2), xs * size, method=method,
        window=window))
    exact = loop_of_size_one(w, xs)
    for size in (1e-12, 1e-6, 1.0):
        rows = out(jnp.float32(size))
        assert rows.converged
        np.testing.assert_allclose(rows.value / size, exact, atol=1e-4)


def loop_of_size_one(w, xs):
    s, rows = np.zeros(2), []
    for x in xs.astype(np.float64):
        s = np.tanh(w.astype(np.float64) @ s) + x
        rows.append(s)
    return np.stack(rows)


def test_tolerances_that_allow_nothing():
    def solve(rtol):
        return solve_recurrence(lambda s, x: s / 2 + 1, jnp.float32(0), length=9, rtol=rtol)

    for bad in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="rtol must not be negative"):
            solve(bad)
    with pytest.raises(ValueError, match="'newton' needs real states"):
        solve_recurrence(lambda s, x: 0.5j * s + 1, jnp.complex64(0), length=9)
    slope = jax.jit(jax.grad(lambda a: jnp.abs(solve_recurrence(
        lambda s, x: 1j * a * s + 1, jnp.complex64(0), length=2, method="jacobi").value[-1])))
    np.testing.assert_allclose(slope(0.5), 0.5 / 1.25**0.5, rtol=1e-5)  # of |1 + i a|
    exact = 2 - 2 * 0.5 ** np.arange(1, 10)
    np.testing.assert_allclose(jax.jit(solve)(-1.0).value, exact, rtol=1e-6)


PAIRS = """
import jax.numpy as jnp
from jaxiter.recurrence import solve_recurrence
for rows, window in ((12, 11), (24, 8)):
    xs = jnp.linspace(0.1, 0.9, 2 * rows).reshape(rows, 2)
    out = solve_recurrence(lambda s, x: jnp.tanh(1.2 * s + x * s[::-1]), jnp.ones(2), xs,
                           method="secant", window=window)
    assert out.converged
"""


@pytest.mark.slow
def test_pairs_in_a_window_do_not_crash():
    """By XLA's own flags, not those of this suite: its fusions of pairs in a window segfaulted."""
    environment = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    subprocess.run([sys.executable, "-c", PAIRS], check=True, timeout=240, env=environment)
