"""Online stage: fine-tuning in the environment."""

import concurrent.futures
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState
from qam_jax.data.dataset import DataSource
from qam_jax.data.replay import Replay, ReplayBuffer, sample_balanced, sample_mixed
from qam_jax.envs import EnvPool, make_env
from qam_jax.runs import hosts
from qam_jax.runs.settings import RunSettings
from qam_jax.training.collector import Collector, Experience, random_policy
from qam_jax.training.devices import Layout, SharedData
from qam_jax.training.evaluation import Episode, Policy, make_policy
from qam_jax.training.update import MetricSums, UpdateBlock, check_finite
from qam_jax.types import Array, Batch, TransitionDataset


class Acting:
    """Environments of one run, and the experience gathered in them.

    Where several processes train together, the first one acts, and sends the others what happened.

    Args:
      settings: settings of the run.
      config: config of the algorithm.
      dims: `(O, A)`.
      folder: folder of the run.
      log_episode: called with the run's step and each episode that ends, in order.
    """

    def __init__(
        self,
        settings: RunSettings,
        config: ConfigDict,
        dims: tuple[int, int],
        folder: Path,
        log_episode: Callable[[int, Episode], None],
    ):
        chunk_length = config.horizon_length if config.action_chunking else 1
        self._round_length = settings.num_envs * chunk_length  # environment steps at most
        self.random_policy = random_policy(settings.seed, (chunk_length, dims[1]))
        self._log_episode = log_episode
        self._pool = self.collector = None
        if hosts.is_first():
            self._pool = EnvPool(
                partial(make_env, settings.env_name, settings.env_module),
                chunk_length,
                settings.num_envs,
                max_crashes=settings.max_env_crashes,
            )
            self.collector = Collector(self._pool, settings.seed, sparse=settings.sparse)
        capacity = settings.buffer_size or settings.online_steps + self._round_length
        self.replay = Replay(capacity, *dims, folder / "replay", writes=hosts.is_first())

    def restore(self, progress: dict[str, Any]) -> None:
        """Continues from the result of `save`.

        Raises:
          DamagedError: if the saved experience is missing or damaged.
        """
        episodes = self.replay.load(progress["transitions"], progress["episodes"])
        if self.collector is not None:
            self.collector.restore(progress, episodes)

    def save(self) -> dict[str, Any]:
        """Saves the experience; returns what else it takes to continue."""
        self.replay.save()
        episodes = self.collector.save() if self.collector is not None else {}
        return {"transitions": self.replay.num_added, **episodes}

    @property
    def crashes(self) -> int:
        """How often environments crashed."""
        return self.collector.crashes if self.collector is not None else 0

    def add(self, experience: Experience, step: int) -> int:
        """Stores the experience of a round; returns the run's new step."""
        self.replay.add(experience.transitions, experience.episodes, self._round_length)
        step += len(experience.episodes)
        for _, episode in sorted(experience.finished.items()):
            self._log_episode(step, episode)
        return step

    def close(self) -> None:
        """Ends the environments' processes."""
        if self._pool is not None:
            self._pool.close()


