"""Gromov-Wasserstein transport: plans that keep distances, between points of different spaces."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint
from jaxiter.known import check_floating, check_positive, check_share, known
from jaxiter.lanes import solve_many
from jaxiter.numerics import machine_epsilon, on_own_mesh, product, stop_gradient, strong
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.stop import tolerance
from jaxiter.transport.checks import check_masses, check_signs, mass_agrees, only_implicit
from jaxiter.transport.entries import softmin
from jaxiter.transport.inner import Warm, cold, inner_plan


class Spaces(NamedTuple):
    """Distances `[n, n]`, `[m, m]`, a cost `[n, m]` or None, its share, weights and epsilon."""

    cx: jax.Array
    cy: jax.Array
    cost: jax.Array | None
    fused: jax.Array
    a: jax.Array
    b: jax.Array
    epsilon: jax.Array

    def cross(self, plan: jax.Array) -> jax.Array:
        """`sum_kl (cx_ik - cy_jl)^2 P_kl` `[n, m]`, for a plan with the marginals a, b."""
        rows = product(jnp.square(self.cx), self.a)
        columns = product(jnp.square(self.cy), self.b)
        both = product(product(self.cx, plan), self.cy.T)
        return rows[:, None] + columns[None, :] - 2 * both

    def linear(self, plan: jax.Array) -> jax.Array:
        """Half the gradient of `value`: what a step transports for."""
        cross = self.cross(plan)
        if self.cost is None:
            return cross
        return (1 - self.fused) * cross + self.fused / 2 * self.cost

    def value(self, plan: jax.Array) -> jax.Array:
        """`(1 - fused) sum (cx_ik - cy_jl)^2 P_ij P_kl + fused <cost, P>`."""
        quadratic = jnp.sum(self.cross(plan) * plan)
        if self.cost is None:
            return quadratic
        return (1 - self.fused) * quadratic + self.fused * jnp.sum(self.cost * plan)


@reports
class GromovResult(NamedTuple):
    """What `gromov_wasserstein` has found.

    Attributes:
      coupling: the plan `[n, m]`, also as `plan()`.
      value: `(1 - fused) sum (cx_ik - cy_jl)^2 P_ij P_kl + fused <cost, P>`, without entropy.
      inner: Sinkhorn steps of all outer steps together, int32.
      solve: the Solution of the plan; its merit is the l1 change by one outer step plus the
        l1 error of both marginals.
      values: of all starts `[starts]`, with several; None with one. The others are of the best.
    """

    coupling: jax.Array
    value: jax.Array
    inner: jax.Array
    solve: Solution
    values: jax.Array | None

    def plan(self) -> jax.Array:
        """The transport plan P, `[n, m]`."""
        return self.coupling


@reused
@on_own_mesh
def gromov_wasserstein(
    cx: jax.Array,
    cy: jax.Array,
    a: jax.Array | None = None,
    b: jax.Array | None = None,
    *,
    epsilon: Any,
    fused: Any = 0.0,
    cost: jax.Array | None = None,
    init: jax.Array | None = None,
    **options: Unpack[SolveOptions],
) -> GromovResult:
    """A plan P under which distances agree: entropic Gromov-Wasserstein with the square loss.

        P <- sinkhorn(cost(P), epsilon),    cost(P)_ij = sum_kl (cx_ik - cy_jl)^2 P_kl

    whose fixed points are the stationary points of `sum (cx_ik - cy_jl)^2 P_ij P_kl
    + 2 epsilon KL(P | a b^T)`: POT, which transports for twice this cost, calls the same
    2 epsilon its epsilon. Each inner solve starts from the potentials of the one before, and is
    a twentieth as exact as the plan last moved.

    Nothing here is convex. CONVERGED says that P is stationary, not that it is the best: from
    random starts every solve may converge, and the worst of them match next to nothing. Give
    several starts, look at `values`, and do not expect an exact recovery of a permutation.

    Args:
      cx, cy: symmetric distances `[n, n]`, `[m, m]`, or any similarities.
      a, b: weights `[n]`, `[m]` of equal sum; default uniform of mass 1. Zeros are legal.
      epsilon: regularisation in units of the squared distances; positive, may be traced.
      fused: share in [0, 1] of a linear cost: `(1 - fused)` of the above `+ fused <cost, P>`.
      cost: that cost, `[n, m]`, finite.
      init: a plan `[n, m]` to start with, or several `[starts, n, m]`, solved one after the other
        and the one of least value returned; any positive numbers, for they are scaled to the
        mass. Default `a b^T`.
      **options: those of `fixed_point`. Default stop: a merit of 1e-5 of the mass (1e-8 in
        float64). No `resume`: `init` starts warm. No `unrolled()`, no series.

    Returns:
      A `GromovResult`; plan and value have exact implicit derivatives of any order.

    Raises:
      ValueError: distances that are not square, symmetric and finite, weights as in `sinkhorn`,
        `fused` without cost or cost without `fused`, a share outside [0, 1], a cost that is not
        finite, epsilon <= 0. Under jit: BAD_INPUT. TypeError: cx that is not floating point.

    Reference: Peyre, Cuturi and Solomon, "Gromov-Wasserstein averaging of kernel and distance
    matrices", ICML, 2016; Vayer, Chapel, Flamary, Tavenard and Courty, "Fused Gromov-Wasserstein
    distance for structured objects", Algorithms 13, 2020.

    >>> import jax.numpy as jnp
    >>> x = jnp.array([0.0, 1.0, 3.0])
    >>> distances = jnp.abs(x[:, None] - x)
    >>> out = gromov_wasserstein(distances, distances[::-1, ::-1], epsilon=0.05)
    >>> out.plan().argmax(1).tolist(), bool(out.converged)
    ([2, 1, 0], True)
    """
    chosen = choose("gromov_wasserstein", options, {
        "resume": "start warm by init"}, stop=tolerance(atol=0.0))
    adjoint = as_adjoint(chosen.adjoint)
    only_implicit("gromov_wasserstein", adjoint, sums=False)
    spaces = _spaces(cx, cy, a, b, epsilon, fused, cost)
    held, mass = stop_gradient(spaces), jnp.sum(spaces.a)
    begin = jnp.outer(held.a, held.b) / mass
    if init is not None:
        begin = stop_gradient(strong(init).astype(begin.dtype))
        if begin.shape[-2:] != (*held.a.shape, *held.b.shape) or begin.ndim not in (2, 3):
            raise ValueError(f"init must be plans [n, m] or [starts, n, m] with n, m = "
                             f"{(*held.a.shape, *held.b.shape)}, got {begin.shape}.")
        begin = begin * (mass / jnp.sum(begin, (-2, -1), keepdims=True))
    problem, frozen_options = _problem(), chosen._replace(adjoint=frozen())._asdict()
    if begin.ndim == 2:
        solve, values = fixed_point(problem, begin, held, **frozen_options), None
    else:
        # One after the other: side by side every inner solve would wait for the longest, and
        # sixteen starts of a hundred points take 20 to 40 times as long on a CPU.
        solve = solve_many(problem, begin, held, in_axes=None, lanes=1, **frozen_options)
        values = jax.vmap(held.value)(solve.value)
        best = jnp.argmin(jnp.where(jnp.isfinite(values), values, jnp.inf))
        solve = jax.tree.map(lambda leaf: leaf[best], solve)
    warm = solve.state.answer.memory
    coupling = _attached(solve, warm, spaces, adjoint)
    return GromovResult(coupling, spaces.value(coupling), warm.steps,
                        solve._replace(state=None), values)


def _problem() -> Problem:
    def step(plan: jax.Array, warm: Warm, spaces: Spaces) -> tuple[jax.Array, Warm]:
        image, g, steps = inner_plan(spaces.linear(plan), *spaces[-3:], warm.g, warm.change)
        change = jnp.sum(jnp.abs(image - plan)) / jnp.sum(spaces.a)
        return image, Warm(g, change, warm.steps + steps)

    def merit(plan: jax.Array, image: jax.Array, warm: Warm, spaces: Spaces) -> jax.Array:
        off = jnp.sum(jnp.abs(plan.sum(1) - spaces.a)) + jnp.sum(jnp.abs(plan.sum(0) - spaces.b))
        return jnp.sum(jnp.abs(image - plan)) + off

    def floor(plan: jax.Array, warm: Warm, spaces: Spaces) -> jax.Array:
        # An entry is as good as its exponent: a cost of so many epsilons.
        size = jnp.sum(plan * jnp.abs(spaces.linear(plan))) / spaces.epsilon
        return machine_epsilon(plan) * (2 * jnp.sum(spaces.a) + size)

    return Problem(
        step=step, merit=merit, floor=floor, valid=_valid,
        scale=lambda plan, image, warm, spaces: jnp.sum(spaces.a),
        memory=lambda plan, spaces: cold(jnp.zeros_like(spaces.b)))


def _attached(solve: Solution, warm: Warm, spaces: Spaces, adjoint: Any) -> jax.Array:
    """The plan with its derivatives: those of its density and of g together, so that no linear
    solve is inside another.
    """
    def equations(x: tuple, spaces: Spaces) -> tuple:
        density, g = x
        a, b, epsilon = spaces[-3:]
        scaled = spaces.linear(jnp.outer(a, b) * density) / epsilon
        f, image = updated(g, scaled, spaces)
        image = image - product(b, image) / jnp.sum(b)
        return entries(f, g, scaled, spaces) - density, image - g

    def updated(g: jax.Array, scaled: jax.Array, spaces: Spaces) -> tuple:
        one = jnp.ones_like(spaces.epsilon)
        f = softmin(scaled, g, spaces.b, one)
        return f, softmin(scaled.T, f, spaces.a, one)

    def entries(f: jax.Array, g: jax.Array, scaled: jax.Array, spaces: Spaces) -> jax.Array:
        # Between two points without mass nothing bounds the exponent.
        some = (spaces.a > 0)[:, None] | (spaces.b > 0)[None, :]
        return jnp.where(some, jnp.exp(jnp.where(
            some, f[:, None] + g[None, :] - scaled, 0)), 0)

    held = stop_gradient(spaces)
    weights, g = jnp.outer(held.a, held.b), warm.g / held.epsilon
    # At points without mass no step has asked for potentials and density: here derivatives do.
    scaled = held.linear(solve.value) / held.epsilon
    f, image = updated(g, scaled, held)
    g = jnp.where(held.b > 0, g, image)
    density = jnp.where(weights > 0, solve.value / jnp.where(weights > 0, weights, 1),
                        entries(f, g, scaled, held))
    g = g - product(held.b, g) / jnp.sum(held.b)
    density, _ = adjoint.attach(equations, (density, g), (spaces,), solve.status)
    return jnp.outer(spaces.a, spaces.b) * density


def _spaces(cx: Any, cy: Any, a: Any, b: Any, epsilon: Any, fused: Any, cost: Any) -> Spaces:
    """Checked operands."""
    for name, distances in (("cx", cx), ("cy", cy)):
        if np.ndim(distances) != 2 or len(set(np.shape(distances))) != 1 or not np.size(distances):
            raise ValueError(f"{name} must be a square matrix of distances, got shape "
                             f"{np.shape(distances)}.")
        known(lambda host, name=name: _check_distances(name, host), distances)
    cx, cy = strong(cx), strong(cy)
    check_floating(cx=cx)
    dtype, n, m = cx.dtype, cx.shape[0], cy.shape[0]
    for name, weights, size in (("a", a, n), ("b", b, m)):
        if weights is not None and np.shape(weights) != (size,):
            raise ValueError(f"{name} must have shape ({size},), got {np.shape(weights)}.")
        known(lambda host, name=name: host is None or check_signs(name, np.asarray(host)), weights)
    given = [np.full(size, 1 / size, dtype) if weights is None else weights
             for weights, size in ((a, n), (b, m))]
    known(lambda a, b: check_masses(a, b, "normalise them", dtype), *given)
    check_positive(epsilon=epsilon)
    if (cost is None) != (isinstance(fused, int | float) and fused == 0):
        raise ValueError("a fused problem needs both: fused, the share of the linear cost in "
                         "(0, 1], and cost [n, m].")
    if cost is not None:
        check_share(fused=fused)
        known(_check_cost, cost)
        cost = strong(cost).astype(dtype)
        if cost.shape != (n, m):
            raise ValueError(f"cost must have shape {(n, m)}, got {cost.shape}.")
    a, b = (strong(weights).astype(dtype) for weights in given)
    fused = jnp.asarray(fused, dtype)
    # What the scaled b and the plan no longer show makes epsilon NaN, which is BAD_INPUT.
    good = mass_agrees(a, b, dtype) & (fused >= 0) & (fused <= 1)
    if cost is not None:
        good &= jnp.all(jnp.isfinite(cost))
    epsilon = jnp.where(good, jnp.asarray(epsilon, dtype), jnp.nan)
    return Spaces(cx, cy.astype(dtype), cost, fused, a, b * (jnp.sum(a) / jnp.sum(b)), epsilon)


def _check_cost(cost: Any) -> None:
    if not np.all(np.isfinite(np.asarray(cost))):
        raise ValueError("cost contains NaN or infinity; give pairs that must not be a large "
                         "number.")


def _check_distances(name: str, distances: Any) -> None:
    host = np.asarray(distances)
    if not np.all(np.isfinite(host)):
        raise ValueError(f"{name} contains NaN or infinity.")
    if not _symmetric(host, np):
        raise ValueError(f"{name} is not symmetric; pass ({name} + {name}.T) / 2.")


def _symmetric(distances: Any, xp: Any) -> Any:
    slack = 1e-3 * xp.max(xp.abs(distances))
    return xp.max(xp.abs(distances - distances.T)) <= slack


def _valid(plan: jax.Array, spaces: Spaces) -> jax.Array:
    """Whether the operands make sense, for values that are not concrete."""
    good = (spaces.epsilon > 0) & jnp.all(jnp.isfinite(plan)) & jnp.all(plan >= 0)
    for distances in (spaces.cx, spaces.cy):
        good &= _symmetric(distances, jnp)
    for weights in (spaces.a, spaces.b):
        good &= jnp.all(weights >= 0) & (jnp.sum(weights) > 0) & jnp.isfinite(jnp.sum(weights))
    return good
