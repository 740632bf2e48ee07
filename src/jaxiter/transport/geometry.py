"""Costs between n sources and m targets, and the two reductions that transport needs of them.

A geometry answers `softmin` (one half of Sinkhorn's iteration in the log domain) and
`weigh` (the plan of given potentials against vectors) over its second axis; over the
first one, ask its transpose `geometry.T`. Nothing else of the package reads a cost.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.numerics import HIGHEST, logsumexp

#: Entries in one block of a point cloud's cost: 8 MB in float32.
BLOCK_ENTRIES = 2**21


def gibbs(f: jax.Array, g: jax.Array, cost: jax.Array, epsilon: Any) -> jax.Array:
    """`exp((f_i + g_j - C_ij) / epsilon)`; 0 at -inf potentials and +inf costs, with gradients."""
    allowed = (cost < jnp.inf) & jnp.isfinite(f)[:, None] & jnp.isfinite(g)[None, :]
    # Cleaned before they are combined: inf - inf would make the derivatives NaN.
    f, g = jnp.where(jnp.isfinite(f), f, 0), jnp.where(jnp.isfinite(g), g, 0)
    exponent = f[:, None] + g[None, :] - finite(cost)
    return jnp.where(allowed, jnp.exp(jnp.where(allowed, exponent, 0) / epsilon), 0)


def finite(cost: jax.Array) -> jax.Array:
    """The cost with 0 at forbidden pairs, which are masked: inf times 0 would be NaN."""
    return jnp.where(cost < jnp.inf, cost, 0)


@jax.custom_jvp
def _softmin(cost: jax.Array, h: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
    # Nothing is masked entry by entry: inf costs and weights of 0 drop out by themselves.
    reduced = jnp.where(weights > 0, h, -jnp.inf) - cost
    peak = jnp.max(reduced, axis=1)
    peak = jnp.where(jnp.isfinite(peak), peak, 0)
    inverse = 1 / epsilon
    total = jnp.sum(weights * jnp.exp((reduced - peak[:, None]) * inverse), axis=1)
    empty = total == 0
    return jnp.where(empty, 0, -peak - epsilon * jnp.log(jnp.where(empty, 1, total)))


@_softmin.defjvp
def _softmin_rule(primals: tuple, tangents: tuple) -> tuple:
    """With conditional weights p: `sum_j p_ij (dC_ij - dh_j)`, and the terms of w and epsilon."""
    cost, h, weights, epsilon = primals
    d_cost, d_h, d_weights, d_epsilon = tangents
    out = _softmin(*primals)
    allowed = cost < jnp.inf
    # A weight of 0 has a derivative of its own; there alone the exponent may be large.
    exponent = jnp.minimum((h - finite(cost) + out[:, None]) / epsilon, 80.0)
    density = jnp.where(allowed, jnp.exp(jnp.where(allowed, exponent, 0)), 0)
    p = density * weights
    d_cost = jnp.where(allowed, d_cost, 0)
    entropy = jnp.sum(p * jnp.where(allowed, exponent, 0), axis=1)
    tangent = (jnp.sum(p * d_cost, axis=1)
               - jnp.matmul(p, d_h, precision=HIGHEST)
               - epsilon * jnp.matmul(density, d_weights, precision=HIGHEST)
               + d_epsilon * entropy)
    return out, tangent


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
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        n, m = jax.eval_shape(lambda: self.matrix()).shape
        return n, m

    @property
    def dtype(self) -> Any:
        """The dtype of costs, weights and potentials."""
        return jax.eval_shape(lambda: self.matrix()).dtype

    def over_rows(self, function: Callable, *operands: jax.Array) -> Any:
        """`function(cost_rows, *operand_rows)` for blocks of rows; results joined on axis 0."""
        return function(self.matrix(), *operands)

    def softmin(self, h: jax.Array, weights: jax.Array, epsilon: Any) -> jax.Array:
        """`-epsilon log sum_j weights_j exp((h_j - C_ij) / epsilon)`, `[n]`.

        0 where no j is admissible (weight 0 or cost +inf everywhere): only legal where
        the row itself has no weight, and there any value serves.
        """
        return self.over_rows(lambda cost: _softmin(cost, h, weights, epsilon))

    def weigh(
        self, f: jax.Array, g: jax.Array, epsilon: Any, vectors: jax.Array, cost: bool = False
    ) -> jax.Array:
        """`P @ vectors` (`[m, k]` to `[n, k]`) for `P = exp((f + g - C) / epsilon)`.

        With `cost=True`: `(P * C) @ vectors`, forbidden pairs counting 0.
        """

        def rows(block: jax.Array, f: jax.Array) -> jax.Array:
            plan = gibbs(f, g, block, epsilon)
            plan = plan * finite(block) if cost else plan
            return jnp.matmul(plan, vectors, precision=HIGHEST)

        return self.over_rows(rows, f)

    def largest(self) -> jax.Array:
        """The largest magnitude of a finite cost."""
        return jnp.max(self.over_rows(lambda cost: jnp.max(jnp.abs(finite(cost)), axis=1)))


class Dense(Geometry):
    """A cost matrix `[n, m]`; +inf forbids a pair."""

    cost: jax.Array

    def matrix(self) -> jax.Array:
        """The cost."""
        return self.cost

    @property
    def T(self) -> "Dense":  # noqa: N802
        """The transposed cost."""
        return Dense(self.cost.T)


def squared_euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    """`|x - y|^2` of two points `[d]`."""
    return jnp.sum(jnp.square(x - y))


def euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    """`|x - y|` of two points `[d]`; its gradient at equal points is 0."""
    square = squared_euclidean(x, y)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


class PowerNorm(NamedTuple):
    """The cost `sum |x - y|^p` of two points `[d]`, p >= 1."""

    p: float

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The cost of one pair."""
        gap = jnp.abs(x - y)
        return jnp.sum(jnp.where(gap > 0, jnp.where(gap > 0, gap, 1) ** self.p, 0))


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """`1 - cos(x, y)` of two points `[d]`; 1 when one of them is 0."""
    size = jnp.sum(x * x) * jnp.sum(y * y)
    inverse = jnp.where(size > 0, lax.rsqrt(jnp.where(size > 0, size, 1)), 0)
    return 1 - jnp.sum(x * y) * inverse


