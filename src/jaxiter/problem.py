"""A problem: the map whose fixed point is wanted, and the few facts about it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter import trees
from jaxiter.known import known
from jaxiter.numerics import machine_epsilon, strong
from jaxiter.solution import Status

PyTree = Any


class Problem(NamedTuple):
    """A map and what the driver may know about it; a bare callable is promoted to one.

    The map is given as `step`, or as `residual` where that is the better known: `T(x) - x`
    loses every digit of a residual below one epsilon of x. With `cache` and `memory` every
    function below takes them after the points:
    `step(x, c, m, *args)`, `merit(x, Tx, c, m, *args)`, `equations(x, c, m, *args)`.

    Attributes:
      step: `T(x, *args) -> x` (with has_aux: `(x, aux)`); same tree, shapes and dtypes.
        With `memory` it returns `(x, m)` in place of x.
      residual: `residual(x, *args)`, which is `T(x, *args) - x`, in place of step and with the
        same conventions; the functions below then get it where `Tx` stands.
      merit: `merit(x, Tx, *args) -> scalar`, what the tolerance is measured on;
        default: l2 norm of Tx - x.
      scale: `scale(x, Tx, *args) -> scalar` or a number, what rtol multiplies; default
        max(|x|, |Tx|).
      floor: `floor(x, *args) -> scalar` or a number, the smallest merit that this arithmetic
        can reach; default 4 eps scale.
      equations: `equations(x, *args) -> tree`, zero at the solution, same structure as x;
        the adjoint differentiates it. Default T(x) - x.
      retract: `retract(x) -> x`, brings an extrapolated point back into the domain.
      cache: `cache(x, *args) -> c` (with memory `cache(x, m, *args)`), costly things derived
        from x, rebuilt every `refresh` steps and constant in between; the adjoint
        differentiates through it.
      memory: `memory(x0, *args) -> m`, small arrays that cannot be recomputed (adaptive
        steps, keys); the adjoint treats their final value as a constant.
      refresh: steps between two builds of the cache.
      stale: `stale(x, c, *args) -> bool scalar`, asked every `refresh` steps: whether the
        cache must be rebuilt. Default: always.
      valid: `valid(x0, *args) -> bool scalar`; where it is false the solve ends at once
        with BAD_INPUT. The check for inputs that are not concrete.
      certify: `certify(x, Tx, *args) -> Status code`, asked at every measured step; RUNNING when
        it has nothing to say. Of it and the stop rule's status the more severe one counts.
      epoch: `epoch(m) -> int32 scalar`: where it moves, the memory has made another map of it
        (a new penalty, a new weight). The step is then a plain one and the solver starts afresh.
      calls: what one evaluation of T costs in calls of the user's oracles: a tree of integers,
        such as `{"gradients": 2}`, or a function `calls(x, *args)` that returns one; summed in
        `Solution.calls`.
      hindsight: whether merit, scale, floor and certify get the memory as the evaluation at x
        left it, and not as it found it: for a step that learns there what x is worth.
      units: `units(x, *args) -> tree of positive scalars`, of the structure of x or of its first
        levels: in what its parts are measured, where that is not 1. The adjoint solves its linear
        system in them.
    """

    step: Callable | None = None
    merit: Callable | None = None
    scale: Callable | float | None = None
    floor: Callable | float | None = None
    equations: Callable | None = None
    retract: Callable | None = None
    cache: Callable | None = None
    memory: Callable | None = None
    refresh: int = 20
    stale: Callable | None = None
    valid: Callable | None = None
    certify: Callable | None = None
    residual: Callable | None = None
    epoch: Callable | None = None
    calls: Callable | PyTree | None = None
    hindsight: bool = False
    units: Callable | None = None


class Measure(NamedTuple):
    """Norms of one evaluation: l2 of residual and image, merit, scale and float floor.

    The first two are 0, or NaN where something is not finite, for a problem that judges itself.
    `certificate`: what `certify` says; RUNNING without one.
    """

    residual_norm: jax.Array
    image_norm: jax.Array
    merit: jax.Array
    scale: jax.Array
    floor: jax.Array
    certificate: jax.Array


def nothing_measured(nan: jax.Array) -> Measure:
    """The measure of a step that was not looked at."""
    return Measure(nan, nan, nan, nan, nan, jnp.int32(Status.RUNNING))


def as_problem(problem: Problem | Callable) -> Problem:
    """Promote a bare map to a Problem.

    Raises:
      TypeError: when it is neither, or has not exactly one of step and residual.
    """
    if isinstance(problem, Problem):
        if (problem.step is None) == (problem.residual is None):
            raise TypeError("a Problem needs exactly one of step and residual.")
        return problem
    if not callable(problem):
        raise TypeError(f"expected a map T(x, *args) or a Problem, got {type(problem).__name__}.")
    return Problem(step=problem)


def as_point(x0: PyTree) -> PyTree:
    """x0 as strongly typed arrays.

    Raises:
      ValueError: an empty tree, or a concrete x0 with NaN or infinity.
      TypeError: a leaf that is not floating point or complex, with its path.
    """
    if not jax.tree.leaves(x0):
        raise ValueError("x0 has no array leaves; give it at least one floating-point array.")

    def convert(path: tuple, leaf: Any) -> jax.Array:
        def finite(leaf: Any) -> None:
            if not np.all(np.isfinite(np.asarray(leaf))):
                raise ValueError(f"x0 at {trees.path_name(path)} contains NaN or infinity.")

        try:
            array = strong(leaf)
        except TypeError as error:
            raise TypeError(f"x0 at {trees.path_name(path)} is {type(leaf).__name__}, "
                            "not an array; move it into args or close over it.") from error
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            raise TypeError(
                f"x0 at {trees.path_name(path)} has dtype {array.dtype}; a fixed point needs "
                "floating-point or complex leaves. Convert it with astype(float)."
            )
        known(finite, leaf)
        return array

    return jax.tree_util.tree_map_with_path(convert, x0)


def evaluate(
    problem: Problem, x: PyTree, cache: PyTree, memory: PyTree, args: tuple, has_aux: bool
) -> tuple[PyTree, PyTree, PyTree]:
    """One call of T: `(output, new memory, aux)`, checked against the structure of x.

    The output is T(x), or the residual of a problem that is given by it.
    """
    function = problem.residual if problem.step is None else problem.step
    assert function is not None
    out = function(x, *extras(problem, cache, memory), *args)
    aux = None
    if has_aux:
        out, aux = _pair(out, "a map with has_aux=True must return (x, aux)")
    if problem.memory is not None:
        out, new_memory = _pair(out, "a map with memory must return (x, memory)")
        new_memory = jax.tree.map(strong, new_memory)
        trees.check_same_structure(memory, new_memory, "The memory returned by the map")
    else:
        new_memory = memory
    out = jax.tree.map(strong, out)
    trees.check_same_structure(x, out, "The map")
    return out, new_memory, aux


def image_and_residual(problem: Problem, x: PyTree, output: PyTree) -> tuple[PyTree, PyTree]:
    """T(x) and `T(x) - x`, of which a problem gives one and the other follows."""
    if problem.step is None:
        return trees.add(x, output), output
    return output, trees.subtract(output, x)


def _pair(out: Any, requirement: str) -> tuple:
    if not isinstance(out, tuple) or len(out) != 2:
        raise TypeError(f"{requirement}, got {type(out).__name__}.")
    return out


def extras(problem: Problem, cache: PyTree, memory: PyTree) -> tuple:
    """The operands between the points and args: the cache and the memory, where they exist."""
    first = () if problem.cache is None else (cache,)
    return (*first, *_remembered(problem, memory))


def _remembered(problem: Problem, memory: PyTree) -> tuple:
    return () if problem.memory is None else (memory,)


def judges_itself(problem: Problem) -> bool:
    """Whether a status needs no norm but the problem's own merit and scale."""
    return problem.merit is not None and problem.scale is not None


