"""Matrix games, sharp and of bounded rationality: exploitability and logits in float64."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.operators import matrix_game, variational_inequality
from jaxiter.solution import Status
from jaxiter.testing.audit.verdict import (
    SPECIAL,
    TOLERANCES,
    Verdict,
    apply,
    cast,
    exactly,
    half_ulp,
    magnitudes,
    verdict,
)

ROWS, COLUMNS = 4, 5
KINDS = ("regular", "scaled", "degenerate", "odd")
#: Ways to an equilibrium: of `matrix_game` without and with a temperature, and mirror steps.
FRONTS = ("sharp", "quantal", "mirror")
STEPS = {"sharp": 10_000, "quantal": 2000, "mirror": 4000}
#: What is asked for may be exceeded so many times; by "mirror", whose residual is that of a step of
#: about a strategy over a payoff, by more.
ROOM = {"sharp": 1.05, "quantal": 4, "mirror": 20}


def drawn_games(rng: np.random.Generator, count: int, kind: str) -> tuple:
    """Payoffs `[count, m, n]` and temperatures `[count]`, in units of the payoffs.

    "regular": normal. "scaled": of every size, with an offset of up to 10 of it. "degenerate":
    integers of which many are alike, rows twice, rows that dominate, no coupling at all. "odd":
    special numbers.
    """
    A = rng.normal(size=(count, ROWS, COLUMNS))
    temperature = 10.0 ** rng.uniform(-1, 1, count)
    if kind == "degenerate":
        A = rng.integers(-1, 2, A.shape).astype(float)
        twice, above, none = rng.random((3, count)) < 0.3
        A[twice, 1] = A[twice, 0]
        A[above, 2] = A[above].max(1) + 1
        A[none] = A[none, :1, :1] + np.zeros_like(A[none])
    elif kind == "odd":
        odd = rng.random(count) < 0.4
        A[odd, 1, 1] = rng.choice(SPECIAL, odd.sum())
        temperature *= 10.0 ** rng.uniform(-3, 0, count)
    elif kind == "scaled":
        unit = magnitudes(rng, count)
        A = (A + rng.uniform(-10, 10, (count, 1, 1))) * unit[:, None, None]
        temperature *= unit
    return A, temperature


@cache
def _program(front: str) -> Callable:
    def one(A: jax.Array, temperature: jax.Array) -> tuple:
        most: dict[str, Any] = {"max_steps": STEPS[front]}
        if front == "mirror":
            start = jnp.full(ROWS, 1 / ROWS), jnp.full(COLUMNS, 1 / COLUMNS)
            out = variational_inequality(
                lambda z, A: (-(A @ z[1]), z[0] @ A), start, A, method="mirror", **most)
            x, y = out.value
            return x @ (A @ y), (x, y, out.residual, out.status)
        if front == "quantal":
            out = matrix_game(A, temperature=temperature, **most)
        else:
            out = matrix_game(A, **most)
        return out.value, (out.x, out.y, out.exploitability, out.status)

    return jax.jit(jax.vmap(jax.value_and_grad(one, has_aux=True)))


def exploitability(A: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """`max(A y) - min(A' x)`, `[count]`."""
    return apply(A, y).max(1) - apply(np.swapaxes(A, 1, 2), x).min(1)


def _strategies(x: np.ndarray) -> np.ndarray:
    return (x.min(1) >= 0) & (np.abs(x.sum(1) - 1) <= 16 * half_ulp(jnp.float32))


def _logits(payoff: np.ndarray, x: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """The largest payoff `[count]` by which x is no softmax of payoffs."""
    scaled = payoff / temperature[:, None]
    top = scaled.max(1, keepdims=True)
    scaled = scaled - top - np.log(np.exp(scaled - top).sum(1, keepdims=True))
    # What is below the range of float32 is as good as 0.
    off = np.abs(np.log(np.maximum(x, 1e-37)) - np.maximum(scaled, np.log(1e-37)))
    return (temperature[:, None] * off).max(1)


def _slope(A: np.ndarray, x: np.ndarray, y: np.ndarray, temperature: np.ndarray) -> np.ndarray:
    """Derivative of `x'A y` by A where `x, y` are softmaxes of what they earn, one by one."""
    out = np.zeros_like(A)
    m, n = A.shape[1:]
    for k, (a, p, q, t) in enumerate(zip(A, x, y, temperature, strict=True)):
        left, right = (np.diag(p) - np.outer(p, p)) / t, (np.diag(q) - np.outer(q, q)) / t
        system = np.block([[np.eye(m), -left @ a], [right @ a.T, np.eye(n)]])
        v = np.linalg.solve(system.T, np.r_[a @ q, a.T @ p])
        u, w = left @ v[:m], right @ v[m:]
        out[k] = np.outer(p, q) + np.outer(u, q) - np.outer(p, w)
    return out


def audit_game(seed: int, count: int, front: str, kind: str = "regular") -> Verdict:
    """Games of one kind: strategies, what they could lose, and the derivative of the value.

    Args:
      front: "sharp" or "quantal", by `matrix_game`; "mirror", by `variational_inequality`.
      kind: one of `KINDS`.
    """
    rng = np.random.default_rng(seed)
    A, temperature = cast(jnp.float32, *drawn_games(rng, count, kind))
    (_, (x, y, said, status)), slope = _program(front)(A, temperature)
    A, temperature, x, y, said, slope = exactly(A, temperature, x, y, said, slope)
    good = np.asarray(status) == Status.CONVERGED
    silent = lost = np.zeros(count, bool)
    with np.errstate(all="ignore"):
        size = np.abs(A).max((1, 2))
        gap = exploitability(A, x, y)
        if front == "quantal":
            off = np.maximum(_logits(apply(A, y), x, temperature),
                             _logits(-apply(np.swapaxes(A, 1, 2), x), y, temperature))
        else:
            off = gap
        # Logits are known to a rounding of themselves.
        noise = 16 * half_ulp(jnp.float32) * (size + (front == "quantal") * 40 * temperature)
        false = good & ~(off <= ROOM[front] * TOLERANCES["float32"][0] * size + noise)
        false |= good & ~(_strategies(x) & _strategies(y))
        if front != "mirror":
            false |= good & ~(np.abs(said - gap) <= noise)
    if front != "mirror" and kind != "odd":
        exact = np.full_like(A, np.nan)
        exact[good] = x[good, :, None] * y[good, None]
        if front == "quantal":
            exact[good] = _slope(*(part[good] for part in (A, x, y, temperature)))
        number = np.isfinite(slope).all((1, 2))
        off = np.abs(slope - exact).max((1, 2)) > 2e-2 * np.abs(exact).max((1, 2))
        silent, lost = good & number & off, good & ~number
    wanted = good | (kind == "odd") | (front == "mirror")
    return verdict(f"game, {front}, {kind}", status, false, silent=silent, lost=lost,
                   unsolved=~wanted)
