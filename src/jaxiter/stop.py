"""Stop rules: two functions that read norms and say a status."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter import trees
from jaxiter.numerics import is_concrete, machine_epsilon
from jaxiter.solution import Status, most_severe

PyTree = Any

#: Default relative and absolute tolerances by the coarsest dtype of x.
DEFAULT_TOLERANCES = {"float64": (1e-8, 1e-9), "float32": (1e-5, 1e-6), "half": (1e-2, 1e-3)}

#: DIVERGED means: the merit was this many times its minimum for this many steps.
DIVERGENCE_FACTOR = 1000.0
DIVERGENCE_PATIENCE = 20

#: PRECISION_FLOOR above the tolerance means: this many steps at the floor without progress.
FLOOR_PATIENCE = 5


class StepInfo(NamedTuple):
    """What a stop rule may look at: one evaluation of the map.

    `x` and `residual` are trees, so that a rule may take its own norm. `finite`
    is False when the solve cannot go on (the next point is not finite).
    """

    step: jax.Array
    x: PyTree
    residual: PyTree
    merit: jax.Array
    scale: jax.Array
    floor: jax.Array
    finite: jax.Array


class Stop(NamedTuple):
    """A stop rule: `init(info) -> state`, `update(info, state) -> (status, state)`."""

    init: Callable[[StepInfo], PyTree]
    update: Callable[[StepInfo, PyTree], tuple[jax.Array, PyTree]]


def default_tolerances(x: PyTree) -> tuple[float, float]:
    """`(rtol, atol)` for the coarsest floating dtype among the leaves of x."""
    epsilon = machine_epsilon(x)
    kind = "float64" if epsilon < 1e-12 else "float32" if epsilon < 1e-5 else "half"
    return DEFAULT_TOLERANCES[kind]


def _status(*cases: tuple[jax.Array, int]) -> jax.Array:
    """The code of the first case that holds, else RUNNING; cases known to be false are skipped."""
    code = jnp.int32(Status.RUNNING)
    for holds, status in reversed(cases):
        if isinstance(holds, np.bool_) and not holds:
            continue
        code = lax.select(holds, jnp.int32(status), code)
    return code


def check_tolerances(rtol: Any, atol: Any) -> None:
    """Raise ValueError when concrete tolerances are negative, NaN or both zero."""
    for name, value in (("rtol", rtol), ("atol", atol)):
        if value is not None and is_concrete(value) and not np.all(np.asarray(value) >= 0):
            raise ValueError(f"{name} must be at least 0, got {value}.")
    if rtol is not None and atol is not None and is_concrete(rtol, atol):
        if np.any((np.asarray(rtol) == 0) & (np.asarray(atol) == 0)):
            raise ValueError("rtol and atol are both 0, which no solve can meet; set one of them.")


def _valid(rtol: Any, atol: Any) -> Any:
    """Whether traced tolerances make sense; concrete ones were checked when they were given."""
    if is_concrete(rtol, atol):
        return np.bool_(True)
    rtol, atol = jnp.asarray(rtol), jnp.asarray(atol)
    return (rtol >= 0) & (atol >= 0) & ((rtol > 0) | (atol > 0))


class ToleranceState(NamedTuple):
    """Smallest merit, and the steps in a row that were far above it, or stuck at the floor."""

    best: jax.Array
    futile: jax.Array


def tolerance(
    rtol: Any = None, atol: Any = None, norm: Callable[[PyTree], jax.Array] | None = None
) -> Stop:
    """Stop when `merit <= atol + rtol * scale`, or when going on is pointless.

    CONVERGED as above. PRECISION_FLOOR when the merit is within the float
    floor but did not fall for 5 steps, or met a tolerance below one machine
    epsilon of the scale, which rounding alone can meet. DIVERGED when the
    merit was 1000 times its minimum for 20 steps. NONFINITE when the solver
    cannot go on. BAD_INPUT under jit for negative tolerances or two zeros.

    Args:
      rtol, atol: relative and absolute tolerance; defaults by the dtype of x:
        float64 1e-8 / 1e-9, float32 1e-5 / 1e-6, 16-bit 1e-2 / 1e-3. May be traced.
      norm: measure this norm of the residual instead of the problem's merit,
        and scale by `max(norm(x), norm(T(x)))`.

    Raises:
      ValueError: concrete tolerances that are negative or both zero.

    >>> import jax.numpy as jnp, jaxiter
    >>> sol = jaxiter.fixed_point(jnp.cos, 1.0, stop=jaxiter.tolerance(rtol=0, atol=1e-3))
    >>> sol.message()[:9], abs(float(sol.value) - 0.739) < 1e-3
    ('CONVERGED', True)
    """
    check_tolerances(rtol, atol)

    def init(info: StepInfo) -> ToleranceState:
        return ToleranceState(lax.full_like(info.merit, jnp.inf), jnp.int32(0))

    def update(info: StepInfo, state: ToleranceState) -> tuple[jax.Array, ToleranceState]:
        relative, absolute = default_tolerances(info.x)
        relative = relative if rtol is None else rtol
        absolute = absolute if atol is None else atol
        merit, scale, floor = info.merit, info.scale, info.floor
        if norm is not None:
            merit = norm(info.residual)
            scale = jnp.maximum(norm(info.x), norm(trees.add(info.x, info.residual)))
            floor = 4 * machine_epsilon(info.x) * scale
        merit = merit.astype(state.best.dtype)
        threshold = absolute + relative * scale
        # An overflowed scale makes threshold and floor infinite: that proves nothing.
        met = (merit <= threshold) & lax.is_finite(threshold)
        # A tolerance under one epsilon of the scale (floor / 4) cannot be resolved.
        resolved = threshold >= floor / 4
        # Accelerated merits are not monotone: one step without progress proves nothing.
        stalled = (merit <= floor) & (merit >= state.best) & lax.is_finite(floor)
        high = merit > DIVERGENCE_FACTOR * state.best
        futile = lax.select(stalled | high, state.futile + 1, jnp.int32(0))
        best = lax.select(merit < state.best, merit, state.best)
        status = _status(
            (~_valid(relative, absolute), Status.BAD_INPUT),
            (~info.finite, Status.NONFINITE),
            (met & resolved, Status.CONVERGED),
            (met | (stalled & (futile >= FLOOR_PATIENCE)), Status.PRECISION_FLOOR),
            (high & (futile >= DIVERGENCE_PATIENCE), Status.DIVERGED),
        )
        return status, ToleranceState(best, futile)

    return Stop(init, update)


def stagnation(patience: int = 100, factor: float = 0.99) -> Stop:
    """STAGNATED when the best merit has not fallen below `factor` times itself in `patience` steps.

    Combine it: `any_of(tolerance(), stagnation(200))`. Slow but honest
    contractions (rate 0.9999) need a `patience` with `rate**patience < factor`.
    """
    if is_concrete(patience) and patience < 1:
        raise ValueError(f"patience must be at least 1, got {patience}.")

    def init(info: StepInfo) -> tuple:
        return jnp.full_like(info.merit, jnp.inf), jnp.int32(0)

    def update(info: StepInfo, state: tuple) -> tuple[jax.Array, tuple]:
        reference, waited = state
        improved = info.merit < factor * reference
        waited = jnp.where(improved, 0, waited + 1)
        reference = jnp.where(improved, info.merit, reference)
        return _status((waited >= patience, Status.STAGNATED)), (reference, waited)

    return Stop(init, update)


def divergence(factor: float = DIVERGENCE_FACTOR, patience: int = DIVERGENCE_PATIENCE) -> Stop:
    """DIVERGED when the merit was `factor` times its minimum for `patience` steps in a row."""

    def init(info: StepInfo) -> tuple:
        return jnp.full_like(info.merit, jnp.inf), jnp.int32(0)

    def update(info: StepInfo, state: tuple) -> tuple[jax.Array, tuple]:
        best = jnp.fmin(state[0], info.merit)
        high = jnp.where(info.merit > factor * best, state[1] + 1, 0)
        return _status((high >= patience, Status.DIVERGED)), (best, high)

    return Stop(init, update)


class DisplacementState(NamedTuple):
    """x0, and the residual norms at the last two checkpoints (a quarter and a half of now)."""

    start: PyTree
    quarter: jax.Array
    half: jax.Array
    checkpoint: jax.Array


def no_fixed_point(agreement: float = 0.05, drift: float = 0.01, min_steps: int = 64) -> Stop:
    """NO_FIXED_POINT when the displacement of a nonexpansive map settles on a non-zero vector.

    For a nonexpansive map the displacements `T(x_k) - x_k` and the drift
    `(x_k - x_0) / k` both converge to minus the infimal displacement vector,
    which is zero when a fixed point exists. At steps 64, 128, 256, ... the
    rule asks that (1) both point the same way: the relative distance of the
    drift, rescaled, from the displacement is at most `agreement`; (2) the norm
    of the displacement fell by less than `drift` since half the steps; and
    (3) it fell less over the last half than over the quarter before, which a
    slowly contracting map never does. `Solution.displacement` is then the
    certificate. Use it with picard(), damped() or halpern(); the points of
    anderson() carry no such meaning. Combine it:
    `any_of(tolerance(), no_fixed_point())`.

    Reference: Park and Ryu, "Accelerated Infeasibility Detection of Constrained
    Optimization and Fixed-Point Iterations", 2023; tests (1) to (3) are ours.

    >>> import jax.numpy as jnp, jaxiter
    >>> rule = jaxiter.any_of(jaxiter.tolerance(), jaxiter.no_fixed_point())
    >>> jaxiter.fixed_point(lambda x: x + 1.0, jnp.zeros(2), stop=rule).message()[:14]
    'NO_FIXED_POINT'
    """

    def init(info: StepInfo) -> DisplacementState:
        unknown = jnp.full_like(info.merit, jnp.inf)
        return DisplacementState(info.x, unknown, unknown, jnp.int32(max(min_steps // 4, 1)))

    def update(info: StepInfo, state: DisplacementState) -> tuple[jax.Array, DisplacementState]:
        now = trees.norm(info.residual).astype(state.half.dtype)
        travelled = trees.subtract(info.x, state.start)
        # The component of the travelled path along the residual fixes the solver's own
        # factor (1 for Picard, 1/2 for Halpern); what is left over measures disagreement.
        length = trees.norm(travelled)
        cosine = trees.dot(info.residual, travelled).real / (now * length)
        across = jnp.sqrt(jnp.maximum(1 - cosine**2, 0))
        noise = 100 * machine_epsilon(info.x)
        last, before = state.half - now, state.quarter - state.half
        settled = jnp.abs(last) <= drift * now
        shrinking = jnp.abs(last) <= jnp.maximum(0.9 * jnp.abs(before), noise * now)
        checked = info.step == state.checkpoint
        found = checked & (info.step >= min_steps) & (cosine > 0) & (across <= agreement)
        found &= settled & shrinking & (now > 25 * info.floor)
        moved = DisplacementState(
            state.start,
            jnp.where(checked, state.half, state.quarter),
            jnp.where(checked, now, state.half),
            jnp.where(checked, 2 * state.checkpoint, state.checkpoint),
        )
        return _status((found, Status.NO_FIXED_POINT)), moved

    return Stop(init, update)


def _combine(rules: tuple[Stop, ...], every: bool) -> Stop:
    if not rules:
        raise ValueError("give at least one stop rule.")

    def init(info: StepInfo) -> tuple:
        return tuple(rule.init(info) for rule in rules)

    def update(info: StepInfo, state: tuple) -> tuple[jax.Array, tuple]:
        pairs = [rule.update(info, s) for rule, s in zip(rules, state, strict=True)]
        codes = [code for code, _ in pairs]
        status = most_severe(*codes)
        if every:
            running = jnp.stack([code == Status.RUNNING for code in codes])
            status = jnp.where(jnp.any(running), jnp.int32(Status.RUNNING), status)
        return status, tuple(new for _, new in pairs)

    return Stop(init, update)


def any_of(*rules: Stop) -> Stop:
    """Stop when any rule stops; the most severe status wins (`solution.PRECEDENCE`)."""
    return _combine(rules, every=False)


def all_of(*rules: Stop) -> Stop:
    """Stop when all rules stop at the same step; the most severe status wins."""
    return _combine(rules, every=True)


never = partial(Stop, lambda info: (), lambda info, state: (jnp.int32(Status.RUNNING), state))
never.__doc__ = "Never stop early: run exactly max_steps, or until something is not finite."
