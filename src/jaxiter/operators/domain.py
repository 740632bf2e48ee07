"""What the domain of an operator asks of its numbers and points.

A number out of it raises where it is known and becomes NaN where it is traced, which a solve
reports as NONFINITE.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.known import check_not_negative, check_positive

PyTree = Any


def positive(name: str, number: Any, dtype: Any) -> jax.Array:
    """The number in that dtype, NaN where it is not positive."""
    check_positive(**{name: number})
    _check_floating(name, dtype)
    number = jnp.asarray(number, dtype)
    return jnp.where(number > 0, number, jnp.nan)


def not_negative(name: str, number: Any, dtype: Any) -> jax.Array:
    """The number in that dtype, NaN where it is negative."""
    check_not_negative(**{name: number})
    _check_floating(name, dtype)
    number = jnp.asarray(number, dtype)
    return jnp.where(number >= 0, number, jnp.nan)


def _check_floating(name: str, dtype: Any) -> None:
    if not jnp.issubdtype(dtype, jnp.inexact):
        raise TypeError(f"arrays beside {name} must be floating point, got {jnp.dtype(dtype)}.")


def real(name: str, v: PyTree) -> PyTree:
    """The tree itself.

    Raises:
      TypeError: a complex leaf.
    """
    if any(jnp.iscomplexobj(leaf) for leaf in jax.tree.leaves(v)):
        raise TypeError(f"{name} needs real arrays: complex numbers have no order.")
    return v


def lengths(v: jax.Array) -> jax.Array:
    """The l2 norm along the last axis, which is kept; its derivative at 0 is 0."""
    return jnp.vectorize(trees.norm, signature="(n)->()")(v)[..., None].astype(
        jnp.finfo(v.dtype).dtype)
