"""Multistep samplers with momentum: stable at few steps and strong guidance.

All of them integrate dy/dq = eps(y, q), y = x / alpha and q = sigma / alpha, by increments
`y += dq u` where u mixes Adams-Bashforth combinations of past eps with a velocity of decay
1 - beta. The velocity needs no state of its own: `u[t] - (1 - beta) u[t-1]` is a finite
combination of eps, and u[t-1] is the last increment over its dq.

Source: Wizadwongsa, Chinthakun, Khungurn, Raj and Suwajanakorn, "Diffusion sampling with
momentum for mitigating divergence artifacts", 2023.
"""

import numpy as np

from jaxiter.diffusion.samplers import Sampler, ratios, tables
from jaxiter.diffusion.schedules import NoiseSchedule
from jaxiter.known import check_share


def adams_bashforth(order: int, beta: float = 1.0) -> np.ndarray:
    """Weights of the last `order` velocities that keep the order under decay 1 - beta.

    >>> adams_bashforth(2).tolist()
    [1.5, -0.5]
    """
    b = beta
    rows = {
        1: [b], 2: [(2 + b) / 2, -(2 - b) / 2],
        3: [(18 + 5 * b) / 12, -(24 - 8 * b) / 12, (6 - b) / 12],
        4: [(46 + 9 * b) / 24, -(78 - 19 * b) / 24, (42 - 5 * b) / 24, -(10 - b) / 24],
        5: [(1650 + 251 * b) / 720, -(3420 - 646 * b) / 720, (2880 - 264 * b) / 720,
            -(1380 - 106 * b) / 720, (270 - 19 * b) / 720],
    }
    return np.array(rows[order]) / b


def ghvb(schedule: NoiseSchedule, order: float = 1.8) -> Sampler:
    """Generalised heavy ball: order k = ceil(order), beta its fraction (1 for whole orders).

    The velocity averages eps, the combination acts on velocities: order k is kept, and the
    region of stability grows as beta falls.

    >>> from jaxiter.diffusion import linear_beta_schedule
    >>> ghvb(linear_beta_schedule(10), 2.5).rows
    10
    """
    if not 0 < order <= 5:
        raise ValueError(f"order must be in (0, 5], got {order}.")
    k = int(np.ceil(order))
    beta = order - (k - 1)
    return _momentum(schedule, beta, _combined(k, beta, k + 1) @ _averaged(beta, k + 1))


def heavy_ball(schedule: NoiseSchedule, order: int = 4, beta: float = 0.8) -> Sampler:
    """Polyak's heavy ball on Adams-Bashforth increments (PLMS): most stable, first order."""
    return _filtered(schedule, order, beta, nesterov=False)


def nesterov(schedule: NoiseSchedule, order: int = 4, beta: float = 0.8) -> Sampler:
    """Nesterov's momentum on Adams-Bashforth increments: first order for beta < 1."""
    return _filtered(schedule, order, beta, nesterov=True)


def ipndm(schedule: NoiseSchedule, order: int = 4) -> Sampler:
    """Euler with Adams-Bashforth combinations of the last eps values (Zhang and Chen 2022)."""
    return _filtered(schedule, order, 1.0, nesterov=False)


def _filtered(schedule: NoiseSchedule, order: int, beta: float, nesterov: bool) -> Sampler:
    """Increments p of PLMS, averaged to v; u = v, or one step ahead."""
    if not 1 <= order <= 5:
        raise ValueError(f"order must be in 1..5, got {order}.")
    check_share(beta=beta)
    count = order + nesterov + 1
    filtered = _averaged(beta, count)
    if nesterov:
        filtered = (1 - beta) * filtered + beta * np.eye(count)
    return _momentum(schedule, beta, filtered @ _combined(order, 1.0, count))


def _combined(order: int, beta: float, count: int) -> np.ndarray:
    """Row t: Adams-Bashforth weights of what it combines at 0..t, of lower order at the start."""
    rows = np.zeros((count, count))
    for t in range(count):
        weights = adams_bashforth(min(t + 1, order), beta)
        rows[t, t + 1 - len(weights): t + 1] = weights[::-1]
    return rows


def _averaged(beta: float, count: int) -> np.ndarray:
    """Row t: `v[t] = (1 - beta) v[t-1] + beta p[t]` as weights of p[0..t]; v[0] = p[0]."""
    rows = np.eye(count)
    for t in range(1, count):
        rows[t] = (1 - beta) * rows[t - 1] + beta * rows[t]
    return rows


def _momentum(schedule: NoiseSchedule, beta: float, u: np.ndarray) -> Sampler:
    """Rows `y += dq u[t]`; of u, weights of eps[0..t], what follows goes on as its last two do."""
    q, q1 = ratios(schedule)
    dq, alpha, alpha1 = q1 - q, schedule.alpha[:-1], schedule.alpha[1:]
    count, t = len(u) - 1, np.arange(len(dq))
    steady = (u[-1] - (1 - beta) * u[-2])[:0:-1]  # of the newest eps first
    model = [np.append(u[i, i::-1], np.zeros(count - i - 1)) if i < count else steady for i in t]
    carried = np.where(t < count, 0, (1 - beta) * dq / np.roll(dq, 1))
    state = [alpha1 * (1 + carried) / alpha, -alpha1 * carried / np.roll(alpha, 1)]
    if beta == 1:  # no velocity, no earlier state
        state = state[:1]
    return tables(schedule, state, list(alpha1 * dq * np.stack(model, axis=1)))
