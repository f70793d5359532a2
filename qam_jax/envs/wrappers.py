"""Wrappers: reproducible randomness, and action chunks executed open-loop."""

from pathlib import Path
from typing import Any, TypedDict

import gymnasium
import imageio.v2 as imageio
import numpy as np

from qam_jax.files import atomic_write

_FRAMES_PER_SECOND = 20


class OwnRandomState(gymnasium.Wrapper):
    """Gives an environment that draws from NumPy's global random state one of its own.

    OGBench's environments do. Here `reset(seed=...)` seeds everything that they draw from, and
    neither other environments nor the caller share it.
    """

    def __init__(self, env: gymnasium.Env):
        super().__init__(env)
        self._state = np.random.RandomState(0).get_state()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        if seed is not None:
            self._state = np.random.RandomState(seed).get_state()
            self.env.action_space.seed(seed)
        with self._swapped():
            return self.env.reset(seed=seed, options=options)

    def step(self, action):
        with self._swapped():
            return self.env.step(action)

    def _swapped(self) -> "_Swap":
        return _Swap(self)


class _Swap:
    def __init__(self, owner: OwnRandomState):
        self._owner = owner

    def __enter__(self):
        self._outer = np.random.get_state()  # noqa: NPY002 - it is what the simulators use
        np.random.set_state(self._owner._state)  # noqa: NPY002

    def __exit__(self, *_):
        self._owner._state = np.random.get_state()  # noqa: NPY002
        np.random.set_state(self._outer)  # noqa: NPY002


class EpisodeSummary(TypedDict):
    """What `OpenLoopChunks` reports in `info` of every chunk.

    Attributes:
      success: 1.0 if the environment reported success at its last step, else 0.0.
      episode_return: undiscounted sum of rewards so far.
      episode_length: environment steps so far.
      positions: [H, 2] planar positions after the chunk's steps, nan where there is none.
    """

    success: float
    episode_return: float
    episode_length: int
    positions: np.ndarray


class OpenLoopChunks(gymnasium.Wrapper):
    """One step executes a chunk of `H` actions, [H, A], and stops early at the episode's end.

    After the end, further steps do nothing until `reset`, so that environments of a vector can
    wait for each other. The reward is the sum over the chunk; `info` is an `EpisodeSummary`.
    """

    def __init__(self, env: gymnasium.Env, horizon_length: int):
        super().__init__(env)
        self._horizon_length = horizon_length
        space = env.action_space
        self.action_space = gymnasium.spaces.Box(
            np.broadcast_to(space.low, (horizon_length, *space.shape)),
            np.broadcast_to(space.high, (horizon_length, *space.shape)),
            dtype=space.dtype,
        )

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
        observation, _ = self.env.reset(seed=seed, options=options)
        self._last = (observation, False, False)
        self._success, self._return, self._length = 0.0, 0.0, 0
        return observation, self._summary([])

    def step(self, action):
        rewards, positions = 0.0, []
        for single in action:
            if self._last[1] or self._last[2]:
                break
            observation, reward, terminated, truncated, info = self.env.step(single)
            self._last = (observation, terminated, truncated)
            rewards += float(reward)
            self._length += 1
            self._success = float(info["success"])
            if "xy" in info:
                positions.append(info["xy"])
        self._return += rewards
        observation, terminated, truncated = self._last
        return observation, rewards, terminated, truncated, self._summary(positions)

    def _summary(self, positions: list[np.ndarray]) -> EpisodeSummary:
        padded = np.full((self._horizon_length, 2), np.nan, np.float32)
        if positions:
            padded[: len(positions)] = positions
        return EpisodeSummary(
            success=self._success,
            episode_return=self._return,
            episode_length=self._length,
            positions=padded,
        )


class Films(gymnasium.Wrapper):
    """Films every episode into `episode_<seed>.mp4`, named by the seed that it was reset with.

    Args:
      env: the environment; its unwrapped self renders.
      folder: where the films go.
      stride: environment steps per frame.
    """

    def __init__(self, env: gymnasium.Env, folder: Path, stride: int = 1):
        super().__init__(env)
        self._folder = folder
        self._stride = stride
        self._frames: list[np.ndarray] = []
        self._num_steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None):
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
