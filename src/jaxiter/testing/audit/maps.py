"""Fixed points of linear maps of every kind and scale, by any solver, alone and in lanes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.driver import fixed_point
from jaxiter.lanes import solve_many
from jaxiter.solution import Status
from jaxiter.testing.audit.verdict import (
    Verdict,
    apply,
    cast,
    exactly,
    half_ulp,
    lengths,
    magnitudes,
    name,
    offsets,
    rounding,
    smallest,
    threshold,
    verdict,
    wrong_gradients,
)

#: Scales beyond those drawn: a sum of squares leaves float32's range at 1.8e19 and 1e-19.
FAR_SCALES = (1e-30, 1e-12, 1e12, 1e20)
#: Contractions slower than this may need more steps than the audit gives.
FAST = 0.9


def random_maps(
    rng: np.random.Generator, count: int, size: int, kind: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Matrices `[count, n, n]`, offsets and starts `[count, n]`.

    "odd": contractions, isometries, expansions, degenerate, from 0. "scaled": contractions in
    the l2 norm, data and starts of every scale. "expansive": every eigenvalue beyond 1.
    """
    a = rng.normal(size=(count, size, size))
    a = np.where(rng.random((count, 1, 1)) < 0.3, np.triu(a) * 3, a)  # far from normal
    if kind == "scaled":
        length = np.linalg.norm(a, 2, axis=(1, 2))
        radius = rng.choice([0.0, 0.5, 0.8, FAST], count)
        scale = magnitudes(rng, count, 9, FAR_SCALES)[:, None]
        b = rng.normal(size=(count, size)) * scale
        far = rng.choice([0.0, 1.0, 1e3, 1e6], (count, 1))
        return _scaled(a, radius / length), b, rng.normal(size=b.shape) * scale * far
    values = np.abs(np.linalg.eigvals(a))
    if kind == "expansive":
        least = np.maximum(values.min(1), 1e-3)
        b = rng.normal(size=(count, size)) * magnitudes(rng, count, 6)[:, None]
        start = b * rng.choice([0.0, 1.0, 1e3], (count, 1))
        return _scaled(a, rng.uniform(1.05, 3, count) / least), b, start
    radius = rng.choice([0.0, 0.3, 0.9, 0.99, 1.0, 1.1], count)
    b = offsets(rng, count, size)
    b[rng.random(count) < 0.05] = 0.0
    return _scaled(a, radius / np.maximum(values.max(1), 1e-6)), b, np.zeros_like(b)


def _scaled(a: np.ndarray, factor: np.ndarray) -> np.ndarray:
    return a * factor[:, None, None]


@cache
def _program(solver: Any, lanes: int | None, options: tuple) -> Callable:
    """All problems at once, with the gradient of the sum by the offset; compiled once a case."""
    keywords: dict[str, Any] = {"solver": solver, **dict(options)}

    def step(x: jax.Array, a: jax.Array, b: jax.Array) -> jax.Array:
        return a @ x + b

    def total(b: jax.Array, a: jax.Array, x0: jax.Array, most: jax.Array) -> tuple:
        out = fixed_point(step, x0, a, b, max_steps=most, **keywords)
        return jnp.sum(out.value), (out.value, out.status)

    def through_lanes(b: jax.Array, a: jax.Array, x0: jax.Array, most: jax.Array) -> tuple:
        out = solve_many(step, x0, a, b, max_steps=most, lanes=lanes or 1, **keywords)
        return jnp.sum(out.value), (out.value, out.status)

    if lanes is not None:
        return jax.jit(jax.value_and_grad(through_lanes, has_aux=True))
    return jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True), (0, 0, 0, None)))


def audit_fixed_point(
    seed: int, count: int, size: int, dtype: Any, solver: Any, solver_name: str,
    lanes: int | None = None, kind: str = "odd", certain: bool = False, steps: int = 200,
    **options: Any,
) -> Verdict:
    """Linear maps with one solver and dtype; gradients by the offset against a dense solve.

    With `lanes`, through `solve_many` instead of `vmap(fixed_point)`. `certain`: the solver
    converges on every contraction, and a fast one it leaves is unsolved. Other options are
    those of `fixed_point`.
    """
    rng = np.random.default_rng(seed)
    a, b, x0 = cast(dtype, *random_maps(rng, count, size, kind))
    program = _program(solver, lanes, tuple(sorted(options.items())))
    (_, (x, status)), slope = program(b, a, x0, jnp.int32(steps))
    a, b, x0, x, slope = exactly(a, b, x0, x, slope)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        image, first = apply(a, x) + b, apply(a, x0) + b
        scale = np.maximum(lengths(x), lengths(image))
        limit = threshold(dtype, scale, np.maximum(lengths(x0), lengths(first)))
        room = rounding(a, x, b, dtype) + size * smallest(dtype)
        false = good & ~(lengths(image - x) <= 1.05 * limit + room)
        system = np.eye(size) - a
        sixteen = jnp.finfo(dtype).bits == 16
        condition = np.linalg.cond(system)
        regular = good & (condition < (10 if sixteen else 1e3))
    exact = np.full_like(slope, np.nan)
    exact[regular] = np.linalg.solve(np.swapaxes(system[regular], 1, 2),
                                     np.ones((regular.sum(), size, 1)))[..., 0]
    silent, lost = wrong_gradients(slope, exact, regular, size * half_ulp(dtype) * condition)
    front = "fixed_point" if lanes is None else "solve_many"
    extra = "".join(f", {key}={value}" if isinstance(value, int) else f", own {key}"
                    for key, value in options.items())
    unsolved = ~good & certain & (not sixteen) & _certain(a, b, x0)
    return verdict(
        f"{front}, {solver_name}{extra}, {kind} maps, {name(dtype)}, n = {size}", status, false,
        silent=silent, unsolved=unsolved, lost=lost)


def _certain(a: np.ndarray, b: np.ndarray, x0: np.ndarray) -> np.ndarray:
    """Whether the map is a fast contraction whose numbers float32 holds with room to spare."""
    with np.errstate(all="ignore"):
        sizes = np.maximum(lengths(b), lengths(x0))
        held = np.isfinite(sizes) & (sizes < 1e34) & (lengths(b) > 1e-32)
        contracts = np.linalg.norm(np.where(np.isfinite(a), a, 9), 2, axis=(1, 2)) <= FAST + 1e-6
    return held & contracts
