"""`proximal_gradient`: a smooth function and one with a proximal map; the step finds itself."""

from collections.abc import Callable
from typing import Any, Unpack

from jaxiter.numerics import on_own_mesh
from jaxiter.operators.descent import descent
from jaxiter.operators.momentum import restarted_momentum
from jaxiter.options import SolveOptions, choose
from jaxiter.reuse import reused
from jaxiter.splitting import SplitResult, solve_splitting

PyTree = Any


@reused
@on_own_mesh
def proximal_gradient(
    f: Callable, prox: Callable, x0: PyTree, *args: PyTree, step: Any = None,
    **options: Unpack[SolveOptions],
) -> SplitResult:
    """Minimise `f(x, *args) + g(x, *args)`, f smooth, g given by its proximal map.

        T(y) = prox(y - step grad f(y), step, *args),    step <= 1 / L

    The step needs no L: it starts from the curvature of f along the gradient at x0, and whenever
    two evaluations show more curvature between them, `<grad f(y) - grad f(y'), y - y'> >
    |y - y'|^2 / step`, it becomes what they allow, and the solver starts afresh. That costs no
    evaluation and, being a difference of gradients, survives float32. Where none of the last moves
    showed a quarter of it the step grows, fourfold at most. Where the gradient is not finite the
    last sound point is gone on from with an eighth of the step.

    Args:
      f: a real scalar of (x, *args), differentiable; convex where convergence is promised.
      prox: `prox(v, step, *args)`, such as `lambda v, step, a, b, w: prox_l1(v, step, w)`.
      x0: start, a pytree of floating-point or complex arrays.
      *args: pytrees passed to f and prox.
      step: positive scalar, which then stays; it may be up to 2 / L for `picard()`, 1 / L for the
        default solver.
      **options: those of `fixed_point`. solver: by default Nesterov's momentum, dropped where it
        points uphill (FISTA with restarts).

    Returns:
      A `SplitResult`; its value is the proximal map's own, so that zeros and bounds are exact; no
      dual. Derivatives are those of the fixed point of T: where the minimiser is not unique they
      are NaN or one of many.

    Raises:
      ValueError: a step that is not positive, where it is known; else BAD_INPUT. TypeError: f is
        no real scalar.

    Reference: Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear
    inverse problems", SIAM J. Imaging Sci. 2, 2009; O'Donoghue and Candes, "Adaptive restart for
    accelerated gradient schemes", Found. Comput. Math. 15, 2015; Becker, Candes and Grant,
    "Templates for convex cone problems with applications to sparse signal recovery", Math.
    Program. Comput. 3, 2011 (the step from differences of gradients).

    >>> import jax.numpy as jnp
    >>> from jaxiter.operators import prox_l1, proximal_gradient
    >>> f = lambda x, b, w: jnp.sum((x - b) ** 2)
    >>> prox = lambda v, step, b, w: prox_l1(v, step, w)
    >>> out = proximal_gradient(f, prox, jnp.zeros(2), jnp.array([3.0, 0.2]), 1.0)
    >>> out.value.round(3).tolist(), bool(out.converged)
    ([2.5, 0.0], True)
    """
    chosen = choose("proximal_gradient", options, {}, solver=restarted_momentum())
    return solve_splitting(descent(f, prox, step), x0, *args, **chosen._asdict())
