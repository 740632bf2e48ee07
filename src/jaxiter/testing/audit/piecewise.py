"""Piecewise-linear contractions, and logits that only damping tames: what must always converge."""

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.driver import fixed_point
from jaxiter.solution import Status
from jaxiter.testing.audit.maps import FAR_SCALES
from jaxiter.testing.audit.verdict import (
    Verdict,
    cast,
    exactly,
    half_ulp,
    lengths,
    magnitudes,
    name,
    smallest,
    threshold,
    verdict,
)

#: A guarded solver may take this many times the steps of picard, and some more.
PATIENCE, SPARE = 3, 60


class Network(NamedTuple):
    """Weights `[count, k, n, n]`, shifts `[count, k, n]`, and what each unit does, `[count, n]`."""

    weights: Any
    shifts: Any
    units: Any


def layers(xp: Any, x: Any, p: Network) -> Any:
    """Two layers with abs, max, min and clip between: Lipschitz in l2 as its matrices are."""
    u = xp.einsum("...ij,...j->...i", p.weights[..., 0, :, :], x) + p.shifts[..., 0, :]
    edge = xp.abs(p.shifts[..., 1, :])
    shown = xp.where(p.units < 1, xp.abs(u), xp.where(
        p.units < 2, xp.maximum(u, 0 * u), xp.where(
            p.units < 3, xp.minimum(u, edge), xp.clip(u, -edge, edge))))
    return xp.einsum("...ij,...j->...i", p.weights[..., 1, :, :], shown) + p.shifts[..., 2, :]


def pieces(xp: Any, x: Any, p: Network) -> Any:
    """The largest or the smallest of k affine maps, by units: Lipschitz in the largest norm."""
    u = xp.einsum("...kij,...j->...ki", p.weights, x) + p.shifts
    return xp.where(p.units < 2, xp.max(u, -2), xp.min(u, -2))


STEPS: dict[str, Callable] = {"layers": layers, "pieces": pieces, "bellman": pieces}
RATES = {"layers": (0.5, 0.9, 0.99, 0.999), "pieces": (0.5, 0.9, 0.99, 0.999),
         "bellman": (0.9, 0.99, 0.999, 0.9999)}


def random_network(
    rng: np.random.Generator, kind: str, count: int, size: int, rates: tuple, scaled: bool = True
) -> tuple[Network, np.ndarray]:
    """Networks of known Lipschitz constants, and starts.

    "bellman": largest expected values, as in dynamic programs; the last action ends the process,
    as an accepted wage does.
    """
    rate = rng.choice(rates, count)[:, None, None, None]
    scale = magnitudes(rng, count, 9, FAR_SCALES)[:, None] if scaled else np.ones((count, 1))
    depth = 2 if kind == "layers" else 3
    weights = rng.normal(size=(count, depth, size, size))
    shifts = rng.normal(size=(count, 3, size)) * scale[:, None]
    units = rng.integers(0, 4, (count, size)).astype(float)
    if kind == "layers":
        weights /= np.linalg.norm(weights, 2, axis=(2, 3))[..., None, None]
        weights[:, 0] *= rate[:, 0]
    else:
        if kind == "bellman":
            weights, units = np.abs(weights) ** 3, 0 * units
        weights *= rate / np.abs(weights).sum(-1, keepdims=True)
    if kind == "bellman":
        shifts = np.abs(shifts)
        search = rng.random(count) < 0.5  # McCall's: one law of offers, one cost of waiting
        weights[search, :2] = weights[search, :1, :1]
        shifts[search, :2] = shifts[search, :1, :1]
        weights[:, -1] = 0.0
        shifts[:, -1] /= 1 - rate[:, 0, 0]
    far = rng.choice([0.0, 1.0, 1e3], (count, 1))
    return Network(weights, shifts, units), rng.normal(size=(count, size)) * scale * far


def _terms(kind: str, x: np.ndarray, p: Network) -> np.ndarray:
    """Lengths of the sums of magnitudes that rounding errors are relative to."""
    weights, shifts = np.abs(p.weights), np.abs(p.shifts)
    if kind != "layers":
        return lengths((np.einsum("ckij,cj->cki", weights, np.abs(x)) + shifts).max(1))
    inner = np.einsum("cij,cj->ci", weights[:, 0], np.abs(x)) + shifts[:, 0] + shifts[:, 1]
    return lengths(np.einsum("cij,cj->ci", weights[:, 1], inner) + shifts[:, 2])


def plain_steps(step: Callable, x: np.ndarray, enough: Callable, most: int) -> np.ndarray:
    """How many evaluations picard needs in float64, `[count]`; `most` where it needs more."""
    count = np.full(len(x), most)
    for k in range(1, most):
        image = step(x)
        count = np.where((count == most) & enough(x, image), k, count)
        if np.all(count < most):
            break
        x = image
    return count


