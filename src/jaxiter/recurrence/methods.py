"""How a row of a chain answers a change of its input: what `method=` takes, as values.

Given inputs p_t, outputs f_t = step(p_t, x_t) and residuals r_t = f_t - s_t of a window,
each method models how row t answers a change D_t of its input by a linear map A_t,
solves `D_{t+1} = A_t D_t + r_t` in O(log T) depth and proposes `s_t <- f_t + A_t D_t`. So a
row whose input does not move is reproduced exactly, whatever A is; only the number of
rounds depends on A: 0 is Jacobi, 1 Picard, the Jacobian Newton (DEER).
"""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.known import check_count, check_not_negative
from jaxiter.numerics import machine_epsilon
from jaxiter.recurrence.linearize import apply, dense_jacobians, dot, scan_matrix, secant_slopes

#: Entries of Jacobians are clipped here: a chaotic guess must not overflow the scan.
LARGEST_SLOPE = 1e8


class Rows(NamedTuple):
    """A window of W rows: step of one row, inputs `[W, d]`, drivers, outputs."""

    step: Callable
    p: jax.Array
    x: Any
    f: jax.Array
    past: Any  # a Past for the secant, else None


class Past(NamedTuple):
    """Of the previous round, for a secant: inputs `[W, ...]`, NaN before, outputs, slopes `[W]`."""

    p: jax.Array
    f: jax.Array
    slope: jax.Array


class RowMethod(eqx.Module):
    """How rows answer, as a value: subclass it, with numbers as fields and `linearize`.

    `name`: for messages, and for the method with its defaults. `takes_integers`: proposes what the
    step says, so that rows may be integers, and linearizes nothing. `takes_complex`: asks for no
    slopes, which only real rows have.

    >>> class Half(RowMethod):  # A = 1/2
    ...     name = "half"
    ...     def linearize(self, rows):
    ...         return lambda r: 0.5 * scan_scalar(jnp.full_like(r, 0.5), r), None
    >>> from jaxiter.recurrence import solve_recurrence
    >>> out = solve_recurrence(lambda s, x: 0.5 * s + x, jnp.zeros(1), jnp.ones((9, 1)),
    ...                        method=Half())
    >>> int(out.steps), bool(out.converged)
    (2, True)
    """

    name: ClassVar[str]
    takes_integers: ClassVar[bool] = False
    takes_complex: ClassVar[bool] = True

    def linearize(self, rows: Rows) -> tuple[Callable, jax.Array | None]:
        """`lift(r) -> A D` for any residuals r `[W, d]`, and slopes to remember (the secant's).

        `rows` has their step, inputs p `[W, d]`, drivers x and outputs f; D_0 = 0 and
        `D_{t+1} = A_t D_t + r_t`. Rows whose r is 0 up to some t must not move up to there.
        """
        raise NotImplementedError


class Jacobi(RowMethod):
    """See `jacobi`."""

    name = "jacobi"
    takes_integers = True


def jacobi() -> RowMethod:
    """A = 0: every row from the last round's values; integers too, equal to the loop bit for bit.

    >>> jacobi() == jacobi() != picard()
    True
    """
    return Jacobi()


class Picard(RowMethod):
    """See `picard`."""

    name = "picard"

    def linearize(self, rows: Rows) -> tuple[Callable, jax.Array | None]:
        """A = 1."""
        return lambda r: jnp.cumsum(r, axis=0) - r, None


def picard() -> RowMethod:
    """A = 1: the increments are summed up, as for an integral (ParaDiGMS in samplers)."""
    return Picard()


class Newton(RowMethod):
    """See `newton`."""

    name = "newton"
    takes_complex = False

    def linearize(self, rows: Rows) -> tuple[Callable, jax.Array | None]:
        """A = the Jacobian."""
        a = tame(dense_jacobians(rows.step, rows.p, rows.x))
        return lambda r: apply(a, scan_matrix(a, r)), None


def newton() -> RowMethod:
    """A = the Jacobian of each row (DEER: Lim et al. 2024), d x d for d up to 64."""
    return Newton()


class Diagonal(RowMethod):
    """See `diagonal`."""

    name = "diagonal"
    takes_complex = False

    def linearize(self, rows: Rows) -> tuple[Callable, jax.Array | None]:
        """A = the Jacobian's diagonal."""
        a = diagonals(rows)
        return lambda r: a * scan_scalar(a, r), None


def diagonal() -> RowMethod:
    """A = the diagonal of the Jacobian (quasi-DEER: Gonzalez et al. 2024), by d jvps a round."""
    return Diagonal()


class Secant(RowMethod):
    """See `secant`."""

    name = "secant"
    takes_complex = False

    def linearize(self, rows: Rows) -> tuple[Callable, jax.Array | None]:
        """A = the slope between two rounds."""
        past = rows.past
        tiny = 10 * machine_epsilon(rows.p) ** 2 * dot(rows.p, rows.p)
        slope = tame(secant_slopes(rows.p - past.p, rows.f - past.f, past.slope, tiny))
        a = slope[:, None]
        return lambda r: a * scan_scalar(a, r), slope


def secant() -> RowMethod:
    """A = one number per row, `<dp, df> / <dp, dp>` between two rounds: no derivative at all."""
    return Secant()


