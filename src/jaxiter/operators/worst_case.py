"""The proximal map of a worst case: a step towards the minimum of the largest of several losses."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.known import known
from jaxiter.numerics import on_own_mesh, strong
from jaxiter.operators.domain import positive
from jaxiter.options import SolveOptions
from jaxiter.problem import as_point
from jaxiter.reuse import reused
from jaxiter.roots.front import root
from jaxiter.solution import Solution, reports

PyTree = Any


@reports
class WorstCase(NamedTuple):
    """What one step of `worst_case_prox` comes to.

    Attributes:
      x: the point z, in the tree of x.
      logits: `[s]`, logarithms of the weights r, which sum to 1.
      losses: `[s]`, those at z.
      solve: the untouched `Solution` of z.
    """

    x: PyTree
    logits: jax.Array
    losses: jax.Array
    solve: Solution


@reused
@on_own_mesh
def worst_case_prox(
    losses: Callable, x: PyTree, logits: jax.Array, step: Any, *args: PyTree,
    **options: Unpack[SolveOptions],
) -> WorstCase:
    """The proximal map of `max_s losses_s(x)` and of the weights that make it a mean.

        min_z max_r  r'losses(z) + |z - x|^2 / (2 step) - KL(r | q) / step,    q = softmax(logits)
        sum_s r_s grad losses_s(z) + (z - x) / step = 0,    r = softmax(logits + step losses(z))

    z is a root of the first equation, by the methods of `root`; r stays in logits, for weights of
    losses that do not matter fall below every float. From logits of 0, steps lead to the least
    worst case `min_x max_s losses_s(x)` at a linear rate, in the fewer the longer each is:

        move = lambda s, *args: worst_case_prox(losses, *s, step, *args)[:2]
        near = lambda s, image, *args: trees.norm(image[0] - s[0])
        fixed_point(Problem(step=move, merit=near, scale=1.0), (x0, jnp.zeros(count)), *args)

    whose merit looks at x alone, for logits of losses that do not matter fall for ever.

    With one loss it is its proximal map. It is firmly nonexpansive in the Bregman distance of
    `|x|^2 / 2 + sum q log q`.

    Args:
      losses: `losses(x, *args) -> [s]`, each convex and twice differentiable.
      x: a tree of real arrays.
      logits: `[s]`, any numbers; -inf takes a loss out for good.
      step: positive scalar; logits grow by step times the losses.
      *args: passed to losses.
      **options: those of `root`.

    Returns:
      A `WorstCase`. Derivatives with respect to all that is given are implicit ones.

    Raises:
      ValueError: a step that is not positive, logits that are all -inf, or NaN or +inf, where they
        are known; another number of losses than of logits. Traced ones are NONFINITE.

    Reference: Achab, "A Bregman firmly nonexpansive proximal operator for baryconvex
    optimization", 2024.

    >>> import jax.numpy as jnp
    >>> away = lambda x: jnp.stack([(x + 1) ** 2, (x - 2) ** 2])
    >>> x, logits = jnp.array(0.3), jnp.zeros(2)
    >>> for _ in range(3):
    ...     x, logits, *_ = worst_case_prox(away, x, logits, 10.0)
    >>> round(float(x), 3), away(x).round(2).tolist()
    (0.5, [2.25, 2.25])
    """
    known(_check_logits, logits)
    x = as_point(x)
    kind = trees.norm_dtype(x)
    size = positive("step", step, kind)
    logits = strong(jnp.asarray(logits)).astype(kind)
    shape = jax.eval_shape(losses, x, *args).shape
    if shape != logits.shape or logits.ndim != 1:
        raise ValueError(f"losses and logits must both have shape [s], got {shape} and "
                         f"{logits.shape}.")

    def envelope(z: PyTree, size: jax.Array, logits: jax.Array, *args: PyTree) -> jax.Array:
        return jax.nn.logsumexp(logits + size * losses(z, *args)) / size

    def stationary(z: PyTree, x: PyTree, size: Any, logits: Any, *args: PyTree) -> PyTree:
        pull = jax.grad(envelope)(z, size, logits, *args)
        return jax.tree.map(lambda z, x, pull: size * pull + z - x, z, x, pull)

    solve = root(stationary, x, x, size, logits, *args, **options)
    at = losses(solve.value, *args)
    return WorstCase(solve.value, jax.nn.log_softmax(logits + size * at), at, solve)


def _check_logits(logits: Any) -> None:
    host = np.asarray(logits, np.float64)
    if np.any(np.isnan(host)) or np.any(host == np.inf):
        raise ValueError(f"logits must be numbers or -inf, got {logits}.")
    if host.size == 0 or np.all(host == -np.inf):
        raise ValueError("logits must leave at least one loss: all of them are -inf.")
