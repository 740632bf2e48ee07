"""Derivatives of a fixed point by the implicit function theorem, and what happens when that fails.

Write F(x, theta) for the problem's equations. At a root dx = -(dF/dx)^{-1} (dF/dtheta) dtheta:
one linear solve forward, or one with the transpose backward.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.adjoint import Adjoint, split, truncated_series, with_jvp
from jaxiter.linear import LinearSolution, LinearSolver, bicgstab, by_rows
from jaxiter.linear.ridge import with_ridge
from jaxiter.numerics import (
    anchor,
    machine_epsilon,
    mesh_of,
    on_own_mesh,
    safe_divide,
    stop_gradient,
)
from jaxiter.residual import Residual, hoisted, like, widened
from jaxiter.solution import Status

PyTree = Any

#: A solve has failed whose recomputed relative residual is above this,
FAILURE = 1e-3
#: or times the condition number that it saw (a lower bound of the true one) above this,
LARGEST_ERROR = 3.0
#: or where rounding alone, by that number, may be worth ten times the first.
ROUNDING = 10 * FAILURE
#: In half precision, where products are no better, so many machine epsilons are the first.
FAILURE_EPSILONS = 16


def trusted(solution: LinearSolution, epsilon: float) -> jax.Array:
    """Whether an adjoint solve, of products with this machine epsilon, gives a gradient.

    Within about 2 per cent in float32, however ill conditioned the system: 6 of 11,000 with
    an eigenvalue of 1 - 1e-6 to 1 - 1e-3 were further off, none of condition below 1e5.
    """
    unit = max(FAILURE, FAILURE_EPSILONS * epsilon if epsilon > 1e-5 else 0) / FAILURE
    residual, condition = solution.residual, solution.condition  # each false for NaN
    return (residual <= unit * FAILURE) & (residual * condition <= unit * LARGEST_ERROR) & (
        epsilon * condition <= max(unit * FAILURE, ROUNDING))


class _Implicit(Adjoint):
    solve: Callable = eqx.field(static=True)
    mode: str = eqx.field(static=True)
    on_unconverged: str = eqx.field(static=True)
    on_failure: int | None = eqx.field(static=True)
    rows: bool = eqx.field(static=True)
    failures: Any = None

    @property
    def sums_map(self) -> bool:
        return self.on_failure not in (None, 0)

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        residual, operands = hoisted(equations, x, args)
        probe = () if self.failures is None else (jnp.asarray(self.failures),)
        if self.mode == "jvp":
            value = with_jvp(x, (operands, probe), self._tangent(residual))
        else:
            value = self._with_vjp(residual, x, operands, probe)
        if self.on_unconverged == "nan":
            value = nan_derivative_unless(status == Status.CONVERGED, value)
        return value

    def with_solver(self, change: Callable) -> Adjoint:
        return replace(self, solve=change(self.solve))

    def _tangent(self, residual: Residual) -> Callable:
        def tangent(x: PyTree, given: tuple, dots: tuple) -> PyTree:
            (operands, _), (operand_dots, probe_dots) = given, dots
            _, rhs = jax.jvp(lambda ops: residual(x, ops), (operands,), (operand_dots,))
            function, point = residual.at(x, operands)
            matvec = _minus(jax.linearize(function, point)[1], point)
            # The probe's tangent rides along, multiplied by one: the transpose of this solve
            # answers it with the number of failures.
            both = couple(widened(rhs), probe_dots)
            solve = partial(self._pair, machine_epsilon(point))
            out = lax.custom_linear_solve(
                lambda pair: (matvec(pair[0]), pair[1]), both, solve, solve)
            return like(out[0], x)

        return tangent

    def _pair(self, epsilon: float, matvec: Callable, pair: tuple) -> tuple:
        b, probe = pair
        with mesh_of(b):
            value, failed = self._checked(lambda v: matvec((v, probe))[0], b, epsilon)
        return value, tuple(failed.astype(one.dtype) for one in probe)

    def _checked(
        self, matvec: Callable, b: PyTree, epsilon: float
    ) -> tuple[PyTree, jax.Array]:
        """The solution, or what `on_failure` says; and how many failed.

        `epsilon` is the machine epsilon of the products, which may be coarser than b.
        """
        solve = by_rows(self.solve) if self.rows else self.solve
        solution = as_solution(solve(matvec, b), matvec, b)
        good = trusted(solution, epsilon)
        if self.on_failure is None:
            other = trees.full_like(b, jnp.nan)
        elif self.on_failure == 0:
            other = trees.zeros_like(b)
        else:
            other = truncated_series(
                lambda v: trees.subtract(v, matvec(v)), b, self.on_failure)
        keep = jax.vmap(trees.where) if self.rows else trees.where
        return keep(good, solution.value, other), jnp.sum(~good)

    def _with_vjp(
        self, residual: Residual, x: PyTree, operands: tuple, probe: tuple
    ) -> PyTree:
        @jax.custom_vjp
        def point(x: PyTree, operands: tuple, probe: tuple) -> PyTree:
            del operands, probe
            return x

        def forward(x: PyTree, operands: tuple, probe: tuple) -> tuple:
            return point(x, operands, probe), (x, operands, probe)

        def backward(saved: tuple, cotangent: PyTree) -> tuple:
            x, operands, probe = saved
            function, at = residual.at(x, operands)
            _, pull_x = jax.vjp(function, at)
            _, pull_operands = jax.vjp(lambda ops: residual(x, ops), operands)
            cotangent = anchor(cotangent, (x, operands))
            matvec = _minus(lambda v: pull_x(v)[0], at)
            dual, failed = self._checked(matvec, widened(cotangent), machine_epsilon(at))
            counts = tuple(failed.astype(one.dtype) for one in probe)
            return trees.zeros_like(x), *pull_operands(like(dual, x)), counts

        point.defvjp(forward, backward)
        return point(stop_gradient(x), operands, probe)


def _minus(linear: Callable, point: PyTree) -> Callable:
    """`-linear` on vectors of any precision; `linear` works in that of the point."""
    return lambda v: trees.negative(like(linear(like(v, point)), v))


def as_solution(out: Any, matvec: Callable, b: PyTree) -> LinearSolution:
    """What a linear solver returned; a bare answer gets the residual that it has."""
    if isinstance(out, LinearSolution):
        return out
    trees.check_same_structure(b, out, "The answer of the linear solver")
    norm = trees.norm(trees.subtract(b, matvec(out)))
    residual = safe_divide(norm, trees.norm(b))
    return LinearSolution(out, jnp.int32(Status.RUNNING), jnp.int32(0), residual,
                          jnp.ones_like(residual))


def couple(rhs: PyTree, probe: tuple = ()) -> tuple[PyTree, tuple]:
    """Both, where every leaf depends linearly on those of rhs, and only the probe on the probe.

    The transpose of custom_linear_solve refuses a right-hand side of which some leaf is a constant
    zero: an equation that involves no argument, a probe that nobody differentiates by.
    """
    leaves = jax.tree.leaves(rhs)
    if len(leaves) + len(probe) == 1:
        return rhs, probe
    sums = [jnp.sum(leaf.real) for leaf in leaves]

    def coupled(leaf: jax.Array) -> jax.Array:
        return leaf + 0 * sum(s.astype(leaf.dtype) for s in sums)

    together = jax.tree.map(coupled, rhs) if len(leaves) > 1 else rhs
    return together, tuple(coupled(one) for one in probe)


def nan_derivative_unless(good: jax.Array, value: PyTree) -> PyTree:
    """`value`, whose derivatives are NaN where the scalar predicate is false."""

    @jax.custom_jvp
    def keep(value: PyTree, good: jax.Array) -> PyTree:
        del good
        return value

    @keep.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple:
        # The predicate is an operand: a derivative of a compiled function outlives this trace.
        factor = jnp.where(primals[1], 1.0, jnp.nan)
        return keep(*primals), trees.scale(factor, tangents[0])

    return keep(value, good)


def implicit(
    solve: LinearSolver | None = None, *, mode: str = "jvp", on_unconverged: str = "ignore",
    on_failure: Any = "nan", rows: bool = False, failures: Any = None, ridge: Any = 0.0,
) -> Adjoint:
    """Exact derivatives by the implicit function theorem; matrix-free; the default.

    Solves `(dF/dx) dx = -(dF/dtheta) dtheta` forward, or its transpose backward,
    with cost and memory independent of the number of forward steps. All of
    grad, jvp, Hessians, vmap, remat, pmap and shard_map work. Problems in half precision are
    solved in float32.

    A linear solve fails when its recomputed relative residual is above 1e-3, when that times the
    condition number that it saw is above 3, or when rounding alone, by that number, may be above
    1e-2. Then `on_failure` decides, for each problem of a
    vmapped batch by itself; `adjoint_report` says why.

    Args:
      solve: a linear solver of `jaxiter.linear`, or any function of matvec and b; default
        `bicgstab()`.
      mode: "jvp" registers one rule for both modes and any order; "vjp" registers
        only the reverse rule (then `solve` need not be differentiable).
      on_unconverged: "ignore" differentiates at `value` whatever the status;
        "nan" gives NaN derivatives unless the status is CONVERGED.
      on_failure: "nan", never a silent wrong number; "zero"; `one_step(k)` or `neumann(k)`: the
        first k terms of the series, biased but bounded (where equations are T(x) - x). For
        training loops, which must survive a bad sample.
      rows: the leading axis of every leaf of x counts problems that do not depend on each other
        (a batch in one array): each gets a linear solve, and fails, by itself.
      failures: a float scalar, 0.0, whose cotangent is the number of backward solves that failed:
        `grad(loss, argnums=(0, 1))(params, 0.0)` returns it beside the gradient.
      ridge: times the identity, added to -dF/dx, which is I - T' for a map and the Hessian for a
        fit or an inner problem: for singular or nearly singular solutions, at the price of a
        biased derivative.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> half = lambda a: jaxiter.fixed_point(lambda x, a: 0.5 * x + a, jnp.zeros(()), a).value
    >>> round(float(jax.grad(half)(3.0)), 4)
    2.0
    """
    if mode not in ("jvp", "vjp"):
        raise ValueError(f'mode must be "jvp" or "vjp", got {mode!r}.')
    if on_unconverged not in ("ignore", "nan"):
        raise ValueError(f'on_unconverged must be "ignore" or "nan", got {on_unconverged!r}.')
    names = {"nan": None, "zero": 0}
    if isinstance(on_failure, str) and on_failure in names:
        terms = names[on_failure]
    elif isinstance(on_failure, Adjoint) and on_failure.series is not None:
        terms = on_failure.series
    else:
        raise ValueError('on_failure must be "nan", "zero", one_step(k) or neumann(k), got '
                         f"{on_failure!r}.")
    if failures is not None and not jnp.issubdtype(jnp.result_type(failures), jnp.floating):
        raise TypeError(f"failures must be a float scalar, 0.0, got {failures!r}.")
    solve = bicgstab() if solve is None else solve
    if not callable(solve):
        raise TypeError(f"solve must be a linear solver such as gmres(), got {solve!r}.")
    solve = with_ridge(solve, ridge)
    return _Implicit(solve, mode, on_unconverged, terms, rows, failures)


def as_adjoint(adjoint: Any) -> Adjoint:
    """The adjoint, `implicit()` for None.

    Raises:
      TypeError: anything else, such as a name or a factory that was not called.
    """
    adjoint = implicit() if adjoint is None else adjoint
    if not isinstance(adjoint, Adjoint):
        raise TypeError(f"adjoint must be one such as implicit() or unrolled(), got "
                        f"{type(adjoint).__name__}; did you forget to call it?")
    return adjoint


@on_own_mesh
def attach_implicit(
    equations: Callable, x_star: PyTree, *args: PyTree, adjoint: Adjoint | None = None
) -> PyTree:
    """Give the answer of any foreign solver its implicit derivatives.

    Args:
      equations: `equations(x, *args)`, zero at the solution, same structure as x;
        arrays that it closes over get derivatives too.
      x_star: the solution, from anywhere (scipy, jaxopt, a callback); its own
        derivatives are dropped.
      adjoint: default `implicit()`; also neumann or one_step when `equations` is T(x) - x.

    Returns:
      x_star with derivatives with respect to args and closures.

    Raises:
      ValueError: `unrolled()`. TypeError: integers in x_star; equations of another structure.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> sqrt = lambda a: jaxiter.attach_implicit(lambda x, a: x * x - a, jnp.array(3.0), a)
    >>> round(float(jax.grad(sqrt)(9.0)), 4)
    0.1667
    """
    adjoint = as_adjoint(adjoint)
    if adjoint.differentiates_loop:
        raise ValueError("unrolled() differentiates a loop, and attach_implicit has none; use "
                         "implicit().")
    dynamic, restore = split(args)
    x_star = jax.tree.map(jnp.asarray, x_star)
    for path, leaf in jax.tree_util.tree_leaves_with_path(x_star):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            raise TypeError(f"x_star{jax.tree_util.keystr(path)} has dtype {leaf.dtype}; only "
                            "floating-point and complex answers have derivatives.")

    def checked(x: PyTree, *arrays: PyTree) -> PyTree:
        out = equations(x, *restore(arrays))
        trees.check_same_structure(x, out, "equations")
        return out

    return adjoint.attach(checked, x_star, dynamic, jnp.int32(Status.CONVERGED))


def linear_report(
    equations: Callable, x: PyTree, args: tuple, solve: LinearSolver, cotangent: PyTree
) -> LinearSolution:
    """The backward solve at x for one cotangent, with its status and true residual."""
    residual, operands = hoisted(equations, x, args)
    function, at = residual.at(x, operands)
    _, pull = jax.vjp(function, at)
    rhs = anchor(widened(cotangent), (x, args))
    matvec = _minus(lambda v: pull(v)[0], at)
    return as_solution(solve(matvec, rhs), matvec, rhs)
