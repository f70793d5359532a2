"""Fine-tuning in the environment: the online stage."""

import concurrent.futures
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState
from qam_jax.data.dataset import DataSource
from qam_jax.data.replay import Replay, ReplayBuffer, sample_balanced, sample_mixed
from qam_jax.envs import EnvPool, make_env
from qam_jax.runs.settings import RunSettings
from qam_jax.training import exchange
from qam_jax.training.collector import Collector, Experience, random_policy
from qam_jax.training.devices import Lanes, SharedData
from qam_jax.training.evaluation import Episode, Policy, make_policy
from qam_jax.training.update import Tally, UpdateBlock, check_all_finite, check_finite
from qam_jax.types import Array, Batch, TransitionDataset, Transitions


class Acting:
    """What one run acts with: its environments, and what happened in them.

    Where several processes train together the first one acts, and tells the others what happened.

    Args:
      settings: the run's.
      config: the algorithm's.
      dims: `(O, A)`.
      folder: the run's.
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
        self.round_length = settings.num_envs * chunk_length  # environment steps at most
        self.random_policy = random_policy(settings.seed, (chunk_length, dims[1]))
        self.log_episode = log_episode
        self.pool = self.collector = None
        if exchange.is_first():
            self.pool = EnvPool(
                partial(make_env, settings.env_name, settings.env_module),
                chunk_length,
                settings.num_envs,
                max_crashes=settings.max_env_crashes,
            )
            self.collector = Collector(self.pool, settings.seed, sparse=settings.sparse)
        capacity = settings.buffer_size or settings.online_steps + self.round_length
        self.replay = Replay(capacity, *dims, folder / "replay", writes=exchange.is_first())

    def restore(self, progress: dict[str, Any]) -> None:
        """Continues from what `OnlineStage.save` returned.

        Raises:
          DamagedError: if the experience that was saved is missing or damaged.
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

    def go_round(self, policy: Policy, step: int) -> int:
        """Executes a chunk of actions in every environment; returns the run's new step."""
        return self.add(self.collector.gather(policy), step)

    def add(self, experience: Experience, step: int) -> int:
        """Takes in what a round led to; returns the run's new step."""
        self.replay.add(experience.transitions, experience.episodes, self.round_length)
        step += len(experience.episodes)
        for _, episode in sorted(experience.finished.items()):
            self.log_episode(step, episode)
        return step

    def close(self) -> None:
        """Ends the environments' processes."""
        if self.pool is not None:
            self.pool.close()


