"""Flows of Gaussians, whose best potentials are quadratic: closed forms, by numpy and scipy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from jaxiter.transport import (
    interpolant_loss,
    interpolant_velocity,
    rectified_flow_loss,
    rectified_velocity,
    rectify,
)

A = np.array([[1.5, 0.9], [0.9, 1.0]])
TURN = np.array([[np.cos(1.2), -np.sin(1.2)], [np.sin(1.2), np.cos(1.2)]])
#: Points whose mean and covariance are those of N(0, I) exactly: quadratic losses see no more.
SIGMA = np.sqrt(2) * np.array([[1.0, 0], [-1, 0], [0, 1], [0, -1]])
STEPS = 50
NODES = np.arange(2 * STEPS + 1) / (2 * STEPS)


def quadratic(table, x, t):
    """`x' A(t) x / 2`, A symmetric and given at the nodes of Runge-Kutta's steps."""
    a, b, c = table[jnp.round(t * (2 * STEPS)).astype(int)]
    return (a * x[0] ** 2 + 2 * b * x[0] * x[1] + c * x[1] ** 2) / 2


@jax.jit
def fitted(x0, x1):
    """The minimisers of the loss at each time: it is quadratic in A, one Newton step solves it."""
    def at(node):
        def loss(row):
            table = jnp.zeros((len(NODES), 3), x0.dtype).at[node].set(row)
            times = jnp.full(len(x0), node / (2 * STEPS))
            return rectified_flow_loss(quadratic, table, x0, x1, times=times)

        zero = jnp.zeros(3, x0.dtype)
        return -jnp.linalg.solve(jax.hessian(loss)(zero), jax.grad(loss)(zero))

    return jax.lax.map(at, jnp.arange(len(NODES)))


@jax.jit
def moved(table, x0):
    return rectify(rectified_velocity(quadratic, table), x0, steps=STEPS)


def test_rectified_gaussians_reach_the_optimal_coupling(x64):
    """2.5291, .98696, .93605, .93502; the plain flow, without the gradient, stays at 2.5291."""
    x1 = SIGMA @ TURN.T @ A.T
    costs = [np.mean(np.sum((x1 - SIGMA) ** 2, 1)) / 2]
    for _ in range(3):
        table = fitted(SIGMA, x1)
        # The closed form: A S + S A = B + B', S = Cov X_t, B = Cov(x1 - x0, X_t).
        xt = SIGMA + 0.5 * (x1 - SIGMA)
        s, b = xt.T @ xt / 4, (x1 - SIGMA).T @ xt / 4
        a = scipy.linalg.solve_sylvester(s, s, b + b.T)
        np.testing.assert_allclose(table[STEPS], [a[0, 0], a[0, 1], a[1, 1]], atol=1e-9)
        x1 = np.asarray(moved(table, SIGMA))
        np.testing.assert_allclose(x1.T @ x1 / 4, A @ A.T, atol=1e-5)  # the marginal is kept
        costs.append(np.mean(np.sum((x1 - SIGMA) ** 2, 1)) / 2)
    np.testing.assert_allclose(costs, [2.5291, 0.98696, 0.93605, 0.93502], atol=1e-3)
    joint = np.array(TURN.T @ A.T)

    def plain(x, t):  # E[x1 - x0 | X_t], no gradient
        map_t = (1 - t) * jnp.eye(2) + t * joint
        return x @ jnp.linalg.solve(map_t, joint - jnp.eye(2))

    plain = np.asarray(rectify(plain, jnp.asarray(SIGMA), steps=STEPS))
    np.testing.assert_allclose(np.mean(np.sum((plain - SIGMA) ** 2, 1)) / 2, 2.5291, atol=1e-3)


