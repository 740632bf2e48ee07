"""One-step samplers as tables: the same rows drive the loop and the parallel engine.

Row t of every sampler here is, with E[t] the model at X[t] (its eps or its x0),

    X[t+1] = sum_j state[t, j] X[t-j] + sum_j model[t, j] E[t-j] + noise[t] Z[t].

Samplers with two model calls a step have two rows a step. How far rows reach back is the
width of their tables.
"""

from typing import NamedTuple

import numpy as np

from jaxiter.diffusion.schedules import NoiseSchedule


class Sampler(NamedTuple):
    """Coefficients of R rows, in float64.

    Attributes:
      state: `[R, S]`. model: `[R, V]`. noise: `[R]`.
      alpha, sigma, time: `[R]`, where row t calls the model.
      scale: `[R]`, standard deviation of one step's posterior noise: the unit of tolerances.
      currency: "eps" or "x0", what E is. stochastic: whether any row adds noise.
    """

    state: np.ndarray
    model: np.ndarray
    noise: np.ndarray
    alpha: np.ndarray
    sigma: np.ndarray
    time: np.ndarray
    scale: np.ndarray
    currency: str

    @property
    def rows(self) -> int:
        """R, the number of model calls of the loop."""
        return len(self.noise)

    @property
    def stochastic(self) -> bool:
        """Whether any row adds noise."""
        return bool(np.any(self.noise > 0))


def pairs(schedule: NoiseSchedule) -> tuple[np.ndarray, ...]:
    """alpha and sigma before every step, then after."""
    return (schedule.alpha[:-1], schedule.sigma[:-1], schedule.alpha[1:], schedule.sigma[1:])


def ratios(schedule: NoiseSchedule) -> tuple[np.ndarray, np.ndarray]:
    """sigma / alpha before and after every step."""
    alpha, sigma, alpha1, sigma1 = pairs(schedule)
    if np.any(alpha <= 0):
        raise ValueError("alpha = 0 at pure noise: this sampler divides by alpha. Use ddim() or "
                         "dpm_solver_pp_2m(), which predict x0 there.")
    return sigma / alpha, sigma1 / alpha1


def _posterior(schedule: NoiseSchedule) -> np.ndarray:
    """Standard deviation of x[t+1] given x[t] and x0, `[T]`."""
    alpha, sigma, alpha1, sigma1 = pairs(schedule)
    gap = sigma**2 - (alpha / alpha1 * sigma1) ** 2
    return sigma1 / sigma * np.sqrt(np.maximum(gap, 0))


