"""DSRL with the paper's settings; `noise_scale` bounds the latent actor's noise."""

from qam_jax.agents.dsrl import get_config

__all__ = ["get_config"]