def test_other_costs_and_integrators(x64):
    """c = |x|^4 / 4 with c* = 3/4 |p|^(4/3): a linear potential's best slope is c' of the shift."""
    def conjugate(p):
        return 0.75 * (p @ p) ** (2 / 3)

    rng = np.random.default_rng(0)
    x, shift = rng.normal(size=(6, 2)), np.array([0.5, -1.5])
    slope = shift @ shift * shift  # grad c(shift)
    loss = jax.jit(jax.value_and_grad(lambda v: rectified_flow_loss(
        lambda v, x, t: v @ x, v, x, x + shift, jax.random.key(0), cost=conjugate)))
    value, gradient = loss(slope)
    np.testing.assert_allclose(value, -(shift @ shift) ** 2 / 4, rtol=1e-9)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)
    velocity = rectified_velocity(lambda v, x, t: v @ x, slope, cost=conjugate)
    np.testing.assert_allclose(rectify(velocity, x, steps=2), x + shift, atol=1e-9)
    euler = rectify(velocity, x, integrate=lambda velocity, x: x + velocity(x, 0.0))
    np.testing.assert_allclose(euler, x + shift, atol=1e-9)


def test_rectify_differentiates_and_says_nan():
    x = jnp.ones((3, 2))
    end = jax.jit(lambda rate, x: rectify(lambda x, t: rate * x, x, steps=20)[0, 0])
    np.testing.assert_allclose(jax.grad(end, argnums=0)(0.5, x), np.exp(0.5), rtol=1e-4)
    np.testing.assert_allclose(jax.grad(end, argnums=1)(0.5, x)[0, 0], np.exp(0.5), rtol=1e-4)
    assert np.isnan(end(np.nan, x))
    many = jax.vmap(end, in_axes=(0, None))(jnp.array([0.5, 0.1]), x)
    np.testing.assert_allclose(many, np.exp([0.5, 0.1]), rtol=1e-5)


def test_interpolants_of_three_gaussians(x64):
    """Any path from vertex to vertex takes one density to the other, and g is the regression."""
    rng = np.random.default_rng(0)
    means, roots = rng.normal(size=(3, 2)), rng.normal(size=(3, 2, 2)) / 2 + np.eye(2)
    spreads = roots @ roots.transpose(0, 2, 1)

    def g(alpha, x):  # E[x_k | x(alpha)] of independent Gaussians
        covariance = jnp.einsum("k,kij->ij", alpha**2, spreads)
        pull = jnp.linalg.solve(covariance, x - alpha @ means)
        return means + alpha[:, None] * (spreads @ pull)

    alpha, x = jnp.array([0.2, 0.3, 0.5]), jnp.array([0.4, -0.1])
    np.testing.assert_allclose(alpha @ g(alpha, x), x, atol=1e-12)
    z = rng.normal(size=(3, 4000, 2))
    points = jnp.asarray(means[:, None] + np.einsum("kij,knj->kni", roots, z))
    # The minimum of the loss: no multiple of g, and no shift, does better.
    loss = jax.jit(jax.value_and_grad(lambda p: interpolant_loss(
        lambda a, x: p[0] * g(a, x) + p[1], points, jax.random.key(1))))
    value, slope = loss(jnp.array([1.0, 0.0]))
    assert np.all(np.abs(slope) < 0.02 * np.abs(value))
    start = points[0]
    for path in (lambda t: jnp.stack([1 - t, t, 0 * t]),
                 lambda t: jnp.stack([1 - t, t, jnp.sin(jnp.pi * t)]) / (1 + jnp.sin(jnp.pi * t))):
        end = np.asarray(jax.jit(lambda x, path=path: rectify(
            interpolant_velocity(g, path), x, steps=20))(start))
        np.testing.assert_allclose(end.mean(0), means[1], atol=0.05)
        np.testing.assert_allclose(np.cov(end.T), spreads[1], rtol=0.06, atol=0.03)


def test_bad_input():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="pairs"):
        rectified_flow_loss(quadratic, None, x, x[:2], jax.random.key(0))
    with pytest.raises(ValueError, match="pass a key"):
        rectified_flow_loss(quadratic, None, x, x)
    with pytest.raises(ValueError, match="one for each of 3 pairs"):
        rectified_flow_loss(quadratic, None, x, x, times=jnp.zeros(2))
    with pytest.raises(ValueError, match="conjugate of a cost"):
        rectified_velocity(quadratic, None, cost="cubic")
    with pytest.raises(ValueError, match="steps"):
        rectify(lambda x, t: x, x, steps=0)
    with pytest.raises(ValueError, match=r"\[K, n, D\]"):
        interpolant_loss(lambda a, x: x, x, jax.random.key(0))
