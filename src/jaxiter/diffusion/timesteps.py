"""Which rows of a fine schedule to keep: a shortest path with K edges.

Teacher trajectories on the fine grid give a cost to every jump from row i to row j; a min-plus
dynamic programme then finds the K jumps of least total cost.

Source: Chen, Zhou, Wang, Shen and Lyu, "On the trajectory regularity of ODE-based diffusion
sampling" (GITS), 2024; Nguyen, Nguyen and Nguyen, "Bellman optimal stepsize straightening of
flow-matching models" (BOSS), 2024.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter import trees
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.sample import sample
from jaxiter.diffusion.samplers import Sampler, ddim, ratios
from jaxiter.diffusion.schedules import NoiseSchedule, make_schedule


class OptimalSteps(NamedTuple):
    """rows `[K + 1]` of the fine schedule, the schedule of these rows, their total cost."""

    rows: np.ndarray
    schedule: NoiseSchedule
    cost: float


def optimal_steps(
    schedule: NoiseSchedule, denoiser: Denoiser, x: jax.Array, steps: int, *, cost: str = "l2",
    discount: float = 1.0, teacher: Sampler | None = None,
) -> OptimalSteps:
    """The `steps` rows of a fine schedule on which Euler's jumps miss the teacher least.

    Args:
      schedule: the fine grid. denoiser: told its times. x: starts `[B, ...]`, a few dozen.
      steps: K, in 1..T.
      cost: "l2", the mean squared miss of one jump (BOSS), or "deviation", how much farther
        from the line between the ends the jump lands than the teacher (GITS).
      discount: weight of later jumps relative to earlier ones; GITS uses 1.15.
      teacher: a sampler with one row per step of the schedule; default `ddim(schedule)`.

    Returns:
      An `OptimalSteps`; build a sampler on its schedule.

    Raises:
      ValueError: steps outside 1..T, an unknown cost, ends of the trajectories that coincide.

    >>> import jax
    >>> from jaxiter.diffusion import Denoiser, karras_schedule
    >>> model = Denoiser(lambda y, t: y / (0.5 + t), "eps")
    >>> best = optimal_steps(karras_schedule(20), model, jax.numpy.ones((2, 3)), 4)
    >>> len(best.rows), int(best.rows[0]), int(best.rows[-1])
    (5, 0, 20)
    """
    if cost not in ("l2", "deviation"):
        raise ValueError(f"cost must be 'l2' or 'deviation', got {cost!r}.")
    if not 1 <= steps <= schedule.steps:
        raise ValueError(f"steps must be in 1..{schedule.steps}, got {steps}.")
    teacher = ddim(schedule) if teacher is None else teacher
    if teacher.rows != schedule.steps:
        raise ValueError("the teacher needs one row for each step of the schedule.")
    q = np.append(ratios(schedule)[0], schedule.sigma[-1] / schedule.alpha[-1])
    alpha = jnp.asarray(schedule.alpha, x.dtype)

    @jax.jit
    def costs(x: jax.Array) -> jax.Array:
        path = jax.vmap(lambda x: sample(teacher, denoiser, x, trajectory=True))(x)
        levels = [jnp.asarray(table[:-1], x.dtype) for table in schedule]
        eps = jax.vmap(lambda states: jax.vmap(denoiser.convert)(states, *levels)[0])(path[:, :-1])
        path, eps = (
            jnp.moveaxis(rows, 0, 1).reshape(-1, len(x), x[0].size) for rows in (path, eps))
        return jump_costs(path / alpha[:, None, None], eps, jnp.asarray(q, x.dtype), cost)

    table = costs(x)
    if not bool(jnp.all(jnp.isfinite(table) | (table == jnp.inf))):
        raise ValueError("the teacher's first and last states coincide or are not finite.")
    rows, total = shortest_path(table, steps, discount)
    rows = np.asarray(rows)
    return OptimalSteps(rows, make_schedule(*(t[rows] for t in schedule)), float(total))


def jump_costs(y: jax.Array, slopes: jax.Array, q: jax.Array, cost: str) -> jax.Array:
    """`[N, N]`, cost of one Euler jump i -> j > i, infinite elsewhere.

    y `[N, B, d]` teacher states, slopes dy/dq `[N - 1, B, d]`, q `[N]`.
    """
    n = len(q)
    line = y[-1] - y[0]
    line = line / jnp.linalg.norm(line, axis=-1, keepdims=True)

    def away(point: jax.Array) -> jax.Array:
        offset = point - y[0]
        along = jnp.sum(offset * line, axis=-1, keepdims=True)
        return jnp.linalg.norm(offset - along * line, axis=-1)

    def row(args: tuple) -> jax.Array:
        start, slope, at = args
        landing = start + (q[:, None, None] - at) * slope
        if cost == "l2":
            return jnp.mean(jnp.sum(jnp.square(landing - y), axis=-1), axis=1)
        return jnp.mean(away(landing) - away(y), axis=1)

    table = lax.map(row, (y[:-1], slopes, q[:-1]))
    table = jnp.concatenate([table, jnp.full((1, n), jnp.inf, table.dtype)])
    return jnp.where(jnp.arange(n)[:, None] < jnp.arange(n), table, jnp.inf)


def shortest_path(
    cost: jax.Array, edges: int, discount: float = 1.0
) -> tuple[jax.Array, jax.Array]:
    """Cheapest path 0 -> N-1 of exactly so many edges: nodes `[edges + 1]` and its cost.

    `V_k[i] = min_j cost[i, j] + discount V_{k-1}[j]`: a min-plus product per edge, O(edges N^2).
    cost `[N, N]` is infinite where there is no edge.

    >>> import jax.numpy as jnp
    >>> line = jnp.abs(jnp.arange(4.0)[:, None] - jnp.arange(4.0)) ** 2
    >>> shortest_path(line, 3)[0].tolist()
    [0, 1, 2, 3]
    """
    n = cost.shape[0]
    last = jnp.where(jnp.arange(n) == n - 1, 0.0, jnp.inf).astype(cost.dtype)

    def relax(value: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        through = cost + discount * value
        return jnp.min(through, axis=1), jnp.argmin(through, axis=1).astype(jnp.int32)

    value, choices = lax.scan(relax, last, length=edges)

    def walk(node: jax.Array, choice: jax.Array) -> tuple[jax.Array, jax.Array]:
        return choice[node], choice[node]

    nodes = lax.scan(walk, jnp.int32(0), choices, reverse=True)[1]
    return jnp.concatenate([jnp.zeros(1, jnp.int32), nodes[::-1]]), value[0]


def straightening_pairs(
    path: jax.Array, q: jax.Array, rows: np.ndarray
) -> tuple[jax.Array, jax.Array]:
    """BOSS's regression: states at the chosen rows and the velocities that would jump exactly.

    path `[N, ...]`, a teacher trajectory in y = x / alpha; q `[N]` its sigma / alpha; rows
    `[K + 1]`. Returns states `[K, ...]` and targets of eps there `[K, ...]`.
    """
    steps = trees.spread(jnp.diff(q[rows]), path)
    return path[rows[:-1]], (path[rows[1:]] - path[rows[:-1]]) / steps
