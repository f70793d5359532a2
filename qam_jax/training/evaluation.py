"""Evaluation: runs a policy in several environments at once, and summarises its episodes."""

import concurrent.futures
import contextlib
import dataclasses
import math
import os
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
import scipy
from tqdm import tqdm

from qam_jax.agents import Agent, AgentState
from qam_jax.data.normalization import Normalization
from qam_jax.envs import (
    EnvFailure,
    EnvPool,
    EnvsRestarted,
    find_render_backend,
    is_ogbench,
    make_env,
    make_film_env,
)
from qam_jax.files import num_usable_cpus
from qam_jax.runs.settings import RunSettings
from qam_jax.runs.stopping import Stopped
from qam_jax.types import Array

Policy = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""`(observations [n, O], episodes [n], chunks [n]) -> action chunks [n, H, A]`."""


class RunKeys(NamedTuple):
    """Independent keys of a run, by their use."""

    agent: Array  # networks and updates
    batches: Array
    evaluation: Array  # the policy's noise in evaluations
    experience: Array  # and while gathering experience
    cloning: Array  # the stage of behaviour cloning


def split_seed(seed: int) -> RunKeys:
    """Makes a run's keys from its seed."""
    return RunKeys(*jax.random.split(jax.random.PRNGKey(seed), 5))


class Episode(NamedTuple):
    """An episode's result."""

    success: float  # 1.0 with success at any step, 0.0 without, nan if neither is reported
    episode_return: float  # undiscounted sum of rewards
    length: int  # environment steps
    positions: np.ndarray = np.empty((0, 2))  # [steps, 2] in the plane, if they are known


def read_episode(info: dict[str, Any], env: int) -> Episode:
    """Reads an episode that has ended from the infos of all environments."""
    return Episode(
        success=float(info["success"][env]),
        episode_return=float(info["episode_return"][env]),
        length=int(info["episode_length"][env]),
    )


def make_policy(agent: Agent) -> Callable[[AgentState, Array], Policy]:
    """Compiles the agent's policy once; `policy = make_policy(agent)(state, key)`.

    The noise of a decision depends on the key, the episode and the chunk alone, not on the number
    of environments.
    """

    @jax.jit
    def act(
        state: AgentState, key: Array, observations: Array, episodes: Array, chunks: Array
    ) -> Array:
        def decide(observation: Array, episode: Array, chunk: Array) -> Array:
            own_key = jax.random.fold_in(jax.random.fold_in(key, episode), chunk)
            return agent.sample_actions(state, observation, own_key)

        return jax.vmap(decide)(observations.astype(jnp.float32), episodes, chunks)

    def bind(state: AgentState, key: Array) -> Policy:
        return lambda *decisions: np.asarray(act(state, key, *decisions))

    return bind


def run_episodes(
    policy: Policy, envs: EnvPool, num_episodes: int, seed: int, label: str = "evaluation"
) -> list[Episode]:
    """Runs episodes, and returns them in order; episode e starts from `episode_seed(seed, e)`.

    The policy is called once for all environments, and only when their chunks are used up.
    Episodes that a crash of the environments cuts short start again from their seeds. A bar with
    the label is shown meanwhile. Earlier episodes of the environments are dropped.

    Raises:
      ValueError: if there are more environments than episodes.
      EnvFailure: if the environments crash too often.
    """
    if envs.num_envs > num_episodes:
        raise ValueError(
            f"{envs.num_envs} environments for {num_episodes} episodes: use at most one each."
        )
    finished: dict[int, Episode] = {}
    # `miniters=0` draws it anew also while no episode ends.
    with tqdm(total=num_episodes, desc=label, unit="episode", leave=False, miniters=0) as bar:
        while len(finished) < num_episodes:
            waiting = [each for each in range(num_episodes) if each not in finished]
            with contextlib.suppress(EnvsRestarted):  # what was in progress starts again
                for ended in _run(policy, envs, waiting, seed):
                    finished |= ended
                    bar.update(len(ended))
    return [finished[episode] for episode in range(num_episodes)]


