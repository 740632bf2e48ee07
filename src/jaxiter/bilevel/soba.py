"""SOBA and AmIGO: three coupled iterates, second order by products only."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.hypergradient import oracle_calls
from jaxiter.bilevel.methods import descend, directions, joint_optimizer, move, product_pair
from jaxiter.process import Batches, Process

PyTree = Any


class SobaState(NamedTuple):
    """x, y, the adjoint v of H v = grad_y outer, and the states of the three optimizers."""

    x: PyTree
    y: PyTree
    v: PyTree
    optimizers: PyTree


def soba(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    linear_optimizer: optax.GradientTransformation | None = None,
    inner_steps: int = 1, linear_steps: int = 1,
) -> Process:
    """SOBA: three coupled iterates, one batch each; with more steps, AmIGO's warm double loop.

    With one step of each kind all three directions are taken at the old point. With more,
    y makes its steps first, then v its steps on `H v = grad_y outer`, then x moves.

    Args:
      outer, inner: `(x, y, batch) -> scalar`.
      inner_optimizer, outer_optimizer, linear_optimizer: of y, x and v, any optax
        transformation; v's default is y's. SOBA's own: rates that fall as 1 / sqrt(k + 1).
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
    linear_optimizer = inner_optimizer if linear_optimizer is None else linear_optimizer
    together = joint_optimizer(outer_optimizer, inner_optimizer, linear_optimizer)

    single = inner_steps == linear_steps == 1

    def init(start: tuple, *data: Batches) -> SobaState:
        x, y = start
        v = trees.zeros_like(y)
        return SobaState(x, y, v, together.init((x, y, v)))

    def step(
        state: SobaState, key: jax.Array, inner_data: Batches, outer_data: Batches
    ) -> SobaState:
        x, y, v, optimizers = state
        inner_key, outer_key, linear_key = jax.random.split(key, 3)
        batch = outer_data.draw(outer_key)
        if single:
            slopes = directions(outer, inner, x, y, v, inner_data.draw(inner_key), batch)
            (x, y, v), optimizers = move(together, slopes, optimizers, (x, y, v))
            return SobaState(x, y, v, optimizers)

        of_x, of_y, of_v = optimizers
        y, of_y = descend(inner, inner_optimizer, x, y, of_y, inner_data, inner_key, inner_steps)
        direct, pull = jax.grad(outer, (0, 1))(x, y, batch)

        def refine(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            v, linear_state = carry
            image = product_pair(inner, x, y, v, inner_data.draw(key))[2]
            return move(linear_optimizer, trees.subtract(image, pull), linear_state, v), None

        keys = jax.random.split(linear_key, linear_steps + 1)
        (v, of_v), _ = lax.scan(refine, (v, of_v), keys[1:])
        _, cross, _ = product_pair(inner, x, y, v, inner_data.draw(keys[0]))
        x, of_x = move(outer_optimizer, trees.subtract(direct, cross), of_x, x)
        return SobaState(x, y, v, (of_x, of_y, of_v))

    products = 1 if single else linear_steps + 1
    return Process(init, step, calls=oracle_calls(inner_steps, 1, products))
