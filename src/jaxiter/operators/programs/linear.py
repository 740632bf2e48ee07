"""`linear_program`: a linear program as a layer, or one too large to factorise."""

from typing import Any, Unpack

import jax

from jaxiter.numerics import on_own_mesh
from jaxiter.operators.programs.checks import canonical
from jaxiter.operators.programs.halpern import solve_by_halpern
from jaxiter.operators.programs.quadratic import solve_factorised
from jaxiter.operators.programs.result import ProgramResult
from jaxiter.options import SolveOptions
from jaxiter.reuse import reused

METHODS = ("halpern", "interior")


@reused
@on_own_mesh
def linear_program(
    c: jax.Array, *, A: Any = None, b: Any = None, G: Any = None, h: Any = None,
    lower: Any = None, upper: Any = None, method: str | None = None, x0: Any = None,
    **options: Unpack[SolveOptions],
) -> ProgramResult:
    """Minimise `c'x` subject to `A x = b`, `G x <= h`, `lower <= x <= upper`.

    By "halpern": primal-dual hybrid gradient steps in equilibrated units under restarted, reflected
    Halpern iteration, so by two products with the matrices a step and nothing else:

        x+ = clip(x - tau (c + A'y + G'z), lower, upper)
        y+ = y + sigma (A (2 x+ - x) - b),    z+ = max(z + sigma (G (2 x+ - x) - h), 0)

    Many at once and on any device by `vmap`; one spread by rows over devices under `jit`. For one
    small program on a CPU `scipy.optimize.linprog` (HiGHS) is the faster choice.

    Args:
      c: `[n]`. A, b: `[p, n]`, `[p]`. G, h: `[m, n]`, `[m]`; infinite entries of h are no
        constraints. Matrices may be sparse (BCOO, BCSR), or pairs (matvec, rmatvec), which are not
        equilibrated.
      lower, upper: scalars or `[n]`; default: no bound. x >= 0 is `lower=0.0`.
      method: None, which is "halpern", or "interior": that of `quadratic_program`, a dozen steps of
        one factorisation, to 1e-6 in float32, with options and tolerances as explained there. It
        proves most programs without a solution so, but not those whose rows contradict each other.
      x0: a start, `[n]`, or an earlier result, whose multipliers are then taken too.
      **options: those of `fixed_point`. `stop` judges the largest of three relative errors of
        the answer, of constraints, gradient and gap: default 1e-4 in float32, 1e-6 in float64.
        It is looked at every 20 steps and at the first; `check_every` changes that, and for rows
        over devices spares all reductions in between but the step's own two. By default the best
        point seen is returned (`keep_best`) and max_steps is 100,000.

    Returns:
      A `ProgramResult`. PRIMAL_INFEASIBLE and DUAL_INFEASIBLE come with a `certificate`. In
      float32 a tolerance below 1e-5 may end as PRECISION_FLOOR.

    Derivatives with respect to everything are those of the vertex; they exist where it is
    unique and not degenerate, as its multipliers; x itself does not change with c. Elsewhere they
    are one-sided or NaN, and `adjoint=implicit(normal_cg())` gives those of least norm, forward.
    By a dense solve up to 1,000 unknowns and multipliers, else by GMRES, which may fail: NaN.

    Raises:
      TypeError: complex or mixed dtypes, a function without its transpose.
      ValueError: shapes that do not fit, NaN, lower > upper, an unknown method.

    Reference: Applegate et al., "Practical large-scale linear programming using primal-dual hybrid
    gradient", NeurIPS, 2021; Lu and Yang, "Restarted Halpern PDHG for linear programming", 2024.

    >>> import jax.numpy as jnp
    >>> from jaxiter.operators import linear_program
    >>> rows, right = jnp.array([[1.0, 2.0], [3.0, 1.0]]), jnp.array([4.0, 6.0])
    >>> out = linear_program(jnp.array([-1.0, -1.0]), G=rows, h=right, lower=0.0)
    >>> [round(float(x), 2) for x in out.x], bool(out.converged)
    ([1.6, 1.2], True)
    """
    if method not in (None, *METHODS):
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}.")
    program = canonical(None, c, A, b, G, h, lower, upper)
    if method == "interior":
        return solve_factorised("linear_program", program, method, None, x0, options)
    return solve_by_halpern("linear_program", program, x0, options)
