"""Vector-space algebra on pytrees, norms included, as the core uses it.

All reductions accumulate in at least float32, whatever the leaves are. Written in
`lax`: these few functions are traced hundreds of times, and `jnp` costs twice as much. The longer
ones are under `jit`, so that each is traced once for all trees of a shape; XLA inlines them.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter.numerics import accumulation_dtype, if_needed, is_array

PyTree = Any


def add(a: PyTree, b: PyTree) -> PyTree:
    """`a + b` leaf by leaf."""
    return jax.tree.map(lax.add, a, b)


def subtract(a: PyTree, b: PyTree) -> PyTree:
    """`a - b` leaf by leaf."""
    return jax.tree.map(lax.sub, a, b)


def negative(a: PyTree) -> PyTree:
    """`-a` leaf by leaf."""
    return jax.tree.map(lax.neg, a)


def scale(factor: Any, a: PyTree) -> PyTree:
    """`factor * a`, in each leaf's dtype; half precision, in which a factor may overflow or be a
    hundredth off where the product is neither, by way of float32.
    """
    def scaled(leaf: jax.Array) -> jax.Array:
        dtype = jnp.float32 if leaf.dtype in (jnp.float16, jnp.bfloat16) else leaf.dtype
        product = lax.mul(lax.convert_element_type(factor, dtype),
                          lax.convert_element_type(leaf, dtype))
        return lax.convert_element_type(product, leaf.dtype)

    return jax.tree.map(scaled, a)


def axpy(factor: Any, a: PyTree, b: PyTree) -> PyTree:
    """`factor * a + b`; the dtype of b is kept."""
    return jax.tree.map(
        lambda x, y: lax.add(lax.mul(lax.convert_element_type(factor, y.dtype), x), y), a, b)


def where(predicate: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """`a` where the scalar predicate holds, else `b`."""
    return jax.tree.map(lambda x, y: lax.select(predicate, x, y), a, b)


def zeros_like(a: PyTree) -> PyTree:
    """A tree of zeros with the shapes and dtypes of `a`."""
    return jax.tree.map(jnp.zeros_like, a)


def probe_like(a: PyTree) -> PyTree:
    """Random signs times random sizes, the same every time: orthogonal to nothing that occurs.

    Computed where it is used: a constant would be as large as x in the compiled program.
    """
    leaves, treedef = jax.tree.flatten(a)

    def entries(x: jax.Array, seed: int) -> jax.Array:
        bits = lax.iota(jnp.uint32, max(x.size, 1))[:x.size] + jnp.uint32(seed * 7919 + 1)
        for factor, shift in ((0x7FEB352D, 15), (0x846CA68B, 16)):  # a hash of the index
            bits = (bits ^ (bits >> 16)) * jnp.uint32(factor)
            bits = bits ^ (bits >> shift)
        size = 0.5 + (bits >> 8).astype(jnp.float32) / 2**24
        return jnp.where(bits & 1 == 1, size, -size).astype(x.dtype).reshape(x.shape)

    return jax.tree.unflatten(treedef, [entries(x, seed) for seed, x in enumerate(leaves)])


def full_like(a: PyTree, value: Any) -> PyTree:
    """A tree filled with `value`."""
    return jax.tree.map(lambda leaf: jnp.full_like(leaf, value), a)


def total(parts: list[jax.Array], combine: Callable = jnp.add) -> jax.Array:
    """Combine the leaves' results in the widest of their dtypes (a tree may mix precisions)."""
    kind = _widest([part.dtype for part in parts])
    if not parts:
        return jnp.zeros((), kind)
    return reduce(combine, [part.astype(kind) for part in parts])


def _widest(kinds: list) -> np.dtype:
    """The widest of dtypes of at least float32, whatever jax's promotion rules; float32 of none."""
    return np.result_type(np.float32, *kinds)


def _sum(x: jax.Array) -> jax.Array:
    return lax.reduce_sum(x, axes=tuple(range(x.ndim)))


def dot(a: PyTree, b: PyTree) -> jax.Array:
    """The inner product `sum(conj(a) * b)`, a scalar (complex when the leaves are)."""

    def leaf_dot(x: jax.Array, y: jax.Array) -> jax.Array:
        kind = accumulation_dtype(x.dtype)
        if jnp.iscomplexobj(x):
            return _sum(lax.mul(lax.conj(x), y))
        x, y = lax.convert_element_type(x, kind), lax.convert_element_type(y, kind)
        return _sum(lax.mul(x, y))

    return total(jax.tree.leaves(jax.tree.map(leaf_dot, a, b)))


