"""How derivatives pass through a fixed point: one room, separate from the forward loop.

Write F(x, theta) for the problem's equations (default T(x, theta) - x). At a
root the implicit function theorem gives dx = -(dF/dx)^{-1} (dF/dtheta) dtheta.
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
from jaxiter.linear import LinearSolution, LinearSolver, bicgstab
from jaxiter.numerics import anchor, hoist, is_array, stop_gradient, while_loop
from jaxiter.solution import Status

PyTree = Any

#: A solve whose recomputed relative residual is above this gives NaN derivatives.
FAILURE_RESIDUAL = 1e-2


class Adjoint(eqx.Module):
    """How derivatives pass through a solve; subclasses override `attach` and, rarely, `loop`.

    `differentiates_loop` says whether derivatives flow through the forward
    loop itself; otherwise the driver stops every gradient that enters it.
    """

    differentiates_loop: bool = eqx.field(static=True, default=False, init=False)

    def loop(self, going: Callable, body: Callable, state: PyTree, max_steps: Any) -> PyTree:
        """Run `body` while `going`; the driver's only loop primitive."""
        del max_steps
        return while_loop(going, body, state)

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        """x, with derivatives with respect to args and to everything `equations` closes over."""
        raise NotImplementedError

    def with_solver(self, change: Callable) -> "Adjoint":
        """The same, its linear solver replaced by `change(solver)`; others have none."""
        del change
        return self


class _Implicit(Adjoint):
    solve: Callable = eqx.field(static=True)
    mode: str = eqx.field(static=True)
    on_unconverged: str = eqx.field(static=True)

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        def tangent(residual: Callable, x: PyTree, operands: tuple, dots: tuple) -> PyTree:
            _, rhs = jax.jvp(lambda ops: residual(x, ops), (operands,), (dots,))
            _, linear = jax.linearize(lambda y: residual(y, operands), x)
            rhs = _couple(rhs)
            return lax.custom_linear_solve(
                lambda v: trees.negative(linear(v)), rhs, self._checked, self._checked
            )

        if self.mode == "jvp":
            value = _with_jvp(equations, x, args, tangent)
        else:
            value = self._with_vjp(equations, x, args)
        if self.on_unconverged == "nan":
            value = _nan_derivative_unless(status == Status.CONVERGED, value)
        return value

    def with_solver(self, change: Callable) -> Adjoint:
        return replace(self, solve=change(self.solve))

    def _checked(self, matvec: Callable, b: PyTree) -> PyTree:
        solution = self.solve(matvec, b)
        good = solution.residual <= FAILURE_RESIDUAL  # also false for NaN
        return trees.where(good, solution.value, trees.full_like(b, jnp.nan))

    def _with_vjp(self, equations: Callable, x: PyTree, args: tuple) -> PyTree:
        pure, constants, _ = hoist(equations, x, *args)

        @jax.custom_vjp
        def point(x: PyTree, operands: tuple) -> PyTree:
            del operands
            return x

        def forward(x: PyTree, operands: tuple) -> tuple:
            return point(x, operands), (x, operands)

        def backward(saved: tuple, cotangent: PyTree) -> tuple:
            x, operands = saved
            _, pull_x = jax.vjp(lambda y: pure(operands[1], y, *operands[0]), x)
            _, pull_operands = jax.vjp(lambda ops: pure(ops[1], x, *ops[0]), operands)
            cotangent = anchor(cotangent, (x, operands))
            dual = self._checked(lambda v: trees.negative(pull_x(v)[0]), cotangent)
            return trees.zeros_like(x), *pull_operands(dual)

        point.defvjp(forward, backward)
        return point(stop_gradient(x), (args, constants))


def _couple(rhs: PyTree) -> PyTree:
    """The same tree, where every leaf depends linearly on all leaves.

    The transpose of custom_linear_solve refuses a right-hand side of which some
    leaf is a constant zero: an equation that involves no argument.
    """
    leaves = jax.tree.leaves(rhs)
    if len(leaves) == 1:
        return rhs
    sums = [jnp.sum(leaf.real) for leaf in leaves]
    return jax.tree.map(
        lambda leaf: leaf + 0 * sum(s.astype(leaf.dtype) for s in sums), rhs)


def _with_jvp(equations: Callable, x: PyTree, args: tuple, tangent: Callable) -> PyTree:
    """x as a function of args and hoisted constants whose tangent is given by `tangent`."""
    pure, constants, _ = hoist(equations, x, *args)

    def residual(x: PyTree, operands: tuple) -> PyTree:
        return pure(operands[1], x, *operands[0])

    return with_jvp(x, (args, constants), partial(tangent, residual))


