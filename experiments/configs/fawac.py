"""FAWAC with the paper's settings; `inv_temp` sharpens the weights."""

from qam_jax.agents.fawac import get_config

__all__ = ["get_config"]
