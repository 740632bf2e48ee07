"""Vector-space algebra on pytrees: the only place where norms are defined.

All reductions accumulate in at least float32, whatever the leaves are.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.numerics import HIGHEST, accumulation_dtype

PyTree = Any


def add(a: PyTree, b: PyTree) -> PyTree:
    """`a + b` leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """`a - b` leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def negative(a: PyTree) -> PyTree:
    """`-a` leaf by leaf."""
    return jax.tree.map(jnp.negative, a)


def scale(factor: Any, a: PyTree) -> PyTree:
    """`factor * a`, where the scalar factor is cast to each leaf's dtype."""
    return jax.tree.map(lambda leaf: jnp.asarray(factor).astype(leaf.dtype) * leaf, a)


def axpy(factor: Any, a: PyTree, b: PyTree) -> PyTree:
    """`factor * a + b`; the dtype of b is kept."""
    return jax.tree.map(lambda x, y: jnp.asarray(factor).astype(y.dtype) * x + y, a, b)


def where(predicate: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """`a` where the scalar predicate holds, else `b`."""
    return jax.tree.map(lambda x, y: lax.select(predicate, x, y), a, b)


def zeros_like(a: PyTree) -> PyTree:
    """A tree of zeros with the shapes and dtypes of `a`."""
    return jax.tree.map(jnp.zeros_like, a)


def full_like(a: PyTree, value: float) -> PyTree:
    """A tree filled with `value`."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), a)


def _total(parts: list[jax.Array], combine: Callable = jnp.add) -> jax.Array:
    """Combine the leaves' results in the widest of their dtypes (a tree may mix precisions)."""
    kind = jnp.result_type(*[part.dtype for part in parts]) if len(parts) > 1 else parts[0].dtype
    return reduce(combine, [part.astype(kind) for part in parts])


def dot(a: PyTree, b: PyTree) -> jax.Array:
    """The inner product `sum(conj(a) * b)`, a scalar (complex when the leaves are)."""

    def leaf_dot(x: jax.Array, y: jax.Array) -> jax.Array:
        kind = accumulation_dtype(x.dtype)
        if jnp.iscomplexobj(x):
            return jnp.vdot(x, y, precision=HIGHEST)
        return jnp.sum(x.astype(kind) * y.astype(kind))

    return _total(jax.tree.leaves(jax.tree.map(leaf_dot, a, b)))


def squared_norm(a: PyTree) -> jax.Array:
    """The sum of squared magnitudes, a real scalar; it may under- or overflow."""

    def leaf(x: jax.Array) -> jax.Array:
        kind = accumulation_dtype(x.dtype)
        if jnp.iscomplexobj(x):
            return jnp.sum(jnp.square(x.real)) + jnp.sum(jnp.square(x.imag))
        return jnp.sum(jnp.square(x.astype(kind)))

    return _total([leaf(x) for x in jax.tree.leaves(a)])


def max_norm(a: PyTree) -> jax.Array:
    """The largest magnitude of any entry, a real scalar; NaN entries give NaN.

    NaN is added by hand: across devices a maximum may drop it.
    """

    def leaf(x: jax.Array) -> jax.Array:
        magnitude = jnp.abs(x).astype(accumulation_dtype(x.dtype))
        nan = jnp.any(jnp.isnan(magnitude))
        return jnp.where(nan, jnp.nan, jnp.max(magnitude, initial=0.0))

    return _total([leaf(x) for x in jax.tree.leaves(a)], jnp.maximum)


def _range(kind: Any) -> tuple[Any, Any]:
    """Sums of squares between these two bounds lost nothing to under- or overflow."""
    info = jnp.finfo(kind)
    return info.tiny / info.eps, info.max


def norm(a: PyTree) -> jax.Array:
    """The l2 norm of the flattened tree, a real scalar of at least float32.

    Scaling by the largest entry, which a robust norm needs, costs a second
    pass. It is done only where the sum of squares left the safe range, in a
    loop of zero or one trip (a `cond` would run both branches under vmap).
    """
    total = squared_norm(a)
    low, high = _range(total.dtype)

    def unsafe(carry: tuple) -> jax.Array:
        return carry[1]

    def rescaled(carry: tuple) -> tuple:
        peak = max_norm(a).astype(carry[0].dtype)
        usable = jnp.isfinite(peak) & (peak > 0)
        # A power of two scales exactly, also when the peak is subnormal.
        exponent = jnp.where(usable, jnp.round(jnp.log2(jnp.where(usable, peak, 1))), 0)
        half = jnp.exp2(-jnp.trunc(exponent / 2)).astype(carry[0].dtype)
        rest = jnp.exp2(-(exponent - jnp.trunc(exponent / 2))).astype(carry[0].dtype)

        def shrink(leaf: jax.Array) -> jax.Array:
            wide = leaf if jnp.iscomplexobj(leaf) else leaf.astype(carry[0].dtype)
            return wide * half.astype(wide.dtype) * rest.astype(wide.dtype)

        scaled = jnp.sqrt(squared_norm(jax.tree.map(shrink, a))) / half / rest
        return jnp.where(usable, scaled, peak), jnp.zeros_like(carry[1])

    plain = jnp.sqrt(total)
    # total == 0 needs the second look too: it may be an underflow.
    doubtful = (total < low) | (total == jnp.inf) | (total > high)
    return lax.while_loop(unsafe, rescaled, (plain, doubtful))[0]


def columns_dot(history: PyTree, a: PyTree) -> jax.Array:
    """Inner products of each of the m stored vectors with `a`.

    history: leaves `[m, *shape]`; a: leaves `[*shape]` or, for k right-hand
    sides at once, `[k, *shape]`. Returns `[m]` or `[m, k]`. One pass over the
    history, however many right-hand sides.
    """

    def leaf(h: jax.Array, x: jax.Array) -> jax.Array:
        kind = h.dtype if jnp.iscomplexobj(h) else accumulation_dtype(h.dtype)
        left = jnp.conj(h.reshape(h.shape[0], -1))
        if x.ndim == h.ndim:
            right = x.reshape(x.shape[0], -1).T
        else:
            right = x.reshape(-1)
        return jnp.matmul(left, right, precision=HIGHEST, preferred_element_type=kind)

    return _total(jax.tree.leaves(jax.tree.map(leaf, history, a)))


def columns_combine(weights: jax.Array, history: PyTree) -> PyTree:
    """`sum_i weights[i] * history[i]`: weights `[m]`, leaves `[m, *shape]` to `[*shape]`."""

    def leaf(h: jax.Array) -> jax.Array:
        kind = h.dtype if jnp.iscomplexobj(h) else accumulation_dtype(h.dtype)
        flat = jnp.matmul(
            weights.astype(h.dtype),
            h.reshape(h.shape[0], -1),
            precision=HIGHEST,
            preferred_element_type=kind,
        )
        return flat.reshape(h.shape[1:]).astype(h.dtype)

    return jax.tree.map(leaf, history)


def path_name(path: tuple) -> str:
    """A readable name of a leaf's place in its tree, such as `['w'][0]`."""
    return jax.tree_util.keystr(path) or "the root"


def check_same_structure(expected: PyTree, actual: PyTree, what: str) -> None:
    """Raise when two trees differ in structure, shapes or dtypes (never in device types).

    Raises:
      TypeError: naming `what`, the leaf's path, the shape and dtype seen and expected.
    """
    wanted = jax.tree.structure(expected)
    seen = jax.tree.structure(actual)
    if wanted != seen:
        raise TypeError(f"{what} must keep the tree structure: expected {wanted}, got {seen}.")
    pairs = zip(jax.tree_util.tree_leaves_with_path(expected), jax.tree.leaves(actual), strict=True)
    for (path, want), have in pairs:
        if want.shape != have.shape or want.dtype != have.dtype:
            raise TypeError(
                f"{what} must keep shapes and dtypes: at {path_name(path)} expected "
                f"{want.dtype}{list(want.shape)}, got {have.dtype}{list(have.shape)}. "
                "Cast or reshape the result inside the map, or change x0."
            )
