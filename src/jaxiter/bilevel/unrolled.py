"""Iterative differentiation: hypergradients through the inner steps themselves."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.hypergradient import HypergradientResult
from jaxiter.bilevel.methods import oracle_calls
from jaxiter.known import check_positive
from jaxiter.numerics import numbers_in, stop_gradient
from jaxiter.reuse import reused
from jaxiter.solution import Status
from jaxiter.stop import accepts, tolerance

PyTree = Any


@reused
def unrolled_hypergradient(
    outer: Callable, step: Callable, x: PyTree, start: PyTree, *, steps: int,
    last: int | None = None, mode: str = "reverse", readout: Callable | None = None,
) -> HypergradientResult:
    """The hypergradient of `outer(x, y_T)` for `y_{t+1} = step(x, y_t)`.

    Args:
      outer: scalar of (x, y). step: `step(x, state) -> state`; the state of an optax optimiser
        may be part of it, with `readout(state) -> y`.
      x, start: pytrees; start is a constant (let it depend on x inside `step` if it does).
      steps: T. last: differentiate the last so many steps only; default all. Biased by about the
        rate of the inner map to this power; 1 is the Jacobian-free gradient.
      mode: "reverse", memory of `last` states; "checkpoint", of 2 sqrt(last) states for one more
        run; "forward", of one tangent per entry of x, no tape: for few entries.

    Returns:
      A `HypergradientResult`; `v` and `linear_residual` do not apply (None, NaN). `inner_residual`
      is how far one more inner step moves y: CONVERGED where that is within the default
      tolerance, else MAX_STEPS, for the inner problem is not solved. Calls: an inner gradient per
      step, a product per differentiated step.

    Raises:
      ValueError: last outside 1..steps, steps below 1, an unknown mode.

    Source: Franceschi et al., "Forward and reverse gradient-based hyperparameter optimization",
    2017; Shaban et al., "Truncated back-propagation for bilevel optimization", 2019; Bolte,
    Pauwels and Vaiter, "One-step differentiation of iterative algorithms", 2023.

    >>> import jax.numpy as jnp
    >>> out = unrolled_hypergradient(
    ...     lambda x, y: y**2 / 2, lambda x, y: y - 0.25 * 2 * (y - 3 * x), 1.0, 0.0, steps=40)
    >>> round(float(out.grad), 4)
    9.0
    """
    last = steps if last is None else last
    if steps < 1 or not 1 <= last <= steps:
        raise ValueError(f"last must be in 1..{steps}, the steps, got {last}.")
    if mode not in ("reverse", "checkpoint", "forward"):
        raise ValueError(f"mode must be 'reverse', 'checkpoint' or 'forward', got {mode!r}.")
    x, start = jax.tree.map(jnp.asarray, (x, start))
    read = (lambda state: state) if readout is None else readout

    def run(x: PyTree, state: PyTree, count: int) -> PyTree:
        return lax.scan(lambda s, _: (step(x, s), None), state, length=count)[0]

    def checkpointed(x: PyTree, state: PyTree, count: int) -> PyTree:
        block = max(int(count**0.5), 1)
        part = jax.checkpoint(lambda s, x: run(x, s, block))
        state = lax.scan(lambda s, _: (part(s, x), None), state, length=count // block)[0]
        return run(x, state, count % block)

    state = stop_gradient(run(x, start, steps - last)) if steps > last else start

    def end(x: PyTree) -> tuple[jax.Array, tuple]:
        y = (checkpointed if mode == "checkpoint" else run)(x, state, last)
        value = outer(x, read(y))
        return value, (value, y)

    differentiate, entries = (jax.jacfwd, numbers_in(x)) if mode == "forward" else (jax.grad, 1)
    grad, (value, y) = differentiate(end, has_aux=True)(x)
    # How far the next inner step would move, and what that says of the truncated solve.
    y, following = stop_gradient((read(y), read(step(x, y))))
    move = trees.subtract(following, y)
    length = trees.norm(move)
    still = accepts(tolerance(), y, move, length, trees.norm(y))
    good = trees.finite((value, grad, y)) & jnp.isfinite(length)
    status = jnp.where(still, Status.CONVERGED, Status.MAX_STEPS)
    status = jnp.where(good, status, Status.NONFINITE).astype(jnp.int32)
    calls = oracle_calls(jnp.int32(steps + 1), jnp.int32(1), jnp.int32(last * entries))
    missing = jnp.full((), jnp.nan, value.dtype)
    return HypergradientResult(value, grad, None, length, missing, None, calls, status)


def aggregated_descent(
    outer: Callable, inner: Callable, *, inner_rate: Any, outer_rate: Any, weight: float = 1.0,
    project: Callable | None = None,
) -> Callable:
    """BDA, for inner problems with many solutions: descent that listens to both objectives.

    Differentiating descent on the inner objective alone picks the inner solution nearest to the
    start, and its hypergradient leads to a wrong x. A vanishing share of the outer objective
    in every inner step picks the inner solution that is best for it: an inner map
    `step(x, (y, t)) -> (y', t + 1)` for `unrolled_hypergradient`.

    `y' = P(y - a_t outer_rate grad_y outer - (1 - a_t) inner_rate grad_y inner)` with
    `a_t = min(weight / (t + 1), 0.99)`, which vanishes and has an infinite sum, as the theory asks.

    Args:
      outer, inner: scalars of (x, y), convex in y. inner_rate: at most 1 / L of inner; half of it
        is safe. outer_rate: about 1 / L of outer. weight: positive; small ones need many steps.
      project: onto the domain of y; default none.

    Start with `(y0, 0)` and read y with `readout=lambda state: state[0]`.

    Source: Liu, Mu, Yuan, Zeng and Zhang, "A generic first-order algorithmic framework for
    bi-level programming beyond lower-level singleton", 2020.

    >>> import jax.numpy as jnp
    >>> step = aggregated_descent(lambda x, y: (y - x) ** 2, lambda x, y: 0 * y,
    ...                           inner_rate=0.5, outer_rate=0.5)
    >>> round(float(step(jnp.float32(3.0), (jnp.float32(0.0), jnp.int32(0)))[0]), 2)
    2.97
    """
    check_positive(weight=weight)

    def step(x: PyTree, state: tuple) -> tuple:
        y, t = state
        up, down = jax.grad(outer, 1)(x, y), jax.grad(inner, 1)(x, y)
        kind = jax.tree.leaves(y)[0].dtype
        share = jnp.minimum(weight / (t + 1).astype(kind), 0.99)
        y = trees.axpy(-share * outer_rate, up, y)
        y = trees.axpy(-(1 - share) * inner_rate, down, y)
        return (y if project is None else project(y)), t + 1

    return step
