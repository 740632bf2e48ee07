"""Small numbers that travel together: through a while loop, and out of a compiled program."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

from jaxiter.numerics import is_concrete

PyTree = Any

#: Arrays of up to so many numbers leave a program as part of one vector.
SMALL = 64


def while_loop(going: Callable, body: Callable, state: PyTree) -> PyTree:
    """`lax.while_loop`, which carries all scalars of the state as one vector of words.

    On CPUs XLA compiles a kernel for every scalar that a loop carries: packed, a solve
    compiles a third faster and runs the same.
    """
    leaves, structure = jax.tree.flatten(state)
    small = [index for index, leaf in enumerate(leaves) if leaf.ndim == 0 and _is_word(leaf)]
    if len(small) < 2:
        return lax.while_loop(going, body, state)

    def pack(state: PyTree) -> tuple:
        leaves = jax.tree.leaves(state)
        words = [_to_word(leaves[index]) for index in small]
        return _joined(words), [x for i, x in enumerate(leaves) if i not in small]

    def unpack(carry: tuple) -> PyTree:
        words, rest = carry[0], iter(carry[1])
        full = [_from_word(words[small.index(i)], leaf.dtype) if i in small else next(rest)
                for i, leaf in enumerate(leaves)]
        return jax.tree.unflatten(structure, full)

    return unpack(lax.while_loop(
        lambda carry: going(unpack(carry)), lambda carry: pack(body(unpack(carry))), pack(state)))


@jax.tree_util.register_pytree_with_keys_class
class Packed:
    """A tree that leaves a compiled program as one vector of words, and what is large by itself.

    It reads like the tree: `packed.x` is the tree's x. Every array that leaves a program costs
    about a microsecond, whatever its size, and the state of a small solve is dozens of numbers.
    As a pytree, its leaves are those few arrays; a batch has its axis in front, as everywhere.
    """

    def __init__(self, tree: PyTree) -> None:
        leaves, structure = jax.tree.flatten(tree)
        small = [leaf.size <= SMALL and _is_word(leaf) and _whole(leaf) for leaf in leaves]
        self._layout = structure, tuple(
            (leaf.dtype, leaf.shape) if own else None
            for leaf, own in zip(leaves, small, strict=True))
        self._words = _joined([
            _to_word(leaf) for leaf, own in zip(leaves, small, strict=True) if own])
        self._rest = [leaf for leaf, own in zip(leaves, small, strict=True) if not own]
        self._tree = tree

    @property
    def tree(self) -> PyTree:
        """What was packed."""
        if self._tree is not None:
            return self._tree
        if not is_concrete(self._words, self._rest):
            return _unpacked(self._layout, self._words, self._rest)
        self._tree = _at_once(self._layout, self._words, self._rest)
        return self._tree

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in ("_layout", "_words", "_rest", "_tree"):
            raise AttributeError(name)
        return getattr(self.tree, name)

    def __repr__(self) -> str:
        return repr(self.tree)

    def __reduce__(self) -> tuple:
        return Packed, (self.tree,)

    def tree_flatten(self) -> tuple:
        """The leaves, and where what stands in them."""
        return (self._words, self._rest), self._layout

    def tree_flatten_with_keys(self) -> tuple:
        """The same, with names for savers."""
        words, rest = map(jax.tree_util.GetAttrKey, ("words", "rest"))
        return ((words, self._words), (rest, self._rest)), self._layout

    @classmethod
    def tree_unflatten(cls, layout: tuple, children: tuple) -> "Packed":
        """The same of other arrays, whatever they are."""
        packed = object.__new__(cls)
        packed._layout, packed._tree = layout, None
        packed._words, packed._rest = children
        return packed


def unpacked(tree: PyTree) -> PyTree:
    """The tree itself."""
    return tree.tree if isinstance(tree, Packed) else tree


def _unpacked(layout: tuple, words: Any, rest: list) -> PyTree:
    structure, places = layout
    leaves, others, start = [], iter(rest), 0
    for place in places:
        if place is None:
            leaves.append(next(others))
            continue
        dtype, shape = place
        size = int(np.prod(shape))
        part = words[..., start:start + size]
        leaves.append(_from_word(part, dtype).reshape(part.shape[:-1] + shape))
        start += size
    return jax.tree.unflatten(structure, leaves)


_at_once = jax.jit(_unpacked, static_argnums=0)


def _is_word(leaf: jax.Array) -> bool:
    """Whether its numbers have 32 bits, or one."""
    return any(leaf.dtype == kind for kind in (np.float32, np.int32, np.uint32, np.bool_))


def _whole(leaf: jax.Array) -> bool:
    """Whether a leaf is not laid out over an explicit mesh, where parts may not be joined."""
    return all(axis is None for axis in jax.typeof(leaf).sharding.spec)


def _to_word(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == np.bool_:
        word = lax.convert_element_type(leaf, np.int32)
    else:
        word = lax.bitcast_convert_type(leaf, np.int32)
    return lax.reshape(word, (leaf.size,))


def _joined(parts: list[jax.Array]) -> jax.Array:
    """The parts one after the other, by pads: unlike what is concatenated, all in one kernel."""
    if len(parts) < 2:
        return parts[0] if parts else lax.full((0,), 0, np.int32)
    left, right = _joined(parts[:len(parts) // 2]), _joined(parts[len(parts) // 2:])
    return lax.bitwise_or(lax.pad(left, np.int32(0), [(0, right.shape[0], 0)]),
                          lax.pad(right, np.int32(0), [(left.shape[0], 0, 0)]))


def _from_word(word: jax.Array, dtype: Any) -> jax.Array:
    return word != 0 if dtype == np.bool_ else lax.bitcast_convert_type(word, dtype)
