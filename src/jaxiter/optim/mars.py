"""MARS: variance reduction by the previous gradient, in front of any preconditioner.

Source: Liu, Yuan and Gu, "MARS-M: when variance reduction meets matrices", 2025.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxiter import trees
from jaxiter.known import check_positive
from jaxiter.optim.transform import next_count, scalars, transformation
from jaxiter.solvers.residual import of_optax

PyTree = Any


class MarsState(NamedTuple):
    """Steps made and the last gradient."""

    count: jax.Array
    last: PyTree


def mars_correction(
    beta: float = 0.95, gamma: Any = 0.025, clip: float | None = 1.0, exact: bool = False
) -> optax.GradientTransformationExtraArgs:
    """`c = g + gamma beta / (1 - beta) (g - h)`, clipped to a norm per leaf; chain it first.

    h is the last gradient as it was, or, exact, the gradient of the current batch at the previous
    parameters, given as `update(..., prev_point_grad=h)` (see `mars_value_and_grad`).

    Args:
      beta: of the momentum that follows, in (0, 1). gamma: 0 changes nothing.
      clip: largest norm of a leaf; None: no clip. exact: see above; no state is then kept.

    Raises:
      ValueError: beta outside (0, 1), gamma < 0, exact without the gradient.

    >>> import jax.numpy as jnp
    >>> correction = mars_correction(0.5, 1.0, clip=None)
    >>> state = correction.init(jnp.zeros(1))
    >>> _, state = correction.update(jnp.ones(1), state)
    >>> float(correction.update(jnp.array([3.0]), state)[0][0])  # 3 + (3 - 1)
    5.0
    """
    if isinstance(beta, int | float) and not 0 < beta < 1:
        raise ValueError(f"beta must be in (0, 1), got {beta}.")
    if isinstance(gamma, int | float) and gamma < 0:
        raise ValueError(f"gamma must not be negative, got {gamma}.")
    if clip is not None:
        check_positive(clip=clip)

    def init(params: PyTree) -> MarsState:
        return MarsState(jnp.int32(0), None if exact else trees.zeros_like(params))

    def update(
        g: PyTree, state: MarsState, params: PyTree, *, prev_point_grad: PyTree = None, **_: Any
    ) -> tuple[PyTree, MarsState]:
        del params
        change = trees.subtract(g, prev_point_grad if exact else state.last)
        strength, decay = scalars(g, gamma, beta)
        factor = jnp.where(state.count > 0, strength * decay / (1 - decay), 0)
        corrected = trees.axpy(factor, change, g)
        if clip is not None:
            corrected = jax.tree.map(
                lambda leaf: trees.into_ball(scalars(leaf, clip)[0], leaf), corrected)
        return corrected, MarsState(next_count(state.count), None if exact else g)

    other = ("prev_point_grad",)
    return transformation("mars_correction", init, update, other if exact else (), other)


def mars_value_and_grad(loss: Callable) -> Callable:
    """`(params, previous, *batch) -> (value, grad, grad at previous)` on the same batch.

    >>> import jax.numpy as jnp
    >>> both = mars_value_and_grad(lambda x, b: jnp.sum((x - b) ** 2))
    >>> [float(part) for part in both(jnp.float32(1), jnp.float32(2), 0.0)]
    [1.0, 2.0, 4.0]
    """
    def both(params: PyTree, previous: PyTree, *batch: Any) -> tuple:
        value, grad = jax.value_and_grad(loss)(params, *batch)
        return value, grad, jax.grad(loss)(previous, *batch)

    return both


def mars_m(
    learning_rate: Any, beta: Any = 0.95, gamma: Any = 0.025, weight_decay: Any = 0.0,
    clip: Any = 1.0, ns_coeffs: Any = None, ns_steps: int | None = None,
    preconditioning: str = "frobenius",
) -> optax.GradientTransformationExtraArgs:
    """MARS-M: corrected gradients orthogonalised by `optax.contrib.scale_by_muon`, and AdamW.

    Matrices move by `0.2 sqrt(largest side)` times the polar factor of their momentum, which has
    Adam's usual size; other leaves by AdamW with betas (0.9, 0.95).

    Args:
      beta, gamma, clip: of `mars_correction`.
      ns_coeffs, ns_steps, preconditioning: of `optax.contrib.scale_by_muon`; default its own.
        `ns_coeffs=TURBO_NS_COEFFS, preconditioning="aol"` takes four steps for five.

    Raises:
      ValueError: beta outside (0, 1), complex matrices with the preconditioning "schatten".

    >>> import jax.numpy as jnp
    >>> optimizer = mars_m(0.1)
    >>> params = {"w": jnp.eye(2)}
    >>> updates, _ = optimizer.update(params, optimizer.init(params), params)
    >>> bool(updates["w"][0, 0] < -0.01)
    True
    """
    muon = {"ns_coeffs": ns_coeffs, "ns_steps": ns_steps, "preconditioning": preconditioning}

    def dimensions(params: PyTree) -> PyTree:
        return jax.tree.map(lambda _: optax.contrib.MuonDimensionNumbers(), params)

    def grow(updates: PyTree, _: PyTree) -> PyTree:
        return jax.tree.map(lambda leaf: 0.2 * max(leaf.shape) ** 0.5 * leaf, updates)

    matrices = optax.chain(
        mars_correction(beta, gamma, clip),
        optax.contrib.scale_by_muon(
            beta=beta, nesterov=False, weight_dimension_numbers=dimensions,
            **{key: value for key, value in muon.items() if value is not None}),
        optax.stateless(grow), optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate))
    matrices = transformation("mars_m", matrices.init, matrices.update, gather=True)
    rest = optax.adamw(learning_rate, b1=0.9, b2=0.95, weight_decay=weight_decay)

    def labels(params: PyTree) -> PyTree:
        def label(leaf: jax.Array) -> str:
            if leaf.ndim == 2 and jnp.iscomplexobj(leaf) and preconditioning == "schatten":
                raise ValueError("mars_m: the preconditioning 'schatten' does not conjugate; wrap "
                                 "with optax.contrib.split_real_and_imaginary.")
            return "matrix" if leaf.ndim == 2 else "rest"

        return jax.tree.map(label, params)

    both = of_optax(optax.partition({"matrix": matrices, "rest": rest}, labels))
    return transformation("mars_m", both.init, both.update, ("params",))
