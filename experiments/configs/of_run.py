"""The hyperparameters of an earlier run: `--config=experiments/configs/of_run.py:<its folder>`."""

from ml_collections import ConfigDict

from qam_jax import agents
from qam_jax.runs.folder import read_config


def get_config(run: str) -> ConfigDict:
    saved = read_config(run)["agent"]
    config = agents.get_config(saved["agent_name"])
    config.update({name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()})
    return config
