"""Samplers of higher order from the score alone, with proven rates: O(1 / T^2) and faster DDPM.

Source: Li, Huang, Efimov, Wei, Chi and Chen, "Accelerating convergence of score-based diffusion
models, provably", 2024.
"""

import numpy as np

from jaxiter.diffusion.samplers import Sampler, tables
from jaxiter.diffusion.schedules import NoiseSchedule


def accelerated_ddim(schedule: NoiseSchedule) -> Sampler:
    """Second order by a second call at the level before: two calls a step, the first step one.

    In the sampler's rows, x[2t-1] is the state lifted back by one noise level, where the score
    of that level is called. For variance-preserving schedules.

    >>> from jaxiter.diffusion import vp_schedule
    >>> accelerated_ddim(vp_schedule(10)).rows
    19
    """
    _preserving(schedule)
    sigma, time, ratio = schedule.sigma[:-1], schedule.time[:-1], _ratio(schedule)
    state, model, calls = [], [], []
    for t in range(len(ratio)):
        root, gap = np.sqrt(ratio[t]), 1 - ratio[t]
        half = -gap / (2 * sigma[t])  # of eps: the score is -eps / sigma
        if t == 0:
            calls.append((schedule.alpha[t], sigma[t], time[t]))
            state.append((1 / root, 0))
            model.append((half / root, 0))
            continue
        root_up, gap_up = np.sqrt(ratio[t - 1]), 1 - ratio[t - 1]
        calls += [(schedule.alpha[t], sigma[t], time[t]),
                  (schedule.alpha[t - 1], sigma[t - 1], time[t - 1])]
        state += [(root_up, 0), (0, 1 / root)]
        model.append((root_up * gap_up / (2 * sigma[t]), 0))
        weight = gap**2 / (4 * gap_up)
        model.append((weight * root_up / sigma[t - 1] / root,
                      (half - weight / sigma[t]) / root))
    return tables(schedule, list(np.array(state).T), list(np.array(model).T),
                  calls=tuple(np.array(calls).T), rows_per_step=2)


def accelerated_ddpm(schedule: NoiseSchedule) -> Sampler:
    """DDPM whose noise is split in two halves, one before the score is called: one call a step.

    States are those after the first half: draw x_init with standard deviation
    `sqrt(sigma[0]^2 + (1 - (alpha[0] / alpha[1])^2) / 2)`.
    """
    _preserving(schedule)
    ratio, sigma = _ratio(schedule), schedule.sigma[:-1]
    root, half = np.sqrt(ratio), (1 - ratio) / 2
    noise = half / ratio
    noise[:-1] += half[1:]  # the first half of the next step, added to the second of this one
    return tables(schedule, [1 / root], [-2 * half / sigma / root], np.sqrt(noise))


def _ratio(schedule: NoiseSchedule) -> np.ndarray:
    """abar before over abar after, `[T]`: the paper's alpha_t."""
    return (schedule.alpha[:-1] / schedule.alpha[1:]) ** 2


def _preserving(schedule: NoiseSchedule) -> None:
    if np.any(np.abs(np.hypot(schedule.alpha, schedule.sigma) - 1) > 1e-6):
        raise ValueError("this sampler needs a variance-preserving schedule: "
                         "alpha^2 + sigma^2 = 1 on every row.")
    if np.any(schedule.alpha <= 0):
        raise ValueError("alpha must be positive on every row.")
