"""A trained policy outside of training: loaded, exported, executed."""

from qam_jax.deploy.policy import Policy, load_policy

__all__ = ["Policy", "load_policy"]
