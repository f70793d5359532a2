"""Any method, small enough for a CPU: `--config=experiments/configs/small.py:<method>`.

`small.py:<method>,<env_name>`, such as `fql,cube-double-play-singletask-v0`, also takes the
hyperparameters that the paper tuned for the method in the domain of the environment.
"""

from ml_collections import ConfigDict

from qam_jax import agents
from qam_jax.runs import presets

_SMALL = {
    "actor_hidden_dims": (128, 128),
    "critic_hidden_dims": (128, 128),
    "num_qs": 2,
    "flow_steps": 5,
    "batch_size": 128,
    "lr": 1e-3,
    "tau": 0.02,
}
_OF_THE_TASK = {"horizon_length", "action_chunking", "discount"}


def get_config(which: str = "qam") -> ConfigDict:
    method, _, env_name = which.partition(",")
    config = agents.get_config(method)
    changes = dict(_SMALL)
    if env_name:
        tuned = presets.paper(method, env_name).config
        changes |= {name: value for name, value in tuned.items() if name not in _OF_THE_TASK}
    config.update({name: value for name, value in changes.items() if name in config})
    return config