def squared_norm(a: PyTree) -> jax.Array:
    """The sum of squared magnitudes, a real scalar; it may under- or overflow."""

    def leaf(x: jax.Array) -> jax.Array:
        kind = accumulation_dtype(x.dtype)
        if jnp.iscomplexobj(x):
            return _sum(lax.square(lax.real(x))) + _sum(lax.square(lax.imag(x)))
        return _sum(lax.square(lax.convert_element_type(x, kind)))

    return total([leaf(x) for x in jax.tree.leaves(a)])


@jax.jit
def max_norm(a: PyTree) -> jax.Array:
    """The largest magnitude of any entry, a real scalar; NaN when some entry is not finite.

    That NaN is added by hand: across devices a maximum may drop it.
    """
    return _peak(a) + zero_if_finite(a)


def norm_dtype(a: PyTree) -> Any:
    """The dtype of `norm(a)`, without computing it; float32 for an empty tree."""
    return _widest([accumulation_dtype(leaf.dtype) for leaf in jax.tree.leaves(a)])


@jax.jit
def zero_if_finite(a: PyTree) -> jax.Array:
    """0, or NaN when some entry is not finite."""
    return jnp.where(finite(a), 0.0, jnp.nan).astype(norm_dtype(a))


def finite(a: PyTree) -> jax.Array:
    """Whether every entry is finite.

    By "and", which vectorises where a sum of floats must keep its order.
    """
    parts = [part for leaf in jax.tree.leaves(a)
             for part in ((leaf.real, leaf.imag) if jnp.iscomplexobj(leaf) else (leaf,))]
    flags = [lax.reduce_and(lax.is_finite(part), axes=tuple(range(part.ndim))) for part in parts]
    return reduce(lax.bitwise_and, flags, jnp.bool_(True))


def quick_norm(a: PyTree) -> jax.Array:
    """The l2 norm in one pass, for hot loops over vectors of about unit size.

    Below the safe range of the sum of squares (3e-16 in float32, 1e-146 in
    float64) it returns that bound: too large, never a false zero.
    """
    total = squared_norm(a)
    info = jnp.finfo(total.dtype)
    return lax.sqrt(lax.max(total, lax.full_like(total, info.tiny / info.eps)))


def _in_safe_range(norm: jax.Array) -> jax.Array:
    """Whether what is one epsilon smaller than `norm` still has a square, and `norm` has one."""
    info = jnp.finfo(norm.dtype)
    lowest = 10 * float(info.tiny) ** 0.5 / float(info.eps)
    return lax.gt(norm, lax.full_like(norm, lowest)) & lax.lt(norm, lax.full_like(norm, jnp.inf))


def safe_norms(vectors: Callable[..., tuple], *operands: PyTree) -> list[jax.Array]:
    """The l2 norms of `vectors(*operands)`, for hot loops: plain sums where those are safe.

    Where the sum of squares leaves the float range, `norms` takes them again: a loop of no round
    or one, which costs the usual solve next to nothing, also under vmap.
    """
    quick = [lax.sqrt(squared_norm(vector)) for vector in vectors(*operands)]
    inside = _in_safe_range(reduce(jnp.maximum, quick))
    return if_needed(~inside, lambda *given: norms(*vectors(*given)), operands, quick, quick)


@jax.jit
def norms(*vectors: PyTree) -> list[jax.Array]:
    """l2 norms as by `norm`, in units of the largest entry of them all."""
    peak = reduce(jnp.maximum, [_peak(vector) for vector in vectors])
    unit = _unit(peak)
    return [jnp.sqrt(squared_norm(divide(vector, unit))) * unit for vector in vectors]


def _peak(a: PyTree) -> jax.Array:
    kind = norm_dtype(a)
    peaks = [jnp.max(jnp.abs(x), initial=0.0).astype(kind) for x in jax.tree.leaves(a)]
    return total(peaks, jnp.maximum)


def divide(a: PyTree, unit: jax.Array) -> PyTree:
    """`a / unit`, in at least the precision of the unit."""

    def leaf(x: jax.Array) -> jax.Array:
        wide = x if jnp.iscomplexobj(x) else x.astype(unit.dtype)
        return wide / unit.astype(wide.dtype)

    return jax.tree.map(leaf, a)


