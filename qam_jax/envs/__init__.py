"""Gymnasium environments, one or many at a time. Knows nothing of agents and does not load JAX."""

from qam_jax.envs.make import (
    find_render_backend,
    is_ogbench,
    make_env,
    make_env_within,
    make_film_env,
)
from qam_jax.envs.pool import EnvFailure, EnvPool, EnvsRestarted
from qam_jax.envs.wrappers import OpenLoopChunks, OwnRandomState

__all__ = [
    "EnvFailure",
    "EnvPool",
    "EnvsRestarted",
    "OpenLoopChunks",
    "OwnRandomState",
    "find_render_backend",
    "is_ogbench",
    "make_env",
    "make_env_within",
    "make_film_env",
]
