"""Largest eigenvalues and singular values against numpy in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter import Status
from jaxiter.spectral import largest_eigenvalue, operator_norm


@jax.jit
def everything(matrix):
    return largest_eigenvalue(matrix), operator_norm(matrix), jax.value_and_grad(
        ji.spectral_norm)(matrix)


def spectra(n):
    rng = np.random.default_rng(n)
    rows = [rng.uniform(size=n), np.logspace(0, -4, n), 1 - 0.01 * rng.uniform(size=n),
            rng.normal(size=n), (1.0 + np.arange(n)) ** -0.5]
    normals = rng.normal(size=(len(rows), n))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    return np.array(rows, np.float32), normals.astype(np.float32)


@pytest.mark.parametrize("max_steps, short", [(200, 1.01), (10, 1.12)])
def test_how_far_below_the_value_may_be(max_steps, short):
    values, normals = spectra(300)

    @jax.jit
    @jax.vmap
    def run(d, h):
        def mirror(v):
            return v - 2 * h * jnp.vdot(h, v)

        return largest_eigenvalue(
            lambda v: mirror(d * mirror(v)), d, max_steps=max_steps)

    out = run(values, normals)
    top = np.abs(values).max(1)
    assert np.all(np.abs(out.value) <= top * (1 + 1e-6))
    assert np.all(top <= short * np.abs(out.value))
    assert np.all(out.solve.steps <= max_steps)
    np.testing.assert_allclose(np.linalg.norm(out.vector, axis=1), 1, rtol=1e-6)


def test_the_sign_and_what_converged():
    a = np.random.default_rng(1).normal(size=(8, 8))
    a = np.asarray(a @ a.T, np.float32)
    exact = np.linalg.eigvalsh(np.asarray(a, float))
    for sign in (1, -1):
        out = jax.jit(largest_eigenvalue)(sign * a)
        assert out.converged and out.solve.steps < 100
        np.testing.assert_allclose(out.value, sign * exact[-1], rtol=1e-4)
        np.testing.assert_allclose(a @ out.vector, sign * out.value * out.vector,
                                   atol=2e-3 * exact[-1])


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e25])
def test_any_scale(scale):
    matrix = jnp.asarray(scale * np.diag([1.0, -3.0, 2.0]), jnp.float32)
    *outs, (value, slope) = everything(matrix)
    for out in outs:
        assert out.status == Status.CONVERGED
        np.testing.assert_allclose(np.abs(out.value), 3 * np.float32(scale), rtol=1e-5)
    np.testing.assert_allclose(value, 3 * np.float32(scale), rtol=1e-5)
    assert np.all(np.isfinite(slope))


def test_nan_is_not_hidden():
    out = largest_eigenvalue(lambda v: jnp.nan * v, jnp.ones(2))
    assert out.status == Status.NONFINITE and np.isnan(out.value)


def test_complex_rectangles_and_trees():
    rng = np.random.default_rng(2)
    a = (rng.normal(size=(5, 3)) + 1j * rng.normal(size=(5, 3))).astype(np.complex64)
    exact = np.linalg.norm(a.astype(complex), 2)
    np.testing.assert_allclose(operator_norm(jnp.asarray(a)).value, exact, rtol=1e-4)
    np.testing.assert_allclose(ji.spectral_norm(jnp.asarray(a)), exact, rtol=1e-4)
    b = a.real

    def split(v):
        return {"top": b[:2] @ v["x"], "rest": [b[2:] @ v["x"]]}

    out = operator_norm(split, {"x": jax.ShapeDtypeStruct((3,), jnp.float32)})
    np.testing.assert_allclose(out.value, np.linalg.norm(b.astype(float), 2), rtol=1e-4)


def test_the_gradient_is_that_of_the_singular_vectors():
    w = np.random.default_rng(0).normal(size=(6, 6)).astype(np.float32)
    u, _, v = np.linalg.svd(w.astype(float))
    slope = jax.jit(jax.grad(lambda w: ji.spectral_norm(w, rtol=1e-5)))(w)
    np.testing.assert_allclose(slope, np.outer(u[:, 0], v[0]), atol=1e-3)


def test_bad_input():
    with pytest.raises(ValueError, match="like="):
        largest_eigenvalue(lambda v: v)
    with pytest.raises(ValueError, match="matrix"):
        operator_norm(jnp.ones(3))


def test_a_linearised_map_under_shard_map():
    """Linearised at a point that varies over the mesh, it takes no other vectors."""
    from jax.sharding import AxisType
    from jax.sharding import PartitionSpec as P

    mesh = jax.make_mesh((2,), ("rows",), axis_types=(AxisType.Auto,))

    def curvature(x):
        _, product = jax.linearize(jax.grad(lambda y: jnp.sum(y**4) / 12), x[0])
        return largest_eigenvalue(product, x[0]).value[None]

    run = jax.shard_map(curvature, mesh=mesh, in_specs=P("rows"), out_specs=P("rows"))
    np.testing.assert_allclose(jax.jit(run)(jnp.array([[1.0, 2.0], [3.0, 1.0]])), [4, 9], rtol=1e-2)