def _run(
    policy: Policy, envs: EnvPool, waiting: list[int], seed: int
) -> Iterator[dict[int, Episode]]:
    """Runs the waiting episodes; yields after each chunk of actions those that it ended."""
    episodes = np.full(envs.num_envs, -1)  # which episode an environment runs; -1 is none
    chunks = np.zeros(envs.num_envs, int)
    positions: list[list[np.ndarray]] = [[] for _ in range(envs.num_envs)]
    while waiting or (episodes >= 0).any():
        idle = np.flatnonzero(episodes < 0)[: len(waiting)]
        if idle.size:
            for env in idle:
                episodes[env], chunks[env], positions[env] = waiting.pop(0), 0, []
            env_seeds = [episode_seed(seed, max(0, int(episode))) for episode in episodes]
            observations, _ = envs.reset(env_seeds, np.isin(np.arange(envs.num_envs), idle))
        actions = policy(observations, np.maximum(episodes, 0), chunks)
        observations, _, terminated, truncated, info = envs.step(actions)
        chunks += 1
        ended = {}
        for env in np.flatnonzero(episodes >= 0).tolist():
            positions[env].append(info["positions"][env])
            if terminated[env] or truncated[env]:
                path = np.concatenate(positions[env])
                path = path[~np.isnan(path).any(axis=1)]
                ended[int(episodes[env])] = read_episode(info, env)._replace(positions=path)
                episodes[env] = -1
        yield ended


def episode_seed(seed: int, episode: int) -> int:
    """Returns the seed that an episode starts from."""
    return int(np.random.SeedSequence(seed).generate_state(episode + 1)[episode])


def summarize(episodes: list[Episode]) -> dict[str, float]:
    """Returns the success rate with its 95% interval (Wilson), mean return and mean length.

    Rate and interval are nan if no episode reports success or failure; otherwise an episode that
    reports neither counts as a failure.
    """
    successes, returns, lengths, _ = zip(*episodes, strict=True)
    rate = low = high = math.nan
    if not np.isnan(successes).all():
        count = successes.count(1)
        interval = scipy.stats.binomtest(count, len(episodes)).proportion_ci(method="wilson")
        rate, low, high = count / len(episodes), interval.low, interval.high
    return {
        "success": rate,
        "success_low": low,
        "success_high": high,
        "return": float(np.mean(returns)),
        "length": float(np.mean(lengths)),
        "episodes": len(episodes),
    }


def describe(episodes: list[Episode]) -> str:
    """Summarises episodes in words: by success, or else by return."""
    summary = summarize(episodes)
    if math.isnan(summary["success"]):
        deviation = np.std([episode.episode_return for episode in episodes])
        return (
            f"return {summary['return']:.1f} (sd {deviation:.1f}) of {len(episodes)} episodes, "
            f"length {summary['length']:.0f}"
        )
    return (
        f"success {summary['success']:.0%} of {len(episodes)} episodes (95% interval "
        f"{summary['success_low']:.0%} to {summary['success_high']:.0%}), "
        f"return {summary['return']:.1f}, length {summary['length']:.0f}"
    )


def headline(episodes: list[Episode]) -> str:
    """Summarises episodes in one number, for a progress bar."""
    summary = summarize(episodes)
    success, mean = summary["success"], summary["return"]
    return f"return={mean:.1f}" if math.isnan(success) else f"success={success:.0%}"


