"""The largest singular value of a linear map, by products alone."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.numerics import HIGHEST, safe_divide, stop_gradient
from jaxiter.stop import tolerance

PyTree = Any


def spectral_norm(
    operator: jax.Array | Callable[[PyTree], PyTree], like: PyTree = None, *,
    rtol: Any = 1e-3, max_steps: Any = 200,
) -> jax.Array:
    """The largest singular value of A by power iteration, from below.

        v <- A^H A v / |A^H A v|,    |A| = |A v|

    Where the two largest singular values nearly agree v settles late, but its gain early.
    Differentiable: the gradient is `u^H dA v` at the last v.

    Args:
      operator: a matrix `[n, m]`, or a linear function of trees like `like`.
      like: for a function, a tree of the structure that it takes; values do not matter.
      rtol: change of v, of length 1, at which to stop. max_steps: products with A^H A.

    Raises:
      ValueError: a function without `like`, a matrix that is none.

    Reference: Golub and Van Loan, "Matrix computations", 2013, section 8.2.

    >>> import jax.numpy as jnp
    >>> round(float(spectral_norm(jnp.diag(jnp.array([1.0, 3.0, 2.0])))), 2)
    3.0
    """
    if callable(operator):
        if like is None:
            raise ValueError("spectral_norm of a function needs like=, a tree that it takes.")
        product: Callable = operator
    else:
        matrix = jnp.asarray(operator)
        if matrix.ndim != 2:
            raise ValueError(f"spectral_norm wants a matrix [n, m], got shape {matrix.shape}.")
        product = lambda v: jnp.matmul(matrix, v, precision=HIGHEST)  # noqa: E731
        like = jnp.zeros(matrix.shape[1], matrix.dtype)

    def step(v: PyTree) -> PyTree:
        image, pull = jax.vjp(product, v)
        moved = pull(image)[0]
        return trees.scale(safe_divide(1, trees.norm(moved)), moved)

    first = trees.probe_like(like)  # nothing that occurs is orthogonal to them
    start = trees.scale(1 / trees.norm(first), first)
    v = fixed_point(step, start, stop=tolerance(rtol=rtol, atol=0.0),
                    max_steps=max_steps, adjoint=frozen()).value
    return trees.norm(product(stop_gradient(v)))
