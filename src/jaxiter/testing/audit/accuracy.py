"""Solves that claim an accuracy, judged by their true distance to the fixed point."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.driver import fixed_point
from jaxiter.solution import Status
from jaxiter.testing.audit.piecewise import STEPS, Network, random_network
from jaxiter.testing.audit.verdict import (
    Verdict,
    apply,
    cast,
    exactly,
    half_ulp,
    lengths,
    name,
    verdict,
)

SPECTRA = ("positive", "negative", "mixed", "complex", "non-normal")
#: The estimate may be this many times too small.
SHARE = 3
STEPS_GIVEN = 30_000
#: Kinds of maps that need not contract in the norm that rates are measured in: there an estimate
#: may be off by the condition of that norm, too.
OTHER_NORMS, OTHER_SHARE = ("non-normal", "bellman"), 10


def random_spectra(
    rng: np.random.Generator, count: int, size: int, spectrum: str
) -> tuple[np.ndarray, np.ndarray]:
    """Matrices `[count, n, n]` with eigenvalues of this kind, and the largest modulus."""
    rate = rng.choice([0.3, 0.9, 0.99, 0.999], count)
    low, high = {"positive": (0.0, 1.0), "negative": (-1.0, 0.0)}.get(spectrum, (-1.0, 1.0))
    values = rng.uniform(low, high, (count, size))
    values[:, 0] = high if spectrum == "positive" else low
    middle = np.zeros((count, size, size))
    middle[:, np.arange(size), np.arange(size)] = values
    if spectrum == "complex":
        middle[:] = 0
        for i in range(0, size - 1, 2):
            angle, length = rng.uniform(0, np.pi, count), rng.uniform(0.2, 1, count)
            length = np.where(i == 0, 1.0, length)
            cosine, sine = length * np.cos(angle), length * np.sin(angle)
            middle[:, i, i] = middle[:, i + 1, i + 1] = cosine
            middle[:, i, i + 1], middle[:, i + 1, i] = -sine, sine
    basis = np.linalg.qr(rng.normal(size=middle.shape))[0]
    if spectrum == "non-normal":
        middle += np.triu(rng.normal(size=middle.shape), 1)
        middle[:, np.arange(size), np.arange(size)] = np.abs(values)
    return rate[:, None, None] * basis @ middle @ np.swapaxes(basis, 1, 2), rate


def _affine(xp: Any, x: Any, p: Network) -> Any:
    return xp.einsum("...ij,...j->...i", p.weights[..., 0, :, :], x) + p.shifts[..., 0, :]


def _box(xp: Any, x: Any, p: Network) -> Any:
    """Projected gradient descent on a function of bounded slope: far away it hardly moves."""
    inside = xp.einsum("...ij,...j->...i", p.weights[..., 0, :, :], x) - p.shifts[..., 0, :]
    slope = xp.einsum("...ij,...i->...j", p.weights[..., 0, :, :], xp.tanh(inside))
    return xp.clip(x - 0.5 * slope, -1e9, 1e9)


def _box_network(rng: np.random.Generator, count: int, size: int) -> tuple[Network, np.ndarray]:
    """Weights with singular values from 0.3 to 1, and the point where the slope is 0."""
    left, right = (np.linalg.qr(rng.normal(size=(count, size, size)))[0] for _ in range(2))
    weights = (left * rng.uniform(0.3, 1, (count, 1, size))) @ right
    x = rng.normal(size=(count, size))
    return Network(weights[:, None], apply(weights, x)[:, None], np.zeros((count, size))), x


def _step(kind: str) -> Callable:
    return _box if kind == "bounded slope" else STEPS.get(kind, _affine)


@cache
def _program(step: Callable, solver: Any, stop: Any) -> Callable:
    def solve(p: Network, x0: jax.Array, rtol: jax.Array, most: jax.Array) -> tuple:
        out = fixed_point(lambda x, p: step(jnp, x, p), x0, p, solver=solver,
                          stop=stop(rtol, 0.0), max_steps=most)
        return out.value, out.status, getattr(out, "error", jnp.full_like(rtol, jnp.inf))

    return jax.jit(jax.vmap(solve, (0, 0, None, None)))


def _problems(
    rng: np.random.Generator, kind: str, count: int, size: int
) -> tuple[Network, np.ndarray]:
    """Networks, and their rates of contraction."""
    if kind == "bounded slope":
        return _box_network(rng, count, size)[0], np.full(count, 0.95)
    if kind in STEPS:
        rate = float(rng.choice([0.9, 0.99]))
        return random_network(rng, kind, count, size, (rate,), False)[0], np.full(count, rate)
    a, rate = random_spectra(rng, count, size, kind)
    return Network(a[:, None], rng.normal(size=(count, 1, size)), np.zeros((count, size))), rate


def _fixed_points(kind: str, p: Network) -> np.ndarray:
    """In float64: by a dense solve, or by picard until nothing moves."""
    if kind in SPECTRA:
        system = np.eye(p.units.shape[1]) - p.weights[:, 0]
        return np.linalg.solve(system, p.shifts[:, 0, :, None])[..., 0]
    if kind == "bounded slope":  # tanh is 0 at 0 only
        return np.linalg.solve(p.weights[:, 0], p.shifts[:, 0, :, None])[..., 0]
    x = np.zeros_like(p.units)
    for _ in range(4000):
        x = STEPS[kind](np, x, p)
    return x


def _settled(kind: str, p: Network, x: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """Whether residuals contract about as slowly as errors do; else no rule could know it yet.

    Residuals that grow next, of a map far from normal, had another rate before: none that settled.
    """
    def step(x: np.ndarray) -> np.ndarray:
        return _step(kind)(np, x, p)

    first = step(x)
    second = step(first)
    of_residuals = lengths(second - first) / lengths(first - x)
    of_errors = lengths(first - answer) / lengths(x - answer)
    slow = 1 - of_residuals <= SHARE * np.maximum(1 - of_errors, 0)
    return slow & (of_residuals <= 1 + 1e-6)


def audit_accuracy(
    seed: int, count: int, kind: str, solver: Any, solver_name: str, stop: Callable,
    stop_name: str = "accuracy", dtype: Any = jnp.float32, rtol: float = 1e-3,
    certain: bool = True,
) -> Verdict:
    """Problems whose fixed points numpy knows, from near and far; CONVERGED must be near them.

    The estimate in `Solution.error` is judged too: a third of the true distance is its least,
    rounding aside, where the map is normal and its rate has settled; what was believed before is
    counted by itself, as `early`.

    Args:
      kind: one of `SPECTRA` (linear maps), "layers", "pieces", "bellman" or "bounded slope".
      stop: `stop(rtol, atol) -> rule`, such as `jaxiter.accuracy`.
      certain: picard or better: a contraction that the dtype resolves must be solved.
    """
    rng = np.random.default_rng(seed)
    size = 4
    p, rate = _problems(rng, kind, count, size)
    p = Network(*cast(dtype, *p))
    exact = Network(*exactly(*p))
    answer = _fixed_points(kind, exact)
    far = 10.0 ** rng.choice([0, 1, 2, 3] if kind == "bounded slope" else [0, 2, 4], count)
    x0 = rng.normal(size=(count, size)) * (lengths(answer) * far)[:, None]
    x0[rng.random(count) < 0.25] = 0.0
    x, status, said = _program(_step(kind), solver, stop)(
        p, *cast(dtype, x0), *cast(dtype, np.asarray(rtol)), jnp.int32(STEPS_GIVEN))
    x, said = exactly(x, said)
    good = np.asarray(status) == Status.CONVERGED
    with np.errstate(all="ignore"):
        scale = np.maximum(lengths(x), lengths(_step(kind)(np, x, exact)))
        away = lengths(x - answer)
        room = 4 * size * half_ulp(dtype) * scale / (1 - rate)
        told = (away <= SHARE * said + room) | (kind in OTHER_NORMS)
        share = OTHER_SHARE if kind in OTHER_NORMS else SHARE
        false = good & ~((away <= share * rtol * scale) & told)
        early = false & ~_settled(kind, exact, x, answer)
    # Where the estimate, up to 2 / (1 - rate) times the error, is not drowned by what rounding
    # keeps alive, and the steps are enough from this start.
    held = 8 * half_ulp(dtype) / (1 - rate) ** 2 <= rtol
    held &= far * rate**STEPS_GIVEN <= 0.1 * rtol * (1 - rate)
    if kind == "bounded slope":  # steps of at least a tenth lead there
        held &= lengths(x0) <= 0.1 * STEPS_GIVEN
    unsolved = ~good & certain & held & (kind not in OTHER_NORMS)
    return verdict(f"{stop_name}, {solver_name}, {kind}, {name(dtype)}", status, false & ~early,
                   unsolved=unsolved, early=early)
