"""A saved run, read from its folder, and the state that its checkpoints are read into."""

import contextlib
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax import memory
from qam_jax.agents import (
    Agent,
    AgentState,
    cloning_config,
    later_changes,
    make_agent,
    make_guided_agent,
)
from qam_jax.data.normalization import Normalization
from qam_jax.files import DamagedError
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.folder import read_config, read_metadata
from qam_jax.types import Array


def init_state(agent: Agent, key: Array, observation_dim: int, action_dim: int) -> AgentState:
    """Returns the agent's state before its first update. Raises MemoryError if it does not fit."""
    check_state_fits(agent, observation_dim, action_dim)
    return jax.jit(agent.init)(key, jnp.zeros(observation_dim), jnp.zeros(action_dim))


def check_state_fits(agent: Agent, observation_dim: int, action_dim: int, count: int = 1) -> None:
    """Raises MemoryError if the states of `count` runs do not fit into the device's memory."""
    examples = jnp.zeros(observation_dim), jnp.zeros(action_dim)
    state = jax.eval_shape(agent.init, jax.random.PRNGKey(0), *examples)
    memory.check_fits(
        "networks and the state of their optimiser" + (f", for {count} seeds," * (count > 1)),
        count * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state)),
        "Lower their widths (--config.actor_hidden_dims, --config.critic_hidden_dims), "
        "--config.num_qs or --num_seeds.",
    )


class SavedRun(NamedTuple):
    """A saved run: config.json, the agent of the checkpoint's stage, its state, and the step.

    The agent takes normalised observations and gives normalised actions, by `normalization`.
    """

    config: ConfigDict
    agent: Agent
    state: AgentState
    step: int
    normalization: Normalization


def load_run(folder: str | os.PathLike, step: int | str = "newest") -> SavedRun:
    """Reads a run from its folder, `exp/<group>/<env_name>/<run id>`.

    The step of the checkpoint is a number, `newest` or `best`.

    Raises:
      DamagedError: if the checkpoint or the config is damaged; names the other checkpoints.
      FileNotFoundError: if it is not a run's folder, or there is no such checkpoint.
      ValueError: if the algorithm had other networks in the version that wrote it.
    """
    config, metadata = ConfigDict(read_config(folder)), read_metadata(folder)
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        found = checkpoints.find(step)
        try:
            progress = checkpoints.read_progress(found)
            cloning = progress["stage"] == "cloning"
            agent_config = cloning_config(config.agent) if cloning else config.agent
            check_unchanged(folder, agent_config, to_train=False)
            agent = make_agent(agent_config)
            dims = metadata["observation_dim"], metadata["action_dim"]
            state = init_state(agent, jax.random.PRNGKey(0), *dims)
            state = checkpoints.restore_agent(found, state)
        except DamagedError as error:
            others = ", ".join(str(other) for other in checkpoints.steps if other != found)
            advice = f"give another by its step: {others}" if others else "there is no other"
            raise DamagedError(
                f"the checkpoint of step {found} in {checkpoints.folder} is damaged ({error}); "
                f"{advice}."
            ) from error
    return SavedRun(config, agent, state, found, _normalization_of(progress, dims))


def newest_normalization(folder: str | os.PathLike) -> Normalization | None:
    """Reads the normalisation of a run's newest checkpoint that can be read; None if none can."""
    with contextlib.closing(Checkpoints(folder, read_only=True)) as checkpoints:
        for step in reversed(checkpoints.steps):
            with contextlib.suppress(DamagedError):
                progress, metadata = checkpoints.read_progress(step), read_metadata(folder)
                dims = metadata["observation_dim"], metadata["action_dim"]
                return _normalization_of(progress, dims)
    return None


def _normalization_of(progress: dict[str, Any], dims: tuple[int, int]) -> Normalization:
    """Returns the normalisation that a checkpoint holds; of an earlier version's, the identity."""
    saved = progress.get("normalization")
    return Normalization.from_json(saved) if saved else Normalization.identity(*dims)


def change_policy(
    run: SavedRun, guidance: float | None = None, best_of_n: int | None = None
) -> SavedRun:
    """Makes a saved run act by its guided behaviour flow, or by the best of n actions.

    The weight of the critic's gradient is `guidance`, see `agents.make_guided_agent`; a None leaves
    the run's own policy, or number of actions.

    Raises ValueError if a number is out of range, or the run lacks the networks for it.
    """
    config = ConfigDict(run.config.agent)
    if best_of_n is not None:
        if "best_of_n" not in config or "critic" not in run.state.params:
            raise ValueError(
                "best_of_n is for a policy whose actions are ranked by a critic; "
                f"{config.agent_name!r} has none at step {run.step}."
            )
        config.best_of_n = best_of_n
    if guidance is not None:
        return run._replace(agent=make_guided_agent(config, run.state, guidance))
    return run._replace(agent=make_agent(config)) if best_of_n is not None else run


def check_unchanged(folder: str | os.PathLike, config: ConfigDict, *, to_train: bool) -> None:
    """Raises ValueError if an algorithm has changed since the version that began a run.

    `config` is the config of the algorithm whose state the checkpoint holds. To act without further
    training (`to_train` is False), it is enough that the networks have not changed.
    """
    start = read_metadata(folder)["starts"][0]
    version = start["versions"].get("qam_jax")
    for change in later_changes(config, version):
        if change.losses_only and not to_train:
            continue
        use = "Evaluate them here, train on" if change.losses_only else "Use them"
        raise ValueError(
            f"the checkpoints in {folder} were written by qam_jax {version or 'before 0.2.0'} "
            f"(git revision {start.get('git_revision') or 'unknown'}), and {config.agent_name!r} "
            f"has changed in {change.version}: {change.what}. {use} with the version that wrote "
            "them, or start a new run with another --run_id."
        )
