"""Nesterov's momentum that starts afresh where it points uphill: FISTA with restarts."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.solvers.residual import residual_solver
from jaxiter.values import as_value

PyTree = Any


class MomentumState(NamedTuple):
    """The last image of T, and theta, from which the next weight comes."""

    image: PyTree
    theta: jax.Array


@as_value
def restarted_momentum() -> optax.GradientTransformationExtraArgs:
    """`y <- x+ + (theta - 1) / theta+ (x+ - x)`, x+ = T(y), theta+ = (1 + sqrt(1 + 4 theta^2)) / 2.

    Where `<y - x+, x+ - x> > 0` the momentum is dropped: theta = 1. For maps like a proximal
    gradient step, whose Jacobian has eigenvalues in [0, 1).

    Reference: Beck and Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear
    inverse problems", SIAM J. Imaging Sci. 2, 2009; O'Donoghue and Candes, "Adaptive restart for
    accelerated gradient schemes", Found. Comput. Math. 15, 2015.
    """
    def init(params: PyTree) -> MomentumState:
        return MomentumState(params, jnp.ones((), trees.norm_dtype(params)))

    def update(
        residual: PyTree, state: MomentumState, params: PyTree, **extra: Any
    ) -> tuple[PyTree, MomentumState]:
        del extra
        image = trees.add(params, residual)
        move = trees.subtract(image, state.image)
        uphill = trees.dot(residual, move).real < 0
        after = (1 + jnp.sqrt(1 + 4 * state.theta**2)) / 2
        weight = jnp.where(uphill, 0, (state.theta - 1) / after)
        theta = jnp.where(uphill, 1, after).astype(state.theta.dtype)
        return trees.axpy(weight, move, residual), MomentumState(image, theta)

    return residual_solver("restarted_momentum", init, update, ("params",))
