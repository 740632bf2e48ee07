"""Gradients where the adjoint's system is nearly singular, singular in some rows, or in 16 bits."""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.driver import fixed_point
from jaxiter.testing.audit.verdict import (
    Verdict,
    apply,
    cast,
    exactly,
    half_ulp,
    name,
    verdict,
    wrong_gradients,
)

#: A gradient that is NaN is lost only where the condition is below this.
REGULAR = {"float32": 1e3, "float64": 1e6, "bfloat16": 20.0, "float16": 20.0}


@cache
def _program(adjoint: Any) -> Callable:
    """Value, status and gradient by the offset of `<w, x>`; leading axes of a are batch axes."""
    def total(b: jax.Array, a: jax.Array, w: jax.Array, x0: jax.Array) -> tuple:
        out = fixed_point(lambda x, a, b: jnp.einsum("...ij,...j->...i", a, x) + b, x0, a, b,
                          adjoint=adjoint, max_steps=20)
        return jnp.sum(w * out.value), out.status

    return jax.jit(jax.vmap(jax.value_and_grad(total, has_aux=True)))


def near_singular(
    rng: np.random.Generator, count: int, size: int
) -> np.ndarray:
    """Matrices with one eigenvalue of 1 - 1e-6 .. 1 - 1e-3, half of them not symmetric."""
    values = rng.uniform(-0.9, 0.9, (count, size))
    gap = 10.0 ** rng.choice([-6, -5.5, -5, -4, -3], count)
    values[:, 0] = 1 - gap
    basis = np.linalg.qr(rng.normal(size=(count, size, size)))[0]
    skew = np.eye(size) + 0.5 * np.triu(rng.normal(size=basis.shape), 1)
    basis = np.where(rng.random((count, 1, 1)) < 0.5, basis, basis @ skew)
    return (basis * values[:, None]) @ np.linalg.inv(basis)


def _judged(
    family: str, a: np.ndarray, b: np.ndarray, x0: np.ndarray, w: np.ndarray, adjoint: Any,
    dtype: Any, slack: float = 0.0, batch: int = 0,
) -> Verdict:
    """Solve, and judge every row's gradient; `batch` rows are one solve."""
    arrays = cast(dtype, b, a, w, x0)
    if batch:
        arrays = [part.reshape(-1, batch, *part.shape[1:]) for part in arrays]
    (_, status), slope = _program(adjoint)(*arrays)
    rows = [part.reshape(-1, *part.shape[2:]) if batch else part for part in (arrays[1], slope)]
    a, slope = exactly(*rows)
    w = exactly(arrays[2])[0].reshape(slope.shape)
    system = np.eye(a.shape[-1]) - np.swapaxes(a, 1, 2)
    condition = np.linalg.cond(system)
    singular = ~(condition < 1e12)
    exact = np.full_like(slope, np.inf)  # a number there is wrong
    exact[~singular] = np.linalg.solve(system[~singular], w[~singular, :, None])[..., 0]
    room = slack * half_ulp(dtype) * np.where(singular, 0, condition)
    silent, lost = wrong_gradients(slope, exact, condition < REGULAR[name(dtype)], room)
    silent |= singular & np.isfinite(slope).all(1)
    status = np.asarray(status)
    return verdict(f"{family}, {name(dtype)}", np.repeat(status, max(batch, 1)),
                   np.zeros(len(slope), bool), silent=silent, lost=lost)


def audit_near_singular(seed: int, count: int, adjoint: Any, adjoint_name: str) -> Verdict:
    """One eigenvalue close to 1: a gradient within 2 per cent, or NaN.

    Or within half of what one rounding makes of it by the true condition number, of which a solve
    sees only a part: 0.5 * 6e-8 * 1e6 is another 3 per cent.
    """
    rng = np.random.default_rng(seed)
    size = 12
    a = near_singular(rng, count, size)
    x = rng.normal(size=(count, size))
    return _judged(f"gradient, {adjoint_name}, nearly singular", a, x - apply(a, x), x,
                   rng.normal(size=x.shape), adjoint, jnp.float32, slack=0.5)


def audit_rows(
    seed: int, count: int, adjoint: Any, adjoint_name: str, batch: int = 8
) -> Verdict:
    """Batches of independent rows in one solve, up to two of them singular: those may be NaN.

    lost: a NaN in a regular row.
    """
    rng = np.random.default_rng(seed)
    size = 4
    rows = count // batch * batch
    a = rng.normal(size=(rows, size, size))
    a *= (rng.uniform(0.2, 0.9, rows) / np.linalg.norm(a, 2, axis=(1, 2)))[:, None, None]
    x = rng.normal(size=(rows, size))
    bad = np.zeros((rows // batch, batch), bool)
    bad[:, 0] = rng.random(len(bad)) < 0.7
    bad[:, 3] = rng.random(len(bad)) < 0.3
    bad = bad.reshape(-1)
    a[bad, 0], a[bad, :, 0] = 0.0, 0.0
    a[bad, 0, 0] = 1.0  # the first coordinate may be anything
    return _judged(f"gradient, {adjoint_name}, rows of a batch", a, x - apply(a, x), x,
                   rng.normal(size=x.shape), adjoint, jnp.float32, batch=batch)


def audit_sixteen(
    seed: int, count: int, size: int, dtype: Any, adjoint: Any, adjoint_name: str
) -> Verdict:
    """Contractions `q x orthogonal` in 16 bits: well conditioned, so the gradient is a number.

    Two per cent, and what rounding of the products with the matrix makes unavoidable.
    """
    rng = np.random.default_rng(seed)
    rate = rng.choice([0.5, 0.8, 0.9], count)
    a = np.linalg.qr(rng.normal(size=(count, size, size)))[0] * rate[:, None, None]
    x = rng.normal(size=(count, size))
    return _judged(f"gradient, {adjoint_name}, n = {size}", a, x - apply(a, x), x,
                   rng.normal(size=x.shape), adjoint, dtype, slack=2.0)
