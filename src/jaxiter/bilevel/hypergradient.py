"""Hypergradients of `F(x) = outer(x, y(x))`, y(x) the argmin of `inner(x, .)`."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.bilevel.methods import oracle_calls
from jaxiter.implicit import couple
from jaxiter.known import check_not_negative
from jaxiter.linear import LinearSolver, cg
from jaxiter.numerics import machine_epsilon, numbers_in, stop_gradient
from jaxiter.reuse import reused
from jaxiter.solution import Status, reports

PyTree = Any


@reports
class HypergradientResult(NamedTuple):
    """Answer of a hypergradient.

    Attributes:
      value: of F. grad: like x. v: the adjoint, H v = grad_y outer; None when unrolled.
      inner_residual: norm of grad_y inner at y (unrolled: of the next inner step);
        linear_residual: `|H v - grad_y outer|` over
        `|grad_y outer|`. error_estimate: of `|grad - grad F|`, or None.
      calls: gradients of `inner` and `outer` and `products` with the inner Hessian, a dict of
        int32. status: a `jaxiter.Status` code of the linear solve.
    """

    value: jax.Array
    grad: PyTree
    v: PyTree
    inner_residual: jax.Array
    linear_residual: jax.Array
    error_estimate: jax.Array | None
    calls: dict[str, jax.Array]
    status: jax.Array


@reused
def hypergradient(
    outer: Callable, inner: Callable, x: PyTree, y: PyTree, *, solve: LinearSolver | None = None,
    v_init: PyTree = None, damping: Any = 0.0, corrected_value: bool = False,
    estimate_error: bool = False,
) -> HypergradientResult:
    """Approximate implicit differentiation (AID) at a given inner point.

    Solves `(H + damping I) v = grad_y outer` with `H = d2 inner / dy2` by products only, then
    `grad = grad_x outer - d/de grad_x inner(x, y + e v)`. Exact when y is the argmin and the
    linear solve is exact; the two residuals say how far each is.

    Args:
      outer, inner: scalars of (x, y). y is given, not solved: see `solve_inner`. The gradient by
        the point from which y was computed is therefore zero; to differentiate a start, unroll.
      x, y: pytrees of floating-point arrays.
      solve: a linear solver: those of `jaxiter.linear`, such as `dense()` for up to about 1,000
        unknowns, `neumann_series(n, s)`, `nystrom(k, rho, key)`; default `cg(rtol, max_steps)`
        with rtol 1e-5 (float64: 1e-8) and at most min(2 size, 50) products.
      v_init: start of the linear solve, such as the last v of a nearby x; a constant.
      damping: added to H; biases the answer, keeps it bounded where H is nearly singular.
      corrected_value: value minus `<v, grad_y inner>`: its error falls with the square of y's.
      estimate_error: two more linear solves for an a-posteriori estimate without constants.

    Returns:
      A `HypergradientResult`. jit, vmap and derivatives (jacrev of grad) work.

    Raises:
      TypeError: integer leaves, a v_init of another structure, a solve that is no function.
      ValueError: outer or inner that is not scalar, damping < 0.

    Source: Pedregosa, "Hyperparameter optimization with approximate gradient", 2016; Grazzi et
    al., "On the iteration complexity of hypergradient computation", 2020.

    >>> import jax.numpy as jnp
    >>> out = hypergradient(lambda x, y: y**2 / 2, lambda x, y: (y - 3 * x) ** 2, 1.0, 3.0)
    >>> float(out.grad)
    9.0
    """
    x, y = jax.tree.map(jnp.asarray, (x, y))
    _check(x, y, solve, v_init, damping)
    if solve is None:
        # Rounding makes CG lose its finite termination: it gets twice the size on small problems.
        rtol = 1e-8 if machine_epsilon(y) < 1e-12 else 1e-5
        solve = cg(rtol, max_steps=min(2 * numbers_in(y), 50))
    value, (direct, pull) = jax.value_and_grad(_scalar("outer", outer), (0, 1))(x, y)
    slopes = jax.grad(_scalar("inner", inner), (0, 1))
    (_, slope), product = jax.linearize(lambda y: slopes(x, y), y)

    def matvec(v: PyTree) -> PyTree:
        return trees.axpy(damping, v, product(v)[1])

    def coupled(v: PyTree) -> PyTree:
        """What is differentiated; the solve itself does without the sums."""
        return couple(matvec(v))[0]

    def inverse(_: Callable, b: PyTree) -> tuple[PyTree, tuple]:
        out = solve(matvec, b, x0=stop_gradient(v_init))
        return out.value, (out.steps, out.status, out.residual)

    v, (products, status, residual) = lax.custom_linear_solve(
        coupled, couple(pull)[0], inverse, symmetric=True, has_aux=True)
    grad = trees.subtract(direct, product(v)[0])
    status = jnp.where(trees.finite((pull, slope, grad)), status, Status.NONFINITE)
    calls = oracle_calls(jnp.int32(1), jnp.int32(1), products + 1)
    estimate = None
    if estimate_error:
        # With d a Newton step of y and w what the solve left: |grad(y) - grad(y - d)| + |cross(w)|.
        newton, left = solve(matvec, slope), solve(matvec, trees.subtract(matvec(v), pull))
        better = hypergradient(outer, inner, x, trees.subtract(y, newton.value), solve=solve,
                               v_init=v)
        estimate = trees.norm(trees.subtract(grad, better.grad)) + trees.norm(
            product(left.value)[0])
        calls = trees.add(calls, better.calls)
        calls["products"] += newton.steps + left.steps + 1
    if corrected_value:
        value = value - trees.dot(v, slope)
    return HypergradientResult(value, grad, v, trees.norm(slope), residual, estimate, calls,
                               status.astype(jnp.int32))


def _check(x: PyTree, y: PyTree, solve: Any, v_init: PyTree, damping: Any) -> None:
    if solve is not None and not callable(solve):
        raise TypeError(f"solve must be a linear solver such as jaxiter.linear.cg(), got "
                        f"{solve!r}.")
    for name, tree in (("x", x), ("y", y)):
        kinds = [leaf.dtype for leaf in jax.tree.leaves(tree)]
        if not kinds or not all(jnp.issubdtype(kind, jnp.floating) for kind in kinds):
            raise TypeError(f"{name} must have floating-point leaves, got {list(map(str, kinds))}.")
    check_not_negative(damping=damping)
    if v_init is not None:
        trees.check_same_structure(y, v_init, "v_init")


def _scalar(name: str, objective: Callable) -> Callable:
    """The objective, refused as it is traced where it returns no scalar."""
    def checked(x: PyTree, y: PyTree) -> jax.Array:
        value = objective(x, y)
        shape = jax.tree.map(jnp.shape, value)
        if shape != ():
            raise ValueError("outer and inner must return a scalar; "
                             f"{name} returns shape {shape}.")
        return value

    return checked
