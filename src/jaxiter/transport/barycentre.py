"""Barycentres: the histogram that is nearest, in entropic transport, to several others."""

from typing import Any, NamedTuple, Unpack

import jax
import jax.numpy as jnp

from jaxiter.adjoint import frozen
from jaxiter.driver import fixed_point
from jaxiter.implicit import as_adjoint
from jaxiter.known import known
from jaxiter.numerics import on_own_mesh, stop_gradient, strong
from jaxiter.options import SolveOptions, choose
from jaxiter.reuse import reused
from jaxiter.solution import Solution, reports
from jaxiter.transport.barycentre_map import (
    Data,
    barycentre_problem,
    centred,
    equations,
    log_weights_of,
    split,
    start,
)
from jaxiter.transport.checks import MAX_STEPS, NO_RESUME, check_simplex, prepare
from jaxiter.transport.geometry import Geometry
from jaxiter.transport.iteration import from_units, sources
from jaxiter.transport.result import with_weights


@reports
class Barycentre(NamedTuple):
    """What `barycentre` has found.

    Attributes:
      weights: the barycentre `[m]`, of mass 1.
      f: potentials `[K, n]` of the histograms, in units of the cost; -inf where those are 0.
      g: potentials `[K, m]` of the barycentre: `P_k = exp((f_k + g_k - C) / epsilon)` has the
        marginals `histograms[k]` and, as far as it converged, `weights`. Of a histogram of share 0,
        or of a tiny one, neither potential nor the second marginal is solved for: the merit counts
        its error by its share. Where the pair is wanted, `sinkhorn` it with `weights`.
      solve: the Solution; its value is `g - epsilon log(weights)`, its merit the mean, by the
        shares, of the l1 errors `sum |P_k^T 1 - weights|`.
    """

    weights: jax.Array
    f: jax.Array
    g: jax.Array
    solve: Solution


@reused
@on_own_mesh
def barycentre(
    cost: jax.Array | Geometry,
    histograms: jax.Array,
    weights: jax.Array | None = None,
    *,
    epsilon: Any,
    debiased: bool = False,
    **options: Unpack[SolveOptions],
) -> Barycentre:
    """The histogram b that minimises `sum_k weights_k OT(histograms_k, b)`, OT entropic.

        g_k <- g(f(g_k; b)),    b = prod_k exp(-weights_k g_k / epsilon) / mass

    One step is Sinkhorn's for every histogram, on weights b that are the geometric mean of what
    the plans would have. A cost in memory gets one absorbed kernel a histogram, so that float32
    holds at any epsilon; a `Grid` is taken axis by axis. Entropy blurs the barycentre:
    `debiased=True` takes it out, by the Sinkhorn divergence in place of OT, whose second map
    `d <- sqrt(d b / (K d))` is in the log domain. The kernel hides what detail of histograms is
    finer than `sqrt(epsilon)`: there the debiased objective is as good as flat, and a step takes
    next to nothing off what is missing. MAX_STEPS is then the truth, and CONVERGED speaks of the
    marginals alone: the weights are smoother than the best ones. More steps do not help, an epsilon
    of the squared distance of neighbouring points does. Derivatives by such detail are NaN.

    Args:
      cost: `[n, m]`, from the points of the histograms to those of the barycentre, or a geometry.
      histograms: `[K, n]`, each at least 0 and of sum 1. Zeros are legal.
      weights: shares `[K]` of the histograms, at least 0 and of sum 1; default equal.
      epsilon: regularisation in units of the cost, positive; or `relative(0.05)`.
      debiased: as above; the cost is one of a set of points with itself.
      **options: those of `fixed_point`; max_steps 2000. No `resume`. `anderson()` pays on grids.

    Returns:
      A `Barycentre`. Derivatives of its arrays with respect to cost, histograms, weights and
      epsilon are exact and implicit; `unrolled()` differentiates the log-domain iteration.

    Raises:
      ValueError: shapes that do not fit, histograms or weights that are not on the simplex, NaN
        costs, epsilon <= 0, debiased with n != m. Under jit a status: BAD_INPUT or NONFINITE.

    Reference: Benamou, Carlier, Cuturi, Nenna and Peyre, "Iterative Bregman projections for
    regularized transportation problems", SIAM J. Sci. Comput. 37, 2015; Janati, Cuturi and
    Gramfort, "Debiased Sinkhorn barycenters", ICML, 2020.

    >>> import jax.numpy as jnp
    >>> line = jnp.square(jnp.arange(5.0)[:, None] - jnp.arange(5.0))
    >>> ends = jnp.array([[1.0, 0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0, 1.0]])
    >>> out = barycentre(line, ends, epsilon=0.5)
    >>> int(out.weights.argmax()), bool(out.converged)
    (2, True)
    """
    chosen = choose("barycentre", options, NO_RESUME, max_steps=MAX_STEPS)
    known(check_simplex, "histograms", histograms)
    known(check_simplex, "weights", weights)
    geometry, uniform = prepare(cost, None, None, epsilon, float("inf"), float("inf"))
    data = _data(geometry, histograms, weights, uniform.epsilon)
    if debiased and geometry.shape[0] != geometry.shape[1]:
        raise ValueError("a debiased barycentre lives on the points of the histograms: cost must "
                         f"be square, got {geometry.shape}.")
    adjoint = as_adjoint(chosen.adjoint)
    operands = geometry, data
    if adjoint.differentiates_loop:
        solve = fixed_point(barycentre_problem(False), start(geometry, data, debiased), *operands,
                            **chosen._asdict())
        x = solve.value
    else:
        fixed, known_data = stop_gradient(operands)
        solve = fixed_point(
            barycentre_problem(geometry.in_memory), start(fixed, known_data, debiased), fixed,
            known_data, **chosen._replace(adjoint=frozen())._asdict())
        solve = solve._replace(value=centred(solve.value, known_data))
        x = adjoint.attach(equations, solve.value, operands, solve.status)
    b = jnp.exp(log_weights_of(x, data))
    g, marginals = split(x)[0] * data.unit, data.marginals(b)
    f = jax.vmap(lambda g: sources(g, geometry, marginals))(g)
    solve = from_units(solve._replace(value=split(solve.value)[0]), marginals)
    return Barycentre(b, with_weights(f, data.histograms, data.epsilon),
                      with_weights(g, b, data.epsilon), solve)


def _data(geometry: Geometry, histograms: Any, weights: Any, epsilon: jax.Array) -> Data:
    """The operands, of the shapes that the cost wants."""
    n, dtype = geometry.shape[0], geometry.dtype
    histograms = strong(histograms).astype(dtype)
    if histograms.ndim != 2 or histograms.shape[1] != n or not histograms.size:
        raise ValueError(f"histograms must have shape [K, {n}], one a row, got "
                         f"{histograms.shape}.")
    count = histograms.shape[0]
    shares = jnp.full(count, 1 / count, dtype) if weights is None else strong(weights).astype(dtype)
    if shares.shape != (count,):
        raise ValueError(f"weights must have shape ({count},), one a histogram, got "
                         f"{shares.shape}.")
    return Data.at(histograms, shares, epsilon)
