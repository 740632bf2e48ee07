"""Stop rules: two functions that read norms and say a status."""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter import trees
from jaxiter.numerics import is_concrete, machine_epsilon
from jaxiter.solution import Status, most_severe
from jaxiter.values import as_value

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

    `x`, `residual`: trees, for a norm of one's own; `previous_x`, `previous_image`: the evaluation
    before (at the first step x0, twice). `finite`: whether the next point is. `memory`: as this
    step left it; `changed`: whether it makes another map now, None without an epoch.
    """

    step: jax.Array
    x: PyTree
    residual: PyTree
    merit: jax.Array
    scale: jax.Array
    floor: jax.Array
    finite: jax.Array
    previous_x: PyTree = None
    previous_image: PyTree = None
    memory: PyTree = ()
    changed: jax.Array | None = None


class Stop(NamedTuple):
    """A stop rule: `init(info) -> state`, `update(info, state) -> (status, state)`.

    `amplification(state) -> scalar`, where a rule has it, is its estimate of the ratio of the
    error and the residual, from which `Solution.error` is computed.
    """

    init: Callable[[StepInfo], PyTree]
    update: Callable[[StepInfo, PyTree], tuple[jax.Array, PyTree]]
    amplification: Callable[[PyTree], jax.Array] | None = None


def accepts(stop: Stop, x: PyTree, residual: PyTree, merit: jax.Array, scale: Any) -> jax.Array:
    """Whether a rule says CONVERGED of one measurement alone; one that wants a history says no."""
    scale = jnp.asarray(scale, merit.dtype)
    info = StepInfo(jnp.int32(1), x, residual, merit, scale, jnp.zeros_like(merit),
                    jnp.bool_(True), x, trees.add(x, residual))
    return stop.update(info, stop.init(info))[0] == Status.CONVERGED


def default_tolerances(x: PyTree) -> tuple[float, float]:
    """`(rtol, atol)` for the coarsest floating dtype among the leaves of x."""
    epsilon = machine_epsilon(x)
    kind = "float64" if epsilon < 1e-12 else "float32" if epsilon < 1e-5 else "half"
    return DEFAULT_TOLERANCES[kind]


def first_case(*cases: tuple[jax.Array, int]) -> jax.Array:
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
        if value is not None and not isinstance(value, int | float | np.generic | np.ndarray |
                                                jax.Array):
            raise TypeError(f"{name} must be a number, got {value!r}.")
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


class Progress(NamedTuple):
    """Smallest merit; steps in a row that were far above it, or stuck at the floor.

    `unit`: what a default atol multiplies, `min(1, scale at the first measured step)`; NaN before.
    `base`: the scale when it was last twice that of the time before, `peak`: the largest merit
    since, `reference`: that of the time before.
    """

    best: jax.Array
    futile: jax.Array
    unit: jax.Array
    base: jax.Array
    peak: jax.Array
    reference: jax.Array

    def fell(self, merit: jax.Array) -> jax.Array:
        """Whether the merit fell by half since the scale last doubled.

        A point that drifts off at a steady pace, for want of a fixed point, loosens a relative
        tolerance without end: there the merit proves nothing.
        """
        return merit <= 0.5 * self.reference


class Futility(NamedTuple):
    """Why the last step brought nothing: no fall at the float floor, or far above the minimum."""

    stalled: jax.Array
    high: jax.Array


def begin(info: StepInfo) -> Progress:
    """No progress yet."""
    zero, endless = lax.full_like(info.merit, 0), lax.full_like(info.merit, jnp.inf)
    return Progress(endless, jnp.int32(0), lax.full_like(endless, jnp.nan), endless, zero, endless)


def follow(
    merit: jax.Array, floor: jax.Array, scale: jax.Array, last: Progress,
    changed: jax.Array | None = None,
) -> tuple[Progress, Futility]:
    """The progress after one more measured step; merits of another map have a best of their own."""
    merit = lax.convert_element_type(merit, last.best.dtype)
    # Accelerated merits are not monotone: one step without progress proves nothing.
    stalled = (merit <= floor) & (merit >= last.best) & lax.is_finite(floor)
    # An infinite merit says "not known here": what is not finite has a status of its own.
    high = (merit > DIVERGENCE_FACTOR * last.best) & lax.is_finite(merit)
    futile = lax.select(stalled | high, last.futile + 1, jnp.int32(0))
    best = lax.select(merit < last.best, merit, last.best)
    scale = lax.convert_element_type(scale, best.dtype)
    started = last.unit == last.unit
    unit = lax.select(started, last.unit, lax.min(scale, lax.full_like(best, 1)))
    doubled, peak = scale > 2 * last.base, lax.max(merit, last.peak)
    if changed is not None:
        best = lax.select(changed, lax.full_like(best, jnp.inf), best)
    return Progress(
        best, futile, unit, lax.select(doubled | ~started, scale, last.base),
        lax.select(doubled, merit, peak), lax.select(doubled, peak, last.reference),
    ), Futility(stalled, high)


def tolerances(x: PyTree, rtol: Any, atol: Any) -> tuple[Any, Any]:
    """`(rtol, atol)` with the defaults for x where they are None."""
    relative, absolute = default_tolerances(x)
    return relative if rtol is None else rtol, absolute if atol is None else atol


def absolute_unit(absolute: Any, atol: Any, progress: Progress) -> Any:
    """The absolute tolerance: as the user gave it, or the default in units of the start."""
    return absolute * progress.unit if atol is None else absolute


def verdict(
    finite: jax.Array, relative: Any, absolute: Any, met: jax.Array, resolved: jax.Array,
    progress: Progress, futility: Futility,
) -> jax.Array:
    """The status: tolerance met and resolvable by this arithmetic, or going on is pointless."""
    stuck = futility.stalled & (progress.futile >= FLOOR_PATIENCE)
    return first_case(
        (~_valid(relative, absolute), Status.BAD_INPUT),
        (~finite, Status.NONFINITE),
        (met & resolved, Status.CONVERGED),
        (met | stuck, Status.PRECISION_FLOOR),
        (futility.high & (progress.futile >= DIVERGENCE_PATIENCE), Status.DIVERGED),
    )


@as_value
def tolerance(
    rtol: Any = None, atol: Any = None, norm: Callable[[PyTree], jax.Array] | None = None
) -> Stop:
    """Stop when `merit <= atol + rtol * scale`, or when going on is pointless.

    This is a test of the residual, relative to x: a contraction of rate q may be `1 / (1 - q)`
    times as far from its fixed point, and from a far start the first step may pass.
    `accuracy` asks for the error itself.

    CONVERGED as above, where the merit has fallen by half since the scale last doubled: a point
    that drifts off steadily is none. PRECISION_FLOOR when the merit is within the float
    floor but did not fall for 5 steps, or met a tolerance below one machine
    epsilon of the scale, which rounding alone can meet. DIVERGED when the
    merit was 1000 times its minimum for 20 steps. NONFINITE when the solver
    cannot go on. BAD_INPUT under jit for negative tolerances or two zeros.

    Args:
      rtol, atol: relative and absolute tolerance; defaults by the dtype of x:
        float64 1e-8 / 1e-9, float32 1e-5 / 1e-6, 16-bit 1e-2 / 1e-3. May be traced. An atol
        that is given is absolute; the default is taken times min(1, scale at the first step),
        so that data of 1e-12 are solved as well as data of 1.
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

    def update(info: StepInfo, state: Progress) -> tuple[jax.Array, Progress]:
        merit, scale, floor = info.merit, info.scale, info.floor
        if norm is not None:
            # A problem whose own merit does not see a fixed point there took no step.
            idle = ~_moves(info.residual) & ~(info.merit <= info.floor)
            merit = jnp.where(idle, jnp.inf, norm(info.residual))
            scale = jnp.maximum(norm(info.x), norm(trees.add(info.x, info.residual)))
            floor = 4 * machine_epsilon(info.x) * scale
        merit = lax.convert_element_type(merit, state.best.dtype)
        progress, futility = follow(merit, floor, scale, state, info.changed)
        relative, absolute = tolerances(info.x, rtol, atol)
        nearest = absolute_unit(absolute, atol, progress)
        threshold = nearest + relative * scale
        # An overflowed scale makes the threshold infinite: that proves nothing.
        met = (merit <= threshold) & lax.is_finite(threshold) & (
            progress.fell(merit) | (merit <= nearest))
        # A tolerance under one epsilon of the scale (floor / 4) cannot be resolved.
        status = verdict(info.finite, relative, absolute, met, threshold >= floor / 4, progress,
                         futility)
        return status, progress

    return Stop(begin, update)


