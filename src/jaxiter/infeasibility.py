"""A stop rule that finds out that a nonexpansive map has no fixed point."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import machine_epsilon
from jaxiter.solution import Status
from jaxiter.stop import PyTree, StepInfo, Stop, first_case
from jaxiter.values import as_value


class DisplacementState(NamedTuple):
    """x0, and the residual norms at the last two checkpoints (a quarter and a half of now)."""

    start: PyTree
    quarter: jax.Array
    half: jax.Array
    checkpoint: jax.Array


@as_value
def no_fixed_point(agreement: float = 0.05, drift: float = 0.01, min_steps: int = 64) -> Stop:
    """NO_FIXED_POINT when the displacement of a nonexpansive map settles on a non-zero vector.

    For a nonexpansive map the displacements `T(x_k) - x_k` and the drift
    `(x_k - x_0) / k` both converge to minus the infimal displacement vector,
    which is zero when a fixed point exists. At steps 64, 128, 256, ... the
    rule asks that (1) both point the same way: the relative distance of the
    drift, rescaled, from the displacement is at most `agreement`; (2) the norm
    of the displacement fell by less than `drift` since half the steps; and
    (3) it fell less over the last half than over the quarter before, which a
    slowly contracting map never does. `Solution.displacement` is then the
    certificate. Use it with picard(), damped() or halpern(); the points of
    anderson() carry no such meaning. Combine it:
    `any_of(tolerance(), no_fixed_point())`.

    Reference: Park and Ryu, "Accelerated Infeasibility Detection of Constrained
    Optimization and Fixed-Point Iterations", 2023; tests (1) to (3) are ours.

    >>> import jax.numpy as jnp, jaxiter
    >>> rule = jaxiter.any_of(jaxiter.tolerance(), jaxiter.no_fixed_point())
    >>> jaxiter.fixed_point(lambda x: x + 1.0, jnp.zeros(2), stop=rule).message()[:14]
    'NO_FIXED_POINT'
    """

    def init(info: StepInfo) -> DisplacementState:
        unknown = jnp.full_like(info.merit, jnp.inf)
        return DisplacementState(info.x, unknown, unknown, jnp.int32(max(min_steps // 4, 1)))

    def update(info: StepInfo, state: DisplacementState) -> tuple[jax.Array, DisplacementState]:
        now = trees.norm(info.residual).astype(state.half.dtype)
        travelled = trees.subtract(info.x, state.start)
        # The component of the travelled path along the residual fixes the solver's own
        # factor (1 for Picard, 1/2 for Halpern); what is left over measures disagreement.
        length = trees.norm(travelled)
        cosine = trees.dot(info.residual, travelled).real / (now * length)
        across = jnp.sqrt(jnp.maximum(1 - cosine**2, 0))
        noise = 100 * machine_epsilon(info.x)
        last, before = state.half - now, state.quarter - state.half
        settled = jnp.abs(last) <= drift * now
        shrinking = jnp.abs(last) <= jnp.maximum(0.9 * jnp.abs(before), noise * now)
        checked = info.step == state.checkpoint
        found = checked & (info.step >= min_steps) & (cosine > 0) & (across <= agreement)
        found &= settled & shrinking & (now > 25 * info.floor)
        moved = DisplacementState(
            state.start,
            jnp.where(checked, state.half, state.quarter),
            jnp.where(checked, now, state.half),
            jnp.where(checked, 2 * state.checkpoint, state.checkpoint),
        )
        return first_case((found, Status.NO_FIXED_POINT)), moved

    return Stop(init, update)
