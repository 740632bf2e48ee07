"""Safeguards around any solver: step back when it made things worse, or start afresh."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter import trees
from jaxiter.numerics import is_concrete, stop_gradient

PyTree = Any


class GuardState(NamedTuple):
    """Inner state, the plain image of the last accepted point and its merit."""

    inner: PyTree
    image: PyTree
    merit: jax.Array
    must_accept: jax.Array
    rejected: jax.Array


def require_params(name: str, params: PyTree) -> PyTree:
    """params, or a ValueError that names the solver that needs them."""
    if params is None:
        raise ValueError(f"{name} needs the current point: call update(residual, state, params).")
    return params


def guard(
    solver: optax.GradientTransformation,
    factor: Any = 2.0,
    reset: Callable[[PyTree, PyTree], PyTree] | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Accept a point while its merit is at most `factor` times that of the last accepted one.

    Otherwise, and also when the residual is not finite, return to the plain image
    `T(x)` of the last accepted point, reset the inner solver, and accept what
    follows. A rejection costs one evaluation. The merit is the driver's when
    given, else the l2 norm of the residual.

    Args:
      solver: any optax transformation of the residual.
      factor: at least 1; may be traced.
      reset: `reset(inner_state, params) -> inner_state`; default `solver.init(params)`.
        A solver with a large memory can forget more cheaply than that.

    Raises:
      ValueError: a concrete factor below 1; params missing.

    Reference: Zhang, O'Donoghue and Boyd, "Globally convergent type-I Anderson acceleration for
    nonsmooth fixed-point iterations", SIAM J. Optim. 30, 2020; here its safeguard is a local test.

    >>> import jax.numpy as jnp, jaxiter, optax
    >>> wild = guard(optax.scale(1.9), factor=1.0)
    >>> bool(jaxiter.fixed_point(lambda x: -0.5 * x, jnp.ones(3), solver=wild).converged)
    True
    """
    if is_concrete(factor) and not np.all(np.asarray(factor) >= 1):
        raise ValueError(f"factor must be at least 1, got {factor}.")
    solver = optax.with_extra_args_support(solver)

    def init(params: PyTree) -> GuardState:
        # Widened like every merit, so that a carried state keeps its dtype.
        merit = jnp.full((), jnp.inf, trees.norm_dtype(params))
        return GuardState(
            solver.init(params), trees.zeros_like(params), merit, jnp.bool_(True), jnp.int32(0))

    def update(
        residual: PyTree, state: GuardState, params: PyTree = None, *, merit: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, GuardState]:
        params = require_params("guard", params)
        if merit is None:
            merit = trees.norm(stop_gradient(residual))
        merit = jnp.asarray(merit).astype(state.merit.dtype)
        reject = ~(merit <= factor * state.merit) & ~state.must_accept
        increment, inner = solver.update(residual, state.inner, params, merit=merit, **extra)
        fresh = solver.init(params) if reset is None else reset(inner, params)
        retreat = trees.subtract(state.image, params)
        return trees.where(reject, retreat, increment), GuardState(
            trees.where(reject, fresh, inner),
            trees.where(reject, state.image, trees.add(params, residual)),
            jnp.where(reject, state.merit, merit),
            reject,
            state.rejected + reject.astype(jnp.int32),
        )

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore


class RestartState(NamedTuple):
    """Inner state, steps since the last restart, and the last merit."""

    inner: PyTree
    age: jax.Array
    merit: jax.Array


def restarted(
    solver: optax.GradientTransformation, every: Any = None, increase: Any = None
) -> optax.GradientTransformationExtraArgs:
    """Restart any solver every `every` steps, or when the merit grew by the factor `increase`.

    A restart replaces the inner state by `solver.init(x)` before the update.

    Args:
      solver: any optax transformation of the residual.
      every: steps between restarts, at least 1; may be traced.
      increase: restart when merit > increase * previous merit; may be traced.

    Raises:
      ValueError: neither is given, or a concrete `every` below 1.

    Reference: O'Donoghue and Candes, "Adaptive restart for accelerated gradient
    schemes", Found. Comput. Math. 15, 2015.

    >>> import jax.numpy as jnp, jaxiter
    >>> solver = restarted(jaxiter.halpern(), every=10)
    >>> bool(jaxiter.fixed_point(lambda x: 0.9 * x + 1, jnp.zeros(2), solver=solver).converged)
    True
    """
    if every is None and increase is None:
        raise ValueError("give every=, increase=, or both.")
    if every is not None and is_concrete(every) and not np.all(np.asarray(every) >= 1):
        raise ValueError(f"every must be at least 1, got {every}.")
    solver = optax.with_extra_args_support(solver)

    def init(params: PyTree) -> RestartState:
        merit = jnp.full((), jnp.inf, trees.norm_dtype(params))
        return RestartState(solver.init(params), jnp.int32(0), merit)

    def update(
        residual: PyTree, state: RestartState, params: PyTree = None, *, merit: Any = None,
        **extra: Any,
    ) -> tuple[PyTree, RestartState]:
        params = require_params("restarted", params)
        if merit is None:
            merit = trees.norm(stop_gradient(residual))
        merit = jnp.asarray(merit).astype(state.merit.dtype)
        due = jnp.bool_(False)
        if every is not None:
            due |= state.age >= every
        if increase is not None:
            due |= merit > increase * state.merit
        inner = trees.where(due, solver.init(params), state.inner)
        increment, inner = solver.update(residual, inner, params, merit=merit, **extra)
        return increment, RestartState(inner, jnp.where(due, 1, state.age + 1), merit)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore
