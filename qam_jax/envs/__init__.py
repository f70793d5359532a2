"""Gymnasium environments, one or many at a time. Knows nothing of agents and does not load JAX."""

from qam_jax.envs.make import make_env, make_vector_env
from qam_jax.envs.wrappers import EpisodeSummary, OpenLoopChunks

__all__ = ["EpisodeSummary", "OpenLoopChunks", "make_env", "make_vector_env"]
