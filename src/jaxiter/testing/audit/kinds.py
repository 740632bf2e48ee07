"""Splittings, processes and stages: kinds that are more than a map, judged by what they claim."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.operators import douglas_rachford, forward_backward, prox_l1, prox_quadratic
from jaxiter.process import Process, iterate
from jaxiter.solution import Status
from jaxiter.splitting import solve_splitting
from jaxiter.stages import in_stages
from jaxiter.stop import tolerance
from jaxiter.testing.audit.verdict import (
    Verdict,
    apply,
    cast,
    exactly,
    half_ulp,
    lengths,
    magnitudes,
    offsets,
    smallest,
    threshold,
    verdict,
    wrong_gradients,
)

SIZE = 4
#: A step of Douglas-Rachford, and the share of the largest curvature's reciprocal of a gradient's.
DR_STEP, SHARE = 0.7, 0.9
#: Coordinates this near to the edge of their threshold, relative, have no derivative to judge.
EDGE = 1e-2
#: Noise and tolerance of the process; violation at which the stages are done.
NOISE, NEAR = 0.3, 1e-3


def quadratics(
    rng: np.random.Generator, count: int, odd: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Curvatures `[count, n, n]` of condition up to 100, slopes `[count, n]`, weights `[count]`.

    odd: slopes of every scale, some not finite, some curvatures singular or indefinite.
    """
    basis = np.linalg.qr(rng.normal(size=(count, SIZE, SIZE)))[0]
    values = 10.0 ** -rng.uniform(0, 2, (count, SIZE))
    if odd:
        values[rng.random(count) < 0.15, 0] = 0.0
        values[rng.random(count) < 0.1, 0] *= -1
        c = offsets(rng, count, SIZE)
    else:
        c = rng.normal(size=(count, SIZE)) * magnitudes(rng, count, 3)[:, None]
    h = (basis * values[:, None]) @ np.swapaxes(basis, 1, 2)
    with np.errstate(all="ignore"):
        weight = 0.3 * np.nan_to_num(np.abs(c).max(1), nan=1.0, posinf=1.0)
    return h, c, weight


def _shrink(v: np.ndarray, edge: np.ndarray) -> np.ndarray:
    return np.sign(v) * np.maximum(np.abs(v) - edge[:, None], 0)


@cache
def _splitting(method: str, solver: Any) -> Callable:
    def one(c: jax.Array, h: jax.Array, w: jax.Array) -> tuple:
        if method == "forward_backward":
            split = forward_backward(lambda x, h, c, w: h @ x - c,
                                     lambda v, step, h, c, w: prox_l1(v, step, w), step_size=SHARE)
        else:
            split = douglas_rachford(
                lambda v, step, h, c, w: prox_quadratic(v, step, h, -c),
                lambda v, step, h, c, w: prox_l1(v, step, w), step_size=DR_STEP)
        out = solve_splitting(split, jnp.zeros(SIZE), h, c, w, solver=solver, max_steps=2000)
        return jnp.sum(out.value), (out.value, out.solve.value, out.status)

    return jax.jit(jax.vmap(jax.value_and_grad(one, has_aux=True)))


def audit_splitting(
    seed: int, count: int, method: str, solver: Any, solver_name: str, kind: str = "odd"
) -> Verdict:
    """Lasso by a splitting: its governing point, its answer, and the gradient by the slope.

    Args:
      method: "forward_backward" or "douglas_rachford". kind: "odd" or "regular".
    """
    rng = np.random.default_rng(seed)
    h, c, w = cast(jnp.float32, *quadratics(rng, count, kind == "odd"))
    (_, (x, s, status)), slope = _splitting(method, solver)(c, h, w)
    h, c, w, x, s, slope = exactly(h, c, w, x, s, slope)
    good = np.asarray(status) == Status.CONVERGED
    unit, digit = np.eye(SIZE), 8 * half_ulp(jnp.float32)
    with np.errstate(all="ignore"):
        if method == "forward_backward":
            moved, edge = s - SHARE * (apply(h, s) - c), SHARE * w
            image, answer = _shrink(moved, edge), s
            size = lengths(s) + SHARE * (lengths(apply(np.abs(h), np.abs(s))) + lengths(c))
        else:
            system = unit + DR_STEP * np.where(np.isfinite(h), h, 0)
            answer = np.linalg.solve(system, (s + DR_STEP * c)[..., None])[..., 0]
            moved, edge = 2 * answer - s, DR_STEP * w
            image = s + _shrink(moved, edge) - answer
            size = 3 * np.linalg.cond(system) * (lengths(s) + lengths(c) + lengths(answer))
        limit = threshold(jnp.float32, np.maximum(lengths(s), lengths(image)), lengths(c))
        room = digit * size + SIZE * smallest(jnp.float32)
        false = good & ~(lengths(image - s) <= 1.05 * limit + room)
        false |= good & ~(lengths(answer - x) <= room + 1e-5 * lengths(x))
        values = np.linalg.eigvalsh(np.where(np.isfinite(h), h, 0))
        regular = good & (values.min(1) > 5e-3) & ~np.any(
            np.abs(np.abs(moved) - edge[:, None]) < EDGE * np.abs(moved) + 20 * limit[:, None], 1)
    exact = np.full_like(slope, np.nan)
    for k in np.flatnonzero(regular):  # on its support the answer is H^-1 (c - w sign)
        on = np.abs(moved[k]) > edge[k]
        exact[k] = 0
        exact[k, on] = np.linalg.solve(h[k][np.ix_(on, on)], np.ones(on.sum()))
    empty = regular & (np.abs(exact).max(1) == 0)
    silent, lost = wrong_gradients(slope, exact, regular, 1e-3)
    silent = np.where(empty, np.abs(slope).max(1) > 1e-6, silent)
    unsolved = ~good & (kind == "regular") & (solver is None)
    return verdict(f"solve_splitting, {method}, {solver_name}, {kind}", status, false,
                   silent=silent, lost=lost, unsolved=unsolved)


