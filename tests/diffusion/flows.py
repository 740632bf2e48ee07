"""A flow to a mixture, that its inversion and the applications share."""

import numpy as np

from jaxiter.diffusion import (
    ddim,
    flow_matching_schedule,
    sample,
)
from jaxiter.testing.diffusion import Mixture, mixture_denoiser

FLOW_MIX = Mixture(np.random.default_rng(0).normal(size=(6, 8)), 0.25)


def flow(z):
    schedule = flow_matching_schedule(10)
    return sample(ddim(schedule), mixture_denoiser(FLOW_MIX, schedule, "velocity"), z)