class _Flipped(NamedTuple):
    cost: Callable

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return self.cost(y, x)


class PointCloud(Geometry):
    """Points and a cost of two points, evaluated in blocks of rows when it is needed.

    Memory is O((n + m) d + block), also for derivatives, which recompute the blocks.
    Up to some thousand points `Dense(cloud.matrix())` is faster.

    Attributes:
      x, y: points `[n, d]`, `[m, d]`.
      cost: `cost(x_i, y_j) -> scalar`; the default `squared_euclidean` is evaluated as a
        matrix product of centred points.
      block: rows per block; default about 2 million entries.

    >>> import jax.numpy as jnp
    >>> cloud = PointCloud(jnp.zeros((3, 2)), jnp.ones((4, 2)))
    >>> cloud.shape, float(cloud.matrix()[0, 0])
    ((3, 4), 2.0)
    """

    x: jax.Array
    y: jax.Array
    cost: Callable = eqx.field(static=True, default=squared_euclidean)
    block: int | None = eqx.field(static=True, default=None)

    @property
    def T(self) -> "PointCloud":  # noqa: N802
        """x and y exchanged."""
        if self.cost is squared_euclidean:
            flipped: Callable = self.cost
        else:
            flipped = self.cost.cost if isinstance(self.cost, _Flipped) else _Flipped(self.cost)
        return PointCloud(self.y, self.x, flipped, self.block)

    def matrix(self) -> jax.Array:
        """The whole cost, in memory at once."""
        return self._rows(*self._centred())

    def _centred(self) -> tuple[jax.Array, jax.Array]:
        if self.cost is not squared_euclidean:
            return self.x, self.y
        # |x|^2 + |y|^2 - 2 x.y cancels in float32 when the points are far from the origin.
        middle = lax.stop_gradient(jnp.mean(self.y, axis=0))
        return self.x - middle, self.y - middle

    def _rows(self, x: jax.Array, y: jax.Array) -> jax.Array:
        if self.cost is not squared_euclidean:
            return jax.vmap(lambda p: jax.vmap(lambda q: self.cost(p, q))(y))(x)
        product = jnp.matmul(x, y.T, precision=HIGHEST)
        return jnp.sum(x * x, 1)[:, None] + jnp.sum(y * y, 1)[None, :] - 2 * product

    def over_rows(self, function: Callable, *operands: jax.Array) -> Any:
        """As in the base class, with one block of rows in memory at a time."""
        x, y = self._centred()
        n = x.shape[0]
        rows = self.block or max(1, BLOCK_ENTRIES // y.shape[0])
        if rows >= n:
            return function(self._rows(x, y), *operands)
        # The last block is filled up with copies of the last row: zeros could make NaNs.
        count = -(-n // rows)
        index = jnp.minimum(jnp.arange(count * rows, dtype=jnp.int32), n - 1)
        blocks = [leaf[index].reshape(count, rows, *leaf.shape[1:]) for leaf in (x, *operands)]

        @jax.checkpoint
        def one(block: list) -> Any:
            return function(self._rows(block[0], y), *block[1:])

        out = lax.map(one, blocks)
        return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:])[:n], out)


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
        shape = tuple(cost.shape[1] for cost in self.costs)
        z, weights = h.reshape(shape), weights.reshape(shape)
        for axis, cost in enumerate(self.costs):
            z = jnp.moveaxis(z, axis, -1)[..., None, :]
            exponent = jnp.where(cost < jnp.inf, (z - finite(cost)) / epsilon, -jnp.inf)
            first = jnp.moveaxis(weights, axis, -1)[..., None, :] if axis == 0 else None
            z = jnp.moveaxis(epsilon * logsumexp(exponent, -1, first), -1, axis)
        out = -z.reshape(-1)
        return jnp.where(jnp.isfinite(out), out, 0)

    def weigh(
        self, f: jax.Array, g: jax.Array, epsilon: Any, vectors: jax.Array, cost: bool = False
    ) -> jax.Array:
        """As in the base class; `cost=True` builds the matrix."""
        if cost:
            return super().weigh(f, g, epsilon, vectors, cost)
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


