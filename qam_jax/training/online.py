"""Fine-tuning in the environment: the online stage."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState
from qam_jax.data.replay import Replay, ReplayBuffer, sample_balanced, sample_mixed
from qam_jax.data.sources import DataSource
from qam_jax.envs import EnvPool, make_env
from qam_jax.training.collector import Collector, Experience, random_policy
from qam_jax.training.evaluation import Episode, make_policy
from qam_jax.training.keys import split_seed
from qam_jax.training.settings import RunSettings
from qam_jax.training.updates import Tally, UpdateBlock, check_finite, shapes_of
from qam_jax.types import Array, Batch, TransitionDataset


class OnlineStage:
    """Acts, stores what happens, and trains on the dataset and on that.

    In every round each environment executes one chunk of actions; then there are `utd_ratio`
    updates for each environment step, in one compiled call.

    Args:
      settings: the run's.
      agent: the algorithm.
      config: its config.
      source: the dataset.
      folder: the run's.
      step: the run's step at which the stage is entered now.
      log_episode: called with the run's step and each episode that ends, in order.
    """

    name, unit = "online", "step"

    def __init__(
        self,
        settings: RunSettings,
        agent: Agent,
        config: ConfigDict,
        source: DataSource,
        folder: Path,
        step: int,
        log_episode: Callable[[int, Episode], None],
    ):
        self.agent, self._settings, self._source = agent, settings, source
        self.start = settings.bc_steps + settings.offline_steps
        self.end = settings.total_steps
        self._log_episode = log_episode
        keys = split_seed(settings.seed)
        dataset = source.at(step)
        action_dim = dataset.actions.shape[1]
        chunk_length = config.horizon_length if config.action_chunking else 1
        self._round_length = settings.num_envs * chunk_length  # environment steps at most
        self._pool = EnvPool(
            partial(make_env, settings.env_name, settings.env_module),
            chunk_length,
            settings.num_envs,
            max_crashes=settings.max_env_crashes,
        )
        self._collector = Collector(self._pool, settings.seed, sparse=settings.sparse)
        self._replay = Replay(
            settings.buffer_size or settings.online_steps + self._round_length,
            dataset.observations.shape[1],
            action_dim,
            folder / "replay",
        )
        self._data_shapes = shapes_of((dataset, self._replay.buffer))
        self._act = make_policy(agent)
        self._policy_key = keys.experience
        self._random = random_policy(settings.seed, (chunk_length, action_dim))
        sample_from = sample_balanced if settings.balanced_sampling else sample_mixed

        def sample(data: tuple[TransitionDataset, ReplayBuffer], key: Array) -> Batch:
            return sample_from(
                *data, key, config.batch_size, config.horizon_length, config.discount
            )

        self._block = UpdateBlock(agent, keys.batches, sample)

    def empty_tally(self, state: AgentState) -> Tally:
        """A tally of no updates."""
        return self._block.empty_tally(state, self._data_shapes)

    def advance(
        self, state: AgentState, tally: Tally, step: int, limit: int
    ) -> tuple[AgentState, Tally, int]:
        """Goes one round; see `OfflineStage.advance`. It may end somewhat beyond the limit."""
        experience = self._gather(state, tally, step)
        count = len(experience.episodes)
        self._replay.add(experience.transitions, experience.episodes, self._round_length)
        step += count
        for _, episode in sorted(experience.finished.items()):
            self._log_episode(step, episode)
        waiting = self.start + self._settings.start_training
        updates = min(count, max(0, step - waiting)) * self._settings.utd_ratio
        if updates:
            data = (self._source.at(step), self._replay.buffer)
            state, tally = self._block(state, tally, data, updates)
        if step >= limit:  # before anything is logged or saved
            check_finite(tally, state.params)
        return state, tally, step

    def _gather(self, state: AgentState, tally: Tally, step: int) -> Experience:
        untrained = self.start == 0 and not self._settings.run
        if untrained and step < self._settings.start_training:
            return self._collector.gather(self._random)
        policy = self._act(state, self._policy_key)

        def checked(*arguments: np.ndarray) -> np.ndarray:
            actions = policy(*arguments)
            if not np.isfinite(actions).all():
                check_finite(tally, state.params)
            return actions

        return self._collector.gather(checked)

    def metrics(self) -> dict[str, float]:
        """What to log beside the agent's metrics."""
        return {
            **self._source.metrics(),
            "replay_size": int(self._replay.buffer.size),
            "env_crashes": self._collector.crashes,
        }

    def save(self) -> dict[str, Any]:
        """What it takes to continue, beside the state and the tally; saves the experience."""
        self._replay.save()
        return {"transitions": self._replay.num_added, **self._collector.save()}

    def restore(self, progress: dict[str, Any]) -> None:
        """Continues from what `save` returned.

        Raises:
          DamagedError: if the experience that was saved is missing or damaged.
        """
        episodes = self._replay.load(progress["transitions"], progress["episodes"])
        self._collector.restore(progress, episodes)

    def close(self) -> None:
        """Ends the environments' processes."""
        self._pool.close()
