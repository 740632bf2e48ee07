"""Flows between samples: rectified by potentials, and interpolants of many densities."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter.adjoint import unrolled
from jaxiter.known import check_count
from jaxiter.numerics import product
from jaxiter.process import Process, iterate
from jaxiter.solution import Status


def rectified_flow_loss(
    potential: Callable, params: Any, x0: jax.Array, x1: jax.Array, key: jax.Array | None = None,
    *, cost: str | Callable = "squared", times: jax.Array | None = None,
) -> jax.Array:
    """The loss of c-rectified flow: its minimiser transports x0 to x1 at no more cost than before.

        mean c*(grad phi(X_t, t)) - grad phi(X_t, t)' (x1 - x0),   X_t = (1 - t) x0 + t x1

    For `c = |x|^2 / 2`, whose c* is itself, this is least squares of `x1 - x0` on gradients. The
    flow `dZ = grad c*(grad phi(Z, t)) dt`, integrated by `rectify`, is a new coupling to fit the
    next potential to; fixed points are optimal, but for supports that are not connected. Flows
    that are no gradients keep the marginals too, but do not lower the cost.

    Args:
      potential: `potential(params, x, t) -> scalar` of one point `[D]`.
      params: a pytree.
      x0: points `[n, D]`.
      x1: their partners `[n, D]`, of any coupling.
      key: a random key, from which a time within (0, 1) is drawn for each pair.
      cost: "squared", or the conjugate c* of the cost as a function of a vector `[D]`.
      times: times `[n]` in place of the key's.

    Returns:
      A scalar.

    Raises:
      ValueError: neither key nor times, points that are no pairs, another word for a cost.

    Reference: Liu, "Rectified flow: a marginal preserving approach to optimal transport", 2022.

    >>> import jax, jax.numpy as jnp
    >>> x = jnp.ones((4, 2))
    >>> float(rectified_flow_loss(lambda v, x, t: v @ x, jnp.ones(2), x, x + 1, jax.random.key(0)))
    -1.0
    """
    if x0.ndim != 2 or x0.shape != x1.shape:
        raise ValueError(f"x0 and x1 must be pairs [n, D], got shapes {x0.shape}, {x1.shape}.")
    conjugate = _conjugate(cost)
    if times is None:
        if key is None:
            raise ValueError("pass a key, from which times are drawn, or times.")
        times = jax.random.uniform(key, x0.shape[:1], x0.dtype)
    elif times.shape != x0.shape[:1]:
        raise ValueError(f"times must be one for each of {len(x0)} pairs, got shape {times.shape}.")

    def one(x0: jax.Array, x1: jax.Array, t: jax.Array) -> jax.Array:
        slope = jax.grad(potential, argnums=1)(params, (1 - t) * x0 + t * x1, t)
        return conjugate(slope) - slope @ (x1 - x0)

    return jnp.mean(jax.vmap(one)(x0, x1, times))


def rectified_velocity(
    potential: Callable, params: Any, *, cost: str | Callable = "squared"
) -> Callable:
    """`velocity(x, t) = grad c*(grad phi(x, t))` of a fitted potential, points `[n, D]` or `[D]`.

    Args:
      potential, params, cost: as in `rectified_flow_loss`.
    """
    conjugate = _conjugate(cost)

    def velocity(x: jax.Array, t: Any) -> jax.Array:
        if x.ndim > 1:
            return jax.vmap(lambda x: velocity(x, t))(x)
        slope = jax.grad(potential, argnums=1)(params, x, t)
        return slope if cost == "squared" else jax.grad(conjugate)(slope)

    return velocity


def rectify(
    velocity: Callable, x0: jax.Array, *, steps: int = 100, integrate: Callable | None = None
) -> jax.Array:
    """Where a flow takes points from time 0 to 1: with x0 they are the rectified coupling.

    Args:
      velocity: `velocity(x, t)` of points `[n, D]`, such as `rectified_velocity` gives.
      x0: points `[n, D]`.
      steps: of the classical Runge-Kutta method, of 4 evaluations each.
      integrate: an integrator `integrate(velocity, x0) -> x1` in place of it, such as one made of
        `jaxiter.diffusion.integrate`.

    Returns:
      `[n, D]`; NaN, all of it, where some velocity was not finite. Derivatives are those of the
      steps.

    Reference: Liu, "Rectified flow: a marginal preserving approach to optimal transport", 2022.

    >>> import jax.numpy as jnp
    >>> end = rectify(lambda x, t: -x, jnp.ones((1, 1)), steps=10)
    >>> round(float(end[0, 0]), 4)  # exp(-1)
    0.3679
    """
    if integrate is not None:
        return integrate(velocity, x0)
    check_count(steps=steps)
    size = jnp.asarray(1 / steps, x0.dtype)

    def step(state: tuple, key: jax.Array) -> tuple:
        x, t = state
        k1 = velocity(x, t)
        k2 = velocity(x + size / 2 * k1, t + size / 2)
        k3 = velocity(x + size / 2 * k2, t + size / 2)
        k4 = velocity(x + size * k3, t + size)
        return x + size / 6 * (k1 + 2 * k2 + 2 * k3 + k4), t + size

    # The value of a run is the state that its last step began from: one step more.
    run = iterate(Process(lambda x: (x, jnp.zeros((), x.dtype)), step), x0,
                  key=jax.random.key(0), max_steps=steps + 1, adjoint=unrolled())
    return jnp.where(run.status == Status.MAX_STEPS, run.value[0], jnp.nan)


def interpolant_loss(g: Callable, points: jax.Array, key: jax.Array) -> jax.Array:
    """The loss whose minimiser is `g_k(alpha, x) = E[x_k | sum_j alpha_j x_j = x]`.

        mean |g(alpha, x)|^2 - 2 sum_k x_k' g_k(alpha, x),   x = sum_k alpha_k x_k

    with alpha uniform on the simplex. K = 2 is flow matching, for all its paths at once.

    Args:
      g: `g(alpha, x) -> [K, D]` of weights `[K]` and one point `[D]`.
      points: samples of K densities `[K, n, D]`, coupled by their index.
      key: a random key.

    Returns:
      A scalar, the least squares error of all x_k less its constant.

    Reference: Albergo, Boffi, Lindsey and Vanden-Eijnden, "Multimarginal generative modeling with
    stochastic interpolants", 2023.

    >>> import jax, jax.numpy as jnp
    >>> loss = interpolant_loss(lambda alpha, x: jnp.stack([x, x]), jnp.ones((2, 5, 3)),
    ...                         jax.random.key(0))
    >>> round(float(loss), 4)  # 2 * 3 - 2 * 6
    -6.0
    """
    if points.ndim != 3:
        raise ValueError(f"points must be [K, n, D], got shape {points.shape}.")
    count, size = points.shape[:2]
    alpha = jax.random.dirichlet(key, jnp.ones(count, points.dtype), (size,))

    def one(alpha: jax.Array, x: jax.Array) -> jax.Array:
        values = g(alpha, product(alpha, x))
        return jnp.sum(values**2) - 2 * jnp.sum(x * values)

    return jnp.mean(jax.vmap(one, in_axes=(0, 1))(alpha, points))


def interpolant_velocity(g: Callable, path: Callable) -> Callable:
    """The velocity of the flow along a path in the simplex, `sum_k alpha_k'(t) g_k(alpha(t), x)`.

    It takes the density at alpha(0) to the one at alpha(1); from vertex i to vertex j, density i
    to density j, whatever lies between them.

    Args:
      g: as fitted by `interpolant_loss`.
      path: `path(t) -> alpha` `[K]`, differentiable.

    Returns:
      `velocity(x, t)` of points `[n, D]` or `[D]`, to be integrated by `rectify`.

    Reference: Albergo, Boffi, Lindsey and Vanden-Eijnden, "Multimarginal generative modeling with
    stochastic interpolants", 2023.
    """
    def velocity(x: jax.Array, t: Any) -> jax.Array:
        if x.ndim > 1:
            return jax.vmap(lambda x: velocity(x, t))(x)
        t = jnp.asarray(t, x.dtype)
        alpha, speed = jax.jvp(path, (t,), (jnp.ones_like(t),))
        return product(speed, g(alpha, x))

    return velocity


def _conjugate(cost: str | Callable) -> Callable:
    if callable(cost):
        return cost
    if cost != "squared":
        raise ValueError(f"cost must be 'squared' or the conjugate of a cost, got {cost!r}.")
    return lambda p: p @ p / 2
