"""One map for all methods of one loop: three directions, an estimator of them, any optimizers.

x, y and the adjoint v move at once, along
`grad_x outer - cross(v)`, `grad_y inner` and `H v - grad_y outer`. How these are estimated from
batches is what SOBA (the batch itself), SABA (tables) and SRBA (recursions) differ in.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, NotRequired, TypedDict, Unpack

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.methods import Optimizer, descend, move, oracle_calls, product_pair
from jaxiter.estimators import Estimator, Oracle, plain, saga, sarah
from jaxiter.known import check_positive
from jaxiter.process import Batches, Process

PyTree = Any


class Optimizers(TypedDict):
    """Any optax transformations, of y, of x and of v; that of v is by default that of y."""

    inner_optimizer: Optimizer
    outer_optimizer: Optimizer
    linear_optimizer: NotRequired[Optimizer | None]


class SingleLoopState(NamedTuple):
    """x, y, the adjoint v of H v = grad_y outer, their optimizers, and the estimator's memory."""

    x: PyTree
    y: PyTree
    v: PyTree
    optimizers: PyTree
    memory: PyTree


def moving_together(
    optimizers: tuple, estimator: Estimator, oracle: Callable, calls: Callable, *,
    adjoint: Callable = trees.zeros_like, keep: Callable = lambda state: state,
) -> Process:
    """The process of x, y and v, which move at once along what the estimator says.

    Args:
      optimizers: of x, y and v. oracle: `oracle(point, inner_data, outer_data) -> Oracle` of the
        three directions. calls: from batches of each part of the oracle to the account.
      adjoint: the first v, of y. keep: of the state after every step, such as a projection.
    """
    def init(start: tuple, *data: Batches) -> SingleLoopState:
        x, y = start
        point = (x, y, adjoint(y))
        first = tuple(one.init(part) for one, part in zip(optimizers, point, strict=True))
        return SingleLoopState(*point, first, estimator.init(oracle(point, *data), point))

    def step(state: SingleLoopState, key: jax.Array, *data: Batches) -> SingleLoopState:
        point = state[:3]
        slopes, memory = estimator.update(oracle(point, *data), point, state.memory, key)
        moved = [move(*parts) for parts in zip(
            optimizers, slopes, state.optimizers, point, strict=True)]
        (x, y, v), optimizer_states = zip(*moved, strict=True)
        return keep(SingleLoopState(x, y, v, optimizer_states, memory))

    def spent(state: SingleLoopState, key: jax.Array, *data: Batches) -> dict[str, Any]:
        return calls(*estimator.calls(oracle(state[:3], *data), state.memory, key))

    return Process(init, step, calls=spent)


def single_loop(
    outer: Callable, inner: Callable, *, estimator: Estimator | None = None,
    radius: float = jnp.inf, **optimizers: Unpack[Optimizers],
) -> Process:
    """x, y and v along estimates of their directions, each with an optimizer of its own.

    Args:
      outer, inner: `(x, y, batch) -> scalar`, means over the rows of the batch.
      estimator: `plain()` (SOBA, the default), `saga()` (SABA), `sarah()` (SRBA), `storm()`,
        `msvr()`, `page()` of `jaxiter.estimators`, or one of your own.
      radius: v is kept in a ball of this radius; above |grad_y outer| / mu it changes nothing.
      **optimizers: `inner_optimizer`, `outer_optimizer` and `linear_optimizer`, of y, x and v, any
        optax transformations; v's default is y's.

    Raises:
      ValueError: radius not positive; an estimator that goes through all rows, without data.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import run
    >>> from jaxiter.estimators import page
    >>> data = jnp.arange(8.0)
    >>> method = single_loop(lambda x, y, b: jnp.mean((y - b) ** 2),
    ...                      lambda x, y, b: jnp.mean((y - x - b) ** 2), estimator=page(0.2),
    ...                      inner_optimizer=optax.sgd(0.1, momentum=0.5),
    ...                      outer_optimizer=optax.sgd(0.05))
    >>> state = run(method, jnp.float32(1), jnp.float32(0), data, data,
    ...             max_steps=600, batch_size=2, key=jax.random.key(0)).state
    >>> abs(float(state.x)) < 1e-3
    True
    """
    check_positive(radius=radius)

    def keep(state: SingleLoopState) -> SingleLoopState:
        return state if radius == jnp.inf else state._replace(v=trees.into_ball(radius, state.v))

    return moving_together(
        _each(**optimizers), plain() if estimator is None else estimator,
        partial(_directions, outer, inner), lambda inner, outer: oracle_calls(inner, outer, inner),
        keep=keep)


