"""Entropic optimal transport: the front function, its stages and its checks."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxiter.adjoint import Adjoint
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint
from jaxiter.known import known
from jaxiter.numerics import on_own_mesh, stop_gradient
from jaxiter.options import SolveOptions, choose
from jaxiter.reuse import reused
from jaxiter.transport.adjoint import conclude
from jaxiter.transport.checks import (
    MAX_STEPS,
    NO_RESUME,
    prepare,
    reduce,
    valid,
    warn_below_floor,
)
from jaxiter.transport.geometry import Geometry
from jaxiter.transport.iteration import Marginals, from_units, log_problem, log_weights, sources
from jaxiter.transport.relative import Relative
from jaxiter.transport.result import TransportResult
from jaxiter.transport.stages import Choices, epsilon_scaling, place, solve_stages, viewed

METHODS = ("auto", "log", "kernel", "newton")

__all__ = ["epsilon_scaling", "sinkhorn"]


@reused
@on_own_mesh
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
    **options: Unpack[SolveOptions],
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
      epsilon: regularisation in units of the cost, positive; may be traced. Or `relative(0.05)`,
        in units of its mean.
      rho_a, rho_b: strength of the marginal penalties `rho KL(P 1 | a)`; inf is a constraint.
      method: "log" works everywhere; "kernel" absorbs the potentials into a kernel every 20
        steps, for costs in memory, many times faster; "newton" is for small epsilon and
        high accuracy (balanced, in memory; a step is a Newton step). "auto" takes kernel
        steps with Anderson's acceleration and turns to Newton after 600; point clouds and
        grids stay in the log domain and unbalanced problems with the kernel.
      init: a previous result's `g` `[m]` as warm start.
      epsilon_schedule: larger epsilons `[k]` to be solved roughly first, in this order; see
        `epsilon_scaling`. Default: none, but a few where typical costs are above 500 epsilon.
      **options: those of `fixed_point`. `solver` accelerates the iteration; default none, "auto"
        has its own. Adjoints act on potentials; `unrolled()` means method "log". `max_steps`, by
        default 2000, counts the steps of all stages. No `resume`: `init` starts warm.

    Returns:
      A `TransportResult`; `.solve.status` says how the solve ended. CONVERGED holds for the
      returned floats f and g: where those are too coarse for epsilon, in float32 at an error of
      about 1e-7 max |f| / epsilon, the status is PRECISION_FLOOR, though `plan()`, which is
      computed from a reduced cost, may be far better (`marginal_error` is its error).

    Raises:
      ValueError: wrong shapes, an unknown method, and, for concrete input, negative weights,
        unequal mass without rho, NaN costs, epsilon <= 0, a row or column without partner.
        Under jit these become BAD_INPUT. `unrolled()` with method "kernel" or "newton".

    Reference: Cuturi, "Sinkhorn distances", 2013; sources of the parts in their modules.

    >>> import jax.numpy as jnp, jaxiter
    >>> out = jaxiter.transport.sinkhorn(jnp.array([[0.0, 1.0], [1.0, 0.0]]), epsilon=0.1)
    >>> out.plan().round(3).tolist(), bool(out.solve.converged)
    ([[0.5, 0.0], [0.0, 0.5]], True)
    """
    chosen = choose("sinkhorn", options, NO_RESUME, max_steps=MAX_STEPS)
    geometry, marginals = prepare(cost, a, b, epsilon, rho_a, rho_b)
    stop, adjoint = chosen.rule, as_adjoint(chosen.adjoint)
    method = _choose(method, geometry, marginals, chosen.solver, adjoint)
    if method == "log" and not isinstance(cost, Geometry):
        given = marginals.epsilon if isinstance(epsilon, Relative) else epsilon
        known(warn_below_floor, stop, cost, a, b, given)
    given = None if init is None else _warm(init, marginals)
    parts, marginals = reduce(geometry, marginals, given)
    if adjoint.differentiates_loop:
        chosen = chosen._replace(monitor=viewed(chosen.monitor, lambda x: x * marginals.unit))
        solve = from_units(fixed_point(
            log_problem(valid), jnp.zeros_like(marginals.b), parts.geometry, marginals,
            **chosen._asdict()), marginals)
        pair = sources(solve.value, parts.geometry, marginals), solve.value
        return conclude(pair, solve, geometry, parts, marginals, stop, adjoint)
    if epsilon_schedule is not None:
        epsilon_schedule = jnp.asarray(epsilon_schedule, marginals.b.dtype)
    end, solve = solve_stages(
        stop_gradient(parts), stop_gradient(marginals), Choices(method, chosen), epsilon_schedule)
    parts, marginals = place(parts, marginals, end)
    return conclude((end.f, end.g), solve, geometry, parts, marginals, stop, adjoint)


def _warm(init: jax.Array, marginals: Marginals) -> jax.Array:
    m = marginals.b.shape[0]
    if init.shape != (m,):
        raise ValueError(f"init must be potentials g of shape ({m},), got {init.shape}.")
    init, b, epsilon = stop_gradient((init, marginals.b, marginals.epsilon))
    return jnp.where(jnp.isfinite(init), init - log_weights(b, epsilon), 0).astype(b.dtype)


def _choose(
    method: str, geometry: Geometry, marginals: Marginals, solver: Any, adjoint: Adjoint
) -> str:
    """The method that "auto" stands for, or an error."""
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}, got {method!r}.")
    if method == "newton" and not marginals.balanced:
        raise ValueError("Newton stage handles balanced problems; use method='kernel' with rho.")
    in_memory = geometry.in_memory
    if method in ("kernel", "newton") and not in_memory:
        raise ValueError(f"method={method!r} holds the kernel in memory, which a "
                         f"{type(geometry).__name__} avoids; pass Dense(geometry.matrix()) or "
                         "method='log'.")
    if adjoint.differentiates_loop:
        if method in ("kernel", "newton"):
            raise ValueError(f"unrolled() differentiates plain iterations, which method={method!r} "
                             "does not run; pass method='log'.")
        return "log"
    if method != "auto":
        return method
    if not in_memory:
        return "log"
    return "auto" if marginals.balanced and solver is None else "kernel"
