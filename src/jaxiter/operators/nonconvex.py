"""Sparse models with SCAD and MCP: an l1 norm, what is concave beside it, accelerated descent."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.known import check_positive, known
from jaxiter.problem import Problem
from jaxiter.splitting import Splitting

PyTree = Any


class Weight(NamedTuple):
    """The step, and alpha, the weight of the slow sequence, which falls like 2 / k."""

    size: jax.Array
    alpha: jax.Array


def scad_concave(x: PyTree, weight: Any, a: Any = 3.7) -> jax.Array:
    """The SCAD penalty less `weight sum |x|`: concave and smooth, its slope a line, then constant.

        s(x) = 0 for |x| <= w;  -(|x| - w)^2 / (2 (a - 1)) to a w;  then w^2 (a + 1) / 2 - w |x|

    Add it to the loss; the l1 norm is the proximal map's. Curvature -1 / (a - 1).

    Args:
      x: a real tree. weight: w, at least 0. a: above 2.

    Raises:
      ValueError: weight or a outside, where they are known; else NaN.

    Reference: Fan and Li, "Variable selection via nonconcave penalized likelihood and its oracle
    properties", J. Am. Stat. Assoc. 96, 2001.

    >>> import jax.numpy as jnp
    >>> float(scad_concave(jnp.array([0.5, 10.0]), 1.0, a=3.0))  # |x| is 10.5, SCAD 0.5 + 2
    -8.0
    """
    known(_check_shape, weight, a, 2.0, "a")

    def leaf(x: jax.Array) -> jax.Array:
        w, shape = _numbers(weight, a, 2.0, x)
        # In three pieces, of which the middle one ends where the last begins.
        bend = jnp.clip(jnp.abs(x) - w, 0, (shape - 1) * w)
        past = jnp.maximum(jnp.abs(x) - shape * w, 0)
        return jnp.sum(-bend**2 / (2 * (shape - 1)) - w * past)

    return sum(map(leaf, jax.tree.leaves(x)), start=jnp.zeros((), trees.norm_dtype(x)))


def mcp_concave(x: PyTree, weight: Any, gamma: Any = 3.0) -> jax.Array:
    """The minimax concave penalty less `weight sum |x|`: concave and smooth.

        m(x) = -x^2 / (2 gamma) for |x| <= gamma w;  then gamma w^2 / 2 - w |x|

    Args:
      x: a real tree. weight: w, at least 0. gamma: above 1.

    Raises:
      ValueError: weight or gamma outside, where they are known; else NaN.

    Reference: Zhang, "Nearly unbiased variable selection under minimax concave penalty", Ann.
    Stat. 38, 2010.

    >>> import jax.numpy as jnp
    >>> float(mcp_concave(jnp.array([10.0]), 1.0))  # |x| alone is 10, the penalty 1.5
    -8.5
    """
    known(_check_shape, weight, gamma, 1.0, "gamma")

    def leaf(x: jax.Array) -> jax.Array:
        w, shape = _numbers(weight, gamma, 1.0, x)
        bend = jnp.minimum(jnp.abs(x), shape * w)
        return jnp.sum(-bend**2 / (2 * shape) - w * (jnp.abs(x) - bend))

    return sum(map(leaf, jax.tree.leaves(x)), start=jnp.zeros((), trees.norm_dtype(x)))


def accelerated_nonconvex(
    gradient: Callable, prox: Callable, *, step_size: Any
) -> Splitting:
    """Minimise `f(x) + g(x)` by accelerated gradients that allow f to be not convex.

        y  = (1 - alpha) x + alpha z
        z+ = prox(z - step / alpha gradient(y), step / alpha)
        x+ = prox(y - step gradient(y), step),    alpha+ = 2 / (1 + sqrt(1 + 4 / alpha^2))

    For SCAD and MCP f is the loss with `scad_concave` or `mcp_concave`, g the l1 norm. The
    governing point is (x, z); the merit is |x+ - y|, how far a step of `forward_backward` goes. Its
    own iteration is what is accelerated here: `picard()` is the solver. On the probes of
    `benchmarks/sparse_models.py` `proximal_gradient`, whose step finds itself, needed about
    half of its gradients or fewer.

    Args:
      gradient: `gradient(x, *args)` of f, L-Lipschitz.
      prox: `prox(v, step, *args)` of g, convex.
      step_size: positive scalar, 0.99 / L: the largest curvature of the loss, lambda_max(X^T X) / n
        for |X b - y|^2 / (2 n), or 1 / (a - 1) and 1 / gamma where those are larger.

    Returns:
      A `Splitting` without a dual. What it finds is stationary; warm starts along a path of
      penalties (`regularisation_path`) find good ones.

    Raises:
      ValueError: a step size that is not positive, where it is known; else BAD_INPUT.

    Reference: Yang, Asgharian and Bhatnagar, "Accelerated gradient methods for sparse statistical
    learning with nonconvex penalties", 2020; Ghadimi and Lan, "Accelerated gradient methods for
    nonconvex nonlinear and stochastic programming", Math. Program. 156, 2016.

    >>> import jax, jax.numpy as jnp, jaxiter
    >>> from jaxiter.operators import accelerated_nonconvex, prox_l1, scad_concave
    >>> f = lambda x, b: jnp.sum((x - b) ** 2) / 2 + scad_concave(x, 1.0)
    >>> split = accelerated_nonconvex(
    ...     jax.grad(f), lambda v, step, b: prox_l1(v, step, 1.0), step_size=0.99)
    >>> out = jaxiter.solve_splitting(split, jnp.zeros(3), jnp.array([0.5, 1.5, 9.0]))
    >>> [round(float(x), 3) for x in out.value], bool(out.converged)  # 9 is not shrunk
    ([0.0, 0.5, 9.0], True)
    """
    check_positive(step_size=step_size)

    def memory(s: tuple, *args: PyTree) -> Weight:
        size = jnp.asarray(step_size, trees.norm_dtype(s))
        return Weight(size, jnp.ones_like(size))

    def between(s: tuple, m: Weight) -> PyTree:
        return trees.axpy(m.alpha, trees.subtract(s[1], s[0]), s[0])

    def step(s: tuple, m: Weight, *args: PyTree) -> tuple[tuple, Weight]:
        y = between(s, m)
        slope, long = gradient(y, *args), m.size / m.alpha
        after = 2 / (1 + jnp.sqrt(1 + 4 / m.alpha**2))
        return (prox(trees.axpy(-m.size, slope, y), m.size, *args),
                prox(trees.axpy(-long, slope, s[1]), long, *args)), m._replace(alpha=after)

    def merit(s: tuple, image: tuple, m: Weight, *args: PyTree) -> jax.Array:
        return trees.norm(trees.subtract(image[0], between(s, m)))

    def equations(s: tuple, m: Weight, *args: PyTree) -> tuple:
        x, z = s
        image = prox(trees.axpy(-m.size, gradient(x, *args), x), m.size, *args)
        return trees.subtract(image, x), trees.subtract(x, z)

    def valid(s: tuple, *args: PyTree) -> jax.Array:
        return jnp.asarray(step_size) > 0

    return Splitting(
        Problem(step=step, memory=memory, merit=merit, equations=equations, valid=valid),
        start=lambda x0, *args: (x0, x0), extract=lambda s, m, *args: (s[0], None))


def _numbers(weight: Any, shape: Any, least: float, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Both as x is, and NaN where they make no sense."""
    w, shape = jnp.asarray(weight, x.dtype), jnp.asarray(shape, x.dtype)
    return jnp.where((w >= 0) & (shape > least), w, jnp.nan), shape


def _check_shape(weight: Any, shape: Any, least: float, name: str) -> None:
    if not (np.all(np.asarray(weight) >= 0) and np.all(np.asarray(shape) > least)):
        raise ValueError(f"weight must be at least 0 and {name} above {least:g}, got {weight} and "
                         f"{shape}.")
