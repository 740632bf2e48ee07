"""What transport asks of its inputs, errors where they are concrete and BAD_INPUT where not, and
of its answers: the last word on a status.
"""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.adjoint import Adjoint, refuse_series
from jaxiter.known import check_positive, known
from jaxiter.numerics import (
    accumulation_dtype,
    if_needed,
    is_concrete,
    machine_epsilon,
    stop_gradient,
    strong,
)
from jaxiter.solution import Solution, Status
from jaxiter.stop import Stop, accepts
from jaxiter.transport.exact import Exact, exact_sum
from jaxiter.transport.geometry import Dense, Geometry, Reduced, Totals, as_geometry
from jaxiter.transport.iteration import Marginals, log_weights, weighted
from jaxiter.transport.relative import resolved
from jaxiter.transport.result import marginal_error, with_weights


def prepare(
    cost: Any, a: Any, b: Any, epsilon: Any, rho_a: Any, rho_b: Any
) -> tuple[Geometry, Marginals]:
    """Checked operands with strong types."""
    geometry = jax.tree.map(strong, as_geometry(cost))
    (n, m), dtype = geometry.shape, geometry.dtype
    given_a, given_b = or_uniform(a, n, dtype), or_uniform(b, m, dtype)
    a = jnp.full((n,), 1 / n, dtype) if a is None else strong(a).astype(dtype)
    b = jnp.full((m,), 1 / m, dtype) if b is None else strong(b).astype(dtype)
    for name, weights, size in (("a", a, n), ("b", b, m)):
        if weights.shape != (size,):
            raise ValueError(f"shape mismatch: cost is {(n, m)}, so {name} must have shape "
                             f"({size},), got {weights.shape}.")
    rhos = []
    for name, rho in (("rho_a", rho_a), ("rho_b", rho_b)):
        check_positive(**{name: rho})
        constraint = is_concrete(rho) and np.all(np.isinf(np.asarray(rho)))
        rhos.append(None if constraint else jnp.asarray(rho, dtype))
    epsilon = resolved(epsilon, geometry, a, b)
    marginals = Marginals(a, b, strong(epsilon).astype(dtype), *rhos)
    _check(marginals, cost.cost if isinstance(cost, Dense) else cost, given_a, given_b, epsilon)
    return geometry, marginals


def or_uniform(weights: Any, count: int, dtype: Any) -> Any:
    """Weights as they were given, for a check that reads them; uniform ones where none were."""
    return np.full(count, 1 / count, dtype) if weights is None else weights


def reduce(
    geometry: Geometry, marginals: Marginals, init: jax.Array | None = None
) -> tuple[Reduced, Marginals]:
    """The cost to be solved, and the marginals that go with it: b rescaled to the mass of a.

    Where something makes no sense epsilon is NaN, which is BAD_INPUT (`valid`): what `_check`
    says in words, for values that are not concrete.
    """
    a, b, epsilon, rho_a, rho_b = marginals[:5]
    good = jnp.all(a >= 0) & jnp.all(b >= 0) & jnp.isfinite(jnp.sum(a) + jnp.sum(b))
    good &= jnp.sum(a) > 0
    if marginals.balanced:
        if not is_concrete(a, b):
            good &= mass_agrees(a, b, a.dtype)
        b = b * (jnp.sum(a) / jnp.sum(b))
    for rho in (rho_a, rho_b):
        good &= jnp.bool_(True) if rho is None else rho > 0
    parts = geometry.reduce(a, b, init)
    epsilon = jnp.where(good & parts.sound, epsilon, jnp.nan)
    rows, columns = parts.shifts
    cost = weighted(a, parts.shift_rows) + weighted(b, parts.shift_columns)
    blur = parts.base.blur(a, b) + parts.base.rounding * machine_epsilon(a) * jnp.abs(cost)
    return parts, marginals._replace(
        b=b, rows=rows, columns=columns, blur=stop_gradient(blur)).at(epsilon)


def valid(x: Any, geometry: Geometry, marginals: Marginals) -> jax.Array:
    """Whether the operands of a solve make sense."""
    del x, geometry
    return (marginals.epsilon > 0) & (marginals.epsilon <= _largest(marginals.epsilon))


