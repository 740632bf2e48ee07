"""Batches of transport problems in refilled lanes."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxiter.adjoint import Adjoint, frozen, implicit
from jaxiter.lanes import solve_many
from jaxiter.numerics import stop_gradient, strong
from jaxiter.solution import Solution
from jaxiter.stop import Stop
from jaxiter.transport.checks import balance, sound
from jaxiter.transport.geometry import Dense, Geometry
from jaxiter.transport.iteration import Marginals, kernel_problem, start
from jaxiter.transport.result import TransportResult, assemble
from jaxiter.transport.sinkhorn import attach


def sinkhorn_many(
    costs: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    epsilon: Any,
    lanes: int = 128,
    solver: optax.GradientTransformation | None = None,
    stop: Stop | None = None,
    max_steps: Any = 2000,
    adjoint: Adjoint | None = None,
) -> TransportResult:
    """A batch of balanced problems of uneven difficulty, solved in refilled lanes.

    The results of `vmap(sinkhorn)` with method="kernel", without waiting for the slowest
    problem of the batch. Ragged batches: pad with weights of 0.

    Args:
      costs: `[batch, n, m]`. a, b: weights `[batch, n]`, `[batch, m]`; default uniform.
      epsilon: scalar or `[batch]`.
      lanes: problems side by side.
      solver, stop, max_steps, adjoint: as in `sinkhorn`.

    Returns:
      A batched `TransportResult`: every field has a leading axis.

    >>> import jax.numpy as jnp, jaxiter
    >>> out = jaxiter.transport.sinkhorn_many(jnp.ones((3, 2, 2)), epsilon=1.0)
    >>> out.f.shape, bool(out.solve.converged.all())
    ((3, 2), True)
    """
    costs = strong(costs)
    if costs.ndim != 3:
        raise ValueError(f"costs must be matrices [batch, n, m], got shape {costs.shape}.")
    count, n, m = costs.shape
    a = jnp.full((count, n), 1 / n, costs.dtype) if a is None else strong(a).astype(costs.dtype)
    b = jnp.full((count, m), 1 / m, costs.dtype) if b is None else strong(b).astype(costs.dtype)
    epsilon = jnp.broadcast_to(jnp.asarray(epsilon, costs.dtype), (count,))
    marginals = jax.vmap(lambda a, b, epsilon: balance(Marginals(a, b, epsilon)))(a, b, epsilon)
    operands = (Dense(costs), marginals)
    starts = jax.vmap(start)(*stop_gradient(operands))

    def valid(g: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
        del g
        return sound(geometry, marginals)

    solve = solve_many(
        kernel_problem(valid), starts, *stop_gradient(operands), lanes=lanes,
        solver=solver, stop=stop, adjoint=frozen(), max_steps=max_steps)

    def finish(
        g: jax.Array, solve: Solution, geometry: Geometry, marginals: Marginals
    ) -> TransportResult:
        g = attach(g, geometry, marginals, implicit() if adjoint is None else adjoint)
        return assemble(g, solve, geometry, marginals)

    return jax.vmap(finish)(solve.value, solve, *operands)
