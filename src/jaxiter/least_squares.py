"""Fits: least squares of residuals that are not linear, with bounds and robust losses."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.driver import fixed_point
from jaxiter.fit import Box, Fit, FitMethod, make_box
from jaxiter.gauss_newton import GaussNewton
from jaxiter.implicit import as_adjoint, implicit
from jaxiter.jacobian import column_lengths, dense_jacobian, flat, positive, unflat
from jaxiter.lanes import batch_size, normalise_axes, solve_many
from jaxiter.levenberg_marquardt import LevenbergMarquardt
from jaxiter.linear import cg, dense
from jaxiter.linear.dense import triangle
from jaxiter.linear.factor import solve
from jaxiter.losses import Loss, as_loss
from jaxiter.numerics import numbers_in, on_own_mesh, product
from jaxiter.options import Options, SolveOptions, choose
from jaxiter.problem import as_point
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports

PyTree = Any

#: Up to so many unknowns the Jacobian is a matrix by default, and so is that of the adjoint.
DENSE = 200
METHODS: dict[str, type] = {
    "levenberg_marquardt": LevenbergMarquardt, "lm": LevenbergMarquardt,
    "gauss_newton": GaussNewton}


@reports
class LeastSquares(NamedTuple):
    """The answer of a fit.

    Attributes:
      value: the argmin, with derivatives by args and bounds.
      cost: half the sum of the loss. residuals: at value, as the function returned them.
      jacobian: of the residuals by x at value, `[m, n]`, both flat in the order of
        `jax.tree.leaves`; None where the method never builds it (`gauss_newton`).
      solve: the Solution. Its merit is the length of the undamped step at value, in residuals
        (for `gauss_newton` in x).
    """

    value: PyTree
    cost: jax.Array
    residuals: PyTree
    jacobian: jax.Array | None
    solve: Solution

    def covariance(self, absolute: bool = False) -> jax.Array:
        """Covariance of the unknowns, `[n, n]`, as `scipy.optimize.curve_fit` estimates it.

            s^2 (J^T J)^-1,    s^2 = |r|^2 / (m - n)

        By a QR factorisation of J. NaN where J has not full rank, or m <= n. Of the plain squares:
        it knows of no loss and no bounds, an unknown that is held counts as free.

        Args:
          absolute: the residuals are in units of their standard deviations: s = 1.

        Raises:
          ValueError: the method built no Jacobian.
        """
        if self.jacobian is None:
            raise ValueError("this method builds no Jacobian; use method=levenberg_marquardt() "
                             "where a covariance is wanted.")
        return _covariance(self.jacobian, flat(self.residuals), absolute)


@reused
def _covariance(jacobian: jax.Array, r: jax.Array, absolute: bool) -> jax.Array:
    m, n = jacobian.shape
    # Neither the columns nor r are squared: what they make may be in range where that is not.
    units = positive(column_lengths(jacobian))
    root = solve(triangle(jacobian / units), jnp.eye(n, dtype=jacobian.dtype))
    # A column that the others make up to rounding has no variance that could be told.
    told = jnp.sum(root**2) < jnp.finfo(root.dtype).eps ** -2 / max(m, n)
    spread = jnp.ones((), r.dtype) if absolute else trees.norm(r) / max(m - n, 1) ** 0.5
    root = spread * root / units[:, None]
    good = told & (m >= n if absolute else m > n)
    return jnp.where(good, product(root, root.T), jnp.nan)


def as_method(method: Any, x0: PyTree) -> FitMethod:
    """The method: as given, of a name, or by the number of unknowns.

    Raises:
      ValueError: an unknown name. TypeError: anything else.
    """
    if method is None:
        size = numbers_in(x0)
        return LevenbergMarquardt() if size <= DENSE else GaussNewton()
    if isinstance(method, str):
        if method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(map(repr, METHODS))}, or an "
                             f"object such as levenberg_marquardt(), got {method!r}.")
        return METHODS[method]()
    if not isinstance(method, FitMethod):
        raise TypeError(f"method must be a name or an object such as levenberg_marquardt(), got "
                        f"{type(method).__name__}.")
    return method


class _Call(NamedTuple):
    """What a call comes down to."""

    fit: Fit
    method: FitMethod
    options: Options


def _prepare(
    name: str, function: Callable, one: PyTree, bounded: bool, loss: Any, method: Any,
    options: SolveOptions, refused: dict[str, str],
) -> _Call:
    """The choices of a call, checked; `one` is the start of one fit."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(one):
        if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
            raise TypeError(f"x0 at {trees.path_name(path)} is complex; fit its real and "
                            "imaginary parts.")
    if not numbers_in(one):
        raise ValueError("x0 has no entries; a fit needs at least one unknown.")
    method = as_method(method, one)
    if bounded and not method.takes_bounds:
        raise ValueError(f"{method.name} takes no bounds; use method=levenberg_marquardt().")
    small = numbers_in(one) <= DENSE
    solve = dense(scaled=True) if small else cg()
    chosen = choose(name, options, {"solver": "its steps are those of the method"} | refused,
                    adjoint=implicit(solve))
    if as_adjoint(chosen.adjoint).differentiates_loop:
        raise ValueError(f"{name} cannot be unrolled: its steps are those of a factorisation that "
                         "has no derivative where singular values meet; use implicit().")
    return _Call(Fit(function, as_loss(loss)), method, chosen)