def _largest(epsilon: jax.Array) -> float:
    """The largest epsilon that can be divided by: processors flush smaller reciprocals to zero."""
    return 0.25 / float(jnp.finfo(epsilon.dtype).tiny)


def mass_agrees(a: Any, b: Any, dtype: Any) -> Any:
    """Whether two weight vectors have the same sum, up to the rounding of `dtype`."""
    slack = float(np.sqrt(jnp.finfo(dtype).eps))
    return abs(a.sum() - b.sum()) <= slack * abs(a.sum())


def check_signs(name: str, host: np.ndarray) -> None:
    """Raise ValueError for weights that are not at least 0."""
    if not np.all(host >= 0):
        raise ValueError(f"{name} has negative or NaN entries: {host.min()}.")


def check_simplex(name: str, given: Any) -> None:
    """Raise ValueError for rows that are not at least 0, or do not sum to 1."""
    if given is None:
        return
    host = np.asarray(given)
    check_signs(name, host)
    # As exact as its own dtype allows; integers will be floats.
    dtype = host.dtype if jnp.issubdtype(host.dtype, jnp.floating) else np.float32
    sums = host.astype(np.float64).sum(-1)
    for place, total in enumerate(np.atleast_1d(sums)):
        if not mass_agrees(np.float64(1), total, dtype):
            where = f"{name}[{place}]" if host.ndim > 1 else name
            raise ValueError(f"{where} sums to {total:g} and must sum to 1; divide by its sum.")


def on_simplex(weights: jax.Array) -> jax.Array:
    """What `check_simplex` says, for values that are not concrete: whether all rows are."""
    slack = machine_epsilon(weights) ** 0.5
    return jnp.all(weights >= 0) & jnp.all(jnp.abs(jnp.sum(weights, -1) - 1) <= slack)


def check_masses(a: Any, b: Any, remedy: str, dtype: Any = None) -> None:
    """Raise ValueError for weights that have different sums, as their dtype sees it."""
    a, b = np.asarray(a), np.asarray(b)
    if dtype is None:  # integers will be floats
        dtype = a.dtype if jnp.issubdtype(a.dtype, jnp.floating) else np.float32
    if not mass_agrees(a, b, dtype):
        raise ValueError(f"sum(a)={float(a.sum()):g} differs from sum(b)={float(b.sum()):g}; "
                         f"{remedy}.")


def _check(marginals: Marginals, cost: Any, a: Any, b: Any, epsilon: Any) -> None:
    """Errors for what can be read of the input as given; for the rest there is BAD_INPUT."""
    largest, dtype = _largest(marginals.epsilon), marginals.a.dtype

    def normal(epsilon: Any) -> None:
        host = np.asarray(epsilon)
        if not np.all((host > 0) & (host <= largest)):
            raise ValueError("epsilon must be positive, and its reciprocal a normal number of its "
                             f"dtype, got {epsilon}.")

    known(normal, epsilon)
    for name, weights in (("a", a), ("b", b)):
        known(partial(_check_weights, name), weights)
    if marginals.balanced:
        known(partial(check_masses, dtype=dtype,
                      remedy="pass rho_a/rho_b (unbalanced) or normalise"), a, b)
    if not isinstance(cost, Geometry):
        known(check_cost, cost)
        known(check_partners, cost, a, b)


def _check_weights(name: str, weights: Any) -> None:
    host = np.asarray(weights)
    check_signs(name, host)
    if host.sum() == 0:
        raise ValueError(f"{name} sums to 0; give it some mass.")


def check_cost(cost: Any) -> None:
    """Raise ValueError for a cost with NaN or -inf."""
    least = np.min(np.asarray(cost))  # NaN where there is one: a single pass
    if np.isnan(least):
        raise ValueError("cost contains NaN.")
    if least == -np.inf:
        raise ValueError("cost contains -inf; only +inf (a forbidden pair) is allowed.")


