"""Saddle points and local minimax points of a function of two players."""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxiter import trees
from jaxiter.known import known
from jaxiter.numerics import machine_epsilon, on_own_mesh, product
from jaxiter.operators.variational_inequality import solve
from jaxiter.options import SolveOptions
from jaxiter.problem import as_point
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports

PyTree = Any


@reports
class MinimaxResult(NamedTuple):
    """What `minimax` has found.

    Attributes:
      x: the point, with derivatives, and
      y: the other part of it. value: f there, with derivatives.
      average: means of x and y, if asked for. residual: as in `VariationalResult`.
      solve: the untouched `Solution` of the pair (x, y).
    """

    x: PyTree
    y: PyTree
    value: jax.Array
    average: PyTree
    residual: jax.Array
    solve: Solution


@reused
@on_own_mesh
def minimax(
    f: Callable, x0: PyTree, y0: PyTree, *args: PyTree, timescale: Any = 1.0,
    resolvent_x: Callable | None = None, resolvent_y: Callable | None = None,
    method: str = "extragradient", step: Any = None, lipschitz: Any = None, average: bool = False,
    restart: Any = 0.2, **options: Unpack[SolveOptions],
) -> MinimaxResult:
    """Solve `min_x max_y f(x, y, *args)`: a saddle point, or a local minimax point.

        F = (grad_x f / timescale, -grad_y f),    then as `variational_inequality`

    Where f is convex in x and concave in y any timescale will do. Where it is not, a minimax point
    may be no saddle point, and attracts extragradient only if the minimiser moves more slowly than
    the maximiser, by a timescale that is large enough: 10 is a beginning. Gradient descent ascent
    misses it for every timescale where f is flat in y.

    Args:
      f: `f(x, y, *args) -> scalar`.
      x0, y0: starts, trees.
      timescale: at least 1.
      resolvent_x, resolvent_y: `resolvent(v, step, *args)`, such as projections.
      method, step, lipschitz, average, restart, **options: as in `variational_inequality`; the
        Lipschitz constant is that of F.

    Returns:
      A `MinimaxResult`. `classify_minimax` says what kind of point it is.

    Raises:
      ValueError: a timescale below 1, and what `variational_inequality` raises; traced, BAD_INPUT.

    Reference: Chae, Kim and Kim, "Two-timescale extragradient for finding local minimax points",
    ICLR, 2024.

    >>> import jax.numpy as jnp
    >>> f = lambda x, y: -0.1 * x**2 + x * y  # concave in x, and flat in y
    >>> out = minimax(f, jnp.array(1.0), jnp.array(1.0), timescale=10.0, step=0.9)
    >>> abs(float(out.x)) < 1e-3, classify_minimax(f, out.x, out.y).name
    (True, 'local_minimax')
    """
    known(_check_timescale, timescale)
    start = as_point(x0), as_point(y0)
    ratio = jnp.asarray(timescale)
    # What is not in the domain makes F undefined, which has a status.
    slowness = jnp.where(ratio >= 1, ratio, jnp.nan)

    def operator(z: tuple, *args: PyTree) -> tuple:
        down, up = jax.grad(f, argnums=(0, 1))(*z, *args)
        return trees.scale(1 / slowness, down), trees.negative(up)

    def resolvent(v: tuple, size: jax.Array, *args: PyTree) -> tuple:
        x, y = v
        if resolvent_x is not None:
            x = resolvent_x(x, size / slowness.astype(size.dtype), *args)
        return x, y if resolvent_y is None else resolvent_y(y, size, *args)

    whole = resolvent_x is None and resolvent_y is None
    out = solve("minimax", operator, start, args, None if whole else resolvent, method, step,
                lipschitz, average, restart, options)
    x, y = out.value
    return MinimaxResult(x, y, f(x, y, *args), out.average, out.residual, out.solve)


def _check_timescale(timescale: Any) -> None:
    if np.ndim(timescale) or not float(timescale) >= 1:
        raise ValueError(f"timescale must be a number of at least 1, got {timescale}: below it the "
                         "minimiser would be faster than the maximiser.")


