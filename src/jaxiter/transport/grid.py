"""Weights on a grid whose cost is a sum over its axes."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.numerics import HIGHEST, logsumexp, safe_log, stop_gradient
from jaxiter.transport.entries import finite
from jaxiter.transport.exact import Exact, two_sum
from jaxiter.transport.geometry import Dense, Geometry, Reduced, Totals


class Grid(Geometry):
    """Weights on a grid and a cost that is a sum over its axes: `sum_k C_k[i_k, j_k]`.

    A softmin is taken axis by axis: `n^(1 + 1/d)` exponentials instead of `n^2`, and no
    matrix in memory. Weights and potentials are flattened images (C order).

    Attributes:
      costs: one `[s_k, t_k]` matrix an axis; for squared Euclidean distances of pixels,
        `(i - j)^2`.

    >>> import jax.numpy as jnp
    >>> line = jnp.square(jnp.arange(3.0)[:, None] - jnp.arange(3.0))
    >>> grid = Grid((line, line))
    >>> grid.shape, float(grid.matrix()[0, 8])
    ((9, 9), 8.0)
    """

    costs: tuple[jax.Array, ...]

    def matrix(self) -> jax.Array:
        """The whole cost over flattened images."""
        total = self.costs[0]
        for cost in self.costs[1:]:
            total = (total[:, None, :, None] + cost[None, :, None, :]).reshape(
                total.shape[0] * cost.shape[0], -1)
        return total

    @property
    def T(self) -> "Grid":  # noqa: N802
        """Every axis transposed."""
        return Grid(tuple(cost.T for cost in self.costs))

    def softmin(self, h: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
        """As in the base class, one axis after the other."""
        return self._softmin(self.costs, h, weights, epsilon)

    def _softmin(
        self, costs: tuple, h: jax.Array, weights: jax.Array, epsilon: Any
    ) -> jax.Array:
        shape = tuple(cost.shape[1] for cost in costs)
        z, weights = h.reshape(shape), weights.reshape(shape)
        for axis, cost in enumerate(costs):
            z = jnp.moveaxis(z, axis, -1)[..., None, :]
            exponent = jnp.where(cost < jnp.inf, (z - finite(cost)) / epsilon, -jnp.inf)
            first = jnp.moveaxis(weights, axis, -1)[..., None, :] if axis == 0 else None
            z = jnp.moveaxis(epsilon * logsumexp(exponent, -1, first), -1, axis)
        out = -z.reshape(-1)
        return jnp.where(jnp.isinf(out), 0, out)

    def mean(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """As in the base class, from the marginals of the weights along the axes.

        A pair that one axis forbids counts with the costs of the others.
        """
        total = jnp.zeros((), self.dtype)
        for axis, cost in enumerate(self.costs):
            others = tuple(k for k in range(len(self.costs)) if k != axis)
            along_a, along_b = (
                jnp.sum(weights.reshape([c.shape[side] for c in self.costs]), others)
                for side, weights in enumerate((a, b)))
            total = total + Dense(cost).mean(along_a, along_b)
        return total

    def weigh(self, f: jax.Array, g: jax.Array, epsilon: Any, vectors: jax.Array) -> jax.Array:
        """As in the base class, axis by axis."""
        clean = jnp.where(jnp.isfinite(g), g, 0)
        mass = jnp.isfinite(g)

        def one(vector: jax.Array) -> jax.Array:
            parts = [jnp.where(mass, jnp.maximum(sign * vector, 0), 0) for sign in (1, -1)]
            plus, minus = (self._mass(f, clean, part, epsilon) for part in parts)
            return plus - minus

        return jax.vmap(one, in_axes=1, out_axes=1)(vectors)

    def _mass(self, f: jax.Array, g: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
        some = jnp.any(weights > 0) & jnp.isfinite(f)
        exponent = (jnp.where(jnp.isfinite(f), f, 0) - self.softmin(g, weights, epsilon)) / epsilon
        return jnp.where(some, jnp.exp(jnp.where(some, exponent, 0)), 0)

    def totals(self, f: jax.Array, g: jax.Array, epsilon: Any, tails: Any = None) -> Totals:
        """As in the base class, without the matrix: the cost is a derivative of the softmin."""
        if tails is not None:
            return self._exact_totals(Exact(f, tails[0]), Exact(g, tails[1]), epsilon)
        one_f, one_g = (jnp.isfinite(p).astype(p.dtype) for p in (f, g))
        clean_f, clean_g = (jnp.where(jnp.isfinite(p), p, 0) for p in (f, g))
        rows = self._mass(f, clean_g, one_g, epsilon)
        columns = self.T._mass(g, clean_f, one_f, epsilon)
        return Totals(rows, columns, jnp.sum(rows * self._mean_cost(g, epsilon)))

    def _mean_cost(self, g: jax.Array, epsilon: Any) -> jax.Array:
        """The mean cost of a row's partners: the derivative of its softmin along C."""
        there, g = jnp.isfinite(g).astype(g.dtype), jnp.where(jnp.isfinite(g), g, 0)
        return jax.jvp(lambda costs: self._softmin(costs, g, there, epsilon),
                       (self.costs,), (tuple(finite(cost) for cost in self.costs),))[1]

    def _exact_totals(self, f: Exact, g: Exact, epsilon: Any) -> Totals:
        """The sums as if in twice the digits; a constant."""
        rows = self._exact_mass(f, g, epsilon)
        columns = self.T._exact_mass(g, f, epsilon)
        cost = jnp.sum(rows * self._mean_cost(g.high, epsilon))
        return Totals(rows, columns, cost)

    def _exact_mass(self, f: Exact, g: Exact, epsilon: Any) -> jax.Array:
        shape = tuple(cost.shape[1] for cost in self.costs)
        z = Exact(*(part.reshape(shape) for part in g))
        for axis, cost in enumerate(self.costs):
            high, low = (jnp.moveaxis(part, axis, -1)[..., None, :] for part in z)
            high, lost = two_sum(high, -cost)
            peak = jnp.max(high, axis=-1, keepdims=True)
            peak = jnp.where(jnp.isfinite(peak), peak, 0)
            terms = jnp.exp(((high - peak) + (low + lost)) / epsilon)
            z = two_sum(peak[..., 0], epsilon * safe_log(jnp.sum(terms, axis=-1)))
            z = Exact(*(jnp.moveaxis(part, -1, axis) for part in z))
        high, lost = two_sum(f.high, z.high.reshape(-1))
        return jnp.exp((high + (lost + f.low + z.low.reshape(-1))) / epsilon)

    def typical(self, caps: jax.Array) -> jax.Array:
        """As in the base class, the cap on each axis."""
        return trees.total([jnp.mean(jnp.minimum(finite(cost), caps[:, None, None]), (1, 2))
                            for cost in self.costs])

    def over_rows(self, function: Callable, *operands: jax.Array) -> Any:
        """Refused: nothing here may need the matrix."""
        raise NotImplementedError("a Grid has no rows in memory; ask Dense(grid.matrix()).")

    def reduce(self, a: jax.Array, b: jax.Array, init: jax.Array | None = None) -> Reduced:
        """Minima axis by axis, so that the cost stays a sum over axes; `init` is not taken out."""
        del init
        costs, rows, columns = [], [], []
        for cost in self.costs:
            fixed = stop_gradient(cost)
            row = _minima(fixed, 1)
            column = _minima(fixed - row[:, None], 0)
            costs.append(cost - row[:, None] - column[None, :])
            rows.append(row)
            columns.append(column)
        row, column = _outer_sum(rows), _outer_sum(columns)
        base = Grid(tuple(costs))
        sound = jnp.all(_partners(self, b) | (a <= 0)) & jnp.all(_partners(self.T, a) | (b <= 0))
        for cost in self.costs:
            sound &= jnp.all(cost > -jnp.inf)
        return Reduced(base, row, column, base, jnp.zeros_like(row.high),
                       jnp.zeros_like(column.high), sound)


def _minima(cost: jax.Array, axis: int) -> jax.Array:
    smallest = jnp.min(cost, axis=axis)
    return jnp.where(jnp.isfinite(smallest), smallest, 0)


def _outer_sum(parts: list[jax.Array]) -> Exact:
    high, low = parts[0], jnp.zeros_like(parts[0])
    for part in parts[1:]:
        high, lost = two_sum(high[:, None], part[None, :])
        low = (low[:, None] + lost).reshape(-1)
        high = high.reshape(-1)
    return Exact(high, low)


def _partners(grid: Grid, weights: jax.Array) -> jax.Array:
    """Whether a row has a column of positive weight that no axis forbids, `[n]`."""
    count = (weights > 0).astype(weights.dtype).reshape([cost.shape[1] for cost in grid.costs])
    for axis, cost in enumerate(grid.costs):
        allowed = (cost < jnp.inf).astype(weights.dtype)
        count = jnp.moveaxis(
            jnp.tensordot(allowed, count, axes=(1, axis), precision=HIGHEST), 0, axis)
        count = (count > 0).astype(weights.dtype)
    return count.reshape(-1) > 0
