"""Approximate inverses for hypergradients, as linear solvers of the core's kind."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.flatten_util import ravel_pytree

from jaxiter import trees
from jaxiter.known import check_count, check_positive
from jaxiter.linear import LinearSolution, LinearSolver, Matvec, default_rtol
from jaxiter.numerics import machine_epsilon, product, safe_divide
from jaxiter.solution import Status
from jaxiter.spectral import largest_eigenvalue
from jaxiter.values import as_value

PyTree = Any

#: Products spent on the curvature: it comes out a few per cent too small.
POWER_STEPS = 10


def _judged(matvec: Matvec, b: PyTree, x: PyTree, products: Any, rtol: Any) -> LinearSolution:
    """The answer with its recomputed residual: MAX_STEPS where the budget was not enough."""
    norm = trees.norm(trees.subtract(b, matvec(x)))
    residual = safe_divide(norm, trees.norm(b))
    wanted = default_rtol(b) if rtol is None else rtol
    status = jnp.where(residual <= wanted, Status.CONVERGED, Status.MAX_STEPS)
    status = jnp.where(jnp.isfinite(norm), status, Status.NONFINITE).astype(jnp.int32)
    return LinearSolution(x, status, jnp.int32(products), residual, jnp.ones_like(residual))


@as_value
def neumann_series(terms: int = 50, step_size: Any = None, rtol: Any = None) -> LinearSolver:
    """`s sum_{i < terms} (I - s A)^i b`, for A symmetric with eigenvalues in (0, 2 / s).

    terms - 1 products; from x0 the same number of steps `x <- x + s (b - A x)`. At a fixed inner
    point it is differentiation through that many steps of gradient descent with rate s.

    Args:
      terms: at least 1. step_size: s; default 1 / L, L by power iteration (at most 10
        products more). rtol: residual of CONVERGED; with few terms the status is MAX_STEPS.

    >>> import jax.numpy as jnp
    >>> neumann_series(2, 0.5)(lambda v: v, jnp.array([1.0])).value.tolist()
    [0.75]
    """
    check_count(terms=terms)

    def solve(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        size, products = step_size, terms - 1
        if size is None:
            top = largest_eigenvalue(matvec, b, max_steps=POWER_STEPS)
            size, products = 1 / jnp.abs(top.value), products + top.solve.steps

        def step(x: PyTree, _: None) -> tuple[PyTree, None]:
            rest = trees.subtract(b, matvec(x))
            return trees.axpy(size, rest, x), None

        start, count = (trees.scale(size, b), terms - 1) if x0 is None else (x0, terms)
        x, _ = lax.scan(step, start, length=count)
        return _judged(matvec, b, x, products + 1, rtol)

    return solve


@as_value
def nystrom(rank: int, damping: float, key: jax.Array, rtol: Any = None) -> LinearSolver:
    """`(A_k + damping I)^-1 b`, A_k a rank-k Nystrom approximation of A, by one batch of products.

    k products side by side instead of a chain of them. On well-posed systems conjugate gradients
    are more accurate for as many products; this has no step size, no sequence, and one
    factorisation for many right-hand sides. The residual is that of A itself, undamped.

    Args:
      rank: k, columns drawn without replacement (at most the size of b). damping: positive.

    Source: Hataya and Yamada, "Nystrom method for accurate and scalable implicit
    differentiation", 2023.

    >>> import jax, jax.numpy as jnp
    >>> d = jnp.array([1.0, 2.0])
    >>> nystrom(2, 1e-3, jax.random.key(0))(lambda v: d * v, jnp.ones(2)).value.round(2).tolist()
    [1.0, 0.5]
    """
    check_count(rank=rank)
    check_positive(damping=damping)

    def solve(matvec: Matvec, b: PyTree, *, x0: PyTree = None) -> LinearSolution:
        del x0  # a direct solve has no use for a start
        flat, unravel = ravel_pytree(b)
        k = min(rank, flat.size)
        chosen = jax.random.choice(key, flat.size, (k,), replace=False)
        units = jnp.zeros((k, flat.size), flat.dtype).at[jnp.arange(k), chosen].set(1)
        rows = jax.vmap(lambda e: ravel_pytree(matvec(unravel(e)))[0])(units)
        core = rows[:, chosen]
        gram = product(rows, rows.T)
        system = damping * (core + core.T) / 2 + gram
        # An indefinite core can make this singular: small eigenvalues are left out.
        values, vectors = jnp.linalg.eigh(system)
        kept = jnp.abs(values) > 100 * machine_epsilon(flat) * jnp.max(jnp.abs(values))
        inverse = jnp.where(kept, 1 / jnp.where(kept, values, 1), 0)
        z = vectors @ (inverse * (vectors.T @ (rows @ flat)))
        return _judged(matvec, b, unravel((flat - rows.T @ z) / damping), k, rtol)

    return solve
