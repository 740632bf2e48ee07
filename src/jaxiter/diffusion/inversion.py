"""The noise from which a sampler makes a given sample: a fixed point around the whole flow.

Source: Ronai, Kulikov and Michaeli, "FlowOpt: fast optimization through whole flow processes for
training-free editing", 2025.
"""

from collections.abc import Callable
from typing import Any, Unpack

import jax
import jax.numpy as jnp
from jax import lax

from jaxiter import trees
from jaxiter.driver import fixed_point
from jaxiter.known import check_count, check_positive
from jaxiter.numerics import is_concrete
from jaxiter.options import SolveOptions, choose
from jaxiter.problem import Problem
from jaxiter.reuse import reused
from jaxiter.solution import Solution


@reused
def invert_flow(
    flow: Callable, y: jax.Array, init: jax.Array, *, step_size: Any = 0.1,
    **options: Unpack[SolveOptions],
) -> Solution:
    """Solve `flow(z) = y` for z by `z <- z - step_size (flow(z) - y)`, with no derivative of flow.

    Args:
      flow: a sampler from noise to data, such as `lambda z: sample(sampler, denoiser, z)`; with
        another condition than the one that made y, few steps edit y instead.
      y: the sample. init: first guess of z, such as `uniinv` gives.
      step_size: below `largest_step_size`.
      **options: as in `fixed_point`, max_steps 30; the merit is `|flow(z) - y|`, its scale `|y|`.
        `solver=guard(anderson(3))` needs fewer steps.

    Returns:
      A `Solution`; its value has implicit derivatives by y and what flow closes over.

    Raises:
      ValueError: flow(z) of another shape than y, step_size <= 0.

    >>> import jax.numpy as jnp
    >>> out = invert_flow(lambda z: 2 * z + 1, jnp.ones(3), jnp.ones(3), step_size=0.4)
    >>> bool(out.converged), bool(jnp.all(abs(out.value) < 1e-3))
    (True, True)
    """
    chosen = choose("invert_flow", options, {}, max_steps=30)
    shape = jax.eval_shape(flow, init).shape
    if not shape == y.shape == init.shape:
        raise ValueError(f"flow(z), y and init must have one shape, got {shape}, {y.shape} and "
                         f"{init.shape}.")
    check_positive(step_size=step_size)

    # As a residual: of steps below one epsilon of z, T(z) - z would know nothing.
    problem = Problem(
        residual=lambda z, y, size: -size * (flow(z) - y),
        merit=lambda z, move, y, size: trees.norm(move) / size.astype(trees.norm_dtype(move)),
        scale=lambda z, move, y, size: trees.norm(y))
    return fixed_point(problem, init, y, jnp.asarray(step_size, y.dtype), **chosen._asdict())


@reused
def uniinv(velocity: Callable, y: jax.Array, steps: int = 10) -> jax.Array:
    """Backward integration of `velocity(x, t)` from data (t = 1) to noise (t = 0): a first guess.

    Every step moves by the velocity at its far end, estimated with the previous one: one call
    a step and one more, and much nearer to the forward Euler path than Euler backwards.

    Raises:
      ValueError: steps below 1.
    """
    check_count(steps=steps)
    size = 1 / steps
    times = 1 - size * jnp.arange(1, steps + 1, dtype=y.dtype)

    def step(carry: tuple, t: jax.Array) -> tuple[tuple, None]:
        x, v = carry
        v = velocity(x - size * v, t)
        return (x - size * v, v), None

    return lax.scan(step, (y, velocity(y, jnp.ones((), y.dtype))), times)[0][0]


def largest_step_size(flow: Callable, a: jax.Array, b: jax.Array, quantile: float = 0.05) -> Any:
    """Step sizes below this bring pairs of points of the flow together.

    The given quantile of `2 <dz, df> / |df|^2` over pairs a, b `[B, ...]`.

    Raises:
      ValueError: outside jit, where the flow is not monotone on these pairs.
    """
    df = jax.vmap(flow)(a) - jax.vmap(flow)(b)
    dz, df = ((array).reshape(len(array), -1) for array in (a - b, df))
    ratio = 2 * jnp.sum(dz * df, axis=1) / jnp.sum(df * df, axis=1)
    bound = jnp.quantile(ratio, quantile)
    if is_concrete(bound) and not bound > 0:
        raise ValueError(f"the flow is not monotone here (bound {float(bound):.3g}): lower the "
                         "number of target modes or use gradients.")
    return bound
