"""Generalised conjugate residuals over a window: what a breakdown is handed to.

GMRES while the window holds, MINRES on symmetric systems after that, and one small loop to compile.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.linear.system import ROUNDINGS, Gains, Matvec, no_gains
from jaxiter.numerics import anchor, machine_epsilon, numbers_in, safe_divide
from jaxiter.packed import while_loop

PyTree = Any

#: So many directions are kept where x is small, and where it is larger so many numbers.
WINDOW, NUMBERS = 100, 2**15
#: A step that leaves more than this of |r| is followed by one along its image, not along r.
FELL = 0.9


class _State(NamedTuple):
    """x, residual, next direction; directions kept, their images (orthogonal), and 1 / |image|^2;
    squared norm of r; whether r can still fall; products; gains seen.
    """

    x: PyTree
    r: PyTree
    w: PyTree
    directions: PyTree
    images: PyTree
    weights: jax.Array
    square: jax.Array
    alive: jax.Array
    products: jax.Array
    gains: Gains


def conjugate_residuals(
    matvec: Matvec, x: PyTree, r: PyTree, norm: jax.Array, tol: jax.Array, budget: Any
) -> tuple:
    """A cycle for `restarted`: minimises |r| over the last directions, one product each.

    The next direction is the residual where it fell, else the last image: so neither a residual
    that is orthogonal to its image (a skew matrix) nor a stagnation ends the search.

    Source: Jiranek and Rozloznik, "Adaptive version of simpler GMRES", Numer. Algorithms 53, 2010;
    Eisenstat, Elman and Schultz, "Variational iterative methods for nonsymmetric systems of linear
    equations", SIAM J. Numer. Anal. 20, 1983 (the window).
    """
    size = numbers_in(r)
    window = max(2, min(WINDOW, size, NUMBERS // max(size, 1)))
    empty = jax.tree.map(lambda leaf: lax.broadcast(jnp.zeros_like(leaf), (window,)), r)
    kind = jax.eval_shape(trees.dot, r, r).dtype
    start = _State(x, r, r, empty, empty, jnp.zeros(window, norm.dtype), lax.square(norm),
                   jnp.bool_(True), jnp.int32(0), no_gains(norm))

    def going(s: _State) -> jax.Array:
        return (s.square > lax.square(tol)) & s.alive & (s.products < budget)

    def body(s: _State) -> _State:
        image, weights = matvec(s.w), s.weights.astype(kind)
        part = _products(s.images, image) * weights
        q = _without(image, part, s.images)
        # Once leaves too little of the orthogonality.
        again = _products(s.images, q) * weights
        q, p = _without(q, again, s.images), _without(s.w, part + again, s.directions)
        beside, *squares = _side_by_side((q, s.r), (q, q), (p, p), (s.r, s.r))
        squares = [lax.real(one) if jnp.iscomplexobj(one) else one for one in squares]
        weight = safe_divide(jnp.ones((), norm.dtype), squares[0])
        alpha = beside * weight.astype(kind)
        square = squares[2] - lax.square(lax.abs(beside)) * weight
        x, r = trees.axpy(alpha, p, s.x), trees.axpy(-alpha, q, s.r)
        # Both of the residual's length, or what is orthogonalised would be of any.
        unit = lax.sqrt(squares[2] * weight)
        w = trees.where(square <= FELL**2 * squares[2], r, trees.scale(unit, q))
        # What is left of an image that was in the window's span is rounding, and no image of p.
        noise = lax.square(ROUNDINGS * machine_epsilon(r) * s.gains.largest) * squares[2]
        gain = lax.select(squares[0] > noise, lax.sqrt(squares[0] / squares[1]), 0 * square)
        weights = _pushed(s.weights, weight)
        return _State(x, r, w, _pushed(s.directions, p),
                      _pushed(s.images, q), weights, square,
                      (weight > 0) & (square < jnp.inf), s.products + 1, s.gains.seeing(gain))

    end = while_loop(going, body, anchor(start, (x, r, tol)))
    return end.x, end.products, end.gains


# Sums, not products of matrices: one with a vector takes XLA ten times as long to compile.
def _products(history: PyTree, vector: PyTree) -> jax.Array:
    """Inner products `[m]` of the stored vectors with one."""
    return jax.vmap(trees.dot, (0, None))(history, vector)


def _side_by_side(*pairs: tuple[PyTree, PyTree]) -> jax.Array:
    """The inner products of pairs, by one sum."""
    left, right = ([jnp.stack(leaves) for leaves in zip(*map(jax.tree.leaves, side), strict=True)]
                   for side in zip(*pairs, strict=True))
    return jax.vmap(trees.dot)(left, right)


def _without(vector: PyTree, weights: jax.Array, history: PyTree) -> PyTree:
    """`vector - sum_i weights[i] * history[i]`."""

    def leaf(x: jax.Array, h: jax.Array) -> jax.Array:
        each = lax.broadcast_in_dim(weights.astype(h.dtype), h.shape, (0,))
        return lax.sub(x, lax.reduce_sum(lax.mul(each, h), axes=(0,)))

    return jax.tree.map(leaf, vector, history)


def _pushed(history: PyTree, vector: PyTree) -> PyTree:
    """Without the oldest vector, and with another at the end."""
    return jax.tree.map(
        lambda h, x: lax.concatenate([h[1:], lax.broadcast(x, (1,))], 0), history, vector)
