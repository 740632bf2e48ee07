"""Finished states resumed with other arguments, or with a tighter tolerance."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.driver import fixed_point
from jaxiter.solution import Status
from jaxiter.stop import tolerance
from jaxiter.testing.audit.maps import random_maps
from jaxiter.testing.audit.verdict import (
    Verdict,
    apply,
    cast,
    exactly,
    lengths,
    rounding,
    smallest,
    verdict,
)

#: Steps of the first solve and of both.
FIRST, BOTH = 300, 900


@cache
def _program(solver: Any) -> Callable:
    def solve(x0: jax.Array, first: tuple, second: tuple) -> tuple:
        def step(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
            return a @ x + b

        keywords: dict[str, Any] = {"solver": solver}
        early = fixed_point(step, x0, *first[:2], stop=tolerance(first[2], 0.0),
                            max_steps=FIRST, **keywords)
        late = fixed_point(step, x0, *second[:2], stop=tolerance(second[2], 0.0),
                           max_steps=BOTH, resume=early.state, **keywords)
        return early.status, late.value, late.status

    return jax.jit(jax.vmap(solve))


def audit_resume(
    seed: int, count: int, solver: Any, solver_name: str, change: str, certain: bool = True
) -> Verdict:
    """Contractions solved, then resumed; the second answer is judged by what it was asked for.

    Args:
      change: "args" (another map), "rule" (a tighter tolerance) or "nothing".
      certain: the solver converges on contractions, so the second solve must.
    """
    rng = np.random.default_rng(seed)
    size = 3
    a, b, x0 = random_maps(rng, count, size, "scaled")
    other, shift = a, b
    if change == "args":
        factor = rng.uniform(0.5, 1, (count, 1, 1))
        other, shift = a * factor, b * rng.uniform(0.5, 2, b.shape)
    rough = np.full(count, 1e-2 if change == "rule" else 1e-4)
    fine = np.full(count, 1e-4)
    a, b, other, shift, x0, rough, fine = cast(
        jnp.float32, a, b, other, shift, x0, rough, fine)
    early, x, status = _program(solver)(x0, (a, b, rough), (other, shift, fine))
    other, shift, x = exactly(other, shift, x)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        image = apply(other, x) + shift
        scale = np.maximum(lengths(x), lengths(image))
        room = rounding(other, x, shift, jnp.float32) + size * smallest(jnp.float32)
        false = good & ~(lengths(image - x) <= 1.05e-4 * scale + room)
    begun = np.asarray(early) == Status.CONVERGED
    return verdict(f"resumed, {solver_name}, new {change}", status, false,
                   unsolved=begun & ~good & certain)
