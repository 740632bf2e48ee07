"""`relative`: an epsilon in units of the mean cost."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp

from jaxiter.known import check_positive
from jaxiter.numerics import stop_gradient
from jaxiter.transport.geometry import Geometry


class Relative(eqx.Module):
    """What `relative` returns: stands for an epsilon until the cost is known."""

    factor: Any


def relative(factor: Any) -> Relative:
    """An epsilon of `factor` times the mean cost, for `epsilon=` of the transport solves.

        epsilon = factor sum_ij a_i b_j C_ij / sum_ij a_i b_j,    over the pairs that are allowed

    The plan then does not change when the cost is rescaled, though it does when a constant is
    added to it. A constant for derivatives. 0.05 is blurred, 0.005 sharp.

    Args:
      factor: positive; may be traced.

    Raises:
      ValueError: a factor that is not positive, where it is known. A cost whose mean is not
        positive has no such epsilon: the solve then says so as of any epsilon.

    Source: Cuturi, Meng-Papaxanthos, Tian, Bunne, Davis and Teboul, "Optimal transport tools
    (OTT): a JAX toolbox for all things Wasserstein", 2022 (its `relative_epsilon="mean"`).

    >>> import jax.numpy as jnp, jaxiter
    >>> cost = jnp.array([[0.0, 1.0], [1.0, 0.0]])
    >>> out = jaxiter.transport.sinkhorn(100 * cost, epsilon=relative(0.2))
    >>> bool(jnp.allclose(out.plan(), jaxiter.transport.sinkhorn(cost, epsilon=0.1).plan()))
    True
    """
    check_positive(factor=factor)
    return Relative(factor)


def resolved(epsilon: Any, geometry: Geometry, a: jax.Array, b: jax.Array) -> Any:
    """The number that an epsilon stands for at this cost and these weights `[n]`, `[m]`."""
    if not isinstance(epsilon, Relative):
        return epsilon
    mean = geometry.mean(*stop_gradient((a, b)))
    return jnp.asarray(epsilon.factor, geometry.dtype) * stop_gradient(mean)
