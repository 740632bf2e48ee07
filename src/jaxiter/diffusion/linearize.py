"""How a row of the window answers its input: the one choice in which parallel samplers differ.

Given what every row shows (`plain`, the sampler's formula at the current states) and its
residual, each way here proposes new states. Whatever it proposes, a row whose inputs are
final shows the loop's state, so only the number of rounds depends on it.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxiter import trees
from jaxiter.diffusion.denoiser import Denoiser
from jaxiter.diffusion.methods import Jvp, Paratta
from jaxiter.diffusion.samplers import Sampler
from jaxiter.diffusion.table import SamplerTable, combine, evaluate, linear_rows, weighted, widen
from jaxiter.numerics import HIGHEST, accumulation_dtype, machine_epsilon
from jaxiter.recurrence.linearize import dot, secant_slopes
from jaxiter.recurrence.methods import Jacobi, Past, Picard, RowMethod, Secant
from jaxiter.recurrence.rounds import View, back
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


def nothing_seen(
    rows: jax.Array, slopes: jax.Array, method: RowMethod
) -> tuple[Past, Mixing | None]:
    """What rounds remember of rows `[R, ...]`, before the first: the model, and for ParaTAA rounds.

    Of the model its inputs, NaN where it was not called, its values there and its slopes.
    """
    never, past = jnp.full_like(rows, jnp.nan), None
    if isinstance(method, Paratta) and method.memory:
        empty = jnp.stack([jnp.zeros_like(rows)] * method.memory, axis=1)
        past = Mixing(empty, empty, never, never)
    return Past(never, jnp.zeros_like(rows), slopes), past


def look(
    sampler: Sampler, denoiser: Denoiser, method: RowMethod, mesh: Mesh | None, view: View,
    pending: jax.Array, states: jax.Array, seen: tuple, x_init: jax.Array, table: SamplerTable,
) -> tuple[jax.Array, Callable, tuple]:
    """One batched model call on the window, one linear recurrence."""
    inputs, depth = trees.before(states, x_init), table.model.shape[1]
    rows, x, old, (before, past) = view.cut((table, inputs, states, seen))

    model = partial(_split, partial(evaluate, sampler, denoiser), mesh, rows=rows)

    def image(values: jax.Array) -> jax.Array:
        return jax.vmap(combine)(rows, view.cut(back(inputs, table.state.shape[1])),
                                 view.cut(back(view.put(seen[0].f, values), depth)))

    def reached(slope: jax.Array) -> jax.Array:
        """Slopes at each row and those before it, `[W, V]`."""
        return view.cut(back(view.put(seen[0].slope, slope), depth))

    def off(plain: jax.Array) -> jax.Array:
        return trees.where_rows(pending, plain - old, 0)

    raw = trees.where_rows(pending, model(x), before.f)
    # Rows before a wrong guess may show it; what is not finite is left out of the proposals.
    value = trees.where_rows(trees.finite_rows(raw), raw, before.f)
    plain, slope, mixed = image(value), before.slope, None
    if isinstance(method, Secant | Jvp):
        slope = model_slopes(sampler, rows, before, x, value)
    answer = answers(method, rows, reached(slope))
    if isinstance(method, Jvp):  # a second recurrence, its slopes from the jvp along the first
        into = trees.before(linear_rows(answer, off(plain))[1])
        exact = jax.jvp(model, (x,), (into,))[1]
        slope = secant_slopes(into, exact, slope, jnp.zeros((), exact.dtype))
        answer = answers(method, rows, reached(slope))
        # What the jvp says beyond the slopes is a change of what the rows show.
        beyond = exact - spread(slope, exact) * into
        plain = plain + spread(rows.model[:, 0], exact) * beyond
    if isinstance(method, Paratta) and past is not None:
        mixed, past = anderson(longer(rows, off(plain), method.order), pending, old, past)

    def propose(kept: jax.Array) -> jax.Array:
        residual = trees.where_rows(~kept, off(plain), 0)
        if isinstance(method, Paratta):
            return old + longer(rows, residual, method.order) if mixed is None else mixed
        return plain + linear_rows(answer, residual)[0]

    return image(raw), propose, view.put(seen, (Past(x, value, slope), past))


def _split(model: Callable, mesh: Mesh | None, x: jax.Array, rows: SamplerTable) -> jax.Array:
    """The model at all rows in one batch, each device of the mesh with its part of them."""
    batched = jax.vmap(model)
    if mesh is None:
        return batched(x, rows)
    devices, width = mesh.shape["time"], x.shape[0]
    part = -(-width // devices)

    def mine(x: jax.Array, rows: SamplerTable) -> jax.Array:
        # Cut here, not by in_specs: a sharded operand would spread through the whole round.
        index = jnp.minimum(lax.axis_index("time") * part + jnp.arange(part, dtype=jnp.int32),
                            width - 1)
        return lax.all_gather(batched(*trees.at((x, rows), index)), "time", tiled=True)

    gathered = jax.shard_map(mine, mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(),
                             check_vma=False)
    return gathered(x, rows)[:width]


def answers(method: RowMethod, rows: SamplerTable, slopes: jax.Array) -> jax.Array:
    """`[W, K]`: how row t answers changes of X[t], X[t-1], ...; `slopes` `[W, V]` of the model."""
    none = jnp.zeros_like(rows.model)
    if isinstance(method, Jacobi | Picard):
        return none if isinstance(method, Jacobi) else none.at[:, 0].set(1)
    reach = max(rows.state.shape[1], rows.model.shape[1])
    return widen(rows.state, reach) + widen(rows.model * slopes, reach)


def model_slopes(
    sampler: Sampler, rows: SamplerTable, before: Past, x: jax.Array, value: jax.Array
) -> jax.Array:
    """Secant slopes where the input moved, within the bounds of an exact score."""
    moved = 1e-10 if machine_epsilon(x) > 1e-12 else 1e-24
    low, high = -4 / rows.sigma, 1 / rows.sigma
    if sampler.currency == "x0":  # s = (1 - sigma s_eps) / alpha
        low, high = jnp.zeros_like(low), jnp.where(rows.alpha > 0, 5 / rows.alpha, jnp.inf)
    new = secant_slopes(x - before.p, value - before.f, jnp.full_like(before.slope, jnp.nan),
                        moved * dot(x, x))
    return jnp.where(jnp.isnan(new), before.slope, jnp.clip(new, low, high))


def gaussian_slopes(sampler: Sampler, denoiser: Denoiser, table: SamplerTable) -> jax.Array:
    """Slopes `[R]` of the model for Gaussian data of the denoiser's standard deviation."""
    variance = denoiser.data_std**2
    total = table.alpha**2 * variance + table.sigma**2
    return (table.sigma if sampler.currency == "eps" else table.alpha * variance) / total


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

