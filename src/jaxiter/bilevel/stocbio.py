"""Hypergradients by a truncated Neumann series: stocBiO, TTSA, MRBO, and IFT with Neumann.

The series `v = s (sum_i (I - s H)^i) grad_y outer` needs no warm adjoint: y alone is carried.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.methods import descend, move, oracle_calls, product_pair
from jaxiter.bilevel.single_loop import moving_together
from jaxiter.estimators import Drawn, Oracle, storm
from jaxiter.known import check_positive
from jaxiter.numerics import safe_divide
from jaxiter.process import Batches, Process

PyTree = Any


class StocbioState(NamedTuple):
    """x, y, their optimizers, and growth: the last Neumann term's norm over the first's.

    A growth above 1 says that the series diverges: `neumann_rate` is above 2 / L.
    """

    x: PyTree
    y: PyTree
    optimizers: tuple
    growth: jax.Array


def stocbio(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation, neumann_rate: Any, inner_steps: int = 10,
    terms: int = 11, fresh: bool = True,
) -> Process:
    """stocBiO: T steps of y, a Neumann series with fresh batches, one step of x.

    Args:
      outer, inner: `(x, y, batch) -> scalar`.
      inner_optimizer, outer_optimizer: of y and x, any optax transformation; the state of y's is
        kept over outer steps.
      neumann_rate: s in (0, 2 / L).
      terms: of the series; 1 is T1-T2, which uses no product in it. Bias (1 - mu s)^terms.
      fresh: a new batch for every product; False: one batch for all of them (`ift_neumann`).

    Raises:
      ValueError: neumann_rate, inner_steps or terms not positive.

    Source: Ji, Yang and Liang, "Bilevel optimization: convergence analysis and enhanced design",
    2021.

    >>> import jax, jax.numpy as jnp, optax
    >>> from jaxiter.bilevel import run
    >>> method = stocbio(lambda x, y, _: (y - 1) ** 2, lambda x, y, _: (y - x) ** 2,
    ...                  inner_optimizer=optax.sgd(0.4), outer_optimizer=optax.sgd(0.1),
    ...                  neumann_rate=0.4)
    >>> state = run(method, jnp.float32(0), jnp.float32(0),
    ...             max_steps=100, key=jax.random.key(0)).state
    >>> round(float(state.x), 3)
    1.0
    """
    check_positive(neumann_rate=neumann_rate, inner_steps=inner_steps, terms=terms)

    def slope(x: PyTree, y: PyTree, key: jax.Array, inner_data: Batches, batch: PyTree) -> tuple:
        keys = jax.random.split(key, terms)
        keys = keys if fresh else jnp.broadcast_to(keys[:1], keys.shape)
        return _series(outer, inner, x, y, keys, inner_data, batch, neumann_rate)

    return _nested(inner, inner_optimizer, outer_optimizer, inner_steps, slope,
                   oracle_calls(inner_steps, 1, terms))


def _nested(
    inner: Callable, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation, inner_steps: int, slope: Callable, calls: Any,
) -> Process:
    """Steps of y, then one of x along `slope(x, y, key, inner_data, batch) -> (slope, growth)`."""
    def init(start: tuple, *data: Batches) -> StocbioState:
        x, y = start
        optimizers = outer_optimizer.init(x), inner_optimizer.init(y)
        return StocbioState(x, y, optimizers, jnp.float32(0))

    def step(state: StocbioState, key: jax.Array, *data: Batches) -> StocbioState:
        inner_data, outer_data = data
        x, y, (of_x, of_y), _ = state
        inner_key, linear_key, outer_key = jax.random.split(key, 3)
        y, of_y = descend(inner, inner_optimizer, x, y, of_y, inner_data, inner_key, inner_steps)
        along, growth = slope(x, y, linear_key, inner_data, outer_data.draw(outer_key))
        x, of_x = move(outer_optimizer, along, of_x, x)
        return StocbioState(x, y, (of_x, of_y), growth)

    return Process(init, step, calls=calls)


def _series(
    outer: Callable, inner: Callable, x: PyTree, y: PyTree, keys: jax.Array,
    inner_data: Batches, batch: PyTree, rate: Any,
) -> tuple[PyTree, jax.Array]:
    """The hypergradient by len(keys) Neumann terms, and the last term's norm over the first's."""
    direct, pull = jax.grad(outer, (0, 1))(x, y, batch)

    def more(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
        term, total = carry
        image = product_pair(inner, x, y, term, inner_data.draw(key))[2]
        term = trees.axpy(-rate, image, term)
        return (term, trees.add(total, term)), None

    (term, total), _ = lax.scan(more, (pull, pull), keys[1:])
    cross = product_pair(inner, x, y, trees.scale(rate, total), inner_data.draw(keys[0]))[1]
    return trees.subtract(direct, cross), _growth(term, pull)


def _growth(term: PyTree, pull: PyTree) -> jax.Array:
    return safe_divide(trees.norm(term), trees.norm(pull)).astype(jnp.float32)


def ift_neumann(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation, neumann_rate: Any, inner_steps: int = 1,
    terms: int = 20,
) -> Process:
    """As many hyperparameters as weights: training that goes on, and a Neumann step now and then.

    `stocbio` with one batch for all products of a series; y is never reset. Clip the
    hypergradient with `optax.chain(optax.clip_by_global_norm(1.0), ...)`.

    Args:
      neumann_rate: the inner learning rate is the usual choice. The rest as in `stocbio`.

    Source: Lorraine, Vicol and Duvenaud, "Optimizing millions of hyperparameters by implicit
    differentiation", 2020.
    """
    return stocbio(outer, inner, inner_optimizer=inner_optimizer, outer_optimizer=outer_optimizer,
                   neumann_rate=neumann_rate, inner_steps=inner_steps, terms=terms, fresh=False)


def ttsa(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation, neumann_rate: Any, terms: int = 10,
) -> Process:
    """TTSA: one step of y and one of x at two time scales, a single random Neumann term.

    `v = terms s (product of r factors I - s H) grad_y outer`, r uniform below terms: unbiased for
    the series, with more noise and half its products.

    Args:
      inner_optimizer, outer_optimizer: rates that fall as (k+1)^-0.4 and (k+1)^-0.6 in the source.
      The rest as in `stocbio`.

    Source: Hong, Wai, Wang and Yang, "A two-timescale stochastic algorithm framework for bilevel
    optimization", 2023.
    """
    check_positive(neumann_rate=neumann_rate, terms=terms)

    def drawn(key: jax.Array) -> jax.Array:
        return jax.random.randint(jax.random.fold_in(key, terms), (), 0, terms)

    def slope(x: PyTree, y: PyTree, key: jax.Array, inner_data: Batches, batch: PyTree) -> tuple:
        direct, pull = jax.grad(outer, (0, 1))(x, y, batch)

        def product(i: jax.Array, v: PyTree) -> tuple:
            return product_pair(inner, x, y, v, inner_data.draw(jax.random.fold_in(key, i)))

        def shrink(i: jax.Array, term: PyTree) -> PyTree:
            return trees.axpy(-neumann_rate, product(i + 1, term)[2], term)

        term = lax.fori_loop(0, drawn(key), shrink, pull)
        cross = product(jnp.int32(0), trees.scale(terms * neumann_rate, term))[1]
        return trees.subtract(direct, cross), _growth(term, pull)

    def calls(state: StocbioState, key: jax.Array, *data: Batches) -> dict[str, Any]:
        return oracle_calls(1, 1, drawn(jax.random.split(key, 3)[1]) + 1)

    return _nested(inner, inner_optimizer, outer_optimizer, 1, slope, calls)


def mrbo(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation, neumann_rate: Any, terms: int = 11,
    momentum: float = 1.0,
) -> Process:
    """MRBO: STORM estimates of the inner gradient and of the Neumann hypergradient.

    Args:
      inner_optimizer, outer_optimizer: rates that fall as (k+1)^(-1/3) in the source.
      momentum: `min(1, momentum (k+1)^(-2/3))` is the weight of the new gradient.
      The rest as in `stocbio`.

    Source: Yang, Ji and Liang, "Provably faster algorithms for bilevel optimization", 2021.
    """
    check_positive(neumann_rate=neumann_rate, terms=terms, momentum=momentum)

    def oracle(point: tuple, inner_data: Batches, outer_data: Batches) -> Oracle:
        def draw(key: jax.Array) -> tuple:
            inner_key, linear_key, outer_key = jax.random.split(key, 3)
            return (inner_data.draw(inner_key), jax.random.split(linear_key, terms),
                    outer_data.draw(outer_key))

        def slopes(point: tuple, batch: tuple) -> tuple:
            (x, y, none), (a, keys, b) = point, batch
            slope, _ = _series(outer, inner, x, y, keys, inner_data, b, neumann_rate)
            return slope, jax.grad(inner, 1)(x, y, a), none

        return Oracle((slopes,), (Drawn(draw),), (point,))

    def weight(k: jax.Array) -> jax.Array:
        return jnp.minimum(momentum * (k + 1).astype(jnp.float32) ** (-2 / 3), 1.0)

    return moving_together(
        (outer_optimizer, inner_optimizer, optax.identity()), storm(weight), oracle,
        lambda spent: oracle_calls(spent, spent, spent * terms), adjoint=lambda y: ())