def with_jvp(x: PyTree, operands: PyTree, tangent: Callable) -> PyTree:
    """x as a function of operands, whose tangent is `tangent(x, operands, operand tangents)`.

    The rule calls `point` again, so that second derivatives use it too.
    """
    @jax.custom_jvp
    def point(x: PyTree, operands: PyTree) -> PyTree:
        del operands
        return x

    @point.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple:
        x = point(*primals)
        return x, tangent(x, primals[1], tangents[1])

    return point(stop_gradient(x), operands)


def _nan_derivative_unless(good: jax.Array, value: PyTree) -> PyTree:
    """`value`, whose derivatives are NaN where the scalar predicate is false."""

    @jax.custom_jvp
    def keep(value: PyTree) -> PyTree:
        return value

    @keep.defjvp
    def rule(primals: tuple, tangents: tuple) -> tuple:
        factor = jnp.where(good, 1.0, jnp.nan)
        return keep(*primals), trees.scale(factor, tangents[0])

    return keep(value)


def implicit(
    solve: LinearSolver | None = None, *, mode: str = "jvp", on_unconverged: str = "ignore"
) -> Adjoint:
    """Exact derivatives by the implicit function theorem; matrix-free; the default.

    Solves `(dF/dx) dx = -(dF/dtheta) dtheta` forward, or its transpose backward,
    with cost and memory independent of the number of forward steps. All of
    grad, jvp, Hessians, vmap, remat, pmap and shard_map work.

    Args:
      solve: a linear solver of `jaxiter.linear`; default `bicgstab()`.
      mode: "jvp" registers one rule for both modes and any order; "vjp" registers
        only the reverse rule (then `solve` may be any function of matvec and b).
      on_unconverged: "ignore" differentiates at `value` whatever the status;
        "nan" gives NaN derivatives unless the status is CONVERGED.

    A linear solve whose recomputed relative residual is above 1e-2 gives NaN,
    never a silent wrong number; `adjoint_report` says why.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> half = lambda a: jaxiter.fixed_point(lambda x, a: 0.5 * x + a, jnp.zeros(()), a).value
    >>> round(float(jax.grad(half)(3.0)), 4)
    2.0
    """
    if mode not in ("jvp", "vjp"):
        raise ValueError(f'mode must be "jvp" or "vjp", got {mode!r}.')
    if on_unconverged not in ("ignore", "nan"):
        raise ValueError(f'on_unconverged must be "ignore" or "nan", got {on_unconverged!r}.')
    return _Implicit(bicgstab() if solve is None else solve, mode, on_unconverged)


class _Neumann(Adjoint):
    terms: int = eqx.field(static=True)

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        del status

        def tangent(residual: Callable, x: PyTree, operands: tuple, dots: tuple) -> PyTree:
            _, rhs = jax.jvp(lambda ops: residual(x, ops), (operands,), (dots,))
            _, linear = jax.linearize(lambda y: residual(y, operands), x)

            def term(total: PyTree, _: None) -> tuple[PyTree, None]:
                # J v = v + (dF/dx) v for F = T - x.
                return trees.add(rhs, trees.add(total, linear(total))), None

            return lax.scan(term, rhs, length=self.terms - 1)[0]

        return _with_jvp(equations, x, args, tangent)


def neumann(terms: int = 10) -> Adjoint:
    """Derivatives by the truncated series `sum_{i < terms} J^i (dT/dtheta)`, J = dT/dx at `value`.

    No linear solve, fixed cost; biased by `q**terms` for a contraction of rate
    q (terms=1 is the Jacobian-free gradient). Needs the default equations.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> f = lambda a: jaxiter.fixed_point(lambda x, a: 0.5 * x + a, jnp.zeros(()), a,
    ...                                   adjoint=jaxiter.neumann(3)).value
    >>> round(float(jax.grad(f)(3.0)), 4)
    1.75
    """
    if terms < 1:
        raise ValueError(f"terms must be at least 1, got {terms}.")
    return _Neumann(terms)


