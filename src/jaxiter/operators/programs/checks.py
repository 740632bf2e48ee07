"""Linear and quadratic programs as they are given: checked, and made arrays of one dtype."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.known import check_finite, known
from jaxiter.linear.factor import cholesky
from jaxiter.numerics import machine_epsilon, strong
from jaxiter.operators.linear_map import LinearMap, is_sparse
from jaxiter.operators.programs.program import Program

#: Of a Q that is positive semidefinite rounding makes one whose eigenvalues are above this times
#: its largest entry, in machine epsilons times n.
INDEFINITE = 8


def canonical(
    Q: Any, q: Any, A: Any = None, b: Any = None, G: Any = None, h: Any = None,
    lower: Any = None, upper: Any = None, *, conic: bool = False,
) -> Program:
    """A program as arrays, checked; bounds may be scalars, Q counts by its symmetric part.

    Rows of G without entries that hold are no constraints, unless rows are parts of a cone.

    Raises:
      TypeError: what is no array of real numbers; two precisions, or half precision.
      ValueError: shapes that do not fit, a matrix without its right-hand side or the reverse;
        NaN, lower > upper, where they are known.
    """
    kind = _precision(Q=Q, q=q, A=A, b=b, G=G, h=h, lower=lower, upper=upper)
    check_finite(q=q, b=b)
    for name, given in (("Q", Q), ("A", A), ("G", G)):
        if in_memory(given) or is_sparse(given):  # no functions
            check_finite(**{name: given.data if is_sparse(given) else given})
    known(_check_bounds, lower, upper, h)
    q = _vector("q", q, None, kind)
    n = q.shape[0]
    A, b = _rows("A", A, "b", b, n, kind)
    G, h = _rows("G", G, "h", h, n, kind)
    lower = _bound("lower", -jnp.inf if lower is None else lower, n, kind)
    upper = _bound("upper", jnp.inf if upper is None else upper, n, kind)
    if isinstance(G, jax.Array) and not conic:
        h = jnp.where((h >= 0) & jnp.all(G == 0, axis=1), jnp.inf, h)
    Q = None if Q is None else _matrix("Q", Q, n, n, kind)
    if isinstance(Q, jax.Array):
        Q = (Q + Q.T) / 2
    return Program(Q, q, A, b, G, h, lower, upper)


def in_memory(matrix: Any) -> bool:
    """Whether a matrix of a program is a plain array, or none."""
    return not is_sparse(matrix) and not isinstance(matrix, tuple)


def valid(program: Program) -> jax.Array:
    """Whether the numbers of a traced program make sense."""
    matrices = (program.Q, program.A, program.G)
    arrays = [leaf for leaf in jax.tree.leaves(matrices) if isinstance(leaf, jax.Array)
              and jnp.issubdtype(leaf.dtype, jnp.inexact)]
    ordered = jnp.all((program.lower <= program.upper) & (program.lower < jnp.inf)
                      & (program.upper > -jnp.inf))
    return trees.finite((arrays, program.q, program.b)) & ordered & jnp.all(program.h > -jnp.inf)


def _precision(**given: Any) -> np.dtype:
    """The one floating dtype of all arrays that have one; the default where none has."""
    kinds = {}
    for name, value in given.items():
        for leaf in jax.tree.leaves(value):
            if not hasattr(leaf, "dtype"):
                continue
            if jnp.issubdtype(leaf.dtype, jnp.complexfloating):
                raise TypeError(f"{name} has dtype {leaf.dtype}; a program is one of real numbers.")
            if jnp.issubdtype(leaf.dtype, jnp.floating):
                kinds.setdefault(jnp.dtype(leaf.dtype), name)
    if len(kinds) > 1:
        seen = ", ".join(f"{name} is {kind}" for kind, name in kinds.items())
        raise TypeError(f"the arrays of a program must have one dtype, but {seen}; convert them.")
    kind = next(iter(kinds), jnp.dtype(jnp.result_type(float)))
    if kind.itemsize < 4:
        raise TypeError(f"a program in {kind} cannot be solved; convert it to float32.")
    return kind


def _vector(name: str, value: Any, size: int | None, kind: np.dtype) -> jax.Array:
    if np.ndim(value) != 1 or size is not None and np.shape(value)[0] != size:
        wanted = "[n]" if size is None else f"[{size}]"
        raise ValueError(f"{name} must have shape {wanted}, got {np.shape(value)}; map over a "
                         "batch of programs with vmap.")
    return strong(jnp.asarray(value, kind))


def _matrix(name: str, value: Any, rows: int, n: int, kind: np.dtype) -> LinearMap:
    if isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
        return value
    if not is_sparse(value) and callable(value):
        raise TypeError(f"{name} as a function needs its transpose beside it: give the pair "
                        "(matvec, rmatvec).")
    if np.shape(value) != (rows, n):
        raise ValueError(f"{name} must have shape ({rows}, {n}), one column for each entry of q"
                         f"{'' if name == 'Q' else ' and one row for each right-hand side'}, got "
                         f"{np.shape(value)}.")
    return value if is_sparse(value) else strong(jnp.asarray(value, kind))


def _rows(
    name: str, matrix: Any, side: str, right: Any, n: int, kind: np.dtype
) -> tuple[LinearMap, jax.Array]:
    """A block of constraints; one without rows where nothing is given."""
    if (matrix is None) != (right is None):
        missing, there = (name, side) if matrix is None else (side, name)
        raise ValueError(f"{there} was given without {missing}; give both or none.")
    if matrix is None:
        return jnp.zeros((0, n), kind), jnp.zeros((0,), kind)
    right = _vector(side, right, None, kind)
    return _matrix(name, matrix, right.shape[0], n, kind), right


def _bound(name: str, value: Any, n: int, kind: np.dtype) -> jax.Array:
    if np.ndim(value) == 0:
        value = jnp.broadcast_to(jnp.asarray(value, kind), (n,))
    return _vector(name, value, n, kind)


def _check_bounds(lower: Any, upper: Any, h: Any) -> None:
    low = np.asarray(-np.inf if lower is None else lower)
    high = np.asarray(np.inf if upper is None else upper)
    for name, bound, empty in (("lower", low, np.inf), ("upper", high, -np.inf),
                               ("h", np.asarray(0.0 if h is None else h), -np.inf)):
        if np.any(np.isnan(bound)) or np.any(bound == empty):
            raise ValueError(f"{name} contains NaN or {empty}, which leaves no x.")
    if low.shape and high.shape and low.shape != high.shape:
        raise ValueError(f"lower has shape {low.shape} but upper {high.shape}.")
    if np.any(low > high):
        where = int(np.argmax(np.broadcast_to(low > high, np.broadcast_shapes(
            low.shape, high.shape, (1,)))))
        raise ValueError(f"lower > upper at entry {where}: no x is within its bounds.")


def convex(program: Program) -> jax.Array:
    """Whether Q has a Cholesky factor but for rounding."""
    if program.Q is None:
        return jnp.bool_(True)
    n = program.q.size
    shift = INDEFINITE * n * machine_epsilon(program.q) * jnp.max(jnp.abs(program.Q), initial=0)
    return trees.finite(cholesky(
        program.Q + (shift + jnp.finfo(shift.dtype).tiny) * jnp.eye(n, dtype=program.Q.dtype)))


def check_convex(Q: Any) -> None:
    """Raise ValueError for a Q with a negative eigenvalue, where it is known."""
    matrix = np.asarray(Q)
    if matrix.dtype.kind not in "fiu" or matrix.ndim != 2:
        return
    epsilon = np.finfo(matrix.dtype if matrix.dtype.kind == "f" else np.float32).eps
    matrix = np.asarray(matrix, np.float64)
    matrix = (matrix + matrix.T) / 2
    shift = INDEFINITE * len(matrix) * epsilon * np.abs(matrix).max(initial=0) + 1e-300
    try:
        np.linalg.cholesky(matrix + shift * np.eye(len(matrix)))
    except np.linalg.LinAlgError:
        least = np.linalg.eigvalsh(matrix)[0]
        raise ValueError(f"Q has the negative eigenvalue {least:.3g}: the program is not convex. "
                         "Add a multiple of the identity, or use a method for nonconvex "
                         "problems.") from None
