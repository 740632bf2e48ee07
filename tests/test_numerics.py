"""The ground rules: what is packed, hoisted or asked for only where needed changes no value."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import known, numerics, packed


def test_dtypes():
    assert numerics.real_dtype(jnp.complex64) == np.float32
    assert numerics.accumulation_dtype(jnp.bfloat16) == np.float32
    assert numerics.machine_epsilon((jnp.float16(1), jnp.float32(1))) == 2.0**-10
    assert numerics.machine_epsilon(()) == 2.0**-23
    assert not jax.eval_shape(numerics.strong, 1.0).weak_type


def test_if_needed_is_a_conditional_of_user_code():
    def square(x):
        return {"y": x * x}

    @jax.jit
    @jax.vmap
    def run(needed, x):
        return numerics.if_needed(needed, square, (x,), x)["y"]

    out = run(jnp.array([True, False, True]), jnp.array([2.0, 3.0, jnp.nan]))
    np.testing.assert_array_equal(out, [4, 0, np.nan])
    calls = []

    def counted(x):
        jax.debug.callback(lambda: calls.append(1))
        return x

    once = jax.jit(lambda needed: numerics.if_needed(needed, counted, (jnp.ones(2),), needed))
    once(False)
    jax.effects_barrier()
    assert not calls  # not evaluated where it is not needed
    once(True)
    jax.effects_barrier()
    assert len(calls) == 1


def test_packed_scalars_come_back_bit_by_bit():
    start = (jnp.float32(-0.0), jnp.int32(-5), jnp.uint32(2**32 - 1), jnp.bool_(True),
             jnp.float32(np.nan), jnp.arange(3.0), jnp.int32(0))
    end = jax.jit(lambda s: packed.while_loop(
        lambda s: s[-1] < 4, lambda s: (*s[:-1], s[-1] + 1), s))(start)
    assert end[-1] == 4
    for before, after in zip(start[:-1], end[:-1], strict=True):
        assert before.dtype == after.dtype
        assert np.asarray(before).tobytes() == np.asarray(after).tobytes()


def test_a_small_state_leaves_a_program_as_one_vector_and_reads_as_before():
    def solve(x, resume=None, max_steps=4):
        return ji.fixed_point(jnp.cos, x, solver=ji.anderson(), keep_best=True,
                              max_steps=max_steps, resume=resume)

    part = jax.jit(solve)(jnp.zeros(3))
    words, = jax.tree.leaves(part.state)
    assert words.dtype == np.int32 and int(part.state.step) == 4
    assert part.state.x.shape == (3,) and "LoopState" in repr(part.state)
    whole = solve(jnp.zeros(3), max_steps=8)
    saved = pickle.loads(pickle.dumps(part.state))
    read = jax.tree.map(np.asarray, part.state)
    for state in (part.state, part.state.tree, saved, read, part.state._replace()):
        np.testing.assert_array_equal(solve(jnp.zeros(3), state, 8).value, whole.value)
    # A batch of states is one of words; a state of it is one of its rows.
    starts = jnp.arange(6.0).reshape(2, 3)
    many = jax.vmap(solve)(starts)
    assert many.state.x.shape == (2, 3) and many.state.solver.inner.residuals.shape[0] == 2
    second = jax.tree.map(lambda leaf: leaf[1], many.state)
    np.testing.assert_array_equal(second.kept.x, many.state.kept.x[1])
    np.testing.assert_array_equal(
        jax.jit(solve, static_argnums=2)(starts[1], second, 8).value,
        jax.vmap(lambda x, s: solve(x, s, 8))(starts, many.state).value[1])


def test_large_and_wide_leaves_travel_by_themselves():
    tree = {"large": jnp.ones(packed.SMALL + 1), "half": jnp.ones(2, jnp.bfloat16),
            "none": jnp.zeros((0, 3)), "key": jax.random.key(0), "n": jnp.int32(7)}
    out = jax.jit(lambda tree: packed.Packed(tree))(tree)
    assert len(jax.tree.leaves(out)) == 4
    for name, leaf in out.tree.items():
        assert leaf.dtype == tree[name].dtype and leaf.shape == tree[name].shape
        assert bool((leaf == tree[name]).all())
    alone = packed.Packed({"large": tree["large"], "none": tree["none"]})
    alone = jax.tree.map(lambda leaf: leaf, alone)
    assert {name: leaf.shape for name, leaf in alone.tree.items()} == {
        "large": tree["large"].shape, "none": (0, 3)}


def test_hoist_finds_every_constant():
    weights, places = jnp.array([1.0, 2.0, 3.0]), jnp.array([2, 0])
    pure, constants, shape = numerics.hoist(lambda x: weights[places] * x, jnp.ones(2))
    assert {c.dtype for c in constants} >= {weights.dtype, places.dtype}
    assert shape.shape == (2,)
    np.testing.assert_array_equal(pure(constants, jnp.ones(2)), [3, 1])
    other = [2 * c if c.dtype == weights.dtype else c for c in constants]
    np.testing.assert_array_equal(pure(other, jnp.ones(2)), [6, 2])


def test_anchored_is_unchanged():
    tree = {"x": jnp.array([jnp.nan, 1.0]), "n": jnp.int32(3)}
    for like in ((), jnp.array([jnp.nan]), jax.random.key(0)):
        out = numerics.anchor(tree, like)
        np.testing.assert_array_equal(out["x"], tree["x"])
        assert out["n"] == 3 and out["n"].dtype == jnp.int32


def test_safe_functions_and_their_gradients():
    def divide(a, b):
        return jnp.sum(numerics.safe_divide(a, b))

    top, bottom = jnp.array([1.0, 0.0, 2.0]), jnp.array([0.0, 0.0, 4.0])
    value, (by_top, by_bottom) = jax.jit(jax.value_and_grad(divide, (0, 1)))(
        top, bottom)
    np.testing.assert_array_equal(by_top, [0, 0, 0.25])
    np.testing.assert_array_equal(by_bottom, [0, 0, -0.125])
    assert value == 0.5
    np.testing.assert_array_equal(numerics.safe_log(jnp.array([-1.0, 0, 1])), [-np.inf, -np.inf, 0])
    z = jnp.array([[1000.0, 999.0, -jnp.inf], [-jnp.inf] * 3, [-1000.0, 0.0, 5.0]])
    weights = jnp.array([1.0, 2.0, 0.0])
    exact = [1000 + np.log(1 + 2 * np.exp(-1)), -np.inf, np.log(2)]
    np.testing.assert_allclose(numerics.logsumexp(z, 1, weights), exact, rtol=1e-6)
    slope = jax.jit(jax.grad(lambda z: numerics.logsumexp(z, 1, weights)[::2].sum()))(z)
    np.testing.assert_allclose(slope.sum(1), [1, 0, 1], atol=1e-6)
    assert np.isnan(numerics.safe_log(jnp.array([jnp.nan])))
    unknown = z.at[0, 1].set(jnp.nan).at[2, 2].set(jnp.nan)  # the latter has no weight
    sums = jax.jit(numerics.logsumexp, static_argnums=1)(unknown, 1, weights)
    np.testing.assert_allclose(sums, [np.nan, -np.inf, np.log(2)], rtol=1e-6)
    assert np.isnan(numerics.logsumexp(unknown, 1)).tolist() == [True, False, True]
    unknown = numerics.logsumexp(z[::2], 1, weights.at[1].set(jnp.nan))
    assert np.isnan(unknown).all()


def test_known_numbers_are_checked():
    for check, bad, good in ((known.check_positive, 0, 1e-9), (known.check_fraction, 1, 0),
                             (known.check_share, 0.0, 1)):
        with pytest.raises(ValueError, match="rate must be .*, got"):
            check(rate=bad)
        check(rate=good)
    assert numerics.is_concrete(1.0, jnp.ones(2))
    traced = []
    jax.eval_shape(lambda x: traced.append(numerics.is_concrete(x)) or known.check_positive(
        rate=x), jnp.zeros(()))  # what is traced passes
    assert traced == [False]