def tables(
    schedule: NoiseSchedule, state: list, model: list, noise: np.ndarray | float = 0.0,
    currency: str = "eps", calls: tuple | None = None, kept: slice = slice(None),
) -> Sampler:
    """Tables from columns, of one or two rows a step; calls default to the schedule's own rows.

    kept: the rows that there are, where the first or the last step has one of two.
    """
    if np.any(schedule.sigma[:-1] <= 0):
        raise ValueError("sigma must be positive on every row but the last.")
    scale = _posterior(schedule)
    if len(scale) > 1:
        scale[-1] = scale[-2]  # the last step has none of its own
    alpha, sigma, time = (table[:-1] for table in schedule) if calls is None else calls
    count = len(alpha)

    def columns(values: list) -> np.ndarray:
        return np.stack([np.broadcast_to(column, (count,)) for column in values], axis=1)

    rows = (columns(state), columns(model), np.broadcast_to(noise, (count,)), alpha, sigma, time,
            np.repeat(scale, count // schedule.steps))
    sampler = Sampler(*(table[kept] for table in rows), currency=currency)
    if not all(np.all(np.isfinite(table)) for table in sampler[:-1]):
        raise ValueError("the sampler's coefficients are not finite on this schedule.")
    return sampler


def weave(first: np.ndarray | float, second: np.ndarray | float) -> np.ndarray:
    """A column of two rows a step, one of each in turn."""
    return np.stack(np.broadcast_arrays(first, second), axis=1).ravel()


def ddim(schedule: NoiseSchedule, eta: float = 0.0) -> Sampler:
    """DDIM of Song, Meng and Ermon 2020; eta=0 is deterministic, eta=1 is DDPM.

    Where the schedule starts at pure noise (alpha = 0) the rows are written for x0.

    >>> from jaxiter.diffusion import linear_beta_schedule
    >>> ddim(linear_beta_schedule(10)).rows
    10
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}.")
    alpha, sigma, alpha1, sigma1 = pairs(schedule)
    noise = eta * _posterior(schedule)
    left = np.sqrt(np.maximum(sigma1**2 - noise**2, 0))
    if np.any(alpha <= 0):
        return tables(schedule, [left / sigma], [alpha1 - left * alpha / sigma], noise, "x0")
    return tables(schedule, [alpha1 / alpha], [left - alpha1 * sigma / alpha], noise)


def ddpm(schedule: NoiseSchedule) -> Sampler:
    """`ddim(schedule, eta=1.0)`: ancestral sampling of Ho, Jain and Abbeel 2020."""
    return ddim(schedule, 1.0)


def euler(schedule: NoiseSchedule) -> Sampler:
    """`ddim(schedule)`: Euler's method on the probability-flow ODE in sigma / alpha."""
    return ddim(schedule)


def dpm_solver_1(schedule: NoiseSchedule) -> Sampler:
    """`ddim(schedule)`: DPM-Solver-1 of Lu et al. 2022."""
    return ddim(schedule)


def dpm_solver_2(schedule: NoiseSchedule) -> Sampler:
    """DPM-Solver-2 of Lu et al. 2022 (midpoint in log(alpha / sigma)): two calls a step."""
    alpha, sigma, alpha1, sigma1 = pairs(schedule)
    if sigma1[-1] == 0 or alpha[0] == 0:
        raise ValueError("dpm_solver_2 needs 0 < sigma and 0 < alpha on every row; end the "
                         "schedule before sigma = 0 (vp_schedule, log_snr_schedule).")
    lam = schedule.lam
    h = np.diff(lam)
    alpha_m, sigma_m, time_m = schedule.at(lam[:-1] + h / 2)
    return tables(
        schedule,
        [weave(alpha_m / alpha, 0), weave(0, alpha1 / alpha)],
        [weave(-sigma_m * np.expm1(h / 2), -sigma1 * np.expm1(h))],
        calls=(weave(alpha, alpha_m), weave(sigma, sigma_m), weave(schedule.time[:-1], time_m)))


def heun(schedule: NoiseSchedule) -> Sampler:
    """Heun's method in y = x / alpha and q = sigma / alpha (Karras et al. 2022): two calls a step.

    A last step to sigma = 0 has one.
    """
    return edm_stochastic(schedule, churn=0.0)


def edm_stochastic(
    schedule: NoiseSchedule, *, churn: float = 40.0, churn_min: float = 0.05,
    churn_max: float = 50.0, noise_std: float = 1.003,
) -> Sampler:
    """Karras et al. 2022, algorithm 2: noise is added before every Heun step.

    X of a step's first row is the state after that noise; Z[t] of the last row before it
    is the noise, and the first step adds none (its state is noise already).
    """
    alpha, _, alpha1, sigma1 = pairs(schedule)
    q, q1 = ratios(schedule)
    noisy = (q >= churn_min) & (q <= churn_max) & (np.arange(len(q)) > 0)
    gamma = np.where(noisy, min(churn / len(q), np.sqrt(2) - 1), 0.0)
    raised = q * (1 + gamma)
    added = np.append(noise_std * np.sqrt(np.maximum(raised**2 - q**2, 0))[1:], 0.0)
    time = np.interp(raised, q[::-1], schedule.time[:-1][::-1])
    # A state that is already raised lives at the noise level of its step.
    ratio, move = alpha1 / alpha, alpha1 * (q1 - raised)
    return tables(
        schedule, [weave(ratio, 0), weave(0, ratio)], [weave(move, move / 2), weave(0, move / 2)],
        weave(0, alpha1 * added),
        calls=(weave(alpha, alpha1), weave(alpha * raised, sigma1), weave(time, schedule.time[1:])),
        kept=slice(-1 if q1[-1] == 0 else None))  # a last step to sigma = 0 has one row


def dpm_solver_pp_2m(schedule: NoiseSchedule, *, lower_order_final: bool = True) -> Sampler:
    """DPM-Solver++(2M) of Lu et al. 2022: multistep in x0, one call a step, first step first order.

    `lower_order_final`: the last step is of first order too (always when sigma ends at 0).
    """
    alpha, sigma, alpha1, sigma1 = pairs(schedule)
    with np.errstate(invalid="ignore", over="ignore"):
        h = np.diff(schedule.lam)
        ratio = np.append(np.nan, h[:-1] / h[1:])
    first = ~np.isfinite(ratio) | (ratio == 0)
    first[0] = True
    first[-1] |= lower_order_final
    weight = np.where(first, 0.0, 1 / (2 * np.where(first, 1.0, ratio)))
    # -alpha' expm1(-h), written so that sigma' = 0 (h infinite) is its limit.
    move = alpha1 - sigma1 * alpha / sigma
    return tables(schedule, [sigma1 / sigma], [move * (1 + weight), -move * weight], currency="x0")
