"""Optimality systems of programs that are not linear, against known multipliers and differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import jaxiter as ji
from jaxiter.operators.programs import PrimalDual, kkt


def objective(x: jax.Array, a: jax.Array) -> jax.Array:
    return x[0] * x[3] * (x[0] + x[1] + x[2]) + a[0] * x[2]


def inequality(x: jax.Array, a: jax.Array) -> dict:
    return {"product": a[1] - x[0] * x[1] * x[2] * x[3], "bounds": jnp.concatenate([1 - x, x - 5])}


def equality(x: jax.Array, a: jax.Array) -> jax.Array:
    return jnp.sum(x**2)[None] - a[2]


def hock_schittkowski_71(a: np.ndarray) -> np.ndarray:
    out = scipy.optimize.minimize(
        lambda x: x[0] * x[3] * x[:3].sum() + a[0] * x[2], np.array([1.0, 5, 5, 1]),
        bounds=[(1, 5)] * 4, method="SLSQP", options={"ftol": 1e-14, "maxiter": 200},
        constraints=[{"type": "ineq", "fun": lambda x: x.prod() - a[1]},
                     {"type": "eq", "fun": lambda x: (x**2).sum() - a[2]}])
    return out.x


@pytest.mark.slow
def test_derivatives_of_a_foreign_answer(x64: None) -> None:
    a = np.array([1.0, 25.0, 40.0])
    x = hock_schittkowski_71(a)
    slopes = jax.jit(jax.jacobian(inequality))(jnp.asarray(x), a)
    system = kkt(objective, equality=equality, inequality=inequality)
    # Multipliers by least squares: of the product, the equality and the lower bound of x_0.
    rows = np.stack([slopes["product"], 2 * x, slopes["bounds"][0]])
    mu = np.linalg.lstsq(rows.T, -np.asarray(jax.grad(objective)(jnp.asarray(x), a)),
                         rcond=None)[0]
    np.testing.assert_allclose(mu[:2], [0.5522937, 0.1614686], atol=1e-5)
    bounds = np.zeros(8)
    bounds[0] = mu[2]
    point = PrimalDual(jnp.asarray(x), jnp.asarray(mu[1:2]),
                       {"product": jnp.asarray(mu[0]), "bounds": jnp.asarray(bounds)})
    rest = jax.tree.leaves(system(point, jnp.asarray(a)))
    assert max(float(jnp.abs(leaf).max()) for leaf in rest) < 1e-6
    found = jax.jit(jax.jacobian(lambda a: ji.attach_implicit(
        system, point, a, adjoint=ji.implicit(ji.linear.dense())).x))(jnp.asarray(a))
    for entry in range(3):
        step = 1e-4 * np.eye(3)[entry]
        wanted = (hock_schittkowski_71(a + step) - hock_schittkowski_71(a - step)) / 2e-4
        np.testing.assert_allclose(found[:, entry], wanted, atol=1e-3)


def test_without_constraints_it_is_the_gradient() -> None:
    system = kkt(lambda x, a: jnp.sum((x - a) ** 2))
    slope, *none = system((jnp.ones(2), (), ()), jnp.zeros(2))
    assert slope.tolist() == [2.0, 2.0] and none == [(), ()]


@pytest.mark.parametrize("mu, g, active", [(1.0, 0.0, True), (0.0, -1.0, False), (0.0, 0.0, False),
                                           (1e-3, -1e-9, True), (1e-9, -1.0, False)])
def test_what_is_active(mu: float, g: float, active: bool) -> None:
    system = kkt(lambda x, g: jnp.sum(x**2), inequality=lambda x, g: g + 0 * x)
    out = system((jnp.zeros(1), (), jnp.array([mu])), jnp.array([g]))
    assert out[2] == (-g if active else mu)
