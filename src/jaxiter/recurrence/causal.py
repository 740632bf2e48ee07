"""Chains whose rows read the whole history: Jacobi rounds on a causal map of all rows."""

from collections.abc import Callable
from functools import partial
from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.known import known
from jaxiter.numerics import strong
from jaxiter.options import SolveOptions
from jaxiter.recurrence.rounds import View, solve_rounds, without_derivatives
from jaxiter.recurrence.solve import comparison
from jaxiter.reuse import reused
from jaxiter.solution import Solution

PyTree = Any


@reused
def solve_causal(
    function: Callable, init: PyTree, *, rtol: Any = None, atol: Any = None, check: bool = True,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Rows with `s = function(s)` where row t reads rows before t only: autoregressive decoding.

    Every round evaluates all rows from the last values. At most T rounds, and integer rows
    are those of the loop bit for bit. No derivatives.

    Args:
      function: maps rows `[T, ...]` to rows of the same tree, shapes and dtypes.
      init: the first guess, leaves `[T, ...]`, integers or floating point.
      rtol, atol: as in `solve_recurrence`.
      check: test causality first, at a cost of five evaluations (skipped under jit).
      **options: stop, max_steps and monitor as in `solve_recurrence`; no resume, solver,
        check_every, keep_best, and no adjoint but `jaxiter.frozen()`.

    Returns:
      A `Solution` as that of `solve_recurrence`.

    Raises:
      ValueError: a row depends on itself or a later row (named, when init is concrete).

    Source: Song, Meng, Liao and Ermon, "Accelerating feedforward computation via parallel
    nonlinear equation solving", 2021.

    >>> import jax.numpy as jnp
    >>> shift = lambda s: jnp.concatenate([jnp.array([3]), (s[:-1] * 5 + 1) % 7])
    >>> solve_causal(shift, jnp.zeros(5, jnp.int32)).value.tolist()
    [3, 2, 4, 0, 1]
    """
    given = init
    init = jax.tree.map(strong, init)
    if any(leaf.ndim == 0 or leaf.size == 0 for leaf in jax.tree.leaves(init)):
        shapes = [leaf.shape for leaf in jax.tree.leaves(init)]
        raise ValueError(f"init must hold rows along its first axis, at least one; got {shapes}.")
    trees.check_same_structure(init, jax.eval_shape(function, init), "The function")
    if check:
        known(partial(check_causal, function), given)
    count = jax.tree.leaves(init)[0].shape[0]
    chosen = without_derivatives("solve_causal", options, count)

    def look(view: View, pending: jax.Array, rows: PyTree, own: None) -> tuple:
        shown = function(rows)
        return shown, lambda kept: shown, own

    return solve_rounds(look, init, None, (), chosen, window=None,
                        compare=comparison(init, rtol, atol))[0]


def check_causal(function: Callable, rows: PyTree) -> None:
    """Raise ValueError where a row of `function(rows)` depends on itself or a later row.

    Replaces all rows from k on by others, for k = 0, 1, T/2 and T - 1, and looks at the first
    rows of the answer, which may differ by rounding (a convolution by FFT). A test by example: it
    can miss a dependence, and one of that size it does.

    >>> import jax.numpy as jnp
    >>> check_causal(lambda s: s[::-1], jnp.arange(4.0))
    Traceback (most recent call last):
    ...
    ValueError: non-causal map: row 0 changed when rows 0 and later changed.
    """
    count = jax.tree.leaves(rows)[0].shape[0]
    rng = np.random.default_rng(0)
    original = jax.tree.leaves(function(rows))

    def replaced(k: int, leaf: jax.Array) -> jax.Array:
        host = np.asarray(leaf)
        # Permuted along all axes and shifted: other values, of the same kind.
        noise = rng.permutation(host.ravel()).reshape(host.shape)
        noise = noise if host.dtype == bool else (noise + 1).astype(host.dtype)
        return jnp.concatenate([leaf[:k], jnp.asarray(noise[k:])])

    for k in sorted({0, min(1, count - 1), count // 2, count - 1}):
        after = jax.tree.leaves(function(jax.tree.map(partial(replaced, k), rows)))
        for old, new in zip(original, after, strict=True):
            # Row k itself reads rows before k only, so it must not have changed either.
            differs = _differs(np.asarray(old)[: k + 1], np.asarray(new)[: k + 1])
            rows_changed = np.flatnonzero(differs.reshape(differs.shape[0], -1).any(1))
            if rows_changed.size:
                raise ValueError(f"non-causal map: row {rows_changed[0]} changed when rows "
                                 f"{k} and later changed.")


def _differs(old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Where entries differ, by more than rounding; NaN is the same as NaN."""
    if not jnp.issubdtype(old.dtype, jnp.inexact):
        return old != new
    kind = np.result_type(old.dtype, np.float32) if old.dtype.kind in "fc" else np.float32
    old, new = old.astype(kind), new.astype(kind)
    size = np.where(np.isfinite(old), np.abs(old), 0).max(initial=0)
    near = 100 * float(jnp.finfo(kind).eps) * size
    return ~np.isclose(new, old, rtol=0, atol=near, equal_nan=True)
