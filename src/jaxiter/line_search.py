"""Numbers that methods look for along a line: a length that is accepted, a first guess, a root."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.adjoint import attach_with_jvp
from jaxiter.numerics import anchor, hoist, stop_gradient, strong, typed_by
from jaxiter.packed import while_loop

PyTree = Any


class Trial(NamedTuple):
    """The last length that was tried, what was found there, whether it was accepted, and tries."""

    step: jax.Array
    value: PyTree
    accepted: jax.Array
    tries: jax.Array


def halve(
    evaluate: Callable[[jax.Array], PyTree], accept: Callable[[jax.Array, PyTree], jax.Array],
    step: jax.Array, halvings: int = 30,
) -> Trial:
    """Halve a step until what is found there is finite and accepted.

        step, step / 2, step / 4, ...    the first s with accept(s, evaluate(s))

    Each length is evaluated once; keep the value instead of evaluating again. After `halvings`
    halvings the last trial comes back as not accepted: what to do then is the caller's to say.
    A loop, so not for reverse differentiation through it.

    Args:
      evaluate: `step -> tree`, all that is wanted at the trial point.
      accept: `(step, value) -> bool scalar`; asked with what is finite and what is not, but only a
        finite value can be accepted.
      step: the first length, a float scalar. halvings: at least 0, static.

    >>> import jax.numpy as jnp
    >>> trial = halve(lambda s: jnp.log(3 - s), lambda s, value: value > 0, jnp.array(8.0))
    >>> float(trial.step), int(trial.tries), bool(trial.accepted)
    (1.0, 4, True)
    """
    if halvings < 0:
        raise ValueError(f"halvings must be at least 0, got {halvings}.")
    step = strong(step)

    def attempt(step: jax.Array) -> tuple[PyTree, jax.Array]:
        value = jax.tree.map(strong, evaluate(step))
        floats = [leaf for leaf in jax.tree.leaves(value)
                  if jnp.issubdtype(leaf.dtype, jnp.inexact)]
        return value, accept(step, value) & trees.finite(floats)

    _, constants, (shapes, _) = hoist(attempt, step)
    blank = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)

    def body(trial: Trial) -> Trial:
        length = jnp.where(trial.tries == 0, trial.step, trial.step / 2)
        return Trial(length, *attempt(length), trial.tries + 1)

    return while_loop(
        lambda trial: ~trial.accepted & (trial.tries <= halvings), body,
        anchor(Trial(step, blank, jnp.bool_(False), jnp.int32(0)), (step, constants)))


def barzilai_borwein(
    dx: PyTree, dg: PyTree, kind: str = "long", lower: Any = 0.0, upper: Any = jnp.inf
) -> jax.Array:
    """The step that fits the last move: how far x moved, over how much the gradient changed.

        long:   <dx, dx> / <dx, dg>
        short:  <dx, dg> / <dg, dg>
        mean:   |dx| / |dg|

    clipped to `[lower, upper]`. Without positive curvature (`<dx, dg> <= 0`; for mean: dg = 0) it
    is `upper`; where something is not finite, `lower`. Both trees are taken in units of their
    largest entry, so that no square leaves the float range.

    Args:
      dx, dg: trees alike, changes of the point and of the gradient (or residual, with its sign).
      kind: "long", "short", or "mean", the geometric mean of both where the curvature is positive.
      lower, upper: bounds; may be traced.

    Returns:
      A scalar of at least float32.

    Raises:
      ValueError: an unknown kind.

    Reference: Barzilai and Borwein, "Two-point step size gradient methods", IMA J. Numer. Anal.
    8, 1988; Birgin, Martinez and Raydan, "Nonmonotone spectral projected gradient methods on
    convex sets", SIAM J. Optim. 10, 2000 (the bounds).

    >>> import jax.numpy as jnp
    >>> dx, hessian = jnp.array([1.0, 1.0]), jnp.array([1.0, 3.0])
    >>> [round(float(barzilai_borwein(dx, hessian * dx, kind)), 3) for kind in ("long", "short")]
    [0.5, 0.4]
    """
    if kind not in ("long", "short", "mean"):
        raise ValueError(f'kind must be "long", "short" or "mean", got {kind!r}.')
    move, change = trees.magnitude(dx), trees.magnitude(dg)
    dx, dg = trees.divide(dx, move), trees.divide(dg, change)
    squares, curvature = (trees.squared_norm(dx), trees.squared_norm(dg)), trees.dot(dx, dg).real
    if kind == "mean":
        top, bottom = (jnp.sqrt(square) for square in squares)
    else:
        top, bottom = (squares[0], curvature) if kind == "long" else (curvature, squares[1])
    curved = (curvature > 0) if kind != "mean" else (squares[1] > 0)
    unit = move / change.astype(move.dtype)
    size = top / jnp.where(curved, bottom, 1) * unit
    lower, upper = (jnp.asarray(bound).astype(size.dtype) for bound in (lower, upper))
    sound = jnp.isfinite(squares[0]) & jnp.isfinite(squares[1])
    return jnp.where(sound, jnp.where(curved, jnp.clip(size, lower, upper), upper), lower)


class _Bracket(NamedTuple):
    """Ends, f there, weights of both in the next secant; whether to halve; sound; rounds; the point
    to look at next.
    """

    low: jax.Array
    high: jax.Array
    f_low: jax.Array
    f_high: jax.Array
    w_low: jax.Array
    w_high: jax.Array
    halving: jax.Array
    sound: jax.Array
    rounds: jax.Array
    x: jax.Array


def monotone_root(
    function: Callable[[jax.Array], jax.Array], lower: Any, upper: Any
) -> jax.Array:
    """The root of a monotone function between two bounds, elementwise, to the last digit.

    Secants with the Illinois weights; where one did not halve the floats that are left in
    the bracket, the next point is their middle one. So whatever f and the bounds are, it takes
    at most two evaluations for each bit of the dtype (64 in float32), and ends at two
    neighbouring floats: that where |f| is smaller is returned.

    Derivatives, of any order and in both modes, are those of the root, `-(df/dtheta) / (df/dx)`,
    by everything that `function` closes over; there are none by the bounds.

    Args:
      function: increasing or decreasing in every element, `[...] -> [...]`; every element of the
        result depends on that element of the argument alone.
      lower, upper: bounds, finite, that broadcast to one shape and dtype; in any order.

    Returns:
      An array; NaN where f has one sign at both bounds, or is NaN on the way.

    Raises:
      TypeError: f of another shape or dtype than the bounds.

    Reference: Dowell and Jarratt, "A modified regula falsi method for computing the root of an
    equation", BIT 11, 1971; halving the floats instead of the interval is ours.

    >>> import jax, jax.numpy as jnp
    >>> root = lambda a: monotone_root(lambda x: x**3 - a, jnp.array(0.0), jnp.array(1e6))
    >>> float(root(8.0)), round(float(jax.grad(root)(8.0)), 5)
    (2.0, 0.08333)
    """
    lower, upper = (strong(x) for x in jnp.broadcast_arrays(lower, upper))
    bounds = stop_gradient((jnp.minimum(lower, upper), jnp.maximum(lower, upper)))
    # Traced twice: f must see points that vary over a mesh as all that it closes over does.
    bounds = typed_by(function, bounds[:1], bounds)
    pure, constants, shapes = hoist(function, bounds[0])
    trees.check_same_structure(bounds[0], shapes, "monotone_root: the function")
    fixed = stop_gradient(constants)
    root = _search(lambda x: pure(fixed, x), *bounds)

    def tangent(residual: Callable, x: jax.Array, operands: tuple, dots: tuple) -> jax.Array:
        _, change = jax.jvp(lambda ops: residual(x, ops), (operands,), (dots,))
        _, slope = jax.jvp(lambda y: residual(y, operands), (x,), (jnp.ones_like(x),))
        return -change / slope

    return attach_with_jvp(function, root, (), tangent)


def _search(function: Callable, low: jax.Array, high: jax.Array) -> jax.Array:
    f_low, f_high = function(low), function(high)
    new, no = jnp.full_like(low, 2), jnp.zeros(low.shape, bool)
    sound = jnp.sign(f_low) * jnp.sign(f_high) <= 0  # false for NaN
    high, f_high = (jnp.where(f_low == 0, a, b) for a, b in ((low, high), (f_low, f_high)))
    low, f_low = (jnp.where(f_high == 0, b, a) for a, b in ((low, high), (f_low, f_high)))
    start = _aimed(_Bracket(low, high, f_low, f_high, new, new, no, sound, jnp.int32(0), low))
    most = 2 * jnp.finfo(low.dtype).bits + 2

    def going(b: _Bracket) -> jax.Array:
        return jnp.any(_open(b)) & (b.rounds < most)

    end = while_loop(going, lambda b: _narrowed(function, b), anchor(start, start))
    nearer = jnp.where(jnp.abs(end.f_low) <= jnp.abs(end.f_high), end.low, end.high)
    return jnp.where(end.sound, nearer, jnp.nan)


def _open(b: _Bracket) -> jax.Array:
    """Where there is a float between the ends."""
    return b.sound & (key_of_float(b.low) < key_of_float(b.high) - 1)


def _narrowed(function: Callable, b: _Bracket) -> _Bracket:
    """The bracket after one more evaluation of every element that is open."""
    x = b.x
    f, still = function(x), _open(b)
    up = still & ((jnp.sign(f) == jnp.sign(b.f_low)) | (f == 0))  # x is the new low end
    down = still & ((jnp.sign(f) == jnp.sign(b.f_high)) | (f == 0))
    low, high = jnp.where(up, x, b.low), jnp.where(down, x, b.high)
    width, was = ((key_of_float(top) >> 1) - (key_of_float(bottom) >> 1)
                  for bottom, top in ((low, high), (b.low, b.high)))
    return _aimed(_Bracket(
        low, high, jnp.where(up, f, b.f_low), jnp.where(down, f, b.f_high),
        # An end that stays a second time counts half, and less every time.
        jnp.where(down, b.w_low / 2, 2), jnp.where(up, b.w_high / 2, 2),
        ~b.halving & (width > was // 2), b.sound & ~jnp.isnan(f), b.rounds + 1, x))


def _aimed(b: _Bracket) -> _Bracket:
    """With the point to look at next.

    The loop carries it: XLA may compute a secant twice, once where f is and once where an end is
    kept, and the two differ by a rounding of the bracket's size.
    """
    ends = key_of_float(b.low), key_of_float(b.high)
    v_low, v_high = jnp.minimum(b.w_low, 1) * b.f_low, jnp.minimum(b.w_high, 1) * b.f_high
    secant = b.low + (b.high - b.low) * (v_low / (v_low - v_high))
    middle = (ends[0] >> 1) + (ends[1] >> 1) + (ends[0] & ends[1] & 1)
    # Never an end again: next to a root the secant rounds to it.
    inside = jnp.clip(key_of_float(secant), ends[0] + 1, ends[1] - 1)
    x = float_of_key(jnp.where(b.halving | ~jnp.isfinite(secant), middle, inside), b.low.dtype)
    return b._replace(x=x)


def _integer(dtype: Any) -> Any:
    return jnp.dtype(f"int{jnp.finfo(dtype).bits}")


def key_of_float(x: jax.Array) -> jax.Array:
    """Integers in the order of the floats: neighbours differ by one."""
    return _mirrored(lax.bitcast_convert_type(x, _integer(x.dtype)))


def float_of_key(key: jax.Array, dtype: Any) -> jax.Array:
    """The float of such an integer."""
    return lax.bitcast_convert_type(_mirrored(key), dtype)


def _mirrored(bits: jax.Array) -> jax.Array:
    """Negative floats count downwards; its own inverse."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)
