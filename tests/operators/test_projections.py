"""Projections against optax and numpy in long rows, at the edges of their sets, and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import optax.projections
import pytest

from jaxiter import operators as op
from jaxiter.operators import projections

rng = np.random.default_rng(0)
KIND = jnp.zeros(0).dtype


def test_long_rows_in_single_precision():
    """Rows of 1e5 entries, some of them far from 0: in numpy's float64 from the same numbers."""
    v = rng.normal(size=(3, 100_000)) * np.array([[1.0], [100.0], [1e-3]]) + [[0.0], [1e4], [-3]]
    v = v.astype(np.float32)
    found = np.asarray(jax.jit(op.projection_simplex)(v))
    exact = v.astype(np.float64)
    falling = -np.sort(-exact, -1)
    tau = np.max((np.cumsum(falling, -1) - 1) / np.arange(1, v.shape[1] + 1), -1, keepdims=True)
    np.testing.assert_allclose(found, np.maximum(exact - tau, 0), atol=3e-7)
    np.testing.assert_allclose(found.sum(-1, dtype=np.float64), 1, atol=2e-6)


def test_rows_are_those_of_optax():
    v = jnp.asarray(2 * rng.normal(size=(6, 5)), KIND)
    with jax.numpy_dtype_promotion("standard"):  # as optax has to be called
        for ours, theirs in ((op.projection_simplex, optax.projections.projection_simplex),
                             (op.projection_l1_ball, optax.projections.projection_l1_ball)):
            np.testing.assert_allclose(
                ours(v, 1.5), [theirs(row, 1.5) for row in v], atol=1e-6)
            scales = jnp.linspace(0.5, 2, 6)
            np.testing.assert_allclose(
                ours(v, scales), [theirs(*given) for given in zip(v, scales, strict=True)],
                atol=1e-6)


def test_what_optax_has_is_here_as_it_is():
    tree = {"a": jnp.array([3.0, -4.0]), "b": jnp.zeros(1)}
    assert op.projection_l2_ball is optax.projections.projection_l2_ball
    np.testing.assert_allclose(op.projection_l2_ball(tree)["a"], [0.6, -0.8], atol=1e-6)
    assert op.projection_non_negative(tree)["a"].tolist() == [3, 0]
    assert op.projection_linf_ball(tree, 2.0)["a"].tolist() == [2, -2]
    near = op.projection_halfspace(tree, tree, 1.0)["a"]
    np.testing.assert_allclose(near, [0.12, -0.16], atol=1e-6)


def test_the_slope_of_the_simplex_is_that_of_its_support():
    v = jnp.array([0.9, 0.7, -2.0, 0.8])
    (by_v, by_scale), twice = jax.jit(lambda *given: (
        jax.jacobian(op.projection_simplex, argnums=(0, 1))(*given),
        jax.hessian(lambda v: op.projection_simplex(v)[0])(given[0])))(v, 1.0)
    on = np.array([1.0, 1, 0, 1])
    np.testing.assert_allclose(by_v, np.diag(on) - np.outer(on, on) / 3, atol=1e-6)
    np.testing.assert_allclose(by_scale, on / 3, atol=1e-6)
    assert not np.any(twice)


def test_both_ways_to_the_support_agree():
    """By a root on CPUs, by a sort elsewhere."""
    below = jnp.asarray(-np.abs(rng.normal(size=(50, 40))), KIND).at[:, 3].set(0)
    mass = jnp.asarray(10 ** rng.uniform(-4, 3, size=(50, 1)), KIND)
    ways = jax.jit(lambda *given: [way(*given) for way in (
        projections._by_root, projections._by_sort)])(below, mass)
    np.testing.assert_allclose(*ways, rtol=2e-6)


def test_masked_entries_stay_out_of_the_simplex():
    v = jnp.array([-jnp.inf, 0.3, -jnp.inf, 0.1])
    value, slope = jax.value_and_grad(lambda v: jnp.sum(jnp.sin(op.projection_simplex(v))))(v)
    np.testing.assert_allclose(op.projection_simplex(v), [0, 0.6, 0, 0.4], atol=1e-6)
    assert np.isfinite(value) and slope[0] == slope[2] == 0


