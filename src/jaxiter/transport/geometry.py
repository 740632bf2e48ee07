"""Costs between n sources and m targets, and the reductions that transport needs of them.

A geometry answers `softmin` (one half of Sinkhorn's iteration in the log domain), `weigh` (the
plan of given potentials against vectors) and `totals` (its sums); over the first axis, ask its
transpose `geometry.T`. `reduce` takes out of the cost what is the same for a whole row or
column: a plan does not feel it, and in float it would drown what a plan does feel. Nothing else
of the package reads a cost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.known import check_floating
from jaxiter.numerics import HIGHEST, stop_gradient
from jaxiter.transport.entries import finite, gibbs, softmin
from jaxiter.transport.exact import Exact

#: A typical cost is looked for in so many columns.
SAMPLED_COLUMNS = 32


class Totals(NamedTuple):
    """Sums of a plan: its rows `[n]`, its columns `[m]`, and `sum P C`."""

    rows: jax.Array
    columns: jax.Array
    cost: jax.Array


class Geometry(eqx.Module):
    """A cost `[n, m]` in meaning, not always in memory: a pytree, so it batches and shards."""

    def matrix(self) -> jax.Array:
        """The whole cost matrix `[n, m]`."""
        raise NotImplementedError

    @property
    def T(self) -> "Geometry":  # noqa: N802 (numpy's name)
        """The geometry with sources and targets exchanged."""
        raise NotImplementedError

    @property
    def in_memory(self) -> bool:
        """Whether the cost is stored, so that asking for the matrix costs nothing more."""
        return False

    @property
    def rounding(self) -> float:
        """By how many machine epsilons of itself an evaluated cost may be off."""
        return 0.5

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        n, m = jax.eval_shape(lambda: self.matrix()).shape
        return n, m

    @property
    def dtype(self) -> Any:
        """The dtype of costs, weights and potentials."""
        return jax.eval_shape(lambda: self.matrix()).dtype

    def check(self) -> None:
        """Raises ValueError where the parts do not fit."""

    def over_rows(self, function: Callable, *operands: jax.Array) -> Any:
        """`function(cost_rows, *operand_rows)` for blocks of rows; results joined on axis 0."""
        return function(self.matrix(), *operands)

    def softmin(self, h: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
        """`-epsilon log sum_j weights_j exp((h_j - C_ij) / epsilon)`, `[n]`.

        0 where no j is admissible (weight 0 or cost +inf everywhere): only legal where
        the row itself has no weight, and there any value serves.
        """
        return self.over_rows(lambda cost: softmin(cost, h, weights, epsilon))

    def weigh(self, f: jax.Array, g: jax.Array, epsilon: Any, vectors: jax.Array) -> jax.Array:
        """`P @ vectors` (`[m, k]` to `[n, k]`) for `P = exp((f + g - C) / epsilon)`."""

        def rows(block: jax.Array, f: jax.Array) -> jax.Array:
            return jnp.matmul(gibbs(f, g, block, epsilon), vectors, precision=HIGHEST)

        return self.over_rows(rows, f)

    def plan(self, f: jax.Array, g: jax.Array, epsilon: Any) -> jax.Array:
        """`exp((f + g - C) / epsilon)` `[n, m]`."""
        return gibbs(f, g, self.matrix(), epsilon)

    def totals(
        self, f: jax.Array, g: jax.Array, epsilon: Any, tails: Any = None
    ) -> Totals:
        """The sums of the plan of (f, g), forbidden pairs costing nothing."""
        if self.in_memory:
            cost = self.matrix()
            plan = gibbs(f, g, cost, epsilon, tails)
            return Totals(plan.sum(1), plan.sum(0), jnp.sum(plan * finite(cost)))
        low_f, low_g = (jnp.zeros_like(f), jnp.zeros_like(g)) if tails is None else tails

        def rows(block: jax.Array, f: jax.Array, low: jax.Array) -> tuple:
            plan = gibbs(f, g, block, epsilon, (low, low_g))
            return plan.sum(1), jnp.sum(plan * finite(block), 1)

        def columns(block: jax.Array, g: jax.Array, low: jax.Array) -> jax.Array:
            return gibbs(g, f, block, epsilon, (low, low_f)).sum(1)

        sums, costs = self.over_rows(rows, f, low_f)
        return Totals(sums, self.T.over_rows(columns, g, low_g), jnp.sum(costs))

    def mean(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """The mean cost of the pairs that are allowed, each as often as `a_i b_j` says."""

        def rows(cost: jax.Array) -> tuple[jax.Array, jax.Array]:
            both = jnp.stack([finite(cost), (cost < jnp.inf).astype(cost.dtype)])
            return tuple(jnp.matmul(both, b, precision=HIGHEST))

        costs, masses = self.over_rows(rows)
        return jnp.sum(a * costs) / jnp.sum(a * masses)

    def thinned(self, step: int) -> "Geometry":
        """The same rows, and every so many columns."""
        raise NotImplementedError

    def typical(self, caps: jax.Array) -> jax.Array:
        """For each cap the mean of `min(C, cap)` over a sample of pairs; forbidden ones count 0."""
        some = self.thinned(max(1, self.shape[1] // SAMPLED_COLUMNS))

        def rows(cost: jax.Array) -> jax.Array:
            return jnp.mean(jnp.minimum(finite(cost), caps[:, None, None]), 2).T

        return jnp.mean(some.over_rows(rows), 0)

    def blur(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """How far rounding blurs the costs that carry mass, summed over it; 0 for given numbers."""
        del b
        return jnp.zeros_like(jnp.sum(a))

    def sharp(self) -> "Geometry":
        """The same cost evaluated with all digits, however slowly."""
        return self

    def reduce(self, a: jax.Array, b: jax.Array, init: jax.Array | None = None) -> "Reduced":
        """The geometry to be solved in place of this one, for weights a `[n]`, b `[m]`.

        Minima over the pairs that may carry mass are taken out, first of rows, then of columns;
        with `init` `[m]`, potentials g from elsewhere, those stand for the columns' minima.
        """
        zero = Exact(jnp.zeros_like(a), jnp.zeros_like(a)), Exact(
            jnp.zeros_like(b), jnp.zeros_like(b))
        return reduced(self, *zero, a, b, init)


class Dense(Geometry):
    """A cost matrix `[n, m]`; +inf forbids a pair."""

    cost: jax.Array

    def matrix(self) -> jax.Array:
        """The cost."""
        return self.cost

    @property
    def in_memory(self) -> bool:
        """True."""
        return True

    @property
    def rounding(self) -> float:
        """The numbers are as given."""
        return 0.0

    @property
    def T(self) -> "Dense":  # noqa: N802
        """The transposed cost."""
        return Dense(self.cost.T)

    def thinned(self, step: int) -> "Dense":
        """As in the base class."""
        return Dense(self.cost[:, ::step])


class Shifted(Geometry):
    """`C_ij - rows_i - columns_j` of another geometry, taken where an entry is read."""

    geometry: Geometry
    rows: jax.Array
    columns: jax.Array
    flipped: bool = eqx.field(static=True, default=False)

    def matrix(self) -> jax.Array:
        """The shifted cost; +inf stays."""
        return self._shift(self.geometry.matrix(), self.rows)

    def _shift(self, cost: jax.Array, rows: jax.Array) -> jax.Array:
        # In one order for a cost and its transpose: they must agree to the last digit.
        if self.flipped:
            return cost - self.columns[None, :] - rows[:, None]
        return cost - rows[:, None] - self.columns[None, :]

    @property
    def in_memory(self) -> bool:
        """As the geometry that is shifted."""
        return self.geometry.in_memory

    @property
    def T(self) -> "Shifted":  # noqa: N802
        """Transposed, shifts too."""
        return Shifted(self.geometry.T, self.columns, self.rows, not self.flipped)

    def thinned(self, step: int) -> "Shifted":
        """As in the base class."""
        return Shifted(
            self.geometry.thinned(step), self.rows, self.columns[::step], self.flipped)

    def over_rows(self, function: Callable, *operands: jax.Array) -> Any:
        """As in the base class, with the blocks of the other geometry."""
        return self.geometry.over_rows(
            lambda cost, rows, *rest: function(self._shift(cost, rows), *rest),
            self.rows, *operands)


class Reduced(NamedTuple):
    """A cost taken apart: `C_ij = base_ij + rows_i + columns_j`, and what is solved instead.

    Attributes:
      base: a geometry without the shifts that its kind can take out exactly.
      rows, columns: those shifts, in two floats; differentiable.
      geometry: what is solved, `base_ij - shift_rows_i - shift_columns_j`.
      shift_rows, shift_columns: constants `[n]`, `[m]`.
      sound: whether all points with mass have a partner, and no cost is NaN or -inf.
    """

    base: Geometry
    rows: Exact
    columns: Exact
    geometry: Geometry
    shift_rows: jax.Array
    shift_columns: jax.Array
    sound: jax.Array

    @property
    def shifts(self) -> tuple[jax.Array, jax.Array]:
        """What stands between the potentials that are solved for and those of the given cost."""
        return self.rows.high + self.shift_rows, self.columns.high + self.shift_columns

    @property
    def shiftable(self) -> bool:
        """Whether potentials can be taken out too; a sum over axes takes none."""
        return isinstance(self.geometry, Shifted)

    def placed(self, rows: jax.Array, columns: jax.Array) -> "Reduced":
        """The same with these shifts."""
        if not self.shiftable:
            return self
        return self._replace(
            geometry=Shifted(self.base, rows, columns), shift_rows=rows, shift_columns=columns)


def reduced(
    base: Geometry, rows: Exact, columns: Exact, a: jax.Array, b: jax.Array,
    init: jax.Array | None,
) -> Reduced:
    """The reduction of a base by minima of rows and columns."""
    fixed, a, b = stop_gradient((base, a, b))
    given = None if init is None else init - stop_gradient(columns.high)
    smallest = _nearest(fixed, given, b, 1)
    sound = jnp.all(jnp.isfinite(smallest) | (a <= 0))
    smallest = jnp.where(jnp.isfinite(smallest), smallest, 0)
    other = _nearest(fixed, smallest, a, 0)
    sound &= jnp.all(jnp.isfinite(other) | (b <= 0))
    if given is None:
        given = jnp.where(jnp.isfinite(other), other, 0)
    return Reduced(base, rows, columns, Shifted(base, smallest, given), smallest, given, sound)


def _nearest(
    geometry: Geometry, shift: jax.Array | None, weights: jax.Array, axis: int
) -> jax.Array:
    """The minimum along an axis of `C - shift`, where weights are positive.

    Not finite where that is no cost.
    """
    known = jnp.zeros_like(weights) if shift is None else shift
    # Taken apart, or XLA computes it anew for every entry.
    held = lax.optimization_barrier(jnp.where(weights > 0, known, -jnp.inf))
    if axis == 1:
        return geometry.over_rows(lambda cost: jnp.min(cost - held, axis=1))
    if geometry.in_memory:  # a transpose would be read across
        return jnp.min(geometry.matrix() - jnp.expand_dims(held, 1), axis=0)
    return geometry.T.over_rows(lambda cost: jnp.min(cost - held, axis=1))


def as_geometry(cost: Any) -> Geometry:
    """A cost matrix as `Dense`; geometries pass.

    Raises:
      ValueError: a cost that is no non-empty matrix. TypeError: one that is not floating point.
    """
    if isinstance(cost, Geometry):
        geometry = cost
        geometry.check()
    else:
        geometry = Dense(jnp.asarray(cost))
        if geometry.cost.ndim != 2:
            raise ValueError(
                f"cost must be a non-empty matrix [n, m], got shape {geometry.cost.shape}.")
    if 0 in geometry.shape:
        raise ValueError(f"cost must be a non-empty matrix [n, m], got shape {geometry.shape}.")
    check_floating(cost=geometry)
    return geometry
