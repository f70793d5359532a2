"""Saved runs that these tests deploy: tiny networks, whose parameters are random numbers.

All of them are normalised.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qam_jax.agents import get_config, make_agent
from qam_jax.data.normalization import Normalization
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.folder import record_start
from qam_jax.runs.saved import init_state
from qam_jax.runs.settings import RunSettings

_SMALL = {
    "actor_hidden_dims": (8,), "critic_hidden_dims": (8,), "num_qs": 2, "flow_steps": 2,
    "horizon_length": 2, "actor_layer_norm": True,
}  # fmt: skip
_OBS, _ACT, _STEP = 3, 2, 4
_NORMALIZATION = Normalization(
    *(np.array(values, np.float32) for values in ([1, 2, 3], [1, 2, 0.5], [0, 0.5], [0.5, 1]))
)


@pytest.fixture(name="save_run", scope="session")
def _save_run(tmp_path_factory):
    """Makes a run's folder with one checkpoint, without training."""

    def save(agent_name="qam", env_name="Pendulum-v1", **changes):
        folder = tmp_path_factory.mktemp(agent_name)
        config = get_config(agent_name)
        fields = {**_SMALL, **changes}
        config.update({name: value for name, value in fields.items() if name in config})
        record_start(
            folder, RunSettings(env_name=env_name), config, dataset_source="none",
            dataset_fingerprint="0", observation_dim=_OBS, action_dim=_ACT,
        )  # fmt: skip
        state = init_state(make_agent(config), jax.random.PRNGKey(0), _OBS, _ACT)
        networks = {"params": state.params, "target_params": state.target_params}
        state = state.replace(step=jnp.int32(_STEP), **_shaken(networks))
        progress = {"stage": "offline", "evaluation": None}
        progress["normalization"] = _NORMALIZATION.to_json()
        checkpoints = Checkpoints(folder)
        checkpoints.save(_STEP, state, {"loss": jnp.zeros(())}, progress)
        checkpoints.close()
        return folder

    return save


def _shaken(params):
    """Parameters of which none is zero, so that every part of a policy shows in its actions."""
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.05, leaf.shape).astype("f"), params)


@pytest.fixture(name="qam_run", scope="session")
def _qam_run(save_run):
    return save_run("qam", best_of_n=3)
