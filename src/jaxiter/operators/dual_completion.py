"""Any guess of a program's multipliers, completed to a dual point that proves a bound."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.known import check_finite
from jaxiter.numerics import on_own_mesh, stop_gradient, strong
from jaxiter.operators.linear_map import LinearMap, linear_map
from jaxiter.operators.programs.checks import canonical
from jaxiter.reuse import reused

#: Costs and multipliers are measured in a unit that makes them at most about 2^-20: so many of
#: their products with numbers of any size can be added.
SMALL = 20.0


class CompletedDual(NamedTuple):
    """A point of the dual program; all of it has derivatives, almost everywhere.

    Attributes:
      equality_dual: `[p]`, as guessed.
      inequality_dual: `[m]`, brought into the dual cone.
      lower_dual: `[n]`, at least 0: multipliers of the lower bounds.
      upper_dual: `[n]`, at least 0: those of the upper bounds.
      bound: what it proves, scalar: no point of the program has a lower objective.
    """

    equality_dual: jax.Array
    inequality_dual: jax.Array
    lower_dual: jax.Array
    upper_dual: jax.Array
    bound: jax.Array


@reused
@on_own_mesh
def complete_dual(
    c: jax.Array, equality_dual: Any = None, inequality_dual: Any = None, *,
    A: LinearMap | None = None, b: Any = None, G: LinearMap | None = None, h: Any = None,
    lower: Any, upper: Any, cone: Callable | None = None,
) -> CompletedDual:
    """Complete guessed multipliers of a linear or conic program to a point of its dual.

        min c'x  subject to  A x = b,  h - G x in K,  lower <= x <= upper
        z <- P(z),    s = c + A'y + G'z,    lower_dual = max(s, 0),    upper_dual = max(-s, 0)
        bound = lower' lower_dual - upper' upper_dual - b'y - h'z

    Closed forms, so a layer: whatever a network predicts, the bound holds, and minus the bound is
    a loss without labels. At optimal multipliers it is the optimum. Signs are those of
    `linear_program`, whose multipliers may be passed as they are.

    Args:
      c: `[n]`. A, b, G, h: as in `linear_program`, for which K is the orthant.
      equality_dual, inequality_dual: the guess, y `[p]` and z `[m]`, any numbers.
      lower, upper: scalars or `[n]`. An infinite one proves nothing, a bound of -inf, unless s has
        the sign that it wants: give bounds so wide that some solution is within them.
      cone: `P(z)`, into the dual cone of K, such as `radial_second_order_cone`, or a projection;
        default `max(z, 0)`, the orthant.

    Returns:
      A `CompletedDual`; its bound is right up to the rounding of its sums, NaN for NaN. One that
      leaves the float range is -inf, or the largest number, and bounds all the same.

    Raises:
      ValueError: shapes that do not fit, a guess without its rows or the reverse, NaN,
        lower > upper.
      TypeError: two precisions.

    Reference: Tanneau and Van Hentenryck, "Dual Lagrangian learning for conic optimization",
    NeurIPS, 2024.

    >>> import jax.numpy as jnp
    >>> rows, right = jnp.array([[1.0, 2.0]]), jnp.array([2.0])  # max x1 + x2, x1 + 2 x2 <= 2
    >>> for guess in (-3.0, 0.25, 0.5):
    ...     out = complete_dual(-jnp.ones(2), None, jnp.array([guess]), G=rows, h=right,
    ...                         lower=0.0, upper=1.0)
    ...     print(float(out.bound))
    -2.0
    -1.75
    -1.5
    """
    program = canonical(None, c, A, b, G, h, lower, upper, conic=True)
    y = _guess("equality_dual", equality_dual, "A", program.b)
    z = _guess("inequality_dual", inequality_dual, "G", program.h)
    z = jnp.maximum(z, 0) if cone is None else cone(z)
    if jnp.shape(z) != program.h.shape:
        raise ValueError(f"cone must keep the shape {program.h.shape} of inequality_dual, got "
                         f"{jnp.shape(z)}.")
    z = jnp.where(jnp.isinf(program.h), 0, z)  # rows without a right-hand side are none
    # In units of the largest cost and the largest side no product or sum leaves the float range.
    prices, (q, dual, conic) = _in_a_unit(SMALL, program.q, y, z)
    sides, least = _in_a_unit(
        0.0, program.lower, -program.upper, -program.h, program.b, -program.b)
    slope = q + linear_map(program.A)[1](dual) + linear_map(program.G)[1](conic)
    low, high = _signs(slope)
    more, less = _signs(dual)
    given = (program.lower, program.upper, program.h, program.b, program.b)
    terms = map(_least, (low, high, conic, less, more), [
        _outward(side, whole != 0) for side, whole in zip(least, given, strict=True)])
    largest = jnp.finfo(slope.dtype).max  # inf would be no bound
    proved = jnp.minimum(_times(sum(terms, jnp.zeros((), slope.dtype)), prices + sides), largest)
    return CompletedDual(y, z, _times(low, prices), _times(high, prices), proved)


@reused
@on_own_mesh
def dual_bound(
    c: jax.Array, equality_dual: Any = None, inequality_dual: Any = None, **program: Any
) -> jax.Array:
    """The bound of `complete_dual` alone: what a predictor of multipliers is to maximise.

    Args:
      c, equality_dual, inequality_dual, **program: those of `complete_dual`.

    Returns:
      A scalar that no objective of the program is below.

    Raises:
      ValueError, TypeError: as `complete_dual`.

    Reference: Tanneau and Van Hentenryck, "Dual Lagrangian learning for conic optimization",
    NeurIPS, 2024.

    >>> import jax, jax.numpy as jnp
    >>> prove = lambda z: dual_bound(-jnp.ones(2), None, z, G=jnp.array([[1.0, 2.0]]),
    ...                              h=jnp.array([2.0]), lower=0.0, upper=1.0)
    >>> float(prove(jnp.array([0.25]))), jax.grad(prove)(jnp.array([0.25])).tolist()
    (-1.75, [1.0])
    """
    return complete_dual(c, equality_dual, inequality_dual, **program).bound


def _signs(v: jax.Array) -> tuple[jax.Array, jax.Array]:
    """v, taken apart by its sign."""
    return jnp.maximum(v, 0), jnp.maximum(-v, 0)


def _in_a_unit(below: float, *parts: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """The exponent of a power of two, and the parts in its unit: about 2^-below, or infinite."""
    given = stop_gradient([jnp.where(jnp.isinf(part), 0, part) for part in parts])
    exponent = jnp.round(jnp.log2(trees.magnitude(given))) + below
    return exponent, [_times(part, -exponent) for part in parts]


def _outward(scaled: jax.Array, given: jax.Array) -> jax.Array:
    """A least side, or term, below what it was where it vanished in its unit."""
    tiny = jnp.finfo(scaled.dtype).tiny
    return jnp.where((jnp.abs(scaled) < tiny) & given, -tiny, scaled)


def _times(x: jax.Array, exponent: jax.Array) -> jax.Array:
    """`x * 2^exponent` in steps, for the power alone may leave the float range."""
    step = jnp.round(exponent / 4)
    for part in (step, step, step, exponent - 3 * step):
        x = x * 2.0**part
    return x


def _least(multiplier: jax.Array, bound: jax.Array) -> jax.Array:
    """The sum of `multiplier * bound`; -inf where what is infinite has a multiplier."""
    finite = ~jnp.isinf(bound)
    finite_part = jnp.where(finite, bound, 0)
    terms = _outward(multiplier * finite_part, (multiplier > 0) & (finite_part < 0))
    return jnp.sum(terms) + jnp.where(jnp.any(~finite & (multiplier > 0)), -jnp.inf, 0)


def _guess(name: str, value: Any, rows: str, like: jax.Array) -> jax.Array:
    """A guess in the dtype of the program; none where there are no rows.

    Raises:
      ValueError: another shape, NaN or infinity.
    """
    check_finite(**{name: value})
    shape = (0,) if value is None else np.shape(value)
    if shape != like.shape:
        raise ValueError(f"{name} must have shape {like.shape}, one multiplier for each row of "
                         f"{rows}, got {'none' if value is None else shape}.")
    return jnp.zeros_like(like) if value is None else strong(jnp.asarray(value, like.dtype))
