"""F2SA and F3SA: bilevel optimisation by gradients alone."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.hypergradient import oracle_calls
from jaxiter.bilevel.methods import penalty_slope, storm
from jaxiter.numerics import check_positive
from jaxiter.process import Batches, Process

PyTree = Any


class F2saState(NamedTuple):
    """x; y near argmin outer + lam inner; z near argmin inner; k steps made."""

    x: PyTree
    y: PyTree
    z: PyTree
    k: jax.Array


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

    def init(start: tuple, *data: Batches) -> F2saState:
        x, y = start
        return F2saState(x, y, y, jnp.int32(0))

    def step(
        state: F2saState, key: jax.Array, inner_data: Batches, outer_data: Batches
    ) -> F2saState:
        x, y, z, k = state
        alpha, gamma, lam = rates(k)

        def follow(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            y, z = carry
            z_key, outer_key, inner_key = jax.random.split(key, 3)
            z = trees.axpy(-gamma, jax.grad(inner, 1)(x, z, inner_data.draw(z_key)), z)
            up = jax.grad(outer, 1)(x, y, outer_data.draw(outer_key))
            down = jax.grad(inner, 1)(x, y, inner_data.draw(inner_key))
            return (trees.axpy(-alpha, trees.axpy(lam, down, up), y), z), None

        keys = jax.random.split(key, inner_steps + 1)
        (y, z), _ = lax.scan(follow, (y, z), keys[1:])
        inner_key, outer_key = jax.random.split(keys[0])
        gap = penalty_slope(inner, x, y, z, inner_data.draw(inner_key))
        direct = jax.grad(outer, 0)(x, y, outer_data.draw(outer_key))
        x = trees.axpy(-outer_factor * alpha, trees.axpy(lam, gap, direct), x)
        return F2saState(x, y, z, k + 1)

    return Process(init, step, calls=oracle_calls(2 * inner_steps + 2, inner_steps + 1))


class F3saState(NamedTuple):
    """x, y, z as in F2SA, the point before, the six STORM estimates, and k steps made."""

    x: PyTree
    y: PyTree
    z: PyTree
    before: tuple
    estimates: tuple
    k: jax.Array


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

    def init(start: tuple, *data: Batches) -> F3saState:
        x, y = start
        zero, flat = trees.zeros_like(y), trees.zeros_like(x)
        return F3saState(x, y, y, (x, y, y), (zero, zero, zero, flat, flat, flat), jnp.int32(0))

    def step(
        state: F3saState, key: jax.Array, inner_data: Batches, outer_data: Batches
    ) -> F3saState:
        x, y, z, (x_old, y_old, z_old), (hz, hf, hg, px, pg, pz), k = state
        alpha, gamma, lam = rates(k)
        # The first estimates are plain gradients: there is nothing before them.
        momentum = jnp.where(k == 0, 1.0, jnp.minimum((gamma / inner_rate) ** 2, 1.0))
        a, b = inner_data.draw(key), outer_data.draw(jax.random.fold_in(key, 1))
        at_inner = jax.grad(inner, (0, 1))
        at_outer = jax.grad(outer, (0, 1))
        hz = storm(momentum, at_inner(x, z, a)[1], at_inner(x_old, z_old, a)[1], hz)
        hf = storm(momentum, at_outer(x, y, b)[1], at_outer(x_old, y_old, b)[1], hf)
        hg = storm(momentum, at_inner(x, y, a)[1], at_inner(x_old, y_old, a)[1], hg)
        new_z = trees.axpy(-gamma, hz, z)
        new_y = trees.axpy(-alpha, trees.axpy(lam, hg, hf), y)
        px = storm(momentum, at_outer(x, new_y, b)[0], at_outer(x_old, y, b)[0], px)
        pg = storm(momentum, at_inner(x, new_y, a)[0], at_inner(x_old, y, a)[0], pg)
        pz = storm(momentum, at_inner(x, new_z, a)[0], at_inner(x_old, z, a)[0], pz)
        slope = trees.axpy(lam, trees.subtract(pg, pz), px)
        new_x = trees.axpy(-outer_factor * alpha, slope, x)
        return F3saState(new_x, new_y, new_z, (x, y, z), (hz, hf, hg, px, pg, pz), k + 1)

    return Process(init, step, calls=oracle_calls(8, 4))
