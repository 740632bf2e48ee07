"""Complex momentum: one momentum between descent and rotation, for games.

Source: Lorraine, Acuna, Vicol and Duvenaud, "Complex momentum for optimization in games", 2022.
"""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.known import check_fraction
from jaxiter.optim.transform import scalars, transformation

PyTree = Any


class ComplexMomentumState(NamedTuple):
    """Real and imaginary parts of the momentum buffer."""

    real: PyTree
    imaginary: PyTree


def trace_complex(
    decay: Any = 0.8, angle: Any = math.pi / 8
) -> optax.GradientTransformationExtraArgs:
    """`m <- b m + g` with `b = decay exp(i angle)`; the update is the real part of m.

    Chain with `optax.scale(-learning_rate)`. Two real buffers, no complex numbers: it runs where
    there are none. Angle 0 is `optax.trace`; bilinear games, where that diverges, converge from
    about pi / 16.

    Raises:
      ValueError: decay outside [0, 1).

    >>> import jax.numpy as jnp
    >>> momentum = trace_complex(0.5, math.pi / 2)  # b = i / 2
    >>> state = momentum.init(jnp.float32(0))
    >>> for _ in range(3):
    ...     update, state = momentum.update(jnp.float32(1), state)
    >>> round(float(update), 4)  # 1 + b + b^2
    0.75
    """
    check_fraction(decay=decay)

    def init(params: PyTree) -> ComplexMomentumState:
        zeros = trees.zeros_like(params)
        return ComplexMomentumState(zeros, zeros)

    def update(
        updates: PyTree, state: ComplexMomentumState, params: PyTree, **_: Any
    ) -> tuple[PyTree, ComplexMomentumState]:
        del params
        length, turn = scalars(updates, decay, angle)
        real, imaginary = length * jnp.cos(turn), length * jnp.sin(turn)
        rotated = trees.axpy(-imaginary, state.imaginary, trees.scale(real, state.real))
        new_real = trees.add(updates, rotated)
        new_imaginary = trees.axpy(imaginary, state.real, trees.scale(real, state.imaginary))
        return new_real, ComplexMomentumState(new_real, new_imaginary)

    return transformation("trace_complex", init, update)