@cache
def _process(check_every: int) -> Callable:
    """Gradient steps with noise that fades, and an exact merit."""
    def step(state: tuple, key: jax.Array, h: jax.Array, c: jax.Array) -> tuple:
        x, k = state
        noise = NOISE * jax.random.normal(key, x.shape) / (1 + k) ** 3
        return x - SHARE * (h @ x - c) * (1 + noise), k + 1

    process = Process(lambda x0, h, c: (x0, jnp.float32(0)), step,
                      merit=lambda state, h, c: trees.norm(h @ state[0] - c))

    def one(h: jax.Array, c: jax.Array, key: jax.Array, atol: jax.Array) -> tuple:
        out = iterate(process, jnp.zeros(SIZE), h, c, key=key, check_every=check_every,
                      stop=tolerance(rtol=0.0, atol=atol), max_steps=600)
        return out.value[0], out.status

    return jax.jit(jax.vmap(one))


def audit_process(seed: int, count: int, check_every: int = 1, kind: str = "odd") -> Verdict:
    """Noisy descent: where it says CONVERGED, the merit of the state that is returned holds."""
    rng = np.random.default_rng(seed)
    h, c, _ = quadratics(rng, count, kind == "odd")
    h *= rng.choice([1.0, 1.0, 3.0], (count, 1, 1))  # a third expands
    with np.errstate(all="ignore"):
        size = np.nan_to_num(lengths(c), nan=1.0, posinf=1.0)
    h, c, atol = cast(jnp.float32, h, c, 1e-3 * size)
    x, status = _process(check_every)(h, c, jax.random.split(jax.random.key(seed), count), atol)
    h, c, x, atol = exactly(h, c, x, atol)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        room = 8 * half_ulp(jnp.float32) * (lengths(apply(np.abs(h), np.abs(x))) + lengths(c))
        false = good & ~(lengths(apply(h, x) - c) <= atol + room + smallest(jnp.float32))
    return verdict(f"iterate, check_every = {check_every}, {kind}", status, false)


@cache
def _stages(solver: Any) -> Callable:
    """Minimise `x H x / 2 - c x` with `sum(x) = r` by an augmented Lagrangian."""
    def descend(x: jax.Array, h: jax.Array, c: jax.Array, r: jax.Array, m: jax.Array) -> jax.Array:
        return x - 0.15 * (h @ x - c + m + jnp.sum(x) - r)

    def one(h: jax.Array, c: jax.Array, r: jax.Array) -> tuple:
        def update(solution: Any, h: jax.Array, c: jax.Array, r: jax.Array, m: jax.Array) -> tuple:
            violation = jnp.sum(solution.value) - r
            done = jnp.abs(violation) <= NEAR * (jnp.abs(r) + trees.norm(c))
            return solution.value, (h, c, r, m + violation), done

        out = in_stages(descend, jnp.zeros(SIZE), h, c, r, jnp.zeros(()), update=update,
                        solver=solver, max_steps=3000)
        return out.value, out.aux[3], out.status

    return jax.jit(jax.vmap(one))


def audit_stages(
    seed: int, count: int, solver: Any, solver_name: str, kind: str = "odd"
) -> Verdict:
    """Multipliers: CONVERGED where the last stage is solved at its multiplier and none follows."""
    rng = np.random.default_rng(seed)
    h, c, _ = quadratics(rng, count, kind == "odd")
    h, c, r = cast(jnp.float32, h, c, rng.normal(size=count) * (1 if kind == "odd" else 3))
    x, m, status = _stages(solver)(h, c, r)
    h, c, r, x, m = exactly(h, c, r, x, m)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        violation = x.sum(1) - r
        before = m - violation  # the multiplier of the last stage
        move = 0.15 * (apply(h, x) - c + (before + violation)[:, None])
        size = lengths(apply(np.abs(h), np.abs(x))) + lengths(c) + 2 * (np.abs(m) + np.abs(r))
        size += 2 * np.abs(x).sum(1)
        far = np.full(count, np.inf)  # where the stage began: the most that atol allows
        limit = threshold(jnp.float32, np.maximum(lengths(x), lengths(x - move)), far)
        room = 8 * half_ulp(jnp.float32) * size + smallest(jnp.float32)
        false = good & ~(lengths(move) <= 1.05 * limit + room)
        false |= good & ~(np.abs(violation) <= NEAR * (np.abs(r) + lengths(c)) + room)
    return verdict(f"in_stages, {solver_name}, {kind}", status, false)
