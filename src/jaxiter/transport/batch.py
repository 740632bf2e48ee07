"""Batches of transport problems: uneven ones in refilled lanes, histograms on one kernel."""

from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint
from jaxiter.lanes import check_one_device, solve_many
from jaxiter.numerics import on_own_mesh, stop_gradient, strong
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution
from jaxiter.transport.adjoint import conclude
from jaxiter.transport.checks import MAX_STEPS, NO_RESUME, only_implicit, reduce, valid
from jaxiter.transport.geometry import Dense, Reduced
from jaxiter.transport.iteration import (
    Marginals,
    absorb,
    from_units,
    kernel_problem,
    sources,
)
from jaxiter.transport.relative import Relative, resolved
from jaxiter.transport.result import TransportResult


@reused
@on_own_mesh
def sinkhorn_many(
    costs: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    epsilon: Any,
    lanes: int | None = None,
    **options: Unpack[SolveOptions],
) -> TransportResult:
    """A batch of balanced problems of uneven difficulty, solved in refilled lanes.

    The answers of `vmap(sinkhorn)` with method="kernel" to within the tolerance, without waiting
    for the slowest problem of the batch; the steps may differ, for no larger epsilons are solved
    first, and a lane absorbs when its neighbours do. Ragged batches: pad with weights of 0.

    Args:
      costs: `[batch, n, m]`. a, b: weights `[batch, n]`, `[batch, m]`; default uniform.
      epsilon: scalar, `[batch]`, or `relative(0.05)`: of each problem's own mean.
      lanes: problems side by side; default as in `solve_many`.
      **options: as in `sinkhorn`; no `unrolled()`.

    Returns:
      A batched `TransportResult`: every field has a leading axis.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> solve = jax.jit(lambda costs: jaxiter.transport.sinkhorn_many(costs, epsilon=1.0))
    >>> out = solve(jnp.ones((3, 2, 2)))
    >>> out.f.shape, bool(out.solve.converged.all())
    ((3, 2), True)
    """
    chosen = choose("sinkhorn_many", options, NO_RESUME, max_steps=MAX_STEPS)
    check_one_device("sinkhorn_many", costs, a, b, epsilon)
    costs = strong(costs)
    if costs.ndim != 3:
        raise ValueError(f"costs must be matrices [batch, n, m], got shape {costs.shape}.")
    count, n, m = costs.shape
    a = jnp.full((count, n), 1 / n, costs.dtype) if a is None else strong(a).astype(costs.dtype)
    b = jnp.full((count, m), 1 / m, costs.dtype) if b is None else strong(b).astype(costs.dtype)
    given = Dense(costs)
    if isinstance(epsilon, Relative):
        epsilon = jax.vmap(partial(resolved, epsilon))(given, a, b)
    epsilon = jnp.broadcast_to(jnp.asarray(epsilon, costs.dtype), (count,))
    parts, marginals = jax.vmap(reduce)(given, Marginals(a, b, epsilon))
    stop, adjoint = chosen.rule, as_adjoint(chosen.adjoint)
    only_implicit("sinkhorn_many", adjoint)
    solve = solve_many(
        kernel_problem(valid), jnp.zeros_like(b), *stop_gradient((parts.geometry, marginals)),
        lanes=lanes, **chosen._replace(adjoint=frozen())._asdict())

    def finish(
        g: jax.Array, solve: Solution, given: Dense, parts: Reduced, marginals: Marginals
    ) -> TransportResult:
        pair = sources(g, *stop_gradient((parts.geometry, marginals))), g
        return conclude(pair, solve, given, parts, marginals, stop, adjoint)

    solve = jax.vmap(from_units)(solve, stop_gradient(marginals))
    return jax.vmap(finish)(solve.value, solve, given, parts, marginals)


