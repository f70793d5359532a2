"""FEdit with the paper's settings; `edit_scale` is the size of an edit."""

from qam_jax.agents.fedit import get_config

__all__ = ["get_config"]
