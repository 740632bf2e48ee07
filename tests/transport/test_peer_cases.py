"""Problems of the kinds on which other transport libraries test themselves, against scipy.

And weights of next to nothing, beside which what carries mass must not underflow.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special

from jaxiter.transport import Dense, Grid, sinkhorn


def logs(weights):
    with np.errstate(divide="ignore"):
        return np.log(np.asarray(weights, float))


def reference(cost, a, b, epsilon, rho=np.inf, steps=5000):
    """The plan by the textbook iteration in float64."""
    damping, g = 1 / (1 + epsilon / rho), np.zeros(len(b))
    for _ in range(steps):
        old = g
        f = -damping * epsilon * scipy.special.logsumexp((g - cost) / epsilon + logs(b), axis=1)
        g = -damping * epsilon * scipy.special.logsumexp(
            (f[:, None] - cost) / epsilon + logs(a)[:, None], axis=0)
        if np.isfinite(rho):  # the best constant between them at once: steps alone take long
            shift = rho / 2 * (scipy.special.logsumexp(logs(a) - f / rho)
                               - scipy.special.logsumexp(logs(b) - g / rho))
            f, g = f + shift, g - shift
        if np.max(np.abs(g - old)) < 1e-13 * (1 + np.max(np.abs(g))):
            break
    return np.exp((f[:, None] + g - cost) / epsilon + logs(a)[:, None] + logs(b))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_softmin_beside_a_weight_of_next_to_nothing(dtype):
    """The nearest column is the lightest, down to the least normal float; slopes too."""
    with jax.enable_x64(dtype == "float64"):
        least = float(jnp.finfo(dtype).tiny)
        light = least ** np.array([0.8, 0.95, 0.98, 1.0])
        light = np.maximum(light.astype(dtype), np.asarray(1.01 * least, dtype))
        weights = np.stack([light, *np.full((2, 4), 0.5)], 1).astype(dtype)
        gaps = -np.log(least) * np.array([0.7, 0.9, 1.0, 1.02, 1.1, 1.3])
        cost = np.stack([0 * gaps, gaps, gaps + 1], 1).astype(dtype)
        start, epsilon = np.zeros(3, dtype), np.asarray(1, dtype)

        def row(weights, cost, h):
            dense = Dense(cost[None]).softmin(h, weights, epsilon)[0]
            return dense, Grid((cost[None],)).softmin(h, weights, epsilon)[0]

        each = jax.vmap(jax.vmap(jax.value_and_grad(
            lambda *x: row(*x)[0], argnums=(1, 2)), (None, 0, None)), (0, None, None))
        out, (by_cost, by_h) = jax.jit(each)(weights, cost, start)
        grids = jax.jit(jax.vmap(jax.vmap(
            lambda *x: row(*x)[1], (None, 0, None)), (0, None, None)))(weights, cost, start)
    z = logs(weights)[:, None] - np.asarray(cost, float)
    exact, share = -scipy.special.logsumexp(z, axis=2), scipy.special.softmax(z, axis=2)
    close = {"rtol": 4 * np.finfo(dtype).eps}
    np.testing.assert_allclose(out, exact, **close)
    np.testing.assert_allclose(grids, exact, **close)
    assert np.any(share[..., 0] > 0.9) and np.any(share[..., 0] < 0.1)
    # The exponent of a derivative ends below that of the least weights.
    common = light > least**0.88
    assert common.any()
    slack = 2e3 * np.finfo(dtype).eps
    np.testing.assert_allclose(by_cost[common], share[common], atol=slack)
    np.testing.assert_allclose(by_h[common], -share[common], atol=slack)


def test_unbalanced_at_every_scale():
    """Cost, epsilon and strengths times 1e-30 to 1e25: one plan, in as many steps."""
    rng, scales = np.random.default_rng(0), np.array([1.0, 1e-30, 7.67, 1e25], np.float32)
    cost, a, b = rng.uniform(size=(9, 7)), rng.dirichlet(np.ones(9)), rng.dirichlet(np.ones(7))
    cost, a, b = (jnp.asarray(x, jnp.float32) for x in (cost, a, b))

    def solve(scale):
        out = sinkhorn(scale * cost, a, b, epsilon=0.02 * scale, rho_a=5 * scale, rho_b=5 * scale)
        return out.plan(), out.transport_cost / scale, out.solve.steps, out.converged

    plans, costs, steps, converged = jax.jit(jax.vmap(solve))(scales)
    plan = reference(np.asarray(cost, float), a, b, 0.02, 5.0)
    assert np.all(converged) and np.ptp(steps) <= 2, steps
    np.testing.assert_allclose(plans, np.broadcast_to(plan, plans.shape), atol=1e-5)
    np.testing.assert_allclose(costs, np.sum(plan * cost), rtol=1e-4)


def test_one_penalty_and_empty_bins_in_float32():
    """Slopes by points, weights and epsilon of what a plan carries, against float64 differences."""
    rng = np.random.default_rng(3)
    x, y, v = rng.uniform(size=(8, 3)), rng.uniform(size=(6, 3)), rng.uniform(size=6) - 0.5
    a, b = rng.dirichlet(np.ones(8)), 2 * rng.dirichlet(np.ones(6))  # b has another mass
    a[2], b[4] = 0, 0
    point, rho = (x, a, 0.05), 0.5

    def textbook(x, a, epsilon):
        cost, g, damping = np.sum((x[:, None] - y) ** 2, -1), np.zeros(6), rho / (rho + epsilon)
        for _ in range(400):
            f = -epsilon * scipy.special.logsumexp((g - cost) / epsilon + logs(b), axis=1)
            g = -damping * epsilon * scipy.special.logsumexp(
                (f[:, None] - cost) / epsilon + logs(a)[:, None], axis=0)
        plan = np.exp((f[:, None] + g - cost) / epsilon + logs(a)[:, None] + logs(b))
        return np.array([np.sum(np.sin(9 * plan @ v)), np.sum(plan * cost)])

    def ours(x, a, epsilon):
        cost = jnp.sum((x[:, None] - jnp.asarray(y, jnp.float32)) ** 2, -1)
        out = sinkhorn(cost, a, b, epsilon=epsilon, rho_b=rho)
        return jnp.stack([jnp.sum(jnp.sin(9 * out.apply(v))), out.transport_cost])

    slopes = jax.jit(jax.jacrev(ours, (0, 1, 2)))(*(jnp.asarray(p, jnp.float32) for p in point))
    for k, slope in enumerate(slopes):
        direction = rng.normal(size=np.shape(point[k])) * (np.asarray(point[k]) > 0)
        up, down = (textbook(*(p + sign * 1e-6 * direction if i == k else p
                               for i, p in enumerate(point))) for sign in (1, -1))
        ahead = np.sum((np.asarray(slope, float) * direction).reshape(2, -1), 1)
        np.testing.assert_allclose(ahead, (up - down) / 2e-6, rtol=1e-3, atol=1e-4)
