"""Noise schedules: rows 0..T from pure noise to data, tables in float64 on the host.

`x = alpha x0 + sigma eps` on every row, and `time` is what the model is told. The tables are
plain numpy arrays: `1 - alpha^2` near the data end cancels in float32, so coefficients are
computed from them in float64 and cast at the very end.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.known import check_positive


class NoiseSchedule(NamedTuple):
    """alpha, sigma, time `[T + 1]`, noise first, data last."""

    alpha: np.ndarray
    sigma: np.ndarray
    time: np.ndarray

    @property
    def steps(self) -> int:
        """T, the number of steps."""
        return len(self.alpha) - 1

    @property
    def lam(self) -> np.ndarray:
        """log(alpha / sigma), `[T + 1]`; infinite where one of them is 0."""
        with np.errstate(divide="ignore"):
            return np.log(self.alpha) - np.log(self.sigma)

    def at(self, lam: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(alpha, sigma, time) between rows, by their log(alpha / sigma).

        Exact where alpha (variance exploding), alpha^2 + sigma^2 (preserving) or
        alpha + sigma (flow matching) is constant; else that root of squares is interpolated.
        """
        known = np.isfinite(self.lam)
        grid, ratio = self.lam[known], np.exp(-lam)
        time = np.interp(lam, grid, self.time[known])
        for norm in (lambda a, s: a, np.add, np.hypot):
            size = norm(self.alpha, self.sigma)
            if np.ptp(size) < 1e-6 * np.max(size):
                break
        size = np.exp(np.interp(lam, grid, np.log(size[known])))
        alpha = size / norm(1.0, ratio)
        return alpha, alpha * ratio, time


def between(x: jax.Array, grid: np.ndarray, *tables: np.ndarray) -> tuple[jax.Array, ...]:
    """Each table `[n]` at x, linear between the points of an ascending grid `[n]`, held beyond.

    All points are compared at once. A search is a loop: on an accelerator a launch a step, inside
    every call of the model, and some compilers fail on it in the body of another loop.

    >>> [float(y) for y in between(jnp.float32(0.5), np.array([0.0, 1, 3]), np.array([0, 4.0, 0]))]
    [2.0]
    """
    points = jnp.asarray(grid, x.dtype)
    right = jnp.sum(points[1:-1] <= x[..., None], axis=-1, dtype=jnp.int32) + 1
    near, far = points[right - 1], points[right]
    share = jnp.clip((x - near) / jnp.where(far > near, far - near, 1), 0, 1)
    values = (jnp.asarray(table, x.dtype) for table in tables)
    return tuple(v[right - 1] + share * (v[right] - v[right - 1]) for v in values)


def make_schedule(alpha: np.ndarray, sigma: np.ndarray, time: np.ndarray) -> NoiseSchedule:
    """A checked schedule from tables `[T + 1]`.

    Raises:
      ValueError: fewer than one step, tables that differ in length, entries that are not
        finite, or a ratio alpha / sigma that does not grow from row to row.

    >>> make_schedule([0.0, 1.0], [1.0, 0.0], [0.0, 1.0]).steps
    1
    """
    tables = [np.asarray(table, np.float64) for table in (alpha, sigma, time)]
    if len({table.shape for table in tables}) != 1 or tables[0].ndim != 1 or len(tables[0]) < 2:
        raise ValueError("a schedule needs alpha, sigma and time of one length T + 1 >= 2, got "
                         f"{[table.shape for table in tables]}.")
    if not all(np.all(np.isfinite(table)) for table in tables):
        raise ValueError("the schedule has entries that are not finite.")
    schedule = NoiseSchedule(*tables)
    if np.any(schedule.alpha < 0) or np.any(schedule.sigma < 0):
        raise ValueError("alpha and sigma must not be negative.")
    # As an angle: finite also at pure noise and at pure data.
    angle = np.arctan2(schedule.alpha, schedule.sigma)
    if not np.all(np.diff(angle) > 0):
        row = int(np.argmax(np.diff(angle) <= 0))
        raise ValueError("abar must decrease with noise: alpha / sigma does not grow from row "
                         f"{row} to row {row + 1}.")
    return schedule


