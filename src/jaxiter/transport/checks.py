"""What transport asks of its inputs: errors where they are concrete, BAD_INPUT where not."""

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter.numerics import accumulation_dtype, is_concrete, strong
from jaxiter.solution import Status
from jaxiter.stop import StepInfo, Stop
from jaxiter.transport.geometry import Dense, Geometry, as_geometry
from jaxiter.transport.iteration import Marginals, nearest


def prepare(
    cost: Any, a: Any, b: Any, epsilon: Any, rho_a: Any, rho_b: Any
) -> tuple[Geometry, Marginals]:
    """Checked operands with strong types."""
    geometry = jax.tree.map(strong, as_geometry(cost))
    (n, m), dtype = geometry.shape, geometry.dtype
    a = jnp.full((n,), 1 / n, dtype) if a is None else strong(a).astype(dtype)
    b = jnp.full((m,), 1 / m, dtype) if b is None else strong(b).astype(dtype)
    for name, weights, size in (("a", a, n), ("b", b, m)):
        if weights.shape != (size,):
            raise ValueError(f"shape mismatch: cost is {(n, m)}, so {name} must have shape "
                             f"({size},), got {weights.shape}.")
    rhos = []
    for name, rho in (("rho_a", rho_a), ("rho_b", rho_b)):
        if is_concrete(rho) and not np.all(np.asarray(rho) > 0):
            raise ValueError(f"{name} must be positive, got {rho}.")
        constraint = is_concrete(rho) and np.all(np.isinf(np.asarray(rho)))
        rhos.append(None if constraint else jnp.asarray(rho, dtype))
    marginals = Marginals(a, b, jnp.asarray(epsilon, dtype), *rhos)
    _check(geometry, marginals)
    return geometry, balance(marginals)


def balance(marginals: Marginals) -> Marginals:
    """b rescaled to the mass of a; where they disagree epsilon is NaN, which is BAD_INPUT."""
    a, b, epsilon, _, _ = marginals
    if not marginals.balanced:
        return marginals
    if not is_concrete(a, b):
        epsilon = jnp.where(mass_agrees(a, b, a.dtype), epsilon, jnp.nan)
    return marginals._replace(b=b * (jnp.sum(a) / jnp.sum(b)), epsilon=epsilon)


def mass_agrees(a: Any, b: Any, dtype: Any) -> Any:
    """Whether two weight vectors have the same sum, up to the rounding of `dtype`."""
    slack = float(np.sqrt(jnp.finfo(dtype).eps))
    return abs(a.sum() - b.sum()) <= slack * abs(a.sum())


def sound(geometry: Geometry, marginals: Marginals) -> jax.Array:
    """What `_check` says in words, for values that are not concrete."""
    a, b, epsilon, rho_a, rho_b = marginals
    weights = jnp.all(a >= 0) & jnp.all(b >= 0) & jnp.isfinite(jnp.sum(a) + jnp.sum(b))
    # NaN, -inf, and rows without an admissible partner all show in the smallest cost.
    rows = jnp.all(jnp.isfinite(nearest(geometry, b)) | (a <= 0))
    columns = jnp.all(jnp.isfinite(nearest(geometry.T, a)) | (b <= 0))
    valid = weights & (jnp.sum(a) > 0) & rows & columns & (epsilon > 0) & jnp.isfinite(epsilon)
    for rho in (rho_a, rho_b):
        valid &= jnp.bool_(True) if rho is None else rho > 0
    return valid


def _check(geometry: Geometry, marginals: Marginals) -> None:
    """Errors for concrete input; what cannot be read here becomes BAD_INPUT."""
    a, b, epsilon, _, _ = marginals
    if is_concrete(epsilon) and not np.all(np.asarray(epsilon) > 0):
        raise ValueError(f"epsilon must be positive, got {epsilon}.")
    for name, weights in (("a", a), ("b", b)):
        if is_concrete(weights):
            host = np.asarray(weights)
            if not np.all(host >= 0):
                raise ValueError(f"{name} has negative or NaN entries: {host.min()}.")
            if host.sum() == 0:
                raise ValueError(f"{name} sums to 0; give it some mass.")
    if marginals.balanced and is_concrete(a, b) and not mass_agrees(
            np.asarray(a), np.asarray(b), a.dtype):
        raise ValueError(f"sum(a)={float(a.sum()):g} differs from sum(b)={float(b.sum()):g}; "
                         "pass rho_a/rho_b (unbalanced) or normalise.")
    if isinstance(geometry, Dense) and is_concrete(geometry.cost):
        _check_cost(np.asarray(geometry.cost), a, b)


def _check_cost(host: np.ndarray, a: jax.Array, b: jax.Array) -> None:
    if np.any(np.isnan(host)):
        raise ValueError("cost contains NaN.")
    if np.any(host == -np.inf):
        raise ValueError("cost contains -inf; only +inf (a forbidden pair) is allowed.")
    if not is_concrete(a, b):
        return
    allowed = host < np.inf
    support = np.asarray(a) > 0, np.asarray(b) > 0
    for side, ok, positive in (("row", allowed[:, support[1]].any(1), support[0]),
                               ("column", allowed[support[0]].any(0), support[1])):
        if np.any(positive & ~ok):
            other = "column" if side == "row" else "row"
            raise ValueError(f"{side} {int(np.argmax(positive & ~ok))} has no admissible {other}: "
                             "it has mass, and every cost there is +inf.")


def warn_below_floor(
    stop: Stop, method: str, geometry: Geometry, marginals: Marginals
) -> None:
    """Warn when a concrete problem cannot reach its tolerance in the log domain."""
    if method != "log" or not is_concrete((geometry, marginals)):
        return
    if not isinstance(geometry, Dense):
        return
    host = np.asarray(geometry.cost)
    largest = np.max(np.abs(host[host < np.inf]), initial=0.0)
    epsilon, mass = float(marginals.epsilon), float(np.asarray(marginals.a).sum())
    floor = 0.1 * float(jnp.finfo(host.dtype).eps) * mass * (1 + largest / epsilon)
    kind = accumulation_dtype(host.dtype)
    with jax.ensure_compile_time_eval():
        merit, scale = jnp.asarray(floor, kind), jnp.asarray(mass, kind)
        info = StepInfo(
            jnp.int32(1), marginals.b, marginals.b, merit, scale, merit, jnp.bool_(True))
        status = stop.update(info, stop.init(info))[0]
    if int(status) != Status.CONVERGED:
        warnings.warn(
            f"the tolerance is below the floating-point floor of the log domain, a marginal "
            f"error of about {floor:.1e} here; expect PRECISION_FLOOR, or use method='kernel', a "
            "larger epsilon or float64.", stacklevel=3)