def as_geometry(cost: Any) -> Geometry:
    """A cost matrix as `Dense`; geometries pass.

    Raises:
      ValueError: a cost that is no non-empty matrix. TypeError: one that is not floating point.
    """
    if isinstance(cost, Geometry):
        geometry = cost
        if isinstance(cost, PointCloud):
            _check_points(cost)
    else:
        geometry = Dense(jnp.asarray(cost))
        if geometry.cost.ndim != 2:
            raise ValueError(
                f"cost must be a non-empty matrix [n, m], got shape {geometry.cost.shape}.")
    if 0 in geometry.shape:
        raise ValueError(f"cost must be a non-empty matrix [n, m], got shape {geometry.shape}.")
    if not jnp.issubdtype(geometry.dtype, jnp.floating):
        raise TypeError(f"cost must be floating point, got {geometry.dtype}.")
    return geometry


def _check_points(cloud: PointCloud) -> None:
    for name, points in (("x", cloud.x), ("y", cloud.y)):
        if points.ndim != 2:
            raise ValueError(f"{name} must be points [n, d], got shape {points.shape}.")
    if cloud.x.shape[1] != cloud.y.shape[1]:
        raise ValueError(f"x has points in {cloud.x.shape[1]} dimensions, y in "
                         f"{cloud.y.shape[1]}; they must agree.")
