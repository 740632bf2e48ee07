"""Primal-dual hybrid gradient: proximal maps on both sides of a linear map, with a gradient."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.known import check_positive, known
from jaxiter.numerics import stop_gradient, typed_by
from jaxiter.operators.linear_map import LinearMap, is_pair, is_sparse, linear_map
from jaxiter.operators.primal_dual_steps import Steps, balanced, longest, merit, scale, units
from jaxiter.operators.steps import MARGIN, step_by_curvature
from jaxiter.problem import Problem
from jaxiter.spectral import operator_norm
from jaxiter.splitting import Splitting

PyTree = Any

#: Products with K that a check of given steps may take.
LOOK = 20

def products(operator: LinearMap, like: PyTree, args: tuple) -> tuple[Callable, Callable]:
    """The products with K and its adjoint; functions take args, matrices do not."""
    if is_pair(operator):
        forward, adjoint = linear_map(operator)
        return lambda x: forward(x, *args), lambda y: adjoint(y, *args)
    if callable(operator):
        return linear_map(lambda x: operator(x, *args), like)
    return linear_map(operator)


def primal_dual(
    prox_g: Callable, prox_h: Callable, operator: LinearMap, *, gradient: Callable | None = None,
    tau: Any = None, sigma: Any = None,
) -> Splitting:
    """Minimise `f(x) + g(x) + h(K x)`, f smooth, g and h with proximal maps.

        x+ = prox_g(x - tau (gradient(x) + K^H y), tau)
        y+ = prox_h*(y + sigma K (2 x+ - x), sigma),    1 / tau - sigma |K|^2 >= L / 2

    Without a gradient Chambolle and Pock's method, with one Condat and Vu's. The map is averaged in
    the metric M = [[1 / tau, -K^H], [-K, 1 / sigma]], not in the Euclidean one; the governing point
    is (x, sqrt(tau / sigma) y) with the first steps, whose Euclidean norm is that of M's diagonal
    up to a factor: solvers and tolerances see both sides in one unit.

    Args:
      prox_g, prox_h: `prox(v, step, *args)`; that of h* follows by Moreau's identity.
      operator: K, a matrix (dense, BCOO or BCSR), a pair `(matvec(x, *args), rmatvec(y, *args))`,
        or `matvec(x, *args)` alone.
      gradient: `gradient(x, *args)` of f, L-Lipschitz; None: no f.
      tau, sigma: positive scalars; one of them gives the other, the longest with
        1 / tau - sigma |K|^2 >= L, by power iterations on K, with a margin, and on the Hessian at
        x0. Default: sigma = 1 / |K| at first, or L / |K|^2 where that is longer; after 5, 10, 20,
        ... steps so much that both sides go equally far. The ratio of the steps can matter a
        thousandfold, and the right one is that of the units of y and x.

    Returns:
      A `Splitting` of x and the dual y; averaged in M with 1 / 2 without a gradient, 2 / 3 for
      default steps with one. Its problem keeps both steps as memory; default ones measure in the
        metric of now.

    Raises:
      ValueError: steps that are not positive, or tau sigma |K|^2 >= 1 for a matrix, where they are
        known; else BAD_INPUT.

    Reference: Chambolle and Pock, "A first-order primal-dual algorithm for convex problems with
    applications to imaging", J. Math. Imaging Vis. 40, 2011; Condat, "A primal-dual splitting
    method for convex optimization involving Lipschitzian, proximable and linear composite terms",
    J. Optim. Theory Appl. 158, 2013; Vu, "A splitting algorithm for dual monotone inclusions
    involving cocoercive operators", Adv. Comput. Math. 38, 2013.

    >>> import jax.numpy as jnp, jaxiter
    >>> from jaxiter.operators import primal_dual, prox_l1
    >>> near = lambda v, step, b: (v + step * b) / (1 + step)  # |x - b|^2 / 2
    >>> split = primal_dual(near, lambda v, step, b: prox_l1(v, step), jnp.array([[1.0, -1.0]]))
    >>> out = jaxiter.solve_splitting(split, jnp.zeros(2), jnp.array([4.0, 0.0]))
    >>> [round(float(x), 3) for x in (*out.value, *out.dual)], bool(out.converged)
    ([3.0, 1.0, 1.0], True)
    """
    given = {name: step for name, step in (("tau", tau), ("sigma", sigma)) if step is not None}
    check_positive(**given)
    if len(given) == 2 and not callable(operator) and not is_pair(operator):
        known(_check_product, tau, sigma, operator)

    def map_norm(x: PyTree, args: tuple, **options: Any) -> jax.Array:
        like, fixed = stop_gradient((x, args))
        like = typed_by(lambda x: products(operator, like, fixed)[0](x), (like,), like)
        return operator_norm(products(operator, like, fixed)[0], like, **options).value

    def memory(s: tuple, *args: PyTree) -> Steps:
        x, kind = s[0], trees.norm_dtype(s)
        first, second = (
            None if step is None else jnp.asarray(step, kind) for step in (tau, sigma))
        if first is not None and second is not None:
            return Steps(first, second, jnp.sqrt(second / first))
        curvature = jnp.zeros((), kind) if gradient is None else 1 / step_by_curvature(
            gradient, x, args)
        gain = MARGIN * map_norm(x, args).astype(kind)
        return longest(first, second, jnp.where(gain == 0, 1, gain), curvature, s)

    def step(s: tuple, m: Steps, *args: PyTree) -> tuple[tuple, Steps]:
        x, scaled = s
        forward, adjoint = products(operator, x, args)
        y = trees.scale(m.unit, scaled)
        slope = adjoint(y)
        if gradient is not None:
            slope = trees.add(slope, gradient(x, *args))
        new = prox_g(trees.axpy(-m.tau, slope, x), m.tau, *args)
        ahead = trees.axpy(m.sigma, forward(jax.tree.map(lambda a, b: 2 * a - b, new, x)), y)
        inner = prox_h(trees.scale(1 / m.sigma, ahead), 1 / m.sigma, *args)
        dual = trees.axpy(-m.sigma, inner, ahead)
        return (new, trees.scale(1 / m.unit, dual)), balanced(m, *stop_gradient((new, dual)))

    def valid(s: tuple, *args: PyTree) -> jax.Array:
        fine = jnp.bool_(True)
        for size in given.values():
            fine &= jnp.asarray(size) > 0
        if len(given) == 2:  # a norm from below: what it refuses is wrong indeed
            gain = map_norm(s[0], args, max_steps=LOOK)
            fine &= jnp.asarray(tau, gain.dtype) * jnp.asarray(sigma, gain.dtype) * gain**2 < 1
        return fine

    def start(x0: PyTree, *args: PyTree) -> tuple:
        return x0, trees.zeros_like(jax.eval_shape(products(operator, x0, args)[0], x0))

    def extract(s: tuple, m: Steps, *args: PyTree) -> tuple[PyTree, PyTree]:
        return s[0], trees.scale(m.unit, s[1])

    averaged = 0.5 if gradient is None else None if given else 2 / 3
    problem = Problem(step=step, memory=memory, valid=valid if given else None)
    if not given:
        problem = problem._replace(
            merit=merit, scale=scale, units=units, epoch=lambda m: m.travel.epoch)
    return Splitting(problem, start=start, extract=extract, averaged=averaged)


def _check_product(tau: Any, sigma: Any, operator: Any) -> None:
    """In numpy: within a trace, where steps may well be known, jax would trace it."""
    matrix = _in_scipy(operator) if is_sparse(operator) else np.asarray(operator)
    v, gain = np.random.default_rng(0).normal(size=operator.shape[1]), 0.0
    for _ in range(LOOK):
        image = matrix @ (v / max(np.linalg.norm(v), np.finfo(float).tiny))
        gain, v = float(np.linalg.norm(image)), matrix.conj().T @ image
    bound = float(np.max(np.asarray(tau) * np.asarray(sigma)) * gain**2)
    if bound >= 1:
        raise ValueError(f"tau sigma |K|^2 must be below 1, got {bound:.4g} (tau {tau}, sigma "
                         f"{sigma}, |K| at least {gain:.4g}).")


def _in_scipy(operator: Any) -> Any:
    import scipy.sparse  # whoever has a sparse matrix can wait for it

    if hasattr(operator, "indptr"):
        parts = operator.data, operator.indices, operator.indptr
        return scipy.sparse.csr_array(tuple(map(np.asarray, parts)), operator.shape)
    data, indices = np.asarray(operator.data), np.asarray(operator.indices)
    places = (indices[:, 0], indices[:, 1])
    return scipy.sparse.coo_array((data, places), operator.shape).tocsr()
