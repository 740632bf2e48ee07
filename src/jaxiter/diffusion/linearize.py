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

from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import SamplerTable, linear_rows, widen
from jaxiter.numerics import machine_epsilon, safe_divide
from jaxiter.recurrence.linearize import dot, secant_slopes
from jaxiter.recurrence.methods import Jacobi, Picard, RowMethod
from jaxiter.recurrence.rounds import spread

HIGHEST = lax.Precision.HIGHEST


class Window(NamedTuple):
    """W rows of a round: inputs x `[W, ...]`, what they show, its difference to the state now.

    slopes: `[W, V]`, of the model at each row and the rows before it.
    """

    rows: SamplerTable
    x: jax.Array
    plain: jax.Array
    residual: jax.Array
    pending: jax.Array
    slopes: jax.Array


class Mixing(NamedTuple):
    """ParaTAA's memory: differences `[m, R, ...]` of the last rounds' states and residuals.

    Also the last of both. A row that was not evaluated in two rounds running has zeros.
    """

    dx: jax.Array
    dr: jax.Array
    x: jax.Array
    r: jax.Array
    seen: jax.Array


def answers(w: Window, method: RowMethod) -> jax.Array:
    """`[W, K]`: how row t answers changes of X[t], X[t-1], ..."""
    if isinstance(method, Jacobi):
        return jnp.zeros_like(w.rows.model)
    if isinstance(method, Picard):
        return jnp.zeros_like(w.rows.model).at[:, 0].set(1)
    return by_slopes(w)


def by_slopes(w: Window) -> jax.Array:
    """Answers `[W, K]` of the sampler's own rows, by slopes of the model."""
    reach = max(w.rows.state.shape[1], w.rows.model.shape[1])
    return widen(w.rows.state, reach) + widen(w.rows.model * w.slopes, reach)


def linear(w: Window, answer: jax.Array) -> tuple[jax.Array, jax.Array]:
    """New states by one linear recurrence with these answers, and the change of each."""
    lift, change = linear_rows(answer, w.residual)
    return w.plain + lift, change


def mended(w: Window, model: Callable) -> tuple[Window, jax.Array]:
    """The window of a second recurrence: the model's jvp along the first replaces its slopes.

    Also returns these slopes, `[W]`.
    """
    _, change = linear(w, by_slopes(w))
    into = jnp.concatenate([jnp.zeros_like(change[:1]), change[:-1]])
    exact = jax.jvp(model, (w.x,), (into,))[1]
    along = dot(into, into)
    slope = jnp.where(along > 0, safe_divide(dot(into, exact), along), w.slopes[:, 0])
    # Slopes of earlier rows: those of this window are new too.
    depth = w.slopes.shape[1]
    slopes = jnp.stack([jnp.concatenate([w.slopes[:j, j], slope[: slope.shape[0] - j]])
                        for j in range(depth)], axis=1) if depth > 1 else slope[:, None]
    rest = spread(w.rows.model[:, 0], exact) * (exact - spread(slope, exact) * into)
    return w._replace(slopes=slopes, plain=w.plain + rest,
                      residual=w.residual + jnp.where(spread(w.pending, rest), rest, 0)), slope


def model_slopes(
    sampler: Sampler, rows: SamplerTable, slope: jax.Array, dx: jax.Array, de: jax.Array,
    seen: jax.Array, x: jax.Array,
) -> jax.Array:
    """Secant slopes where the input moved, within the bounds of an exact score."""
    moved = 1e-10 if machine_epsilon(x) > 1e-12 else 1e-24
    low, high = -4 / rows.sigma, 1 / rows.sigma
    if sampler.currency == "x0":  # s = (1 - sigma s_eps) / alpha
        low, high = jnp.zeros_like(low), jnp.where(rows.alpha > 0, 5 / rows.alpha, jnp.inf)
    new = secant_slopes(dx, de, jnp.full_like(slope, jnp.nan), seen, moved * dot(x, x))
    return jnp.where(jnp.isnan(new), slope, jnp.clip(new, low, high))


def gaussian_slopes(sampler: Sampler, denoiser: Denoiser, table: SamplerTable) -> jax.Array:
    """Slopes `[R]` of the model for Gaussian data of the denoiser's standard deviation."""
    variance = denoiser.data_std**2
    total = table.alpha**2 * variance + table.sigma**2
    return (table.sigma if sampler.currency == "eps" else table.alpha * variance) / total


def no_past(start: jax.Array, differences: int) -> Mixing:
    """Empty memory for the rows of a trajectory `[R + 1, ...]`."""
    rows = jnp.zeros_like(start[1:])
    empty = jnp.zeros((differences, *rows.shape), rows.dtype)
    return Mixing(empty, empty, rows, rows, jnp.zeros(rows.shape[0], bool))


def longer(w: Window, order: int) -> jax.Array:
    """Residuals of the map that runs `order` rows at once, with the models' values fixed.

    Reference: Tang, Tang, Luo, Wang and Chang, "Accelerating parallel sampling of diffusion
    models", 2024.
    """
    answer = by_slopes(w._replace(slopes=jnp.zeros_like(w.slopes)))

    def extend(_: int, r: jax.Array) -> jax.Array:
        total, into = w.residual, r
        for j in range(answer.shape[1]):
            into = jnp.concatenate([jnp.zeros_like(r[:1]), into[:-1]])
            total = total + spread(answer[:, j], r) * into
        return total

    return lax.fori_loop(1, order, extend, w.residual)


def anderson(w: Window, old: jax.Array, past: Mixing, order: int) -> tuple[jax.Array, Mixing]:
    """ParaTAA (Tang et al. 2024): maps of `order` rows, mixed by a triangular Anderson step.

    Row t mixes by least squares over the residuals of the rows up to t only, so that no
    row hears of a later one. `past` and `old`, the states now, are cut to the window.
    """
    r = longer(w, order)
    # Rows before the first that is off do not move, and say nothing about those that do.
    live = w.pending & (jnp.cumsum(dot(r, r)) > 0)
    both = spread(past.seen & live, r)
    dx = jnp.concatenate([jnp.where(both, old - past.x, 0)[None], past.dx[:-1]])
    dr = jnp.concatenate([jnp.where(both, r - past.r, 0)[None], past.dr[:-1]])
    flat = jnp.where(spread(live, dr[0]), dr, 0).reshape(dr.shape[0], dr.shape[1], -1)
    gram = jnp.cumsum(jnp.einsum("itd,jtd->tij", flat, flat, precision=HIGHEST), axis=0)
    right = jnp.cumsum(
        jnp.einsum("itd,td->ti", flat, r.reshape(len(r), -1), precision=HIGHEST), axis=0)
    # A ridge relative to the Gram matrix: an absolute one means nothing once residuals are small.
    size = jnp.trace(gram, axis1=1, axis2=2)
    ridge = 1e-3 * size / dr.shape[0] + jnp.where(size > 0, 0, 1)
    weights = jnp.linalg.solve(
        gram + ridge[:, None, None] * jnp.eye(dr.shape[0], dtype=r.dtype), right[..., None])[..., 0]
    mixed = old + r - jnp.einsum("itd,ti->td", (dx + dr).reshape(flat.shape), weights,
                                 precision=HIGHEST).reshape(r.shape)
    return mixed, Mixing(dx, dr, old, r, jnp.ones_like(past.seen))

