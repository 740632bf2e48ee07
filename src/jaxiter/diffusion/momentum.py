"""Multistep samplers with momentum: stable at few steps and strong guidance.

All of them integrate dy/dq = eps(y, q), y = x / alpha and q = sigma / alpha, by increments
`y += dq u` where u mixes Adams-Bashforth combinations of past eps with a velocity of decay
1 - beta. The velocity needs no state of its own: `u[t] - (1 - beta) u[t-1]` is a finite
combination of eps, and u[t-1] is the last increment over its dq.

Source: Wizadwongsa, Chinthakun, Khungurn, Raj and Suwajanakorn, "Diffusion sampling with
momentum for mitigating divergence artifacts", 2023.
"""

import numpy as np

from jaxiter.diffusion.samplers import Sampler, pairs, ratios, tables
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
    # v[t] as weights of eps[0..t]; row t of `start` is the first k increments.
    velocity, start = np.zeros((k, k)), np.zeros((k, k))
    for t, newest in enumerate(np.eye(k)):
        velocity[t] = newest if t == 0 else (1 - beta) * velocity[t - 1] + beta * newest
        start[t] = adams_bashforth(t + 1, beta) @ velocity[t::-1]
    return _momentum(schedule, beta, start, beta * adams_bashforth(k, beta))


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
    """Increments p of PLMS, filtered: `v = (1 - beta) v + beta p`, u = v or one step ahead."""
    if not 1 <= order <= 5:
        raise ValueError(f"order must be in 1..5, got {order}.")
    check_share(beta=beta)
    count = order + nesterov
    v, u = np.zeros(count), np.zeros((count, count))
    for t in range(count):
        weights = adams_bashforth(min(t + 1, order))
        p = np.zeros(count)
        p[t + 1 - len(weights): t + 1] = weights[::-1]
        v = p if t == 0 else (1 - beta) * v + beta * p
        u[t] = (1 - beta) * v + beta * p if nesterov else v
    steady = adams_bashforth(order)
    if nesterov:
        ahead = beta * (2 - beta) * np.append(steady, 0)
        return _momentum(schedule, beta, u, ahead - beta * (1 - beta) * np.append(0, steady))
    return _momentum(schedule, beta, u, beta * steady)


def _momentum(
    schedule: NoiseSchedule, beta: float, start: np.ndarray, steady: np.ndarray
) -> Sampler:
    """`u[t] = start[t] . eps[0..]` for the first rows, `(1 - beta) u[t-1] + steady . eps` after."""
    q, q1 = ratios(schedule)
    dq = q1 - q
    alpha, _, alpha1, _ = pairs(schedule)
    state, model = np.zeros((len(dq), 2)), np.zeros((len(dq), len(steady)))
    for t in range(len(dq)):
        state[t, 0] = 1 / alpha[t]
        if t < len(start):
            model[t, : t + 1] = dq[t] * start[t, t::-1]
        else:
            carried = (1 - beta) * dq[t] / dq[t - 1]
            state[t] += carried / alpha[t], -carried / alpha[t - 1]
            model[t] = dq[t] * steady
    if beta == 1:  # no velocity, no earlier state
        state = state[:, :1]
    return tables(schedule, list(alpha1 * state.T), list(alpha1 * model.T))
