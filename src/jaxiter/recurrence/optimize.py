"""An optimiser's steps in parallel: a window of parameters, one batch of gradients a round."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Unpack

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.known import check_count, check_fraction, check_not_negative
from jaxiter.numerics import numbers_in
from jaxiter.options import SolveOptions
from jaxiter.recurrence.rounds import first_moving, run_rounds, without_derivatives
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports

PyTree = Any


@reports
class ParallelRun(NamedTuple):
    """Answer of `parallel_optimize`.

    Attributes:
      params, opt_state: after the last accepted step.
      solve: the Solution; steps in rounds, `calls["gradients"]` the number of gradients, merit that
        of optimiser steps left, residual
        the largest root mean square distance between a step's parameters and those at which its
        gradient was taken; infinite while steps are left.
    """

    params: PyTree
    opt_state: PyTree
    solve: Solution

    @property
    def rounds(self) -> jax.Array:
        """Batches of gradients, one after the other."""
        return self.solve.steps


class Run(NamedTuple):
    """What the rounds remember beside the guesses `[W, ...]` from the first unfinished step on:
    the optimiser's state there, steps done, the largest accepted change, the tolerance now (both
    squared).
    """

    opt_state: PyTree
    final: jax.Array
    worst: jax.Array
    allowed: jax.Array


class Adaptive(eqx.Module):
    """See `adaptive`."""

    tolerance: Any
    rate: float = eqx.field(static=True)
    largest: Any = None


def adaptive(tolerance: Any = 1e-3, rate: float = 0.1, largest: Any = None) -> Adaptive:
    """A tolerance of `parallel_optimize` that follows the changes of its rounds.

    Every round its square moves by the part `rate` towards the median squared change. That can
    run away: `largest`, by default ten times the tolerance, stops it.

    Raises:
      ValueError: rate outside [0, 1).

    Reference: Zhou, Shih, Meng and Ermon, "DreamPropeller: supercharge text-to-3D generation with
    parallel sampling", 2024.
    """
    check_fraction(rate=rate)
    return Adaptive(tolerance, rate, largest)


@reused
def parallel_optimize(
    optimizer: optax.GradientTransformation, grad_fn: Callable, params: PyTree, *, steps: int,
    window: int = 7, tolerance: Any = 1e-3, opt_state: PyTree = None,
    **options: Unpack[SolveOptions],
) -> ParallelRun:
    """The parameters after `steps` updates of any optax optimiser, in fewer rounds of gradients.

    A round takes the gradients of `window` guessed parameters at once and rolls the optimiser
    through them from the first; guesses that it reproduces up to the tolerance are final. It
    pays where gradients of a batch of parameters cost about one gradient, and where the
    trajectory bends little: Adam at usual rates, less so plain SGD with large steps.

    Args:
      optimizer: momentum and counters included; its state is that of the loop.
      grad_fn: `grad_fn(params, t) -> grads`, t the step's index as int32. Randomness must be a
        function of t (`fold_in(key, t)`, the t-th batch), or no rerun can reproduce the loop.
      steps: T, how many updates. window: gradients a round.
      tolerance: root mean square change of the parameters below which a guess is final; 0 gives
        the loop up to rounding. 1e-3 is DreamPropeller's threshold of 1, `adaptive(1e-3)` its rule.
      opt_state: default `optimizer.init(params)`.
      **options: stop, max_steps (rounds, default T) and monitor as in `solve_recurrence`; no
        resume, solver, check_every, keep_best, and no adjoint but `jaxiter.frozen()`.

    Returns:
      A `ParallelRun`. MAX_STEPS: `solve.merit` updates are missing. NONFINITE: the loop itself
      left the float range; params are the last finite ones. Not differentiable.

    Raises:
      ValueError: steps or window below 1, tolerance < 0.
      TypeError: gradients of another structure than params, an optimizer that is none.

    Source: Zhou, Shih, Meng and Ermon, "DreamPropeller: supercharge text-to-3D generation with
    parallel sampling", 2024.

    >>> import jax, jax.numpy as jnp, optax
    >>> gradient = lambda p, t: jax.grad(lambda p: jnp.sum((p - 1) ** 2))(p)
    >>> run = parallel_optimize(optax.sgd(0.01), gradient, jnp.zeros(3), steps=40)
    >>> bool(run.converged), int(run.rounds) < 20
    (True, True)
    """
    if not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError("optimizer must be an optax transformation such as optax.adam(1e-3), got "
                        f"{type(optimizer).__name__}.")
    check_count(steps=steps, window=window)
    chosen = without_derivatives("parallel_optimize", options, steps, most=0)
    rule = tolerance if isinstance(tolerance, Adaptive) else Adaptive(tolerance, 0.0)
    check_not_negative(tolerance=rule.tolerance)
    trees.check_same_structure(
        params, jax.eval_shape(grad_fn, params, jax.ShapeDtypeStruct((), jnp.int32)),
        "The gradient")
    window = min(window, steps)
    opt_state = optimizer.init(params) if opt_state is None else opt_state
    largest = 10 * rule.tolerance if rule.largest is None else rule.largest
    first, most = (jnp.square(jnp.asarray(size, jnp.float32)) for size in (rule.tolerance, largest))
    solve, guesses, run = run_rounds(
        partial(_round, optimizer, grad_fn, steps, window, rule.rate),
        jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (window, *leaf.shape)), params),
        Run(opt_state, jnp.int32(0), jnp.float32(0), first), (most,), chosen,
        lambda run: {"gradients": jnp.minimum(window, steps - run.final)})
    params, left = trees.first(guesses), (steps - run.final).astype(jnp.float32)
    return ParallelRun(params, run.opt_state, solve._replace(
        value=params, displacement=None, merit=left,
        residual=jnp.where(left == 0, jnp.sqrt(run.worst), jnp.inf)))


def _round(
    optimizer: optax.GradientTransformation, grad_fn: Callable, steps: int, window: int,
    rate: float, guesses: PyTree, run: Run, most: jax.Array,
) -> tuple[PyTree, jax.Array, Run]:
    """Gradients at all guesses, the optimiser through them, and which guesses were right."""
    rows = jnp.arange(window, dtype=jnp.int32)
    at = run.final + rows
    pending = at < steps
    grads = jax.vmap(grad_fn)(guesses, jnp.minimum(at, steps - 1))
    start = trees.first(guesses)

    def move(carry: tuple, now: tuple) -> tuple:
        (params, state), (gradient, real) = carry, now
        updates, after = optimizer.update(gradient, state, params)
        return trees.where(real, (optax.apply_updates(params, updates), after), carry)

    rolled, states = trees.iterates(move, (start, run.opt_state), (grads, pending))
    change = jax.vmap(lambda a, b: trees.squared_norm(trees.subtract(a, b)) / numbers_in(start))(
        trees.at(rolled, slice(-1)), trees.at(guesses, slice(1, None))).astype(jnp.float32)
    change = jnp.where(jnp.isnan(change), jnp.inf, change)
    # Row i of `rolled` is a new guess of row i + 1.
    moved = jnp.concatenate([change, jnp.full(1, jnp.inf, jnp.float32)])
    stop = first_moving(moved <= run.allowed, pending)
    # Everything before `stop` was finite, or its change would not have been small.
    path = trees.prepend((start, run.opt_state), (rolled, states))
    sane = trees.finite(trees.at(rolled, stop))
    good = stop + sane.astype(jnp.int32)
    here, state = trees.at(path, good)
    done = jnp.minimum(run.final + good, steps)
    ahead = trees.at(rolled, jnp.minimum(stop + rows, window - 1))
    # A guess that ran off is replaced: no gradient could bring it back.
    ahead = trees.where_rows(trees.finite_rows(ahead), ahead, here)
    allowed = run.allowed
    if rate and window > 1:
        typical = (1 - rate) * allowed + rate * jnp.median(change)
        allowed = jnp.minimum(typical, most)
    accepted = (rows < stop) & (at < steps - 1)
    worst = jnp.maximum(run.worst, jnp.max(jnp.where(accepted, moved, 0)))
    left = jnp.where(sane, (steps - done).astype(jnp.float32), jnp.nan)
    return ahead, left, Run(state, done, worst, allowed)
