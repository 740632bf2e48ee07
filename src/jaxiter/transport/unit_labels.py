"""Labels in given numbers: pixels are shared out among labelled points of unequal supply."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.known import known
from jaxiter.numerics import on_own_mesh, stop_gradient
from jaxiter.options import SolveOptions, choose
from jaxiter.reuse import reused
from jaxiter.solution import Solution, Status, reports
from jaxiter.stop import tolerance
from jaxiter.transport.checks import (
    MAX_STEPS,
    NO_RESUME,
    check_cost,
    check_partners,
    check_signs,
    mass_agrees,
)
from jaxiter.transport.sinkhorn import sinkhorn


@reports
class UnitLabels(NamedTuple):
    """Labels in given numbers.

    Attributes:
      labels: the supplier of each pixel `[N]` (int32); -1 where the mask says no, and where the
        input makes no sense.
      potential: of the suppliers `[k]`, in units of the cost: the label is the largest
        `potential - cost`.
      solve: the `Solution` of the transport.
    """

    labels: jax.Array
    potential: jax.Array
    solve: Solution


@reused
@on_own_mesh
def unit_assignment(
    cost: jax.Array,
    units: jax.Array,
    mask: jax.Array | None = None,
    *,
    epsilon: Any = 1e-3,
    **options: Unpack[SolveOptions],
) -> UnitLabels:
    """Share out pixels among k suppliers, `units` of them each, as cheaply as can be.

        min <C, P> + epsilon KL(P | a b^T),   P 1 = units,   P^T 1 = mask;   label = argmax_k P_kn

    Pixels that the mask leaves out take part by weight 0, not by a small one. Where the plan
    splits pixels, labels are in the numbers asked for up to those: their count falls with epsilon.

    Args:
      cost: `[k, N]`, such as that of `geodesic_cost`; +inf forbids.
      units: `[k]`, not negative, whose sum is the number of pixels in the mask.
      mask: `[N]` boolean; default all.
      epsilon: in units of the cost.
      **options: as in `sinkhorn`; default `stop`: an l1 error of both marginals of a thousandth
        of the pixels. No `adjoint`: labels have no derivatives.

    Raises:
      ValueError: supply and demand that differ, negative units, what `sinkhorn` refuses; under
        jit BAD_INPUT.

    Reference: Li et al., "Point-supervised panoptic segmentation via optimal transport", 2023
    (Point2Mask).

    >>> import jax.numpy as jnp
    >>> cost = jnp.array([[0.1, 0.2, 0.3, 0.9], [0.5, 0.5, 0.5, 0.5]])
    >>> unit_assignment(cost, jnp.array([2.0, 2.0])).labels.tolist()
    [0, 0, 1, 1]
    """
    chosen = choose("unit_assignment", options, {
        **NO_RESUME, "adjoint": "labels have no derivatives"},
        stop=tolerance(rtol=1e-3, atol=0.0), max_steps=MAX_STEPS)
    if cost.ndim != 2 or units.shape != cost.shape[:1] or (
            mask is not None and mask.shape != cost.shape[1:]):
        raise ValueError(f"cost must be [k, N], units [k] and mask [N], got shapes {cost.shape}, "
                         f"{units.shape}, {None if mask is None else mask.shape}.")
    wanted = np.ones(cost.shape[1], bool) if mask is None else mask
    known(_check_supply, units, wanted)
    known(check_cost, cost)
    known(check_partners, cost, units, wanted)
    cost, units = stop_gradient((cost.astype(jnp.float32), units.astype(jnp.float32)))
    demand = jnp.ones(cost.shape[1:], jnp.float32) if mask is None else mask.astype(jnp.float32)
    out = sinkhorn(cost, units, demand, epsilon=epsilon, **chosen._asdict())
    labels = jnp.argmax(out.f[:, None] - cost, axis=0).astype(jnp.int32)
    sensible = (out.status != Status.BAD_INPUT) & (out.status != Status.NONFINITE)
    return UnitLabels(jnp.where((demand > 0) & sensible, labels, -1), out.f, out.solve)


def _check_supply(units: Any, mask: Any) -> None:
    units, demand = np.asarray(units, np.float64), float(np.asarray(mask).sum())
    check_signs("units", units)
    if not mass_agrees(units, np.asarray([demand]), np.float32):
        raise ValueError(f"supply {units.sum():g}, demand {demand:g}: give an explicit slack "
                         "supplier for the pixels that are nobody's.")
