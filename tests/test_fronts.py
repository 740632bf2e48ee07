"""Every front speaks the same: statuses, batches, devices, numbers, monitors, resume."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxiter as ji
from jaxiter.diffusion import Denoiser, ddim, invert_flow, linear_beta_schedule, sample_parallel
from jaxiter.recurrence import solve_recurrence
from jaxiter.testing import FRONT_CHECKS, check_front
from jaxiter.transport import (
    balanced_labels,
    mirror_sinkhorn,
    sinkhorn,
    sinkhorn_divergence,
    sparse_transport,
)

rng = np.random.default_rng(0)
COST = jnp.asarray(rng.uniform(size=(5, 4)), jnp.float32)
CLOUD = jnp.asarray(rng.normal(size=(5, 2)), jnp.float32)
MODEL = Denoiser(lambda x, t: jnp.tanh(x), "eps")


def linear(x, q):
    return q * x + 1


def next_args(solution, q):
    return solution.value, (q,), solution.converged


FRONTS = {
    "fixed_point": (partial(ji.fixed_point, linear), (jnp.zeros(2), jnp.array([0.5, 0.8]))),
    "root": (partial(ji.root, lambda x, a: x * x - a), (jnp.ones(2), jnp.array([2.0, 3.0]))),
    "in_stages": (partial(ji.in_stages, linear, update=next_args),
                  (jnp.zeros(2), jnp.array([0.5, 0.8]))),
    "solve_splitting": (
        partial(ji.solve_splitting, ji.operators.forward_backward(
            lambda x, b: x - b, lambda v, step, b: ji.operators.prox_l1(v, step, 0.3),
            step_size=0.5)), (jnp.zeros(3), jnp.array([1.0, -0.1, 2.0]))),
    "sinkhorn": (partial(sinkhorn, epsilon=0.1, method="log"), (COST,)),
    "sinkhorn auto": (partial(sinkhorn, epsilon=0.1), (COST,)),
    "sinkhorn_divergence": (partial(sinkhorn_divergence, epsilon=0.5), (CLOUD, CLOUD + 1)),
    "solve_recurrence": (partial(solve_recurrence, lambda s, x: jnp.tanh(0.5 * s + x)),
                         (jnp.zeros(2), CLOUD)),
    "balanced_labels": (balanced_labels, (CLOUD,)),
    "solve_inner": (partial(ji.bilevel.solve_inner, lambda x, y: jnp.sum((y - x) ** 2)),
                    (jnp.zeros(3), jnp.ones(3))),
    "sample_parallel": (lambda x, **options: sample_parallel(
        ddim(linear_beta_schedule(8)), MODEL, x, **options), (jnp.ones(2),)),
    "invert_flow": (partial(invert_flow, lambda x: x + 0.1 * jnp.sin(x)),
                    (jnp.ones(2), jnp.zeros(2))),
    "mirror_sinkhorn": (partial(mirror_sinkhorn, bound=2.0, max_steps=20,
                                adjoint=ji.frozen()),
                        (COST, jnp.full(5, 0.2), jnp.full(4, 0.25))),
}
FAST = ("fixed_point",)
SPARSE = partial(sparse_transport, k=3, gamma=0.5)


@pytest.mark.parametrize("name", [
    pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in FRONTS])
def test_front(name):
    front, operands = FRONTS[name]
    check_front(front, *operands)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in FRONT_CHECKS if name != "devices_change_nothing"])
def test_sparse_transport(name):
    """But for a checked shard_map, which optax's line search does not pass."""
    FRONT_CHECKS[name](SPARSE, (COST,))


def test_what_a_front_refuses():
    """By name, and with what to do instead; an unknown name is an error of its own kind."""
    front, operands = FRONTS["sinkhorn"]
    with pytest.raises(ValueError, match="sinkhorn takes no resume: .* start warm"):
        front(*operands, resume=object())
    with pytest.raises(TypeError, match="unexpected argument 'max_iterations'.*max_steps"):
        front(*operands, max_iterations=3)
    with pytest.raises(ValueError, match="iterate takes no solver"):
        ji.iterate(ji.Process(lambda x: x, lambda x, key: x), 1.0, key=jax.random.key(0),
                   solver=ji.anderson())
    assert front(*operands, resume=None, stop=None, max_steps=None).converged