def check_partners(cost: Any, a: Any, b: Any) -> None:
    """Raise ValueError where a row or column has mass and every cost there is +inf."""
    host = np.asarray(cost)
    if np.max(host) < np.inf:
        return
    allowed = host < np.inf
    support = np.asarray(a) > 0, np.asarray(b) > 0
    for side, ok, positive in (("row", allowed[:, support[1]].any(1), support[0]),
                               ("column", allowed[support[0]].any(0), support[1])):
        if np.any(positive & ~ok):
            other = "column" if side == "row" else "row"
            raise ValueError(f"{side} {int(np.argmax(positive & ~ok))} has no admissible {other}: "
                             "it has mass, and every cost there is +inf.")


def judged(
    solve: Solution, pair: tuple[jax.Array, jax.Array], returned: tuple[Exact, Exact],
    parts: Reduced, marginals: Marginals, stop: Stop,
) -> Solution:
    """The solution with the error of what is returned as its merit, and the status for it.

    What is returned are floats f, g, and anybody may compute `exp((f + g - C) / epsilon)` from
    them in twice the digits; and `plan()`, which is rounded in another way. A solve knows its
    potentials better than that: where these do not meet the tolerance they are no answer to it,
    PRECISION_FLOOR. Where the solve's own error and a bound of what rounding adds meet it, that is
    proof enough; else both plans are looked at.
    """
    pair, returned, parts, marginals = stop_gradient((pair, returned, parts, marginals))
    scale = jnp.sum(marginals.a).astype(solve.merit.dtype)

    def meets(merit: jax.Array) -> jax.Array:
        return accepts(stop, solve.value, solve.value, merit, scale)

    shown = tuple(with_weights(potential, weights, marginals.epsilon)
                  for potential, weights in zip(pair, (marginals.a, marginals.b), strict=True))

    def look(shown: tuple, returned: tuple[Exact, Exact], parts: Reduced) -> jax.Array:
        totals = parts.geometry.totals(shown[0], shown[1], marginals.epsilon)
        errors = _outsiders_error(returned, parts, marginals), _plans_error(totals, pair, marginals)
        return jnp.maximum(*errors).astype(scale.dtype)

    converged = solve.status == Status.CONVERGED
    bound = solve.merit + _rounding_bound(returned, pair, marginals).astype(scale.dtype)
    doubtful = ~(converged & meets(bound))
    error = if_needed(
        doubtful, look, (shown, returned, parts), (marginals, solve.merit))
    error = jnp.where(doubtful, error, bound)
    # A rule that wants a history cannot judge one number: then the solve's own is the measure.
    met = jnp.where(meets(jnp.zeros_like(error)), meets(error), error <= 2 * solve.merit)
    status = jnp.where(converged & ~met, jnp.int32(Status.PRECISION_FLOOR), solve.status)
    return solve._replace(status=status, merit=error)


def _rounding_bound(
    returned: tuple[Exact, Exact], pair: tuple[jax.Array, jax.Array], marginals: Marginals
) -> jax.Array:
    """More than the marginal error that rounding makes in the solve and in what is returned.

    Infinite where that is not small, or penalties make it another question.
    """
    a, b, epsilon = marginals[:3]
    if not marginals.balanced:
        return jnp.full_like(epsilon, jnp.inf)
    digit, columns = machine_epsilon(a), marginals.columns
    sizes = jnp.abs(pair[0]), jnp.abs(pair[1]) + (0 if columns is None else jnp.abs(columns))
    f, g = (jnp.where(weights > 0, (jnp.abs(given.low) + digit * size) / epsilon, 0)
            for weights, given, size in zip((a, b), returned, sizes, strict=True))
    lost = 4 * digit * jnp.sum(a) + 2 * (weighted(a, f) + weighted(b, g))
    if marginals.blur is not None:
        lost = lost + 6 * marginals.blur / epsilon
    return jnp.where(jnp.max(f) + jnp.max(g) < 0.1, lost, jnp.inf)


def _plans_error(
    totals: Totals, pair: tuple[jax.Array, jax.Array], marginals: Marginals
) -> jax.Array:
    """The l1 marginal error of `plan()`, with the rounding of its own sums."""
    a = marginals.a
    held = marginals.held(pair[0]), marginals.T.held(pair[1])
    return marginal_error(totals, *held) + 2 * machine_epsilon(a) * jnp.sum(a)


