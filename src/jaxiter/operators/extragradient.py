"""Steps of extragradient methods: where F is evaluated next, and what is remembered."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.operators import simplices

PyTree = Any

#: The bound that backtracking holds `step |F(z) - F(h)| / |z - h|` below, and where it grows.
ACCEPTED, GROWS = 0.9, 0.7
#: What a step that is taken back is multiplied by at most and at least, one that does well by.
SHRINK, LEAST, GROWTH = 0.7, 0.1, 1.2


class Seen(NamedTuple):
    """What a step sees of the point x: F(x), J(x - step F(x)), the length of x less that.

    `own` is what the method remembered; `operator(z)`, `resolve(v)` evaluate F and J; `slope(dF,
    dz)` is the ratio of their lengths, by which a step is judged, and whether rounding leaves it
    any meaning. `restart` is the anchored method's.
    """

    x: PyTree
    forward: PyTree
    back: PyTree
    residual: jax.Array
    size: jax.Array
    own: PyTree
    operator: Callable
    resolve: Callable
    slope: Callable
    restart: Any


class Move(NamedTuple):
    """Where F is evaluated next; what to remember; the point that an average takes.

    `slope` and whether it is known: of F between two points of this step, for backtracking.
    """

    x: PyTree
    own: PyTree
    sample: PyTree
    slope: tuple | None = None


class Method(NamedTuple):
    """A method: what it remembers at first, a step, and the steps that it can take.

    Attributes:
      start: `start(z0) -> own`. move: `move(seen) -> Move`.
      usual, bound: step times Lipschitz constant: the default, and what convergence is proved for.
      calls: evaluations of F in a step. retries: whether a step too long can be taken back.
    """

    start: Callable
    move: Callable
    usual: float
    bound: float
    calls: int = 1
    retries: bool = False


def along(seen: Seen, z: PyTree, forward: PyTree) -> PyTree:
    """`J(z - step forward)`."""
    return seen.resolve(trees.axpy(-seen.size, forward, z))


def _extragradient(seen: Seen) -> Move:
    half = seen.back
    forward = seen.operator(half)
    slope = seen.slope(trees.subtract(forward, seen.forward), trees.subtract(half, seen.x))
    return Move(along(seen, seen.x, forward), (), half, slope)


def _past(seen: Seen) -> Move:
    base = along(seen, seen.own, seen.forward)
    return Move(along(seen, base, seen.forward), base, seen.x)


def _reflected(seen: Seen) -> Move:
    base = along(seen, seen.own, seen.forward)
    mirrored = jax.tree.map(lambda new, old: 2 * new - old, base, seen.own)
    return Move(mirrored, base, seen.x)


class _Before(NamedTuple):
    forward: PyTree
    known: jax.Array


def _forward_reflected(seen: Seen) -> Move:
    before = trees.where(seen.own.known, seen.own.forward, seen.forward)
    ahead = jax.tree.map(lambda new, old: 2 * new - old, seen.forward, before)
    return Move(along(seen, seen.x, ahead), _Before(seen.forward, jnp.bool_(True)), seen.x)


class _Anchored(NamedTuple):
    """The anchor, the point that moves, steps since the anchor was set, the residual there."""

    anchor: PyTree
    base: PyTree
    age: jax.Array
    residual: jax.Array


def _anchored(seen: Seen) -> Move:
    own = seen.own
    fresh = own.age == 0
    if seen.restart is not None:
        share = jnp.asarray(seen.restart).astype(seen.residual.dtype)
        fresh |= seen.residual <= share * own.residual
    anchor = trees.where(fresh, seen.x, own.anchor)
    age = own.age.astype(seen.residual.dtype)

    def pulled(base: PyTree, weight: jax.Array) -> PyTree:
        pull = trees.scale(weight, trees.subtract(anchor, base))
        return along(seen, trees.add(base, pull), seen.forward)

    # Where F is known at the anchor already, that is the first of the two steps.
    base = trees.where(fresh, seen.x, pulled(own.base, 1 / (age + 1)))
    following = pulled(base, 1 / (jnp.where(fresh, 0, age) + 2))
    return Move(following, _Anchored(
        anchor, base, jnp.where(fresh, 1, own.age + 1),
        jnp.where(fresh, seen.residual, own.residual)), seen.x)


def _mirror(seen: Seen) -> Move:
    half = simplices.softmax(trees.axpy(-seen.size, seen.forward, seen.own))
    forward = seen.operator(half)
    slope = seen.slope(trees.subtract(forward, seen.forward), trees.subtract(half, seen.x))
    logits = simplices.normalised(trees.axpy(-seen.size, forward, seen.own))
    return Move(simplices.softmax(logits), logits, half, slope)


def _anchor_at(z: PyTree) -> _Anchored:
    return _Anchored(z, z, jnp.int32(0), jnp.zeros((), trees.norm_dtype(z)))


_REFLECTED_FORWARD = Method(
    lambda z: _Before(trees.zeros_like(z), jnp.bool_(False)), _forward_reflected, 0.45, 0.5)

METHODS = {
    "extragradient": Method(lambda z: (), _extragradient, 0.9, 1.0, calls=2, retries=True),
    "past": Method(lambda z: z, _past, 0.45, 0.5),
    "reflected": Method(lambda z: z, _reflected, 0.4, 2**0.5 - 1),
    "optimistic": _REFLECTED_FORWARD,
    "forward_reflected": _REFLECTED_FORWARD,
    "anchored": Method(_anchor_at, _anchored, 6**-0.5, 3**-0.5),
    "mirror": Method(simplices.log, _mirror, 0.9, 1.0, calls=2, retries=True),
}
