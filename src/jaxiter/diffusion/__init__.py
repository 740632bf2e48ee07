"""Diffusion and flow sampling: schedules, samplers as tables, and parallel solves of them."""

from jaxiter.diffusion.accelerated import accelerated_ddim, accelerated_ddpm
from jaxiter.diffusion.adjoint_matching import adjoint_matching_loss, lean_adjoint, memoryless_path
from jaxiter.diffusion.denoiser import Denoiser, guided
from jaxiter.diffusion.exponential import SolverSearch, exponential_multistep, search_orders
from jaxiter.diffusion.feynman_kac import Particles, feynman_kac_sample
from jaxiter.diffusion.implicit_diffusion import implicit_denoising, implicit_diffusion
from jaxiter.diffusion.inversion import invert_flow, largest_step_size, uniinv
from jaxiter.diffusion.methods import gaussian, jvp, paratta
from jaxiter.diffusion.momentum import ghvb, heavy_ball, ipndm, nesterov
from jaxiter.diffusion.parallel import ParallelSample, absolute, sample_parallel
from jaxiter.diffusion.picard_consistency import (
    picard_consistency_loss,
    picard_iterates,
    sample_switching,
)
from jaxiter.diffusion.policy import receding_horizon, warm_start_steps
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
from jaxiter.diffusion.solver_search import LearntSolver, euler_solver, integrate, search_solver
from jaxiter.diffusion.timesteps import OptimalSteps, optimal_steps, straightening_pairs

__all__ = [
    "Denoiser", "LearntSolver", "NoiseSchedule", "OptimalSteps", "ParallelSample", "Particles",
    "Sampler", "SolverSearch", "absolute", "accelerated_ddim", "accelerated_ddpm",
    "adjoint_matching_loss", "cosine_schedule", "ddim", "ddpm", "dpm_solver_1", "dpm_solver_2",
    "dpm_solver_pp_2m", "edm_stochastic", "euler", "euler_solver", "exponential_multistep",
    "feynman_kac_sample", "flow_matching_schedule", "gaussian", "ghvb", "guided", "heavy_ball",
    "heun", "implicit_denoising", "implicit_diffusion", "integrate", "invert_flow", "ipndm", "jvp",
    "karras_schedule", "largest_step_size", "lean_adjoint", "linear_beta_schedule",
    "log_snr_schedule", "make_schedule", "memoryless_path", "nesterov", "optimal_steps", "paratta",
    "picard_consistency_loss", "picard_iterates", "receding_horizon", "sample", "sample_parallel",
    "sample_switching", "search_orders", "search_solver", "straightening_pairs", "uniinv",
    "ve_schedule", "vp_schedule", "warm_start_steps",
]
