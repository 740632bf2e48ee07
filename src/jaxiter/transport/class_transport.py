"""Transport whose rows of one class are drawn together: a sum of norms of their differences."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.implicit import implicit
from jaxiter.known import check_not_negative, known
from jaxiter.linear import normal_cg
from jaxiter.numerics import floating, is_concrete, on_own_mesh, product, stop_gradient, strong
from jaxiter.options import SolveOptions, choose
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.solvers.anderson import anderson
from jaxiter.splitting import solve_splitting
from jaxiter.stop import tolerance
from jaxiter.transport.checks import check_masses, check_signs, or_uniform
from jaxiter.transport.rounding import round_to_polytope
from jaxiter.transport.sum_of_norms import (
    balanced_steps,
    feasible,
    objective,
    pairs_of,
    sum_of_norms,
)


@reports
class ClassTransportResult(NamedTuple):
    """A plan, and a dual point that says how far from the best it can be.

    Attributes:
      plan: `[n, m]`, on the polytope but for rounding, with derivatives where it is unique.
      value: `<C, plan> + strength * sum |rows i - i'|`; its derivatives, with respect to cost, a, b
        and strength, need no unique plan.
      dual_value: a lower bound of every plan's value; a constant, as are both potentials.
      f: potentials `[n]` of the rows, the derivative of the value by a.
      g: potentials `[m]` of the columns, that by b; f + t, g - t are as good.
      solve: the untouched `Solution` of the governing point; its merit is `value - dual_value` at
        the map's image of it, which is what the other fields are of.
    """

    plan: jax.Array
    value: jax.Array
    dual_value: jax.Array
    f: jax.Array
    g: jax.Array
    solve: Solution


def class_transport(
    cost: jax.Array, a: jax.Array | None, b: jax.Array | None, classes: Any, strength: Any,
    **options: Unpack[SolveOptions],
) -> ClassTransportResult:
    """Optimal transport in which the rows of a class share their destinations.

        min <C, P> + strength * sum |P_i - P_i'|_2    over plans P and pairs i < i' of one class

    By the primal-dual hybrid gradient: Y, one force a pair, in a ball of that radius, potentials q
    of the columns, and rows of P on simplices of mass a_i,

        P+ = P(P - tau (C + E'Y + 1 q')),    (Y, q) += sigma (E, column sums - b)(2 P+ - P)

    with tau sigma |K|^2 < 1, |K|^2 = n. The merit is the gap between the value of the plan, moved
    onto the polytope, and the dual function, over mass times the range of the cost: CONVERGED is
    a proof. At strength 0 it is optimal transport; beyond some strength the rows of a class
    are equal, if their masses are.

    Args:
      cost: `[n, m]`, finite. a, b: weights `[n]`, `[m]` of equal sum; default uniform.
      classes: labels `[n]` of the rows, integers from 0 on; known, for they make the program. A
        point holds m numbers for each pair, Anderson's memory twenty points: `picard()` holds one.
      strength: at least 0, in units of cost.
      **options: those of `fixed_point`; by default 20,000 steps of `anderson(10)`, which takes a
        tenth to a half of the plain ones, and a relative gap of 1e-5 in float32, 1e-8 in float64.
        The adjoint is `implicit(normal_cg())`, for potentials have a constant that is free.

    Raises:
      ValueError: shapes; a class without rows; for concrete input a cost that is not finite,
        negative weights or strength, sums of a and b that differ, which under jit are BAD_INPUT.
      TypeError: labels that are traced, or no integers.

    Reference: Rahbar, Panahi, Chehreghani, Dubhashi and Krim, "Recovery bounds on class-based
    optimal transport: a sum-of-norms regularization framework", ICML, 2023; Chambolle and Pock, "A
    first-order primal-dual algorithm for convex problems with applications to imaging", J. Math.
    Imaging Vis. 40, 2011.

    >>> import jax.numpy as jnp
    >>> cost = jnp.array([[0.0, 1.0], [1.0, 0.5], [0.5, 1.0], [1.0, 0.0]])  # two are misled
    >>> for strength in (0.0, 1.0):
    ...     out = class_transport(cost, None, None, [0, 0, 1, 1], strength)
    ...     print((4 * out.plan[:, 0]).round(2).tolist(), bool(out.converged))
    [1.0, 0.0, 1.0, 0.0] True
    [1.0, 1.0, 0.0, 0.0] True
    """
    labels = _labels(classes, np.shape(cost))
    return _class_transport(cost, a, b, labels, strength, **options)


def _labels(classes: Any, shape: tuple) -> tuple[int, ...]:
    """The labels as numbers that a program may be made of.

    Raises:
      ValueError: another length than that of the rows, a class without rows.
      TypeError: labels that are traced, or no integers.
    """
    if not is_concrete(classes):
        raise TypeError("classes must be known: they make the program. Close over them, or map "
                        "over costs alone.")
    labels = np.asarray(classes)
    if not np.issubdtype(labels.dtype, np.integer):
        raise TypeError(f"classes must be integers, got {labels.dtype}.")
    if len(shape) != 2 or labels.shape != shape[:1]:
        raise ValueError(f"classes must be one label for each row of a cost [n, m], got shape "
                         f"{labels.shape} for a cost of shape {shape}.")
    missing = sorted(set(range(int(labels.max(initial=0)) + 1)) - set(labels.tolist()))
    if missing or labels.min(initial=0) < 0:
        wrong = f"class {missing[0]} has no rows" if missing else f"got {labels.min()}"
        raise ValueError(f"classes must be labels 0, 1, ... without gaps; {wrong}.")
    return tuple(labels.tolist())


@reused
@on_own_mesh
def _class_transport(
    cost: Any, a: Any, b: Any, labels: tuple[int, ...], strength: Any,
    **options: Unpack[SolveOptions],
) -> ClassTransportResult:
    chosen = choose("class_transport", options, {}, solver=anderson(10), max_steps=20_000,
                    stop=tolerance(atol=0.0), adjoint=implicit(normal_cg()))
    check_not_negative(strength=strength)
    raw = cost, a, b
    cost = floating(cost)
    n, m = cost.shape
    given = []
    for name, weights, size in (("a", a, n), ("b", b, m)):
        weights = jnp.full((size,), 1 / size, cost.dtype) if weights is None else strong(
            weights).astype(cost.dtype)
        if weights.shape != (size,):
            raise ValueError(f"{name} must have shape ({size},) for a cost of shape {(n, m)}, got "
                             f"{weights.shape}.")
        given.append(weights)
    known(_check, *raw)
    a, b = given
    strength = jnp.asarray(strength, cost.dtype)
    pairs = pairs_of(labels)
    # A constant in the cost is none of the plan's, and would take digits from the gap.
    base = stop_gradient(jnp.min(cost))
    split = sum_of_norms(pairs, cost.shape, *stop_gradient(balanced_steps(cost - base, a)))
    start = a[:, None] * b / jnp.sum(b)
    out = solve_splitting(split, start, cost - base, a, b, strength, **chosen._asdict())
    forces, f, g = stop_gradient(feasible(pairs, out.dual, cost, a, b, strength))
    moved = round_to_polytope(*stop_gradient((out.value, a, b)))
    plan = out.value + stop_gradient(moved - out.value)
    # Of the Lagrangian, whose derivative by the plan is 0: right where the plan's own is not.
    value = objective(pairs, moved, cost, strength)
    value = value + product(f, a - stop_gradient(a)) + product(g, b - stop_gradient(b))
    return ClassTransportResult(
        plan, value, stop_gradient(product(f, a) + product(g, b)), f, g, out.solve)


def _check(cost: Any, a: Any, b: Any) -> None:
    """Errors for input that can be read."""
    host = np.asarray(cost)
    if not np.all(np.isfinite(host)):
        raise ValueError("cost must be finite.")
    a, b = (np.asarray(or_uniform(weights, count, np.float64))
            for weights, count in zip((a, b), host.shape, strict=True))
    check_signs("a", a)
    check_signs("b", b)
    check_masses(a, b, "scale one of them")
