"""Penalty methods: bilevel optimisation by gradients alone.

y follows argmin outer + penalty inner, z follows argmin inner, and x the difference of both values:
F2SA and F3SA for inner problems that are strongly convex, the proximal penalty for those that are
not convex or have many solutions.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.methods import both, oracle_calls
from jaxiter.estimators import Oracle, storm
from jaxiter.known import check_positive, check_share
from jaxiter.process import Batches, Process

PyTree = Any


class PenaltyState(NamedTuple):
    """x; y near argmin outer + penalty inner; z near argmin inner; k steps made; memories."""

    x: PyTree
    y: PyTree
    z: PyTree
    k: jax.Array
    memory: PyTree = ()


def begin(start: tuple, *data: Batches) -> PenaltyState:
    """All of y at its start."""
    x, y = start
    return PenaltyState(x, y, y, jnp.int32(0))


def slopes_near(outer: Callable, inner: Callable, point: tuple, batch: tuple) -> tuple:
    """grad_y of inner at (x, z), of outer and of inner at (x, y)."""
    (x, y, z), (a, b) = point, batch
    down = jax.grad(inner, 1)
    return down(x, z, a), jax.grad(outer, 1)(x, y, b), down(x, y, a)


def slopes_of_x(outer: Callable, inner: Callable, point: tuple, batch: tuple) -> tuple:
    """grad_x of `outer(x, y)` and of `inner(x, y) - inner(x, z)`.

    On one batch the noise of the difference cancels.
    """
    (x, y, z), (a, b) = point, batch
    gap = jax.grad(lambda x: inner(x, y, a) - inner(x, z, a))(x)
    return jax.grad(outer, 0)(x, y, b), gap


def _rates(
    inner_rate: float, penalty_rate: float, outer_factor: float, exponents: tuple[float, float],
    offset: int, largest_penalty: float,
) -> Callable:
    """`k -> (rate of y, rate of z, penalty)`."""
    slow, fast = exponents
    check_positive(inner_rate=inner_rate, penalty_rate=penalty_rate, outer_factor=outer_factor,
                   largest_penalty=largest_penalty)
    if slow < fast:
        raise ValueError(f"exponents {exponents} would make the penalty fall: give a >= c.")

    def rates(k: jax.Array) -> tuple:
        age = (k + offset).astype(jnp.float32)
        gamma = inner_rate * age**-fast
        lam = jnp.minimum(gamma / (2 * penalty_rate * age**-slow), largest_penalty)
        return gamma / (2 * lam), gamma, lam

    return rates


def f2sa(
    outer: Callable, inner: Callable, *, inner_rate: float, penalty_rate: float,
    outer_factor: float = 1.0, inner_steps: int = 10, exponents: tuple[float, float] = (1 / 3, 0.0),
    offset: int = 1, largest_penalty: float = 1e3,
) -> Process:
    """F2SA: gradients only. y follows `outer + lam inner`, z follows inner, lam grows slowly.

    With rates `a_k = penalty_rate (k + offset)^-a` and `g_k = inner_rate (k + offset)^-c` of
    exponents (a, c), the penalty is `lam_k = g_k / (2 a_k)`, z moves by g_k, y by a_k and x by
    `outer_factor a_k`. The bias of the hypergradient is O(1 / lam).

    Args:
      outer, inner: `(x, y, batch) -> scalar`; inner strongly convex in y.
      inner_rate, penalty_rate: at most 1 / (4 L) of inner and 1 / (8 L) of outer.
      exponents: (1/3, 0) without noise, (3/5, 2/5) with noise in outer, (5/7, 4/7) in both; (0, 0)
        keeps the penalty constant (F2BA).
      largest_penalty: cap of lam; above about 3e3 the difference of gradients that x follows is
        rounding in float32.

    Raises:
      ValueError: rates or factor not positive, exponents under which lam would fall.

    Source: Kwon, Kwon, Wright and Nowak, "A fully first-order method for stochastic bilevel
    optimization", 2023.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter.bilevel import run
    >>> method = f2sa(lambda x, y, _: (y - 1) ** 2, lambda x, y, _: (y - x) ** 2,
    ...               inner_rate=0.2, penalty_rate=0.1, inner_steps=5)
    >>> state = run(method, jnp.float32(0), jnp.float32(0),
    ...             max_steps=500, key=jax.random.key(0)).state
    >>> abs(float(state.x) - 1) < 0.01
    True
    """
    rates = _rates(inner_rate, penalty_rate, outer_factor, exponents, offset, largest_penalty)

    def step(state: PenaltyState, key: jax.Array, *data: Batches) -> PenaltyState:
        inner_data, outer_data = data
        x, y, z, k, _ = state
        alpha, gamma, lam = rates(k)

        def follow(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            y, z = carry
            a, b, c = Oracle((), (inner_data, outer_data, inner_data)).draw(key)
            z = trees.axpy(-gamma, jax.grad(inner, 1)(x, z, a), z)
            up, down = jax.grad(outer, 1)(x, y, b), jax.grad(inner, 1)(x, y, c)
            return (trees.axpy(-alpha, trees.axpy(lam, down, up), y), z), None

        keys = jax.random.split(key, inner_steps + 1)
        (y, z), _ = lax.scan(follow, (y, z), keys[1:])
        direct, gap = slopes_of_x(outer, inner, (x, y, z), Oracle((), data).draw(keys[0]))
        x = trees.axpy(-outer_factor * alpha, trees.axpy(lam, gap, direct), x)
        return PenaltyState(x, y, z, k + 1)

    return Process(begin, step, calls=oracle_calls(2 * inner_steps + 2, inner_steps + 1))


def f3sa(
    outer: Callable, inner: Callable, *, inner_rate: float, penalty_rate: float,
    outer_factor: float = 1.0, exponents: tuple[float, float] = (3 / 5, 2 / 5), offset: int = 1,
    largest_penalty: float = 1e3,
) -> Process:
    """F3SA: F2SA with one step of y and z per step of x and every gradient a STORM estimate.

    Rates and penalty as in `f2sa`; the momentum of the estimates is `(g_k / g_0)^2`.

    Args:
      outer, inner, inner_rate, penalty_rate, outer_factor, offset, largest_penalty: as in `f2sa`.
      exponents: (1/3, 0) without noise, (1/2, 1/4) with noise in outer, (3/5, 2/5) in both.

    Raises:
      ValueError: as `f2sa`.

    Source: Kwon, Kwon, Wright and Nowak, "A fully first-order method for stochastic bilevel
    optimization", 2023.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter.bilevel import run
    >>> method = f3sa(lambda x, y, _: (y - 1) ** 2, lambda x, y, _: (y - x) ** 2,
    ...               inner_rate=0.2, penalty_rate=0.1, exponents=(1 / 3, 0.0))
    >>> state = run(method, jnp.float32(0), jnp.float32(0),
    ...             max_steps=2000, key=jax.random.key(0)).state
    >>> abs(float(state.x) - 1) < 0.01
    True
    """
    rates = _rates(inner_rate, penalty_rate, outer_factor, exponents, offset, largest_penalty)

    def weight(k: jax.Array) -> jax.Array:
        return jnp.minimum((rates(k)[1] / inner_rate) ** 2, 1.0)

    estimator = storm(weight)

    def oracles(x: PyTree, y: PyTree, *data: Batches) -> tuple[Oracle, Oracle]:
        pairs = (both(*data),)
        return (Oracle((partial(slopes_near, outer, inner),), pairs, ((y, y, y),)),
                Oracle((partial(slopes_of_x, outer, inner),), pairs, ((x, x),)))

    def init(start: tuple, *data: Batches) -> PenaltyState:
        x, y = start
        memories = tuple(estimator.init(one, (x, y, y)) for one in oracles(x, y, *data))
        return PenaltyState(x, y, y, jnp.int32(0), memories)

    def step(state: PenaltyState, key: jax.Array, *data: Batches) -> PenaltyState:
        x, y, z, k, (near, far) = state
        alpha, gamma, lam = rates(k)
        nearby, beyond = oracles(x, y, *data)
        (follow, up, down), near = estimator.update(nearby, (x, y, z), near, key)
        z = trees.axpy(-gamma, follow, z)
        y = trees.axpy(-alpha, trees.axpy(lam, down, up), y)
        (direct, gap), far = estimator.update(beyond, (x, y, z), far, key)
        x = trees.axpy(-outer_factor * alpha, trees.axpy(lam, gap, direct), x)
        return PenaltyState(x, y, z, k + 1, (near, far))

    return Process(init, step, calls=oracle_calls(8, 4))


def _unchanged(point: PyTree) -> PyTree:
    return point


def proximal_penalty(
    outer: Callable, inner: Callable, *, sigma: float = 0.1, rate: float, inner_rate: float,
    prox: float = 1.0, mixing: float = 0.5, inner_steps: int = 10, samples: int = 1,
    project_x: Callable = _unchanged, project_y: Callable = _unchanged,
) -> Process:
    """The double loop: T proximal steps around each centre, then the centres and x move.

    `psi_sigma(x) = (min_y (sigma outer + inner) - min_y inner) / sigma` nears the optimistic
    objective as sigma falls; both minima are followed by proximal gradient steps around centres.

    Args:
      outer, inner: `(x, y, batch) -> scalar`; inner may have many minimisers.
      sigma: the penalty's inverse: the bias is O(sigma), the noise of x is O(1 / sigma).
      rate: of x, well below `mixing`. inner_rate: about 1 / (2 (L + 1 / prox)).
      prox: at most 1 / (4 L) where inner is not convex. mixing: of the centres, in (0, 1].
      samples: batches averaged for a step of x.
      project_x, project_y: onto their domains; default none.

    Raises:
      ValueError: numbers that are not positive, mixing above 1.

    Source: Kwon, Kwon, Wright and Nowak, "On penalty methods for nonconvex bilevel optimization and
    first-order stochastic approximation", 2024. Step sizes are ours.

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

    Slopes of the pair and of x, at `(x, *near)` on a pair of batches; then the steps of near, and
    of the centres and x.

    Source: Kwon, Kwon, Wright and Nowak, "On penalty methods for nonconvex bilevel optimization and
    first-order stochastic approximation", 2024.
    """
    check_positive(sigma=sigma, rate=rate, inner_rate=inner_rate, prox=prox)
    check_share(mixing=mixing)

    def slopes(point: tuple, batch: tuple) -> tuple:
        of_z, up, down = slopes_near(outer, inner, point, batch)
        return trees.axpy(sigma, up, down), of_z

    def slope(point: tuple, batch: tuple) -> PyTree:
        direct, gap = slopes_of_x(outer, inner, point, batch)
        return trees.axpy(1 / sigma, gap, direct)

    def follow(near: tuple, centres: tuple, slopes: tuple) -> tuple:
        slopes = trees.axpy(1 / prox, trees.subtract(near, centres), slopes)
        return tuple(map(project_y, trees.axpy(-inner_rate, slopes, near)))

    def settle(state: PenaltyState, near: tuple, slope: PyTree, memory: Any = ()) -> PenaltyState:
        x, y, z, k, _ = state
        y, z = trees.axpy(mixing, trees.subtract(near, (y, z)), (y, z))
        return PenaltyState(project_x(trees.axpy(-rate, slope, x)), y, z, k + 1, memory)

    return slopes, slope, follow, settle
