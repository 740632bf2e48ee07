"""A stop rule on the error, not only on the residual."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import machine_epsilon, safe_divide
from jaxiter.stop import (
    Progress,
    StepInfo,
    Stop,
    absolute_unit,
    begin,
    check_tolerances,
    follow,
    tolerances,
    verdict,
)
from jaxiter.values import as_value

#: The largest of so many measured rates counts: a rate that rotates shows its worst side.
WINDOW = 16
#: A rate is measured over as many steps as it takes to see a decay of this many times the
#: rounding of the steps: one step for most maps, hundreds for a rate of 0.9999 in float32.
CLEAR = 10.0
#: The estimate must be small enough so many steps in a row, and the ratio of error and residual
#: must not grow by more than this share, rounding aside, in any of them: a slow direction that is
#: hidden under fast ones raises it as these go. Half as many where the estimate is smaller by this
#: factor.
IN_A_ROW, GROWS, MARGIN = 8, 0.005, 100


class AccuracyState(NamedTuple):
    """Progress of the merit; logarithm of the decay so far, over how many steps; measured rates.

    `noise`: the relative rounding of the steps in the running measurement. `rates`: `[WINDOW]`,
    -1 where there is none yet. `slower`: a rate seen since the last of them that is clearly above
    all, although too near to 1 to be known itself; -1 where there was none. `passed`: steps in a
    row with a small estimate. `jitter`: what share of the last measured decay may be rounding.
    """

    progress: Progress
    decay: jax.Array
    steps: jax.Array
    noise: jax.Array
    rates: jax.Array
    measured: jax.Array
    slower: jax.Array
    passed: jax.Array
    jitter: jax.Array


@as_value
def accuracy(rtol: Any = None, atol: Any = None) -> Stop:
    """Stop when the estimated error `|x - x*|` is at most `atol + rtol * max(|x|, |T(x)|)`.

    A residual r of a contraction of rate q means an error of up to `r / (1 - q)`. The rate is
    what the map does to the steps that are taken, whatever the solver:

        c_k = |T(x_k) - T(x_{k-1})| / |x_k - x_{k-1}|,    error <= r / (1 - max c)

    over the last 16 measurements; a measurement spans as many steps as rounding requires. It must
    be small enough, and `max c` have settled, eight steps in a row (four, where it is smaller by
    a factor of 100). In the norm in which T contracts, c_k never exceeds q, so the estimate is
    at most `(1 + q) / (1 - q)` times the error; it is below the error until the slowest direction
    shows in the steps. An estimate, no bound: `Solution.error` holds it, inf where the map did
    not contract along the steps (a rotation under `halpern()`), which never says CONVERGED.
    It cannot see a direction that makes up less of the residual than rtol: after a far start
    one with `1 - q` below a tenth of rtol may be missed.

    Args:
      rtol, atol: as in `tolerance`, with the same defaults; atol is absolute where given, else
        the table's value times `min(1, max(|x0|, |T(x0)|))`.

    CONVERGED as above. PRECISION_FLOOR when the merit reached the float floor first, or the
    tolerance is below the error that rounding alone can cause, `4 eps |x| / (1 - q)`. The
    other statuses are those of `tolerance`. Costs two norms more a step.

    Raises:
      ValueError: concrete tolerances that are negative or both zero.

    Reference: Ortega and Rheinboldt, "Iterative solution of nonlinear equations in several
    variables", 1970, theorem 12.1.2 (the bound); measuring the rate along the steps is ours.

    >>> import jax.numpy as jnp, jaxiter
    >>> slow = lambda x: 0.99 * x + 0.01  # from 0 to 1
    >>> solution = jaxiter.fixed_point(slow, jnp.zeros(1), stop=jaxiter.accuracy(1e-3))
    >>> bool(abs(solution.value[0] - 1) < 1e-3), bool(abs(solution.error - 1e-3) < 1e-4)
    (True, True)
    """
    check_tolerances(rtol, atol)

    def init(info: StepInfo) -> AccuracyState:
        zero = jnp.zeros_like(info.merit)
        rates = jnp.full((WINDOW,), -1, info.merit.dtype)
        return AccuracyState(begin(info), zero, jnp.int32(0), zero, rates, jnp.int32(0), rates[0],
                             jnp.int32(0), zero)

    def update(info: StepInfo, state: AccuracyState) -> tuple[jax.Array, AccuracyState]:
        lengths = _Lengths(*trees.safe_norms(
            _vectors, info.x, info.residual, info.previous_x, info.previous_image))
        last, state = amplification(state), _observe(info, lengths, state)
        residual, size = lengths.residual, jnp.maximum(lengths.x, lengths.image)
        factor = amplification(state)
        # A residual of exactly 0 is a fixed point, also where no rate was measured; but not where
        # the problem has a merit of its own that says otherwise: there no step was taken.
        idle = (residual == 0) & ~(info.merit <= info.floor)
        error = jnp.where(residual > 0, factor * residual, jnp.where(idle, jnp.inf, 0))
        progress, futility = follow(
            info.merit, info.floor, size, state.progress, info.changed)
        relative, absolute = tolerances(info.x, rtol, atol)
        threshold = absolute_unit(absolute, atol, progress) + relative * size
        floor = machine_epsilon(info.x) * size * jnp.maximum(jnp.minimum(factor, 1e30), 1)
        small = error <= threshold
        settled = factor <= (1 + GROWS + 2 * state.jitter) * last
        passed = jnp.where(small, jnp.where(settled, state.passed + 1, 1), 0)
        enough = jnp.where(MARGIN * error <= threshold, IN_A_ROW // 2, IN_A_ROW)
        met = small & ((passed >= enough) | (residual == 0) & ~idle)
        status = verdict(
            info.finite, relative, absolute, met, threshold >= floor, progress, futility)
        return status, state._replace(progress=progress, passed=passed)

    return Stop(init, update, amplification)


def amplification(state: AccuracyState) -> jax.Array:
    """Estimated ratio of error and residual; inf while no rate is known, or one is above 1."""
    worst = jnp.maximum(jnp.max(state.rates), state.slower)
    return jnp.where((worst >= 0) & (worst < 1), 1 / (1 - worst), jnp.inf)


class _Lengths(NamedTuple):
    """Norms of x, T(x) and their difference, and of how far both have moved."""

    x: jax.Array
    image: jax.Array
    residual: jax.Array
    step: jax.Array
    image_step: jax.Array


def _vectors(
    x: Any, residual: Any, previous_x: Any, previous_image: Any
) -> tuple[Any, ...]:
    image = trees.add(x, residual)
    return (x, image, residual, trees.subtract(x, previous_x),
            trees.subtract(image, previous_image))


def _observe(info: StepInfo, lengths: _Lengths, state: AccuracyState) -> AccuracyState:
    """One more step, and perhaps one more measured rate."""
    moved = (info.step > 1) & (lengths.step > 0)
    step = jnp.where(moved, lengths.step, 1)
    size = jnp.maximum(lengths.x, lengths.image)
    last_noise = jnp.where(moved, machine_epsilon(info.x) * size / step, 0)
    # No image is known to have moved by less than its rounding.
    image_step = jnp.maximum(lengths.image_step, machine_epsilon(info.x) * size)
    last_decay = jnp.where(moved, jnp.log(image_step / step), 0)
    noise, decay = jnp.maximum(state.noise, last_noise), state.decay + last_decay
    steps = state.steps + moved.astype(jnp.int32)
    clear = moved & (jnp.abs(decay) >= CLEAR * noise)
    rate = jnp.exp(decay / jnp.maximum(steps, 1).astype(decay.dtype))
    known = jnp.log(jnp.maximum(jnp.max(state.rates), 0))
    contradicts = moved & (state.measured > 0) & (last_decay - CLEAR * last_noise > known)
    slower = jnp.maximum(state.slower, jnp.where(contradicts, jnp.exp(last_decay), -1))
    slot = jnp.arange(WINDOW, dtype=jnp.int32) == state.measured % WINDOW
    return state._replace(
        decay=jnp.where(clear, 0, decay), steps=jnp.where(clear, 0, steps),
        noise=jnp.where(clear, 0, noise),
        rates=jnp.where(slot & clear, rate, state.rates),
        jitter=jnp.where(clear, safe_divide(noise, jnp.abs(decay)), state.jitter),
        measured=state.measured + clear.astype(jnp.int32),
        slower=jnp.where(clear, -1, slower))
