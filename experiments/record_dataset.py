"""Records episodes of any gymnasium environment, as a file for --dataset.

Example:
  python experiments/record_dataset.py --env_name=Pendulum-v1 --policy=random
"""

import contextlib
import functools
import re

from absl import flags

from qam_jax.data.npz import write_npz
from qam_jax.envs import EnvPool, make_env, make_env_within
from qam_jax.envs.recording import load_policy, record_episodes
from qam_jax.files import ensure_writable_dir, user_path
from qam_jax.runs.command_line import run_main

_ENV_NAME = flags.DEFINE_string(
    "env_name", None, "Id of a gymnasium environment, or OGBench's single-task name."
)
_ENV_MODULE = flags.DEFINE_string(
    "env_module", "", "Module to import, which registers env_name with gymnasium."
)
_POLICY = flags.DEFINE_string(
    "policy",
    "random",
    "random, or <module>:<function> of a function (observation, rng) -> action in [-1, 1].",
)
_DATASET = flags.DEFINE_string("dataset", "", "File to write; empty: <env_name>.npz.")
_NUM_EPISODES = flags.DEFINE_integer("num_episodes", 100, "Number of episodes.", lower_bound=1)
_SEED = flags.DEFINE_integer("seed", 0, "Seed of the data.", lower_bound=0)
_ENV_TIMEOUT = flags.DEFINE_integer(
    "env_timeout", 60, "Seconds for the environment to start, to reset, or to take a step.", 1
)
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file that exists.")


def main(_: list[str]) -> None:
    env_name = _ENV_NAME.value
    if not env_name:
        raise ValueError("of which environment? Give --env_name=<id>, such as Pendulum-v1.")
    path = user_path(_DATASET.value or re.sub("[:/]", "-", env_name) + ".npz")
    if path.suffix != ".npz":
        raise ValueError(f"--dataset={path} must end in .npz.")
    if path.exists() and not _OVERWRITE.value:
        print(f"{path} exists and is kept; --overwrite replaces it.")
        return
    ensure_writable_dir(path.parent)  # before episodes are recorded in vain
    names, seconds = (env_name, _ENV_MODULE.value), _ENV_TIMEOUT.value
    with contextlib.closing(make_env_within(seconds, *names)) as env:
        action_dim = env.action_space.shape[0]
    policy = load_policy(_POLICY.value, action_dim)
    pool = EnvPool(functools.partial(make_env, *names), 1, 1, max_crashes=0, timeout=seconds)
    with contextlib.closing(pool):
        data = record_episodes(pool, policy, action_dim, _NUM_EPISODES.value, seed=_SEED.value)
    write_npz(path, data)
    count, mean = len(data["rewards"]), data["rewards"].sum() / _NUM_EPISODES.value
    print(f"Wrote {path}: {_NUM_EPISODES.value} episodes, {count} steps, mean return {mean:.1f}.")


if __name__ == "__main__":
    run_main(main, stopped="Nothing was written.")
