"""Entropic optimal transport: the front function, its stages and its checks."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax

from jaxiter.adjoint import Adjoint, frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint
from jaxiter.monitor import Monitor
from jaxiter.numerics import anchor, pin, stop_gradient
from jaxiter.solution import Solution, Status
from jaxiter.solvers.anderson import anderson
from jaxiter.stop import Stop, tolerance
from jaxiter.transport.adjoint import attach
from jaxiter.transport.checks import prepare, sound, warn_below_floor
from jaxiter.transport.geometry import Dense, Geometry
from jaxiter.transport.iteration import (
    Marginals,
    kernel_problem,
    log_problem,
    sources,
    start,
)
from jaxiter.transport.newton import newton_problem
from jaxiter.transport.result import TransportResult, assemble

PyTree = Any

METHODS = ("auto", "log", "kernel", "newton")
#: "auto" gives accelerated Sinkhorn this many steps before it turns to Newton.
AUTO_STEPS = 150
#: "newton" starts from a plan with this relative row error, or after so many iterations.
WARMUP_ERROR, WARMUP_STEPS = 0.1, 200


def sinkhorn(
    cost: jax.Array | Geometry,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    epsilon: Any,
    rho_a: Any = float("inf"),
    rho_b: Any = float("inf"),
    method: str = "auto",
    init: jax.Array | None = None,
    epsilon_schedule: Any = None,
    solver: optax.GradientTransformation | None = None,
    stop: Stop | None = None,
    adjoint: Adjoint | None = None,
    max_steps: Any = 2000,
    monitor: Monitor | None = None,
) -> TransportResult:
    """Entropic optimal transport between two weight vectors.

    One step updates both potentials. The merit is the l1 marginal error, its scale the
    total mass. Derivatives of every output with respect to cost (or points), a, b,
    epsilon and rho are exact and implicit, of any order and in both modes; those of
    potentials are those of the stated normalisation. Balanced: b is rescaled to the
    mass of a, and the gradients of a and b are defined up to a constant.

    Args:
      cost: `[n, m]` (+inf forbids a pair) or a geometry such as `PointCloud(x, y)`.
      a, b: weights `[n]`, `[m]`; default uniform of mass 1. Zeros are legal.
      epsilon: regularisation in units of the cost, positive; may be traced.
      rho_a, rho_b: strength of the marginal penalties `rho KL(P 1 | a)`; inf is a constraint.
      method: "log" works everywhere; "kernel" absorbs the potentials into a kernel every 20
        steps, for costs in memory, many times faster; "newton" is for small epsilon and
        high accuracy (balanced, in memory; a step is a Newton step). "auto" takes kernel
        steps with Anderson's acceleration and turns to Newton after 150; point clouds and
        grids stay in the log domain and unbalanced problems with the kernel.
      init: a previous result's `g` `[m]` as warm start.
      epsilon_schedule: larger epsilons `[k]` to be solved roughly first, in this order; see
        `epsilon_scaling`.
      solver: acceleration of the iteration, such as `anderson()`; default none, "auto" has its own.
      stop, adjoint, max_steps, monitor: as in `fixed_point`; adjoints act on potentials.

    Returns:
      A `TransportResult`; `.solve.status` says how the solve ended. In float32 the
      iteration resolves a marginal error of about 5e-7 with the kernel, 1e-8 max(C) / epsilon in
      the log domain, and says PRECISION_FLOOR below.

    Raises:
      ValueError: wrong shapes, an unknown method, and, for concrete input, negative weights,
        unequal mass without rho, NaN costs, epsilon <= 0, a row or column without partner.
        Under jit these become BAD_INPUT.

    Reference: Cuturi, "Sinkhorn distances", 2013; sources of the parts in their modules.

    >>> import jax.numpy as jnp, jaxiter
    >>> out = jaxiter.transport.sinkhorn(jnp.array([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.1)
    >>> out.plan().round(3).tolist(), bool(out.solve.converged)
    ([[0.5, 0.0], [0.0, 0.5]], True)
    """
    geometry, marginals = prepare(cost, a, b, epsilon, rho_a, rho_b)
    method = _choose(method, geometry, marginals, solver)
    stop = tolerance() if stop is None else stop
    warn_below_floor(stop, method, geometry, marginals)

    def valid(x: PyTree, geometry: Geometry, marginals: Marginals) -> jax.Array:
        del x
        return sound(geometry, marginals)

    operands = stop_gradient((geometry, marginals))
    g = start(operands[0], operands[1]) if init is None else _warm(init, marginals)
    if epsilon_schedule is not None:
        g = _scaled(g, operands[0], operands[1], epsilon_schedule, method)
    adjoint = as_adjoint(adjoint)
    if adjoint.differentiates_loop:
        solve = fixed_point(log_problem(valid), g, geometry, marginals, solver=solver, stop=stop,
                            adjoint=adjoint, max_steps=max_steps, monitor=monitor)
        pair = sources(solve.value, geometry, marginals), solve.value
        return assemble(pair, solve, geometry, marginals)

    keywords: dict[str, Any] = {
        "stop": stop, "monitor": monitor, "max_steps": max_steps, "adjoint": frozen()}
    if method in ("auto", "newton"):
        solve, g = _with_newton(method, g, operands, valid, solver, keywords)
    else:
        problem = log_problem(valid) if method == "log" else kernel_problem(valid)
        solve = fixed_point(problem, g, *operands, solver=solver, **keywords)
        g = solve.value
    return assemble(attach(g, geometry, marginals, adjoint), solve, geometry, marginals)


def _with_newton(
    method: str, g: jax.Array, operands: tuple, valid: Any, solver: Any,
    keywords: dict[str, Any],
) -> tuple[Solution, jax.Array]:
    """Sinkhorn first, Newton after it: the solution of both, and target potentials."""
    geometry, marginals = operands
    limit = keywords["max_steps"]
    if method == "auto":
        first = fixed_point(kernel_problem(valid), g, *operands, **keywords | {
            "solver": anderson(), "max_steps": _at_most(limit, AUTO_STEPS)})
    else:
        warm = tolerance(rtol=WARMUP_ERROR, atol=0.0)
        first = fixed_point(kernel_problem(valid), g, *operands, solver=solver, **keywords | {
            "stop": warm, "max_steps": WARMUP_STEPS, "monitor": None})
    done = (first.status == Status.BAD_INPUT) | (first.status == Status.NONFINITE)
    spent = 0
    if method == "auto":
        done |= first.status != Status.MAX_STEPS
        spent = first.steps
    left = jnp.where(done, 0, jnp.asarray(limit, jnp.int32) - spent)

    def refine(start: jax.Array, left: jax.Array) -> tuple[Solution, jax.Array]:
        f = geometry.softmin(start, marginals.b, marginals.epsilon)
        x = (_finite_weights(f, marginals.a, marginals.epsilon),
             _finite_weights(start, marginals.b, marginals.epsilon))
        late: dict[str, Any] = keywords | {"max_steps": left}
        second = fixed_point(newton_problem(valid), x, *operands, **late)
        g = second.value[1] - marginals.epsilon * _log(marginals.b)
        g = jnp.where(marginals.b > 0, g, start)
        return second._replace(value=None, displacement=None, state=None), g

    second, refined = _if_needed(left > 0, refine, (first.value, left), operands)

    def pick(late: jax.Array, early: jax.Array) -> jax.Array:
        return jnp.where(left > 0, late, early)

    g = pick(refined, first.value)
    merged = second._replace(
        value=g, status=pick(second.status, first.status),
        steps=pick(second.steps, jnp.int32(0)) + spent, merit=pick(second.merit, first.merit),
        residual=pick(second.residual, first.residual),
        trace=(first.trace, second.trace) if method == "auto" else second.trace)
    return merged, g


def _if_needed(needed: jax.Array, function: Callable, operands: tuple, like: PyTree) -> PyTree:
    """`function(*operands)` where needed, else zeros: a loop of at most one round.

    A conditional would do, but JAX rejects one around user code under vmap inside a
    checked shard_map.
    """
    blank = jax.tree.map(
        lambda s: jnp.zeros(s.shape, s.dtype), jax.eval_shape(function, *operands))
    like = (needed, operands, like)
    return lax.while_loop(
        lambda state: state[0],
        lambda state: anchor((jnp.bool_(False), function(*pin(operands, state[0]))), like),
        anchor((needed, blank), like))[1]


def _at_most(limit: Any, most: int) -> Any:
    return min(limit, most) if isinstance(limit, int) else jnp.minimum(limit, most)


def _log(weights: jax.Array) -> jax.Array:
    return jnp.log(jnp.where(weights > 0, weights, 1))


def _finite_weights(potential: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
    """The "P" convention, with a finite number where the weight is 0: a solver's state."""
    return potential + epsilon * _log(weights)


def epsilon_scaling(largest: float, epsilon: float, factor: float = 0.25) -> np.ndarray:
    """Epsilons from `largest` (say, the largest cost) down to above `epsilon`, by `factor`.

    >>> epsilon_scaling(1.0, 0.05).tolist()
    [1.0, 0.25, 0.0625]
    """
    if not 0 < factor < 1:
        raise ValueError(f"factor must be between 0 and 1, got {factor}.")
    count = max(0, int(np.ceil(np.log(epsilon / largest) / np.log(factor) - 1e-9)))
    return largest * factor ** np.arange(count)


def _scaled(
    g: jax.Array, geometry: Geometry, marginals: Marginals, schedule: Any, method: str
) -> jax.Array:
    """Potentials after rough solves at each epsilon of the schedule."""
    problem = log_problem() if method == "log" else kernel_problem()
    rough = tolerance(rtol=1e-2, atol=0.0)

    def solve(g: jax.Array, epsilon: jax.Array) -> tuple[jax.Array, None]:
        out = fixed_point(problem, g, geometry, marginals._replace(epsilon=epsilon), stop=rough,
                          max_steps=200, adjoint=frozen())
        return out.value, None

    return lax.scan(solve, g, jnp.asarray(schedule, g.dtype))[0]


def _warm(init: jax.Array, marginals: Marginals) -> jax.Array:
    m = marginals.b.shape[0]
    if init.shape != (m,):
        raise ValueError(f"init must be potentials g of shape ({m},), got {init.shape}.")
    init, b, epsilon = stop_gradient((init, marginals.b, marginals.epsilon))
    return jnp.where(jnp.isfinite(init), init - epsilon * _log(b), 0).astype(b.dtype)


def _choose(method: str, geometry: Geometry, marginals: Marginals, solver: Any) -> str:
    """The method that "auto" stands for, or an error."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    if method == "newton" and not marginals.balanced:
        raise ValueError("Newton stage handles balanced problems; use method='kernel' with rho.")
    in_memory = isinstance(geometry, Dense)
    if method in ("kernel", "newton") and not in_memory:
        raise ValueError(f"method={method!r} holds the kernel in memory, which a "
                         f"{type(geometry).__name__} avoids; pass Dense(geometry.matrix()) or "
                         "method='log'.")
    if method != "auto":
        return method
    if not in_memory:
        return "log"
    return "auto" if marginals.balanced and solver is None else "kernel"
