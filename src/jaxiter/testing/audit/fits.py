"""Fits: models with known Jacobians, data of every scale, odd numbers, bounds and losses."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.least_squares import least_squares
from jaxiter.losses import cauchy, huber, soft_l1
from jaxiter.solution import Status
from jaxiter.testing.audit.verdict import (
    TOLERANCES,
    Verdict,
    cast,
    exactly,
    name,
    smallest,
    verdict,
)

#: Where the data are. A fit has this many points and three unknowns.
TIMES = np.linspace(0.0, 4.0, 12)
#: CONVERGED is believed where the full step from the answer, by least squares in float64, is at
#: most so many times what was asked for, beside what rounding makes of it; at a bound, for a
#: concave loss, as far as the slope allows.
NEAR = 4
#: Roundings of the model's terms in a residual.
ROUNDINGS = 8
LOSSES: dict[str, Any] = {
    "linear": "linear", "huber": huber(0.3), "soft_l1": soft_l1(0.3), "cauchy": cauchy(0.3)}


def _model(x: jax.Array, p: jax.Array, y: jax.Array) -> jax.Array:
    """`p0 (x0 exp(-x1 t) + x2) - p0 y`."""
    t = jnp.asarray(TIMES, x.dtype)
    return p * (x[0] * jnp.exp(-x[1] * t) + x[2] - y)


@cache
def _program(loss: str, bounded: bool) -> Callable:
    bounds = {"lower": -0.5, "upper": 2.5} if bounded else {}

    def solve(x0: jax.Array, p: jax.Array, y: jax.Array) -> tuple:
        out = least_squares(_model, x0, p, y, loss=LOSSES[loss], max_steps=200, **bounds)
        return out.value, out.status

    return jax.jit(jax.vmap(solve))


def _slope(loss: str, z: np.ndarray) -> np.ndarray:
    """rho' of squared residuals, by hand."""
    z = z / 0.3**2
    return {"linear": lambda z: np.ones_like(z), "cauchy": lambda z: 1 / (1 + z),
            "soft_l1": lambda z: (1 + z) ** -0.5,
            "huber": lambda z: np.where(z <= 1, 1, np.maximum(z, 1) ** -0.5)}[loss](z)


def stationary(
    x: np.ndarray, p: np.ndarray, y: np.ndarray, loss: str, bounded: bool, dtype: Any
) -> np.ndarray:
    """Whether the slope at x is that of a full step within tolerance and rounding."""
    decay = np.exp(-x[:, 1:2] * TIMES)
    r = p[:, None] * (x[:, :1] * decay + x[:, 2:] - y)
    jacobian = p[:, None, None] * np.stack(
        [decay, -x[:, :1] * TIMES * decay, np.ones_like(decay)], 2)
    units = np.linalg.norm(jacobian, axis=1)
    scaled = jacobian / np.where(units > 0, units, 1)[:, None]
    weights = _slope(loss, r**2)
    slope = np.einsum("kmn,km->kn", scaled, weights * r)
    slope = np.where(units <= smallest(dtype), 0, slope)  # no effect that its arithmetic has
    if bounded:
        held = (x <= -0.5) & (slope >= 0) | (x >= 2.5) & (slope <= 0)
        slope = np.where(held, 0, slope)
    size = np.linalg.norm(units * x, axis=1)
    terms = np.abs(p)[:, None] * (np.abs(x[:, :1]) * decay * (1 + np.abs(x[:, 1:2]) * TIMES)
                                  + np.abs(x[:, 2:]) + np.abs(y))
    noise = ROUNDINGS * np.finfo(name(dtype)).eps * np.linalg.norm(terms, axis=1)
    limit = NEAR * TOLERANCES[name(dtype)][0] * size + NEAR * TOLERANCES[name(dtype)][1]
    # A slope is at most the full step's length times sqrt(3), the norm of columns of length 1.
    return np.linalg.norm(slope, axis=1) <= 3**0.5 * limit + noise


def audit_fit(
    seed: int, count: int, loss: str = "linear", bounded: bool = False, dtype: Any = jnp.float32
) -> Verdict:
    """Decays with noise and factors, a tenth of them of odd data; poor starts.

    CONVERGED is false where the answer is not stationary in float64. Unsolved where the data are
    exact and the start is near, and the status is neither CONVERGED nor PRECISION_FLOOR.
    """
    rng = np.random.default_rng(seed)
    truth = np.stack([rng.uniform(0.5, 2, count), 10.0 ** rng.uniform(-0.5, 0.3, count),
                      rng.uniform(-0.4, 1, count)], 1)
    noise = np.where(rng.random(count) < 0.5, 0, 10.0 ** rng.uniform(-3, 0, count))
    y = truth[:, :1] * np.exp(-truth[:, 1:2] * TIMES) + truth[:, 2:]
    y = y + noise[:, None] * rng.normal(size=y.shape)
    near = rng.random(count) < 0.5
    x0 = truth * np.where(near[:, None], rng.uniform(0.8, 1.2, truth.shape), 10.0 ** rng.uniform(
        -2, 2, truth.shape))
    # A loss with a scale of its own is not that of another unit.
    p = 10.0 ** rng.uniform(-9, 9, count) if loss == "linear" else np.ones(count)
    odd = rng.random(count) < 0.1
    y[odd, 3] = rng.choice([np.nan, np.inf, 1e30, -1e20], odd.sum())
    x0, p, y = cast(dtype, x0, p, y)
    x, status = _program(loss, bounded)(x0, p, y)
    good = np.asarray(status) == Status.CONVERGED
    x, p, y = exactly(x, p, y)
    with np.errstate(all="ignore"):
        false = good & ~stationary(x, p, y, loss, bounded, dtype)
    easy = near & ~odd & (noise == 0)
    solved = good | (np.asarray(status) == Status.PRECISION_FLOOR)
    kind = "bounded" if bounded else "free"
    return verdict(f"fit, {loss}, {kind}, {name(dtype)}", status, false, unsolved=easy & ~solved)
