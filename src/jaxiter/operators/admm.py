"""The alternating direction method of multipliers, with a penalty that balances itself."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.known import check_positive
from jaxiter.numerics import safe_divide, stop_gradient
from jaxiter.operators.linear_map import LinearMap
from jaxiter.operators.primal_dual import products
from jaxiter.problem import Problem
from jaxiter.splitting import Splitting

PyTree = Any

#: The penalty may move every so many steps, at once where it is far too large, and no more after so
#: many, nor more often than that: else nothing converges.
EVERY, FREEZE = 10, 100
#: It moves when one residual is so many times the other, each beside its own scale, at most by
#: so much at a time.
UNEVEN, FARTHEST = 3.0, 100.0
#: Relative residuals below which it stays.
FAR = 1e-3


class Penalty(NamedTuple):
    """The penalty; its first value, by which u is scaled; what it is multiplied by next; counts."""

    now: jax.Array
    first: jax.Array
    factor: jax.Array
    steps: jax.Array
    epoch: jax.Array


class _Constraint(NamedTuple):
    """`A x + B w = c`, as it was given."""

    a: LinearMap | None
    b: LinearMap | None
    c: PyTree

    def times_a(self, x: PyTree, args: tuple) -> PyTree:
        if callable(self.a):
            return self.a(x, *args)
        return x if self.a is None else products(self.a, x, args)[0](x)

    def times_b(self, w: PyTree, args: tuple) -> PyTree:
        return trees.negative(w) if self.b is None else products(self.b, w, args)[0](w)

    def less_c(self, v: PyTree, args: tuple) -> PyTree:
        if self.c is None:
            return v
        return trees.subtract(v, self.c(*args) if callable(self.c) else self.c)

    def start(self, x: PyTree, args: tuple) -> tuple[PyTree, PyTree]:
        """w and u: where B is -I the w that belongs to x, else 0; and 0."""
        ax = self.times_a(x, args)
        if self.b is None:
            return self.less_c(ax, args), trees.zeros_like(ax)
        shape = jax.eval_shape(products(self.b, None, args)[1], ax)
        return trees.zeros_like(shape), trees.zeros_like(ax)


def admm(
    prox_f: Callable, prox_g: Callable, *, A: LinearMap | None = None, B: LinearMap | None = None,
    c: PyTree = None, penalty: Any = None,
) -> Splitting:
    """Minimise `f(x) + g(w)` subject to `A x + B w = c`, x and w in turn.

        x  = argmin f(x) + penalty / 2 |A x + B w - c + u|^2
        w+ = argmin g(w) + penalty / 2 |A x + B w - c + u|^2
        u+ = u + A x + B w+ - c

    The governing point is (w, u), u in units of the first penalty; the answer x, the dual
    `penalty u`, the multiplier of the constraint. It is Douglas-Rachford splitting of the dual. The
    merit is the length of (B w+ - B w, u+ - u), primal and dual residual in the units of A x.

    Args:
      prox_f: `argmin_x f(x) + |A x - v|^2 / (2 step)` as a function of `(v, step, *args)`, step the
        reciprocal of the penalty: without A the proximal map of f.
      prox_g: likewise `argmin_w g(w) + |B w - v|^2 / (2 step)`. Without B, which is then -I, the
        proximal map of g, at `A x + u - c`.
      A, B: matrices (dense, BCOO or BCSR), pairs `(matvec(x, *args), rmatvec(y, *args))`, or for A
        `matvec(x, *args)` alone. Default: A = I, B = -I, which is `x = w`.
      c: like A x; default 0. May be a function of args.
      penalty: positive scalar. Default: 1 at first, and every 10 steps, or at once where it is far
        too large (then the merit is infinite), until step 100, so much that the primal and the dual
        residual are alike beside their scales; proximal maps that keep a factorisation want one
        that stays.

    Returns:
      A `Splitting`. T is nonexpansive, averaged with 1, in the length of (B w, u).

    Raises:
      ValueError: a penalty that is not positive, where it is known; else BAD_INPUT. TypeError: B
        as a function alone, for nobody knows then what w is.

    Reference: Boyd, Parikh, Chu, Peleato and Eckstein, "Distributed optimization and statistical
    learning via the alternating direction method of multipliers", Found. Trends Mach. Learn. 3,
    2011; Wohlberg, "ADMM penalty parameter selection by residual balancing", 2017.

    >>> import jax.numpy as jnp, jaxiter
    >>> from jaxiter.operators import admm, prox_l1
    >>> near = lambda v, step, b: (v + step * b) / (1 + step)  # |x - b|^2 / 2
    >>> split = admm(near, lambda v, step, b: prox_l1(v, step))
    >>> out = jaxiter.solve_splitting(split, jnp.zeros(2), jnp.array([3.0, 0.5]))
    >>> [round(float(x), 3) for x in out.value], bool(out.converged)
    ([2.0, 0.0], True)
    """
    check_positive(**({} if penalty is None else {"penalty": penalty}))
    if callable(B):
        raise TypeError("B as a function alone does not say what w is; give the pair "
                        "(matvec, rmatvec).")

    given = _Constraint(A, B, c)

    def begin(s: tuple, m: Penalty, args: tuple) -> tuple[PyTree, PyTree, PyTree]:
        """x, u in units of the penalty of now, and B w."""
        w, u = s[0], trees.scale(m.first / m.now, s[1])
        bw = given.times_b(w, args)
        return prox_f(trees.negative(given.less_c(trees.add(bw, u), args)), 1 / m.now, *args), u, bw

    def step(s: tuple, m: Penalty, *args: PyTree) -> tuple[tuple, Penalty]:
        if penalty is None:
            m = _moved(m)
        x, u, bw = begin(s, m, args)
        ax = given.times_a(x, args)
        v = given.less_c(trees.add(ax, u), args)
        # Without B it is -I, and the proximal map that of g.
        w = prox_g(v if B is None else trees.negative(v), 1 / m.now, *args)
        after = given.times_b(w, args)
        new = trees.add(v, after)
        if penalty is None:
            m = m._replace(steps=m.steps + 1, factor=stop_gradient(_factor(
                trees.subtract(new, u), trees.subtract(after, bw), (ax, after), new)))
        return (w, trees.scale(m.now / m.first, new)), m

    def balanced(s: tuple, m: Penalty, args: tuple) -> tuple:
        return given.times_b(s[0], args), trees.scale(m.first / m.now, s[1])

    def merit(s: tuple, image: tuple, m: Penalty, *args: PyTree) -> jax.Array:
        length = trees.norm(balanced(trees.subtract(image, s), m, args))
        # Under a penalty that is far too large all moves are short, and prove nothing.
        return jnp.where(_hurries(m), jnp.inf, length)

    def scale(s: tuple, image: tuple, m: Penalty, *args: PyTree) -> jax.Array:
        return jnp.maximum(*(trees.norm(balanced(point, m, args)) for point in (s, image)))

    def memory(s: tuple, *args: PyTree) -> Penalty:
        size = jnp.asarray(1 if penalty is None else penalty, trees.norm_dtype(s))
        return Penalty(size, size, jnp.ones_like(size), jnp.int32(0), jnp.int32(0))

    def valid(s: tuple, *args: PyTree) -> jax.Array:
        return jnp.asarray(penalty) > 0

    def units(s: tuple, m: Penalty, *args: PyTree) -> tuple:
        return jnp.ones_like(m.now), m.now / m.first

    def extract(s: tuple, m: Penalty, *args: PyTree) -> tuple[PyTree, PyTree]:
        return begin(s, m, args)[0], trees.scale(m.first, s[1])

    return Splitting(
        Problem(step=step, memory=memory, merit=merit, scale=scale, units=units, hindsight=True,
                epoch=lambda m: m.epoch, valid=None if penalty is None else valid),
        start=lambda x0, *args: given.start(x0, args), extract=extract, averaged=1.0)


def _moved(m: Penalty) -> Penalty:
    """The memory with the penalty that this step takes."""
    due = _hurries(m) | (_moves(m) & (m.steps % EVERY == 0))
    return m._replace(now=jnp.where(due, m.now * m.factor, m.now),
                      epoch=m.epoch + due.astype(jnp.int32))


def _moves(m: Penalty) -> jax.Array:
    """Whether the penalty is off, and free to move."""
    return (m.factor != 1) & (m.steps > 0) & (m.steps <= FREEZE) & (m.epoch < FREEZE // EVERY)


def _hurries(m: Penalty) -> jax.Array:
    """Whether it is far too large. One that seems far too small may be right: w is 0, and stays."""
    return _moves(m) & (m.factor <= 1.01 / FARTHEST)


def _factor(primal: PyTree, dual: PyTree, sides: tuple, u: PyTree) -> jax.Array:
    """What would make the residuals alike; 1 where they are, and near the end."""
    primal, dual, u = (trees.norm(tree) for tree in (primal, dual, u))
    large = jnp.maximum(*(trees.norm(side) for side in sides))
    primal, dual = safe_divide(primal, large), safe_divide(dual, u)
    # Infinite where w does not move at all, as under a penalty that is far too small.
    ratio = primal / dual
    uneven = (ratio > UNEVEN) | (ratio < 1 / UNEVEN)
    # Near the end it stays: what was measured is then the residual under the penalty in memory.
    moves = uneven & ((primal > FAR) | (dual > FAR)) & (u > 0)
    return jnp.where(moves, jnp.clip(jnp.sqrt(ratio), 1 / FARTHEST, FARTHEST), 1)
