"""A while loop whose scalars travel together."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax

PyTree = Any


def while_loop(going: Callable, body: Callable, state: PyTree) -> PyTree:
    """`lax.while_loop`, which carries all scalars of the state as one vector of words.

    On CPUs XLA compiles a kernel for every scalar that a loop carries: packed, a solve
    compiles a third faster and runs the same.
    """
    leaves, structure = jax.tree.flatten(state)
    small = [index for index, leaf in enumerate(leaves) if _is_word(leaf)]
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


def _is_word(leaf: jax.Array) -> bool:
    kinds = (np.float32, np.int32, np.uint32, np.bool_)
    return leaf.ndim == 0 and any(leaf.dtype == kind for kind in kinds)


def _to_word(leaf: jax.Array) -> jax.Array:
    if leaf.dtype == np.bool_:
        word = lax.convert_element_type(leaf, np.int32)
    else:
        word = lax.bitcast_convert_type(leaf, np.int32)
    return lax.reshape(word, (1,))


def _joined(parts: list[jax.Array]) -> jax.Array:
    """The parts one after the other, by pads: unlike what is concatenated, all in one kernel."""
    if len(parts) == 1:
        return parts[0]
    left, right = _joined(parts[:len(parts) // 2]), _joined(parts[len(parts) // 2:])
    return lax.bitwise_or(lax.pad(left, np.int32(0), [(0, right.shape[0], 0)]),
                          lax.pad(right, np.int32(0), [(left.shape[0], 0, 0)]))


def _from_word(word: jax.Array, dtype: Any) -> jax.Array:
    return word != 0 if dtype == np.bool_ else lax.bitcast_convert_type(word, dtype)
