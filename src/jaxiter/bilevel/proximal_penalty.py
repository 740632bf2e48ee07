"""Proximal penalty: inner problems that are not convex or have many solutions, gradients only.

`psi_sigma(x) = (min_y (sigma outer + inner) - min_y inner) / sigma` nears the optimistic
objective as sigma falls; both minima are followed by proximal gradient steps around centres.

Source: Kwon, Kwon, Wright and Nowak, "On penalty methods for nonconvex bilevel optimization and
first-order stochastic approximation", 2024. Step sizes are ours.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.hypergradient import oracle_calls
from jaxiter.bilevel.methods import penalty_slope, storm
from jaxiter.numerics import check_positive, check_share
from jaxiter.process import Batches, Process

PyTree = Any


class PenaltyState(NamedTuple):
    """x; y near argmin sigma outer + inner and z near argmin inner: the proximal centres."""

    x: PyTree
    y: PyTree
    z: PyTree


def _unchanged(point: PyTree) -> PyTree:
    return point


def proximal_penalty(
    outer: Callable, inner: Callable, *, sigma: float = 0.1, rate: float, inner_rate: float,
    prox: float = 1.0, mixing: float = 0.5, inner_steps: int = 10, samples: int = 1,
    project_x: Callable = _unchanged, project_y: Callable = _unchanged,
) -> Process:
    """The double loop: T proximal steps around each centre, then the centres and x move.

    Args:
      outer, inner: `(x, y, batch) -> scalar`; inner may have many minimisers.
      sigma: the penalty's inverse: the bias is O(sigma), the noise of x is O(1 / sigma).
      rate: of x, well below `mixing`. inner_rate: about 1 / (2 (L + 1 / prox)).
      prox: at most 1 / (4 L) where inner is not convex. mixing: of the centres, in (0, 1].
      samples: batches averaged for a step of x.
      project_x, project_y: onto their domains; default none.

    Raises:
      ValueError: numbers that are not positive, mixing above 1.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter.bilevel import run
    >>> method = proximal_penalty(
    ...     lambda x, y, _: ((x - y[1]) ** 2 + (y[0] - 1) ** 2) / 2,
    ...     lambda x, y, _: (y[0] - x) ** 2 / 2, rate=0.05, inner_rate=0.3)
    >>> state = run(method, jnp.float32(3), jnp.zeros(2),
    ...             max_steps=1000, key=jax.random.key(0)).state
    >>> round(float(state.x), 3)
    1.0
    """
    _check(sigma, rate, inner_rate, prox, mixing)
    check_positive(inner_steps=inner_steps, samples=samples)

    def init(start: tuple, *data: Batches) -> PenaltyState:
        x, y = start
        return PenaltyState(x, y, y)

    def step(
        state: PenaltyState, key: jax.Array, inner_data: Batches, outer_data: Batches
    ) -> PenaltyState:
        x, y, z = state
        inner_key, outer_key = jax.random.split(key)

        def follow(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            near_y, near_z = carry
            a, b = inner_data.draw(key), outer_data.draw(jax.random.fold_in(key, 1))
            dy = trees.axpy(sigma, jax.grad(outer, 1)(x, near_y, b), jax.grad(inner, 1)(
                x, near_y, a))
            dz = jax.grad(inner, 1)(x, near_z, a)
            dy = trees.axpy(1 / prox, trees.subtract(near_y, y), dy)
            dz = trees.axpy(1 / prox, trees.subtract(near_z, z), dz)
            return (project_y(trees.axpy(-inner_rate, dy, near_y)),
                    project_y(trees.axpy(-inner_rate, dz, near_z))), None

        (near_y, near_z), _ = lax.scan(follow, (y, z), jax.random.split(inner_key, inner_steps))

        def slope(key: jax.Array) -> PyTree:
            a, b = inner_data.draw(key), outer_data.draw(jax.random.fold_in(key, 1))
            gap = penalty_slope(inner, x, near_y, near_z, a)
            return trees.axpy(1 / sigma, gap, jax.grad(outer, 0)(x, near_y, b))

        slopes = jax.vmap(slope)(jax.random.split(outer_key, samples))
        mean = jax.tree.map(lambda leaf: leaf.mean(0), slopes)
        y = trees.axpy(mixing, trees.subtract(near_y, y), y)
        z = trees.axpy(mixing, trees.subtract(near_z, z), z)
        return PenaltyState(project_x(trees.axpy(-rate, mean, x)), y, z)

    spent = inner_steps + samples
    return Process(init, step, calls=oracle_calls(2 * spent, spent))


class SinglePenaltyState(NamedTuple):
    """x, the centres y and z, the inner iterates near them, and the STORM estimates."""

    x: PyTree
    y: PyTree
    z: PyTree
    near: tuple
    before: tuple
    estimates: tuple
    k: jax.Array


def proximal_penalty_single(
    outer: Callable, inner: Callable, *, sigma: float = 0.1, rate: float, inner_rate: float,
    prox: float = 1.0, mixing: float = 0.5, momentum: float = 0.05,
    project_x: Callable = _unchanged, project_y: Callable = _unchanged,
) -> Process:
    """The single loop: one proximal step per step of x, every gradient a STORM estimate.

    Args:
      momentum: weight of a new gradient in its estimate, in (0, 1].
      The rest as in `proximal_penalty`; `rate` smaller.

    Raises:
      ValueError: numbers that are not positive, mixing or momentum above 1.
    """
    _check(sigma, rate, inner_rate, prox, mixing)
    check_share(momentum=momentum)

    def init(start: tuple, *data: Batches) -> SinglePenaltyState:
        x, y = start
        zero, flat = trees.zeros_like(y), trees.zeros_like(x)
        return SinglePenaltyState(x, y, y, (y, y), (x, y, y), (zero, zero, flat), jnp.int32(0))

    def step(
        state: SinglePenaltyState, key: jax.Array, inner_data: Batches, outer_data: Batches
    ) -> SinglePenaltyState:
        x, y, z, (near_y, near_z), before, (hy, hz, hx), k = state
        a, b = inner_data.draw(key), outer_data.draw(jax.random.fold_in(key, 1))
        weight = jnp.where(k == 0, 1.0, momentum)

        def slopes(x: PyTree, near_y: PyTree, near_z: PyTree) -> tuple:
            dy = trees.axpy(sigma, jax.grad(outer, 1)(x, near_y, b),
                            jax.grad(inner, 1)(x, near_y, a))
            return dy, jax.grad(inner, 1)(x, near_z, a)

        def slope(x: PyTree, near_y: PyTree, near_z: PyTree) -> PyTree:
            gap = penalty_slope(inner, x, near_y, near_z, a)
            return trees.axpy(1 / sigma, gap, jax.grad(outer, 0)(x, near_y, b))

        hy, hz = storm(weight, slopes(x, near_y, near_z), slopes(*before), (hy, hz))
        dy = trees.axpy(1 / prox, trees.subtract(near_y, y), hy)
        dz = trees.axpy(1 / prox, trees.subtract(near_z, z), hz)
        new_y = project_y(trees.axpy(-inner_rate, dy, near_y))
        new_z = project_y(trees.axpy(-inner_rate, dz, near_z))
        hx = storm(weight, slope(x, new_y, new_z), slope(before[0], near_y, near_z), hx)
        y = trees.axpy(mixing, trees.subtract(new_y, y), y)
        z = trees.axpy(mixing, trees.subtract(new_z, z), z)
        return SinglePenaltyState(
            project_x(trees.axpy(-rate, hx, x)), y, z, (new_y, new_z), (x, near_y, near_z),
            (hy, hz, hx), k + 1)

    return Process(init, step, calls=oracle_calls(8, 4))


def _check(sigma: float, rate: float, inner_rate: float, prox: float, mixing: float) -> None:
    check_positive(sigma=sigma, rate=rate, inner_rate=inner_rate, prox=prox)
    check_share(mixing=mixing)
