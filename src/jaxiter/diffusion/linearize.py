"""How a row of the window answers its input: the one choice in which parallel samplers differ.

Given what every row shows (`plain`, the sampler's formula at the current states) and its
residual, each way here proposes new states. Whatever it proposes, a row whose inputs are
final shows the loop's state, so only the number of rounds depends on it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import SamplerTable, linear_rows, weighted, widen
from jaxiter.numerics import HIGHEST, accumulation_dtype, machine_epsilon
from jaxiter.recurrence.linearize import dot, secant_slopes
from jaxiter.recurrence.methods import Jacobi, Picard, RowMethod
from jaxiter.trees import spread


class Mixing(NamedTuple):
    """ParaTAA's memory: differences `[R, m, ...]` of the last rounds' states and residuals.

    Also the last of both, NaN before the first. A row that was not evaluated in two rounds running
    has zeros.
    """

    dx: jax.Array
    dr: jax.Array
    x: jax.Array
    r: jax.Array


class Seen(NamedTuple):
    """What the rounds remember of the model.

    value: the model at the rows' inputs, `[R, ...]`, and `at`, where: NaN before it was called.
    slope: `[R]`. past: earlier rounds, for `paratta`; else None. All by rows.
    """

    value: jax.Array
    at: jax.Array
    slope: jax.Array
    past: Mixing | None


def answers(method: RowMethod, rows: SamplerTable, slopes: jax.Array) -> jax.Array:
    """`[W, K]`: how row t answers changes of X[t], X[t-1], ...; `slopes` `[W, V]` of the model."""
    none = jnp.zeros_like(rows.model)
    if isinstance(method, Jacobi | Picard):
        return none if isinstance(method, Jacobi) else none.at[:, 0].set(1)
    reach = max(rows.state.shape[1], rows.model.shape[1])
    return widen(rows.state, reach) + widen(rows.model * slopes, reach)


def mended(
    rows: SamplerTable, model: Callable, x: jax.Array, answer: jax.Array, slope: jax.Array,
    residual: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """For a second recurrence: slopes `[W]` from the model's jvp along the first.

    Also what that jvp says beyond them of what the rows show.
    """
    into = trees.before(linear_rows(answer, residual)[1])
    exact = jax.jvp(model, (x,), (into,))[1]
    slope = secant_slopes(into, exact, slope, jnp.zeros((), exact.dtype))
    return slope, spread(rows.model[:, 0], exact) * (exact - spread(slope, exact) * into)


def model_slopes(
    sampler: Sampler, rows: SamplerTable, before: Seen, x: jax.Array, value: jax.Array
) -> jax.Array:
    """Secant slopes where the input moved, within the bounds of an exact score."""
    moved = 1e-10 if machine_epsilon(x) > 1e-12 else 1e-24
    low, high = -4 / rows.sigma, 1 / rows.sigma
    if sampler.currency == "x0":  # s = (1 - sigma s_eps) / alpha
        low, high = jnp.zeros_like(low), jnp.where(rows.alpha > 0, 5 / rows.alpha, jnp.inf)
    new = secant_slopes(x - before.at, value - before.value, jnp.full_like(before.slope, jnp.nan),
                        moved * dot(x, x))
    return jnp.where(jnp.isnan(new), before.slope, jnp.clip(new, low, high))


def gaussian_slopes(sampler: Sampler, denoiser: Denoiser, table: SamplerTable) -> jax.Array:
    """Slopes `[R]` of the model for Gaussian data of the denoiser's standard deviation."""
    variance = denoiser.data_std**2
    total = table.alpha**2 * variance + table.sigma**2
    return (table.sigma if sampler.currency == "eps" else table.alpha * variance) / total


def no_past(start: jax.Array, differences: int) -> Mixing:
    """Empty memory for the rows of a trajectory `[R + 1, ...]`."""
    rows = jnp.zeros_like(start[1:])
    empty = jnp.stack([rows] * differences, axis=1)
    return Mixing(empty, empty, rows + jnp.nan, rows)


def longer(rows: SamplerTable, residual: jax.Array, order: int) -> jax.Array:
    """Residuals of the map that runs `order` rows at once, with the models' values fixed.

    Reference: Tang, Tang, Luo, Wang and Chang, "Accelerating parallel sampling of diffusion
    models", 2024.
    """
    return lax.fori_loop(
        1, order, lambda _, r: residual + weighted(rows.state, trees.before(r)), residual)


def anderson(
    r: jax.Array, pending: jax.Array, old: jax.Array, past: Mixing
) -> tuple[jax.Array, Mixing]:
    """ParaTAA (Tang et al. 2024): maps of several rows, mixed by a triangular Anderson step.

    Row t mixes by least squares over the residuals r of the rows up to t only, so that no
    row hears of a later one. `past` and `old`, the states now, are cut to the window.
    """
    # Rows before the first that is off do not move, and say nothing about those that do.
    live = pending & (jnp.cumsum(dot(r, r)) > 0)
    newest = trees.where_rows(trees.finite_rows(past.x) & live, (old - past.x, r - past.r), (0, 0))
    dx, dr = (jnp.concatenate([new[:, None], held[:, :-1]], axis=1)
              for new, held in zip(newest, past[:2], strict=True))
    # LAPACK knows no half precision, in which the squares would under- and overflow besides.
    kind = accumulation_dtype(r.dtype)
    flat = trees.where_rows(live, dr, 0).reshape(*dr.shape[:2], -1).astype(kind)
    gram = jnp.cumsum(jnp.einsum("tid,tjd->tij", flat, flat, precision=HIGHEST), axis=0)
    right = jnp.cumsum(jnp.einsum(
        "tid,td->ti", flat, r.reshape(len(r), -1).astype(kind), precision=HIGHEST), axis=0)
    # A ridge relative to the Gram matrix: an absolute one means nothing once residuals are small.
    size = jnp.trace(gram, axis1=1, axis2=2)
    rounds = dr.shape[1]
    ridge = 1e-3 * size / rounds + jnp.where(size > 0, 0, 1)
    weights = jnp.linalg.solve(
        gram + ridge[:, None, None] * jnp.eye(rounds, dtype=kind), right[..., None])
    weights = weights[..., 0].astype(r.dtype)
    mixed = old + r - jnp.einsum("tid,ti->td", (dx + dr).reshape(flat.shape), weights,
                                 precision=HIGHEST).reshape(r.shape)
    return mixed, Mixing(dx, dr, old, r)

