"""What a solve returns: a value, a status that is never silent, and the state to resume from."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.numerics import is_concrete

PyTree = Any


class Status:
    """Integer codes (int32) that say how a solve ended; data, so they live under jit and vmap.

    >>> Status.name(Status.CONVERGED)
    'CONVERGED'
    """

    RUNNING = 0
    CONVERGED = 1
    PRECISION_FLOOR = 2
    MAX_STEPS = 3
    STAGNATED = 4
    DIVERGED = 5
    NONFINITE = 6
    NO_FIXED_POINT = 7
    PRIMAL_INFEASIBLE = 8
    DUAL_INFEASIBLE = 9
    BAD_INPUT = 10
    LINEAR_FAILURE = 11

    @staticmethod
    def name(code: Any) -> Any:
        """The name of a concrete status code; for a batch of codes, a nested list of names."""
        return _look_up(_NAMES, code)

    @staticmethod
    def message(code: Any) -> Any:
        """Likely cause and remedy, for a concrete status code; for a batch, a nested list."""
        return _look_up(_MESSAGES, code)


def _look_up(words: dict[int, str], code: Any) -> Any:
    return np.vectorize(words.__getitem__, otypes=[object])(np.asarray(code)).tolist()


_NAMES = {value: name for name, value in vars(Status).items() if isinstance(value, int)}

_MESSAGES = {
    Status.RUNNING: "The solve has not ended; this is a state between two steps.",
    Status.CONVERGED: "The stop rule's tolerance is met.",
    Status.PRECISION_FLOOR: (
        "The merit is at what rounding makes of it, above the tolerance asked for, and no longer "
        "falls. Loosen the tolerance, rescale the problem or use float64."
    ),
    Status.MAX_STEPS: (
        "max_steps evaluations were spent before the tolerance was met. Allow more steps, loosen "
        "the tolerance, or try another solver: a slow contraction wants acceleration, a map that "
        "overshoots damping, one that is merely nonexpansive an anchor (halpern)."
    ),
    Status.STAGNATED: (
        "The merit stopped improving above the tolerance. The map may be noisy, may cycle, or the "
        "tolerance may be below what it can reach."
    ),
    Status.DIVERGED: (
        "The merit stayed 1000 times above its minimum. The map is not a contraction here: damp "
        "it, shorten its step, or start closer to the solution."
    ),
    Status.NONFINITE: (
        "The map or the solver produced NaN or infinity; value is the last finite iterate. Look "
        "for log, sqrt or division outside their domain, or a step size that is too long."
    ),
    Status.NO_FIXED_POINT: (
        "The displacement T(x) - x converges to a non-zero vector, so the map has no fixed point; "
        "Solution.displacement is the evidence."
    ),
    Status.PRIMAL_INFEASIBLE: "The displacement certifies that no point satisfies the constraints.",
    Status.DUAL_INFEASIBLE: "The displacement certifies that the objective is unbounded.",
    Status.BAD_INPUT: (
        "An input is outside its domain (NaN, negative weight or tolerance, epsilon <= 0, ...). "
        "Run outside jit to get an error that names it."
    ),
    Status.LINEAR_FAILURE: (
        "A linear solve broke down or stopped above its tolerance: the system is singular or "
        "badly conditioned. Try gmres() or dense(), or make the fixed point unique inside the map."
    ),
}

#: From least to most severe: combinators of stop rules take the last one that applies.
PRECEDENCE = (
    Status.RUNNING,
    Status.CONVERGED,
    Status.PRECISION_FLOOR,
    Status.STAGNATED,
    Status.MAX_STEPS,
    Status.NO_FIXED_POINT,
    Status.PRIMAL_INFEASIBLE,
    Status.DUAL_INFEASIBLE,
    Status.DIVERGED,
    Status.LINEAR_FAILURE,
    Status.NONFINITE,
    Status.BAD_INPUT,
)
_SEVERITY = np.argsort(np.array(PRECEDENCE)).astype(np.int32)


def most_severe(*codes: Any) -> jax.Array:
    """The status code that stands last in `PRECEDENCE`, elementwise and traceable.

    >>> int(most_severe(Status.CONVERGED, Status.NONFINITE)) == Status.NONFINITE
    True
    """
    worst = _look_up_traced(_SEVERITY, codes[0])
    for code in codes[1:]:
        worst = jnp.maximum(worst, _look_up_traced(_SEVERITY, code))
    return _look_up_traced(np.array(PRECEDENCE, np.int32), worst)


def _look_up_traced(table: np.ndarray, index: Any) -> jax.Array:
    """`table[index]` without a gather, which an explicit mesh does not let pass."""
    places = np.arange(len(table), dtype=np.int32)
    chosen = jnp.asarray(index, jnp.int32)[..., None] == places
    return jnp.sum(jnp.where(chosen, table, 0), axis=-1, dtype=jnp.int32)


class Kept(NamedTuple):
    """The point that will be returned when it is not the last one (best, or last measured).

    Its merit is NaN as long as nothing was measured.
    """

    x: PyTree
    output: PyTree
    merit: jax.Array
    memory: PyTree


class LoopState(NamedTuple):
    """Everything a solve carries between two steps; arrays only, save it with any pytree saver.

    Attributes:
      x: the point evaluated last. output: T(x), or the residual of a problem that gives it.
      next: where the next step evaluates T; None when that is `output` itself (picard).
      next_norm: l2 norm of the next point, or 0 where the problem has a merit and a scale of its
        own. merit: what the tolerance is measured on. Both are NaN after a step that check_every
        did not measure; next_norm also where the next point is not finite.
      memory, solver, stop, monitor: states of the problem, solver, stop rule and monitor.
      kept: the point to return instead of x, or None.
      step: evaluations of T so far, int32. status: a `Status` code, int32.
      calls: oracle calls so far, where the problem says what a step costs, else None.
      opened: the step before which nothing was measured, int32: not 0 where a solve that ended was
        resumed.
    """

    x: PyTree
    output: PyTree
    next: PyTree
    next_norm: jax.Array
    merit: jax.Array
    memory: PyTree
    solver: PyTree
    stop: PyTree
    monitor: PyTree
    kept: Kept | None
    step: jax.Array
    status: jax.Array
    calls: PyTree
    opened: jax.Array

    @property
    def answer(self) -> Kept:
        """The point that is returned: the one that was kept, or the last."""
        if self.kept is not None:
            return self.kept
        return Kept(self.x, self.output, self.merit, self.memory)


class Solution(NamedTuple):
    """The answer of a solve, its status and its cost.

    Attributes:
      value: the point whose residual was measured: `norm(T(value) - value) == residual`.
      status: a `Status` code (int32). steps: evaluations of T, the one at x0 included (int32).
      residual: l2 norm of `T(value) - value`. merit: what the tolerance was measured on.
      error: estimated distance of `value` from the fixed point, by the stop rule `accuracy`; NaN
        with rules that do not estimate it.
      displacement: `T(value) - value`; with NO_FIXED_POINT it is the evidence.
      aux: the map's auxiliary output at `value` (has_aux=True), else None.
      state: pass it as `resume=` to continue bitwise; one that ended is measured again. It reads
        like a `LoopState`, whose small numbers are one leaf: what a program returns costs by leaf.
      trace: what `monitor` recorded, or None.
      calls: calls of the user's oracles by name, int32, where the problem says what a step costs
        (`Problem.calls`), else None.
    """

    value: PyTree
    status: jax.Array
    steps: jax.Array
    residual: jax.Array
    merit: jax.Array
    error: jax.Array
    displacement: PyTree
    aux: PyTree
    state: PyTree
    trace: PyTree
    calls: PyTree = None

    @property
    def converged(self) -> jax.Array:
        """Boolean array: the tolerance was met."""
        return self.status == Status.CONVERGED

    def message(self) -> str:
        """A readable account of the status; for a batch, one line per distinct status."""
        return _describe(self)

    def check(self) -> "Solution":
        """Return self when everything converged, else raise (on the host, concrete arrays only).

        Raises:
          RuntimeError: with `message()` when some status is not CONVERGED.
          TypeError: under a transformation, where the status is not known yet.
        """
        return _checked(self)


def _describe(result: Any) -> str:
    """What `message()` of any result says; a `.solve` knows the steps and the residual."""
    solve = getattr(result, "solve", result)
    status = np.asarray(result.status)
    if status.ndim == 0:
        cost = ""
        if hasattr(solve, "steps"):
            cost = f" after {int(solve.steps)} steps, residual {float(solve.residual):.3g}"
        return f"{Status.name(status)}{cost}. {Status.message(status)}"
    return "\n".join(
        f"{count} x {Status.name(code)}. {Status.message(code)}"
        for code, count in zip(*np.unique(status, return_counts=True), strict=True))


def _checked(result: Any) -> Any:
    """What `check()` of any result does."""
    if not is_concrete(result.status):
        raise TypeError("check() reads the status on the host; call it outside jit, or use "
                        ".converged inside.")
    if not np.all(np.asarray(result.status) == Status.CONVERGED):
        raise RuntimeError(result.message())
    return result


def reports(result: type) -> type:
    """Class decorator: a family's result says what its Solution says.

    Gives a NamedTuple with a field `solve` (or, without a driver behind it, `status`) the members
    `status`, `converged`, `message()` and `check()`; a batch of results has a batch of statuses.
    What the class defines itself is kept.
    """
    members = {
        "status": property(lambda self: self.solve.status, doc="A `Status` code, int32."),
        "converged": property(lambda self: self.status == Status.CONVERGED,
                              doc="Boolean array: the tolerance was met."),
        "message": _describe,
        "check": _checked,
    }
    for name, member in members.items():
        if not hasattr(result, name):
            setattr(result, name, member)
    return result
