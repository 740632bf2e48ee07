"""Doubly stochastic attention against softmax, numpy loops, submatrices and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.transport import qr_doubly_stochastic, sinkhorn_attention


def matrix(scores, steps, **keywords):
    """The attention matrix of given logits: q are their rows, k and v the identity."""
    n = scores.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(n, dtype=scores.dtype), scores.shape)
    q = scores * jnp.sqrt(jnp.asarray(n, scores.dtype))
    return sinkhorn_attention(q, eye, eye, max_steps=steps, **keywords)


def inputs(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return tuple(jnp.asarray(rng.normal(size=shape)) for _ in range(3))


def single(*arrays):
    return tuple(x.astype(jnp.float32) for x in arrays)


def test_one_half_step_is_softmax_to_the_bit():
    q, k, v = single(*inputs(2, 7, 4))

    @jax.jit
    def both(q, k, v):
        scores = jnp.einsum("...id,...jd->...ij", q, k, precision="highest") / jnp.sqrt(
            jnp.float32(4))
        weights = jax.nn.softmax(scores, axis=-1)
        return (jnp.einsum("...ij,...je->...ie", weights, v, precision="highest"),
                sinkhorn_attention(q, k, v, max_steps=1))

    softmax, ours = both(q, k, v)
    np.testing.assert_array_equal(ours, softmax)


def test_half_steps_are_the_loop_of_numpy_and_err_as_measured():
    scores = np.random.default_rng(0).normal(size=(64, 64))
    plan, measured = np.exp(scores), {2: 6e-2, 3: 1.7e-2, 5: 7e-4, 10: 1e-6}
    for step in range(1, 11):
        plan = plan / plan.sum(1 if step % 2 else 0, keepdims=True)
        if step in measured:
            ours = np.asarray(matrix(jnp.asarray(scores, jnp.float32), step))
            np.testing.assert_allclose(ours, plan, rtol=2e-5)
            exact, other = (1, 0) if step % 2 else (0, 1)
            np.testing.assert_allclose(ours.sum(exact), 1, atol=1e-6)
            error = np.abs(ours.sum(other) - 1).max()
            assert error < 1.05 * measured[step] and (step == 10 or error > 0.9 * measured[step])


def test_symmetry_and_order():
    q, k, v = single(*inputs(9, 3))
    order = np.random.default_rng(1).permutation(9)
    attend = jax.jit(lambda q, k, v: sinkhorn_attention(q, k, v, max_steps=5))
    np.testing.assert_allclose(attend(q[order], k[order], v[order]), attend(q, k, v)[order],
                               atol=2e-6)
    symmetric = np.asarray(matrix(q @ q.T / 4, 11))
    np.testing.assert_allclose(symmetric, symmetric.T, atol=1e-4)


def test_masked_tokens_are_not_there():
    q, k, v = single(*inputs(2, 6, 3))
    mask = np.ones((2, 6), bool)
    mask[0, [1, 4]] = False
    attend = jax.jit(lambda q, k, v, mask: sinkhorn_attention(q, k, v, mask=mask))
    out = attend(q, k, v, mask)
    alone = sinkhorn_attention(q[0][mask[0]], k[0][mask[0]], v[0][mask[0]])
    np.testing.assert_allclose(out[0][mask[0]], alone, atol=1e-6)
    np.testing.assert_array_equal(out[0][~mask[0]], 0)
    np.testing.assert_allclose(out[1], sinkhorn_attention(q[1], k[1], v[1]), atol=1e-6)
    slope = jax.jit(jax.grad(lambda q: jnp.sum(attend(q, k, v, mask) ** 2)))(q)
    assert np.all(np.isfinite(slope)) and np.all(slope[0][~mask[0]] == 0)
    none = attend(q, k, v, mask & False)
    np.testing.assert_array_equal(none, 0)


def slope_is_finite_difference(attend, operands):
    way, h = inputs(5, 3, seed=1), 1e-6

    def loss(*operands):
        return jnp.sum(jnp.sin(attend(*operands)))

    ahead, behind = (loss(*(x + s * h * d for x, d in zip(operands, way, strict=True)))
                     for s in (1, -1))
    slopes = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*operands)
    inner = sum(jnp.sum(s * d) for s, d in zip(slopes, way, strict=True))
    np.testing.assert_allclose(inner, (ahead - behind) / (2 * h), rtol=1e-6)


solved = jax.jit(lambda q, k, v, mask=None: sinkhorn_attention(
    q, k, v, mask=mask, tolerance=1e-10, max_steps=500))


def test_derivatives_and_tolerance(x64):
    q, k, v = inputs(5, 3)
    slope_is_finite_difference(jax.jit(sinkhorn_attention), (q, k, v))
    plan = np.exp(np.asarray(q @ k.T) / np.sqrt(3))
    for step in range(200):
        plan = plan / plan.sum(1 - step % 2, keepdims=True)
    tokens = jnp.ones(5, bool)
    np.testing.assert_allclose(solved(q, k, v, tokens), plan @ np.asarray(v), atol=1e-8)
    assert np.all(np.isnan(solved(100 * q, k, v, tokens)))  # not met in so many steps
    assert not np.any(solved(100 * q, k, v, ~tokens))  # without a token nothing is to be met


@pytest.mark.slow  # those of sinkhorn have tests of their own
def test_implicit_derivatives(x64):
    slope_is_finite_difference(solved, inputs(5, 3))
    empty = jax.grad(lambda q, k, v: jnp.sum(solved(q, k, v, jnp.zeros(5, bool))))(*inputs(5, 3))
    assert not np.any(empty)


def test_sixteen_bits_are_summed_in_float32():
    """Sums over 512 tokens in bfloat16 would be off by percents; only the output is rounded."""
    q, k, v = (x.astype(jnp.bfloat16) for x in inputs(512, 4))
    v = v + jnp.bfloat16(1)
    out = sinkhorn_attention(q, k, v)
    assert out.dtype == jnp.bfloat16
    exact = sinkhorn_attention(*single(q, k, v))
    np.testing.assert_allclose(out.astype(jnp.float32), exact, rtol=2**-8)


def test_what_makes_no_sense_is_refused():
    q, k, v = single(*inputs(3, 3, 2))
    triangle = jnp.tril(jnp.ones((3, 3), bool))
    for call, text in (
            (lambda: sinkhorn_attention(q, k, v, mask=triangle), "the identity"),
            (lambda: sinkhorn_attention(q[0], k[0], v[0], mask=triangle), "causal mask leaves"),
            (lambda: sinkhorn_attention(q, k[:, :2], v[:, :2]), "3 queries and 2 keys"),
            (lambda: sinkhorn_attention(q, k[..., :1], v), "q and k must be"),
            (lambda: sinkhorn_attention(q, k, v, max_steps=0), "max_steps"),
            (lambda: sinkhorn_attention(q, k, v, tolerance=0.0), "tolerance"),
            (lambda: qr_doubly_stochastic(q), "square")):
        with pytest.raises(ValueError, match=text):
            call()
    bad = sinkhorn_attention(q.at[1, 0, 0].set(jnp.nan), k, v)
    assert np.all(np.isnan(bad[1])) and np.all(np.isfinite(bad[0]))


def test_squares_of_an_orthogonal_matrix(x64):
    a, way, weights = inputs(3, 5, 5)
    squares = jax.jit(qr_doubly_stochastic)
    out = squares(a)
    np.testing.assert_allclose(out, np.linalg.qr(np.asarray(a))[0] ** 2, atol=1e-4)
    np.testing.assert_allclose(out.sum(-1), 1, atol=1e-14)
    np.testing.assert_allclose(out.sum(-2), 1, atol=1e-14)
    np.testing.assert_allclose(squares(-3 * a * jnp.array([1.0, -1, 1, 1, -1])),
                               squares(a * jnp.ones(5)), atol=1e-4)
    h = 1e-6
    finite = jnp.sum(weights * (squares(a + h * way) - squares(a - h * way))) / (2 * h)
    slope = jax.jit(jax.grad(lambda a: jnp.sum(weights * squares(a))))(a)
    np.testing.assert_allclose(jnp.sum(slope * way), finite, rtol=1e-5)
    singular = jax.grad(lambda a: jnp.sum(weights[0] * qr_doubly_stochastic(a)))(jnp.zeros((5, 5)))
    assert np.all(np.isfinite(singular))
    assert np.all(np.isnan(qr_doubly_stochastic(a[0] * jnp.nan)))
    half = squares(a.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16 and qr_doubly_stochastic(jnp.zeros((0, 0))).shape == (0, 0)
    np.testing.assert_allclose(half.astype(float), squares(a.astype(jnp.bfloat16).astype(float)),
                               atol=2**-8)
    with pytest.raises(TypeError, match="floating point, got complex"):
        qr_doubly_stochastic(a.astype(complex))