def test_sections_at_their_ends():
    v = jnp.asarray(rng.normal(size=(4, 10)), KIND)
    # 10 caps of 0.1 round to more or less than 1.
    np.testing.assert_allclose(op.projection_capped_simplex(v, 0.1), 0.1 + 0 * v, atol=1e-6)
    np.testing.assert_allclose(op.projection_capped_simplex(v, 0.1, 0.0), np.zeros((4, 10)))
    fixed = op.projection_box_section(v, v, v, 1.0, jnp.sum(v, -1))
    np.testing.assert_allclose(fixed, v)
    free = op.projection_box_section(v, -jnp.inf, jnp.inf, 1.0, 0.0)
    np.testing.assert_allclose(free, v - v.mean(-1, keepdims=True), atol=1e-6)
    slope = jax.grad(lambda v: jnp.sum(jnp.sin(op.projection_capped_simplex(v, 0.1))))(v)
    assert not np.any(slope)


def test_large_entries_do_not_blur_the_sum():
    """A relaxed top-3 and a sparse simplex of entries near 1e4, in float32, add up."""
    v = (1e4 + 3 * rng.normal(size=(20, 10))).astype(np.float32)
    capped = np.asarray(op.projection_capped_simplex(v, 1.0, 3.0), float)
    np.testing.assert_allclose(capped.sum(-1), 3, rtol=1e-6)
    sparse = np.asarray(op.projection_sparse_simplex(v, 4, jnp.full(20, 1e-3)), float)
    np.testing.assert_allclose(sparse.sum(-1), 1e-3, rtol=1e-6)
    broken = jax.jit(op.projection_sparse_simplex, static_argnums=1)(v, 4, -1.0)
    assert np.isnan(broken).any(-1).all()


def test_affine_sets_with_redundant_rows():
    A = rng.normal(size=(2, 4)).astype(KIND)
    twice = jnp.asarray(np.concatenate([A, A[:1]]))
    v = jnp.asarray(rng.normal(size=(3, 4)), KIND)
    target = jnp.array([1.0, 2, 1])
    np.testing.assert_allclose(op.projection_affine(v, twice, target),
                               op.projection_affine(v, twice[:2], target[:2]), atol=1e-5)
    assert np.isnan(op.projection_affine(v, twice, jnp.array([1.0, 2, 3]))).all()


def test_repeated_values_have_slopes():
    """At the identity both maps are linear nearby: by hand."""
    d = jnp.asarray(rng.normal(size=(3, 3)), KIND)
    one = jnp.eye(3)

    def slope(f, x):
        return jax.jit(lambda d: jax.jvp(f, (x,), (d,))[1])(d)

    np.testing.assert_allclose(slope(op.projection_psd, one), (d + d.T) / 2, atol=1e-6)
    np.testing.assert_allclose(slope(op.projection_psd, -one), 0 * d, atol=1e-6)
    np.testing.assert_allclose(slope(op.projection_spectral_ball, 0 * one), d, atol=1e-6)
    # Above the ball the Hermitian part stays, and turns count by 1 / s.
    np.testing.assert_allclose(
        slope(op.projection_spectral_ball, 2 * one), (d - d.T) / 2 / 2, atol=1e-6)
    np.testing.assert_allclose(
        slope(lambda x: op.prox_nuclear(x, 1.0), 2 * one), (d + d.T) / 2 + (d - d.T) / 4,
        atol=1e-6)
    np.testing.assert_allclose(
        slope(lambda x: op.prox_log_det(x, 1.0), 0 * one), (d + d.T) / 4, atol=1e-6)


@pytest.mark.parametrize("name, dual", [("l1", "linf"), ("linf", "l1"), ("l2", "l2"),
                                        ("nuclear", "spectral")])
def test_moreau(name, dual):
    """A norm's proximal map and the projection onto the dual ball add up to the point."""
    v = jnp.asarray(3 * rng.normal(size=(4, 4)), KIND)
    v = v if name == "nuclear" else v[0]
    prox, ball = getattr(op, f"prox_{name}"), getattr(op, f"projection_{dual}_ball")
    np.testing.assert_allclose(prox(v, 0.5, 3.0) + ball(v, 1.5), v, atol=2e-6)
    np.testing.assert_allclose(op.conjugate(prox)(v, 0.5), ball(v, 1.0), atol=2e-6)


