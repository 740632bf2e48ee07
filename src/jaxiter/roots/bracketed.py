"""Roots between two bounds, element by element, to the last digits.

Source: Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a
nonlinear function without using derivatives", Advances in Engineering Software 28, 1997.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.driver import fixed_point
from jaxiter.implicit import implicit
from jaxiter.known import check_finite
from jaxiter.line_search import float_of_key, key_of_float
from jaxiter.linear import LinearSolution, Matvec
from jaxiter.numerics import (
    is_array,
    is_concrete,
    machine_epsilon,
    on_own_mesh,
    safe_divide,
    strong,
)
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.problem import Problem, as_point
from jaxiter.reuse import reused
from jaxiter.solution import Solution, Status
from jaxiter.stop import tolerance

PyTree = Any

#: Of a pole |f| at both ends is larger than at both bounds by more than `eps**POLE`, and within it
#: of the largest that was seen: of a root it is small beside what was seen on the way.
POLE = -0.25
#: Ends nearer than so many machine epsilons of x are neighbours, which is what is asked for.
NARROW = 0.5


class Bracket(NamedTuple):
    """Three points and f there; between the first two f changes its sign.

    Attributes:
      x, f: the newest, an end; other, f_other: the other end; old, f_old: the one before.
      floats: how many floats there were between the ends. halve: the next point is their middle.
      width: distance of the ends. count: evaluations. bad: f has one sign at both bounds.
      outer, peak: the largest |f| at the bounds, and anywhere. pole: |f| grew without end.
    """

    x: jax.Array
    f: jax.Array
    other: jax.Array
    f_other: jax.Array
    old: jax.Array
    f_old: jax.Array
    floats: jax.Array
    halve: jax.Array
    width: jax.Array
    count: jax.Array
    bad: jax.Array
    outer: jax.Array
    peak: jax.Array
    pole: jax.Array


def bracketed_root(
    function: Callable, lower: Any, upper: Any, *args: PyTree, **options: Unpack[SolveOptions]
) -> Solution:
    """The root of `f(x, *args)` between two bounds where f changes its sign, for every element.

    Inverse quadratic interpolation where it is safe; where it did not halve the floats that are
    left between the ends, their middle one. So whatever f and the bounds are, it takes at most two
    evaluations for each bit of the dtype, and ends where f is 0 or the ends are neighbours.

    Args:
      function: f of one number, `f(x, *args) -> number`; it sees one element of each argument.
      lower, upper: bounds, numbers or arrays, in any order.
      *args: trees of numbers or arrays that broadcast with the bounds; tables that all elements
        share are closed over.
      **options: those of `fixed_point`. `stop` is asked about the distance of the two ends. No
        `solver` and no `resume`.

    Returns:
      A `Solution` whose fields have the shape of all of them, broadcast: a status for each element,
      its steps (evaluations of f, those of the bounds included), and `residual`, |f|. `value` is
      the last end that was tried: of a jump its place, which is CONVERGED, and of a pole, where f
      changes its sign by way of infinity, too, but DIVERGED once its ends are neighbours.
      Derivatives, of any order, are those of the root by args; there are none by the bounds.

    Raises:
      ValueError: bounds where f has the same sign, when called with concrete numbers: names the
        first such element. Under jit its status is BAD_INPUT and its value NaN.

    Reference: Chandrupatla, "A new hybrid quadratic/bisection algorithm for finding the zero of a
    nonlinear function without using derivatives", Advances in Engineering Software 28, 1997.

    >>> import jax.numpy as jnp, jaxiter
    >>> out = jaxiter.bracketed_root(lambda x, a: x**3 - a, 0.0, 10.0, jnp.array([8.0, 27.0]))
    >>> out.value.tolist(), out.converged.tolist()
    ([2.0, 3.0], [True, True])
    """
    solution = _solve(function, lower, upper, *args, **options)
    if is_concrete(solution.status):
        bad = np.argwhere(np.asarray(solution.status) == Status.BAD_INPUT)
        if len(bad):
            where = tuple(int(i) for i in bad[0])
            low, high = (np.broadcast_to(np.asarray(bound), solution.status.shape)[where]
                         for bound in (lower, upper))
            element = f"element {where if len(where) != 1 else where[0]}" if where else "f"
            raise ValueError(
                f"f has the same sign at both bounds, or is NaN there: {element}, bounds {low} and "
                f"{high} ({len(bad)} of {solution.status.size} elements). Widen the bounds until f "
                "changes its sign, or use root(f, x0).")
    return solution


@reused
@on_own_mesh
def _solve(
    function: Callable, lower: Any, upper: Any, *args: PyTree, **options: Unpack[SolveOptions]
) -> Solution:
    lower, upper = (_number(name, bound) for name, bound in (("lower", lower), ("upper", upper)))
    kind = jnp.promote_types(lower.dtype, upper.dtype)
    epsilon = machine_epsilon(jnp.zeros((), kind))
    chosen = choose("bracketed_root", options, {
        "solver": "its points are its own", "resume": "start from closer bounds"},
        stop=tolerance(rtol=NARROW * epsilon, atol=float(jnp.finfo(kind).tiny)),
        adjoint=implicit(_slope), max_steps=4 * jnp.finfo(kind).bits)
    leaves, structure = jax.tree.flatten((lower, upper, args))
    places = [i for i, leaf in enumerate(leaves) if is_array(leaf) or isinstance(leaf, float)]
    arrays = [strong(leaves[i]) for i in places]
    shape = jnp.broadcast_shapes(*(array.shape for array in arrays))
    rows = [jnp.broadcast_to(array, shape).reshape(-1) for array in arrays]

    def one(*numbers: jax.Array) -> Solution:
        filled = list(leaves)
        for i, number in zip(places, numbers, strict=True):
            filled[i] = number
        low, high, args = jax.tree.unflatten(structure, filled)
        return _of_one(function, low.astype(kind), high.astype(kind), args, chosen)

    solution = jax.vmap(one)(*rows)
    return jax.tree.map(lambda leaf: leaf.reshape(*shape, *leaf.shape[1:]), solution)


def _number(name: str, bound: Any) -> jax.Array:
    """The bound as an array, integers as floats.

    Raises:
      TypeError: complex. ValueError: a concrete one that is not finite.
    """
    check_finite(**{name: bound})
    array = jnp.asarray(bound)
    if not (jnp.issubdtype(array.dtype, jnp.integer) or jnp.issubdtype(array.dtype, jnp.floating)):
        raise TypeError(f"{name} must be real, got {array.dtype}.")
    array = array.astype(float) if jnp.issubdtype(array.dtype, jnp.integer) else strong(array)
    return as_point(array)


def _of_one(
    function: Callable, lower: jax.Array, upper: jax.Array, args: tuple, chosen: Options
) -> Solution:
    """The solve of one element."""
    def f(x: jax.Array, *args: PyTree) -> jax.Array:
        value = strong(function(x, *args))
        trees.check_same_structure(x, value, "f")
        return value

    problem = Problem(
        step=lambda x, b, upper, *args: _narrowed(x, f(x, *args), b, upper),
        memory=lambda x, *args: _begin(x),
        merit=lambda x, out, b, *args: jnp.where(b.f == 0, 0, b.width),
        scale=lambda x, out, b, *args: jnp.abs(b.x), floor=0.0,
        certify=lambda x, out, b, *args: jnp.where(
            b.bad, Status.BAD_INPUT, jnp.where(b.pole, Status.DIVERGED, Status.RUNNING)),
        equations=lambda x, b, upper, *args: f(x, *args), hindsight=True)
    solution = fixed_point(problem, lower, upper, *args, **chosen._asdict())
    bracket = solution.state.answer.memory
    bad = solution.status == Status.BAD_INPUT
    measured = jnp.isfinite(solution.residual)
    return solution._replace(
        value=jnp.where(bad, jnp.nan, solution.value),
        residual=jnp.where(measured, jnp.abs(bracket.f), solution.residual).astype(
            solution.residual.dtype),
        displacement=jnp.where(measured, -bracket.f, solution.displacement))


def _slope(matvec: Matvec, b: jax.Array, *, x0: Any = None) -> LinearSolution:
    """The linear solver of one equation."""
    del x0
    slope = matvec(jnp.ones_like(b))
    x = safe_divide(b, slope)
    left = jnp.where(slope == 0, jnp.abs(jnp.sign(b)), jnp.zeros_like(b))
    code = jnp.where(slope == 0, Status.LINEAR_FAILURE, Status.CONVERGED).astype(jnp.int32)
    return LinearSolution(x, code, jnp.int32(1), left, jnp.ones_like(b))


def _begin(x: jax.Array) -> Bracket:
    none, endless, no = jnp.zeros_like(x), jnp.full_like(x, jnp.inf), jnp.bool_(False)
    return Bracket(x, none, x, none, x, none, jnp.zeros_like(key_of_float(x)), no, endless,
                   jnp.int32(0), no, none, none, no)


def _narrowed(
    x: jax.Array, f: jax.Array, b: Bracket, upper: jax.Array
) -> tuple[jax.Array, Bracket]:
    """The next point, and the bracket after f was evaluated at x. The first two are the bounds."""
    second, between = b.count == 1, b.count >= 2
    # XLA may compute f twice, and round it to two signs next to a root: what was chosen by one is
    # set right by the other, which is the one remembered.
    wrong = between & (jnp.sign(b.f) * jnp.sign(b.f_other) > 0)
    b = b._replace(
        other=jnp.where(wrong, b.old, b.other), f_other=jnp.where(wrong, b.f_old, b.f_other),
        old=jnp.where(wrong, b.other, b.old), f_old=jnp.where(wrong, b.f_other, b.f_old))
    same = between & (jnp.sign(f) == jnp.sign(b.f))
    other, f_other = jnp.where(same, b.other, b.x), jnp.where(same, b.f_other, b.f)
    old, f_old = jnp.where(same, b.x, b.other), jnp.where(same, b.f, b.f_other)
    key, key_other = key_of_float(x), key_of_float(other)
    low, high = jnp.minimum(key, key_other), jnp.maximum(key, key_other)
    floats = (high >> 1) - (low >> 1)
    bad = (second & ~(jnp.sign(f) * jnp.sign(f_other) <= 0)) | b.bad | jnp.isnan(f)
    halve = between & ~b.halve & (floats > b.floats // 2)
    share = _interpolated(x, f, other, f_other, old, f_old)
    guess = x + share * (other - x)
    middle = (low >> 1) + (high >> 1) + (low & high & 1)
    # Never an end again.
    inside = jnp.clip(key_of_float(jnp.where(jnp.isfinite(guess), guess, x)), low + 1, high - 1)
    usual = jnp.isfinite(guess) & ~halve & between
    following = float_of_key(jnp.where(usual, inside, middle), x.dtype)
    first = b.count == 0
    outer = jnp.where(between, b.outer, jnp.maximum(b.outer, jnp.abs(f)))
    peak, large = jnp.maximum(b.peak, jnp.abs(f)), machine_epsilon(x) ** POLE
    grown = jnp.minimum(jnp.abs(f), jnp.abs(f_other))
    grown = between & (grown > large * outer) & (
        (grown > peak / large) | jnp.isinf(f) | jnp.isinf(f_other))
    near = low >= high - 1
    # While f grows towards both ends their distance says nothing of a root.
    width = jnp.where(first | bad | (grown & ~near), jnp.inf, jnp.where(
        near, 0, jnp.abs(x - other)))
    return jnp.where(first, upper, following), Bracket(
        x, f, other, f_other, old, f_old, floats, halve, width, b.count + 1, bad, outer, peak,
        grown & near)


def _interpolated(
    x: jax.Array, f: jax.Array, other: jax.Array, f_other: jax.Array, old: jax.Array,
    f_old: jax.Array,
) -> jax.Array:
    """The share of the way to the other end where the parabola through three points is zero.

    A half where that is not monotone between the ends.
    """
    place, height = (x - other) / (old - other), (f - f_other) / (f_old - f_other)
    safe = (height**2 < place) & ((1 - height) ** 2 < 1 - place)
    share = f / (f_other - f) * f_old / (f_other - f_old) + (old - x) / (other - x) * (
        f / (f_old - f)) * (f_other / (f_old - f_other))
    return jnp.where(safe & jnp.isfinite(share), share, 0.5)
