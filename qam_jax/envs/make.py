"""Makes environments by their OGBench names."""

import difflib
import functools
import multiprocessing
from collections.abc import Callable
from typing import Any

import gymnasium

from qam_jax.data.names import parse_env_name
from qam_jax.envs.wrappers import OpenLoopChunks, OwnRandomState


def make_env(env_name: str, **kwargs: Any) -> gymnasium.Env:
    """Makes the simulator of an OGBench single-task name, with randomness of its own.

    Args:
      env_name: such as `cube-double-play-singletask-task2-v0`; the dataset type is ignored.
      **kwargs: passed to `gymnasium.make`.

    Raises:
      ValueError: if the name is malformed or OGBench has no such environment; the message
        offers names that are close.
    """
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
      num_envs: 1 runs in the calling process; more get a process each.

    Returns:
      A vector environment with observations [num_envs, O] and actions [num_envs, H, A].
    """
    chunked_fns = [functools.partial(_make_chunked, env_fn, horizon_length)] * num_envs
    mode = gymnasium.vector.AutoresetMode.DISABLED
    if num_envs == 1:
        return gymnasium.vector.SyncVectorEnv(chunked_fns, autoreset_mode=mode)
    return gymnasium.vector.AsyncVectorEnv(
        chunked_fns, context=_start_method(), autoreset_mode=mode
    )


def _make_chunked(env_fn: Callable[[], gymnasium.Env], horizon_length: int) -> gymnasium.Env:
    return OpenLoopChunks(env_fn(), horizon_length)


def _start_method() -> str:
    # Never "fork": the caller has JAX's threads.
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
