"""The splitting of a transport problem with a sum of norms, and the gap that judges it."""

from itertools import combinations
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxiter import trees
from jaxiter.numerics import product
from jaxiter.operators.primal_dual import primal_dual
from jaxiter.operators.primal_dual_steps import SHARE
from jaxiter.operators.projections import projection_simplex
from jaxiter.operators.prox_norms import prox_l2
from jaxiter.problem import as_problem
from jaxiter.splitting import Splitting
from jaxiter.transport.checks import mass_agrees
from jaxiter.transport.rounding import round_to_polytope

#: The square root of the primal step over the dual one, in the sizes of plan and potentials.
RATIO = 2.0


class Pairs(NamedTuple):
    """Pairs of rows of one class.

    Attributes:
      first: the smaller index of each, int32.
      second: the larger one.
    """

    first: np.ndarray
    second: np.ndarray

    def differences(self, plan: jax.Array) -> jax.Array:
        """`P_i - P_i'` of every pair."""
        return plan[self.first] - plan[self.second]

    def spread(self, forces: jax.Array, rows: int) -> jax.Array:
        """The adjoint."""
        out = jnp.zeros((rows, forces.shape[1]), forces.dtype)
        return out.at[self.first].add(forces).at[self.second].add(-forces)


def pairs_of(labels: tuple[int, ...]) -> Pairs:
    """Those of every class, class by class."""
    rows = np.asarray(labels)
    found = [pair for label in range(max(labels) + 1)
             for pair in combinations(np.flatnonzero(rows == label).tolist(), 2)]
    return Pairs(*np.array(found, np.int32).reshape(-1, 2).T)


def balanced_steps(cost: jax.Array, a: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The steps of both sides, in proportion to the sizes of the plan and of the potentials."""
    n, m = cost.shape
    spread = jnp.std(cost)
    size = jnp.where(spread > 0, spread, 1)
    ratio = RATIO * jnp.sum(a) / (n * m) ** 0.5 / size
    # |K|^2 = n: that of the sums, to which the differences, at most n on contrasts, are orthogonal.
    length = SHARE / n**0.5
    return ratio * length, length / ratio


def sum_of_norms(
    pairs: Pairs, shape: tuple[int, int], tau: jax.Array, sigma: jax.Array
) -> Splitting:
    """The hybrid gradient's splitting, judged by the gap of its image, which is the answer."""
    n, _ = shape

    def forward(plan: jax.Array, *args: jax.Array) -> tuple:
        return pairs.differences(plan), jnp.sum(plan, 0)

    def adjoint(dual: tuple, *args: jax.Array) -> jax.Array:
        return pairs.spread(dual[0], n) + dual[1]

    def rows(v: jax.Array, step: Any, cost: Any, a: Any, b: Any, strength: Any) -> jax.Array:
        held = projection_simplex(v - step * cost, jnp.where(a > 0, a, 1))
        return jnp.where(a[:, None] > 0, held, 0)

    def norms(v: tuple, step: Any, cost: Any, a: Any, b: Any, strength: Any) -> tuple:
        return prox_l2(v[0], step, strength), b

    plain = primal_dual(rows, norms, (forward, adjoint), tau=tau, sigma=sigma)
    problem = as_problem(plain.problem)
    step = problem.step
    assert step is not None

    def image(s: Any, steps: Any, *args: jax.Array) -> tuple:
        return plain.extract(step(s, steps, *args)[0], steps, *args)

    def gap(s: Any, image: Any, steps: Any, *args: jax.Array) -> jax.Array:
        cost, a, b, strength = args
        plan, dual = plain.extract(image, steps, *args)
        _, f, g = feasible(pairs, dual, *args)
        plan = round_to_polytope(plan, a, b)
        return objective(pairs, plan, cost, strength) - product(f, a) - product(g, b)

    return plain._replace(extract=image, problem=problem._replace(
        merit=gap, scale=_scale, valid=_valid))


def feasible(
    pairs: Pairs, dual: tuple, cost: jax.Array, a: jax.Array, b: jax.Array, strength: jax.Array
) -> tuple:
    """Forces within their balls, potentials of the rows and of the columns."""
    forces, q = dual
    forces = jax.vmap(lambda force: trees.into_ball(strength, force))(forces)
    slope = cost + pairs.spread(forces, len(cost)) + q
    return forces, jnp.min(slope, 1), -q


def objective(
    pairs: Pairs, plan: jax.Array, cost: jax.Array, strength: jax.Array
) -> jax.Array:
    """`<C, P> + strength * sum |P_i - P_i'|`."""
    lengths = jax.vmap(trees.norm)(pairs.differences(plan))
    return jnp.sum(cost * plan) + strength * jnp.sum(lengths.astype(cost.dtype))


def _scale(
    s: Any, image: Any, steps: Any, cost: jax.Array, a: jax.Array, *rest: jax.Array
) -> jax.Array:
    """Mass times the range of the cost, which begins at 0."""
    top = jnp.max(cost)
    return jnp.sum(a) * jnp.where(top > 0, top, 1)


def _valid(s: Any, cost: jax.Array, a: jax.Array, b: jax.Array, strength: jax.Array) -> jax.Array:
    fine = trees.finite((cost, a, b, strength)) & (strength >= 0) & (jnp.sum(a) > 0)
    return fine & jnp.all(a >= 0) & jnp.all(b >= 0) & mass_agrees(a, b, a.dtype)