def _discrete(abar: np.ndarray, steps: int, spacing: str) -> NoiseSchedule:
    """`steps` of the rows of a training grid, then the data: abar[T] = 1."""
    total = len(abar)
    if not 1 <= steps <= total:
        raise ValueError(f"steps must be in 1..{total}, the training steps, got {steps}.")
    t = np.arange(steps)
    spaced = {
        "trailing": np.round(total - t * total / steps) - 1,
        "leading": (steps - 1 - t) * (total // steps),
        "linspace": np.linspace(total - 1, 0, steps)}
    if spacing not in spaced:
        raise ValueError(f"spacing must be 'trailing', 'leading' or 'linspace', got {spacing!r}.")
    index = np.round(spaced[spacing]).astype(int)
    abar = np.append(abar[index], 1.0)
    return make_schedule(np.sqrt(abar), np.sqrt(1 - abar), np.append(index, -1))


def linear_beta_schedule(
    steps: int, *, train_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02,
    scaled: bool = False, spacing: str = "trailing",
) -> NoiseSchedule:
    """The DDPM schedule on a training grid; `scaled=True` is linear in the square root of beta.

    >>> linear_beta_schedule(4).time.tolist()
    [999.0, 749.0, 499.0, 249.0, -1.0]
    """
    power = 2 if scaled else 1
    beta = np.linspace(beta_start ** (1 / power), beta_end ** (1 / power), train_steps) ** power
    return _discrete(np.cumprod(1 - beta), steps, spacing)


def cosine_schedule(
    steps: int, *, train_steps: int = 1000, spacing: str = "trailing"
) -> NoiseSchedule:
    """Nichol and Dhariwal 2021: abar follows a squared cosine, betas clipped at 0.999."""
    u = np.arange(train_steps + 1) / train_steps
    f = np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
    return _discrete(np.cumprod(1 - beta), steps, spacing)


def vp_schedule(
    steps: int, *, beta_min: float = 0.1, beta_max: float = 20.0, end: float = 1e-3
) -> NoiseSchedule:
    """Continuous variance-preserving: time from 1 down to `end`, uniform."""
    t = np.linspace(1, end, steps + 1)
    log_abar = -(beta_min * t + (beta_max - beta_min) * t**2 / 2)
    return make_schedule(np.exp(log_abar / 2), np.sqrt(-np.expm1(log_abar)), t)


def ve_schedule(steps: int, *, sigma_min: float = 0.01, sigma_max: float = 50.0) -> NoiseSchedule:
    """Variance-exploding: alpha = 1, sigma geometric; time is sigma."""
    sigma = sigma_max * (sigma_min / sigma_max) ** np.linspace(0, 1, steps + 1)
    return make_schedule(np.ones(steps + 1), sigma, sigma)


def karras_schedule(
    steps: int, *, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
) -> NoiseSchedule:
    """Karras et al. 2022: alpha = 1, sigma warped by rho, then 0; time is sigma.

    >>> karras_schedule(3).sigma.round(3).tolist()
    [80.0, 2.515, 0.002, 0.0]
    """
    check_positive(sigma_min=sigma_min, sigma_max=sigma_max, rho=rho)
    u = np.linspace(0, 1, steps) if steps > 1 else np.zeros(1)
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    sigma = np.append((ends[0] + u * (ends[1] - ends[0])) ** rho, 0.0)
    return make_schedule(np.ones(steps + 1), sigma, sigma)


def log_snr_schedule(steps: int, *, start: float = -5.0, end: float = 6.0) -> NoiseSchedule:
    """Variance-preserving, log(alpha / sigma) uniform from start to end; time is that number."""
    lam = np.linspace(start, end, steps + 1)
    return make_schedule(1 / np.sqrt(1 + np.exp(-2 * lam)), 1 / np.sqrt(1 + np.exp(2 * lam)), lam)


def flow_matching_schedule(steps: int, *, shift: float = 1.0) -> NoiseSchedule:
    """alpha = t, sigma = 1 - t with t from 0 to 1; shift > 1 spends more steps near the noise.

    >>> flow_matching_schedule(2).alpha.tolist()
    [0.0, 0.5, 1.0]
    """
    check_positive(shift=shift)
    t = np.linspace(0, 1, steps + 1)
    t = t / (shift - (shift - 1) * t)
    return make_schedule(t, 1 - t, t)
