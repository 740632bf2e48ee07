"""Samplers of higher order from the score alone, with proven rates: O(1 / T^2) and faster DDPM.

Source: Li, Huang, Efimov, Wei, Chi and Chen, "Accelerating convergence of score-based diffusion
models, provably", 2024.
"""

import numpy as np

from jaxiter.diffusion.samplers import Sampler, tables, weave
from jaxiter.diffusion.schedules import NoiseSchedule


def accelerated_ddim(schedule: NoiseSchedule) -> Sampler:
    """Second order by a second call at the level before: two calls a step, the first step one.

    In the sampler's rows, x[2t-1] is the state lifted back by one noise level, where the score
    of that level is called. For variance-preserving schedules.

    >>> from jaxiter.diffusion import vp_schedule
    >>> accelerated_ddim(vp_schedule(10)).rows
    19
    """
    alpha, sigma, time = (table[:-1] for table in schedule)
    ratio = _ratio(schedule)
    root, gap = np.sqrt(ratio), 1 - ratio
    half = -gap / (2 * sigma)  # of eps: the score is -eps / sigma
    alpha_up, sigma_up, time_up, root_up, gap_up = (
        np.append(table[0], table[:-1]) for table in (alpha, sigma, time, root, gap))
    weight = gap**2 / (4 * gap_up)
    first = np.arange(len(ratio)) == 0  # a step of one row, for there is no level before it
    return tables(
        schedule,
        [weave(root_up, np.where(first, 1 / root, 0)), weave(0, np.where(first, 0, 1 / root))],
        [weave(root_up * gap_up / (2 * sigma),
               np.where(first, half, weight * root_up / sigma_up) / root),
         weave(0, np.where(first, 0, half - weight / sigma) / root)],
        calls=(weave(alpha, alpha_up), weave(sigma, sigma_up), weave(time, time_up)),
        kept=slice(1, None))


def accelerated_ddpm(schedule: NoiseSchedule) -> Sampler:
    """DDPM whose noise is split in two halves, one before the score is called: one call a step.

    States are those after the first half: draw x_init with standard deviation
    `sqrt(sigma[0]^2 + (1 - (alpha[0] / alpha[1])^2) / 2)`.
    """
    ratio, sigma = _ratio(schedule), schedule.sigma[:-1]
    root, half = np.sqrt(ratio), (1 - ratio) / 2
    noise = half / ratio
    noise[:-1] += half[1:]  # the first half of the next step, added to the second of this one
    return tables(schedule, [1 / root], [-2 * half / sigma / root], np.sqrt(noise))


def _ratio(schedule: NoiseSchedule) -> np.ndarray:
    """abar before over abar after, `[T]`: the paper's alpha_t."""
    if np.any(np.abs(np.hypot(schedule.alpha, schedule.sigma) - 1) > 1e-6):
        raise ValueError("this sampler needs a variance-preserving schedule: "
                         "alpha^2 + sigma^2 = 1 on every row.")
    if np.any(schedule.alpha <= 0):
        raise ValueError("alpha must be positive on every row.")
    return (schedule.alpha[:-1] / schedule.alpha[1:]) ** 2
