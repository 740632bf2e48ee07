"""F2SA and F3SA: bilevel optimisation by gradients alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.methods import PenaltyState, begin, both, oracle_calls, penalised_slope
from jaxiter.estimators import Oracle, storm
from jaxiter.known import check_positive
from jaxiter.process import Batches, Process

PyTree = Any


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
        slope = penalised_slope(outer, inner, lam, x, y, z, *Oracle((), data).draw(keys[0]))
        return PenaltyState(trees.axpy(-outer_factor * alpha, slope, x), y, z, k + 1)

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

    def of_y(point: tuple, batch: tuple) -> tuple:
        (x, y, z), (a, b) = point, batch
        down = jax.grad(inner, 1)
        return down(x, z, a), jax.grad(outer, 1)(x, y, b), down(x, y, a)

    def of_x(point: tuple, batch: tuple) -> tuple:
        (x, y, z), (a, b) = point, batch
        return jax.grad(outer, 0)(x, y, b), trees.subtract(
            jax.grad(inner, 0)(x, y, a), jax.grad(inner, 0)(x, z, a))

    estimator = storm(weight)

    def oracles(x: PyTree, y: PyTree, *data: Batches) -> tuple[Oracle, Oracle]:
        pairs = (both(*data),)
        return Oracle((of_y,), pairs, ((y, y, y),)), Oracle((of_x,), pairs, ((x, x),))

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
