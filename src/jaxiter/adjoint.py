"""How derivatives pass through a fixed point: one room, separate from the forward loop.

Here the adjoints that solve no linear system; `implicit` has a file of its own.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import equinox as eqx
import jax
from jax import lax

from jaxiter import trees
from jaxiter.known import check_count
from jaxiter.numerics import hoist, is_array, mesh_of, stop_gradient
from jaxiter.packed import while_loop

PyTree = Any


class Adjoint(eqx.Module):
    """How derivatives pass through a solve; subclasses override `attach` and, rarely, `loop`.

    `differentiates_loop` says whether derivatives flow through the forward
    loop itself; otherwise the driver stops every gradient that enters it.
    """

    differentiates_loop: bool = eqx.field(static=True, default=False, init=False)

    @property
    def series(self) -> int | None:
        """Terms of the Neumann series that it amounts to at a fixed point, if it is one."""
        return None

    @property
    def sums_map(self) -> bool:
        """Whether it may sum a series of T, which other equations than `T(x) - x` do not give."""
        return self.series is not None

    def loop(self, going: Callable, body: Callable, state: PyTree, max_steps: Any) -> PyTree:
        """Run `body` while `going`; what the driver loops with."""
        del max_steps
        return while_loop(going, body, state)

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        """x, with derivatives with respect to args and to everything `equations` closes over."""
        raise NotImplementedError

    def with_solver(self, change: Callable) -> "Adjoint":
        """The same, its linear solver replaced by `change(solver)`; others have none."""
        del change
        return self

    @property
    def solves(self) -> bool:
        """Whether it has a linear solver that `with_solver` changes."""
        return self.with_solver(lambda solve: solve) is not self


def refuse_series(adjoint: Adjoint, what: str) -> None:
    """Raise ValueError for an adjoint that sums a series of T, where `what` solves no T(x) = x."""
    if adjoint.sums_map:
        raise ValueError("neumann(k) and one_step(k), also as on_failure, sum a series of "
                         f"T(x) - x = 0, but {what} has other equations; use implicit().")


def attach_with_jvp(
    equations: Callable, x: PyTree, args: tuple, tangent: Callable
) -> PyTree:
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
        with mesh_of(x, primals[1]):
            return x, tangent(x, primals[1], tangents[1])

    return point(stop_gradient(x), operands)


def truncated_series(product: Callable, rhs: PyTree, terms: int) -> PyTree:
    """`sum_{i < terms} J^i rhs` for the product `J v`."""

    def term(total: PyTree, _: None) -> tuple[PyTree, None]:
        return trees.add(rhs, product(total)), None

    return lax.scan(term, rhs, length=terms - 1)[0]


class _Neumann(Adjoint):
    terms: int = eqx.field(static=True)

    @property
    def series(self) -> int:
        return self.terms

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        del status

        def tangent(residual: Callable, x: PyTree, operands: tuple, dots: tuple) -> PyTree:
            _, rhs = jax.jvp(lambda ops: residual(x, ops), (operands,), (dots,))
            _, linear = jax.linearize(lambda y: residual(y, operands), x)

            # J v = v + (dF/dx) v for F = T - x.
            return truncated_series(lambda v: trees.add(v, linear(v)), rhs, self.terms)

        return attach_with_jvp(equations, x, args, tangent)


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
    check_count(terms=terms)
    return _Neumann(terms)


class _OneStep(Adjoint):
    """See `one_step`.

    Source: Bolte, Pauwels and Vaiter, "One-step differentiation of iterative algorithms", 2023.
    """

    k: int = eqx.field(static=True)

    @property
    def series(self) -> int:
        return self.k

    def attach(self, equations: Callable, x: PyTree, args: tuple, status: jax.Array) -> PyTree:
        del status

        def tangent(residual: Callable, x: PyTree, operands: tuple, dots: tuple) -> PyTree:
            def steps(ops: tuple) -> PyTree:
                def step(y: PyTree, _: None) -> tuple[PyTree, None]:
                    return trees.add(y, residual(y, ops)), None

                # The first step outside: its result varies over a mesh as the rest do.
                return lax.scan(step, step(x, None)[0], length=self.k - 1)[0]

            return jax.jvp(steps, (operands,), (dots,))[1]

        return attach_with_jvp(equations, x, args, tangent)


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
    check_count(k=k)
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

    The exact derivative of the truncated algorithm, which need not be near that of the
    solution: a coordinate that starts at its solution has no say in the weights of `anderson`,
    and its derivative is what weights made for the others leave of it. For `cos(x) + t` with
    t = (0, pi/2) from (0, pi/2) the second one is 0.31 to 0.69 after 4 to 6 steps in float64 and
    0.41 to 0.44 at the end, where `implicit()` gives the solution's 0.5.

    Stores one state per `checkpoint_every` steps and recomputes the rest. `max_steps` must be a
    Python int, and that many steps are always paid for. x0 receives a gradient too.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> f = lambda a: jaxiter.fixed_point(lambda x, a: 0.5 * x + a, jnp.zeros(()), a, max_steps=3,
    ...                                   adjoint=jaxiter.unrolled()).value
    >>> round(float(jax.grad(f)(3.0)), 4)
    1.5
    """
    check_count(checkpoint_every=checkpoint_every)
    return _Unrolled(checkpoint_every)


def split(args: tuple) -> tuple[tuple, Callable]:
    """Array leaves of args, and a function that puts the other leaves back."""
    dynamic, static = eqx.partition(args, is_array)
    return dynamic, lambda arrays: eqx.combine(arrays, static)