class _OneStep(Adjoint):
    """See `one_step`.

    Source: Bolte, Pauwels and Vaiter, "One-step differentiation of iterative algorithms", 2023.
    """

    k: int = eqx.field(static=True)

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        del status

        def tangent(residual: Callable, x: PyTree, operands: tuple, dots: tuple) -> PyTree:
            def steps(ops: tuple) -> PyTree:
                def step(y: PyTree, _: None) -> tuple[PyTree, None]:
                    return trees.add(y, residual(y, ops)), None

                # The first step outside: its result varies over a mesh as the rest do.
                return lax.scan(step, step(x, None)[0], length=self.k - 1)[0]

            return jax.jvp(steps, (operands,), (dots,))[1]

        return _with_jvp(equations, x, args, tangent)


def one_step(k: int = 1) -> Adjoint:
    """Derivatives of the last k plain steps from `value`, which is held constant.

    As `neumann(k)`, but the map is linearised along the k steps instead of at
    `value` only: the two differ when the solve did not converge. Biased by
    `q**k` for a contraction of rate q.

    Reference: Bolte, Pauwels and Vaiter, "One-step differentiation of iterative
    algorithms", 2023.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> f = lambda a: jaxiter.fixed_point(lambda x, a: 0.5 * x + a, jnp.zeros(()), a,
    ...                                   adjoint=jaxiter.one_step()).value
    >>> round(float(jax.grad(f)(3.0)), 4)
    1.0
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}.")
    return _OneStep(k)


class _Frozen(Adjoint):
    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        del equations, args, status
        return stop_gradient(x)


def frozen() -> Adjoint:
    """No derivatives: the value is a constant."""
    return _Frozen()


class _Unrolled(Adjoint):
    differentiates_loop: bool = eqx.field(static=True, default=True, init=False)
    checkpoint_every: int = eqx.field(static=True)

    def loop(self, going: Callable, body: Callable, state: PyTree, max_steps: Any) -> PyTree:
        if not isinstance(max_steps, int):
            raise TypeError("unrolled() needs max_steps as a Python int: it sizes the scan.")

        def step(state: PyTree, _: None) -> tuple[PyTree, None]:
            active = going(state)
            return trees.where(active, body(state), state), None

        @jax.checkpoint
        def chunk(state: PyTree, _: None) -> tuple[PyTree, None]:
            return lax.scan(step, state, length=self.checkpoint_every)[0], None

        # No cond to skip the chunks after convergence: under vmap it saves nothing, and
        # with constants that do not vary over a checked shard_map's axes it is rejected.
        return lax.scan(chunk, state, length=-(-max_steps // self.checkpoint_every))[0]

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        del equations, args, status
        return x


def unrolled(checkpoint_every: int = 10) -> Adjoint:
    """Derivatives through the iterations themselves, those of the solver included.

    The exact derivative of a truncated solve. Stores one state per
    `checkpoint_every` steps and recomputes the rest. `max_steps` must be a
    Python int, and that many steps are always paid for. x0 receives a gradient too.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> f = lambda a: jaxiter.fixed_point(lambda x, a: 0.5 * x + a, jnp.zeros(()), a, max_steps=3,
    ...                                   adjoint=jaxiter.unrolled()).value
    >>> round(float(jax.grad(f)(3.0)), 4)
    1.5
    """
    if checkpoint_every < 1:
        raise ValueError(f"checkpoint_every must be at least 1, got {checkpoint_every}.")
    return _Unrolled(checkpoint_every)


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


def split(args: tuple) -> tuple[tuple, Callable]:
    """Array leaves of args, and a function that puts the other leaves back."""
    dynamic, static = eqx.partition(args, is_array)
    return dynamic, lambda arrays: eqx.combine(arrays, static)


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

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> sqrt = lambda a: jaxiter.attach_implicit(lambda x, a: x * x - a, jnp.array(3.0), a)
    >>> round(float(jax.grad(sqrt)(9.0)), 4)
    0.1667
    """
    adjoint = as_adjoint(adjoint)
    dynamic, restore = split(args)
    x_star = jax.tree.map(jnp.asarray, x_star)

    def checked(x: PyTree, *arrays: PyTree) -> PyTree:
        out = equations(x, *restore(arrays))
        trees.check_same_structure(x, out, "equations")
        return out

    return adjoint.attach(checked, x_star, dynamic, jnp.int32(Status.CONVERGED))


def linear_report(
    equations: Callable, x: PyTree, args: tuple, solve: LinearSolver, cotangent: PyTree
) -> LinearSolution:
    """The backward solve at x for one cotangent, with its status and true residual."""
    _, pull = jax.vjp(lambda y: equations(y, *args), x)
    rhs = anchor(cotangent, (x, args))
    return solve(lambda v: trees.negative(pull(v)[0]), rhs)