@cache
def _program(step: Callable, solver: Any) -> Callable:
    def solve(p: Network, x0: jax.Array, most: jax.Array) -> tuple:
        out = fixed_point(lambda x, p: step(jnp, x, p), x0, p, solver=solver, max_steps=most)
        return out.value, out.status

    return jax.jit(jax.vmap(solve, (0, 0, None)))


def audit_piecewise(
    seed: int, count: int, size: int, kind: str, solver: Any, solver_name: str,
    dtype: Any = jnp.float32, rates: tuple | None = None, certain: bool = True,
    scaled: bool = True,
) -> Verdict:
    """Random contractions by abs, max, min and clip; all of them must be solved.

    Args:
      kind: "layers" (l2 norm), "pieces" (largest norm) or "bellman" (dynamic programs).
      rates: Lipschitz constants to draw from; one above 1 makes expansive maps.
      certain: the solver converges on contractions; else only lies count.
      scaled: data of every scale, not only of 1.
    """
    rng = np.random.default_rng(seed)
    rates = RATES[kind] if rates is None else rates
    network, x0 = random_network(rng, kind, count, size, rates, scaled)
    network, x0 = Network(*cast(dtype, *network)), cast(dtype, x0)[0]
    exact, start = Network(*exactly(*network)), exactly(x0)[0]

    def step(x: np.ndarray) -> np.ndarray:
        return STEPS[kind](np, x, exact)

    with np.errstate(all="ignore"):
        begin = np.maximum(lengths(start), lengths(step(start)))

        def limit(x: np.ndarray, image: np.ndarray) -> np.ndarray:
            return threshold(dtype, np.maximum(lengths(x), lengths(image)), begin)

        needed = np.full(count, 100)
        if max(rates) < 1:
            needed = plain_steps(
                step, start, lambda x, image: lengths(image - x) <= limit(x, image), 40_000)
        most = PATIENCE * needed.max() + SPARE
        x, status = _program(STEPS[kind], solver)(network, x0, jnp.int32(most))
        x = exactly(x)[0]
        good = np.asarray(status) == Status.CONVERGED
        image = step(x)
        room = 2 * (size + 2) * half_ulp(dtype) * _terms(kind, x, exact)
        room = room + size * smallest(dtype)
        false = good & ~(lengths(image - x) <= 1.05 * limit(x, image) + room)
    unsolved = ~good & certain & (max(rates) < 1)
    label = kind if max(rates) < 1 else f"expansive {kind}"
    label += ", scaled" if scaled else ""
    return verdict(f"fixed_point, {solver_name}, {label}, {name(dtype)}, n = {size}", status,
                   false, unsolved=unsolved)


def audit_logits(seed: int, count: int, make_solver: Callable, solver_name: str) -> Verdict:
    """Coupled logits `x = 1 / (1 + exp(s W x - b))` that picard throws from corner to corner.

    make_solver: from the damping alpha, with which plain damped steps converge in float64.
    """
    rng = np.random.default_rng(seed)
    size = 8
    root = rng.normal(size=(count, size, size)) / np.sqrt(size)
    w = root @ np.swapaxes(root, 1, 2)
    slope = 10.0 ** rng.uniform(1, 2.5, count)
    w *= (slope / np.linalg.norm(w, 2, axis=(1, 2)))[:, None, None]
    b = 0.5 * w.sum(2) + rng.normal(size=(count, size))
    alpha = 1 / (1 + slope / 4)
    w, b, alpha = cast(jnp.float32, w, b, alpha)
    exact_w, exact_b, damping = exactly(w, b, alpha)

    def step(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(np.einsum("cij,cj->ci", exact_w, x) - exact_b))

    def limit(x: np.ndarray, image: np.ndarray) -> np.ndarray:
        scale = np.maximum(lengths(x), lengths(image))
        return threshold(jnp.float32, scale, np.ones(count))

    start = np.full((count, size), 1 / 16)
    needed = plain_steps(lambda x: x + damping[:, None] * (step(x) - x), start,
                         lambda x, moved: lengths(moved - x) <= damping * limit(x, moved), 4000)

    def solve(w: jax.Array, b: jax.Array, alpha: jax.Array, x0: jax.Array) -> tuple:
        out = fixed_point(lambda x, w, b: jax.nn.sigmoid(b - w @ x), x0, w, b,
                          solver=make_solver(alpha), max_steps=PATIENCE * 4000)
        return out.value, out.status

    x, status = jax.jit(jax.vmap(solve))(w, b, alpha, *cast(jnp.float32, start))
    x = exactly(x)[0]
    good = np.asarray(status) == Status.CONVERGED
    terms = lengths(np.einsum("cij,cj->ci", np.abs(exact_w), np.abs(x)) + np.abs(exact_b)) / 4
    image = step(x)
    false = good & ~(lengths(image - x) <= 1.05 * limit(x, image)
                     + (size + 4) * half_ulp(jnp.float32) * terms)
    return verdict(f"fixed_point, {solver_name}, stiff logits", status, false,
                   unsolved=~good & (needed < 4000))