def _moves(residual: PyTree) -> jax.Array:
    """Whether any entry is not 0; NaN is not."""
    return reduce(jnp.logical_or, [jnp.any(leaf != 0) for leaf in jax.tree.leaves(residual)])


@as_value
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
        return first_case((waited >= patience, Status.STAGNATED)), (reference, waited)

    return Stop(init, update)


@as_value
def divergence(factor: float = DIVERGENCE_FACTOR, patience: int = DIVERGENCE_PATIENCE) -> Stop:
    """DIVERGED when the merit was `factor` times its minimum for `patience` steps in a row."""

    def init(info: StepInfo) -> tuple:
        return jnp.full_like(info.merit, jnp.inf), jnp.int32(0)

    def update(info: StepInfo, state: tuple) -> tuple[jax.Array, tuple]:
        best = jnp.fmin(state[0], info.merit)
        high = jnp.where(info.merit > factor * best, state[1] + 1, 0)
        best = best if info.changed is None else jnp.where(info.changed, jnp.inf, best)
        return first_case((high >= patience, Status.DIVERGED)), (best, high)

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

    def amplification(state: tuple) -> jax.Array:
        return reduce(jnp.minimum, [
            rule.amplification(s) for rule, s in zip(rules, state, strict=True)
            if rule.amplification is not None])

    known = any(rule.amplification is not None for rule in rules)
    return Stop(init, update, amplification if known else None)


@as_value
def any_of(*rules: Stop) -> Stop:
    """Stop when any rule stops; the most severe status wins (`solution.PRECEDENCE`)."""
    return _combine(rules, every=False)


@as_value
def all_of(*rules: Stop) -> Stop:
    """Stop when all rules stop at the same step; the most severe status wins."""
    return _combine(rules, every=True)


@as_value
def never() -> Stop:
    """Never stop early: run exactly max_steps, or until something is not finite."""
    return Stop(lambda info: (), lambda info, state: (jnp.int32(Status.RUNNING), state))


def without_claims(stop: Stop) -> Stop:
    """The rule where there is nothing to judge by: it may end a run, but never well."""
    def update(info: StepInfo, state: PyTree) -> tuple[jax.Array, PyTree]:
        status, state = stop.update(info, state)
        claims = (status == Status.CONVERGED) | (status == Status.PRECISION_FLOOR)
        return jnp.where(claims, jnp.int32(Status.RUNNING), status), state

    return Stop(stop.init, update, stop.amplification)
