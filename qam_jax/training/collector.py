"""Experience, collected in several environments at once."""

import logging
from typing import Any, NamedTuple

import jax
import numpy as np

from qam_jax.data.replay import EpisodeSoFar
from qam_jax.envs import EnvPool, EnvsRestarted
from qam_jax.training.evaluation import Episode, Policy, read_episode
from qam_jax.types import Transitions

_logger = logging.getLogger(__name__)


class Experience(NamedTuple):
    """Experience of one chunk of actions in every environment."""

    transitions: Transitions  # N of them; those of one episode stand in their order
    episodes: np.ndarray  # [N], number of the episode of each
    finished: dict[int, Episode]  # episodes that ended, by their number


class Collector:
    """Acts in environments, a chunk of actions at a time, from episode to episode.

    An episode depends on the run's seed, its own number and the policy alone, not on the number
    of environments. `sparse` makes every reward that is not 0 a -1; then each reward `r` becomes
    `reward_scale * r + reward_bias`.
    """

    def __init__(
        self,
        pool: EnvPool,
        seed: int,
        *,
        sparse: bool = False,
        reward_scale: float = 1.0,
        reward_bias: float = 0.0,
    ):
        self.pool, self._seed, self._sparse = pool, seed, sparse
        self._reward_scale, self._reward_bias = reward_scale, reward_bias
        self._episodes = np.arange(pool.num_envs)
        self._next_episode = pool.num_envs
        self._chunks = np.zeros(pool.num_envs, int)
        self._everywhere = np.ones(pool.num_envs, bool)
        self._observations: np.ndarray | None = None  # until the first reset

    def gather(self, policy: Policy) -> Experience:
        """Executes one chunk of actions in every environment.

        After a crash, all episodes in progress are given up, and new ones are started.
        """
        while True:
            if self._observations is None:
                self._reset(self._everywhere)
                continue
            try:
                return self._step(policy, self._observations)
            except EnvsRestarted:
                self._give_up()

    def save(self) -> dict[str, Any]:
        """Returns the episodes in progress, for JSON."""
        return {
            "episodes": self._episodes.tolist(),
            "chunks": self._chunks.tolist(),
            "next_episode": self._next_episode,
            "crashes": self.pool.crashes,
            "started": self._observations is not None,
        }

    def restore(self, saved: dict[str, Any], episodes: dict[int, EpisodeSoFar]) -> None:
        """Continues from the result of `save`: executes the episodes in progress once more.

        An environment that does not come to the same observation starts a new episode. `episodes`
        holds the episodes in progress that have gone at least one step.
        """
        self._episodes, self._chunks = np.array(saved["episodes"]), np.array(saved["chunks"])
        self._next_episode, self.pool.crashes = saved["next_episode"], saved["crashes"]
        if not saved["started"]:
            return
        known = [episodes.get(episode) for episode in saved["episodes"]]
        pairs = zip(self._seeds(), known, strict=True)
        self._reset(self._everywhere, {seed: each.actions for seed, each in pairs if each})
        if self._observations is None:
            return
        places = zip(self._observations.astype(np.float32), known, strict=True)
        strayed = np.array(
            [each is not None and not np.array_equal(now, each.observation) for now, each in places]
        )
        if strayed.any():
            _logger.warning(
                "%d of %d environments did not come back to where their episodes were (their "
                "simulators are not deterministic): they start new ones.",
                strayed.sum(), len(strayed),
            )  # fmt: skip
            self._start_episodes(strayed)
            self._reset(strayed)

    def _reset(self, mask: np.ndarray, replay: dict[int, np.ndarray] | None = None) -> None:
        try:
            self._observations = self.pool.reset(self._seeds(), mask, replay)[0]
        except EnvsRestarted:
            self._give_up()

    def _give_up(self) -> None:
        """Gives all environments new episodes, after a crash."""
        self._start_episodes(self._everywhere)
        self._observations = None

    def _seeds(self) -> list[int]:
        """Returns the seeds of the episodes, which no evaluation has."""
        sequences = [
            np.random.SeedSequence([self._seed, 1, each]) for each in self._episodes.tolist()
        ]
        return [int(sequence.generate_state(1)[0]) for sequence in sequences]

    def _start_episodes(self, mask: np.ndarray) -> None:
        """Gives the masked environments new episodes, without resetting them yet."""
        for env in np.flatnonzero(mask):
            self._episodes[env], self._chunks[env] = self._next_episode, 0
            self._next_episode += 1

    def _step(self, policy: Policy, before: np.ndarray) -> Experience:
        actions = policy(before, self._episodes, self._chunks)
        self._observations, _, terminated, truncated, info = self.pool.step(actions)
        rewards = -(info["rewards"] != 0).astype(np.float32) if self._sparse else info["rewards"]
        info["rewards"] = self._reward_scale * rewards + self._reward_bias
        parts = [
            _transitions(before[env], actions[env], info, env, terminated[env])
            for env in range(self.pool.num_envs)
        ]
        done = terminated | truncated
        experience = Experience(
            transitions=jax.tree.map(lambda *columns: np.concatenate(columns), *parts),
            episodes=np.repeat(self._episodes, info["num_steps"]),
            finished={
                int(self._episodes[i]): read_episode(info, i) for i in np.flatnonzero(done).tolist()
            },
        )
        self._chunks += 1
        if done.any():
            self._start_episodes(done)
            self._reset(done)
        return experience


def random_policy(seed: int, chunk_shape: tuple[int, int]) -> Policy:
    """Makes a policy of uniform actions [n, H, A] in [-1, 1]."""

    def policy(observations: np.ndarray, episodes: np.ndarray, chunks: np.ndarray) -> np.ndarray:
        keys = [[seed, *decision] for decision in zip(episodes, chunks, strict=True)]
        draws = [np.random.default_rng(key).uniform(-1, 1, chunk_shape) for key in keys]
        return np.array(draws, np.float32)

    return policy


def _transitions(
    observation: np.ndarray,
    actions: np.ndarray,
    info: dict[str, Any],
    env: int,
    terminated: bool,
) -> Transitions:
    """Makes the transitions of one environment's chunk of actions."""
    count = info["num_steps"][env]
    following = info["observations"][env, :count]
    masks = np.ones(count, np.float32)
    masks[-1:] = 1 - terminated
    return Transitions(
        observations=np.concatenate([observation[None].astype(np.float32), following[:-1]]),
        actions=actions[:count],
        rewards=info["rewards"][env, :count],
        masks=masks,
        next_observations=following,
    )
