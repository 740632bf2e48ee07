"""Transport of a part of the mass: the rest goes to a point that costs nothing."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.known import check_floating, check_positive, known
from jaxiter.numerics import on_own_mesh, strong
from jaxiter.options import SolveOptions
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.transport.checks import check_cost, check_signs
from jaxiter.transport.sinkhorn import sinkhorn


@reports
class PartialTransport(NamedTuple):
    """What `partial_transport` has found.

    Attributes:
      coupling: the plan `[n, m]` of the mass that moves, also as `plan()`.
      transport_cost: `<C, P>`.
      left: what stays at the sources, `[n]`.
      missing: what the targets do not get, `[m]`.
      solve: the Solution of the balanced problem with the point that costs nothing.
    """

    coupling: jax.Array
    transport_cost: jax.Array
    left: jax.Array
    missing: jax.Array
    solve: Solution

    def plan(self) -> jax.Array:
        """The plan `[n, m]`, of sum `mass`."""
        return self.coupling


@reused
@on_own_mesh
def partial_transport(
    cost: jax.Array, a: jax.Array, b: jax.Array, mass: Any, *, epsilon: Any,
    **options: Unpack[SolveOptions],
) -> PartialTransport:
    """The cheapest way to move some mass: `min <C, P>`, `P 1 <= a`, `P^T 1 <= b`, `sum P = mass`.

    A source and a target that cost nothing take what does not move, and nothing goes from the one
    to the other: a balanced problem of `[n + 1, m + 1]`, solved by `sinkhorn`. Its entropy counts
    what stays as well, so that epsilon blurs both choices, where to and whether.

    Args:
      cost: `[n, m]`, +inf forbids a pair.
      a, b: weights `[n]`, `[m]`, at least 0, of any sums.
      mass: what moves, in (0, min(sum a, sum b)].
      epsilon: regularisation in units of the cost.
      **options: as in `sinkhorn`.

    Returns:
      A `PartialTransport`, with derivatives as those of `sinkhorn`.

    Raises:
      ValueError: shapes that do not fit, NaN costs, negative weights, a mass that is not positive
        or larger than what there is. Under jit: BAD_INPUT. TypeError: a cost that is not floating
        point.

    Reference: Caffarelli and McCann, "Free boundaries in optimal transport and Monge-Ampere
    obstacle problems", Ann. Math. 171, 2010; Chapel, Alaya and Gasso, "Partial optimal transport
    with applications on positive-unlabeled learning", NeurIPS, 2020.

    >>> import jax.numpy as jnp
    >>> cost, half = jnp.array([[0.0, 9.0], [9.0, 5.0]]), jnp.array([0.5, 0.5])
    >>> partial_transport(cost, half, half, 0.5, epsilon=0.1).plan().round(3).tolist()
    [[0.5, 0.0], [0.0, 0.0]]
    """
    known(check_cost, cost)
    cost = strong(cost)
    check_floating(cost=cost)
    if cost.ndim != 2 or cost.shape != (*np.shape(a), *np.shape(b)):
        raise ValueError(f"cost must be a matrix [n, m] for weights [n] and [m], got {cost.shape}, "
                         f"{np.shape(a)} and {np.shape(b)}.")
    check_positive(mass=mass)
    known(_check_mass, a, b, mass)
    a, b = (strong(weights).astype(cost.dtype) for weights in (a, b))
    mass, one = jnp.asarray(mass, cost.dtype), jnp.ones(1, cost.dtype)
    # A NaN weight is BAD_INPUT; an infinite mass would forgive any difference below.
    mass = jnp.where((mass > 0) & jnp.isfinite(mass), mass, jnp.nan)
    # Rounding may leave a little less than nothing where everything moves.
    slack = 1e-6 * mass
    rest = [jnp.where(jnp.abs(more) <= slack, 0, more)
            for more in (jnp.sum(b) - mass, jnp.sum(a) - mass)]
    bordered = jnp.pad(cost, ((0, 1), (0, 1))).at[-1, -1].set(jnp.inf)
    out = sinkhorn(bordered, jnp.append(a, rest[0] * one), jnp.append(b, rest[1] * one),
                   epsilon=epsilon, **options)
    plan = out.plan()
    moved = plan[:-1, :-1]
    paid = jnp.sum(jnp.where(moved > 0, moved * jnp.where(moved > 0, cost, 0), 0))
    return PartialTransport(moved, paid, plan[:-1, -1], plan[-1, :-1], out.solve)


def _check_mass(a: Any, b: Any, mass: Any) -> None:
    for name, weights in (("a", a), ("b", b)):
        host = np.asarray(weights)
        check_signs(name, host)
        if float(mass) > host.sum() * (1 + 1e-6):
            raise ValueError(f"mass {float(mass):g} is more than sum({name})={host.sum():g}.")
