"""QAM in a point maze in a few minutes: small networks and a faster schedule.

docs/quickstart.md says what differs from the paper, and why.
"""

from ml_collections import ConfigDict

from qam_jax.agents import qam


def get_config() -> ConfigDict:
    config = qam.get_config()
    config.actor_hidden_dims = (128, 128)
    config.critic_hidden_dims = (128, 128)
    config.num_qs = 2
    config.flow_steps = 5
    config.lr = 1e-3
    config.tau = 0.02
    config.discount = 0.995
    config.inv_temp = 3.0
    return config
