"""An epsilon in units of the mean cost, against numpy's mean and the number itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxiter.transport import (
    Grid,
    PointCloud,
    relative,
    sinkhorn,
    sinkhorn_divergence,
    sinkhorn_histograms,
    sinkhorn_many,
)

RNG = np.random.default_rng(5)
X, Y = (RNG.normal(size=(k, 2)).astype("float32") for k in (7, 9))
A, B = (RNG.dirichlet(np.ones(k)).astype("float32") for k in (7, 9))
COST = np.sum((X[:, None] - Y) ** 2, -1)
MEAN = float(A @ COST.astype(float) @ B)
plan = jax.jit(lambda cost, epsilon: sinkhorn(cost, A, B, epsilon=epsilon).plan())


def close(one, other, rtol=1e-3):
    np.testing.assert_allclose(one, other, rtol=rtol, atol=1e-6)


def test_it_is_a_share_of_the_weighted_mean():
    wanted = plan(COST, 0.2 * MEAN)
    close(plan(COST, relative(0.2)), wanted)
    close(plan(1e6 * COST, relative(0.2)), wanted)
    close(plan(PointCloud(jnp.asarray(X), jnp.asarray(Y)), relative(0.2)), wanted, 1e-2)


def test_forbidden_pairs_do_not_count():
    cost = np.where(RNG.uniform(size=COST.shape) < 0.2, np.inf, COST).astype("float32")
    mass = np.outer(A, B)
    mean = np.sum(mass * np.where(cost < np.inf, cost, 0)) / np.sum(mass[cost < np.inf])
    close(plan(cost, relative(0.3)), plan(cost, 0.3 * mean))


def test_a_grid_has_the_mean_of_its_matrix():
    sides = [RNG.uniform(size=(k, k)).astype("float32") for k in (3, 4)]
    grid, a = Grid(tuple(map(jnp.asarray, sides))), RNG.dirichlet(np.ones(12)).astype("float32")
    close(grid.mean(jnp.asarray(a), jnp.asarray(a[::-1].copy())),
          a @ np.asarray(grid.matrix()) @ a[::-1], 1e-5)


def test_it_is_a_constant_for_derivatives():
    value = jax.jit(jax.grad(lambda c, e: sinkhorn(c, A, B, epsilon=e).entropic_cost))
    close(value(COST, relative(0.2)), value(COST, 0.2 * MEAN))


def test_batches_have_epsilons_of_their_own():
    costs = np.stack([COST, 10 * COST])
    one = plan(COST, relative(0.2))
    out = sinkhorn_many(costs, np.stack([A, A]), np.stack([B, B]), epsilon=relative(0.2))
    plans = jax.jit(jax.vmap(lambda result: result.plan()))
    close(plans(out)[0], one, 1e-2)
    close(plans(out)[1], one, 1e-2)
    some = sinkhorn_histograms(COST, A, np.stack([B, B]), epsilon=relative(0.2))
    close(plans(some)[0], one, 1e-2)


@pytest.mark.slow
def test_the_divergence_takes_it_of_the_cross_term():
    one = sinkhorn_divergence(X, Y, A, B, epsilon=relative(0.2)).value
    close(one, sinkhorn_divergence(X, Y, A, B, epsilon=0.1 * MEAN).value)


def test_what_makes_no_epsilon_is_refused():
    with pytest.raises(ValueError, match="factor must be positive"):
        relative(-0.1)
    out = sinkhorn(-COST, A, B, epsilon=relative(0.1))
    assert out.solve.message().startswith("BAD_INPUT")
