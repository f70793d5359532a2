"""Q-learning with Adjoint Matching in JAX: flow-policy reinforcement learning.

Re-exports the pure core, which needs no config and no network library. Each name is loaded on first
use: processes of simulators import `qam_jax.envs` without JAX.
"""

import importlib
from typing import Any

__version__ = "0.2.0"

_EXPORTS = {
    "flow_matching_loss": "flow",
    "memoryless_noise_scale": "flow",
    "reverse_flow": "flow",
    "sample_flow": "flow",
    "sample_flow_and_sde": "flow",
    "sample_flow_inpainted": "flow",
    "sample_memoryless_sde": "flow",
    "adjoint_matching_loss": "adjoint",
    "solve_lean_adjoint": "adjoint",
    "terminal_adjoint": "adjoint",
    "pessimistic_value": "critic",
    "td_loss": "critic",
    "td_target": "critic",
    "DiffusionSchedule": "diffusion",
    "add_noise": "diffusion",
    "denoising_loss": "diffusion",
    "posterior_step": "diffusion",
    "predict_clean": "diffusion",
    "q_score_matching_loss": "diffusion",
    "sample_by_jumps": "diffusion",
    "sample_ddpm": "diffusion",
    "soft_guidance_loss": "diffusion",
    "vp_schedule": "diffusion",
    "Agent": "agents",
    "AgentState": "agents",
    "get_config": "agents",
    "make_agent": "agents",
    "load_policy": "deploy",
    "Batch": "types",
    "TransitionDataset": "types",
}

__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'qam_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(f"qam_jax.{_EXPORTS[name]}"), name)


def __dir__() -> list[str]:
    return [*globals(), *_EXPORTS]
