"""`quadratic_program`: quadratic programs, as layers."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.driver import fixed_point
from jaxiter.known import known
from jaxiter.lanes import solve_many
from jaxiter.numerics import on_own_mesh, strong
from jaxiter.operators.programs.certificates import in_other_units, ray_of
from jaxiter.operators.programs.checks import canonical, check_convex, in_memory
from jaxiter.operators.programs.equilibrate import equilibrated
from jaxiter.operators.programs.halpern import solve_by_halpern
from jaxiter.operators.programs.program import PrimalDual, Program
from jaxiter.operators.programs.result import ProgramResult, result
from jaxiter.operators.programs.ways import Way, as_way, marked
from jaxiter.options import SolveOptions
from jaxiter.reuse import reused
from jaxiter.solution import Solution

PyTree = Any


@reused
@on_own_mesh
def quadratic_program(
    Q: Any, q: Any, *, A: Any = None, b: Any = None, G: Any = None, h: Any = None,
    lower: Any = None, upper: Any = None, method: str | None = None, x0: Any = None,
    penalty: Any = None, **options: Unpack[SolveOptions],
) -> ProgramResult:
    """Minimise a convex quadratic function under linear constraints.

        min  x' Q x / 2 + q' x    subject to  A x = b,  G x <= h,  lower <= x <= upper

    CONVERGED is said of x, within its bounds, and multipliers that are optimal together: violated
    constraints, unexplained gradient and gap, each over the size of its terms, in units in which
    rows and columns are about equally long.

    Args:
      Q: `[n, n]`, positive semidefinite; its symmetric part counts. q: `[n]`.
      A, b: `[p, n]`, `[p]`. G, h: `[m, n]`, `[m]`; h may be inf. lower, upper: `[n]` or numbers.
        None: no such constraints. A batch is mapped by vmap, or solved by
        `quadratic_program_many`.
      method: "interior", Mehrotra's predictor-corrector, a dozen steps of one factorisation each,
        to about rounding; the default up to 300 unknowns. "admm", many steps of two products with
        one factorisation, to moderate accuracy; the default beyond. "halpern", as `linear_program`
        does it: by products alone, to moderate accuracy; the default where
        a matrix is sparse or a pair (matvec, rmatvec).
      x0: a first x, or an earlier `ProgramResult`, whose multipliers are then taken too. It helps
        "admm" and "halpern"; "interior" starts inside.
      penalty: of "admm", in the units of the scaled program. None: balanced as it goes, from 0.1.
        A number: kept, so that a vmap over right-hand sides (q, b, h, bounds) factorises once.
      **options: those of `fixed_point`; "interior" takes no solver. Default tolerances are
        relative: `tolerance(rtol=1e-6, atol=0)` for "interior" in float32, else 1e-9, and those of
        `tolerance()` for "admm", with `damped(1.6)` as its solver; those of `linear_program` for
        "halpern".

    Returns:
      A `ProgramResult`. Derivatives, of any order and with respect to all that is given, are those
      of the optimality system with the constraints that are active: `implicit(dense())` up to 256
      unknowns and multipliers, else by GMRES. NaN where multipliers are not unique;
      `adjoint=implicit(normal_cg())` gives the answer of least norm there. An infeasible or
      unbounded program never says CONVERGED, but PRIMAL_INFEASIBLE or DUAL_INFEASIBLE with the
      `certificate`, or, where none was found, another status: "interior" mostly proves it in a
      dozen steps, "admm" in hundreds or thousands.

    Raises:
      ValueError: shapes that do not fit; NaN; lower > upper; Q with a negative eigenvalue; under
        jit these are BAD_INPUT. A solver beside "interior".
      TypeError: arrays of two precisions, or half precision.

    Reference: Mehrotra, "On the implementation of a primal-dual interior point method", SIAM J.
    Optim. 2, 1992; Stellato, Banjac, Goulart, Bemporad and Boyd, "OSQP: an operator splitting
    solver for quadratic programs", Math. Program. Comput. 12, 2020.

    >>> import jax.numpy as jnp
    >>> out = quadratic_program(jnp.eye(2), jnp.array([-3.0, 1.0]), lower=0.0, upper=2.0)
    >>> [round(float(x), 4) for x in out.x], [round(float(r), 4) for r in out.reduced_cost]
    ([2.0, 0.0], [-1.0, 1.0])
    """
    program = canonical(Q, q, A, b, G, h, lower, upper)
    if in_memory(Q):
        known(check_convex, Q)
    if method == "halpern" or method is None and not all(map(in_memory, program[::2][:3])):
        if penalty is not None:
            raise ValueError('penalty is for method="admm".')
        return solve_by_halpern("quadratic_program", marked(program), x0, options)
    return solve_factorised("quadratic_program", program, method, penalty, x0, options)


def solve_factorised(
    front: str, program: Program, method: str | None, penalty: Any, x0: Any, options: SolveOptions
) -> ProgramResult:
    """The result of a linear or quadratic program by a method with a factorisation.

    front: the function that was called, for messages.
    """
    way = as_way(front, program, method, penalty, options)
    scaled, units = equilibrated(program)
    point, args, units = way.start(scaled, units, _given(x0, scaled, units))
    solve = fixed_point(way.problem, point, *args, **way.options._asdict())
    return _concluded(way, program, units, solve, args)


@reused
@on_own_mesh
def quadratic_program_many(
    Q: Any, q: Any, *, A: Any = None, b: Any = None, G: Any = None, h: Any = None,
    lower: Any = None, upper: Any = None, method: str | None = None, penalty: Any = None,
    lanes: int | None = None, refill_every: int = 4, **options: Unpack[SolveOptions],
) -> ProgramResult:
    """Many quadratic programs of one shape, in lanes that refill when theirs ends.

    Gives what `vmap(quadratic_program)` gives, and is faster where steps are uneven: an infeasible
    program spends all of its steps, in its own lane. What is wrong with one program is its status,
    BAD_INPUT, and leaves the others alone.

    Args:
      Q, q, A, b, G, h, lower, upper: as in `quadratic_program`, each shared by all or with a
        leading axis `[k, ...]`; q always has one.
      lanes, refill_every: as in `solve_many`. method, penalty, **options: as in
        `quadratic_program`; no `resume`.

    Returns:
      A batched `ProgramResult`.

    Raises:
      ValueError: q without a leading axis; shapes that do not fit; method "halpern", which
        `vmap(quadratic_program)` runs.

    >>> import jax.numpy as jnp
    >>> q = jnp.array([[-3.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    >>> out = quadratic_program_many(jnp.eye(2), q, lower=0.0, upper=2.0, lanes=2)
    >>> out.x.round(4).tolist(), bool(out.converged.all())
    ([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0]], True)
    """
    given = (Q, q, A, b, G, h, lower, upper)
    if np.ndim(q) != 2:
        raise ValueError(f"q must have shape [k, n], one row for each program, got {np.shape(q)}; "
                         "one program is for quadratic_program.")
    # Bounds may be one number for all, or one vector.
    axes = tuple(0 if value is not None and np.ndim(value) == usual + 1 else None
                 for value, usual in zip(given, (2, 1, 2, 1, 2, 1, 1, 1), strict=True))
    programs = jax.vmap(canonical, in_axes=axes)(*given)
    one = jax.tree.map(lambda leaf: leaf[0], programs)
    way = as_way("quadratic_program_many", one, method, penalty, options)
    scaled, units = jax.vmap(equilibrated)(programs)
    points, args, units = jax.vmap(lambda *parts: way.start(*parts, None))(scaled, units)
    solve = solve_many(way.problem, points, *args, lanes=lanes, refill_every=refill_every,
                       **way.options._asdict())
    return jax.vmap(lambda *parts: _concluded(way, *parts))(programs, units, solve, args)


def _concluded(
    way: Way, program: Program, units: PrimalDual, solve: Solution, args: tuple
) -> ProgramResult:
    found = solve._replace(value=_together(solve.value))
    point = jax.tree.map(jnp.multiply, units, way.read(found, *args))
    ray = in_other_units(program, ray_of(solve, way.proof, *args), units)
    return result(program, point, solve, ray)


def _together(value: PyTree) -> PyTree:
    """The same, but no leaf is without a derivative as long as another has one.

    Of a linear solve whose right-hand side has leaves of constant zeros jax has no second
    derivative.
    """
    total = sum((0 * jnp.sum(leaf) for leaf in jax.tree.leaves(value)[1:]),
                0 * jnp.sum(jax.tree.leaves(value)[0]))
    return jax.tree.map(lambda leaf: leaf + total, value)


def _given(x0: Any, scaled: Program, units: PrimalDual) -> PrimalDual | None:
    """The start in the units of the scaled program, if there is one.

    Raises:
      ValueError: x0 of another length.
    """
    if x0 is None:
        return None
    x = x0.x if isinstance(x0, ProgramResult | PrimalDual) else x0
    if np.shape(x) != scaled.q.shape:
        raise ValueError(f"x0 has shape {np.shape(x)}, but q {scaled.q.shape}.")
    duals = (jnp.zeros_like(scaled.b), jnp.zeros_like(scaled.h))
    if isinstance(x0, ProgramResult | PrimalDual):
        duals = (x0.equality_dual, x0.inequality_dual)
    point = PrimalDual(strong(jnp.asarray(x, scaled.q.dtype)), *duals)
    return jax.tree.map(jnp.divide, point, units)
