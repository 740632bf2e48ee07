"""What all linear solvers share: a scaled system, an outer loop that measures, an honest report.

A solver is `solve(matvec, b, *, x0=None) -> LinearSolution`, on pytrees. Iterative ones share one
loop, `restarted`: a *cycle* improves x from its residual, the loop measures and decides.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.numerics import anchor, machine_epsilon, safe_divide, stop_gradient
from jaxiter.packed import while_loop
from jaxiter.solution import Status, reports

PyTree = Any
Matvec = Callable[[PyTree], PyTree]


@reports
class LinearSolution(NamedTuple):
    """Answer of a linear solve.

    Attributes:
      value: x. status: a `Status` code. steps: products with the matrix (int32).
      residual: recomputed `norm(b - A x) / norm(b)` (0 when b is 0).
      condition: the condition number of A as far as the solve has seen it: a lower bound; 1
        where it did not look. The answer is off by up to `condition * residual`, and by
        `condition * eps` through rounding.
    """

    value: PyTree
    status: jax.Array
    steps: jax.Array
    residual: jax.Array
    condition: jax.Array


LinearSolver = Callable[..., LinearSolution]

#: A solver gives up after this many restarts in a row that did not halve its true residual.
PATIENCE = 2
#: With the default tolerance it goes on until `condition * residual` is below this, too.
LARGEST_ERROR = 1e-2
#: A residual of so many roundings of `|A| |x|` is as small as this arithmetic makes it.
ROUNDINGS = 8


class Gains(NamedTuple):
    """Largest and smallest `|A v| / |v|` seen: bounds of |A| and 1 / |A^-1| from inside."""

    largest: jax.Array
    smallest: jax.Array

    def seeing(self, gain: jax.Array, most: jax.Array | None = None) -> "Gains":
        """With one more gain, or one from `gain` to `most`; what is not positive and finite was no
        vector.
        """
        most = gain if most is None else most
        good = (most > 0) & (most < jnp.inf)
        return Gains(jnp.where(good, jnp.maximum(self.largest, gain), self.largest),
                     jnp.where(good, jnp.minimum(self.smallest, most), self.smallest))

    def joined(self, other: "Gains") -> "Gains":
        """Of both."""
        return Gains(jnp.maximum(self.largest, other.largest),
                     jnp.minimum(self.smallest, other.smallest))

    def condition(self) -> jax.Array:
        """The ratio of both; 1 while nothing was seen."""
        ratio = self.largest / self.smallest
        return jnp.where(ratio >= 1, ratio, 1)


def no_gains(like: jax.Array) -> Gains:
    """Nothing seen yet."""
    return Gains(jnp.zeros_like(like), jnp.full_like(like, jnp.inf))


def default_rtol(b: PyTree) -> float:
    """Relative residual asked for by default: float64 1e-10, float32 1e-6, 16-bit 1e-2."""
    epsilon = machine_epsilon(b)
    return 1e-10 if epsilon < 1e-12 else 1e-6 if epsilon < 1e-5 else 1e-2


def stacked(matvec: Matvec, vectors: PyTree) -> PyTree:
    """Products with vectors `[k, *shape]` side by side."""
    several = getattr(matvec, "stacked", None)
    return jax.vmap(matvec)(vectors) if several is None else several(vectors)


def transposed(matvec: Matvec, x: PyTree) -> Matvec:
    """The product with the conjugate transpose; x has the structure of what A multiplies."""
    transpose = getattr(matvec, "transpose", None)
    if transpose is None:
        transpose = jax.linear_transpose(matvec, x)

    def product(v: PyTree) -> PyTree:
        return jax.tree.map(jnp.conj, transpose(jax.tree.map(jnp.conj, v))[0])

    return product


class _System(NamedTuple):
    """`b` scaled to unit size, so that squared norms stay inside the float range."""

    b: PyTree
    unit: jax.Array
    norm: jax.Array
    tol: jax.Array


def _normalised(b: PyTree, rtol: Any, atol: Any) -> _System:
    unit = trees.magnitude(stop_gradient(b))
    b = trees.scale(1 / unit, b)
    norm = trees.quick_norm(stop_gradient(b))
    relative = default_rtol(b) if rtol is None else rtol
    tol = jnp.maximum(jnp.asarray(relative, norm.dtype) * norm,
                      jnp.asarray(atol, norm.dtype) / unit)
    # b has unit size unless it is zero: then the answer 0 is within any tolerance.
    return _System(b, unit, norm, jnp.where(norm <= 0.1, jnp.inf, tol))


def _begun(system: _System, x0: PyTree) -> PyTree:
    """The start in units of the system; 0, the answer, for a b of zero, which has no unit."""
    return trees.where(system.norm <= 0.1, trees.zeros_like(x0), trees.scale(1 / system.unit, x0))


def _report(
    system: _System, x: PyTree, norm: Any, gains: Gains, steps: Any, max_steps: Any
) -> LinearSolution:
    """The solution in the units of the caller; `norm` is that of the recomputed residual."""
    x_norm = trees.quick_norm(x)
    # |A x| is |b| give or take the residual.
    gains = gains.seeing((system.norm - norm) / x_norm,
                         jnp.where(system.norm <= 0.1, 0, (system.norm + norm) / x_norm))
    rounding = ROUNDINGS * machine_epsilon(x) * gains.largest * x_norm
    status = jnp.where(
        norm <= system.tol, Status.CONVERGED,
        jnp.where(norm <= rounding, Status.PRECISION_FLOOR,
                  jnp.where(steps >= max_steps, Status.MAX_STEPS, Status.LINEAR_FAILURE)))
    value = trees.scale(system.unit, x)  # may overflow, where the answer is beyond the dtype
    finite = jnp.isfinite(norm) & trees.finite(value)
    status = jnp.where(finite, status, Status.NONFINITE).astype(jnp.int32)
    residual = jnp.where(system.norm <= 0.1, 0, norm / system.norm)
    return LinearSolution(value, status, steps, residual, gains.condition())


class _Outer(NamedTuple):
    x: PyTree
    r: PyTree
    norm: jax.Array
    gains: Gains
    steps: jax.Array
    stuck: jax.Array
    failed: jax.Array


def restarted(
    cycle: Callable, rtol: Any, atol: Any, max_steps: Any, patience: int = PATIENCE,
    rescue: Callable | None = None,
) -> LinearSolver:
    """A solver that repeats `cycle(matvec, x, r, norm, tol, budget) -> (x, products, gains)`.

    The true residual is recomputed after each cycle: recurrences drift. Once a cycle did not halve
    it, `rescue`, another cycle, takes over where there is one.
    """

    def solve(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        matvec = _checked(matvec, b)
        system = _normalised(b, rtol, atol)
        b, tol = system.b, system.tol
        x = trees.zeros_like(b) if x0 is None else _begun(system, x0)
        r = b if x0 is None else trees.subtract(b, matvec(x))
        norm = system.norm if x0 is None else trees.quick_norm(r)
        start = _Outer(x, r, norm, no_gains(norm), jnp.int32(0), jnp.int32(0), jnp.bool_(False))

        def limit(gains: Gains) -> jax.Array:
            """The residual to reach: smaller where A is ill conditioned, if no rtol was given."""
            if rtol is not None:
                return tol
            return lax.min(tol, LARGEST_ERROR * system.norm / gains.condition())

        def unfinished(s: _Outer) -> jax.Array:
            return (s.norm > limit(s.gains)) & (s.steps < max_steps) & (s.stuck < patience)

        def body(s: _Outer) -> _Outer:
            left, to = max_steps - s.steps, limit(s.gains)
            tried = jnp.bool_(True) if rescue is None else s.failed
            if rescue is None:
                x, products, gains = cycle(matvec, s.x, s.r, s.norm, to, left)
            else:  # each a loop of no round where it is the other's turn
                none = jnp.zeros_like(left)
                x, products, gains = cycle(
                    matvec, s.x, s.r, s.norm, to, jnp.where(s.failed, none, left))
                x, more, others = rescue(
                    matvec, x, s.r, s.norm, to, jnp.where(s.failed, left, none))
                products, gains = products + more, gains.joined(others)
            r = trees.subtract(b, matvec(x))
            norm = trees.quick_norm(r)
            better, halved = norm < s.norm, norm < 0.5 * s.norm
            return _Outer(
                trees.where(better, x, s.x),
                trees.where(better, r, s.r),
                lax.select(better, norm, s.norm),
                s.gains.joined(gains),
                s.steps + products + 1,
                lax.select(halved, jnp.int32(0), s.stuck + tried.astype(jnp.int32)),
                s.failed | ~halved,
            )

        end = while_loop(unfinished, body, anchor(start, (b, x)))
        return _report(system, end.x, end.norm, end.gains, end.steps, max_steps)

    return solve


def _checked(matvec: Matvec, b: PyTree) -> Matvec:
    """matvec, known to return the structure of b."""
    trees.check_same_structure(b, jax.eval_shape(matvec, b), "matvec")
    return matvec


def direct_report(
    x: PyTree, b: PyTree, product: PyTree, gains: Gains, rtol: Any, steps: int
) -> LinearSolution:
    """The report of a solver that does not iterate; `product` is A x."""
    norm, b_norm = trees.norm(trees.subtract(b, product)), trees.norm(b)
    residual = safe_divide(norm, b_norm)
    tolerance = 10 * default_rtol(b) if rtol is None else rtol
    rounding = ROUNDINGS * machine_epsilon(b) * gains.largest * trees.norm(x)
    status = jnp.where(
        residual <= tolerance, Status.CONVERGED,
        jnp.where(norm <= rounding, Status.PRECISION_FLOOR, Status.LINEAR_FAILURE))
    status = jnp.where(jnp.isfinite(norm), status, Status.NONFINITE).astype(jnp.int32)
    return LinearSolution(x, status, jnp.int32(steps), residual, gains.condition())