def _concluded(call: _Call, solve: Solution, args: tuple) -> LeastSquares:
    """The result at a value whose derivatives are attached."""
    x, fit = solve.value, call.fit
    r = fit.residuals(x, *args)
    jacobian = None
    if isinstance(call.method, LevenbergMarquardt):
        jacobian = dense_jacobian(lambda x: fit.residuals(x, *args), x)[1]
    return LeastSquares(x, fit.cost(r), r, jacobian, solve)


def _problem(call: _Call) -> Any:
    def valid(x0: PyTree, box: Box, *args: PyTree) -> jax.Array:
        return jnp.bool_(True) if box.lower is None else ~box.crossed()

    return call.method.problem(call.fit)._replace(valid=valid)


def _inside(x0: PyTree, box: Box) -> PyTree:
    return x0 if box.lower is None else unflat(box.clip(flat(x0)), x0)


@reused
@on_own_mesh
def least_squares(
    residual: Callable, x0: PyTree, *args: PyTree, lower: PyTree = None, upper: PyTree = None,
    loss: str | Loss = "linear", method: str | FitMethod | None = None,
    **options: Unpack[SolveOptions],
) -> LeastSquares:
    """Fit x: minimise the sum of the loss of `residual(x, *args)`, within bounds.

        min  1/2 sum_i rho(r_i(x)^2)    lower <= x <= upper

    CONVERGED when the full, undamped step d from x changes the residuals by
    `|D d| <= atol + rtol |D x|`, D being the lengths of the columns of the Jacobian at x: x is then
    within rtol of a stationary point where the residuals are about linear and fit well. It is
    judged in what rounding leaves of it: PRECISION_FLOOR where the unknowns depend on each other
    so much that this precision cannot tell d from 0 to rtol.

    Args:
      residual: `residual(x, *args) -> r`, a tree of real arrays, m numbers. It needs a forward
        derivative. With fewer residuals than unknowns, or a singular Jacobian, the steps are about
        those of least norm in units of D.
      x0: the start, a tree of real arrays, n numbers; clipped to the bounds.
      *args: what the residuals also depend on (data, weights).
      lower, upper: bounds, each a number or a tree like x0 whose leaves broadcast to it; infinite
        ones are none. Equal ones hold an unknown where it is.
      loss: "linear" (squares), "huber", "soft_l1", "cauchy" or an object such as `huber(0.1)`; any
        elementwise concave function of squared residuals with slope 1 at 0.
      method: "levenberg_marquardt" (or "lm"; up to 200 unknowns the default), "gauss_newton"
        (matrix-free, for more), or an object such as `levenberg_marquardt(damping)`.
      **options: those of `fixed_point` but solver, and no `unrolled()`. The adjoint is
        `implicit(dense(scaled=True))`, for more than 200 unknowns `implicit(cg())`.

    Returns:
      A `LeastSquares`. Derivatives of any order are those of the stationary point: of zero slope,
      and at a bound that holds an unknown, of that bound. They need a regular Hessian, else they
      are NaN. DIVERGED where an unknown ran to where it has no effect any more, STAGNATED where
      no step brings the cost down, NONFINITE where residuals or Jacobian at x0 are not finite
      (a later step to such a point is refused).

    Raises:
      ValueError: bounds that cross, naming the entry; bounds with "gauss_newton"; a solver; no
        unknowns.
      TypeError: complex x0 or residuals; bounds of another tree.

    Reference: More, "The Levenberg-Marquardt algorithm: implementation and theory", Numerical
    Analysis, 1978.

    >>> import jax.numpy as jnp, jaxiter
    >>> t = jnp.linspace(0.0, 2.0, 20)
    >>> decay = lambda x, t, y: x[0] * jnp.exp(-x[1] * t) - y
    >>> fit = jaxiter.least_squares(decay, jnp.ones(2), t, 3 * jnp.exp(-0.5 * t))
    >>> [round(float(v), 3) for v in fit.value], bool(fit.converged)
    ([3.0, 0.5], True)
    """
    x0 = as_point(x0)
    bounded = lower is not None or upper is not None
    call = _prepare("least_squares", residual, x0, bounded, loss, method, options, {})
    box = make_box(x0, lower, upper)
    solve = fixed_point(_problem(call), _inside(x0, box), box, *args, **call.options._asdict())
    return _concluded(call, solve, args)


