"""An optimizer of training as a solver."""

from typing import Any

import jax
import optax

from jaxiter import trees
from jaxiter.solvers.residual import of_optax, residual_solver
from jaxiter.values import as_value

PyTree = Any


@as_value
def descending(
    optimizer: optax.GradientTransformation,
) -> optax.GradientTransformationExtraArgs:
    """An optax optimizer as a solver: it is shown minus the residual, `x <- x + opt(x - T(x))`.

    Optimizers step against what they are shown, solvers along it. The residual of
    `root(jax.grad(f), x0)` is minus the gradient, that of `x - rate grad f(x)` minus rate times
    it: with the sign turned, `descending(optax.adam(0.1))` minimises f, as it does in training.
    Without, `solver=optax.adam(0.1)` runs uphill and the solve is DIVERGED or MAX_STEPS.
    What has no sign of its own, such as `optax.scale(0.5)` or `optax.clip`, is a solver as it is.

    Rates are those of training: `descending(optax.sgd(1.0))` is `picard()`. An optimizer whose
    steps do not shrink with the gradient (Adam, sign descent) ends on a schedule that falls.

    Args:
      optimizer: any optax transformation that needs no loss (no line search).

    Raises:
      TypeError: what is no optax transformation.

    >>> import jax, jax.numpy as jnp, jaxiter, optax
    >>> slope = jax.grad(lambda x: jnp.sum((x - 3.0) ** 2))
    >>> solver = descending(optax.sgd(0.1, momentum=0.5))
    >>> solution = jaxiter.root(slope, jnp.zeros(2), solver=solver)
    >>> [round(float(x), 3) for x in solution.value], bool(solution.converged)
    ([3.0, 3.0], True)
    """
    if not isinstance(optimizer, optax.GradientTransformation):
        raise TypeError(f"optimizer must be an optax transformation, got {optimizer!r}.")
    inner = of_optax(optimizer)

    def update(residual: PyTree, state: PyTree, params: PyTree, **extra: Any) -> tuple:
        step, state = inner.update(trees.negative(residual), state, params, **extra)
        return jax.tree.map(lambda leaf, like: leaf.astype(like.dtype), step, residual), state

    return residual_solver("descending", inner.init, update)
