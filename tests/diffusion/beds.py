"""Models that the tests of samplers share."""

import jax.numpy as jnp
import numpy as np

from jaxiter.diffusion import (
    ddim,
    ddpm,
    dpm_solver_pp_2m,
    edm_stochastic,
    flow_matching_schedule,
    heun,
    ipndm,
    karras_schedule,
    linear_beta_schedule,
)
from jaxiter.testing.diffusion import Mixture

MIX = Mixture(np.random.default_rng(0).normal(size=(6, 4)), 0.4)
LINEAR, KARRAS, FLOW = linear_beta_schedule(30), karras_schedule(12), flow_matching_schedule(16)
CASES = {
    "ddim": (ddim(LINEAR), LINEAR, "eps"), "ddpm": (ddpm(LINEAR), LINEAR, "v"),
    "2m": (dpm_solver_pp_2m(LINEAR), LINEAR, "x0"), "ipndm": (ipndm(LINEAR), LINEAR, "score"),
    "heun": (heun(KARRAS), KARRAS, "eps"), "flow": (ddim(FLOW), FLOW, "velocity"),
    "edm": (edm_stochastic(KARRAS, churn=2.0), KARRAS, "x0"),
}


def start(schedule, seed=0, size=4):
    x = np.random.default_rng(seed).normal(size=size)
    return jnp.asarray(schedule.sigma[0] * x, jnp.result_type(float))
