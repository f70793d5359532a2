"""Behaviour cloning with a flow policy."""

from qam_jax.agents.bc import get_config

__all__ = ["get_config"]
