"""A monotone inclusion as a problem of one point: the natural residual, steps that adapt, means."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import machine_epsilon, safe_divide, stop_gradient, strong
from jaxiter.operators import simplices
from jaxiter.operators.extragradient import (
    ACCEPTED,
    GROWS,
    GROWTH,
    LEAST,
    SHRINK,
    Method,
    Seen,
)
from jaxiter.operators.pace import CUT, Pace, begun, paced
from jaxiter.operators.steps import largest_gain, moving, step_for
from jaxiter.problem import Problem

PyTree = Any


class Held(NamedTuple):
    """What moves beside the point.

    Attributes:
      pace: the step, and how it is found.
      residual, rate: the natural residual at the point, and over its step.
      own: what the method remembers. mean, weight: of the average.
      last: where F was evaluated before, its value there, and whether it was, for steps that
        follow from it.
    """

    pace: Pace
    residual: jax.Array
    rate: jax.Array
    own: PyTree
    mean: PyTree
    weight: jax.Array
    last: PyTree

    @property
    def size(self) -> jax.Array:
        """The step."""
        return self.pace.size


class Choice(NamedTuple):
    """What the caller chose: the method, its name, step, Lipschitz constant, average, restart."""

    way: Method
    method: str
    step: Any
    lipschitz: Any
    average: bool
    restart: Any

    @property
    def mirror(self) -> bool:
        """Whether strategies move by their logarithms."""
        return self.method == "mirror"

    @property
    def adapts(self) -> bool:
        """Whether steps follow from what F is seen to do."""
        return self.step is None and self.lipschitz is None


def inclusion_problem(F: Callable, resolvent: Callable | None, choice: Choice) -> Problem:
    """`0 in F(z) + A(z)` by a method: its point is where F is evaluated, its memory the rest."""
    way, average = choice.way, choice.average

    def operator(z: PyTree, *args: PyTree) -> PyTree:
        value = jax.tree.map(strong, F(z, *args))
        trees.check_same_structure(z, value, "F(z), a tree like z,")
        return value

    def resolve(v: PyTree, size: jax.Array, *args: PyTree) -> PyTree:
        if choice.mirror:
            return simplices.project(v)
        return v if resolvent is None else resolvent(v, size, *args)

    def memory(z: PyTree, *args: PyTree) -> Held:
        zero = jnp.zeros((), trees.norm_dtype(z))
        last = ()
        if choice.adapts and not way.retries:
            last = (z, trees.zeros_like(z), jnp.bool_(False))
        size = _first_size(choice, operator, z, args)
        return Held(begun(size), zero, jnp.full_like(zero, jnp.inf), way.start(z),
                    z if average else (), zero, last)

    def step(x: PyTree, held: Held, *args: PyTree) -> tuple[PyTree, Held]:
        forward, sound = operator(x, *args), jnp.bool_(True)
        if choice.adapts and not way.retries:
            x, forward, held, sound = _adapted(way, x, forward, held)
        size = held.size
        back = resolve(trees.axpy(-size, forward, x), size, *args)
        residual = trees.norm(stop_gradient(trees.subtract(x, back)))
        moved = way.move(Seen(
            x, forward, back, residual, size, held.own, lambda z: operator(z, *args),
            lambda v: resolve(v, size, *args), partial(_slope, x, choice.mirror), choice.restart))
        taken = jnp.bool_(True)
        if choice.adapts and way.retries:
            assert moved.slope is not None
            taken, following = _tried(size, *moved.slope)
            taken |= ~trees.finite(forward)  # at x itself: no shorter step will help
            held = held._replace(pace=held.pace._replace(size=following))
        own = trees.where(taken, moved.own, held.own) if way.retries else moved.own
        residual = jnp.where(sound, residual, jnp.inf)
        held = held._replace(residual=residual, rate=residual / size, own=own)
        if average:
            held = _averaged(held, moved.sample, jnp.where(taken, size, 0))
        return trees.where(taken, moved.x, x), held

    def equations(x: PyTree, held: Held, *args: PyTree) -> PyTree:
        back = resolve(trees.axpy(-held.size, operator(x, *args), x), held.size, *args)
        return trees.subtract(x, back)

    return Problem(
        step=step, memory=memory, equations=equations, valid=partial(_valid, choice),
        merit=lambda x, image, held, *args: held.residual, hindsight=True,
        epoch=(lambda held: held.pace.changes) if choice.adapts else None,
        calls={"operator": way.calls})


def _valid(choice: Choice, z: PyTree, *args: PyTree) -> jax.Array:
    numbers = [value for value in (choice.step, choice.lipschitz) if value is not None]
    good = jnp.bool_(True)
    for number in numbers:
        good &= jnp.asarray(number) > 0
    if len(numbers) == 2:
        good &= jnp.asarray(choice.step) * jnp.asarray(choice.lipschitz) < choice.way.bound
    for leaf in jax.tree.leaves(z) if choice.mirror else ():
        good &= jnp.all(leaf > 0)
    return good


def _first_size(choice: Choice, operator: Callable, z: PyTree, args: tuple) -> jax.Array:
    kind = trees.norm_dtype(z)
    if choice.step is not None:
        return jnp.asarray(choice.step, kind)
    constant = choice.lipschitz
    if choice.adapts:
        constant = largest_gain(operator, z, args)
    return step_for(jnp.asarray(constant, kind), z, choice.way.usual)


def _slope(x: PyTree, mirror: bool, forward: PyTree, moved: PyTree) -> tuple:
    """`|dF| / |dz|`, and whether dz is long enough for rounding to leave it a meaning."""
    if mirror:
        moved = jax.tree.map(lambda d: jnp.sum(jnp.abs(d), -1), moved)
        forward = jax.tree.map(lambda d: jnp.max(jnp.abs(d), -1), forward)
    length, height = trees.norm(moved), trees.norm(forward)
    whole = trees.norm(x).astype(length.dtype)
    return safe_divide(height, length), length > machine_epsilon(x) ** 0.5 * whole


def _adapted(way: Method, x: PyTree, forward: PyTree, held: Held) -> tuple:
    """With the step that F at x wants beside F at the point before: (x, F(x), held, sound).

    From there, if that step was far too long or F is not finite at x, which `sound` says: what F
    does so far away says nothing of it near here.
    """
    before, value, seen = held.last
    slope, telling = _slope(x, False, trees.subtract(forward, value), trees.subtract(x, before))
    share = held.size * slope / way.usual
    sound = (trees.finite(forward) & ~(telling & (share > CUT))) | ~seen
    trusted = seen & telling & sound
    pace = paced(held.pace, share, trusted, trusted & (share > 1), safe_divide(way.usual, slope),
                 sound)
    x, forward = trees.where(sound, (x, forward), (before, value))
    own = trees.where(sound, held.own, way.start(x))
    return x, forward, held._replace(
        pace=pace._replace(size=moving(pace.size)), own=own,
        last=(x, forward, jnp.bool_(True))), sound


def _tried(size: jax.Array, slope: jax.Array, telling: jax.Array) -> tuple:
    """Whether a move of this step, over which F had this slope, counts; the next step."""
    gain = size * slope
    # Also where F is not finite so far away. What F does there says nothing of it near here.
    bad = (telling & (gain > ACCEPTED)) | ~jnp.isfinite(gain)
    shorter = size * jnp.fmin(SHRINK, jnp.fmax(LEAST, safe_divide(ACCEPTED, gain)))
    longer = jnp.where(telling & (gain <= GROWS), GROWTH * size, size)
    return ~bad, jnp.where(bad, moving(shorter), longer)


def _averaged(held: Held, sample: PyTree, size: jax.Array) -> Held:
    """The mean with one more point, of this weight."""
    weight = held.weight + size
    share = safe_divide(size, weight)
    return held._replace(weight=weight, mean=trees.axpy(
        share, trees.subtract(sample, held.mean), held.mean))
