"""Test beds of diffusion samplers: Gaussian mixtures, whose models are known exactly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.diffusion import Denoiser
from jaxiter.diffusion.schedules import NoiseSchedule


class Mixture(NamedTuple):
    """Equal-weight Gaussians: means `[K, d]` and one standard deviation."""

    means: np.ndarray
    std: float


def gmm64() -> Mixture:
    """Ten broad components in 64 dimensions."""
    return Mixture(0.7 * np.random.default_rng(0).normal(size=(10, 64)), 0.3)


def hard64() -> Mixture:
    """Fifty narrow, close components in 64 dimensions: modes are decided late."""
    return Mixture(0.3 * np.random.default_rng(0).normal(size=(50, 64)), 0.1)


def ring2() -> Mixture:
    """Eight components on a circle of radius 1.5."""
    angle = 2 * np.pi * np.arange(8) / 8
    return Mixture(1.5 * np.stack([np.cos(angle), np.sin(angle)], 1), 0.1)


def digits(every: int = 6) -> Mixture:
    """Kernel density of scikit-learn's digits, scaled to [-1, 1]; every so many rows."""
    from sklearn.datasets import load_digits

    return Mixture(np.asarray(load_digits(return_X_y=True)[0])[::every] / 8 - 1, 0.2)


def mixture_values(
    mixture: Mixture, x: jax.Array, alpha: Any, sigma: Any
) -> tuple[jax.Array, jax.Array]:
    """Exact (eps, x0) of a mixture at x `[d]`; closed forms without division by sigma."""
    means = jnp.asarray(mixture.means, x.dtype)
    variance = alpha**2 * mixture.std**2 + sigma**2
    weights = jax.nn.softmax(-jnp.sum((x - alpha * means) ** 2, axis=1) / (2 * variance))
    mean = jnp.matmul(weights, means, precision="highest")
    offset = x - alpha * mean
    return sigma / variance * offset, mean + alpha * mixture.std**2 / variance * offset


def mixture_denoiser(
    mixture: Mixture, schedule: NoiseSchedule, prediction: str = "eps"
) -> Denoiser:
    """The exact model as a `Denoiser`, told the time of the schedule.

    >>> import jax.numpy as jnp
    >>> from jaxiter.diffusion import ddim, linear_beta_schedule, sample
    >>> schedule = linear_beta_schedule(20)
    >>> model = mixture_denoiser(ring2(), schedule)
    >>> radius = float(jnp.linalg.norm(sample(ddim(schedule), model, jnp.array([1.0, 0.2]))))
    >>> 1.0 < radius < 2.0
    True
    """
    order = np.argsort(schedule.time, kind="stable")
    grid = schedule.time[order]
    angle = np.arctan2(schedule.sigma, schedule.alpha)[order]
    radius = np.hypot(schedule.sigma, schedule.alpha)[order]

    def fn(x: jax.Array, time: jax.Array) -> jax.Array:
        turn = jnp.interp(time, jnp.asarray(grid, x.dtype), jnp.asarray(angle, x.dtype))
        size = jnp.interp(time, jnp.asarray(grid, x.dtype), jnp.asarray(radius, x.dtype))
        alpha, sigma = size * jnp.cos(turn), size * jnp.sin(turn)
        eps, x0 = mixture_values(mixture, x, alpha, sigma)
        outputs = {"eps": lambda: eps, "x0": lambda: x0, "v": lambda: alpha * eps - sigma * x0,
                   "score": lambda: -eps / sigma, "velocity": lambda: x0 - eps}
        return outputs[prediction]()

    return Denoiser(fn, prediction, float(np.sqrt(np.mean(np.square(mixture.means))
                                                  + mixture.std**2)))
