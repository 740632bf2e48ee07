"""Diffusion and flow sampling: schedules, samplers as tables, and parallel solves of them."""

from jaxiter.diffusion.denoiser import Denoiser, guided
from jaxiter.diffusion.parallel import ParallelSample, sample_parallel
from jaxiter.diffusion.sample import sample
from jaxiter.diffusion.samplers import (
    Sampler,
    ddim,
    ddpm,
    dpm_solver_1,
    dpm_solver_2,
    dpm_solver_pp_2m,
    edm_stochastic,
    euler,
    heun,
    ipndm,
)
from jaxiter.diffusion.schedules import (
    NoiseSchedule,
    cosine_schedule,
    flow_matching_schedule,
    karras_schedule,
    linear_beta_schedule,
    log_snr_schedule,
    make_schedule,
    ve_schedule,
    vp_schedule,
)

__all__ = [
    "Denoiser", "NoiseSchedule", "ParallelSample", "Sampler", "cosine_schedule", "ddim", "ddpm",
    "dpm_solver_1", "dpm_solver_2", "dpm_solver_pp_2m", "edm_stochastic", "euler",
    "flow_matching_schedule", "guided", "heun", "ipndm", "karras_schedule",
    "linear_beta_schedule", "log_snr_schedule", "make_schedule", "sample", "sample_parallel",
    "ve_schedule", "vp_schedule",
]