@jax.jit
def magnitude(a: PyTree) -> jax.Array:
    """The largest entry's magnitude where that can be divided by, else 1 (0, inf, NaN).

    Across devices a NaN may go unnoticed here, which only changes the unit.
    """
    return _unit(_peak(a))


def _unit(peak: jax.Array) -> jax.Array:
    # Capped so that its reciprocal is a normal number: processors flush the others to zero.
    cap = 0.25 / jnp.finfo(peak.dtype).tiny
    return jnp.where((peak > 0) & (peak < jnp.inf), jnp.minimum(peak, cap), 1)


@jax.jit
def norm(a: PyTree) -> jax.Array:
    """The l2 norm of the flattened tree, a real scalar of at least float32.

    Two passes, the second over entries divided by the largest one, so that the
    sum of squares neither under- nor overflows. NaN when some entry is not finite. Its derivative
    at 0 is 0.
    """
    unit = lax.stop_gradient(magnitude(a))
    total = squared_norm(divide(a, unit))
    zero = total == 0
    return jnp.where(zero, 0, jnp.sqrt(jnp.where(zero, 1, total))) * unit


def into_ball(radius: Any, a: PyTree) -> PyTree:
    """`a`, shortened to length `radius` where it is longer."""
    length = norm(a)
    return scale(jnp.where(length > radius, radius / length, 1.0), a)


def unshared(tree: PyTree, other: PyTree) -> PyTree:
    """The tree, with copies of the arrays that it holds twice or shares with the other.

    A buffer can be donated to a compiled function only once.
    """
    seen = {id(leaf) for leaf in jax.tree.leaves(other)}

    def own(leaf: Any) -> Any:
        if id(leaf) in seen and is_array(leaf):
            return jnp.copy(leaf)
        seen.add(id(leaf))
        return leaf

    return jax.tree.map(own, tree)


def path_name(path: tuple) -> str:
    """A readable name of a leaf's place in its tree, such as `['w'][0]`."""
    return jax.tree_util.keystr(path) or "the root"


def at(tree: PyTree, index: Any) -> PyTree:
    """The rows of every leaf at an index, a slice or an array of indices."""
    return jax.tree.map(lambda leaf: leaf[index], tree)


def first(tree: PyTree) -> PyTree:
    """The first row of every leaf."""
    return at(tree, 0)


def prepend(first: PyTree, rows: PyTree) -> PyTree:
    """One row, then the others."""
    return jax.tree.map(lambda one, leaf: jnp.concatenate([one[None], leaf]), first, rows)


def before(rows: PyTree, first: PyTree = None) -> PyTree:
    """What stands one row before each: `first`, or zeros, and all rows but the last."""
    if first is None:
        first = jax.tree.map(lambda leaf: jnp.zeros_like(leaf[0]), rows)
    return prepend(first, at(rows, slice(-1)))


def iterates(step: Callable, start: PyTree, at: PyTree = None, **options: Any) -> PyTree:
    """All states `x <- step(x, at[t])` after the start, as rows; the options are `lax.scan`'s."""
    def move(x: PyTree, at: PyTree) -> tuple[PyTree, PyTree]:
        new = step(x, at)
        return new, new

    return lax.scan(move, start, at, **options)[1]


def mean_rows(tree: PyTree) -> PyTree:
    """The mean over the rows of every leaf."""
    return jax.tree.map(lambda leaf: jnp.mean(leaf, 0), tree)


def spread(numbers: jax.Array, like: jax.Array) -> jax.Array:
    """One number per row, `[n]`, in a shape that meets arrays like `like`, `[n, ...]`."""
    return numbers.reshape(numbers.shape + (1,) * (like.ndim - 1))


def where_rows(mask: jax.Array, a: PyTree, b: PyTree) -> PyTree:
    """The rows of `a` in the mask, `[n]`, and those of `b` elsewhere."""
    return jax.tree.map(lambda x, y: jnp.where(spread(mask, x), x, y), a, b)


def finite_rows(tree: PyTree) -> jax.Array:
    """Which rows are finite, `[n]`; integers are."""
    flags = [jnp.all(jnp.isfinite(leaf).reshape(leaf.shape[0], -1), axis=1)
             for leaf in jax.tree.leaves(tree)]
    return jnp.all(jnp.stack(flags), axis=0)


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
