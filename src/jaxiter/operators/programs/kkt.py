"""Optimality systems, whose solution is a saddle point: what derivatives of programs come from."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import product, stop_gradient
from jaxiter.operators.programs.program import PrimalDual, Program, gradient
from jaxiter.operators.programs.sizes import held, sizes

PyTree = Any


def kkt(
    objective: Callable, *, equality: Callable | None = None, inequality: Callable | None = None
) -> Callable:
    """The optimality system of a constrained minimum, as `equations` for an adjoint.

        grad f(x) + J_h(x)' y + J_g(x)' mu = 0,    h(x) = 0,    mu - max(mu + g(x), 0) = 0

    With `attach_implicit` the answer of any solver gets derivatives. They are those of the set of
    constraints that are active at the point; where their gradients depend on each other, the
    multipliers are not unique and the system is singular: NaN, or by
    `implicit(normal_cg())` what the answer of least norm gives. Where a constraint is only just
    active, and its multiplier 0, they are those of one side.

    Args:
      objective: `f(x, *args)`, a scalar.
      equality, inequality: `h(x, *args)` and `g(x, *args) <= 0`, trees of arrays; None: none.

    Returns:
      `equations(point, *args)`, of a `PrimalDual` (or any triple of x, y, mu, the latter two like
      h and g, or `()` where there are none), in its structure.

    Reference: Robinson, "Strongly regular generalized equations", Math. Oper. Res. 5, 1980.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> system = kkt(lambda x, a: jnp.sum((x - a) ** 2) / 2, inequality=lambda x, a: x - 1.0)
    >>> star = (jnp.array([1.0, 0.5]), (), jnp.array([2.0, 0.0]))  # of a = (3, 0.5)
    >>> f = lambda a: jaxiter.attach_implicit(system, star, a)[0].sum()
    >>> [abs(round(float(slope), 4)) for slope in jax.grad(f)(jnp.array([3.0, 0.5]))]
    [0.0, 1.0]
    """
    def equations(point: PyTree, *args: PyTree) -> PyTree:
        x, y, mu = point
        slope = jax.grad(objective)(x, *args)
        equal, pull = _pulled(equality, x, y, args)
        unequal, push = _pulled(inequality, x, mu, args)
        slope = trees.add(trees.add(slope, pull), push)
        filled = (slope, equal, _complementary(mu, unequal, (1.0, 1.0)))
        return PrimalDual(*filled) if isinstance(point, PrimalDual) else filled

    return equations


def _pulled(constraint: Callable | None, x: PyTree, dual: PyTree, args: tuple) -> tuple:
    """The constraint at x, and its Jacobian's transpose times the multipliers."""
    if constraint is None:
        return dual, trees.zeros_like(x)
    value, pull = jax.vjp(lambda x: constraint(x, *args), x)
    return value, pull(dual)[0]


def _complementary(mu: PyTree, g: PyTree, units: tuple) -> PyTree:
    """`mu - max(mu + g, 0)`, decided in units of both."""
    def leaf(mu: jax.Array, g: jax.Array) -> jax.Array:
        ours, theirs = (jnp.asarray(unit, mu.dtype) for unit in units)
        active = stop_gradient(mu) * theirs > -stop_gradient(g) * ours
        return jnp.where(active, -jnp.where(active, g, 0), mu)

    return jax.tree.map(leaf, mu, g)


def program_equations(point: PrimalDual, program: Program) -> PrimalDual:
    """`kkt` of a program; where a bound holds an entry of x, that it is there."""
    x, _, z = point
    low, high = held(program, point)
    slope = gradient(program, point)
    bound = jnp.where(low, program.lower, jnp.where(high, program.upper, 0))
    units = [jnp.where(unit > 0, unit, 1) for unit in sizes(*stop_gradient((program, point)))]
    return PrimalDual(
        jnp.where(low | high, x - bound, slope), product(program.A, x) - program.b,
        _complementary(z, product(program.G, x) - program.h, (units[1], units[0])))
