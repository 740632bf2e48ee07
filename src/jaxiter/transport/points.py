"""Costs of two points, and clouds of points whose cost is evaluated when it is needed."""

from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax

from jaxiter.numerics import HIGHEST, machine_epsilon, stop_gradient
from jaxiter.transport.exact import Exact, exact_dot, exact_sum, two_sum, with_derivative
from jaxiter.transport.geometry import Geometry, Reduced, reduced

#: Entries in one block of a point cloud's cost: 8 MB in float32.
BLOCK_ENTRIES = 2**21


def squared_euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    """`|x - y|^2` of two points `[d]`."""
    return jnp.sum(jnp.square(x - y))


def euclidean(x: jax.Array, y: jax.Array) -> jax.Array:
    """`|x - y|` of two points `[d]`; its gradient at equal points is 0."""
    square = squared_euclidean(x, y)
    same = square == 0  # not so of NaN, which stays
    return jnp.where(same, 0, jnp.sqrt(jnp.where(same, 1, square)))


class PowerNorm(NamedTuple):
    """The cost `sum |x - y|^p` of two points `[d]`, p >= 1."""

    p: float

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The cost of one pair."""
        gap = jnp.abs(x - y)
        same = gap == 0
        return jnp.sum(jnp.where(same, 0, jnp.where(same, 1, gap) ** self.p))


class SquaredNorm(NamedTuple):
    """The cost `|x - y|_p^2 / 2` of two points `[d]`, p >= 1 or inf; gradient 0 at equal ones."""

    p: float

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        """The cost of one pair."""
        gap = jnp.abs(x - y)
        longest = lax.stop_gradient(jnp.max(gap))
        if self.p == float("inf"):
            return jnp.square(jnp.max(gap)) / 2
        # In units of the longest side no power overflows; it cancels, so it may be a constant.
        unit = jnp.where(longest == 0, 1, longest)
        side = gap / unit
        same = side == 0
        total = jnp.sum(jnp.where(same, 0, jnp.where(same, 1, side) ** self.p))
        none = total == 0
        norm = jnp.where(none, 1, total) ** (2 / self.p)
        return jnp.where(none, 0, jnp.square(unit) * norm / 2)


def cosine(x: jax.Array, y: jax.Array) -> jax.Array:
    """`1 - cos(x, y)` of two points `[d]`; 1 when one of them is 0.

    As half the squared distance of unit vectors: near 0 nothing cancels.
    """
    def unit(point: jax.Array) -> tuple[jax.Array, jax.Array]:
        square = jnp.sum(point * point)
        there = square != 0  # so of NaN, which stays
        return point * lax.rsqrt(jnp.where(there, square, 1)), there

    (u, some), (v, other) = unit(x), unit(y)
    return jnp.where(some & other, squared_euclidean(u, v) / 2, 1)


def _by_differences(x: jax.Array, y: jax.Array) -> jax.Array:
    return squared_euclidean(x, y)


class _Flipped(NamedTuple):
    cost: Callable

    def __call__(self, x: jax.Array, y: jax.Array) -> jax.Array:
        return self.cost(y, x)


class PointCloud(Geometry):
    """Points and a cost of two points, evaluated in blocks of rows when it is needed.

    Memory is O((n + m) d + block), also for derivatives, which recompute the blocks.
    Up to some thousand points `Dense(cloud.matrix())` is faster. Squared distances are solved for
    two clouds each centred on its own mean, so that how far apart they lie costs no digits.

    Attributes:
      x: points `[n, d]`.
      y: points `[m, d]`.
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

    def check(self) -> None:
        """Points are matrices of equal width."""
        for name, points in (("x", self.x), ("y", self.y)):
            if points.ndim != 2:
                raise ValueError(f"{name} must be points [n, d], got shape {points.shape}.")
        if self.x.shape[1] != self.y.shape[1]:
            raise ValueError(f"x has points in {self.x.shape[1]} dimensions, y in "
                             f"{self.y.shape[1]}; they must agree.")

    @property
    def T(self) -> "PointCloud":  # noqa: N802
        """x and y exchanged."""
        if self.cost is squared_euclidean:
            flipped: Callable = self.cost
        else:
            flipped = self.cost.cost if isinstance(self.cost, _Flipped) else _Flipped(self.cost)
        return type(self)(self.y, self.x, flipped, self.block)

    def thinned(self, step: int) -> "PointCloud":
        """As in the base class."""
        return type(self)(self.x, self.y[::step], self.cost, self.block)

    def matrix(self) -> jax.Array:
        """The whole cost, in memory at once."""
        return self._rows(*self._placed())

    def _placed(self) -> tuple[jax.Array, jax.Array]:
        """The points, moved to where their squared distances do not cancel."""
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
        x, y = self._placed()
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

    @property
    def rounding(self) -> float:
        """Of a function of the user's nothing is known: more than of a squared distance."""
        return 0.5 if self.cost in (squared_euclidean, _by_differences) else 1.0

    def blur(self, a: jax.Array, b: jax.Array) -> jax.Array:
        """Rounding in the sums and products of the cost, where points lie off their middle."""
        if self.cost is not squared_euclidean:
            return jnp.zeros_like(jnp.sum(a))
        x, y = self._placed()
        size = jnp.sum(a * jnp.sum(x * x, 1)) + jnp.sum(b * jnp.sum(y * y, 1))
        return machine_epsilon(x) / 3 * size

    def sharp(self) -> "PointCloud":
        """As in the base class: squared distances by differences, not by a product."""
        if self.cost is not squared_euclidean:
            return self
        return PointCloud(*self._placed(), _by_differences, self.block)

    def reduce(self, a: jax.Array, b: jax.Array, init: jax.Array | None = None) -> Reduced:
        """As in the base class; squared distances lose first what the two means contribute."""
        if self.cost is not squared_euclidean:
            return super().reduce(a, b, init)
        # With x = x' + p, y = y' + q, d = p - q, and what rounding takes from each kept:
        # |x - y|^2 = |x' - y'|^2 + 2 d.x' - 2 d.y' + |d|^2.
        p, q = _middle(self.x), _middle(self.y)
        d = two_sum(p, -q)
        x, y = two_sum(self.x, -p), two_sum(self.y, -q)

        def along(points: Exact) -> tuple[Exact, jax.Array]:
            """`2 d.points`, and the same to be differentiated."""
            main = exact_dot(points.high, d.high)
            rest = jnp.sum(points.low * d.high + stop_gradient(points.high) * d.low, 1)
            return (exact_sum(2 * main.high, 2 * (main.low + rest)),
                    2 * jnp.matmul(points.high, d.high, precision=HIGHEST))

        square = exact_dot(d.high[None, :], d.high)
        rows, rows_like = along(x)
        columns, columns_like = along(y)
        columns = exact_sum(
            -columns.high, jnp.broadcast_to(square.high[0], columns.high.shape),
            square.low[0] + 2 * jnp.sum(d.high * d.low) - columns.low)
        return reduced(
            _Centred(x.high, y.high, self.cost, self.block),
            Exact(with_derivative(rows.high, rows_like), rows.low),
            Exact(with_derivative(columns.high, -columns_like), columns.low), a, b, init)


def _middle(points: jax.Array) -> jax.Array:
    """About the mean `[d]`; a constant, the same wherever a compiler computes it.

    Of a mean proper, a product, some uses might see more digits than others.
    """
    points, info = stop_gradient(points), jnp.finfo(points.dtype)

    def rounded(points: jax.Array) -> jax.Array:
        return lax.reduce_precision(jnp.mean(points, axis=0), info.nexp, info.nmant // 2)

    first = rounded(points)
    return first + rounded(points - first)


class _Centred(PointCloud):
    """Squared distances of points that lie around the origin already."""

    def _placed(self) -> tuple[jax.Array, jax.Array]:
        return self.x, self.y
