"""A few-step solver learnt by gradients: step sizes and a table of multistep weights.

For dx/dt = v(x, t) from noise (t = 0) to data (t = 1), step i moves by
`dt_i (sum_{j<i} C[i, j] V_j + (1 - sum_j C[i, j]) V_i)`. C = 0 with equal steps is Euler; a first
subdiagonal of -1/2 is Adams-Bashforth of order two.

Source: Wang, Li, Song, Li, Ge, Zheng and Wang, "Differentiable solver search for fast diffusion
sampling", 2025.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.known import check_count
from jaxiter.numerics import HIGHEST
from jaxiter.solvers.residual import trained


class LearntSolver(NamedTuple):
    """steps `[N]`, positive with sum 1; weights C `[N, N]`, strictly lower triangular."""

    steps: jax.Array
    weights: jax.Array


def euler_solver(steps: int) -> LearntSolver:
    """Equal steps, no history: where a search starts.

    >>> euler_solver(4).steps.tolist()
    [0.25, 0.25, 0.25, 0.25]
    """
    check_count(steps=steps)
    return LearntSolver(jnp.full(steps, 1 / steps), jnp.zeros((steps, steps)))


def integrate(solver: LearntSolver, velocity: Callable, x: jax.Array) -> jax.Array:
    """States `[N + 1, ...]` at times 0, dt_0, dt_0 + dt_1, ... of `velocity(x, t)`."""
    count = solver.steps.shape[0]
    times = jnp.concatenate([jnp.zeros(1, x.dtype), jnp.cumsum(solver.steps)[:-1].astype(x.dtype)])
    weights = jnp.tril(solver.weights.astype(x.dtype), -1)
    weights += jnp.diag(1 - jnp.sum(weights, axis=1))

    def step(carry: tuple, at: tuple) -> tuple[tuple, jax.Array]:
        (x, past), (i, t, size, row) = carry, at
        past = lax.dynamic_update_index_in_dim(past, velocity(x, t), i, 0)
        x = x + size * jnp.tensordot(row, past, 1, precision=HIGHEST)
        return (x, past), x

    inputs = (jnp.arange(count, dtype=jnp.int32), times, solver.steps.astype(x.dtype), weights)
    start = (x, jnp.zeros((count, *x.shape), x.dtype))
    return trees.prepend(x, lax.scan(step, start, inputs)[1])


def search_solver(
    velocity: Callable, x: jax.Array, steps: int, *, max_steps: int = 400,
    optimizer: optax.GradientTransformation | None = None, fine_steps: int = 100,
) -> tuple[LearntSolver, jax.Array]:
    """Learn a solver of few steps from trajectories of a fine Euler solver.

    Args:
      velocity: `velocity(x, t)` of one sample. x: starts `[B, ...]` to learn on.
      steps: N, of the solver. fine_steps: of the reference.
      max_steps: of the optimizer, all of which are made; by default `optax.adam(0.03)`.

    Returns:
      The solver and the loss of every step `[max_steps]`: the mean squared error at every step
      and a Huber penalty on the end. Judge it on starts that it has not seen.

    >>> import jax, jax.numpy as jnp
    >>> with jax.numpy_dtype_promotion("standard"):  # as optax.adam needs
    ...     solver, loss = search_solver(lambda x, t: -3 * x, jnp.ones((1, 2)), 3, max_steps=50)
    >>> bool(loss[-1] < loss[0] / 5)
    True
    """
    fine = jax.jit(jax.vmap(lambda x: integrate(euler_solver(fine_steps), velocity, x)))(x)
    chosen = optax.adam(0.03) if optimizer is None else optimizer

    def solver_of(params: dict) -> LearntSolver:
        return LearntSolver(jax.nn.softmax(params["logits"]), jnp.tril(params["weights"], -1))

    @jax.jit
    def run(x: jax.Array, fine: jax.Array) -> tuple[dict, jax.Array]:
        def loss(params: dict, _: None) -> jax.Array:
            solver = solver_of(params)
            path = jax.vmap(partial(integrate, solver, velocity))(x)[:, 1:]
            at = jnp.cumsum(solver.steps) * fine_steps
            low = jnp.clip(jnp.floor(at), 0, fine_steps - 1).astype(jnp.int32)
            part = trees.spread((at - low.astype(at.dtype)).astype(x.dtype), path[0])
            target = (1 - part) * fine[:, low] + part * fine[:, low + 1]
            end = jnp.mean(optax.huber_loss(path[:, -1], fine[:, -1], delta=1e-3))
            return jnp.mean(jnp.square(path - target)) + 1000 * end

        start = {"logits": jnp.zeros(steps), "weights": jnp.zeros((steps, steps))}
        return trained(chosen, loss, start, length=max_steps)

    params, losses = run(x, fine)
    return solver_of(params), losses
