"""Stochastic bilevel methods as `init` / `step` pairs, and the loop that runs them.

Objectives are `inner(x, y, batch)` and `outer(x, y, batch)`, means over a batch. A step takes
the state, `Batches` to draw from and a key; all of it jits, scans and vmaps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.hypergradient import OracleCount

PyTree = Any


class Batches(NamedTuple):
    """Data with leading axes n and m, and rows per batch; size None: all rows (or no data)."""

    inner_data: PyTree
    outer_data: PyTree
    size: int | None

    def inner(self, key: jax.Array) -> PyTree:
        """A batch for the inner objective."""
        return self._draw(self.inner_data, key)

    def outer(self, key: jax.Array) -> PyTree:
        """A batch for the outer objective."""
        return self._draw(self.outer_data, key)

    def _draw(self, data: PyTree, key: jax.Array) -> PyTree:
        if self.size is None:
            return data
        count = jax.tree.leaves(data)[0].shape[0]
        rows = jax.random.randint(key, (self.size,), 0, count)
        return jax.tree.map(lambda leaf: leaf[rows], data)


class Method(NamedTuple):
    """`init(x, y) -> state`; `step(state, batches, key) -> state` with fields x, y and counts."""

    init: Callable
    step: Callable


class SobaState(NamedTuple):
    """x, y, the adjoint v of H v = grad_y outer, and the states of the three optimisers."""

    x: PyTree
    y: PyTree
    v: PyTree
    optimisers: tuple
    counts: OracleCount


def no_counts() -> OracleCount:
    """No call yet."""
    return OracleCount(jnp.int32(0), jnp.int32(0), jnp.int32(0))


def add_counts(counts: OracleCount, *more: int) -> OracleCount:
    """More calls of inner, outer and products."""
    return OracleCount(*(old + new for old, new in zip(counts, more, strict=True)))


def _move(
    optimizer: optax.GradientTransformation, direction: PyTree, state: PyTree, point: PyTree
) -> tuple[PyTree, PyTree]:
    updates, state = optimizer.update(direction, state, point)
    return optax.apply_updates(point, updates), state


def soba(
    outer: Callable, inner: Callable, *, inner_optimizer: optax.GradientTransformation,
    outer_optimizer: optax.GradientTransformation,
    linear_optimizer: optax.GradientTransformation | None = None,
    inner_steps: int = 1, linear_steps: int = 1,
) -> Method:
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
    >>> method = soba(lambda x, y, _: (y - 1) ** 2, lambda x, y, _: (y - x) ** 2,
    ...               inner_optimizer=optax.sgd(0.4), outer_optimizer=optax.sgd(0.1))
    >>> state, _ = run(method, method.init(jnp.float32(0), jnp.float32(0)), None, None,
    ...                num_steps=200, key=jax.random.key(0))
    >>> round(float(state.x), 3)
    1.0
    """
    linear_optimizer = inner_optimizer if linear_optimizer is None else linear_optimizer
    together = inner_steps == linear_steps == 1

    def init(x: PyTree, y: PyTree) -> SobaState:
        optimisers = (outer_optimizer.init(x), inner_optimizer.init(y), linear_optimizer.init(y))
        return SobaState(x, y, trees.zeros_like(y), optimisers, no_counts())

    def system(x: PyTree, y: PyTree, v: PyTree, batch: PyTree) -> tuple:
        """grad_y inner, cross(v) and H v from one pass."""
        (_, slope), (cross, image) = jax.jvp(
            lambda y: jax.grad(inner, (0, 1))(x, y, batch), (y,), (v,))
        return slope, cross, image

    def step(state: SobaState, batches: Batches, key: jax.Array) -> SobaState:
        x, y, v, (of_x, of_y, of_v), counts = state
        first, second, third = jax.random.split(key, 3)
        batch = batches.outer(second)
        if together:
            slope, cross, image = system(x, y, v, batches.inner(first))
            direct, pull = jax.grad(outer, (0, 1))(x, y, batch)
            new_y, of_y = _move(inner_optimizer, slope, of_y, y)
            new_v, of_v = _move(linear_optimizer, trees.subtract(image, pull), of_v, v)
            new_x, of_x = _move(outer_optimizer, trees.subtract(direct, cross), of_x, x)
            return SobaState(new_x, new_y, new_v, (of_x, of_y, of_v), add_counts(counts, 1, 1, 1))

        def descend(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            y, inner_state = carry
            slope = jax.grad(inner, 1)(x, y, batches.inner(key))
            return _move(inner_optimizer, slope, inner_state, y), None

        (y, of_y), _ = lax.scan(descend, (y, of_y), jax.random.split(first, inner_steps))
        direct, pull = jax.grad(outer, (0, 1))(x, y, batch)

        def refine(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            v, linear_state = carry
            image = system(x, y, v, batches.inner(key))[2]
            return _move(linear_optimizer, trees.subtract(image, pull), linear_state, v), None

        keys = jax.random.split(third, linear_steps + 1)
        (v, of_v), _ = lax.scan(refine, (v, of_v), keys[1:])
        _, cross, _ = system(x, y, v, batches.inner(keys[0]))
        x, of_x = _move(outer_optimizer, trees.subtract(direct, cross), of_x, x)
        return SobaState(x, y, v, (of_x, of_y, of_v),
                         add_counts(counts, inner_steps, 1, linear_steps + 1))

    return Method(init, step)


class F2saState(NamedTuple):
    """x; y near argmin outer + lam inner; z near argmin inner; k steps made."""

    x: PyTree
    y: PyTree
    z: PyTree
    k: jax.Array
    counts: OracleCount


def f2sa(
    outer: Callable, inner: Callable, *, inner_rate: float, penalty_rate: float,
    outer_factor: float = 1.0, inner_steps: int = 10, exponents: tuple[float, float] = (1 / 3, 0.0),
    first: int = 1, largest_penalty: float = 1e3,
) -> Method:
    """F2SA: gradients only. y follows `outer + lam inner`, z follows inner, lam grows slowly.

    With rates `a_k = penalty_rate (k + first)^-a` and `g_k = inner_rate (k + first)^-c` of
    exponents (a, c), the penalty is `lam_k = g_k / (2 a_k)`, z moves by g_k, y by a_k and x by
    `outer_factor a_k`. The bias of the hypergradient is O(1 / lam).

    Args:
      outer, inner: `(x, y, batch) -> scalar`; inner strongly convex in y.
      inner_rate, penalty_rate: at most 1 / (4 L) of inner and 1 / (8 L) of outer.
      exponents: (1/3, 0) without noise, (3/5, 2/5) with noise in outer, (5/7, 4/7) in both.
      largest_penalty: cap of lam; above about 3e3 the difference of gradients that x follows is
        rounding in float32.

    Raises:
      ValueError: rates or factor not positive, exponents under which lam would fall.

    Source: Kwon, Kwon, Wright and Nowak, "A fully first-order method for stochastic bilevel
    optimization", 2023.

    >>> import jax, jax.numpy as jnp
    >>> method = f2sa(lambda x, y, _: (y - 1) ** 2, lambda x, y, _: (y - x) ** 2,
    ...               inner_rate=0.2, penalty_rate=0.1, inner_steps=5)
    >>> state, _ = run(method, method.init(jnp.float32(0), jnp.float32(0)), None, None,
    ...                num_steps=500, key=jax.random.key(0))
    >>> abs(float(state.x) - 1) < 0.01
    True
    """
    slow, fast = exponents
    if min(inner_rate, penalty_rate, outer_factor) <= 0:
        raise ValueError("inner_rate, penalty_rate and outer_factor must be positive.")
    if slow < fast:
        raise ValueError(f"exponents {exponents} would make the penalty fall: a < c.")

    def init(x: PyTree, y: PyTree) -> F2saState:
        return F2saState(x, y, y, jnp.int32(0), no_counts())

    def step(state: F2saState, batches: Batches, key: jax.Array) -> F2saState:
        x, y, z, k, counts = state
        age = (k + first).astype(jnp.float32)
        alpha, gamma = penalty_rate * age**-slow, inner_rate * age**-fast
        lam = jnp.minimum(gamma / (2 * alpha), largest_penalty)
        alpha = gamma / (2 * lam)

        def follow(carry: tuple, key: jax.Array) -> tuple[tuple, None]:
            y, z = carry
            a, b, c = jax.random.split(key, 3)
            z = trees.axpy(-gamma, jax.grad(inner, 1)(x, z, batches.inner(a)), z)
            up = jax.grad(outer, 1)(x, y, batches.outer(b))
            down = jax.grad(inner, 1)(x, y, batches.inner(c))
            return (trees.axpy(-alpha, trees.axpy(lam, down, up), y), z), None

        keys = jax.random.split(key, inner_steps + 1)
        (y, z), _ = lax.scan(follow, (y, z), keys[1:])
        a, b = jax.random.split(keys[0])
        batch = batches.inner(a)  # one batch for both: the noise of the difference cancels
        gap = jax.grad(lambda x: inner(x, y, batch) - inner(x, z, batch))(x)
        direct = jax.grad(outer, 0)(x, y, batches.outer(b))
        x = trees.axpy(-outer_factor * alpha, trees.axpy(lam, gap, direct), x)
        counts = add_counts(counts, 2 * inner_steps + 2, inner_steps + 1, 0)
        return F2saState(x, y, z, k + 1, counts)

    return Method(init, step)


def run(
    method: Method, state: PyTree, inner_data: PyTree, outer_data: PyTree, *, num_steps: int,
    key: jax.Array, batch_size: int | None = None, trace: Callable | None = None, every: int = 1,
) -> tuple[PyTree, PyTree]:
    """`num_steps` steps of a method in one scan.

    Args:
      inner_data, outer_data: pytrees with one leading axis each; None without data.
      batch_size: rows of a batch, drawn with replacement; default all rows.
      trace: `trace(state) -> pytree`, recorded after every so many steps.

    Returns:
      The last state and the stacked records (None without trace).

    Raises:
      ValueError: a batch larger than the data, steps that `every` does not divide.
    """
    for name, data in (("inner_data", inner_data), ("outer_data", outer_data)):
        for leaf in jax.tree.leaves(data) if batch_size is not None else ():
            if leaf.shape[0] < batch_size:
                raise ValueError(f"batch_size={batch_size} is larger than {name}, which has "
                                 f"{leaf.shape[0]} rows.")
    if num_steps < 1 or num_steps % every:
        raise ValueError(f"num_steps={num_steps} must be a positive multiple of every={every}.")
    batches = Batches(inner_data, outer_data, batch_size)

    def once(state: PyTree, key: jax.Array) -> tuple[PyTree, None]:
        return method.step(state, batches, key), None

    def block(state: PyTree, keys: jax.Array) -> tuple[PyTree, PyTree]:
        state, _ = lax.scan(once, state, keys)
        return state, None if trace is None else trace(state)

    keys = jax.random.split(key, num_steps)
    return lax.scan(block, state, keys.reshape(num_steps // every, every))
