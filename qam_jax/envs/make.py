"""Makes environments by their OGBench names."""

import difflib
import functools
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium

from qam_jax.data.names import parse_env_name
from qam_jax.envs.wrappers import Films, OpenLoopChunks, OwnRandomState

_FRAME_SIZE = 400  # pixels
_MAX_FRAMES = 250  # of an episode, since a frame takes a tenth of a second without a GPU
_RENDER_TEST = (
    "import mujoco; "
    "mujoco.Renderer(mujoco.MjModel.from_xml_string('<mujoco><worldbody/></mujoco>')).render()"
)


def make_env(env_name: str, **kwargs: Any) -> gymnasium.Env:
    """Makes the simulator of an OGBench single-task name, with randomness of its own.

    Args:
      env_name: such as `cube-double-play-singletask-task2-v0`; the dataset type is ignored.
      **kwargs: passed to `gymnasium.make`.

    Raises:
      ValueError: if the name is malformed or OGBench has no such environment; the message
        offers names that are close.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no display matters only for rendering
        import ogbench  # noqa: F401 - registers the environments

    env_id = parse_env_name(env_name).env_id
    if env_id not in gymnasium.registry:
        known = [name for name in gymnasium.registry if "singletask" in name]
        close = difflib.get_close_matches(env_id, known, n=3)
        raise ValueError(
            f"unknown environment {env_name!r}: OGBench has no {env_id!r}."
            + (f" Close names: {', '.join(close)}." if close else "")
        )
    return OwnRandomState(gymnasium.make(env_id, disable_env_checker=True, **kwargs))


def make_vector_env(
    env_fn: Callable[[], gymnasium.Env], horizon_length: int, num_envs: int
) -> gymnasium.vector.VectorEnv:
    """Environments stepped in parallel processes, a chunk of actions at a time.

    Environments are not reset on their own: the caller resets those that have ended, with
    `options={"reset_mask": ...}`, and so chooses each episode's seed.

    Args:
      env_fn: makes one environment; picklable.
      horizon_length: `H`, actions in a chunk.
      num_envs: how many.

    Returns:
      A vector environment with observations [num_envs, O] and actions [num_envs, H, A].
    """
    return gymnasium.vector.AsyncVectorEnv(
        [functools.partial(_make_chunked, env_fn, horizon_length)] * num_envs,
        context="spawn",  # a fork would copy JAX's threads
        autoreset_mode=gymnasium.vector.AutoresetMode.DISABLED,
    )


def make_film_env(env_name: str, folder: Path) -> gymnasium.Env:
    """An environment that films its episodes into `folder`."""
    env = make_env(env_name, width=_FRAME_SIZE, height=_FRAME_SIZE)
    stride = max(1, (env.spec.max_episode_steps or 0) // _MAX_FRAMES)
    return Films(env, folder, stride)


def find_render_backend() -> str:
    """The first of MuJoCo's headless back ends that works here; `MUJOCO_GL`, if set, is kept.

    Raises:
      OSError: if none does; says what to install.
    """
    candidates = [os.environ["MUJOCO_GL"]] if "MUJOCO_GL" in os.environ else ["egl", "osmesa"]
    for backend in candidates:
        result = subprocess.run(
            [sys.executable, "-c", _RENDER_TEST],
            env={**os.environ, "MUJOCO_GL": backend},
            capture_output=True,
            check=False,
        )
        if result.returncode == 0:
            return backend
    raise OSError(
        f"no film can be made: MuJoCo cannot render with {' or '.join(candidates)} here. Install "
        "EGL (a GPU driver, or 'apt-get install libegl1 libgl1-mesa-dri'), or OSMesa ('apt-get "
        "install libosmesa6') and set MUJOCO_GL=osmesa."
    )


def _make_chunked(env_fn: Callable[[], gymnasium.Env], horizon_length: int) -> gymnasium.Env:
    return OpenLoopChunks(env_fn(), horizon_length)