class OnlineStage:
    """Acts, stores the experience, and trains on the dataset and on that experience.

    In every round each environment executes one chunk of actions; then there are `utd_ratio`
    updates for each environment step, in one compiled call.

    Args:
      settings: settings of all runs.
      agent: the algorithm.
      config: its config.
      keys: keys of the batches, and of the actions, of each run.
      source: source of the dataset.
      layout: how the seeds lie on the devices.
      acting: environments and experience of each run.
    """

    name, unit, overlaps, brief = "online", "step", False, False

    def __init__(
        self,
        settings: RunSettings,
        agent: Agent,
        config: ConfigDict,
        keys: Sequence[tuple[Array, Array]],
        source: DataSource,
        layout: Layout,
        acting: Sequence[Acting],
    ):
        self.agent, self.layout, self._settings, self._source = agent, layout, settings, source
        self._data = SharedData(source, layout)
        self.start = settings.bc_steps + settings.offline_steps
        self.end = settings.total_steps
        batch_keys, self._policy_keys = zip(*keys, strict=True)
        self._acting = acting
        # The choice of the run is part of the program, so that only its policy is copied. With
        # several processes it is not, since only one of them acts.
        choose = (lambda state, _: state) if hosts.several() else layout.pick
        self._act: Callable[[Any, Array], Policy] = make_policy(
            agent._replace(
                sample_actions=lambda state, *rest: agent.sample_actions(choose(*state), *rest)
            )
        )
        self._threads = concurrent.futures.ThreadPoolExecutor(len(acting))
        for each in acting:
            each.replay.buffer = layout.share(each.replay.buffer)
        sample_from = sample_balanced if settings.balanced_sampling else sample_mixed

        def sample(data: list[tuple[TransitionDataset, ReplayBuffer]], keys: Array) -> Batch:
            sizes = config.batch_size, config.horizon_length, config.discount
            batches = [
                sample_from(*own, layout.pick(keys, i), *sizes) for i, own in enumerate(data)
            ]
            return layout.stack(batches)

        self._block = UpdateBlock(agent, layout.join(batch_keys), sample, layout)

    def advance(
        self, state: AgentState, sums: MetricSums, steps: list[int], limits: list[int]
    ) -> tuple[AgentState, MetricSums, list[int]]:
        """Goes one round; see `OfflineStage.advance`. It may end somewhat beyond the limits."""
        going = [index for index, step in enumerate(steps) if step < limits[index]]
        policies = [self._policy(index, state, sums, steps[index]) for index in going]

        def act() -> list[Experience]:
            collectors = [self._acting[index].collector for index in going]
            gathers = [each.gather for each in collectors if each is not None]  # each has one here
            if len(gathers) == 1:
                return [gathers[0](policies[0])]
            return list(self._threads.map(lambda gather, policy: gather(policy), gathers, policies))

        after = list(steps)
        for index, experience in zip(going, hosts.from_first(act), strict=True):
            after[index] = self._acting[index].add(experience, steps[index])
        counts = [self._num_updates(*step) for step in zip(steps, after, strict=True)]
        if any(counts):
            data = [
                (self._data.at(step), acting.replay.buffer)
                for step, acting in zip(after, self._acting, strict=True)
            ]
            state, sums = self._block(state, sums, data, counts)
        if any(after[index] >= limits[index] for index in going):  # before anything is logged
            check_finite(sums, state.params, self.layout)
        return state, sums, after

    def _num_updates(self, before: int, after: int) -> int:
        waiting = self.start + self._settings.start_training
        return min(after - before, max(0, after - waiting)) * self._settings.utd_ratio

    def _policy(self, index: int, state: AgentState, sums: MetricSums, step: int) -> Policy:
        untrained = self.start == 0 and not self._settings.run
        if untrained and step < self._settings.start_training:
            return self._acting[index].random_policy
        layout: Layout | None = self.layout
        if layout and hosts.several():  # the state of this run alone, in the process that acts
            state, sums = layout.local((layout.pick(state, index), layout.pick(sums, index)))
            layout = None
        policy = self._act((state, index), self._policy_keys[index])

        def checked(*arguments: np.ndarray) -> np.ndarray:
            actions = policy(*arguments)
            if not np.isfinite(actions).all():
                check_finite(sums, state.params, layout)
            return actions

        return checked

    def metrics(self, index: int) -> dict[str, float]:
        """Returns metrics of a run beside the agent's own."""
        acting = self._acting[index]
        return {
            **self._source.metrics(),
            "replay_size": int(acting.replay.buffer.size),
            "env_crashes": acting.crashes,
        }

    def save(self, index: int) -> dict[str, Any]:
        """Saves the experience of a run; returns what else its checkpoint needs."""
        return self._acting[index].save()

    def close(self) -> None:
        """Releases what the stage holds."""
        self._threads.shutdown()