def _outsiders_error(
    returned: tuple[Exact, Exact], parts: Reduced, marginals: Marginals
) -> jax.Array:
    """The l1 marginal error of the plan that the returned floats and the given cost stand for."""
    a, b, epsilon = marginals[:3]
    f, g = returned[0].high, returned[1].high
    rest = (exact_sum(f, -parts.rows.high, -parts.rows.low),
            exact_sum(g, -parts.columns.high, -parts.columns.low))
    totals = parts.base.sharp().totals(
        rest[0].high, rest[1].high, epsilon, (rest[0].low, rest[1].low))
    own = marginals._replace(rows=None, columns=None)  # these potentials are the given cost's
    log_a, log_b = log_weights(a, epsilon), log_weights(b, epsilon)
    f, g = jnp.where(a > 0, f - log_a, 0), jnp.where(b > 0, g - log_b, 0)
    held = own.held(f), own.T.held(g)
    error = marginal_error(totals, *held)
    lost = 2 * machine_epsilon(a) * jnp.maximum(jnp.sum(a), jnp.sum(totals.rows))
    sides = (own.rho_a, held[0], f, log_a), (own.rho_b, held[1], g, log_b)
    for rho, weights, potential, log in sides:
        if rho is not None:  # the target was rounded with what it was computed from
            size = jnp.abs(potential) + 1.5 * jnp.abs(log)
            lost = lost + machine_epsilon(a) * weighted(weights, size) / rho
    if parts.base.rounding:
        lost = lost + parts.base.rounding * machine_epsilon(a) * jnp.abs(totals.cost) / epsilon
    return error + lost


#: Most steps of a transport solve, all its stages together.
MAX_STEPS = 2000
#: What the fronts say to a state that is to be resumed.
NO_RESUME = {"resume": "a state is that of one stage; start warm from a previous result"}


def only_implicit(front: str, adjoint: Adjoint, sums: bool = True) -> None:
    """Refuse adjoints of other equations than the front's: each would give wrong derivatives.

    `sums`: whether series of `T(x) - x` are those of its equations.

    Raises:
      ValueError: unrolled(); without `sums` also neumann(k) and one_step(k).
    """
    if adjoint.differentiates_loop:
        raise ValueError(f"{front} does not unroll its solves: use implicit(), whose derivatives "
                         "are exact, of any order, or map sinkhorn with unrolled().")
    if not sums:
        refuse_series(adjoint, front)


def warn_below_floor(stop: Stop, cost: Any, a: Any, b: Any, epsilon: Any) -> None:
    """Warn when a problem, as given, cannot reach its tolerance in the log domain."""
    host = np.asarray(cost)
    host = host if np.issubdtype(host.dtype, np.floating) else host.astype(np.float32)
    a, b = (np.asarray(or_uniform(weights, count, host.dtype))
            for weights, count in zip((a, b), host.shape, strict=True))
    rows = np.min(host[:, b > 0], axis=1)
    columns = np.min((host - rows[:, None])[a > 0], axis=0)
    middle = rows[a > 0].mean()
    size = a @ np.abs(rows - middle) + b @ np.abs(columns + middle)
    floor = float(jnp.finfo(host.dtype).eps) * (a.sum() + size / (4 * float(epsilon)))
    kind, mass = accumulation_dtype(host.dtype), float(a.sum())
    with jax.ensure_compile_time_eval():
        point, step = jnp.zeros(b.shape, host.dtype), jnp.ones(b.shape, host.dtype)
        # A rule that wants a history accepts neither: nothing is known of it.
        best, reached = (accepts(stop, point, step, jnp.asarray(merit, kind), mass)
                         for merit in (0.0, floor))
    if best and not reached:
        warnings.warn(
            f"the tolerance is below the floating-point floor of the potentials, a marginal "
            f"error of about {floor:.1e} here; expect PRECISION_FLOOR, or use a larger epsilon "
            "or float64, and inf for costs of forbidden pairs.", stacklevel=3)
