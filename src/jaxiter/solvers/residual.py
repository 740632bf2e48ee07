"""What all solvers share: the current point and the merit that they ask for, and errors by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.numerics import stop_gradient

PyTree = Any


class Evaluation(NamedTuple):
    """A point and its residual."""

    point: PyTree
    residual: PyTree


class RememberingState(NamedTuple):
    """The last evaluation, kept where no driver does, and the state of the solver itself."""

    previous: Evaluation
    solver: PyTree


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
        "previous": the `Evaluation` of the update before, zeros at the first. The driver carries
        it anyway and hands it over; anywhere else, in a chain too, the state keeps a copy.

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

    own = optax.GradientTransformationExtraArgs(start, step)
    return _remembering(own) if "previous" in needs else own


def _remembering(
    solver: optax.GradientTransformationExtraArgs,
) -> optax.GradientTransformationExtraArgs:
    """The solver with the evaluation before in its state."""

    def init(params: PyTree) -> RememberingState:
        none = Evaluation(trees.zeros_like(params), trees.zeros_like(params))
        return trees.unshared(RememberingState(none, solver.init(params)), params)

    def update(
        updates: PyTree, state: PyTree, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, RememberingState]:
        increment, inner = solver.update(
            updates, state.solver, params, previous=state.previous, **extra)
        return increment, RememberingState(Evaluation(params, updates), inner)

    # Found by `hosted` also through `as_value`, and by nobody through a chain, whose members see
    # other residuals than its owner does.
    update.__dict__["hosted"] = solver
    return optax.GradientTransformationExtraArgs(init, update)


def hosted(
    solver: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs | None:
    """The same solver without a copy of the last evaluation: `update(..., previous=)` takes it.

    None for a solver that asks for none.
    """
    return getattr(solver.update, "hosted", None)


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


def trained(
    optimizer: optax.GradientTransformation, loss: Callable, params: PyTree,
    batches: PyTree = None, length: int | None = None,
) -> tuple[PyTree, jax.Array]:
    """Steps of an optax transformation down `loss(params, batch)`: the end, and every loss.

    One step for each row of the batches, or so many without.
    """
    optimizer = of_optax(optimizer)

    def step(carry: tuple, batch: PyTree) -> tuple[tuple, jax.Array]:
        params, state = carry
        value, slope = jax.value_and_grad(loss)(params, batch)
        updates, state = optimizer.update(slope, state, params)
        return (optax.apply_updates(params, updates), state), value

    (params, _), losses = lax.scan(step, (params, optimizer.init(params)), batches, length)
    return params, losses