class MinimaxKind(NamedTuple):
    """What the second derivatives say of a point.

    Attributes:
      kind: 1 local minimax, -1 none, 0 undecided, int32.
      gradient: `|grad f|`, which says whether the point is stationary at all.
      ascent: the largest eigenvalue of f_yy. schur: the smallest of what is left for x after y
        has answered; inf where y answers every direction.
    """

    kind: jax.Array
    gradient: jax.Array
    ascent: jax.Array
    schur: jax.Array

    @property
    def name(self) -> str:
        """local_minimax, strict_non_minimax or undecided, of a concrete kind."""
        return {1: "local_minimax", -1: "strict_non_minimax", 0: "undecided"}[int(self.kind)]


@on_own_mesh
def classify_minimax(
    f: Callable, x: PyTree, y: PyTree, *args: PyTree, rtol: Any = None
) -> MinimaxKind:
    """Whether a stationary point of f is a local minimax point, to second order.

    With A = f_xx, C = f_xy, B = f_yy, N a basis of null(B) and U one of the complement of C N:

        B <= 0    and    U' (A - C B^+ C') U >= 0          (necessary)

    One that is violated makes it a strict non-minimax point; B <= 0 with the second one strict
    makes it a local minimax point of the quadratic model of f, and of f itself where B < 0; else it
    is undecided. By eigenvalues of the Hessian: for a few hundred unknowns.

    Args:
      f, x, y, *args: as in `minimax`.
      rtol: eigenvalues below so much of the largest entry are zero; default the square root of
        machine epsilon.

    Reference: Chae, Kim and Kim, "Two-timescale extragradient for finding local minimax points",
    ICLR, 2024.

    >>> import jax.numpy as jnp
    >>> classify_minimax(lambda x, y: x * x - y * y, jnp.array(0.0), jnp.array(0.0)).name
    'local_minimax'
    >>> classify_minimax(lambda x, y: y * y - x * x, jnp.array(0.0), jnp.array(0.0)).name
    'strict_non_minimax'
    """
    flat_x, tree_x = ravel_pytree(as_point(x))
    flat_y, tree_y = ravel_pytree(as_point(y))
    z, m = jnp.concatenate([flat_x, flat_y]), flat_x.size

    def value(z: jax.Array) -> jax.Array:
        return f(tree_x(z[:m]), tree_y(z[m:]), *args)

    gradient, hessian = jax.grad(value)(z), jax.hessian(value)(z)
    a, c, b = hessian[:m, :m], hessian[:m, m:], hessian[m:, m:]
    share = machine_epsilon(z) ** 0.5 if rtol is None else rtol
    zero = jnp.asarray(share).astype(z.dtype) * jnp.max(jnp.abs(hessian))
    values, vectors = jnp.linalg.eigh(b)
    flat = jnp.abs(values) <= zero
    turned = product(c, vectors)
    answered = turned * jnp.where(flat, 0, 1 / jnp.where(flat, 1, values))
    schur = a - product(answered, turned.T)
    reached = jnp.where(flat, turned, 0)
    # Not of its square, in which what is zero is hidden by rounding.
    axes, sizes, _ = jnp.linalg.svd(reached)
    free = jnp.where(jnp.pad(sizes, (0, m - sizes.size)) <= zero, axes, 0)
    taken = jnp.eye(m, dtype=z.dtype) - product(free, free.T)
    # Directions that y answers by a flat direction of its own count for nothing: they get a
    # curvature above all others.
    inner = product(free, product(product(free.T, product(schur, free)), free.T))
    top = jnp.linalg.norm(schur)
    top = jnp.where(top > 0, top, 1)
    least = jnp.linalg.eigvalsh(inner + 2 * top * taken)[0]
    least = jnp.where(least > 1.5 * top, jnp.inf, least)
    ascent = values[-1]
    kind = jnp.where((ascent > zero) | (least < -zero), -1, jnp.where(least > zero, 1, 0))
    kind = jnp.where(jnp.isfinite(hessian).all(), kind, 0).astype(jnp.int32)
    return MinimaxKind(kind, jnp.linalg.norm(gradient), ascent, least)
