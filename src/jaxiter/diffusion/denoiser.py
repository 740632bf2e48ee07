"""What a model predicts, and the two currencies in which samplers think: eps and x0."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.diffusion.schedules import NoiseSchedule, between

PREDICTIONS = ("eps", "x0", "v", "score", "velocity", "edm")


class Denoiser(NamedTuple):
    """A model `fn(x, time)` for one sample x of any shape, and how to read its output.

    Attributes:
      fn: may close over parameters; `time` is the row's entry of the schedule.
      prediction: "eps", "x0", "v" (alpha eps - sigma x0), "score", "velocity" (x0 - eps, flow
        matching) or "edm" (the raw network of Karras et al. 2022, told ln(sigma) / 4).
      schedule: the schedule of the model's training, if the sampler's is another one: the
        model is then called at its own time and scale of the row's noise level, so that any
        sampler serves any model. None: the two are the same.
      data_std: standard deviation of the data, for "edm" and for first guesses.
    """

    fn: Callable
    prediction: str = "eps"
    schedule: NoiseSchedule | None = None
    data_std: float = 0.5

    def convert(
        self, x: jax.Array, alpha: Any, sigma: Any, time: Any
    ) -> tuple[jax.Array, jax.Array]:
        """(eps, x0) at one sample and one noise level; scalars alpha, sigma, time.

        Raises:
          ValueError: an unknown prediction, or an output of another shape than x.
        """
        if self.prediction not in PREDICTIONS:
            raise ValueError(f"unknown prediction type {self.prediction!r}; use one of "
                             f"{PREDICTIONS}.")
        alpha, sigma, time = (jnp.asarray(number, x.dtype) for number in (alpha, sigma, time))
        if self.schedule is not None:
            own, time = _own_level(self.schedule, alpha, sigma)
            x, alpha, sigma = own * x, own * alpha, own * sigma  # eps and x0 stay what they are
        if self.prediction == "edm":
            y, q, deviation = x / alpha, sigma / alpha, self.data_std
            total = jnp.sqrt(q * q + deviation**2)
            raw = _checked(self.fn(y / total, jnp.log(q) / 4), x)
            x0 = deviation**2 / total**2 * y + q * deviation / total * raw
            return (x - alpha * x0) / sigma, x0
        out = _checked(self.fn(x, time), x)
        if self.prediction == "x0":
            return (x - alpha * out) / sigma, out
        if self.prediction == "v":
            norm = alpha**2 + sigma**2
            return (sigma * x + alpha * out) / norm, (alpha * x - sigma * out) / norm
        if self.prediction == "velocity":
            total = alpha + sigma  # 1 in flow matching
            return (x - alpha * out) / total, (x + sigma * out) / total
        eps = -sigma * out if self.prediction == "score" else out
        return eps, (x - sigma * eps) / alpha


def _own_level(own: NoiseSchedule, alpha: jax.Array, sigma: jax.Array) -> tuple:
    """Scale and time of the model's own schedule at this ratio of sigma to alpha."""
    grid, size = np.arctan2(own.sigma, own.alpha)[::-1], np.hypot(own.sigma, own.alpha)[::-1]
    scale, time = between(jnp.arctan2(sigma, alpha), grid, size, own.time[::-1])
    return scale / jnp.hypot(alpha, sigma), time


def _checked(out: jax.Array, x: jax.Array) -> jax.Array:
    if out.shape != x.shape:
        raise ValueError(f"the model returned shape {out.shape} for a sample of {x.shape}.")
    return out.astype(x.dtype)  # networks may compute in fewer bits than the sampler


def guided(conditional: Callable, unconditional: Callable, weight: Any) -> Callable:
    """Classifier-free guidance: `u + weight (c - u)` of two models of one prediction type.

    >>> guided(lambda x, t: 3.0 * x, lambda x, t: x, 2.0)(1.0, 0.0)
    5.0
    """
    def fn(x: jax.Array, time: Any) -> jax.Array:
        plain = unconditional(x, time)
        return plain + weight * (conditional(x, time) - plain)

    return fn