@dataclasses.dataclass(eq=False)
class Evaluator:
    """Evaluates agents on one environment, in processes that it starts once and keeps.

    The episodes depend on a seed alone, so that they are the same every time.
    """

    env_name: str  # see `qam_jax.envs.make_env`
    _: dataclasses.KW_ONLY
    num_episodes: int  # of an evaluation
    num_envs: int = 0  # environments side by side; 0 for twice the number of processors
    seed: int = 0  # of episodes and of the policy's noise, where `evaluate` is given none
    env_module: str = ""  # see `qam_jax.envs.make_env`
    max_crashes: int = 10  # crashes of the environments to survive, over all evaluations
    env_timeout: float = 60.0  # seconds, see `EnvPool`
    normalization: Normalization | None = None  # of the agent's training
    on_wait: Callable[[], None] = lambda: None  # may raise to end an evaluation, see `EnvPool`

    def __post_init__(self) -> None:
        self.thread = concurrent.futures.ThreadPoolExecutor(1)  # for evaluations beside training
        self._busy, self._closed = threading.Lock(), threading.Event()
        self._envs: EnvPool | None = None
        self._bind_policies: dict[Agent, Callable[[AgentState, Array], Policy]] = {}

    def check(self, chunk: np.ndarray, *, films: bool = False) -> None:
        """Resets one environment and executes a chunk of actions [H, A]; may render a frame of it.

        Raises EnvFailure if the environment cannot be made, or at its first crash; as `film` too.
        """
        only = [0], np.ones(1, bool)  # a seed for the only environment
        with contextlib.closing(self.make_envs(len(chunk))) as envs:
            try:
                envs.reset(*only)
                envs.step(chunk[None])
            except EnvsRestarted as reason:
                raise EnvFailure(
                    f"the environment {self.env_name!r} fails when it is reset and stepped "
                    f"once, before training: {reason}. By gymnasium's rules reset() returns "
                    "(observation, info), and step(action) returns (observation, reward, "
                    "terminated, truncated, info)."
                ) from None
        if films:
            with contextlib.closing(self.make_envs(1, film_folder=Path())) as envs:
                try:
                    envs.reset(*only)
                except EnvsRestarted as reason:
                    raise EnvFailure(
                        f"no film can be made of {self.env_name!r}: {reason}."
                    ) from None

    def evaluate(self, agent: Agent, state: AgentState, seed: int | None = None) -> list[Episode]:
        """Runs the episodes of a seed with the agent's policy.

        Raises EnvFailure if the environments cannot be made or crash too often.
        """
        with self._busy:  # one at a time in these environments
            seed = self.seed if seed is None else seed
            if agent not in self._bind_policies:
                self._bind_policies[agent] = make_policy(agent)
            policy = self._bind_policies[agent](state, split_seed(seed).evaluation)
            if self._envs is None:
                count = min(self.num_envs or 2 * num_usable_cpus(), self.num_episodes)
                self._envs = self.make_envs(state.action_shape[0], count)
            return run_episodes(policy, self._envs, self.num_episodes, seed)

    def film(self, agent: Agent, state: AgentState, folder: Path, num_episodes: int) -> list[Path]:
        """Films the first episodes of an evaluation; returns the films' paths.

        Raises:
          OSError: if this machine cannot render; says what to install.
          EnvFailure: if the environment cannot be filmed, or crashes again and again.
        """
        with contextlib.closing(self.make_envs(state.action_shape[0], 1, folder)) as envs:
            policy = make_policy(agent)(state, split_seed(self.seed).evaluation)
            run_episodes(policy, envs, num_episodes, self.seed, "filming")
        return [folder / f"episode_{episode_seed(self.seed, e)}.mp4" for e in range(num_episodes)]

    def make_envs(
        self, horizon_length: int, count: int = 1, film_folder: Path | None = None
    ) -> EnvPool:
        """Starts environments for chunks of actions; with a folder they film their episodes."""
        make: Callable[..., gymnasium.Env] = partial(make_env, self.env_name)
        if film_folder is not None:
            make = partial(make_film_env, self.env_name, film_folder)
            try:  # read by MuJoCo when the environment's process starts
                os.environ["MUJOCO_GL"] = find_render_backend()
            except OSError:
                if is_ogbench(self.env_name):
                    raise  # others may do without MuJoCo
        return EnvPool(
            partial(make, self.env_module, self.normalization),
            horizon_length,
            count,
            max_crashes=self.max_crashes,
            timeout=self.env_timeout,
            on_wait=self._on_wait,
        )

    def _on_wait(self) -> None:
        if self._closed.is_set():
            raise Stopped("close")  # in the thread, if an evaluation is at work
        self.on_wait()

    def close(self) -> None:
        """Ends the environments' processes and the evaluations in them."""
        self._closed.set()
        self.thread.shutdown(cancel_futures=True)
        if self._envs is not None:
            self._envs.close()


def make_evaluator(
    settings: RunSettings, normalization: Normalization, on_wait: Callable[[], None] = lambda: None
) -> Evaluator:
    """Makes the evaluator of a run; its processes start when they are needed."""
    return Evaluator(
        settings.env_name, num_episodes=settings.eval_episodes, num_envs=settings.eval_envs,
        seed=settings.seed, env_module=settings.env_module, max_crashes=settings.max_env_crashes,
        env_timeout=settings.env_timeout, normalization=normalization, on_wait=on_wait,
    )  # fmt: skip
