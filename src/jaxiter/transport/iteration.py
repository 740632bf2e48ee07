"""Sinkhorn's iteration on the target potentials, as two Problems: log domain and kernel.

Their x is g in units of about epsilon (`in_units`), whatever the scale of the costs.

Potentials inside the package are those of the "ab" convention,
`P_ij = a_i b_j exp((f_i + g_j - C_ij) / epsilon)`, because they stay finite at zero
weights; C is the reduced cost, and what was taken out of it stands in `Marginals`. One step
is `g -> f(g) -> g'`: both potentials, two reads of the cost.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from jaxiter.numerics import HIGHEST, logsumexp, machine_epsilon, pin
from jaxiter.problem import Problem
from jaxiter.solution import Solution
from jaxiter.transport.geometry import Geometry

#: A scaling may grow by exp(60) between two absorptions; float32 overflows at exp(88).
LARGEST_LOG_SCALING = 60.0
#: An entry of the kernel, exp of this, may be so much larger than its column is light.
LARGEST_ENTRY = 60.0
#: Below this a row or column of the kernel has lost its mass to underflow.
LOST = 1e-30
#: Every so many steps the kernel absorbs the scalings if one has grown by more than
#: exp(LARGEST_DRIFT): what has underflowed in it is then still exp(-60) of the mass.
REFRESH, LARGEST_DRIFT = 20, 8.0


class Marginals(NamedTuple):
    """Weights `[n]`, `[m]`, epsilon, the strengths of the marginal penalties, and the shifts.

    A rho of None is a constraint (rho = inf), which is thereby known statically. `rows` and
    `columns` are what was taken out of the cost: the potentials of the given cost are f + rows and
    g + columns, and the penalties act on those. `blur` is how far rounding blurs the cost, summed
    over the mass. None is 0. `unit` is what potentials are iterated in: computed inside a loop,
    step and merit would each get their own, and with it their own product.
    """

    a: jax.Array
    b: jax.Array
    epsilon: jax.Array
    rho_a: jax.Array | None = None
    rho_b: jax.Array | None = None
    rows: jax.Array | None = None
    columns: jax.Array | None = None
    blur: jax.Array | None = None
    unit: Any = None

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

    @property
    def T(self) -> "Marginals":  # noqa: N802 (numpy's name)
        """Sources and targets exchanged."""
        return Marginals(self.b, self.a, self.epsilon, self.rho_b, self.rho_a, self.columns,
                         self.rows, self.blur, self.unit)

    def at(self, epsilon: jax.Array) -> "Marginals":
        """The same for this epsilon and the `unit` for it: a power of two rounds nothing."""
        fixed, info = lax.stop_gradient(epsilon), jnp.finfo(epsilon.dtype)
        unit = jnp.clip(lax.reduce_precision(fixed, info.nexp, 0), info.tiny, info.max / 4)
        return self._replace(epsilon=epsilon, unit=unit)

    def given(self, f: jax.Array) -> jax.Array:
        """The source potentials of the given cost."""
        return f if self.rows is None else f + self.rows

    def held(self, f: jax.Array) -> jax.Array:
        """The source marginal that is optimal for f `[n]`: a, or `a exp(-f / rho_a)`."""
        return self.a if self.rho_a is None else self.a * jnp.exp(-self.given(f) / self.rho_a)

    def damped(self, f: jax.Array) -> jax.Array:
        """Source potentials that are optimal under the penalty, from those of a constraint."""
        if self.rho_a is None:
            return f
        damping = self.damping[0]
        return damping * f if self.rows is None else damping * f + (damping - 1) * self.rows


def sources(g: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    """f(g) `[n]`: the source potentials that are optimal for g."""
    return marginals.damped(geometry.softmin(g, marginals.b, marginals.epsilon))


def targets(f: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    """g(f) `[m]`: the target potentials that are optimal for f."""
    return sources(f, geometry.T, marginals.T)


def translation(f: jax.Array, g: jax.Array, marginals: Marginals) -> Any:
    """The constant s for which (f + s, g - s) is optimal; 0 unless both penalties are finite.

    Reference: Sejourne, Vialard and Peyre, "Faster unbalanced optimal transport", 2022.
    """
    ra, rb = marginals.rho_a, marginals.rho_b
    if ra is None or rb is None:
        return 0.0
    f, g = marginals.given(f), marginals.T.given(g)
    # Nowhere a product of two strengths: it would leave the float range long before they do.
    return ra * (rb / (ra + rb)) * (
        logsumexp(-f / ra, 0, marginals.a) - logsumexp(-g / rb, 0, marginals.b))


def column_error(g: jax.Array, image: jax.Array, marginals: Marginals) -> jax.Array:
    """`sum |P^T 1 - b|` (unbalanced: `- b exp(-g / rho_b)`) for the plan of (f(g), g).

    The rows of that plan are exact, and its column sums are `b exp((g - g') / epsilon)`:
    no pass over the cost is needed. What rounding adds in the returned potentials is counted in,
    up to three times the error: where it is more, no further step could help.
    """
    ratio = (g - image) / (marginals.epsilon * marginals.damping[1])
    error = jnp.abs(jnp.expm1(ratio)) * marginals.T.held(g)
    error = jnp.sum(jnp.where(marginals.b > 0, error, 0))
    return with_rounding(error, rounding(g, marginals))


def with_rounding(error: jax.Array, lost: jax.Array) -> jax.Array:
    """A marginal error, and what rounding adds to it; at most four times the error."""
    return error + jnp.minimum(lost, 3 * error)


def rounding(g: jax.Array, marginals: Marginals) -> jax.Array:
    """The marginal error that rounding potentials like these to floats makes, about.

    A rounded number is off by a sixth of an epsilon of its size on average, and up to a half, in
    rows and in columns; f is taken to be as large as g.
    """
    a, b = marginals.a, marginals.b
    # With penalties the plan may hold more than the weights do.
    more = 1 if marginals.balanced else jnp.sum(marginals.T.held(g)) / jnp.sum(b)
    rows, columns = (
        epsilon_log + (0 if part is None else part) for epsilon_log, part in (
            (log_weights(a, marginals.epsilon), marginals.rows),
            (log_weights(b, marginals.epsilon), marginals.columns)))
    middle = jnp.zeros_like(marginals.epsilon)
    if marginals.balanced:
        middle = jnp.sum(jnp.where(a > 0, rows, 0)) / jnp.sum((a > 0).astype(a.dtype))
    size = (2 * weighted(b, jnp.abs(g)) + weighted(a, jnp.abs(rows - middle))
            + weighted(b, jnp.abs(columns + middle)))
    lost = machine_epsilon(g) / 3 * size
    if marginals.blur is not None:
        lost = lost + marginals.blur
    # Twice, for the potentials of the iteration and for those returned; and exponentials and sums
    # of floats, with the margin that the last look keeps.
    return more * (2 * lost / marginals.epsilon + 12 * machine_epsilon(g) * jnp.sum(a))


def log_weights(weights: jax.Array, epsilon: Any) -> jax.Array:
    """`epsilon log(weights)`; 0 where the weight is 0."""
    return epsilon * jnp.log(jnp.where(weights > 0, weights, 1))


def weighted(weights: jax.Array, potential: jax.Array) -> jax.Array:
    """`<weights, potential>` where 0 * -inf is 0."""
    return jnp.sum(jnp.where(weights > 0, weights * jnp.where(weights > 0, potential, 0), 0))


def floor(g: jax.Array, marginals: Marginals) -> jax.Array:
    """Where the iteration cannot go on: rounding of the potentials that it carries."""
    held = marginals.T.held(g)
    size = weighted(held, jnp.abs(g)) / marginals.epsilon
    lost = 2 * machine_epsilon(g) * (jnp.sum(held) + size)
    return with_rounding(lost, rounding(g, marginals))


def _mass(g: jax.Array, image: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    del g, image, geometry
    return jnp.sum(marginals.a)


def in_units(problem: Problem) -> Problem:
    """The problem for potentials in units: whatever the costs, their squares do not overflow."""

    def taking(points: int, function: Any) -> Any:
        def scaled(*operands: Any) -> Any:
            one = operands[-1].unit
            return function(
                *jax.tree.map(lambda x: x * one, operands[:points]), *operands[points:])

        return None if function is None else scaled

    def step(x: Any, *rest: Any) -> Any:
        out, one = taking(1, problem.step)(x, *rest), rest[-1].unit
        # Only the potentials: with a memory, the step returns a pair.
        point, *memory = (out,) if problem.memory is None else out
        point = jax.tree.map(lambda x: x / one, point)
        return (point, *memory) if memory else point

    return problem._replace(
        step=step, merit=taking(2, problem.merit), scale=taking(2, problem.scale),
        floor=taking(1, problem.floor), cache=taking(1, problem.cache),
        stale=taking(1, problem.stale), memory=taking(1, problem.memory))


def from_units(solve: Solution, marginals: Marginals) -> Solution:
    """The solution in units of the cost, without what only the driver can use."""
    one = marginals.unit
    value = jax.tree.map(lambda x: x * one, solve.value)
    return solve._replace(value=value, residual=solve.residual * one.astype(solve.residual.dtype),
                          displacement=None, state=None)


def both(g: jax.Array, geometry: Geometry, marginals: Marginals) -> jax.Array:
    """One step: f(g), and g of that."""
    f = sources(g, geometry, marginals)
    image = targets(f, geometry, marginals)
    return image - translation(f, image, marginals)


def log_problem(valid: Any = None, step: Any = both) -> Problem:
    """The iteration in the log domain: any geometry, any epsilon; two exponentials an entry."""
    return in_units(Problem(
        step=step, scale=_mass, valid=valid,
        floor=lambda g, geometry, marginals: floor(g, marginals),
        merit=lambda g, image, geometry, marginals: column_error(g, image, marginals)))


class Kernel(NamedTuple):
    """`K_ij = exp((f_i + g_j - C_ij) / epsilon)` for reference potentials f, g.

    g is +inf where b is 0: such columns take no part.
    """

    matrix: jax.Array
    f: jax.Array
    g: jax.Array
    inverse_epsilon: jax.Array


def absorb(g: jax.Array, geometry: Geometry, marginals: Marginals) -> Kernel:
    """The kernel at g, each row divided by its largest share of mass: one exponential an entry.

    Not by its largest entry: that may stand in a column of next to no weight, and beside it all
    that carries mass would underflow.
    """
    # Pinned: a shifted cost is not kept in memory from one absorption to the next.
    cost = pin(geometry, g).matrix()
    reduced = jnp.where(marginals.b > 0, g, -jnp.inf) - cost
    least = jnp.finfo(g.dtype).tiny
    logs = marginals.epsilon * jnp.log(jnp.maximum(marginals.b, least))
    # Taken apart, or XLA computes it anew for every entry.
    logs = lax.optimization_barrier(logs)
    peak = jnp.max(reduced + logs, axis=1)
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    inverse = 1 / marginals.epsilon
    g = jnp.where(marginals.b > 0, g, jnp.inf)
    exponent = jnp.minimum((reduced - peak[:, None]) * inverse, LARGEST_ENTRY)
    return Kernel(jnp.exp(exponent), -peak, g, inverse)


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
        a, b, epsilon = marginals[:3]
        rows = _rows(g, kernel, marginals).sums
        if marginals.rho_a is None:
            u = 1 / rows
        else:
            damping, full = marginals.damping[0], marginals.given(kernel.f)
            u = jnp.exp(-damping * jnp.log(rows) + (damping - 1) * full / epsilon)
        columns = _column_sums(a * u, kernel.matrix)
        columns = jnp.clip(columns, LOST, 1 / LOST)
        image = marginals.T.damped(kernel.g - epsilon * jnp.log(columns))
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

    def stale(g: jax.Array, kernel: Kernel, geometry: Geometry, marginals: Marginals) -> jax.Array:
        del geometry
        drift = jnp.abs(g - kernel.g) * kernel.inverse_epsilon
        return jnp.any((drift > LARGEST_DRIFT) & (marginals.b > 0))

    return in_units(Problem(
        step=step, cache=absorb, refresh=REFRESH, stale=stale, merit=merit, valid=valid,
        floor=lambda g, kernel, geometry, marginals: floor(g, marginals),
        scale=lambda g, image, kernel, *rest: _mass(g, image, *rest)))
