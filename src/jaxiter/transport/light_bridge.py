"""Light Schroedinger bridges: between two samples by a mixture of Gaussians, no network."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.known import check_count, check_positive, known
from jaxiter.numerics import floating

LOG_TWO_PI = 1.8378770664093453


class LightBridge(NamedTuple):
    """A bridge from p0 to p1 against Brownian motion of volatility epsilon, in closed form.

    It is the adjusted potential `v(y) = sum_k alpha_k N(y; r_k, epsilon S_k)`, whose plan is a
    mixture as well, `p(y | x) = sum_k w_k(x) N(y; r_k + S_k x, epsilon S_k)` with
    `w_k(x) ~ alpha_k exp((x' S_k x + 2 r_k' x) / (2 epsilon))`. Train it by `light_bridge_loss`.

    Attributes:
      log_alpha: logarithms of the weights of K components `[K]`.
      r: `[K, D]`, in units of the data.
      log_s: logarithms of the diagonals of S_k `[K, D]`.
    """

    log_alpha: jax.Array
    r: jax.Array
    log_s: jax.Array


def init_light_bridge(
    key: jax.Array, target: jax.Array, components: int, *, scale: Any = 0.1
) -> LightBridge:
    """A bridge to be trained: equal weights, r at random points of the target.

    Args:
      key: a random key.
      target: samples of p1 `[m, D]`.
      components: K, static; 50 to 500 for samples that are no Gaussian.
      scale: what all S_k are; 0.1, or 1 where source and target are alike.

    Raises:
      ValueError: more components than samples, a scale that is not positive.

    >>> import jax, jax.numpy as jnp
    >>> init_light_bridge(jax.random.key(0), jnp.ones((5, 2)), 3).r.shape
    (3, 2)
    """
    check_count(components=components)
    check_positive(scale=scale)
    if jnp.ndim(target) != 2 or components > len(target):
        raise ValueError(f"target must be samples [m, D], at least as many as the {components} "
                         f"components, got shape {jnp.shape(target)}.")
    r = jax.random.choice(key, floating(target), (components,), replace=False)
    level = jnp.log(jnp.asarray(1 / components, r.dtype))
    return LightBridge(jnp.full(components, level), r,
                       jnp.full_like(r, jnp.log(jnp.asarray(scale, r.dtype))))


def light_bridge_loss(
    bridge: LightBridge, x: jax.Array, y: jax.Array, epsilon: Any
) -> jax.Array:
    """`mean log c(x) - mean log v(y)`: the relative entropy of the bridge, up to a constant.

        c(x) = sum_k alpha_k exp((x' S_k x + 2 r_k' x) / (2 epsilon))

    Batches need not be paired. Adam with steps of 1e-3 to 1e-2, batches of 128 to 512, thousands
    of steps; for epsilon below 0.1 the smaller ones.

    Args:
      bridge: as trained so far.
      x: samples of p0 `[n, D]`.
      y: samples of p1 `[m, D]`.
      epsilon: volatility, the variance of the reference at time 1, positive, in units of the data
        squared; the regularisation of the cost `|x - y|^2 / 2`.

    Returns:
      A scalar; NaN for an epsilon that is traced and not positive.

    Raises:
      ValueError: epsilon <= 0; points of another dimension.

    Reference: Korotin, Gushchin and Burnaev, "Light Schroedinger bridge", ICLR, 2024.

    >>> import jax.numpy as jnp
    >>> one = LightBridge(jnp.zeros(1), jnp.zeros((1, 1)), jnp.zeros((1, 1)))
    >>> round(float(light_bridge_loss(one, jnp.zeros((4, 1)), jnp.zeros((4, 1)), 1.0)), 4)
    0.9189
    """
    epsilon, x, y = _checked(epsilon, bridge, x, y)
    s = jnp.exp(bridge.log_s)
    gaps = (y[..., None, :] - bridge.r) ** 2 / s / epsilon
    sizes = bridge.log_s + jnp.log(epsilon) + jnp.asarray(LOG_TWO_PI, s.dtype)
    log_v = jax.nn.logsumexp(bridge.log_alpha - jnp.sum(gaps + sizes, -1) / 2, -1)
    log_c = jax.nn.logsumexp(_log_weights(bridge, x, epsilon), -1)
    return jnp.mean(log_c) - jnp.mean(log_v)


def plan_sample(bridge: LightBridge, x: jax.Array, epsilon: Any, key: jax.Array) -> jax.Array:
    """Where points go: a sample of `p(y | x)` for each x.

    Args:
      bridge: a trained bridge. x: points of p0 `[..., D]`.
      epsilon: that of the training. key: a random key.

    Returns:
      `[..., D]`.
    """
    epsilon, x = _checked(epsilon, bridge, x)
    choose, move = jax.random.split(key)
    k = jax.random.categorical(choose, _log_weights(bridge, x, epsilon))
    s = jnp.exp(bridge.log_s[k])
    return bridge.r[k] + s * x + jnp.sqrt(epsilon * s) * jax.random.normal(move, x.shape, x.dtype)


def drift(bridge: LightBridge, x: jax.Array, t: Any, epsilon: Any) -> jax.Array:
    """The drift g of the bridge `dX = g(X, t) dt + sqrt(epsilon) dW`, X_0 ~ p0, X_1 ~ p1.

        g = sum_k w_k ((S_k - 1) x + r_k) / D_k,   D_k = t S_k + 1 - t,
        w_k ~ alpha_k det(D_k)^(-1/2) exp(sum ((S_k - 1) x^2 + 2 r_k x - t r_k^2) / (2 epsilon D_k))

    The paper's gradient of a logarithm, worked out: nothing in it is singular at t = 1.

    Args:
      bridge: a trained bridge.
      x: points `[..., D]`.
      t: time from 0 to 1, a scalar or `[..., 1]`.
      epsilon: that of the training.

    Returns:
      `[..., D]`, in units of the data for a unit of time.

    Reference: Korotin, Gushchin and Burnaev, "Light Schroedinger bridge", ICLR, 2024.

    >>> import jax.numpy as jnp
    >>> one = LightBridge(jnp.zeros(1), jnp.ones((1, 2)), jnp.zeros((1, 2)))  # S = 1: a shift
    >>> drift(one, jnp.zeros(2), 0.5, 1.0).tolist()
    [1.0, 1.0]
    """
    epsilon, x = _checked(epsilon, bridge, x)
    t = jnp.asarray(t, x.dtype)[..., None]
    s, r, x = jnp.exp(bridge.log_s), bridge.r, x[..., None, :]
    spread = t * s + 1 - t
    energy = ((s - 1) * x**2 + 2 * r * x - t * r**2) / (epsilon * spread)
    logits = bridge.log_alpha + jnp.sum(energy - jnp.log(spread), -1) / 2
    pull = ((s - 1) * x + r) / spread
    return jnp.sum(jax.nn.softmax(logits, -1)[..., None] * pull, -2)


def bridge_path(
    bridge: LightBridge, x: jax.Array, times: jax.Array, epsilon: Any, key: jax.Array
) -> jax.Array:
    """Paths of the bridge from x, exact at the given times: Brownian bridges to plan samples.

        X_t = (1 - t) x + t y + sqrt(epsilon) (W_t - t W_1),   y ~ p(. | x)

    Args:
      bridge: a trained bridge. x: starts `[..., D]`.
      times: `[T]`, ascending, from 0 to 1.
      epsilon: that of the training. key: a random key.

    Returns:
      `[T, ..., D]`; NaN for traced times that descend or leave [0, 1].

    Raises:
      ValueError: times that are known and descend or leave [0, 1].

    >>> import jax, jax.numpy as jnp
    >>> one = LightBridge(jnp.zeros(1), jnp.ones((1, 2)), jnp.zeros((1, 2)))
    >>> bridge_path(one, jnp.zeros((7, 2)), jnp.array([0.0, 0.5]), 1.0, jax.random.key(0)).shape
    (2, 7, 2)
    """
    known(_check_times, times)
    epsilon, x = _checked(epsilon, bridge, x)
    times = jnp.asarray(times, x.dtype)
    end, move = jax.random.split(key)
    y = plan_sample(bridge, x, epsilon, end)
    steps = jnp.diff(times, prepend=jnp.zeros(1, x.dtype), append=jnp.ones(1, x.dtype))
    steps = steps.reshape(-1, *[1] * x.ndim)
    noise = jax.random.normal(move, (len(steps), *x.shape), x.dtype)
    walk = jnp.cumsum(jnp.sqrt(steps * epsilon) * noise, 0)
    t = times.reshape(-1, *[1] * x.ndim)
    return (1 - t) * x + t * y + walk[:-1] - t * walk[-1]


def _log_weights(bridge: LightBridge, x: jax.Array, epsilon: Any) -> jax.Array:
    """The logarithms of `alpha_k exp((x' S_k x + 2 r_k' x) / (2 epsilon))`, `[..., K]`."""
    x = x[..., None, :]
    energy = jnp.exp(bridge.log_s) * x**2 + 2 * bridge.r * x
    return bridge.log_alpha + jnp.sum(energy, -1) / (2 * epsilon)


def _checked(epsilon: Any, bridge: LightBridge, *points: jax.Array) -> list[jax.Array]:
    """Epsilon and points as floats of the bridge: integers would take the time with them."""
    check_positive(epsilon=epsilon)
    dimension = bridge.r.shape[-1]
    for x in points:
        if jnp.ndim(x) == 0 or jnp.shape(x)[-1] != dimension:
            raise ValueError(f"the bridge is of {dimension} dimensions, points have shape "
                             f"{jnp.shape(x)}.")
    epsilon = jnp.asarray(epsilon, bridge.r.dtype)
    return [jnp.where(epsilon > 0, epsilon, jnp.nan),
            *(jnp.asarray(x, bridge.r.dtype) for x in points)]


def _check_times(times: Any) -> None:
    host = np.asarray(times)
    good = host.ndim == 1 and np.all(np.diff(host) >= 0) and np.all((host >= 0) & (host <= 1))
    if not good:
        raise ValueError(f"times must be a vector that ascends within [0, 1], got {host.tolist()}.")
