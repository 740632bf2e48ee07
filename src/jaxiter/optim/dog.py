"""Accelerated distance over gradients: A-DoG and U-DoG know neither L nor the distance.

Source: Kreisler, Ivgi, Hinder and Carmon, "Accelerated parameter-free stochastic optimization",
2024. A-DoG follows the authors' development version; the two accumulators of U-DoG, for which
the paper gives conditions only, are reconstructed.
"""

from collections.abc import Callable
from functools import reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.known import check_positive
from jaxiter.optim.transform import scalars, transformation

PyTree = Any
_FLOOR = 1e-4  # of the gradients' lengths: in the sums of squares 1e-8, as in DoG


class ADogState(NamedTuple):
    """Start, dual sequence w, average of the gradient steps, and the scalars of the source.

    length: root of the sum of squared gradients, which itself could overflow.
    """

    start: PyTree
    w: PyTree
    average: PyTree
    radius: jax.Array
    radii: jax.Array
    alpha: jax.Array
    weight: jax.Array
    length: jax.Array


def a_dog(
    initial_movement: Any = 1e-6, alpha_constant: Any = 0.5
) -> optax.GradientTransformationExtraArgs:
    """Accelerated gradient descent without a learning rate, one gradient per step.

    The parameters held in training are a probe; evaluate at `evaluation_params(state, params)`.

    Args:
      initial_movement: length of the first step relative to 1 + |x0|. Small is safe; 1e-2 saves
        steps in short trainings. alpha_constant: as in the source.

    Works with gradients reduced over devices; norms are of the whole tree.

    Raises:
      ValueError: initial_movement or alpha_constant not positive.

    >>> import jax.numpy as jnp, optax
    >>> optimizer, x = a_dog(1e-2), jnp.array([3.0, -1.0])
    >>> state = optimizer.init(x)
    >>> for _ in range(150):
    ...     updates, state = optimizer.update(x, state, x)
    ...     x = optax.apply_updates(x, updates)
    >>> bool(jnp.abs(x).max() < 0.1)
    True
    """
    check_positive(initial_movement=initial_movement, alpha_constant=alpha_constant)

    def init(params: PyTree) -> ADogState:
        radius = scalars(params, initial_movement)[0] * (1 + trees.norm(params))
        one = jnp.ones_like(radius)
        return ADogState(params, params, params, radius, radius, one, radius, _FLOOR * one)

    def update(g: PyTree, state: ADogState, x: PyTree, **_: Any) -> tuple[PyTree, ADogState]:
        start, w, average, radius, radii, alpha, weight, length = state
        length = jnp.hypot(length, alpha * trees.norm(g))
        eta = radius / length
        y = trees.axpy(-eta, g, x)
        w = trees.axpy(-alpha * eta, g, w)
        average = trees.axpy(alpha * radius / weight, trees.subtract(y, average), average)
        radius = jnp.maximum(radius, trees.quick_norm(trees.subtract(w, start)))
        radii = radii + radius
        alpha = jnp.maximum(1, scalars(g, alpha_constant)[0] * radii / radius)
        weight = weight + alpha * radius
        new = trees.axpy(1 / alpha, trees.subtract(w, y), y)
        return trees.subtract(new, x), ADogState(
            start, w, average, radius, radii, alpha, weight, length)

    return transformation("a_dog", init, update, ("params",))


class UDogState(NamedTuple):
    """Start, dual sequence y, the middle sequence's average, and the scalars of the source.

    largest: of the weighted gradients' lengths. length: root of the sum of squared changes.
    probing: the next gradient is wanted at the probe; else at the average.
    """

    start: PyTree
    x: PyTree
    y: PyTree
    average: PyTree
    probe_gradient: PyTree
    radius: jax.Array
    radii: jax.Array
    weight: jax.Array
    largest: jax.Array
    length: jax.Array
    probing: jax.Array


def u_dog(
    initial_movement: Any = 1e-6, project: Callable | None = None
) -> optax.GradientTransformationExtraArgs:
    """UniXGrad with distance over gradients: near optimal for smooth and for noisy problems.

    Two calls of `update` make one step: the parameters are always where the next gradient is
    wanted, the probe and the average in turn. Evaluate at `evaluation_params(state, params)`.

    Args:
      initial_movement: length of the first step relative to 1 + |x0|.
      project: onto the convex domain, a function of a tree like the parameters; default none.

    Raises:
      ValueError: initial_movement not positive.

    >>> import jax.numpy as jnp, optax
    >>> from jaxiter.optim import evaluation_params
    >>> optimizer, x = u_dog(1e-2), jnp.array([3.0, -1.0])
    >>> state = optimizer.init(x)
    >>> for _ in range(300):
    ...     updates, state = optimizer.update(x, state, x)
    ...     x = optax.apply_updates(x, updates)
    >>> bool(jnp.abs(evaluation_params(state, x)).max() < 0.01)
    True
    """
    check_positive(initial_movement=initial_movement)
    onto = (lambda x: x) if project is None else project

    def init(params: PyTree) -> UDogState:
        radius = scalars(params, initial_movement)[0] * (1 + trees.norm(params))
        zero = jnp.zeros_like(radius)
        # The first probe is the start itself.
        return UDogState(params, params, params, params, trees.zeros_like(params), radius, zero,
                         zero, zero, zero, jnp.bool_(True))

    def rate(alpha: jax.Array, radius: jax.Array, *lengths: jax.Array) -> jax.Array:
        return alpha * radius / reduce(jnp.hypot, lengths, jnp.full_like(radius, _FLOOR))

    def after_probe(g: PyTree, s: UDogState) -> tuple[PyTree, UDogState]:
        """The gradient m at the probe is here: move x, and ask for the gradient at the average."""
        radii = s.radii + s.radius
        alpha = radii / s.radius
        omega = alpha * s.radius
        largest = jnp.maximum(s.largest, alpha * trees.norm(g))
        x = onto(trees.axpy(-rate(alpha, s.radius, largest, s.length), g, s.y))
        weight = s.weight + omega
        average = trees.axpy(omega / weight, trees.subtract(x, s.average), s.average)
        return average, s._replace(x=x, average=average, probe_gradient=g, radii=radii,
                                   weight=weight, largest=largest)

    def after_average(g: PyTree, s: UDogState) -> tuple[PyTree, UDogState]:
        """The gradient at the average is here: move y, and ask for one at the next probe."""
        alpha = s.radii / s.radius
        length = jnp.hypot(s.length, alpha * trees.norm(trees.subtract(g, s.probe_gradient)))
        y = onto(trees.axpy(-rate(alpha, s.radius, s.largest, length), g, s.y))
        radius = jnp.maximum(s.radius, jnp.maximum(trees.norm(trees.subtract(s.x, s.start)),
                                                   trees.norm(trees.subtract(y, s.start))))
        omega = s.radii + radius  # alpha times the radius of the next step
        probe = trees.axpy(omega / (s.weight + omega), trees.subtract(y, s.average), s.average)
        return probe, s._replace(y=y, radius=radius, length=length)

    def update(g: PyTree, state: UDogState, params: PyTree, **_: Any) -> tuple[PyTree, UDogState]:
        target, new = jax.lax.cond(state.probing, after_probe, after_average, g, state)
        return trees.subtract(target, params), new._replace(probing=~state.probing)

    return transformation("u_dog", init, update, ("params",))
