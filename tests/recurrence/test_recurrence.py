"""Recurrences against the plain loop in numpy: values, rounds, windows, derivatives, statuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.recurrence import (
    check_causal,
    gauss_seidel,
    parallel,
    sequential,
    solve_causal,
    solve_recurrence,
)
from jaxiter.recurrence.methods import GaussSeidel
from tests.recurrence.beds import COUNT, SIZE, cell, chain, loop

METHODS = ["newton", "diagonal", "elk", "secant", "picard", "jacobi", gauss_seidel(1)]


@pytest.mark.parametrize("method, window", [
    *((m, None) for m in METHODS), ("newton", 12), ("secant", 12), (gauss_seidel(12), None),
    *(pytest.param(m, 12, marks=pytest.mark.slow)
      for m in ("diagonal", "elk", "picard", "jacobi"))])
def test_every_method_is_the_loop(method, window):
    w, xs, s0 = chain()
    exact = loop(w, xs, s0)
    solve = jax.jit(lambda w, xs, s0, k: solve_recurrence(
        cell(w), s0, xs, method=method, window=window, max_steps=k))
    out = solve(w, xs, s0, COUNT)
    assert out.converged and out.merit <= 1 and int(out.aux) == COUNT and int(out.steps) <= COUNT
    np.testing.assert_allclose(out.value, exact, atol=5e-5)
    for rounds in (1, 3):  # after k rounds the first k rows are final, the last by its step
        early = solve(w, xs, s0, rounds)
        known = int(early.aux)
        assert early.status == Status.MAX_STEPS and known >= rounds - 1 and early.merit > 1
        np.testing.assert_allclose(early.value[:known], exact[:known], atol=5e-5)
        ahead = early.value + early.displacement
        np.testing.assert_allclose(ahead[:known + 1], exact[:known + 1], atol=5e-5)
    if isinstance(method, GaussSeidel):
        assert int(out.steps) <= COUNT // method.block
    if method == "newton" and window is None:
        assert int(out.steps) <= 8


def test_tight_tolerance_in_float64(x64):
    w, xs, s0 = chain(np.float64)
    for method in ("newton", "secant", "jacobi"):
        out = jax.jit(lambda w, m=method: solve_recurrence(cell(w), s0, xs, method=m))(w)
        np.testing.assert_allclose(out.value, loop(w, xs, s0), atol=1e-9)


def test_affine_chains_take_two_rounds():
    """One round to find the answer, one to see that it stays."""
    w, xs, s0 = chain()
    out = jax.jit(lambda w: solve_recurrence(lambda s, x: w @ s + x, s0, xs))(w)
    assert int(out.steps) == 2
    still = jax.jit(lambda: solve_recurrence(lambda s, x: x, s0, xs, method="jacobi"))()
    assert int(still.steps) == 2
    integral = jax.jit(lambda: solve_recurrence(lambda s, x: s + x, s0, xs, method="picard"))()
    assert int(integral.steps) == 2


@pytest.mark.parametrize("method, window", [
    ("jacobi", None), ("jacobi", 8), (gauss_seidel(1), None), (gauss_seidel(8), None)])
def test_integers_are_bitwise(method, window):
    """A hash that forgets: pairs of integers, equal bit for bit; a counter needs every round."""
    xs = jnp.asarray(np.random.default_rng(0).integers(0, 97, size=64), jnp.int32)

    def step(s, x):
        return {"a": (s["a"] // 4 + x) % 97, "b": (s["a"] ^ x).astype(jnp.int32)}

    s0 = {"a": jnp.int32(5), "b": jnp.int32(0)}
    out = jax.jit(lambda xs: solve_recurrence(step, s0, xs, method=method, window=window))(xs)
    a, rows = 5, []
    for x in np.asarray(xs):
        a, b = (a // 4 + int(x)) % 97, a ^ int(x)
        rows.append((a, b))
    np.testing.assert_array_equal(np.stack([out.value["a"], out.value["b"]], 1), rows)
    if method == "jacobi" and window is None:
        assert out.converged and int(out.steps) < 12
        count = jax.jit(lambda: solve_recurrence(
            lambda s, x: s + 1, jnp.int32(0), length=64, method="jacobi"))()
        assert count.converged and int(count.steps) == 64
        np.testing.assert_array_equal(count.value, np.arange(1, 65))


@pytest.mark.parametrize("adjoint", [parallel(), sequential()])
def test_derivatives_are_those_of_the_loop(adjoint, x64):
    w, xs, s0 = chain(np.float64)
    xs = xs[:12]
    c = jnp.asarray(np.random.default_rng(3).normal(size=(12, SIZE)))

    def solved(w, xs, s0):
        return jnp.sum(c * solve_recurrence(cell(w), s0, xs, adjoint=adjoint).value ** 2)

    def scanned(w, xs, s0):
        rows = jax.lax.scan(lambda s, x: (cell(w)(s, x),) * 2, s0, xs)[1]
        return jnp.sum(c * rows**2)

    ours, reference = (jax.jit(jax.grad(f, argnums=(0, 1, 2)))(w, xs, s0)
                       for f in (solved, scanned))
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-9)
    direction = jnp.asarray(np.random.default_rng(4).normal(size=w.shape))
    forward, second = (jax.jit(lambda w, f=f: (
        jax.jvp(lambda w: f(w, xs, s0), (w,), (direction,))[1],
        jax.jvp(jax.grad(lambda w: f(w, xs, s0)), (w,), (direction,))[1])) for f in
        (solved, scanned))
    for a, b in zip(forward(w), second(w), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-8)


def test_pytrees_order_two_and_batches():
    """A damped wave s'' = -s as two states a step reads, with a dictionary as state."""
    drive = jnp.asarray(np.random.default_rng(1).normal(size=(30, 2)), jnp.float32)

    def step(s, previous, x):
        return {"u": 1.2 * s["u"] - 0.5 * previous["u"] + x[0],
                "v": jnp.cos(s["u"]) * 0.3 + 0.2 * previous["v"] + x[1]}

    s0 = ({"u": jnp.float32(1), "v": jnp.zeros(3)}, {"u": jnp.float32(0.5), "v": jnp.ones(3)})
    u, v, rows = [0.5, 1.0], [np.ones(3), np.zeros(3)], []
    for x in np.asarray(drive, np.float64):
        u.append(1.2 * u[-1] - 0.5 * u[-2] + x[0])
        v.append(np.cos(u[-2]) * 0.3 + 0.2 * v[-2] + x[1])
        rows.append(np.r_[u[-1], v[-1]])
    for method in ("newton", "secant"):
        solve = jax.jit(jax.vmap(lambda x, m=method: solve_recurrence(
            step, s0, x, order=2, method=m)))
        out = solve(jnp.stack([drive, 0 * drive]))
        assert np.all(out.converged) and out.steps.shape == (2,)
        ours = np.concatenate([out.value["u"][0, :, None], out.value["v"][0]], 1)
        np.testing.assert_allclose(ours, rows, atol=1e-4)


def test_statuses_are_true():
    w, xs, s0 = chain()
    chaotic = jax.jit(lambda w: solve_recurrence(cell(6 * w), s0, xs, max_steps=4))(w)
    assert chaotic.status == Status.MAX_STEPS and 3 <= chaotic.aux < COUNT and chaotic.merit > 1
    broken = jax.jit(lambda: solve_recurrence(
        lambda s, x: jnp.where(x > 20, jnp.nan, 0.5 * s), jnp.float32(1), jnp.arange(40.0)))()
    assert broken.status == Status.NONFINITE
    overflow = jax.jit(lambda: solve_recurrence(
        lambda s, x: s * s, jnp.float32(10), length=20, method="jacobi"))()
    assert overflow.status == Status.NONFINITE
    # An unstable but finite chain: nothing is lost to overflow in the scan.
    growing = jax.jit(lambda: solve_recurrence(
        lambda s, x: 1.5 * s + 0 * jnp.sin(s), jnp.float32(1e-3), length=40, atol=0.0))()
    np.testing.assert_allclose(growing.value[-1], 1e-3 * 1.5**40, rtol=1e-4)


def test_warm_start():
    w, xs, s0 = chain()
    rows = jax.jit(lambda w: solve_recurrence(cell(w), s0, xs).value)(w)
    again = jax.jit(lambda w, rows: solve_recurrence(
        cell(w), s0, xs, init=rows, method="jacobi"))(w, rows)
    assert int(again.steps) <= 2


def test_bad_input():
    step, s0, xs = cell(jnp.eye(2)), jnp.zeros(2), jnp.zeros((4, 2))
    for keywords, text in [
        ({"method": "krylov"}, "method must be one of"), ({"window": 5}, r"window must be in 1..4"),
        ({"order": 3}, "order must be 1 or 2"), ({"method": "gauss_seidel"}, "length of its bl"),
        ({"method": gauss_seidel(3)}, "blocks that divide.*block=3"),
        ({"method": gauss_seidel(2), "window": 2}, "takes no window"),
        ({"length": 5}, "one leading axis"),
        ({"solver": ji.anderson(), "window": 2}, "no window"),
        ({"solver": ji.anderson(), "method": gauss_seidel(2)}, "a step of its own"),
        ({"check_every": 2}, "takes no check_every"), ({"keep_best": True}, "no keep_best"),
    ]:
        with pytest.raises(ValueError, match=text):
            solve_recurrence(step, s0, xs, **keywords)
    with pytest.raises(ValueError, match="no step"):
        solve_recurrence(step, s0, xs[:0])
    for init in (xs[:3], xs[:, :1], jnp.zeros((4, 2), int), (xs,)):
        with pytest.raises(TypeError, match="init must keep"):
            solve_recurrence(step, s0, xs, init=init)
    with pytest.raises(TypeError, match="The step"):
        solve_recurrence(lambda s, x: s[:1], s0, xs)
    with pytest.raises(ValueError, match="floating-point states"):
        solve_recurrence(lambda s, x: s, jnp.int32(0), length=3)
    with pytest.raises(ValueError, match="'diagonal' or 'secant'"):
        solve_recurrence(lambda s, x: s, jnp.zeros(65), length=3)
    with pytest.raises(ValueError, match=r"row 1 changed when rows 1"):
        check_causal(lambda s: jnp.concatenate([s[:1] * 0, s[1:]]), jnp.arange(1.0, 9))


def test_what_is_causal_is_not_accused():
    """A first row that reads itself is named; NaN and the rounding of an FFT are no dependence."""
    for rows in (1, 5):
        with pytest.raises(ValueError, match="row 0 changed"):
            solve_causal(lambda s: jnp.concatenate([0.5 * s[:1] + 1, s[:-1]]), jnp.zeros(rows))
    check_causal(lambda s: jnp.concatenate([jnp.full(1, jnp.nan), s[:-1]]), jnp.arange(5.0))

    def convolved(s):
        past = jnp.fft.irfft(jnp.fft.rfft(0.5 ** jnp.arange(33.0), 66) * jnp.fft.rfft(s, 66), 66)
        return jnp.concatenate([jnp.ones(1), past[:32]])

    check_causal(convolved, jnp.arange(33.0))
    with pytest.raises(ValueError, match="row 0 changed"):
        check_causal(lambda s: convolved(s) + 1e-3 * s[-1], jnp.arange(33.0))


def test_causal_maps_are_decoded_exactly():
    """An order-2 argmax decoder over the whole array, integers, against the loop."""
    table = jnp.asarray(np.random.default_rng(0).normal(size=(5, 5, 5)))
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(256, 5)) * 1.5)

    def decode(tokens):
        padded = jnp.concatenate([jnp.zeros(2, jnp.int32), tokens])
        return jnp.argmax(table[padded[:-2], padded[1:-1]] + bias, axis=1).astype(jnp.int32)

    out = solve_causal(decode, jnp.zeros(256, jnp.int32))
    tokens = [0, 0]
    for row in np.asarray(bias):
        tokens.append(int(np.argmax(np.asarray(table)[tokens[-2], tokens[-1]] + row)))
    assert out.converged and int(out.steps) < 64
    np.testing.assert_array_equal(out.value, tokens[2:])
    floats = jax.jit(lambda: solve_causal(
        lambda s: jnp.concatenate([jnp.ones(1), 0.5 * s[:-1]]), jnp.zeros(20)))()
    np.testing.assert_allclose(floats.value, 0.5 ** np.arange(20), atol=1e-4)


def test_time_can_be_vmapped_inside_a_mesh():
    """Chains spread over devices: the answers of one device."""
    w, xs, s0 = chain()
    batch = jnp.stack([xs * k / 8 for k in range(8)])
    solve = jax.vmap(lambda x: solve_recurrence(cell(w), s0, x).value)
    mesh = jax.make_mesh((8,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
    spread = jax.jit(ji.over_mesh(solve, mesh, "batch"))
    np.testing.assert_allclose(spread(batch), jax.jit(solve)(batch), atol=1e-6)
