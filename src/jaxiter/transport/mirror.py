"""Mirror Sinkhorn: convex objectives over transport plans, one normalisation a step."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter import trees
from jaxiter.adjoint import frozen, unrolled
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint
from jaxiter.known import check_count, known
from jaxiter.numerics import on_own_mesh
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, Status, reports
from jaxiter.stop import never, without_claims
from jaxiter.transport.checks import check_masses, mass_agrees
from jaxiter.transport.rounding import round_to_polytope


class MirrorSinkhornState(NamedTuple):
    """Logarithm of the plan, and the steps so far (int32)."""

    log_plan: jax.Array
    count: jax.Array


def scale_by_mirror_sinkhorn(
    a: jax.Array, b: jax.Array, bound: Any, *, step_size: Any = None
) -> optax.GradientTransformation:
    """An optax transformation whose parameters are a plan `[n, m]`; its updates keep one marginal.

    Step t multiplies the plan by `exp(-eta_t grad)` and rescales its rows to a (t even) or
    its columns to b (t odd), all in the log domain. Initialise it with `a b^T`.

    Args:
      a, b: positive weights `[n]`, `[m]` of equal sum.
      bound: a bound of `max |grad|`; `eta_t = sqrt(delta / t) / bound` with
        `delta = max |log a| + max |log b|`.
      step_size: a constant eta instead.

    Reference: Ballu and Berthet, "Mirror Sinkhorn: fast online optimization on transport
    polytopes", 2022, algorithm 1.
    """
    log_a, log_b = jnp.log(a), jnp.log(b)
    delta = jnp.max(jnp.abs(log_a)) + jnp.max(jnp.abs(log_b))

    def init(plan: jax.Array) -> MirrorSinkhornState:
        return MirrorSinkhornState(jnp.log(plan), jnp.int32(0))

    def update(
        gradient: jax.Array, state: MirrorSinkhornState, plan: jax.Array | None = None
    ) -> tuple[jax.Array, MirrorSinkhornState]:
        if plan is None:
            raise ValueError("scale_by_mirror_sinkhorn needs the current plan as params.")
        count = state.count + 1
        eta = step_size
        if eta is None:
            eta = jnp.sqrt(delta / count.astype(plan.dtype)) / bound
        log_plan = state.log_plan - eta * gradient
        rows = (log_a - jax.nn.logsumexp(log_plan, 1))[:, None]
        columns = (log_b - jax.nn.logsumexp(log_plan, 0))[None, :]
        log_plan = log_plan + jnp.where(count % 2 == 0, rows, columns)
        return jnp.exp(log_plan) - plan, MirrorSinkhornState(log_plan, count)

    return optax.GradientTransformation(init, update)  # pyright: ignore[reportArgumentType]


@reports
class MirrorResult(NamedTuple):
    """Plans `[n, m]`: the running average and the last iterate, both rounded to the polytope.

    `violation` is the l1 marginal error of the average before it was rounded. `solve` is the
    Solution of (plan, average), one step before these: its merit is by how much the last step moved
    the average, which does not say how far the minimum is. So it says not CONVERGED but
    MAX_STEPS, or NONFINITE, and then the plans are the last finite ones.
    """

    average: jax.Array
    last: jax.Array
    violation: jax.Array
    solve: Solution


def _check_weights(a: Any, b: Any) -> None:
    """Raise ValueError for weights of no mass, or of different sums."""
    a, b = np.asarray(a), np.asarray(b)
    for name, weights in (("a", a), ("b", b)):
        if not np.all(weights > 0):
            raise ValueError(f"{name} must be positive; drop the rows of weight 0 first.")
    check_masses(a, b, "normalise them")


@reused
@on_own_mesh
def mirror_sinkhorn(
    gradient: Callable | jax.Array,
    a: jax.Array,
    b: jax.Array,
    *,
    bound: Any,
    key: jax.Array | None = None,
    step_size: Any = None,
    **options: Unpack[SolveOptions],
) -> MirrorResult:
    """Minimise a convex function of a transport plan with exact marginals a, b.

    No regularisation bias: the gap of the average falls like `max_steps ** -0.5`.

    Args:
      gradient: `gradient(plan)`, or `gradient(plan, key)` when `key` is given (stochastic);
        or a cost matrix `[n, m]`, whose linear objective is transport itself.
      a, b: positive weights `[n]`, `[m]` of equal sum. Drop rows and columns of weight 0.
      bound: a bound of `max |gradient|`.
      key: a random key for a stochastic gradient. step_size: as in `scale_by_mirror_sinkhorn`.
      **options: those of `fixed_point`. It runs for `max_steps`, by default 1000; a `stop`
        of yours may end it earlier, but never as converged. Derivatives are unrolled, or, for a
        traced max_steps, `frozen()`. No `solver`, no
        `keep_best`, for its merit does not say how far the minimum is; no `resume`.

    Raises:
      ValueError: concrete weights that are not positive or of unequal sums, max_steps < 1, an
        implicit adjoint. Under jit such weights are BAD_INPUT.

    >>> import jax.numpy as jnp
    >>> a = jnp.array([0.5, 0.5])
    >>> out = mirror_sinkhorn(jnp.array([[0.0, 1.0], [1.0, 0.0]]), a, a, bound=1.0, max_steps=200)
    >>> bool(out.average[0, 0] > 0.45)
    True
    """
    chosen = choose("mirror_sinkhorn", options, {
        "solver": "its steps are those of mirror descent",
        "keep_best": "its merit does not say how far the minimum is",
        "resume": "the average is one of all steps; run more of them",
    }, stop=never(), adjoint=unrolled())
    chosen = chosen._replace(stop=without_claims(chosen.rule))
    if isinstance(chosen.max_steps, int | np.integer):
        chosen = chosen._replace(max_steps=int(chosen.max_steps))
        check_count(max_steps=chosen.max_steps)
    if not (chosen.adjoint == frozen() or as_adjoint(chosen.adjoint).differentiates_loop):
        raise ValueError("the average of mirror_sinkhorn is no fixed point: adjoint must be "
                         "unrolled() or frozen().")
    for name, weights in (("a", a), ("b", b)):
        if jnp.ndim(weights) != 1 or jnp.size(weights) == 0:
            raise ValueError(f"{name} must be a non-empty vector, got shape {jnp.shape(weights)}.")
    known(_check_weights, a, b)
    if not callable(gradient):
        cost = jnp.asarray(gradient)
        gradient = lambda plan: cost  # noqa: E731
    transform = scale_by_mirror_sinkhorn(a, b, bound, step_size=step_size)
    plan = a[:, None] * b[None, :] / jnp.sum(b)

    def step(x: tuple, state: MirrorSinkhornState, a: jax.Array, b: jax.Array) -> tuple:
        del a, b
        plan, average = x
        t = state.count + 1
        slope = gradient(plan) if key is None else gradient(plan, jax.random.fold_in(key, t))
        update, state = transform.update(slope, state, plan)  # pyright: ignore[reportAssignmentType]
        plan, weight = plan + update, t.astype(plan.dtype)
        return (plan, (weight * average + plan) / (weight + 1)), state

    problem = Problem(
        step=step, memory=lambda x, a, b: transform.init(x[0]),
        merit=lambda x, image, state, a, b: jnp.sum(jnp.abs(image[1] - x[1])),
        valid=lambda x, a, b: jnp.all(a > 0) & jnp.all(b > 0) & mass_agrees(a, b, a.dtype))
    solve = fixed_point(
        problem, (plan, plan), a, b, **chosen._asdict())
    # One evaluation more than the measured point, unless that was not finite.
    good = (solve.status != Status.NONFINITE) & (solve.status != Status.BAD_INPUT)
    plan, average = trees.where(good, solve.state.output, solve.value)
    violation = jnp.sum(jnp.abs(average.sum(1) - a)) + jnp.sum(jnp.abs(average.sum(0) - b))
    return MirrorResult(
        round_to_polytope(average, a, b), round_to_polytope(plan, a, b), violation, solve)
