"""Weighted particles for annealed, guided, product and reward-tilted diffusion models.

The target is `p_t ~ prod_i q_i,t^(a_i) exp(beta_t r)` of models q_i that share one forward process.
Moving particles by the weighted sum of the scores alone misses it; the missing rate is known in
closed form, without any Laplacian, and is carried as a log weight.

Source: Skreta et al., "Feynman-Kac correctors in diffusion", 2025. The rates for any exponents
and a reward were derived for this library from the Fokker-Planck equation.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter import trees
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.samplers import pairs
from jaxiter.diffusion.schedules import NoiseSchedule
from jaxiter.known import check_floating
from jaxiter.numerics import accumulation_dtype, anchor
from jaxiter.reuse import reused
from jaxiter.solution import Status, reports


@reports
class Particles(NamedTuple):
    """x `[n, ...]`, log_weights `[n]` (0 after a resampling), ess `[T]` effective sample sizes.

    status: MAX_STEPS after all steps, for nothing here measures how near the target is; NONFINITE
    where particles or weights were not finite: x and log_weights are those before, ess is NaN.
    """

    x: jax.Array
    log_weights: jax.Array
    ess: jax.Array
    status: jax.Array


@reused
def feynman_kac_sample(
    schedule: NoiseSchedule, denoisers: Sequence[Denoiser], exponents: Any, x_init: jax.Array,
    key: jax.Array, *, reward: Callable | None = None, strength: Any = None,
    resample_below: float = 0.5,
) -> Particles:
    """Sample `prod_i q_i^(a_i) exp(beta r)` by weighted reverse diffusion.

    Args:
      schedule: alpha positive on every row, sigma on every row but the last.
      denoisers: one model per factor; annealing is one with exponent beta, guidance of weight w
        two with (1 - w, w), a product of experts exponents 1.
      exponents: a_i `[K]`, with a positive sum.
      x_init: particles `[n, ...]` of the product at the first row: near N(0, sigma^2 / sum a).
      reward: `reward(x) -> scalar` of one sample. strength: beta of every row `[T + 1]`, from 0
        at the noise to its full value; default a linear ramp to 1.
      resample_below: resample (systematically) when the effective size falls below this part
        of n; 1 resamples always, 0 never.

    Returns:
      `Particles`; average with `softmax(log_weights)`. Never CONVERGED: watch `ess`. Not
      differentiable: resampling is not.

    Raises:
      ValueError: fewer than two particles, exponents without positive sum or of another number
        than the models, a strength of another length.

    >>> import jax
    >>> from jaxiter.diffusion import Denoiser, vp_schedule
    >>> unit = Denoiser(lambda x, t: x * 0.1, "eps")
    >>> x = jax.random.normal(jax.random.key(0), (8, 1))
    >>> feynman_kac_sample(vp_schedule(5), [unit], [1.0], x, jax.random.key(1)).x.shape
    (8, 1)
    """
    a = np.asarray(exponents, np.float64)
    if a.shape != (len(denoisers),) or not a.sum() > 0:
        raise ValueError("exponents must have one entry per model and a positive sum, got "
                         f"{a.tolist()} for {len(denoisers)} models.")
    check_floating(x_init=x_init)
    if len(x_init) < 2:
        raise ValueError(f"at least two particles are needed, got {len(x_init)}.")
    ramp = np.linspace(0, 1, schedule.steps + 1) if strength is None else np.asarray(strength)
    if ramp.shape != (schedule.steps + 1,):
        raise ValueError(f"strength must have {schedule.steps + 1} entries, got {ramp.shape}.")
    alpha, sigma, alpha1, sigma1 = pairs(schedule)
    if np.any(schedule.alpha <= 0) or np.any(sigma <= 0):
        raise ValueError("alpha must be positive on every row and sigma on every row but the last.")
    drift = np.log(alpha / alpha1)  # of the forward process, integrated over the step
    variance = sigma**2 - (alpha / alpha1 * sigma1) ** 2
    dtype, n = x_init.dtype, len(x_init)
    rows = tuple(jnp.asarray(table, dtype) for table in (
        alpha, sigma, schedule.time[:-1], drift, variance, ramp[:-1], np.diff(ramp)))

    def particle(x: jax.Array, row: tuple, z: jax.Array) -> tuple[jax.Array, jax.Array]:
        """One step of one particle and what it adds to its log weight."""
        at, noise, time, drift, variance, beta, more = row
        scores = [-model.convert(x, at, noise, time)[0] / noise for model in denoisers]
        weighed = list(zip(map(float, a), scores, strict=True))
        total = sum(weight * score for weight, score in weighed)
        rate = jnp.sum(total * total) - sum(w * jnp.sum(score * score) for w, score in weighed)
        gain, push = variance / 2 * rate, total
        if reward is not None:
            value, slope = jax.value_and_grad(reward)(x)
            push = total + beta / 2 * slope
            gain += more * value + beta * jnp.sum(slope * (variance / 2 * total - drift * x))
        return x - drift * x + variance * push + jnp.sqrt(variance) * z, gain

    def step(carry: tuple, at: tuple) -> tuple[tuple, jax.Array]:
        (x, logw, sound), (row, key) = carry, at
        move, draw = jax.random.split(key)
        new, gain = jax.vmap(particle, (0, None, 0))(
            x, row, jax.random.normal(move, x.shape, dtype))
        weights = jax.nn.softmax(logw + gain)
        ess = 1 / jnp.sum(weights**2)
        sound &= trees.finite((new, ess))
        again = ess < resample_below * n
        new = jnp.where(again, new[systematic(weights, draw)], new)
        logw = jnp.where(sound, jnp.where(again, 0, logw + gain), logw)
        return (jnp.where(sound, new, x), logw, sound), jnp.where(sound, ess, jnp.nan)

    keys = jax.random.split(key, schedule.steps)
    start = anchor((x_init, jnp.zeros(n, dtype), trees.finite(x_init)), (x_init, keys))
    (x, logw, sound), ess = lax.scan(step, start, (rows, keys))
    return Particles(x, logw, ess, jnp.where(sound, jnp.int32(Status.MAX_STEPS),
                                             jnp.int32(Status.NONFINITE)))


def systematic(weights: jax.Array, key: jax.Array) -> jax.Array:
    """Indices `[n]` of a systematic resampling: copies differ from n w by less than one.

    >>> systematic(jnp.array([0.0, 1.0, 0.0]), jax.random.key(0)).tolist()
    [1, 1, 1]
    """
    n = weights.shape[0]
    # Half precision cannot count particles: beyond some hundred neighbours would share a point.
    weights = weights.astype(accumulation_dtype(weights.dtype))
    points = (jax.random.uniform(key, (), weights.dtype) + jnp.arange(n, dtype=weights.dtype)) / n
    return jnp.clip(jnp.searchsorted(jnp.cumsum(weights), points), 0, n - 1)