class OnlineStage:
    """Acts, stores what happens, and trains on the dataset and on that.

    In every round each environment executes one chunk of actions; then there are `utd_ratio`
    updates for each environment step, in one compiled call.

    Args:
      settings: those of all runs.
      agent: the algorithm.
      config: its config.
      keys: sources of the batches, and of the actions, of each run.
      source: the dataset.
      lanes: the runs.
      acting: what each acts with.
    """

    name, unit, overlaps = "online", "step", False

    def __init__(
        self,
        settings: RunSettings,
        agent: Agent,
        config: ConfigDict,
        keys: Sequence[tuple[Array, Array]],
        source: DataSource,
        lanes: Lanes,
        acting: Sequence[Acting],
    ):
        self.agent, self.lanes, self._settings, self._source = agent, lanes, settings, source
        self._data = SharedData(source, lanes)
        self.start = settings.bc_steps + settings.offline_steps
        self.end = settings.total_steps
        batch_keys, self._policy_keys = zip(*keys, strict=True)
        self._acting = acting
        # The choice of the run is part of the program, so that nothing but its policy is copied.
        # With several processes it is not, since only one of them acts.
        choose = (lambda state, _: state) if exchange.several() else lanes.pick
        self._act = make_policy(
            agent._replace(
                sample_actions=lambda state, *rest: agent.sample_actions(choose(*state), *rest)
            )
        )
        self._threads = concurrent.futures.ThreadPoolExecutor(len(acting))
        for each in acting:
            each.replay.buffer = lanes.share(each.replay.buffer)
        sample_from = sample_balanced if settings.balanced_sampling else sample_mixed

        def sample(data: list[tuple[TransitionDataset, ReplayBuffer]], keys: Array) -> Batch:
            batches = [
                sample_from(
                    *own, lanes.pick(keys, index), config.batch_size, config.horizon_length,
                    config.discount,
                )
                for index, own in enumerate(data)
            ]  # fmt: skip
            return lanes.stack(batches)

        self._block = UpdateBlock(agent, lanes.join(batch_keys), sample, lanes)

    def advance(
        self, state: AgentState, tally: Tally, steps: list[int], limits: list[int]
    ) -> tuple[AgentState, Tally, list[int]]:
        """Goes one round; see `OfflineStage.advance`. It may end somewhat beyond the limits."""
        going = [index for index, step in enumerate(steps) if step < limits[index]]
        policies = [self._policy(index, state, tally, steps[index]) for index in going]
        after = list(steps)
        go_rounds = self._go_rounds_of_first if exchange.several() else self._go_rounds
        for index, step in zip(going, go_rounds(going, policies, steps), strict=True):
            after[index] = step
        counts = [self._num_updates(*step) for step in zip(steps, after, strict=True)]
        if any(counts):
            data = [
                (self._data.at(step), acting.replay.buffer)
                for step, acting in zip(after, self._acting, strict=True)
            ]
            state, tally = self._block(state, tally, data, counts)
        if any(after[index] >= limits[index] for index in going):  # before anything is logged
            check_all_finite(self.lanes, tally, state.params)
        return state, tally, after

    def _go_rounds(
        self, going: list[int], policies: list[Policy], steps: list[int]
    ) -> Iterable[int]:
        """A round of each of these runs, side by side; the steps after it."""
        rounds = [
            (self._acting[i].go_round, p, steps[i]) for i, p in zip(going, policies, strict=True)
        ]
        if len(rounds) == 1:
            go_round, policy, step = rounds[0]
            return [go_round(policy, step)]
        futures = [self._threads.submit(*each) for each in rounds]
        return [future.result() for future in futures]

    def _go_rounds_of_first(
        self, going: list[int], policies: list[Policy], steps: list[int]
    ) -> Iterable[int]:
        """The same with several processes, of which one acts."""

        def act() -> list[Experience]:
            gathers = [self._acting[index].collector.gather for index in going]
            return list(self._threads.map(lambda gather, policy: gather(policy), gathers, policies))

        experiences = exchange.from_first("round", act, _pack, _unpack)
        return [
            self._acting[index].add(experience, steps[index])
            for index, experience in zip(going, experiences, strict=True)
        ]

    def _num_updates(self, before: int, after: int) -> int:
        waiting = self.start + self._settings.start_training
        return min(after - before, max(0, after - waiting)) * self._settings.utd_ratio

    def _policy(self, index: int, state: AgentState, tally: Tally, step: int) -> Policy:
        untrained = self.start == 0 and not self._settings.run
        if untrained and step < self._settings.start_training:
            return self._acting[index].random_policy
        lanes, check = self.lanes, partial(check_all_finite, self.lanes)
        if exchange.several():
            state, tally = lanes.local((lanes.pick(state, index), lanes.pick(tally, index)))
            check = check_finite  # of this run, and in the process that acts
        policy = self._act((state, index), self._policy_keys[index])

        def checked(*arguments: np.ndarray) -> np.ndarray:
            actions = policy(*arguments)
            if not np.isfinite(actions).all():
                check(tally, state.params)
            return actions

        return checked

    def metrics(self, index: int) -> dict[str, float]:
        """What to log of a run beside the agent's metrics."""
        acting = self._acting[index]
        return {
            **self._source.metrics(),
            "replay_size": int(acting.replay.buffer.size),
            "env_crashes": acting.crashes,
        }

    def save(self, index: int) -> dict[str, Any]:
        """What it takes to continue a run, beside the state and the tally; saves the experience."""
        return self._acting[index].save()

    def close(self) -> None:
        """Lets go of what the stage holds."""
        self._threads.shutdown()


def _pack(experiences: Sequence[Experience]) -> bytes:
    """What has to be known of rounds to train on them: not which episodes have ended."""
    arrays = {}
    for index, experience in enumerate(experiences):
        named = {**vars(experience.transitions), "episodes": experience.episodes}
        arrays |= {f"{index}/{name}": array for name, array in named.items()}
    return exchange.pack_arrays(arrays)


def _unpack(content: bytes) -> list[Experience]:
    parts: dict[int, dict[str, np.ndarray]] = {}
    for name, array in exchange.unpack_arrays(content).items():
        index, _, field = name.partition("/")
        parts.setdefault(int(index), {})[field] = array
    episodes = {index: part.pop("episodes") for index, part in parts.items()}
    return [Experience(Transitions(**parts[i]), episodes[i], {}) for i in sorted(parts)]
