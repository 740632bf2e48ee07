"""Hypergradients by a truncated Neumann series: stocBiO, TTSA, MRBO, and IFT with Neumann.

The series `v = s (sum_i (I - s H)^i) grad_y outer` needs no warm adjoint: y alone is carried.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.methods import NestedState, Optimizer, nested, oracle_calls, product_pair
from jaxiter.bilevel.single_loop import moving_together
from jaxiter.estimators import Drawn, Oracle, storm
from jaxiter.known import check_positive
from jaxiter.numerics import safe_divide
from jaxiter.process import Batches, Process

PyTree = Any


def stocbio(
    outer: Callable, inner: Callable, *, inner_optimizer: Optimizer, outer_optimizer: Optimizer,
    neumann_rate: Any, inner_steps: int = 10, terms: int = 11, fresh: bool = True,
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

    def slope(x: PyTree, y: PyTree, _: PyTree, keys: jax.Array, *data: Batches) -> tuple:
        of_products = jax.random.split(keys[1], terms)

        def draw(i: Any) -> PyTree:
            return data[0].draw(of_products[i if fresh else 0])

        return _series(outer, inner, x, y, data[1].draw(keys[2]), draw, neumann_rate, terms)

    return nested(inner, inner_optimizer, outer_optimizer, inner_steps, slope,
                  oracle_calls(inner_steps, 1, terms))


def _series(
    outer: Callable, inner: Callable, x: PyTree, y: PyTree, batch: PyTree, draw: Callable,
    rate: Any, terms: Any, weight: int | None = None,
) -> tuple[PyTree, jax.Array]:
    """The hypergradient by Neumann terms, and the last term's norm over the first's.

    `draw(i)`: the inner batch of product i; 0 is the last one made. With a weight the last term
    stands, so many times, for the sum of all.
    """
    direct, pull = jax.grad(outer, (0, 1))(x, y, batch)

    def more(i: jax.Array, carry: tuple) -> tuple:
        term, total = carry
        term = trees.axpy(-rate, product_pair(inner, x, y, term, draw(i))[2], term)
        return term, trees.add(total, term)

    term, total = lax.fori_loop(1, terms, more, (pull, pull))
    v = trees.scale(rate, total) if weight is None else trees.scale(weight * rate, term)
    cross = product_pair(inner, x, y, v, draw(0))[1]
    growth = safe_divide(trees.norm(term), trees.norm(pull))
    return trees.subtract(direct, cross), growth.astype(jnp.float32)


def ift_neumann(
    outer: Callable, inner: Callable, *, inner_optimizer: Optimizer, outer_optimizer: Optimizer,
    neumann_rate: Any, inner_steps: int = 1, terms: int = 20,
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
    outer: Callable, inner: Callable, *, inner_optimizer: Optimizer, outer_optimizer: Optimizer,
    neumann_rate: Any, terms: int = 10,
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

    def slope(x: PyTree, y: PyTree, _: PyTree, keys: jax.Array, *data: Batches) -> tuple:
        def draw(i: Any) -> PyTree:
            return data[0].draw(jax.random.fold_in(keys[1], i))

        return _series(outer, inner, x, y, data[1].draw(keys[2]), draw, neumann_rate,
                       drawn(keys[1]) + 1, weight=terms)

    def calls(state: NestedState, key: jax.Array, *data: Batches) -> dict[str, Any]:
        return oracle_calls(1, 1, drawn(jax.random.split(key, 3)[1]) + 1)

    return nested(inner, inner_optimizer, outer_optimizer, 1, slope, calls)


def mrbo(
    outer: Callable, inner: Callable, *, inner_optimizer: Optimizer, outer_optimizer: Optimizer,
    neumann_rate: Any, terms: int = 11, momentum: float = 1.0,
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
        of_products = Drawn(lambda key: jax.random.split(key, terms))
        draw = Oracle((), (inner_data, of_products, outer_data)).draw

        def slopes(point: tuple, batch: tuple) -> tuple:
            (x, y, none), (a, keys, b) = point, batch
            slope, _ = _series(outer, inner, x, y, b, lambda i: inner_data.draw(keys[i]),
                               neumann_rate, terms)
            return slope, jax.grad(inner, 1)(x, y, a), none

        return Oracle((slopes,), (Drawn(draw),), (point,))

    def weight(k: jax.Array) -> jax.Array:
        return jnp.minimum(momentum * (k + 1).astype(jnp.float32) ** (-2 / 3), 1.0)

    return moving_together(
        (outer_optimizer, inner_optimizer, optax.identity()), storm(weight), oracle,
        lambda spent: oracle_calls(spent, spent, spent * terms), adjoint=lambda y: ())
