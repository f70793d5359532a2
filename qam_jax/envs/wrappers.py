"""Wrappers: reproducible randomness, and action chunks executed open-loop."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypedDict

import gymnasium
import imageio.v2 as imageio
import numpy as np
from gymnasium.vector.utils import batch_space

from qam_jax.files import atomic_write

_FRAMES_PER_SECOND = 20
_NOWHERE = (np.nan, np.nan)


class OwnRandomState(gymnasium.Wrapper):
    """Gives an environment a random state of its own in place of NumPy's global one.

    OGBench's environments draw from the global state. Here `reset(seed=...)` seeds everything that
    they draw from, and neither other environments nor the caller share it.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self._state = np.random.RandomState(0).get_state()

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        if seed is not None:
            self._state = np.random.RandomState(seed).get_state()
            self.env.action_space.seed(seed)
        with self._swapped():
            return self.env.reset(seed=seed, options=options)

    def step(self, action):
        with self._swapped():
            return self.env.step(action)

    def close(self) -> None:
        """Closes the environment, which may fail: nothing depends on it any more."""
        with contextlib.suppress(Exception):
            super().close()

    @contextlib.contextmanager
    def _swapped(self) -> Iterator[None]:
        outer = np.random.get_state()  # noqa: NPY002 - it is what the simulators use
        np.random.set_state(self._state)  # noqa: NPY002
        try:
            yield
        finally:
            self._state = np.random.get_state()  # noqa: NPY002
            np.random.set_state(outer)  # noqa: NPY002


class EpisodeSummary(TypedDict):
    """The `info` of every chunk that `OpenLoopChunks` executes.

    `success` is 1.0 if the environment reported it (`info["success"]` or `info["is_success"]`) at
    any step of the episode so far, 0.0 if it reported failure alone, nan if it reports neither.
    """

    success: float
    episode_return: float  # undiscounted sum of rewards so far
    episode_length: int  # environment steps so far
    positions: np.ndarray  # [H, 2] in the plane after each step of the chunk, nan where unknown
    num_steps: int  # that this chunk executed, at most H; 0 after a reset or the episode's end
    observations: np.ndarray  # [H, O] float32, after each of these; further rows repeat the last
    rewards: np.ndarray  # [H] float32, of each of these steps; further ones are 0


class OpenLoopChunks(gymnasium.Wrapper):
    """Executes a chunk of `H` actions [H, A] in one step, and stops early at the episode's end.

    After the end, and before the first reset, steps do nothing until `reset`, so that environments
    of a pool can wait for each other. Observations are float32, the reward is the sum over the
    chunk, and `info` is an `EpisodeSummary`.

    `reset(seed=seed, options={"replay": {seed: actions [n, A]}})` executes the actions at once,
    which takes an episode of a deterministic simulator back to where it was. They count in its
    return and length.

    `reset` and `step` raise ValueError if an observation or a reward is not finite, or an
    observation is not as its space says. The error names step, episode's seed and environment.
    """

    def __init__(self, env: gymnasium.Env, horizon_length: int):
        super().__init__(env)
        self._horizon_length = horizon_length
        actions, observations = env.action_space, env.observation_space
        self.action_space = batch_space(actions, horizon_length)
        self.observation_space = gymnasium.spaces.Box(
            -np.inf, np.inf, observations.shape, np.float32
        )
        self._begin(seed=None)
        self._observation = np.zeros(observations.shape, np.float32)
        self._terminated = True  # there is no episode yet

    def at_rest(self) -> tuple[np.ndarray, EpisodeSummary]:
        """Latest observation, and the summary of a chunk in which nothing happened."""
        return self._observation, self._execute([])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, EpisodeSummary]:
        options = dict(options or {})
        actions = options.pop("replay", {}).get(seed, ())
        self._begin(seed)
        observation, _ = self.env.reset(seed=seed, options=options or None)
        self._observation = self._finite("observation", observation)
        self._execute(actions)
        return self.at_rest()

    def step(self, action):
        summary = self._execute(action)
        reward = float(summary["rewards"].sum())
        return self._observation, reward, self._terminated, self._truncated, summary

    def _begin(self, seed: int | None) -> None:
        self._seed = seed
        self._terminated, self._truncated = False, False
        self._success, self._return, self._length = np.nan, 0.0, 0

    def _execute(self, actions: Iterable[np.ndarray]) -> EpisodeSummary:
        """Executes actions up to the end of the episode."""
        steps = []
        for action in actions:
            if self._terminated or self._truncated:
                break
            observation, given, terminated, truncated, info = self.env.step(
                np.asarray(action, np.float32)
            )
            self._length += 1
            self._observation = self._finite("observation", observation)
            reward = float(given)
            self._finite("reward", reward)
            self._terminated, self._truncated = bool(terminated), bool(truncated)
            self._return += reward
            success = info.get("success", info.get("is_success"))
            if success is not None:
                self._success = 1.0 if success or self._success == 1.0 else 0.0
            place = info.get("xy")
            known = isinstance(place, np.ndarray) and place.shape == (2,)
            steps.append((self._observation, reward, place if known else _NOWHERE))
        idle = [(self._observation, 0.0, _NOWHERE)] * (self._horizon_length - len(steps))
        columns = zip(*steps, *idle, strict=True)
        observations, rewards, positions = (np.array(column, np.float32) for column in columns)
        return EpisodeSummary(
            success=float(self._success),
            episode_return=self._return,
            episode_length=self._length,
            positions=positions,
            num_steps=len(steps),
            observations=observations,
            rewards=rewards,
        )

    def _finite(self, name: str, values: Any) -> np.ndarray:
        """A copy as float32. Raises ValueError if it is not finite, or not of its space."""
        given = np.asarray(values)
        shape = self.observation_space.shape if name == "observation" else ()
        env = self.env.spec.id if self.env.spec is not None else type(self.env.unwrapped).__name__
        when = f"step {self._length}" if self._length else "the reset"
        place = f"after {when} of the episode of seed {self._seed} in {env!r}"
        if given.shape != shape or given.dtype.kind not in "biuf":
            raise ValueError(
                f"{name} has the shape {given.shape} and the type {given.dtype} {place}: "
                f"expected numbers of the shape {shape}, as the observation_space says."
            )
        copy = given.astype(np.float32)
        finite = np.isfinite(copy)
        if not finite.all():
            index = np.argwhere(~finite)[0].tolist()
            raise ValueError(
                f"{name}{index or ''} is {copy[tuple(index)]} {place}: observations and "
                "rewards must stay finite; otherwise return terminated=True one step earlier."
            )
        return copy


class Films(gymnasium.Wrapper):
    """Films every episode into `episode_<seed>.mp4`, where `seed` is the seed of its reset.

    The unwrapped environment renders a frame every `stride` steps.
    """

    def __init__(self, env: gymnasium.Env, folder: Path, stride: int = 1):
        super().__init__(env)
        self._folder, self._stride = folder, stride

    def reset(self, *, seed: int | None = None, options: dict | None = None) -> Any:
        result = self.env.reset(seed=seed, options=options)
        self._path = self._folder / f"episode_{seed}.mp4"
        self._frames, self._num_steps = [self.env.unwrapped.render()], 0
        return result

    def step(self, action):
        result = self.env.step(action)
        self._num_steps += 1
        ended = result[2] or result[3]
        if ended or self._num_steps % self._stride == 0:
            self._frames.append(self.env.unwrapped.render())
        if ended:
            with atomic_write(self._path) as temporary:
                imageio.mimwrite(temporary, self._frames, fps=_FRAMES_PER_SECOND)
        return result