def build_cache(problem: Problem, x: PyTree, memory: PyTree, args: tuple) -> PyTree:
    """The cache at a point; None without one."""
    if problem.cache is None:
        return None
    return problem.cache(x, *_remembered(problem, memory), *args)


def epoch(problem: Problem, memory: PyTree) -> jax.Array:
    """The number of the map that a memory makes.

    Raises:
      TypeError: when it is not an integer scalar.
    """
    assert problem.epoch is not None
    number = jnp.asarray(problem.epoch(memory))
    if number.shape or not jnp.issubdtype(number.dtype, jnp.integer):
        raise TypeError(f"epoch must be an integer scalar, got {number.dtype} of shape "
                        f"{number.shape}.")
    return number


def calls(problem: Problem, x: PyTree, cache: PyTree, memory: PyTree, args: tuple) -> PyTree:
    """Oracle calls of one evaluation, int32; None where the problem says nothing."""
    spent = problem.calls
    if callable(spent):
        spent = spent(x, *extras(problem, cache, memory), *args)
    return jax.tree.map(lambda count: jnp.asarray(count, jnp.int32), spent)


def measure(
    problem: Problem, x: PyTree, output: PyTree, norms: tuple, cache: PyTree, memory: PyTree,
    args: tuple,
) -> Measure:
    """What the status rests on, from l2 norms of (x, image, residual); never differentiated."""
    rest = (*extras(problem, cache, memory), *args)
    x_norm, image_norm, residual_norm = norms
    merit = residual_norm if problem.merit is None else problem.merit(x, output, *rest)
    scale, floor = problem.scale, problem.floor
    if scale is None:
        scale = jnp.maximum(x_norm, image_norm)
    elif callable(scale):
        scale = scale(x, output, *rest)
    if floor is None:
        floor = 4 * machine_epsilon(x) * jnp.asarray(scale)
    elif callable(floor):
        floor = floor(x, *rest)
    merit, scale, floor = (
        jnp.asarray(value).astype(residual_norm.dtype) for value in (merit, scale, floor))
    code = Status.RUNNING if problem.certify is None else problem.certify(x, output, *rest)
    return Measure(
        residual_norm, image_norm, merit, scale, floor, jnp.asarray(code, jnp.int32))


