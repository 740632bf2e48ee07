"""Published parallel samplers for DDIM, as baselines: SRDS, CHORDS, ParaSolver's start.

All of them take `eps(x, rows)`, a batched model `[n, d], [n] -> [n, d]`, and a schedule; they count
rounds of batched calls and return numpy arrays.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from jaxiter.diffusion import NoiseSchedule


def jump(schedule: NoiseSchedule, x: Any, e: Any, start: Any, end: Any) -> Any:
    """DDIM from rows `start` to rows `end`, `[n]`, in one step."""
    ratio = schedule.alpha[end] / schedule.alpha[start]
    move = schedule.sigma[end] - ratio * schedule.sigma[start]
    return np.reshape(ratio, (-1, 1)) * x + np.reshape(move, (-1, 1)) * e


def srds(
    eps: Callable, schedule: NoiseSchedule, x: np.ndarray, exact: np.ndarray, tolerance: float
) -> int:
    """Parareal with sqrt(T) blocks (Selvam, Merchant and Ermon 2024): depth to the tolerance.

    x, exact `[d]`: start and the loop's sample.
    """
    steps = schedule.steps
    blocks = int(np.sqrt(steps))
    edges = np.round(np.linspace(0, steps, blocks + 1)).astype(int)
    width = int(np.max(np.diff(edges)))

    def coarse(x: np.ndarray, block: int) -> np.ndarray:
        start, end = edges[block: block + 1], edges[block + 1: block + 2]
        return jump(schedule, x[None], eps(x[None], start), start, end)[0]

    states = [x]
    for block in range(blocks):
        states.append(coarse(states[-1], block))
    guesses = np.stack(states[1:])
    depth = blocks
    for _ in range(blocks + 1):
        if np.sqrt(np.mean((states[-1] - exact) ** 2)) < tolerance:
            return depth
        fine, rows = np.stack(states[:-1]), edges[:-1].copy()
        for _ in range(width):
            end = np.minimum(rows + 1, edges[1:])
            moved = jump(schedule, fine, eps(fine, np.minimum(rows, steps - 1)), rows, end)
            fine = np.where((end > rows)[:, None], moved, fine)
            rows = end
        states = [x]
        for block in range(blocks):
            new = coarse(states[-1], block)
            states.append(fine[block] + new - guesses[block])
            guesses[block] = new
        depth += width + blocks
    return -1


def chords(
    eps: Callable, schedule: NoiseSchedule, x: np.ndarray, starts: list[int]
) -> list[tuple[int, np.ndarray]]:
    """Han et al. 2025: workers that start ahead and are corrected by the one behind.

    Returns (round, sample) of every worker, in order of arrival.
    """
    steps, workers = schedule.steps, len(starts)
    at = np.array(starts)
    state = np.zeros((workers, len(x)))
    state[0], alive = x, np.zeros(workers, bool)
    alive[0] = True
    done = np.zeros(workers, bool)
    begin, begin_x, begin_e = at.copy(), np.zeros_like(state), np.zeros_like(state)
    arrivals = []
    for number in range(1, workers + steps + 1):
        value = eps(state, np.minimum(at, steps - 1))
        fresh = alive & ~done & (at == begin)
        begin_x[fresh], begin_e[fresh] = state[fresh], value[fresh]
        fine = jump(schedule, state, value, at, np.minimum(at + 1, steps))
        new, here = fine.copy(), at.copy()
        for j in range(1, workers):
            if alive[j] and not done[j] and alive[j - 1] and at[j - 1] == begin[j] < at[j]:
                q, end = begin[j: j + 1], at[j: j + 1] + 1
                old = jump(schedule, begin_x[j: j + 1], begin_e[j: j + 1], q, end)
                better = jump(schedule, state[j - 1: j], value[j - 1: j], q, end)
                new[j] = (fine[j: j + 1] - old + better)[0]
                here[j] = -1  # its segment begins anew
        spawned = None
        for j in range(workers - 1):
            if alive[j] and not alive[j + 1]:
                q, end = at[j: j + 1], np.array([starts[j + 1]])
                spawned = j + 1, jump(schedule, state[j: j + 1], value[j: j + 1], q, end)[0]
                break
        moving = alive & ~done
        state = np.where(moving[:, None], new, state)
        at = np.where(moving, at + 1, at)
        begin = np.where(here == -1, at, begin)
        if spawned is not None:
            j, point = spawned
            state[j], alive[j], at[j], begin[j] = point, True, starts[j], starts[j]
        for j in np.flatnonzero(alive & ~done & (at == steps)):
            done[j] = True
            arrivals.append((number, state[j].copy()))
        if done.all():
            break
    return arrivals


def frozen_data_start(
    eps: Callable, schedule: NoiseSchedule, sampler: Any, x: np.ndarray, noise: np.ndarray | None
) -> np.ndarray:
    """ParaSolver's first trajectory `[T + 1, d]` (Lu, Zhu and Hou 2025): one call, x0 frozen."""
    e = eps(x[None], np.array([0]))[0]
    guess = (x - schedule.sigma[0] * e) / schedule.alpha[0]
    rows = [x]
    for t in range(schedule.steps):
        value = (rows[-1] - schedule.alpha[t] * guess) / schedule.sigma[t]
        new = sampler.state[t, 0] * rows[-1] + sampler.model[t, 0] * value
        rows.append(new if noise is None else new + sampler.noise[t] * noise[t])
    return np.stack(rows)
