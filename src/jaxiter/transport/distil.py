"""Distillation by the transport of a batch: what a student's samples are like, not only each."""

from typing import Any, Unpack

import jax
import jax.numpy as jnp

from jaxiter.adjoint import unrolled
from jaxiter.known import check_positive
from jaxiter.numerics import accumulation_dtype, stop_gradient
from jaxiter.options import SolveOptions
from jaxiter.reuse import reused
from jaxiter.transport.permutations import sinkhorn_layer


@reused
def sinkhorn_distillation(
    student: jax.Array, teacher: jax.Array, *, epsilon: Any = 0.1, temperature: Any = 2.0,
    envelope: bool = False, **options: Unpack[SolveOptions],
) -> jax.Array:
    """Transport cost between the predictions of a student and a teacher on one batch.

        p = softmax(logits / temperature),   W_ij = |p_i of the student - p_j of the teacher|_1
        P = exp(-W / epsilon), rows and columns normalised 20 times;    loss = sum P W

    Its gradient does not vanish where the two have nothing in common, as that of a divergence
    does. Equal predictions do not give 0: epsilon blurs. The published weight is 1e-3 beside the
    cross-entropy of classification, 8e-4 for language models.

    Args:
      student, teacher: logits `[B, D]`; sequences as `[B T, D]`. Stop the teacher's gradient
        yourself where it is trained too.
      epsilon: in units of W, which is at most 2. temperature: of the softmax.
      envelope: whether the plan P is held fixed in derivatives, which so need not pass through the
        normalisations; another gradient than the loss's own, as `<P, W>` alone is not stationary.
      **options: as in `sinkhorn_layer`; default `adjoint=unrolled(), max_steps=20`, the published
        loop differentiated as it is. With `adjoint=implicit()` a solve to tolerance.

    Returns:
      A scalar, of the size of B; NaN where logits are, and for a traced epsilon or temperature
      that is not positive.

    Raises:
      ValueError: logits of different shapes, epsilon or temperature not positive.

    Reference: Cui et al., "Sinkhorn distance minimization for knowledge distillation", 2024.

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[20.0, 0.0], [0.0, 20.0]])
    >>> round(float(sinkhorn_distillation(logits, logits[::-1])), 2)
    0.0
    """
    if student.ndim != 2 or student.shape != teacher.shape or student.size == 0:
        raise ValueError("student and teacher must be logits [B, D] of the same samples and "
                         f"classes, got shapes {student.shape} and {teacher.shape}.")
    check_positive(epsilon=epsilon, temperature=temperature)
    kind = accumulation_dtype(student.dtype)
    temperature = jnp.asarray(temperature, kind)
    temperature = jnp.where(temperature > 0, temperature, jnp.nan)
    p, target = (jax.nn.softmax(logits.astype(kind) / temperature, axis=1)
                 for logits in (student, teacher))
    cost = jnp.sum(jnp.abs(p[:, None] - target[None]), axis=-1)
    if options.get("adjoint") is None:
        options = {"max_steps": 20, **options, "adjoint": unrolled()}
    plan = sinkhorn_layer(-cost, epsilon, **options)
    return jnp.sum((stop_gradient(plan) if envelope else plan) * cost)
