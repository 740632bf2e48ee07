"""Proximal penalty: inner problems that are not convex or have many solutions, gradients only.

`psi_sigma(x) = (min_y (sigma outer + inner) - min_y inner) / sigma` nears the optimistic
objective as sigma falls; both minima are followed by proximal gradient steps around centres.

Source: Kwon, Kwon, Wright and Nowak, "On penalty methods for nonconvex bilevel optimization and
first-order stochastic approximation", 2024. Step sizes are ours.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.methods import PenaltyState, begin, both, oracle_calls, penalised_slope
from jaxiter.estimators import Oracle, storm
from jaxiter.known import check_positive, check_share
from jaxiter.process import Batches, Process

PyTree = Any


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
    check_positive(inner_steps=inner_steps, samples=samples)
    slopes, slope, follow, settle = _parts(
        outer, inner, sigma, rate, inner_rate, prox, mixing, project_x, project_y)

    def step(state: PenaltyState, key: jax.Array, *data: Batches) -> PenaltyState:
        x, centres, pairs = state.x, (state.y, state.z), both(*data)
        inner_key, outer_key = jax.random.split(key)

        def once(near: tuple, key: jax.Array) -> tuple[tuple, None]:
            return follow(near, centres, slopes((x, *near), pairs.draw(key))), None

        near, _ = lax.scan(once, centres, jax.random.split(inner_key, inner_steps))
        drawn = jax.vmap(lambda key: slope((x, *near), pairs.draw(key)))(
            jax.random.split(outer_key, samples))
        return settle(state, near, trees.mean_rows(drawn))

    spent = inner_steps + samples
    return Process(begin, step, calls=oracle_calls(2 * spent, spent))


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
    check_share(momentum=momentum)
    slopes, slope, follow, settle = _parts(
        outer, inner, sigma, rate, inner_rate, prox, mixing, project_x, project_y)
    estimator = storm(momentum)

    def oracles(x: PyTree, y: PyTree, *data: Batches) -> tuple[Oracle, Oracle]:
        pairs = (both(*data),)
        return Oracle((slopes,), pairs, ((y, y),)), Oracle((slope,), pairs, (x,))

    def init(start: tuple, *data: Batches) -> PenaltyState:
        x, y = start
        memories = [estimator.init(one, (x, y, y)) for one in oracles(x, y, *data)]
        return PenaltyState(x, y, y, jnp.int32(0), ((y, y), *memories))

    def step(state: PenaltyState, key: jax.Array, *data: Batches) -> PenaltyState:
        x, y, z, _, (near, of_near, of_x) = state
        nearby, beyond = oracles(x, y, *data)
        estimates, of_near = estimator.update(nearby, (x, *near), of_near, key)
        near = follow(near, (y, z), estimates)
        estimate, of_x = estimator.update(beyond, (x, *near), of_x, key)
        return settle(state, near, estimate, (near, of_near, of_x))

    return Process(init, step, calls=oracle_calls(8, 4))


def _parts(
    outer: Callable, inner: Callable, sigma: float, rate: float, inner_rate: float, prox: float,
    mixing: float, project_x: Callable, project_y: Callable,
) -> tuple:
    """What both loops do to x and to near, a pair of points near the centres (y, z).

    Slopes of the pair and of x, at `(x, *near)` on a pair of batches; then the steps of near, of
    the centres and of x.
    """
    check_positive(sigma=sigma, rate=rate, inner_rate=inner_rate, prox=prox)
    check_share(mixing=mixing)

    def slopes(point: tuple, batch: tuple) -> tuple:
        (x, y, z), (a, b) = point, batch
        up, down = jax.grad(outer, 1)(x, y, b), jax.grad(inner, 1)
        return trees.axpy(sigma, up, down(x, y, a)), down(x, z, a)

    def slope(point: tuple, batch: tuple) -> PyTree:
        return penalised_slope(outer, inner, 1 / sigma, *point, *batch)

    def follow(near: tuple, centres: tuple, slopes: tuple) -> tuple:
        slopes = trees.axpy(1 / prox, trees.subtract(near, centres), slopes)
        return tuple(map(project_y, trees.axpy(-inner_rate, slopes, near)))

    def settle(state: PenaltyState, near: tuple, slope: PyTree, memory: Any = ()) -> PenaltyState:
        x, y, z, k, _ = state
        y, z = trees.axpy(mixing, trees.subtract(near, (y, z)), (y, z))
        return PenaltyState(project_x(trees.axpy(-rate, slope, x)), y, z, k + 1, memory)

    return slopes, slope, follow, settle
