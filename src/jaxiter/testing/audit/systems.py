"""Linear systems: singular ones, conditions up to 1e8, right-hand sides of every size."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.solution import Status
from jaxiter.testing.audit.verdict import (
    LINEAR_TOLERANCES,
    Verdict,
    apply,
    cast,
    exactly,
    lengths,
    magnitudes,
    offsets,
    rounding,
    smallest,
    verdict,
)

#: Systems of at most this condition are solved by every solver.
WELL = 30


def random_systems(
    rng: np.random.Generator, count: int, size: int, kind: str, symmetric: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices `[count, n, n]` and right-hand sides.

    "odd": some singular, sides of zero, huge, not finite. "conditioned": conditions of 1 to 1e8,
    matrices and sides of 1e-9 to 1e9.
    """
    basis = np.linalg.qr(rng.normal(size=(count, size, size)))[0]
    right = basis if symmetric else np.linalg.qr(rng.normal(size=basis.shape))[0]
    if kind == "conditioned":
        values = 10.0 ** (-rng.uniform(0, 8, (count, 1)) * rng.random((count, size)))
        values[rng.random(count) < 0.3] = rng.uniform(0.1, 1, size)
        scale = magnitudes(rng, count)[:, None]
        b = rng.normal(size=(count, size)) * magnitudes(rng, count)[:, None]
        return (basis * (values * scale)[:, None]) @ np.swapaxes(right, 1, 2), b
    values = 10.0 ** (-rng.choice([0, 2, 6, 12], (count, 1)) * rng.random((count, size)))
    values[rng.random(count) < 0.15, 0] = 0.0
    return (basis * values[:, None]) @ np.swapaxes(right, 1, 2), offsets(rng, count, size)


@cache
def _program(solver: Any) -> Callable:
    def solve(a: jax.Array, b: jax.Array) -> tuple:
        out = solver(lambda v: a @ v, b)
        return out.value, out.status

    return jax.jit(jax.vmap(solve))


def audit_linear(
    seed: int, count: int, size: int, solver: Any, solver_name: str, symmetric: bool,
    kind: str = "odd", rtol: float | None = None,
) -> Verdict:
    """One linear solver on systems of one kind; a well conditioned one must be solved.

    rtol: what the solver promises, where that is not the iterative solvers' default.
    """
    rng = np.random.default_rng(seed)
    a, b = cast(jnp.float32, *random_systems(rng, count, size, kind, symmetric))
    x, status = _program(solver)(a, b)
    a, b, x = exactly(a, b, x)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        residual = lengths(apply(a, x) - b)
        limit = 1.05 * (LINEAR_TOLERANCES["float32"] if rtol is None else rtol) * lengths(b)
        room = rounding(a, x, b, jnp.float32) + size * smallest(jnp.float32)
        false = good & ~(residual <= limit + room)
        held = np.isfinite(b).all(1) & (lengths(b) > 1e-30) & (lengths(b) < 1e30)
        # PRECISION_FLOOR where the arithmetic cannot do better is an answer.
        floor = (np.asarray(status) == Status.PRECISION_FLOOR) & (residual <= limit + room)
        unsolved = ~good & ~floor & held & (np.linalg.cond(a) < WELL)
    return verdict(f"linear.{solver_name}, {kind} systems, n = {size}", status, false,
                   unsolved=unsolved)
