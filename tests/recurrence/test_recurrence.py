"""Recurrences against the plain loop in numpy: values, rounds, windows, derivatives, statuses."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.recurrence import (
    attach_recurrence,
    check_causal,
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

METHODS = ["newton", "diagonal", "elk", "secant", "picard", "jacobi", gauss_seidel(1)]
COUNT, SIZE = 48, 5


def chain(dtype=np.float32, seed=0, scale=0.8):
    """A forgetful network: weights, drivers, first state."""
    rng = np.random.default_rng(seed)
    w = scale * rng.normal(size=(SIZE, SIZE)) / np.sqrt(SIZE)
    return tuple(jnp.asarray(x, dtype) for x in (
        w, rng.normal(size=(COUNT, SIZE)), rng.normal(size=SIZE)))


def cell(w):
    return lambda s, x: jnp.tanh(w @ s + x)


def loop(w, xs, s):
    """The oracle: no jax."""
    rows = []
    for x in np.asarray(xs, np.float64):
        s = np.tanh(np.asarray(w, np.float64) @ np.asarray(s, np.float64) + x)
        rows.append(s)
    return np.stack(rows)


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
    with pytest.raises(TypeError, match="The step"):
        solve_recurrence(lambda s, x: s[:1], s0, xs)
    with pytest.raises(ValueError, match="floating-point states"):
        solve_recurrence(lambda s, x: s, jnp.int32(0), length=3)
    with pytest.raises(ValueError, match="'diagonal' or 'secant'"):
        solve_recurrence(lambda s, x: s, jnp.zeros(65), length=3)
    with pytest.raises(ValueError, match=r"row 1 changed when rows 1"):
        check_causal(lambda s: jnp.concatenate([s[:1] * 0, s[1:]]), jnp.arange(1.0, 9))


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


# --- The dialect -----------------------------------------------------------------------------


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