class Elk(RowMethod):
    """See `elk`.

    Reference: Gonzalez, Warrington, Smith and Linderman, "Towards scalable and stable
    parallelization of nonlinear RNNs", 2024; filter by scans: Sarkka and Garcia-Fernandez,
    "Temporal parallelization of Bayesian smoothers", 2021.
    """

    name = "elk"
    takes_complex = False
    damping: Any = 1e-3

    def linearize(self, rows: Rows) -> tuple[Callable, jax.Array | None]:
        """A = the Jacobian's diagonal, the changes filtered."""
        slopes = diagonals(rows)
        # In changes D: dynamics D' = a D + r with unit noise, observation D = 0 of variance
        # 1 / damping. The first input is exact: no dynamics into its row.
        gain = self.damping / (1 + self.damping)
        first = (jnp.arange(slopes.shape[0]) == 0)[:, None]
        a = jnp.where(first, 0, slopes)

        def lift(r: jax.Array) -> jax.Array:
            elements = ((1 - gain) * a, (1 - gain) * r, jnp.full_like(a, 1 - gain), -gain * a * r,
                        gain * a * a)
            mean = lax.associative_scan(filter_pair, elements)[1]
            return slopes * trees.before(mean)

        return lift, None


def elk(damping: Any = 1e-3) -> RowMethod:
    """Diagonal Newton with a pull of strength `damping` towards the previous round (quasi-ELK).

    The damped linear recurrence is a Kalman filter, by coordinates, as an associative scan;
    `damping` is the inverse variance of the pull.

    Raises:
      ValueError: damping < 0.

    Reference: Gonzalez, Warrington, Smith and Linderman, "Towards scalable and stable
    parallelization of nonlinear RNNs", 2024; filter by scans: Sarkka and Garcia-Fernandez,
    "Temporal parallelization of Bayesian smoothers", 2021.
    """
    check_not_negative(damping=damping)
    return Elk(damping)


class GaussSeidel(RowMethod):
    """See `gauss_seidel`."""

    name = "gauss_seidel"
    takes_integers = True
    block: int = eqx.field(static=True)


def gauss_seidel(block: int) -> RowMethod:
    """Blocks of so many rows side by side, each one sequential inside; integers too.

    All blocks run in every round, so it takes no `window`; `block` must divide T.

    Raises:
      ValueError: block below 1.
    """
    check_count(block=block)
    return GaussSeidel(block)


#: What `solve_recurrence` takes.
KINDS = (Newton, Diagonal, Elk, Secant, Picard, Jacobi, GaussSeidel)


def as_method(
    front: str, method: Any, kinds: tuple[type[RowMethod], ...], own: bool = False
) -> RowMethod:
    """The method that the name of a preset or an object means to a front.

    `own`: whether it also takes any other `RowMethod` that linearizes rows.

    Raises:
      ValueError: a name that it does not know, or of a method that needs a number.
      TypeError: an object of another kind.
    """
    presets = {kind.name: kind for kind in kinds}
    names = ", ".join(sorted(presets))
    if isinstance(method, str):
        if method not in presets:
            raise ValueError(f"method must be one of {names}, or such an object, got {method!r}.")
        if presets[method] is GaussSeidel:
            raise ValueError("'gauss_seidel' needs the length of its blocks: "
                             "method=jaxiter.recurrence.gauss_seidel(block).")
        return presets[method]()
    if own and isinstance(method, RowMethod) and (
            type(method).linearize is not RowMethod.linearize):
        return method
    if not isinstance(method, kinds):
        called = "; did you forget to call it?" if callable(method) else ""
        given = repr(method.name) if isinstance(method, RowMethod) else type(method).__name__
        raise TypeError(f"{front} takes a method such as jaxiter.recurrence.secant(), or one of "
                        f"the names {names}, got {given}{called}.")
    return method


def scan_scalar(a: jax.Array, r: jax.Array) -> jax.Array:
    """`D_{t+1} = a_t D_t + r_t`, D_0 = 0, elementwise; all `[W, d]` (a may be `[W, 1]`).

    Returns D_0 .. D_{W-1}, the changes of the rows' inputs.

    >>> import jax.numpy as jnp
    >>> scan_scalar(jnp.full((3, 1), 2.0), jnp.ones((3, 1)))[:, 0].tolist()
    [0.0, 1.0, 3.0]
    """
    def combine(left: tuple, right: tuple) -> tuple:
        return left[0] * right[0], right[0] * left[1] + right[1]

    return trees.before(lax.associative_scan(combine, (jnp.broadcast_to(a, r.shape), r))[1])


def tame(slopes: jax.Array) -> jax.Array:
    """Entries within the largest slope; what is not finite becomes 0."""
    return jnp.clip(jnp.nan_to_num(slopes, nan=0.0, posinf=0.0, neginf=0.0),
                    -LARGEST_SLOPE, LARGEST_SLOPE)


def diagonals(rows: Rows) -> jax.Array:
    """Diagonals of the rows' Jacobians `[W, d]`, one direction after the other: memory O(W d)."""
    def entry(direction: jax.Array) -> jax.Array:
        tangent = jnp.broadcast_to(direction, rows.p.shape)
        _, out = jax.jvp(lambda p: jax.vmap(rows.step)(p, rows.x), (rows.p,), (tangent,))
        return out * direction

    unit = jnp.eye(rows.p.shape[1], dtype=rows.p.dtype)
    return tame(
        lax.scan(lambda total, e: (total + entry(e), None), jnp.zeros_like(rows.p), unit)[0])


def filter_pair(left: tuple, right: tuple) -> tuple:
    """Combine two elements (A, b, C, eta, J) of the parallel Kalman filter, all scalars."""
    a1, b1, c1, e1, j1 = left
    a2, b2, c2, e2, j2 = right
    middle = 1 + c1 * j2
    forward, backward = a2 / middle, a1 / middle
    return (forward * a1, forward * (b1 + c1 * e2) + b2, forward * c1 * a2 + c2,
            backward * (e2 - j2 * b1) + e1, backward * j2 * a1 + j1)