def _directions(outer: Callable, inner: Callable, point: tuple, *data: Batches) -> Oracle:
    """The three directions at x, y and v."""
    def of_inner(point: tuple, batch: PyTree) -> tuple:
        return product_pair(inner, *point, batch=batch)

    def of_outer(point: tuple, batch: PyTree) -> tuple:
        return jax.grad(outer, (0, 1))(*point[:2], batch)

    x, y, _ = point
    return Oracle((of_inner, of_outer), data, ((y, x, y), (x, y)), three_directions)


def three_directions(of_inner: tuple, of_outer: tuple) -> tuple:
    """Descent directions of x, y and v, from `product_pair` and the two gradients of outer."""
    (slope, cross, image), (direct, pull) = of_inner, of_outer
    return trees.subtract(direct, cross), slope, trees.subtract(image, pull)


def _each(
    inner_optimizer: Optimizer, outer_optimizer: Optimizer,
    linear_optimizer: Optimizer | None = None,
) -> tuple:
    """The optimizers of x, y and v."""
    return outer_optimizer, inner_optimizer, linear_optimizer or inner_optimizer


def soba(
    outer: Callable, inner: Callable, *, inner_steps: int = 1, linear_steps: int = 1,
    **optimizers: Unpack[Optimizers],
) -> Process:
    """SOBA: three coupled iterates, one batch each; with more steps, AmIGO's warm double loop.

    With one step of each kind all three directions are taken at the old point. With more,
    y makes its steps first, then v its steps on `H v = grad_y outer`, then x moves.

    Args:
      outer, inner, **optimizers: as in `single_loop`. SOBA's own are rates that fall
        as 1 / sqrt(k + 1).
      inner_steps, linear_steps: T and N of AmIGO.

    Source: Dagreou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables
    stochastic and global variance reduction algorithms", 2022; Arbel and Mairal, "Amortized
    implicit differentiation for stochastic bilevel optimization" (AmIGO), 2022.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import run
    >>> method = soba(lambda x, y, _: (y - 1) ** 2, lambda x, y, _: (y - x) ** 2,
    ...               inner_optimizer=optax.sgd(0.4), outer_optimizer=optax.sgd(0.1))
    >>> state = run(method, jnp.float32(0), jnp.float32(0),
    ...             max_steps=200, key=jax.random.key(0)).state
    >>> round(float(state.x), 3)
    1.0
    """
    method = single_loop(outer, inner, **optimizers)
    if inner_steps == linear_steps == 1:
        return method
    outer_optimizer, inner_optimizer, linear_optimizer = _each(**optimizers)

    def step(state: SingleLoopState, key: jax.Array, *data: Batches) -> SingleLoopState:
        inner_data, outer_data = data
        x, y, v, (of_x, of_y, of_v), memory = state
        inner_key, outer_key, linear_key = jax.random.split(key, 3)
        y, of_y = descend(inner, inner_optimizer, x, y, of_y, inner_data, inner_key, inner_steps)
        direct, pull = jax.grad(outer, (0, 1))(x, y, outer_data.draw(outer_key))

        def refine(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            v, of_v = carry
            image = product_pair(inner, x, y, v, inner_data.draw(key))[2]
            return move(linear_optimizer, trees.subtract(image, pull), of_v, v), None

        keys = jax.random.split(linear_key, linear_steps + 1)
        (v, of_v), _ = lax.scan(refine, (v, of_v), keys[1:])
        _, cross, _ = product_pair(inner, x, y, v, inner_data.draw(keys[0]))
        x, of_x = move(outer_optimizer, trees.subtract(direct, cross), of_x, x)
        return SingleLoopState(x, y, v, (of_x, of_y, of_v), memory)

    return method._replace(step=step, calls=oracle_calls(inner_steps, 1, linear_steps + 1))


def saba(outer: Callable, inner: Callable, **optimizers: Unpack[Optimizers]) -> Process:
    """SABA: linear convergence with constant rates, for one copy of x, y and v per block of data.

    `single_loop` with `saga()`: five quantities are remembered for every block of `batch_size`
    consecutive rows.

    Args:
      outer, inner, **optimizers: as in `single_loop`.

    Source: Dagreou, Ablin, Vaiter and Moreau, "A framework for bilevel optimization that enables
    stochastic and global variance reduction algorithms", 2022.
    """
    return single_loop(outer, inner, estimator=saga(), **optimizers)


def srba(
    outer: Callable, inner: Callable, *, period: float = 0.5, radius: float = jnp.inf,
    **optimizers: Unpack[Optimizers],
) -> Process:
    """SRBA: linear convergence with constant rates, without SABA's tables.

    `single_loop` with `sarah(period)`. Calls are in batches: a refresh counts as many as the rows
    fill.

    Args:
      outer, inner, radius, **optimizers: as in `single_loop`.
      period: passes over all rows between two refreshes.

    Raises:
      ValueError: period or radius not positive; no data.

    Source: Dagreou, Moreau, Vaiter and Ablin, "A lower bound and a near-optimal algorithm for
    bilevel empirical risk minimization", 2023.
    """
    check_positive(period=period)
    return single_loop(outer, inner, estimator=sarah(period), radius=radius, **optimizers)


def sl_bamm(
    outer: Callable, inner: Callable, *, rate: float = 0.1, average: float = 0.9,
    decay: float = 0.1, tau: float = 1 / 40, project: Callable | None = None,
) -> Process:
    """sl-BAMM: one loop for inner problems that are convex but not strongly.

    The three conditions of optimality are followed at once on the average
    `mu outer + (1 - mu) inner`, whose Hessian is regular, with mu falling slowly to 0:
    mu_k = average (k+1)^-decay; y moves by `rate`, v by `rate (k+1)^(-tau/2)` and x by
    `rate (k+1)^(-3 tau/2) mu_k^3`.

    Args:
      outer, inner: `(x, y, batch) -> scalar`; outer strongly convex in y, inner convex.
      project: onto the domain of x; default none.

    Raises:
      ValueError: average outside (0, 1), rate or decay not positive.

    Source: Liu, Liu, Yao, Zeng and Zhang, "Averaged method of multipliers for bi-level
    optimization without lower-level strong convexity", 2023.

    >>> import jax, jax.numpy as jnp
    >>> from jaxiter.bilevel import run
    >>> method = sl_bamm(lambda x, y, _: (x - y[1]) ** 2 / 2 + (y[0] - 1) ** 2 / 2,
    ...                  lambda x, y, _: y[0] ** 2 / 2 - x * y[0])
    >>> state = run(method, jnp.float32(0), jnp.zeros(2),
    ...             max_steps=2000, key=jax.random.key(0)).state
    >>> abs(float(state.x) - 1) < 0.02
    True
    """
    if not 0 < average < 1:
        raise ValueError(f"average must be in (0, 1), got {average}.")
    check_positive(rate=rate, decay=decay)

    def age(k: Any) -> jax.Array:
        return (k + 1).astype(jnp.float32)

    def update(oracle: Oracle, point: tuple, k: jax.Array, key: jax.Array) -> tuple:
        a, b = oracle.draw(key)
        mu = average * age(k) ** -decay

        def average_of_both(x: PyTree, y: PyTree, a: PyTree) -> jax.Array:
            return trees.axpy(mu, outer(x, y, b), trees.scale(1 - mu, inner(x, y, a)))

        directions = _directions(outer, average_of_both, point, *oracle.data)
        return directions.at(point, (a, b)), k + 1

    def slow(k: Any) -> jax.Array:
        return rate * age(k) ** (-1.5 * tau) * (average * age(k) ** -decay) ** 3

    def keep(state: SingleLoopState) -> SingleLoopState:
        return state if project is None else state._replace(x=project(state.x))

    optimizers = (optax.sgd(slow), optax.sgd(rate),
                  optax.sgd(lambda k: rate * age(k) ** (-tau / 2)))
    averaged = Estimator(lambda oracle, point: jnp.int32(0), update, lambda *_: ())
    return moving_together(
        optimizers, averaged, lambda point, *data: Oracle((), data),
        lambda: oracle_calls(1, 1, 2), keep=keep)
