"""Schedules: warm-up, stable, decay; and the best one for gradient norms that were recorded."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxiter import trees
from jaxiter.optim.transform import check_sizes, next_count, transformation

PyTree = Any


def wsd_schedule(
    peak: float, warmup: int, total: int, *, decay: float = 0.1, least: float = 0.1,
    kind: str = "inverse",
) -> optax.Schedule:
    """Linear warm-up, a constant, and a decay to `least * peak` over the last share of the steps.

    Args:
      peak: the constant. warmup, total: steps. decay: share of the total that decays.
      least: the last rate over the peak. kind: "inverse" (of a linear function), "linear" or
        "sqrt" (1 - sqrt of the progress).

    Raises:
      ValueError: an unknown kind, shares outside (0, 1], phases that do not fit.

    Source: Wen et al., "Understanding warmup-stable-decay learning rates: a river valley loss
    landscape perspective", 2024.

    >>> schedule = wsd_schedule(1.0, 10, 100)
    >>> [round(float(schedule(k)), 4) for k in (0, 10, 90, 95, 100)]
    [0.0, 1.0, 1.0, 0.1818, 0.1]
    """
    return wsds_schedule(peak, warmup, [total], decay=decay, least=least, kind=kind)


def wsds_schedule(
    peak: float, warmup: int, totals: Sequence[int], *, decay: float = 0.1, least: float = 0.1,
    kind: str = "inverse",
) -> optax.Schedule:
    """WSD-S: the same with a decay before each of several totals, and back to the peak at once.

    Args:
      totals: growing numbers of steps, usually geometric. decay: share of each total. The rest
        as in `wsd_schedule`.
    """
    shapes = {
        "inverse": lambda s: 1 / (s * (1 / least - 1) + 1),
        "linear": lambda s: 1 - (1 - least) * s,
        "sqrt": lambda s: 1 - (1 - least) * jnp.sqrt(s),
    }
    if kind not in shapes:
        raise ValueError(f"kind must be one of {sorted(shapes)}, got {kind!r}.")
    if not (0 < decay <= 1 and 0 < least <= 1 and peak > 0):
        raise ValueError("decay and least must be in (0, 1] and peak positive, got "
                         f"{decay}, {least} and {peak}.")
    starts = [round(total * (1 - decay)) for total in totals]
    edges = [warmup, *(edge for pair in zip(starts, totals, strict=True) for edge in pair)]
    # A phase starts the step after the last one ended, so that every total shows its end.
    joints = [edge + 1 if i and i % 2 == 0 else edge for i, edge in enumerate(edges[:-1])]
    if joints != sorted(joints):
        raise ValueError(f"warm-up and decays overlap: phases end at steps {edges}.")
    pieces: list[Any] = [optax.linear_schedule(0.0, peak, max(warmup, 1))]
    for start, total in zip(starts, totals, strict=True):
        def down(count: Any, length: int = total - start) -> jax.Array:
            progress = jnp.clip(jnp.asarray(count, jnp.float32) / max(length, 1), 0, 1)
            return peak * shapes[kind](progress)

        pieces += [optax.constant_schedule(peak), down]
    return optax.join_schedules(pieces, joints)


class GradientNorms(NamedTuple):
    """Steps so far and their gradient norms `[total]`."""

    count: jax.Array
    norms: jax.Array


def record_gradient_norm(total: int, order: int = 2) -> optax.GradientTransformationExtraArgs:
    """Passes gradients on and stores their norms over the whole tree, for `refine_schedule`.

    Args:
      total: steps to store; later ones are dropped. order: 2, or 1 for Adam and its kind.
    """
    if order not in (1, 2):
        raise ValueError(f"order must be 1 or 2, got {order}.")
    check_sizes("record_gradient_norm", total=total)

    def init(params: PyTree) -> GradientNorms:
        del params
        return GradientNorms(jnp.int32(0), jnp.zeros(total))

    def update(
        g: PyTree, state: GradientNorms, params: PyTree, **_: Any
    ) -> tuple[PyTree, GradientNorms]:
        del params
        if order == 2:
            norm = trees.norm(g)
        else:
            norm = trees.dot(jax.tree.map(jnp.sign, g), g).real
        norms = state.norms.at[state.count].set(norm.astype(state.norms.dtype), mode="drop")
        return g, GradientNorms(next_count(state.count), norms)

    return transformation("record_gradient_norm", init, update)


def refine_schedule(
    norms: Any, *, smoothing: float = 0.1, kind: str = "sgd", peak: float = 1.0
) -> optax.Schedule:
    """The schedule that minimises a bound on the last iterate for these gradient norms.

    `s_t = w_t sum_{p > t} w_p` with `w_t = norm_t^-2` ("sgd") or `1 / norm_t` ("adam", with norms
    of order 1; that power is reconstructed from the analysis), scaled to the peak. Constant
    norms give linear decay; norms that fall early give a warm-up.

    Args:
      norms: `[T]`, of a finished run. smoothing: share of the run under the median filter,
        in [0, 1/2]; 0: none.

    Returns:
      A schedule, 0 from step T - 1 on.

    Raises:
      ValueError: norms that are not positive and finite, fewer than two, smoothing out of range.

    Source: Defazio, Cutkosky, Mehta and Mishchenko, "When, why and how much? Adaptive learning
    rate scheduling by refinement", 2023.

    >>> [round(float(refine_schedule([1.0] * 5, smoothing=0)(k)), 3) for k in range(5)]
    [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    norms = np.asarray(norms, float)
    if norms.ndim != 1 or len(norms) < 2:
        raise ValueError(f"norms must be a vector of at least 2, got shape {norms.shape}.")
    bad = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
    if bad.size:
        raise ValueError(f"norms must be positive and finite; step {bad[0]} has {norms[bad[0]]}.")
    if not 0 <= smoothing <= 0.5:
        raise ValueError(f"smoothing must be in [0, 1/2], got {smoothing}.")
    if kind not in ("sgd", "adam"):
        raise ValueError(f"kind must be 'sgd' or 'adam', got {kind!r}.")
    if smoothing:
        norms = _median_filter(norms, 2 * int(smoothing * len(norms) / 2) + 1)
    norms = norms / norms.min()  # of tiny norms the square would be infinite
    weights = norms ** (-2.0 if kind == "sgd" else -1.0)
    later = np.cumsum(weights[::-1])[::-1] - weights
    later[-1] = 0.0
    shape = weights * later
    table = jnp.asarray(peak * shape / shape.max(), jnp.float32)
    return lambda count: table[jnp.clip(count, 0, len(table) - 1)]


def _median_filter(x: np.ndarray, width: int) -> np.ndarray:
    """Median over a window; the end is reflected, the start repeated, as the authors advise."""
    extra = min(2 * width, len(x) - 1)
    longer = np.pad(np.pad(x, (0, extra), mode="reflect"), width // 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(longer, width)
    return np.median(windows, axis=1)[: len(x)]
