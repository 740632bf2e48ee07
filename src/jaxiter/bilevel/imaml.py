"""Implicit MAML: meta-learning of a start, without unrolling the adaptation.

Source: Rajeswaran, Finn, Kakade and Levine, "Meta-learning with implicit gradients", 2019.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxiter import trees
from jaxiter.bilevel.hypergradient import hypergradient
from jaxiter.bilevel.inner import solve_inner
from jaxiter.known import check_positive
from jaxiter.linear import LinearSolver
from jaxiter.options import SolveOptions, choose
from jaxiter.reuse import reused
from jaxiter.solution import LoopState, Solution, most_severe, reports

PyTree = Any


@reports
class MamlResult(NamedTuple):
    """Means over tasks, and the adaptations.

    Attributes:
      value, grad: means over tasks of the validation loss and of its gradient by theta.
      solve: the `Solution` of every task's adaptation, stacked: `solve.value` are the parameters.
      status: the most severe `jaxiter.Status` of every task's adaptation and linear solve,
        `[tasks]`.
    """

    value: jax.Array
    grad: PyTree
    solve: Solution
    status: jax.Array


@reused
def implicit_maml(
    train: Callable, validation: Callable, theta: PyTree, tasks: PyTree, *, strength: Any = 1.0,
    solve: LinearSolver | None = None, damping: Any = 0.0, **options: Unpack[SolveOptions],
) -> MamlResult:
    """The meta-gradient at theta: `mean_i (I + H_i / strength)^-1 grad validation(phi_i)`.

    `phi_i = argmin train(phi, task_i) + strength / 2 |phi - theta|^2`. The proximal term is what
    makes the adapted phi depend on theta: the start of a solve never does.

    Args:
      train, validation: `(parameters, task) -> scalar`.
      theta: the start to learn. tasks: a pytree, leading axis tasks.
      strength: above minus the curvature of train, so that every adaptation has one answer.
      solve, damping: of the linear solve, as in `hypergradient`.
      **options: of the adaptations, as in `solve_inner`; max_steps is 500 by default, and resume
        a state of all tasks.

    Raises:
      ValueError: strength not positive.

    >>> import jax, jax.numpy as jnp
    >>> loss = lambda phi, centre: jnp.sum((phi - centre) ** 2) / 2
    >>> out = jax.jit(lambda t: implicit_maml(loss, loss, t, jnp.ones((3, 2))))(jnp.zeros(2))
    >>> [round(float(g), 3) for g in out.grad]  # phi = 1/2, (1 + 1)^-1 (phi - 1)
    [-0.25, -0.25]
    """
    check_positive(strength=strength)
    chosen = choose("implicit_maml", options, {}, solver=None, adjoint=None, max_steps=500)
    if any(jnp.shape(leaf)[:1] in ((), (0,)) for leaf in jax.tree.leaves(tasks)):
        raise ValueError("tasks must have a leading axis of at least one task, got shapes "
                         f"{[jnp.shape(leaf) for leaf in jax.tree.leaves(tasks)]}.")

    def one(task: PyTree, resume: LoopState | None) -> tuple:
        def inner(theta: PyTree, phi: PyTree) -> jax.Array:
            return train(phi, task) + strength / 2 * trees.squared_norm(trees.subtract(phi, theta))

        adapted = solve_inner(inner, theta, theta, **chosen._replace(resume=resume)._asdict())
        out = hypergradient(lambda theta, phi: validation(phi, task), inner, theta, adapted.value,
                            solve=solve, damping=damping)
        return out.value, out.grad, adapted, most_severe(adapted.status, out.status)

    value, grad, adapted, status = jax.vmap(one)(tasks, chosen.resume)
    value, grad = trees.mean_rows((value, grad))
    return MamlResult(value, grad, adapted, status)