@reused
@on_own_mesh
def least_squares_many(
    residual: Callable, x0s: PyTree, *args: PyTree, lower: PyTree = None, upper: PyTree = None,
    loss: str | Loss = "linear", method: str | FitMethod | None = None, lanes: int | None = None,
    in_axes: Any = 0, refill_every: int = 4, retries: PyTree = None,
    **options: Unpack[SolveOptions],
) -> LeastSquares:
    """Many fits of one model, refilling lanes that finish, failed ones retried from other starts.

    Gives what `vmap(least_squares)` gives where there are no retries.

    Args:
      residual, loss, method: as in `least_squares`, for one fit.
      x0s: starts, leaves `[k, *shape]`.
      *args: arguments, batched along `in_axes`.
      lower, upper: bounds shared by all fits.
      lanes, in_axes, refill_every, retries: as in `solve_many`; retries: leaves
        `[tries, k, *shape]`, clipped to the bounds.
      **options: as in `least_squares`; no `resume`, no `unrolled()`.

    Returns:
      A batched `LeastSquares`: `jax.vmap(lambda fit: fit.covariance())(fits)` for covariances.

    >>> import jax.numpy as jnp, jaxiter
    >>> t, rates = jnp.linspace(0.0, 2.0, 20), jnp.array([0.2, 1.0, 3.0])
    >>> decays = jnp.exp(-rates[:, None] * t)
    >>> fits = jaxiter.least_squares_many(
    ...     lambda x, t, y: x[0] * jnp.exp(-x[1] * t) - y, jnp.ones((3, 2)), t, decays,
    ...     in_axes=(None, 0), lanes=2)
    >>> [round(float(v), 3) for v in fits.value[:, 1]], bool(fits.converged.all())
    ([0.2, 1.0, 3.0], True)
    """
    x0s = as_point(x0s)
    axes = normalise_axes(in_axes, len(args))
    batch_size(x0s, args, axes)
    one = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape[1:], leaf.dtype), x0s)
    bounded = lower is not None or upper is not None
    call = _prepare("least_squares_many", residual, one, bounded, loss, method, options,
                    {"resume": "call vmap(least_squares) with it"})
    box = make_box(one, lower, upper)

    def inside(x0: PyTree) -> PyTree:
        return _inside(x0, box)

    if retries is not None:
        retries = jax.vmap(jax.vmap(inside))(as_point(retries))
    solve = solve_many(
        _problem(call), jax.vmap(inside)(x0s), box, *args, lanes=lanes, in_axes=(None, *axes),
        refill_every=refill_every, retries=retries, **call.options._asdict())
    return jax.vmap(
        lambda solve, *args: _concluded(call, solve, args), in_axes=(0, *axes))(solve, *args)
