"""Equations at a solution as linear algebra wants them: pure, in float32 for an x of 16 bits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import hoist, machine_epsilon

PyTree = Any


class Residual(NamedTuple):
    """Equations with all constants hoisted: `pure(constants, x, *args)`.

    `wide`: for x in half precision the same, traced on float32; None elsewhere, and where the
    equations insist on their dtypes.
    """

    pure: Callable
    wide: Callable | None

    def __call__(self, x: PyTree, operands: tuple) -> PyTree:
        """The equations at x."""
        args, constants, _ = operands
        return self.pure(constants, x, *args)

    def at(self, x: PyTree, operands: tuple) -> tuple[Callable, PyTree]:
        """A function of x alone, and x, as precise as they can be had for linear algebra."""
        if self.wide is None:
            return (lambda y: self(y, operands)), x
        args, _, constants = operands
        wide = self.wide
        return (lambda y: wide(constants, y, *widened(args))), widened(x)


def hoisted(equations: Callable, x: PyTree, args: tuple) -> tuple[Residual, tuple]:
    """The equations as a `Residual`, and its operands."""
    pure, constants, _ = hoist(equations, x, *args)
    wide, others = None, []
    if _is_half(x):
        try:
            wide, others, shapes = hoist(equations, widened(x), *widened(args))
            trees.check_same_structure(widened(x), shapes, "equations in float32")
        except (TypeError, ValueError):  # strict promotion, or a cast inside the map
            wide, others = None, []
    return Residual(pure, wide), (args, constants, others)


def _is_half(x: PyTree) -> bool:
    return machine_epsilon(x) > 1e-5


def widened(tree: PyTree) -> PyTree:
    """The tree with its half precision leaves in float32."""
    def wide(leaf: Any) -> Any:
        half = jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.dtype.itemsize < 4
        return leaf.astype(jnp.float32) if half else leaf

    return jax.tree.map(wide, tree)


def like(tree: PyTree, other: PyTree) -> PyTree:
    """The tree in the dtypes of the other one."""
    return jax.tree.map(lambda leaf, known: leaf.astype(known.dtype), tree, other)
