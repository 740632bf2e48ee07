"""Questions to ask when a solve or its gradient does not behave."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxiter import trees
from jaxiter.implicit import FAILURE, linear_report
from jaxiter.linear import LinearSolution, LinearSolver, bicgstab
from jaxiter.numerics import anchor, machine_epsilon
from jaxiter.problem import (
    Problem,
    as_point,
    as_problem,
    build_cache,
    evaluate,
    image_and_residual,
    in_units,
)
from jaxiter.solution import Solution, Status

PyTree = Any


def adjoint_report(
    problem: Problem | Callable, solution: Solution, *args: PyTree,
    cotangent: PyTree = None, solve: LinearSolver | None = None, has_aux: bool = False,
) -> LinearSolution:
    """Redo the backward linear solve of `implicit()` at a solution, and say how it went.

    Args:
      problem, *args: as given to `fixed_point`. solution: what it returned.
      cotangent: the gradient of the loss with respect to `value`; default a fixed random vector,
        for centred maps annihilate ones.
      solve: the adjoint's linear solver; default `bicgstab()`.

    Returns:
      A `LinearSolution`: its status, its true relative `residual` (above 1e-3 the
      gradient is NaN) and its number of products.

    >>> import jax.numpy as jnp, jaxiter
    >>> T = lambda x: 0.5 * jnp.sin(x) + 1.0
    >>> report = jaxiter.adjoint_report(T, jaxiter.fixed_point(T, jnp.zeros(3)))
    >>> float(report.residual) < 1e-5
    True
    """
    x = lax.stop_gradient(solution.value)
    if cotangent is None:
        cotangent = trees.probe_like(x)
    equations, x, back = in_units(
        as_problem(problem), x, solution.state.answer.memory, args, has_aux)
    return linear_report(
        equations, x, args, bicgstab() if solve is None else solve, back(cotangent))


class Diagnosis(NamedTuple):
    """What `diagnose` found; print it.

    Attributes:
      shapes: one line per leaf of x. finite: x and T(x) are finite.
      residual: l2 norm of T(x) - x. floor: the smallest residual that x's dtype resolves.
      lipschitz: largest ratio of successive steps along the orbit; below 1 picard contracts.
      orbit_residual: residual after the orbit's steps.
      adjoint_residual: relative residual of the adjoint system solved at the orbit's end.
      deterministic: two evaluations at x agree bitwise.
    """

    shapes: tuple[str, ...]
    finite: jax.Array
    residual: jax.Array
    floor: jax.Array
    lipschitz: jax.Array
    orbit_residual: jax.Array
    adjoint_residual: jax.Array
    deterministic: jax.Array

    def __str__(self) -> str:
        advice = []
        if not bool(self.finite):
            advice.append("x or T(x) is not finite: check domains and step sizes.")
        if not bool(self.deterministic):
            advice.append("T is not deterministic: fix its randomness through args.")
        if float(self.lipschitz) >= 1:
            advice.append("the map does not contract along its orbit: use anderson(), damped() "
                          "or halpern(), or shorten its step.")
        elif float(self.lipschitz) > 0.95:
            advice.append("the map contracts slowly: anderson() will save most steps.")
        if not float(self.adjoint_residual) <= FAILURE:
            advice.append("the adjoint system is (nearly) singular: implicit gradients will be "
                          "NaN. Is the fixed point unique?")
        lines = [*self.shapes] + [
            f"{name}: {np.asarray(getattr(self, name)):.3g}"
            for name in ("residual", "floor", "lipschitz", "orbit_residual", "adjoint_residual")]
        return "\n".join(lines + (advice or ["nothing unusual"]))


def diagnose(
    problem: Problem | Callable, x: PyTree, *args: PyTree, steps: int = 20, has_aux: bool = False
) -> Diagnosis:
    """Look at a map around x: finiteness, contraction along the orbit, floor, adjoint.

    Args:
      problem, x, *args: as given to `fixed_point`.
      steps: length of the plain orbit that is followed.

    Returns:
      A `Diagnosis`; `print` it for advice.

    >>> import jax.numpy as jnp, jaxiter
    >>> print(jaxiter.diagnose(lambda x: 0.99 * x + 1, jnp.zeros(2)))  # doctest: +ELLIPSIS
    the root: float32[2]
    residual: 1.41
    ...
    the map contracts slowly: anderson() will save most steps.
    """
    problem = as_problem(problem)
    x = as_point(x)
    memory = () if problem.memory is None else problem.memory(x, *args)

    def image(x: PyTree) -> PyTree:
        cache = build_cache(problem, x, memory, args)
        output = evaluate(problem, x, cache, memory, args, has_aux)[0]
        return image_and_residual(problem, x, output)[0]

    def follow(carry: tuple, _: None) -> tuple:
        x, last, worst = carry
        move = trees.subtract(image(x), x)
        length = trees.norm(move)
        # Steps at the float floor are rounding noise, not contraction.
        noise = 16 * machine_epsilon(x) * trees.norm(x)
        worst = jnp.where(last > noise, jnp.maximum(worst, length / last), worst)
        return (trees.add(x, move), length, worst), None

    first = image(x)
    residual = trees.norm(trees.subtract(first, x))
    carry = (first, residual, jnp.zeros_like(residual))
    (end, last, worst), _ = lax.scan(follow, anchor(carry, (x, args)), length=steps)
    equations, scaled, back = in_units(problem, end, memory, args, has_aux)
    report = linear_report(
        equations, scaled, args, bicgstab(), back(trees.probe_like(end)))
    leaves = jax.tree_util.tree_leaves_with_path(x)
    again = image(x)
    same = [jnp.all((p == q) | (p != p)) for p, q in
            zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True)]
    return Diagnosis(
        shapes=tuple(f"{trees.path_name(path)}: {leaf.dtype}{list(leaf.shape)}"
                     for path, leaf in leaves),
        finite=trees.finite(x) & trees.finite(first),
        residual=residual,
        floor=4 * machine_epsilon(x) * jnp.maximum(trees.norm(x), trees.norm(first)),
        lipschitz=worst,
        orbit_residual=last,
        adjoint_residual=jnp.where(report.status == Status.NONFINITE, jnp.nan, report.residual),
        deterministic=jnp.all(jnp.stack(same)),
    )