def in_units(
    problem: Problem, x: PyTree, memory: PyTree, args: tuple, has_aux: bool = False
) -> tuple[Callable, PyTree, Callable]:
    """The problem's equations in its units: `(equations(x, *args), x, back)`, back out of them.

    By powers of two, so that nothing is rounded.
    """
    equations = root_equations(problem, has_aux)
    if problem.units is None:
        return lambda x, *args: equations(x, memory, *args), x, lambda tree: tree
    cache = build_cache(problem, x, memory, args)
    units = lax.stop_gradient(problem.units(x, *extras(problem, cache, memory), *args))
    units = jax.tree.map(lambda unit: jnp.ldexp(
        jnp.ones_like(unit), jnp.round(jnp.log2(unit)).astype(jnp.int32)), units)

    def back(tree: PyTree) -> PyTree:
        return jax.tree.map(trees.scale, units, tree)

    def into(tree: PyTree) -> PyTree:
        return jax.tree.map(lambda unit, part: trees.scale(1 / unit, part), units, tree)

    return lambda x, *args: into(equations(back(x), memory, *args)), into(x), back


def root_equations(problem: Problem, has_aux: bool = False) -> Callable:
    """`equations(x, memory, *args) -> tree`, zero at the solution, with the cache inlined."""

    def equations(x: PyTree, memory: PyTree, *args: PyTree) -> PyTree:
        cache = build_cache(problem, x, memory, args)
        if problem.equations is not None:
            return problem.equations(x, *extras(problem, cache, memory), *args)
        output, _, _ = evaluate(problem, x, cache, memory, args, has_aux)
        return image_and_residual(problem, x, output)[1]

    return equations
