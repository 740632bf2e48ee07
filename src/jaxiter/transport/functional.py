"""Transport learnt by saddle points: general cost functionals, and steps of Wasserstein flows."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter.known import check_positive
from jaxiter.transport.points import PointCloud, euclidean

PyTree = Any


class SaddleLosses(NamedTuple):
    """The two losses of a saddle point; minimise each in its first argument, in turn.

    Attributes:
      transport: `transport(map_params, potential_params, x, *data)`, several steps of it to one of
        the other.
      potential: `potential(potential_params, map_params, x, y)`.
    """

    transport: Callable
    potential: Callable


def neural_transport_losses(
    cost_functional: Callable, transport: Callable, potential: Callable
) -> SaddleLosses:
    """The losses of `sup_v inf_T F(T) - E v(T(x)) + E v(y)`, weak and class-guided costs included.

        transport loss  F(x, T(x), *data) - mean v(T(x))
        potential loss  mean v(T(x)) - mean v(y)

    At the saddle T takes x to y at the least F. Some ten steps of T to one of v.

    Args:
      cost_functional: `F(x, tx, *data) -> scalar` of all samples, `x` and `tx` `[n, D]` (or
        `[c, s, D]` for `class_guided_cost`).
      transport: `T(params, x)` of samples.
      potential: `v(params, y)` of samples, a number for each.

    Returns:
      `SaddleLosses`; the potential's takes samples y of the target.

    Reference: Asadulaev, Korotin, Egiazarian, Mokrov and Burnaev, "Neural optimal transport with
    general cost functionals", ICLR, 2024.

    >>> import jax.numpy as jnp
    >>> losses = neural_transport_losses(
    ...     lambda x, tx: jnp.mean(jnp.sum((x - tx) ** 2, -1)),
    ...     lambda shift, x: x + shift, lambda slope, y: y @ slope)
    >>> x = jnp.zeros((4, 2))
    >>> float(losses.transport(jnp.ones(2), jnp.ones(2), x))  # 2 - 2
    0.0
    >>> float(losses.potential(jnp.ones(2), jnp.ones(2), x, x + 3))  # 2 - 6
    -4.0
    """
    def transport_loss(map_params: PyTree, potential_params: PyTree, x: jax.Array, *data: Any
                       ) -> jax.Array:
        tx = transport(map_params, x)
        return cost_functional(x, tx, *data) - jnp.mean(potential(potential_params, tx))

    def potential_loss(potential_params: PyTree, map_params: PyTree, x: jax.Array, y: jax.Array
                       ) -> jax.Array:
        tx = transport(map_params, x)
        return jnp.mean(potential(potential_params, tx)) - jnp.mean(potential(potential_params, y))

    return SaddleLosses(transport_loss, potential_loss)


def class_guided_cost(x: jax.Array, tx: jax.Array, y: jax.Array) -> jax.Array:
    """How far each class is from its labelled targets: an energy distance up to a constant.

        mean over classes of  mean |T(x_i) - y_j| - (1/2) mean_{i != k} |T(x_i) - T(x_k)|

    An unbiased estimate for sets of any size from 2 on, so sets of 2 will do; it is least where the
    distribution of T(x) in every class is that of y.

    Args:
      x: `[c, s, D]`, not looked at: the classes alone guide.
      tx: the images of s points of each of c classes `[c, s, D]`.
      y: labelled targets of the same classes `[c, m, D]`.

    Raises:
      ValueError: shapes; fewer than two points of a class.

    Reference: Asadulaev, Korotin, Egiazarian, Mokrov and Burnaev, "Neural optimal transport with
    general cost functionals", ICLR, 2024.

    >>> import jax.numpy as jnp
    >>> float(class_guided_cost(None, jnp.array([[[0.0], [2.0]]]), jnp.array([[[1.0]]])))
    0.0
    """
    del x
    if tx.ndim != 3 or y.ndim != 3 or tx.shape[0] != y.shape[0] or tx.shape[1] < 2:
        raise ValueError("tx and y must be [c, s, D] and [c, m, D], s at least 2, got shapes "
                         f"{tx.shape}, {y.shape}.")
    size = tx.shape[1]
    within = jnp.mean(_distances(tx, tx)) * (size / (size - 1))
    return jnp.mean(_distances(tx, y)) - within / 2


def _distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """`|x_ci - y_cj|`, `[c, s, m]`; of equal points 0, with a derivative of 0."""
    return jax.vmap(lambda x, y: PointCloud(x, y, euclidean).matrix())(x, y)


class Divergence(NamedTuple):
    """A functional of a density P in variational form, for `jko_losses`.

    `F(P) = sup_h mean image(log h(y), y) - mean reference(log h(z))`, y of P and z of a reference.

    Attributes:
      image: what samples of P say.
      reference: what samples of the reference say.
    """

    image: Callable
    reference: Callable


def kl_divergence(log_reference: Callable, log_target: Callable) -> Divergence:
    """`KL(P | Q)` for an unnormalised log density of Q: a flow that samples Q.

        sup_h  mean_P (log h + log mu - log q) - mean_mu h + 1,   at best h = dP/dmu

    Args:
      log_reference: log mu of samples `[n, D]`, normalised, such as that of a Gaussian about as
        wide as P; the reference samples are of mu.
      log_target: log q of samples.
    """
    return Divergence(
        lambda log_h, y: log_h + log_reference(y) - log_target(y),
        lambda log_h: jnp.expm1(log_h))


def js_divergence() -> Divergence:
    """The Jensen-Shannon divergence of P and samples of Q, which are the reference.

        sup_h  (1/2) mean_P log(h / (1 + h)) + (1/2) mean_Q log(1 / (1 + h)) + log 2

    at best `h = dP/dQ`; its logarithm is a classifier's logit.
    """
    half = 0.5
    return Divergence(
        lambda log_h, y: half * jax.nn.log_sigmoid(log_h) + jnp.log(jnp.ones((), log_h.dtype) * 2),
        lambda log_h: -half * jax.nn.log_sigmoid(-log_h))


def power_entropy(power: Any, density: Any) -> Divergence:
    """The generalised entropy `(1 / (m - 1)) int P^m`, whose flow is the porous medium's equation.

        sup_h  c^(m - 1) (m / (m - 1) mean_P h^(m - 1) - mean_U h^m),   at best h = P / c

    Args:
      power: m, above 1.
      density: c, that of the uniform distribution U of the reference samples, on a set that holds
        the support of P.

    Raises:
      ValueError: m <= 1 or c <= 0.
    """
    check_positive(power_minus_1=power - 1, density=density)
    m, level = power, density ** (power - 1)
    return Divergence(
        lambda log_h, y: level * m / (m - 1) * jnp.exp((m - 1) * log_h),
        lambda log_h: level * jnp.exp(m * log_h))


def jko_losses(
    kind: Divergence, step: Any, transport: Callable, log_potential: Callable
) -> SaddleLosses:
    """One step of a Wasserstein gradient flow, `min_T max_h E |x - T(x)|^2 / (2 step) + F(T, h)`.

    Minimise the potential's loss in h several times, then the transport's in T, in turn; the next
    density is that of T(x). Pushing samples through all maps so far samples any of the flow.

    Args:
      kind: `kl_divergence(...)`, `js_divergence()` or `power_entropy(...)`.
      step: size of the step in time, positive.
      transport: `T(params, x)` of samples `[n, D]`.
      log_potential: `log h(params, y)`, a number for each sample: h is positive whatever it says.

    Returns:
      `SaddleLosses`: `transport(map_params, potential_params, x)`, and
      `potential(potential_params, map_params, x, z)`, z samples of the reference. Minus the
      potential's loss is F, as far as h knows it.

    Raises:
      ValueError: step <= 0; under jit the transport's loss is NaN.

    Reference: Fan, Zhang, Taghvaei and Chen, "Variational Wasserstein gradient flow", ICML, 2022.

    >>> import jax.numpy as jnp
    >>> losses = jko_losses(js_divergence(), 0.1, lambda shift, x: x + shift,
    ...                     lambda slope, y: y @ slope)
    >>> x = jnp.zeros((4, 1))
    >>> round(float(losses.transport(jnp.ones(1), jnp.zeros(1), x)), 3)  # 1 / 0.2 + log(2) / 2
    5.347
    >>> float(losses.potential(jnp.zeros(1), jnp.ones(1), x, x))  # h = 1 knows of no difference
    0.0
    """
    check_positive(step=step)
    step = jnp.where(step > 0, step, jnp.nan)

    def value(potential_params: PyTree, tx: jax.Array) -> jax.Array:
        return jnp.mean(kind.image(log_potential(potential_params, tx), tx))

    def transport_loss(map_params: PyTree, potential_params: PyTree, x: jax.Array) -> jax.Array:
        tx = transport(map_params, x)
        moved = jnp.mean(jnp.sum((x - tx) ** 2, -1)) / (2 * step)
        return moved + value(potential_params, tx)

    def potential_loss(potential_params: PyTree, map_params: PyTree, x: jax.Array, z: jax.Array
                       ) -> jax.Array:
        tx = transport(map_params, x)
        reference = jnp.mean(kind.reference(log_potential(potential_params, z)))
        return reference - value(potential_params, tx)

    return SaddleLosses(transport_loss, potential_loss)
