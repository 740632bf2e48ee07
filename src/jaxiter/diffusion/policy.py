"""Receding-horizon diffusion policies, warm-started from the chunk before.

Source: Duan, Yin and Kragic, "Real-time iteration scheme for diffusion policy", 2025.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.sample import sample
from jaxiter.diffusion.samplers import ddpm
from jaxiter.diffusion.schedules import NoiseSchedule, make_schedule
from jaxiter.known import check_positive


def receding_horizon(
    policy: Callable[[Any], Denoiser], schedule: NoiseSchedule, conditions: Any,
    x_init: jax.Array, key: jax.Array, *, steps: Sequence[int] = (4, 3, 2, 1, 0),
    discrete: Sequence[bool] | None = None, factor: float = 10.0,
) -> jax.Array:
    """Action chunks `[ticks, H, da]` for a sequence of observations.

    The first tick runs all of DDPM. Every later one shifts the last clean chunk by one row,
    repeats its final row, takes it without new noise for a state at a low noise level, and runs
    only the listed last steps with the new observation.

    Args:
      policy: `policy(condition) -> Denoiser` of chunks `[H, da]`.
      conditions: pytree, leaves `[ticks, ...]`. x_init: noise `[H, da]` of the first tick.
      steps: which DDPM steps a later tick runs, as steps left: strictly decreasing to 0.
        `warm_start_steps` suggests how many.
      discrete: `[da]`, channels with values -1 and 1, such as a gripper. The model is trained
        with these divided by `factor`, so that little noise can flip them; guesses are snapped
        to +-1/factor and chunks returned as signs.

    Returns:
      All chunks; the action of tick k is `chunks[k, 0]`. Differentiable, by unrolling.

    Raises:
      ValueError: steps that do not strictly decrease to 0 or reach past the schedule, factor <= 0.

    >>> import jax
    >>> from jaxiter.diffusion import Denoiser, cosine_schedule
    >>> still = lambda target: Denoiser(lambda x, t: 0 * x + target, "x0")
    >>> chunks = receding_horizon(still, cosine_schedule(20), jax.numpy.ones(3),
    ...                           jax.numpy.zeros((4, 1)), jax.random.key(0))
    >>> chunks.shape, float(chunks[2, 0, 0])
    ((3, 4, 1), 1.0)
    """
    left = list(steps)
    if not left or left[-1] != 0 or any(b >= a for a, b in zip(left, left[1:], strict=False)):
        raise ValueError(f"steps must strictly decrease to 0, got {tuple(steps)}.")
    if left[0] >= schedule.steps:
        raise ValueError(f"steps reach {left[0]}, the schedule has {schedule.steps}.")
    check_positive(factor=factor)
    rows = [schedule.steps - 1 - i for i in left] + [schedule.steps]
    short = make_schedule(*(table[rows] for table in schedule))
    signs = np.zeros(x_init.shape[-1], bool) if discrete is None else np.asarray(discrete)

    def snapped(chunk: jax.Array, size: float) -> jax.Array:
        return jnp.where(signs, jnp.where(chunk < 0, -size, size).astype(chunk.dtype), chunk)

    keys = jax.random.split(key, len(jax.tree.leaves(conditions)[0]))
    chunk = sample(ddpm(schedule), policy(trees.first(conditions)), x_init, keys[0])

    def tick(last: jax.Array, at: tuple) -> jax.Array:
        condition, key = at
        guess = snapped(jnp.concatenate([last[1:], last[-1:]]), 1 / factor)
        return sample(ddpm(short), policy(condition), guess, key)

    chunks = trees.iterates(tick, chunk, trees.at((conditions, keys), slice(1, None)))
    return snapped(trees.prepend(chunk, chunks), 1.0)


def warm_start_steps(schedule: NoiseSchedule, change: float) -> tuple[int, ...]:
    """The fewest last steps whose first noise covers a change of the target from tick to tick.

    `change` is its root mean square; with fewer steps the chunk cannot follow, with many it forgets
    which mode it was in.

    >>> from jaxiter.diffusion import cosine_schedule
    >>> warm_start_steps(cosine_schedule(100), 0.05)
    (2, 1, 0)
    """
    noise = schedule.sigma[:-1][::-1]
    enough = np.flatnonzero(noise >= change)
    if len(enough) == 0:
        raise ValueError(f"the schedule's noise never reaches {change}.")
    return tuple(range(int(enough[0]), -1, -1))
