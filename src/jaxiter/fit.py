"""What a fit is: residuals, a loss, a box, and what its methods need to know of them at a point."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.jacobian import flat, unflat
from jaxiter.known import known
from jaxiter.losses import Loss, slopes, weighted
from jaxiter.numerics import stop_gradient
from jaxiter.problem import Problem

PyTree = Any


class Box(NamedTuple):
    """Bounds of every entry, as flat vectors or for both None; infinite where there is none."""

    lower: Any = None
    upper: Any = None

    def clip(self, x: jax.Array) -> jax.Array:
        """The nearest point of the box."""
        return x if self.lower is None else jnp.clip(x, self.lower, self.upper)

    def pinned(self, x: jax.Array, slope: jax.Array) -> jax.Array | None:
        """Whether an entry is at a bound that the descent pushes against; None without bounds."""
        if self.lower is None:
            return None
        return (x <= self.lower) & (slope >= 0) | (x >= self.upper) & (slope <= 0)

    def crossed(self) -> jax.Array:
        """Whether no point is inside, or a bound is NaN."""
        return jnp.any(~(self.lower <= self.upper))


def make_box(x0: PyTree, lower: Any, upper: Any) -> Box:
    """The bounds of a call: None, a number, or a tree like x0 whose leaves broadcast to it.

    Raises:
      TypeError: another tree. ValueError: shapes that do not fit, bounds that cross.
    """
    if lower is None and upper is None:
        return Box()
    kind = flat(x0).dtype

    def side(name: str, bound: Any, missing: float) -> tuple[PyTree, jax.Array]:
        bound = missing if bound is None else bound
        if jax.tree.structure(bound) != jax.tree.structure(x0):
            if jax.tree.structure(bound) != jax.tree.structure(0) or np.ndim(bound):
                raise TypeError(f"{name} must be a number or a tree like x0, "
                                f"{jax.tree.structure(x0)}, got {jax.tree.structure(bound)}.")
            bound = jax.tree.map(lambda leaf: bound, x0)

        def fill(path: tuple, leaf: Any, bound: Any) -> jax.Array:
            array = jnp.asarray(bound).astype(kind)
            try:
                return jnp.broadcast_to(array, leaf.shape)
            except ValueError as error:
                raise ValueError(
                    f"{name} at {trees.path_name(path)} has shape {array.shape}, which does not "
                    f"fit {leaf.shape}.") from error

        full = jax.tree_util.tree_map_with_path(fill, x0, bound)
        return bound, flat(full)

    (below, low), (above, high) = side("lower", lower, -np.inf), side("upper", upper, np.inf)
    paths = [trees.path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(x0)]
    known(lambda *bounds: _check_order(paths, bounds), below, above)
    return Box(low, high)


def _check_order(paths: list[str], bounds: tuple) -> None:
    for path, low, high in zip(paths, *(jax.tree.leaves(side) for side in bounds), strict=True):
        low, high = np.broadcast_arrays(np.asarray(low), np.asarray(high))
        wrong = ~(low <= high)
        if np.any(wrong):
            place = tuple(int(i) for i in np.argwhere(wrong)[0])
            raise ValueError(
                f"the bounds cross at {path}{list(place) or ''}: lower {low[place]}, upper "
                f"{high[place]}.")


class Fit(NamedTuple):
    """Residuals `function(x, *args)` and their loss (None: squares)."""

    function: Callable
    loss: Loss | None

    def residuals(self, x: PyTree, *args: PyTree) -> PyTree:
        """The residuals as arrays.

        Raises:
          TypeError: what is not a tree of real numbers.
        """
        out = jax.tree.map(jnp.asarray, self.function(x, *args))
        for path, leaf in jax.tree_util.tree_leaves_with_path(out):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                raise TypeError(f"residuals at {trees.path_name(path)} have dtype {leaf.dtype}; "
                                "they must be real. Return real and imaginary parts of complex "
                                "ones as two arrays.")
        if not jax.tree.leaves(out):
            raise TypeError("the residual returned no arrays.")
        return out

    def cost(self, r: PyTree) -> jax.Array:
        """Half the sum of the loss."""
        if self.loss is None:
            return 0.5 * trees.squared_norm(r)
        return 0.5 * jnp.sum(self.loss(flat(r) ** 2))

    def size(self, r: jax.Array) -> jax.Array:
        """The root of twice the cost, which neither over- nor underflows for squares."""
        return trees.norm(r) if self.loss is None else jnp.sqrt(jnp.sum(self.loss(r**2)))

    def weights(self, r: jax.Array) -> tuple[Any, Any]:
        """What rows of the Jacobian and residuals are multiplied by: see `losses.weighted`."""
        return (None, None) if self.loss is None else weighted(self.loss, r)

    def slope(self, x: PyTree, *args: PyTree) -> PyTree:
        """The gradient of the cost, `J^T (rho' r)`."""
        r, pull = jax.vjp(lambda x: self.residuals(x, *args), x)
        if self.loss is None:
            return pull(r)[0]
        long = flat(r)
        return pull(unflat(slopes(self.loss, long**2)[0] * long, r))[0]

    def equations(self, x: PyTree, box: Box, *args: PyTree) -> PyTree:
        """Zero at the answer: the descent, or the distance to a bound that it pushes against.

        The descent, for its derivative is minus the Hessian, as that of `T(x) - x` is T' - 1: what
        an adjoint adds as `ridge` then goes on top.
        """
        slope = self.slope(x, *args)
        if box.lower is None:
            return trees.negative(slope)
        held = stop_gradient((flat(x), flat(slope)))
        pinned, low = box.pinned(*held), held[0] <= box.lower
        assert pinned is not None
        # Where both hold the entry, the lower one: they are equal.
        bound = jnp.where(low, box.lower, box.upper)
        safe = jnp.where(pinned, bound, 0)
        return unflat(jnp.where(pinned, safe - flat(x), -flat(slope)), x)


class FitMethod(eqx.Module):
    """How a fit is solved, as a value. `name`: of its preset; `takes_bounds`: whether it can."""

    name: ClassVar[str]
    takes_bounds: ClassVar[bool] = False

    def problem(self, fit: Fit) -> Problem:
        """The problem, of args `(box, *args)`, whose steps are those of the method."""
        raise NotImplementedError
