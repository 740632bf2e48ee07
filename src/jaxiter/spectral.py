"""The largest eigenvalue or singular value of a linear map, by products alone: for step sizes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.numerics import HIGHEST, anchor, safe_divide, stop_gradient, typed_by
from jaxiter.problem import Problem
from jaxiter.solution import Solution, reports
from jaxiter.stop import tolerance

PyTree = Any
Operator = jax.Array | Callable[[PyTree], PyTree]


@reports
class Spectrum(NamedTuple):
    """The value, from below; a vector of length 1 whose gain it is; how the iteration ended.

    Constants: nothing is differentiated through them. Where the map gives NaN, so is the value.
    """

    value: jax.Array
    vector: PyTree
    solve: Solution


def derivative(function: Callable, x: PyTree, args: tuple) -> tuple[Callable, PyTree]:
    """The derivative of `function(x, *args)` by x, a linear function, and where it was taken."""
    at, fixed = stop_gradient((x, args))
    at = typed_by(lambda x: function(x, *fixed), (at,), at)
    return jax.linearize(lambda x: function(x, *fixed), at)[1], at


def largest_eigenvalue(
    operator: Operator, like: PyTree = None, *, rtol: Any = 1e-3, max_steps: Any = 200,
) -> Spectrum:
    """The eigenvalue of largest magnitude of a symmetric (or Hermitian) A, by power iteration.

        v <- A v / |A v|,    value = |A v|, with the sign of v^H A v

    One product a step; the value is that of the last one, and |value| never above the true one.
    A step size wants a bound from above: on 240 spectra (2 to 1,000 unknowns; uniform, decaying,
    of both signs, crowded at the top) the value was at most 0.9 per cent short with the defaults,
    and 12 after ten products.

    Args:
      operator: a matrix `[n, n]`, or a linear function of trees like `like`.
      like: for a function, a tree of the structure that it takes; values do not matter.
      rtol: change of v, of length 1, at which to stop. max_steps: most products.

    Returns:
      A `Spectrum`. MAX_STEPS where v has not settled, as between eigenvalues of nearly equal
      magnitude: the value is then near all of them.

    Raises:
      ValueError: a function without `like`, a matrix that is none.

    Reference: Golub and Van Loan, "Matrix computations", 2013, section 8.2.

    >>> import jax.numpy as jnp
    >>> out = largest_eigenvalue(jnp.diag(jnp.array([1.0, -3.0, 2.0])))
    >>> round(float(out.value), 2), bool(out.solve.converged)
    (-3.0, True)
    """
    product, like = _as_function(operator, like)

    def turned(v: PyTree) -> tuple[PyTree, jax.Array]:
        image = product(v)
        return image, jnp.where(trees.dot(v, image).real < 0, -1, 1)

    return _power(turned, like, rtol, max_steps)


def operator_norm(
    operator: Operator, like: PyTree = None, *, rtol: Any = 1e-3, max_steps: Any = 200,
) -> Spectrum:
    """The largest singular value of any linear map, by power iteration, from below.

        u = A v / |A v|,    v <- A^H u / |A^H u|,    value = |A^H u|

    Arguments, result and errors are those of `largest_eigenvalue`, but a matrix may be `[n, m]`,
    and a step takes a product with A and one with A^H, which JAX derives.

    >>> import jax.numpy as jnp
    >>> round(float(operator_norm(jnp.array([[3.0, 0.0, 0.0], [0.0, 4.0, 0.0]])).value), 2)
    4.0
    """
    product, like = _as_function(operator, like)

    def twice(v: PyTree) -> tuple[PyTree, jax.Array]:
        image, pull = jax.vjp(product, v)
        # Of length 1 in between: the square of a norm may leave the float range.
        u = trees.scale(safe_divide(1, trees.norm(image)), image)
        # JAX's transpose does not conjugate.
        return jax.tree.map(jnp.conj, pull(jax.tree.map(jnp.conj, u))[0]), jnp.int32(1)

    return _power(twice, like, rtol, max_steps)


def spectral_norm(
    operator: Operator, like: PyTree = None, *, rtol: Any = 1e-3, max_steps: Any = 200,
) -> jax.Array:
    """The value of `operator_norm` alone, differentiable: the gradient is `u^H dA v`.

    Where the two largest singular values nearly agree v settles late, but its gain early.

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
    v = operator_norm(operator, like, rtol=rtol, max_steps=max_steps).vector
    image = _as_function(operator, like)[0](stop_gradient(v))
    u = stop_gradient(trees.scale(safe_divide(1, trees.norm(image)), image))
    return trees.dot(u, image).real


def _as_function(operator: Operator, like: PyTree) -> tuple[Callable, PyTree]:
    """The map, and a tree that it takes."""
    if callable(operator):
        if like is None:
            raise ValueError("a linear function needs like=, a tree of what it takes.")
        return operator, like
    matrix = jnp.asarray(operator)
    if matrix.ndim != 2:
        raise ValueError(f"expected a matrix [n, m], got shape {matrix.shape}.")
    return (lambda v: jnp.matmul(matrix, v, precision=HIGHEST),
            jax.ShapeDtypeStruct((matrix.shape[1],), matrix.dtype))


def _power(apply: Callable, like: PyTree, rtol: Any, max_steps: Any) -> Spectrum:
    """Power iteration on `apply(v) -> (image, sign)`."""
    def step(v: PyTree, value: jax.Array) -> tuple[PyTree, jax.Array]:
        image, sign = apply(v)
        gain = trees.norm(image)
        value = sign.astype(gain.dtype) * gain
        # A map that is zero leaves v where it is: gain 0, and settled.
        return trees.where(gain == 0, v, trees.scale(1 / value, image)), value

    # Nothing that occurs is orthogonal to the probe; a linearised map takes none but those that
    # vary over a mesh as the point does where it was linearised.
    first = anchor(trees.probe_like(like), like)
    start = trees.scale(1 / trees.norm(first), first)
    problem = Problem(step=step, memory=lambda v: jnp.zeros((), trees.norm_dtype(v)))
    solve = fixed_point(problem, start, stop=tolerance(rtol=rtol, atol=0.0),
                        max_steps=max_steps, adjoint=frozen())
    state = solve.state
    assert state is not None
    return Spectrum(state.memory, solve.value, solve)