def test_complex_matrices_and_rows():
    z = rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))
    z = jnp.asarray(z, jnp.complex64)
    left, values, right = np.linalg.svd(z)
    np.testing.assert_allclose(
        op.prox_nuclear(z, 1.0), left @ np.diag(np.maximum(values - 1, 0)) @ right, atol=1e-5)
    values, vectors = np.linalg.eigh((z + z.conj().T) / 2)
    np.testing.assert_allclose(
        op.projection_psd(z), vectors * np.maximum(values, 0) @ vectors.conj().T, atol=1e-5)
    np.testing.assert_allclose(
        op.prox_l2(z, 1.0), np.asarray(z) * (1 - 1 / np.linalg.norm(z, axis=-1, keepdims=True)),
        atol=1e-5)
    d = 1e-3 * z[::-1]
    for f in (lambda z: op.prox_nuclear(z, 1.0), op.projection_psd):
        along = jax.jit(lambda z, d, f=f: jax.jvp(f, (z,), (d,))[1])(z, d)
        np.testing.assert_allclose((f(z + d) - f(z - d)) / 2, along, atol=2e-5)


THREE = jnp.array([1.0, 2.0, 3.0])


@pytest.mark.parametrize("call, match", [
    (lambda: op.projection_simplex(THREE, 0.0), "scale must be positive"),
    (lambda: op.projection_weighted_simplex(THREE, jnp.array([1.0, 0, 1])), "weights must be pos"),
    (lambda: op.projection_capped_simplex(THREE, 0.2), "no point of the box has the total 1"),
    (lambda: op.projection_box_section(THREE, 1.0, 0.0), "empty box"),
    (lambda: op.projection_affine(THREE, jnp.eye(2), jnp.ones(2)), r"\(2, 2\), \(3,\)"),
    (lambda: op.projection_psd(jnp.ones((2, 3))), "square"),
    (lambda: op.projection_exponential_cone(jnp.ones(2)), r"\(x, y, z\)"),
    (lambda: op.projection_spectral_ball(jnp.eye(2), -1.0), "radius must be positive"),
    (lambda: op.prox_scad(THREE, 2.7), "not single valued for step >= a - 1"),
    (lambda: op.prox_scad(THREE, 1.0, 1.0, 2.0), "a must be above 2"),
    (lambda: op.prox_mcp(THREE, 3.0), "not single valued for step >= gamma"),
    (lambda: op.prox_mcp(THREE, 0.5, 1.0, 1.0), "gamma must be above 1"),
    (lambda: op.prox_entropy(THREE, 1.0, 0.0), "weight must be positive"),
    (lambda: op.prox_least_squares(THREE, 1.0, jnp.eye(2), THREE), r"\(2, 2\), \(3,\)"),
    (lambda: op.scale(op.prox_l1, 0.0), "factor must not be 0"),
    (lambda: op.scale(op.prox_l1, jnp.ones(2)), "and a scalar, got"),
])
def test_bad_input(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_whole_numbers_are_refused_by_name():
    for call in (lambda v: op.projection_capped_simplex(v, 1, 2),
                 lambda v: op.projection_affine(v, jnp.ones((1, 3)), jnp.ones(1))):
        with pytest.raises(TypeError, match="v must be floating point, got int"):
            call(jnp.arange(3))


def test_traced_nonsense_and_nan_are_nan():
    @jax.jit
    def run(bad, v):
        return [op.projection_simplex(v, bad), op.projection_weighted_simplex(v, bad),
                op.projection_capped_simplex(v, 1.0, bad), op.projection_box_section(v, 0.0, bad),
                op.projection_l1_ball(v, bad), op.prox_scad(v, -bad * 5), op.prox_scad(v, bad),
                op.prox_mcp(v, -bad * 5), op.prox_l0(v, bad), op.prox_l2(v, bad),
                op.prox_linf(v, bad), op.prox_pair((v, v), bad)[0], op.prox_entropy(v, bad),
                op.prox_log_barrier(v, bad), op.prox_huber(v, bad),
                op.projection_spectral_ball(v[None], bad), op.prox_nuclear(v[None], bad),
                op.mirror_simplex(v, v, bad), op.mirror_burg(v, bad * v, 1.0)]

    for bad, v in ((-1.0, THREE), (-1.0, jnp.full(3, jnp.nan))):
        assert [i for i, out in enumerate(run(bad, v)) if not np.isnan(out).all()] == []
    nan = jnp.array([jnp.nan, 1.0, 0.5])
    for out in (op.projection_simplex(nan), op.projection_second_order_cone(nan),
                op.projection_exponential_cone(nan), op.projection_capped_simplex(nan)):
        assert np.isnan(out).all()


@pytest.mark.parametrize("name", ["prox_huber", "prox_scad", "prox_entropy", "prox_linf"])
def test_complex_points_are_refused(name):
    with pytest.raises(TypeError, match="no order"):
        getattr(op, name)(jnp.ones(2, jnp.complex64), 1.0)
