"""What all solvers share: the current point and the merit that they ask for, and errors by name."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.numerics import stop_gradient

PyTree = Any


def residual_solver(
    name: str, init: Callable, update: Callable, needs: tuple[str, ...] = ()
) -> optax.GradientTransformationExtraArgs:
    """A solver from `init(params)` and `update(residual, state, params, *, merit, **extra)`.

    An empty tree and its state go through unchanged. The state shares no buffers, so that it can
    be donated. For equality by value the factory around this is decorated with `as_value`.

    Args:
      name: for errors.
      needs: "params" where update cannot do without the current point, and "merit" where it wants
        one also if the caller gave none (steps that are not measured, training loops): then
        the l2 norm of the residual. A merit that is needed comes in the dtype of that norm.

    >>> import jax.numpy as jnp, jaxiter
    >>> half = residual_solver("half", lambda x: (), lambda r, state, x, **extra: (r / 2, state))
    >>> round(float(jaxiter.fixed_point(jnp.cos, 1.0, solver=half).value), 4)
    0.7391
    """
    def start(params: PyTree) -> PyTree:
        return trees.unshared(init(params), params)

    def step(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        if "params" in needs:
            params = require_params(name, params)
        if not jax.tree.leaves(updates):
            return updates, state
        merit = extra.pop("merit", None)
        if "merit" in needs:
            merit = trees.norm(stop_gradient(updates)) if merit is None else merit
            merit = jnp.asarray(merit).astype(trees.norm_dtype(updates))
        return update(updates, state, params, merit=merit, **extra)

    return optax.GradientTransformationExtraArgs(start, step)


def of_optax(inner: optax.GradientTransformation) -> optax.GradientTransformationExtraArgs:
    """The same under strict promotion of dtypes too, with a state that keeps its own."""
    inner = optax.with_extra_args_support(inner)

    def kept(new: Any, old: Any) -> Any:
        return new.astype(old.dtype) if eqx.is_inexact_array(new) else new

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, PyTree]:
        with jax.numpy_dtype_promotion("standard"):
            updates, new = inner.update(updates, state, params, **extra)
        return updates, jax.tree.map(kept, new, state)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def require_params(name: str, params: PyTree) -> PyTree:
    """params, or a ValueError that names the solver that needs them."""
    if params is None:
        raise ValueError(f"{name} needs the current point: call update(residual, state, params).")
    return params
