"""The state and the steps of projective splitting, in units of the primal point."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import anchor, safe_divide
from jaxiter.operators.steps import beside_sides
from jaxiter.process import Process
from jaxiter.spectral import largest_eigenvalue

PyTree = Any

#: The power iteration ends at most 0.9 per cent short, of the square.
MARGIN = 1.01


class Graphs(NamedTuple):
    """The point and the duals that move, and points (a, a*), (b_i, b_i*) of the graphs.

    All in units of x, in which the stacked maps have norm 1. `merit`: how far (a, b*) is from
    solving the system, exactly, from the first step on.
    """

    x: PyTree
    v: PyTree
    a: PyTree
    a_dual: PyTree
    b: PyTree
    b_dual: PyTree
    merit: jax.Array
    count: jax.Array


class Units(NamedTuple):
    """The norm of the stacked maps, and the steps of A, of the blocks, of these in units of x."""

    norm: jax.Array
    a: jax.Array
    b: jax.Array
    own: jax.Array


class System(NamedTuple):
    """The system in units of x: `forward(x)`, its transpose, both resolvents."""

    forward: Callable
    pull: Callable
    near: Callable
    blocks_near: Callable


def _maps(matvec: Callable, x: PyTree, blocks: PyTree) -> tuple[Callable, Callable]:
    """`x -> (L_i x)`, stacked, and its transpose."""
    def forward(x: PyTree) -> PyTree:
        return jax.vmap(matvec, in_axes=(None, 0))(x, blocks)

    def pull(v: PyTree) -> PyTree:
        # Over a mesh both must vary as their product does.
        at = anchor(x, (x, v, blocks))
        return jax.linear_transpose(forward, at)(anchor(v, (at, blocks)))[0]

    return forward, pull


def units_of(matvec: Callable, count: int, step: Any, x: PyTree, blocks: PyTree) -> Units:
    """The steps, by power iteration on the stacked maps."""
    forward, pull = _maps(matvec, x, blocks)
    square = largest_eigenvalue(lambda x: pull(forward(x)), x).value
    norm = MARGIN * jnp.sqrt(jnp.abs(square))
    norm = jnp.where(norm == 0, 1, norm)
    own = jnp.full_like(norm, count**0.5)
    size = 1 / (norm * own) if step is None else jnp.asarray(step, norm.dtype)
    return Units(norm, size, size * norm**2 * own, own)


def system_of(
    resolvent: Callable, block_resolvent: Callable, matvec: Callable, x: PyTree, blocks: PyTree,
    units: Units, args: tuple,
) -> System:
    """The system at a point of this kind, in units of x."""
    forward, pull = _maps(matvec, x, blocks)

    def blocks_near(v: PyTree) -> PyTree:
        near = jax.vmap(lambda v, block: block_resolvent(v, units.b, block, *args))
        return trees.scale(1 / units.norm, near(trees.scale(units.norm, v), blocks))

    return System(
        lambda x: trees.scale(1 / units.norm, forward(x)),
        lambda v: trees.scale(1 / units.norm, pull(v)),
        lambda v: resolvent(v, units.a, *args), blocks_near)


def graph_process(system: Callable, matvec: Callable, count: int) -> Process:
    """The process of `Graphs`: resolvents of active blocks, a projection onto a half-space."""
    def init(x: PyTree, blocks: PyTree, *rest: PyTree) -> Graphs:
        image = jax.eval_shape(jax.vmap(matvec, in_axes=(None, 0)), x, blocks)
        none = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), image)
        zero, nothing = trees.zeros_like(x), jnp.zeros((), trees.norm_dtype(x))
        return Graphs(x, none, zero, zero, none, none, nothing, jnp.int32(0))

    def step(
        state: Graphs, key: jax.Array, blocks: PyTree, units: Units, probability: jax.Array,
        values: jax.Array, chances: jax.Array, *args: PyTree,
    ) -> Graphs:
        x, v = state.x, state.v
        forward, pull, near, blocks_near = system(x, blocks, units, args)
        draw, other = jax.random.split(key)
        # All at first; a probability that makes no sense activates none ever after.
        active = (state.count == 0) | jax.random.bernoulli(draw, probability, (count,))
        lam = jnp.dot(values, _one_hot(other, chances, values.dtype))

        back = trees.subtract(x, pull(v))
        a = near(back)
        a_dual = trees.subtract(back, a)
        image = forward(x)
        b = trees.where_rows(active, blocks_near(trees.axpy(units.own, v, image)), state.b)
        b_dual = trees.where_rows(active, trees.axpy(1 / units.own, trees.subtract(image, b), v),
                         state.b_dual)

        s = trees.add(a_dual, pull(b_dual))
        t = trees.subtract(b, forward(a))
        square = trees.squared_norm((s, t))
        # Not <x, s> - <a, a*> and so on: differences of small numbers keep their digits.
        ahead = trees.dot((trees.subtract(x, a), trees.subtract(v, b_dual)), (s, t))
        theta = lam.astype(square.dtype) * safe_divide(jnp.maximum(ahead, 0), square)
        return Graphs(trees.axpy(-theta, s, x), trees.axpy(-theta, t, v), a, a_dual, b, b_dual,
                      jnp.sqrt(square), state.count + 1)

    return Process(
        init, step,
        merit=lambda state, *args: jnp.where(state.count == 0, jnp.inf, state.merit),
        scale=lambda state, *args: beside_sides(
            trees.norm((state.x, state.a, state.b)),
            trees.norm((state.v, state.a_dual, state.b_dual))))


def _one_hot(key: jax.Array, chances: jax.Array, kind: Any) -> jax.Array:
    return jax.nn.one_hot(jax.random.choice(key, chances.size, p=chances), chances.size, dtype=kind)
