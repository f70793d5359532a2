"""Checkpoints of the whole agent state, by orbax: written asynchronously and atomically."""

import os
from pathlib import Path
from typing import NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState, make_agent
from qam_jax.envs import make_env
from qam_jax.training.keys import split_seed
from qam_jax.training.run_folder import read_config


class Checkpoints:
    """The checkpoints in a run's folder; keeps the newest few.

    Args:
      folder: the run's folder.
      max_to_keep: how many to keep.
      read_only: whether nothing is to be written, not even the folder.
    """

    def __init__(self, folder: str | os.PathLike, max_to_keep: int = 2, *, read_only: bool = False):
        self._manager = ocp.CheckpointManager(
            Path(folder).expanduser().absolute() / "checkpoints",
            options=ocp.CheckpointManagerOptions(
                max_to_keep=None if read_only else max_to_keep,
                create=not read_only,
            ),
        )

    @property
    def steps(self) -> list[int]:
        """The steps that there are checkpoints of, in order."""
        return sorted(self._manager.all_steps())

    def save(self, state: AgentState) -> None:
        """Starts to write the state under its own step, unless it is there."""
        step = int(state.step)
        if step not in self.steps:
            self._manager.save(step, args=ocp.args.StandardSave(state))

    def restore(self, state: AgentState, step: int | None = None) -> AgentState:
        """Reads a state.

        Args:
          state: a state of the same agent, which tells the structure; its values are not used.
          step: which checkpoint; the newest by default.

        Raises:
          FileNotFoundError: if there is no such checkpoint; names those that there are.
        """
        step = self.steps[-1] if step is None and self.steps else step
        if step not in self.steps:
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise FileNotFoundError(
                f"{wanted} in {self._manager.directory}; there are: {self.steps or 'none'}."
            )
        return self._manager.restore(step, args=ocp.args.StandardRestore(state))

    def close(self) -> None:
        """Waits until everything is on disk."""
        self._manager.close()


def init_state(agent: Agent, seed: int, env: gymnasium.Env) -> AgentState:
    """The agent's state before its first update."""
    observation = jnp.zeros(env.observation_space.shape, jnp.float32)
    action = jnp.zeros(env.action_space.shape, jnp.float32)
    return jax.jit(agent.init)(split_seed(seed).agent, observation, action)


class SavedRun(NamedTuple):
    """A run read back: its config.json as `config`, its agent, and the agent's state."""

    config: ConfigDict
    agent: Agent
    state: AgentState


def load_run(folder: str | os.PathLike, step: int | None = None) -> SavedRun:
    """Reads a run from its folder.

    Args:
      folder: the run's folder, `exp/<group>/<env_name>/<run id>`.
      step: which checkpoint; the newest by default.

    Raises:
      FileNotFoundError: if that is not a run's folder, or there is no such checkpoint.
    """
    config = ConfigDict(read_config(folder))
    agent = make_agent(config.agent)
    state = init_state(agent, config.seed, make_env(config.env_name))
    checkpoints = Checkpoints(folder, read_only=True)
    try:
        return SavedRun(config, agent, checkpoints.restore(state, step))
    finally:
        checkpoints.close()
