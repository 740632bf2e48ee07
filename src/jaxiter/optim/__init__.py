"""Optax transformations that optax does not have, and training methods that are none.

The transformations compute in at least float32 (but what `cautious` wraps) and return updates in
the dtypes of the gradients, so bfloat16 and float16 parameters work. Numbers may be traced, as by
`optax.inject_hyperparams`; sizes are static. Integers and None pass through: where there are
some, `optax.tree.map_params` with a second tree takes `is_leaf=lambda leaf: leaf is None`.

Complex parameters are right everywhere: methods of whole-tree norms treat them as pairs of real
ones, methods of single entries or matrices use magnitudes and conjugate transposes. As for all of
optax, hand over `jax.tree.map(jnp.conj, grads)`: jax's gradient is the conjugate of the direction.

`proxy_prox` and `target_surrogate` are processes for `iterate`, which spend few dear gradients;
`persistent_es` estimates gradients through long loops.
"""

from jaxiter.optim.alr import alr
from jaxiter.optim.cautious import cautious, cautious_momentum, grams, sign_agreement
from jaxiter.optim.complex_momentum import trace_complex
from jaxiter.optim.dog import a_dog, u_dog
from jaxiter.optim.evolution import persistent_es
from jaxiter.optim.mars import mars_correction, mars_m, mars_value_and_grad
from jaxiter.optim.muon import TURBO_NS_COEFFS, inexact_lmo_scale, polar_error
from jaxiter.optim.nag_gs import nag_gs, nag_gs_optimal_alpha
from jaxiter.optim.opt_amsgrad import opt_amsgrad
from jaxiter.optim.power_sgd import power_sgd, power_sgd_specs
from jaxiter.optim.proxy_prox import proxy_prox
from jaxiter.optim.schedules import (
    record_gradient_norm,
    refine_schedule,
    wsd_schedule,
    wsds_schedule,
)
from jaxiter.optim.shampoo import kronecker_cosine, scale_by_shampoo
from jaxiter.optim.target_surrogate import target_surrogate
from jaxiter.optim.transform import evaluation_params

__all__ = [
    "TURBO_NS_COEFFS", "a_dog", "alr", "cautious", "cautious_momentum", "evaluation_params",
    "grams", "inexact_lmo_scale", "kronecker_cosine", "mars_correction", "mars_m",
    "mars_value_and_grad", "nag_gs", "nag_gs_optimal_alpha", "opt_amsgrad", "persistent_es",
    "polar_error", "power_sgd", "power_sgd_specs", "proxy_prox", "record_gradient_norm",
    "refine_schedule", "scale_by_shampoo", "sign_agreement", "target_surrogate", "trace_complex",
    "u_dog", "wsd_schedule", "wsds_schedule",
]
