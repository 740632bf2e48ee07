"""Test beds of diffusion samplers: Gaussian mixtures, whose models are known exactly."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.diffusion import Denoiser
from jaxiter.diffusion.schedules import NoiseSchedule, between
from jaxiter.solvers.residual import trained


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
        turn, size = between(jnp.asarray(time, x.dtype), grid, angle, radius)
        alpha, sigma = size * jnp.cos(turn), size * jnp.sin(turn)
        eps, x0 = mixture_values(mixture, x, alpha, sigma)
        outputs = {"eps": lambda: eps, "x0": lambda: x0, "v": lambda: alpha * eps - sigma * x0,
                   "score": lambda: -eps / sigma, "velocity": lambda: x0 - eps}
        return outputs[prediction]()

    spread = float(np.sqrt(np.mean(np.square(mixture.means)) + mixture.std**2))
    return Denoiser(fn, prediction, data_std=spread)


class Network(NamedTuple):
    """Residual network of the test bed: input, three hidden and output layers, `(w, b)` each."""

    layers: tuple

    def __call__(self, x: jax.Array, features: jax.Array) -> jax.Array:
        """x `[64]`, features of the noise level."""
        (first, *middle, last) = self.layers
        h = jax.nn.silu(jnp.concatenate([x, features]) @ first[0] + first[1])
        for w, b in middle:
            h = h + jax.nn.silu(h @ w + b)
        return h @ last[0] + last[1]


def network_denoiser(network: Network, schedule: NoiseSchedule) -> Denoiser:
    """eps of a network on a variance-preserving schedule: exact for unit Gaussian data plus a net.

    `eps = sigma x + alpha net(x, sines and cosines of log(sigma / alpha))`.
    """
    angle = np.arctan2(schedule.sigma, schedule.alpha)[::-1]
    grid = schedule.time[::-1]

    def fn(x: jax.Array, time: jax.Array) -> jax.Array:
        (turn,) = between(jnp.asarray(time, x.dtype), grid, angle)
        alpha, sigma = jnp.cos(turn), jnp.sin(turn)
        level = jnp.log(jnp.maximum(sigma, 1e-4) / jnp.maximum(alpha, 1e-4))
        phases = level * 2.0 ** jnp.arange(-3, 3, dtype=x.dtype)
        features = jnp.concatenate([jnp.sin(phases), jnp.cos(phases)])
        return sigma * x + alpha * network(x, features)

    return Denoiser(fn, "eps", data_std=0.6)


def trained_network(
    max_steps: int = 4000, *, width: int = 256, seed: int = 0
) -> tuple[Network, jax.Array]:
    """A small network trained on scikit-learn's digits by denoising, in seconds on two cores.

    Returns the network and the loss of every step.
    """
    import optax
    from sklearn.datasets import load_digits

    from jaxiter.diffusion import linear_beta_schedule

    rng = np.random.default_rng(seed)
    sizes = [64 + 12, width, width, width, 64]
    start = Network(tuple(
        (jnp.asarray(rng.normal(size=(a, b)) * np.sqrt(1 / a) * (0.1 if b == 64 else 1),
                     jnp.float32), jnp.zeros(b, jnp.float32))
        for a, b in zip(sizes, sizes[1:], strict=False)))
    schedule = linear_beta_schedule(1000)
    data = jnp.asarray(np.asarray(load_digits(return_X_y=True)[0]) / 8 - 1, jnp.float32)
    tables = [jnp.asarray(table[:-1], jnp.float32) for table in schedule]
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, max_steps))

    def loss(network: Network, key: jax.Array) -> jax.Array:
        pick, level, draw = jax.random.split(key, 3)
        x0 = data[jax.random.randint(pick, (256,), 0, len(data))]
        alpha, sigma, time = (t[jax.random.randint(level, (256,), 0, 1000)] for t in tables)
        eps = jax.random.normal(draw, x0.shape)
        noisy = alpha[:, None] * x0 + sigma[:, None] * eps
        model = network_denoiser(network, schedule)
        return jnp.mean(jnp.square(jax.vmap(model.fn)(noisy, time) - eps))

    @jax.jit
    def train(network: Network) -> tuple[Network, jax.Array]:
        keys = jax.vmap(lambda t: jax.random.fold_in(jax.random.key(seed), t))(
            jnp.arange(max_steps, dtype=jnp.int32))
        return trained(optimizer, loss, network, keys)

    return train(start)