@reused
@on_own_mesh
def sinkhorn_histograms(
    cost: jax.Array,
    a: jax.Array,
    b: jax.Array,
    *,
    epsilon: Any,
    **options: Unpack[SolveOptions],
) -> TransportResult:
    """Many balanced problems with one cost: the kernel is read once for all, as a matrix product.

    One kernel serves every histogram, so none can absorb its own potentials: they may lie
    60 epsilon from the common start, which epsilon of 0.05 mean cost rarely exceeds. A
    problem that does never says CONVERGED; `vmap(sinkhorn)` is for those.

    Args:
      cost: `[n, m]`. a, b: weights `[batch, n]` or `[n]`, `[batch, m]` or `[m]`, at least
        one of them batched; zeros are legal.
      epsilon: scalar or `relative(0.05)`. **options: as in `sinkhorn`; no `unrolled()`.

    Returns:
      A batched `TransportResult`; statuses and steps are those of each problem.

    Raises:
      ValueError: shapes that do not fit the cost, or no batch axis.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> cost, b = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([[0.5, 0.5], [0.9, 0.1]])
    >>> solve = jax.jit(lambda cost, b: jaxiter.transport.sinkhorn_histograms(
    ...     cost, jnp.full(2, 0.5), b, epsilon=0.5))
    >>> out = solve(cost, b)
    >>> out.g.shape, bool(out.solve.converged.all())
    ((2, 2), True)
    """
    chosen = choose("sinkhorn_histograms", options, NO_RESUME, max_steps=MAX_STEPS)
    geometry = Dense(strong(cost))
    a, b = (strong(w).astype(geometry.dtype) for w in (a, b))
    n, m = geometry.shape
    if a.shape[-1:] != (n,) or b.shape[-1:] != (m,) or {a.ndim, b.ndim} not in ({2}, {1, 2}):
        raise ValueError(f"cost is {(n, m)}: expected weights [batch, {n}] and [batch, {m}], one "
                         f"of them perhaps without batch, got {a.shape} and {b.shape}.")
    count = a.shape[0] if a.ndim == 2 else b.shape[0]
    a, b = jnp.broadcast_to(a, (count, n)), jnp.broadcast_to(b, (count, m))
    epsilon = resolved(epsilon, geometry, jnp.sum(a, 0), jnp.sum(b, 0))
    epsilon = jnp.asarray(epsilon, geometry.dtype)
    stop, adjoint = chosen.rule, as_adjoint(chosen.adjoint)
    only_implicit("sinkhorn_histograms", adjoint)
    # What is common to all: the cost is reduced once, for the sum of the histograms.
    parts, common = reduce(geometry, Marginals(jnp.sum(a, 0), jnp.sum(b, 0), epsilon))
    each = jax.vmap(lambda a, b: reduce(geometry, Marginals(a, b, epsilon))[1])(a, b)
    marginals = each._replace(**{
        name: jnp.broadcast_to(getattr(common, name), getattr(each, name).shape)
        for name in ("rows", "columns", "blur")})
    fixed, begin = stop_gradient(parts.geometry), jnp.zeros_like(common.b)
    # The solves close over the kernel: as an operand each of them would get its own.
    kernel, base = absorb(begin, fixed, stop_gradient(common)), kernel_problem()

    def one(marginals: Marginals) -> Solution:
        def at(function: Any) -> Any:
            return lambda *points_and_args: function(
                *points_and_args[:-2], kernel._replace(g=points_and_args[-2]), fixed,
                points_and_args[-1])

        problem = Problem(
            step=at(base.step), merit=at(base.merit), scale=at(base.scale), floor=at(base.floor),
            valid=lambda g, reference, marginals: valid(g, fixed, marginals))
        reference = jnp.where(marginals.b > 0, begin, jnp.inf)
        solve = fixed_point(problem, begin, reference, marginals,
                            **chosen._replace(adjoint=frozen())._asdict())
        return from_units(solve, marginals)

    solve = jax.vmap(one)(stop_gradient(marginals))

    def finish(solved: tuple[Solution, Marginals]) -> TransportResult:
        solve, marginals = solved
        g = solve.value
        pair = sources(g, fixed, stop_gradient(marginals)), g
        return conclude(pair, solve, geometry, parts, marginals, stop, adjoint)

    # One after the other: a plan each in memory would be batch times the cost.
    return jax.lax.map(finish, (solve, marginals))
