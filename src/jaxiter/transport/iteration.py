"""Sinkhorn's iteration on the target potentials, as two Problems: log domain and kernel.

Potentials inside the package are those of the "ab" convention,
`P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)`, because they stay finite at zero
weights. One step is `g -> f(g) -> g'`: both potentials, two reads of the cost.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from jaxiter.numerics import HIGHEST, logsumexp, machine_epsilon
from jaxiter.problem import Problem
from jaxiter.transport.geometry import Geometry

#: A scaling may grow by exp(60) between two absorptions; float32 overflows at exp(88).
LARGEST_LOG_SCALING = 60.0
#: Below this a row or column of the kernel has lost its mass to underflow.
LOST = 1e-30
#: Every so many steps the kernel absorbs the scalings if one has grown by more than
#: exp(LARGEST_DRIFT): what has underflowed in it is then still exp(-60) of the mass.
REFRESH, LARGEST_DRIFT = 20, 8.0


class Marginals(NamedTuple):
    """Weights `[n]`, `[m]`, epsilon, and the strengths of the marginal penalties.

    A rho of None is a constraint (rho = inf), which is thereby known statically.
    """

    a: jax.Array
    b: jax.Array
    epsilon: jax.Array
    rho_a: jax.Array | None = None
    rho_b: jax.Array | None = None

    @property
    def balanced(self) -> bool:
        """Whether both marginals are constraints; known statically."""
        return self.rho_a is None and self.rho_b is None

    @property
    def damping(self) -> tuple[Any, Any]:
        """`rho / (rho + epsilon)` of both sides; 1 for a constraint."""

        def side(rho: jax.Array | None) -> Any:
            return 1.0 if rho is None else rho / (rho + self.epsilon)

        return side(self.rho_a), side(self.rho_b)


def sources(g: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    """f(g) `[n]`: the source potentials that are optimal for g."""
    return marginals.damping[0] * geometry.softmin(g, marginals.b, marginals.epsilon)


def targets(f: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    """g(f) `[m]`: the target potentials that are optimal for f."""
    return marginals.damping[1] * geometry.T.softmin(f, marginals.a, marginals.epsilon)


def translation(f: jax.Array, g: jax.Array, marginals: Marginals) -> Any:
    """The constant s for which (f + s, g - s) is optimal; 0 unless both penalties are finite.

    Reference: Sejourne, Vialard and Peyre, "Faster unbalanced optimal transport", 2022.
    """
    ra, rb = marginals.rho_a, marginals.rho_b
    if ra is None or rb is None:
        return 0.0
    return ra * rb / (ra + rb) * (
        logsumexp(-f / ra, 0, marginals.a) - logsumexp(-g / rb, 0, marginals.b))


def column_error(g: jax.Array, image: jax.Array, marginals: Marginals) -> jax.Array:
    """`sum |P^T 1 - b|` (unbalanced: `- b exp(-g / rho_b)`) for the plan of (f(g), g).

    The rows of that plan are exact, and its column sums are `b exp((g - g') / epsilon)`:
    no pass over the cost is needed.
    """
    _, b, epsilon, _, rho_b = marginals
    target = b if rho_b is None else b * jnp.exp(-g / rho_b)
    ratio = (g - image) / (epsilon * marginals.damping[1])
    return jnp.sum(jnp.where(b > 0, target * jnp.abs(jnp.expm1(ratio)), 0))


def _mass(g: jax.Array, image: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    del g, image, geometry
    return jnp.sum(marginals.a)


def log_floor(g: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    """Rounding of the potentials perturbs every entry of the plan by eps max(C) / epsilon."""
    reach = geometry.largest() / marginals.epsilon
    return 0.1 * machine_epsilon(g) * jnp.sum(marginals.a) * (1 + reach)


def log_problem(valid: Any = None) -> Problem:
    """The iteration in the log domain: any geometry, any epsilon; two exponentials an entry."""

    def step(g: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
        f = sources(g, geometry, marginals)
        image = targets(f, geometry, marginals)
        return image - translation(f, image, marginals)

    return Problem(
        step=step, scale=_mass, floor=log_floor, valid=valid,
        merit=lambda g, image, geometry, marginals: column_error(g, image, marginals))


class Kernel(NamedTuple):
    """`K_ij = exp((f_i + g_j - C_ij) / epsilon)` for reference potentials f, g.

    g is +inf where b is 0: such columns take no part.
    """

    matrix: jax.Array
    f: jax.Array
    g: jax.Array
    inverse_epsilon: jax.Array


def absorb(g: jax.Array, geometry: Geometry, marginals: Marginals) -> Kernel:
    """The kernel at g, each row divided by its largest entry: one exponential an entry."""
    cost = geometry.matrix()
    reduced = jnp.where(marginals.b > 0, g, -jnp.inf) - cost  # -inf at forbidden pairs
    peak = jnp.max(reduced, axis=1)
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    inverse = 1 / marginals.epsilon
    g = jnp.where(marginals.b > 0, g, jnp.inf)
    return Kernel(jnp.exp((reduced - peak[:, None]) * inverse), -peak, g, inverse)


class _Rows(NamedTuple):
    """The products of a half step: `u = 1 / rows` without damping; whether float range was left."""

    sums: jax.Array
    clipped: jax.Array


def _rows(g: jax.Array, kernel: Kernel, marginals: Marginals) -> _Rows:
    # Step and merit both call this, and XLA must see one product. So nothing here may be
    # a constant of the loop that it would compute ahead, once for each of them.
    log_v = (g - kernel.g) * kernel.inverse_epsilon
    v = jnp.exp(jnp.minimum(log_v, LARGEST_LOG_SCALING))
    sums = jnp.matmul(kernel.matrix, marginals.b * v, precision=HIGHEST)
    clipped = jnp.any((sums < LOST) & (marginals.a > 0)) | jnp.any(log_v > LARGEST_LOG_SCALING)
    return _Rows(jnp.maximum(sums, LOST), clipped)


def _column_sums(u: jax.Array, matrix: jax.Array) -> jax.Array:
    """`u @ matrix`, by up to 8 groups of rows: on a CPU 1.0 to 1.1 reads instead of up to 1.8.

    A small matrix is one group: there it gains nothing, and a batch of them would lose. Where an
    explicit mesh shards the rows, every device sums its own and one reduction adds them.
    """
    n, m = matrix.shape
    sharding = jax.typeof(matrix).sharding
    if sharding.spec[0] is not None:
        out = NamedSharding(sharding.mesh, PartitionSpec(sharding.spec[1]))
        return jnp.matmul(u, matrix, precision=HIGHEST, out_sharding=out)
    if n * m < 2**18:
        return jnp.matmul(u, matrix, precision=HIGHEST)
    groups = max(k for k in range(1, 9) if n % k == 0)
    return jnp.sum(jnp.einsum(
        "kr,krm->km", u.reshape(groups, -1), matrix.reshape(groups, -1, m), precision=HIGHEST), 0)


def kernel_problem(valid: Any = None) -> Problem:
    """The same iteration on an absorbed kernel: two products with it a step, no exponentials.

    Source: Schmitzer, "Stabilized sparse scaling algorithms for entropy regularized
    transport problems", 2019; absorption is considered on a fixed schedule, so that vmap
    stays fast.
    """

    def step(g: jax.Array, kernel: Kernel, geometry: Geometry, marginals: Marginals) -> jax.Array:
        del geometry
        a, b, epsilon, _, _ = marginals
        damp_a, damp_b = marginals.damping
        rows = _rows(g, kernel, marginals).sums
        if marginals.rho_a is None:
            u = 1 / rows
        else:
            u = jnp.exp(-damp_a * jnp.log(rows) + (damp_a - 1) * kernel.f / epsilon)
        columns = _column_sums(a * u, kernel.matrix)
        image = damp_b * (kernel.g - epsilon * jnp.log(jnp.maximum(columns, LOST)))
        if marginals.rho_a is not None and marginals.rho_b is not None:
            f = kernel.f + epsilon * jnp.log(u)
            image = image - translation(f, image, marginals)
        return jnp.where(b > 0, image, g)

    def merit(
        g: jax.Array, image: jax.Array, kernel: Kernel, geometry: Geometry, marginals: Marginals
    ) -> jax.Array:
        del geometry
        # Where a scaling was clipped the rows are not exact; the next absorption mends it.
        # The product here is that of the step: XLA computes it once.
        clipped = _rows(g, kernel, marginals).clipped
        error = column_error(g, image, marginals)
        return jnp.where(clipped, jnp.maximum(error, jnp.sum(marginals.a)), error)

    def floor(g: jax.Array, kernel: Kernel, geometry: Geometry, marginals: Marginals) -> jax.Array:
        del kernel, geometry
        return 4 * machine_epsilon(g) * jnp.sum(marginals.a)

    def stale(g: jax.Array, kernel: Kernel, geometry: Geometry, marginals: Marginals) -> jax.Array:
        del geometry
        drift = jnp.abs(g - kernel.g) * kernel.inverse_epsilon
        return jnp.any((drift > LARGEST_DRIFT) & (marginals.b > 0))

    return Problem(
        step=step, cache=absorb, refresh=REFRESH, stale=stale, merit=merit, floor=floor,
        scale=lambda g, image, kernel, *rest: _mass(g, image, *rest), valid=valid)


def nearest(geometry: Geometry, weights: jax.Array) -> jax.Array:
    """`min_j C_ij` over j of positive weight, `[n]`; not finite for a row that makes no sense."""
    return geometry.over_rows(
        lambda cost: jnp.min(jnp.where(weights > 0, cost, jnp.inf), axis=1))


def start(geometry: Geometry, marginals: Marginals) -> jax.Array:
    """`g_j = min_i C_ij`: no column of the first kernel is empty, and no exponential is spent."""
    smallest = nearest(geometry.T, marginals.a)
    return jnp.where(jnp.isfinite(smallest), smallest, 0)
