"""Records episodes of any gymnasium environment, as a file for --dataset.

Example:
  python experiments/record_dataset.py --env_name=Pendulum-v1 --policy=random
"""

import contextlib
import re
from pathlib import Path

from absl import app, flags

from qam_jax.data.npz import write_npz
from qam_jax.envs import make_env
from qam_jax.envs.recording import load_policy, record_episodes
from qam_jax.files import ensure_writable_dir
from qam_jax.runs.command_line import plain_errors, run_main

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
_OVERWRITE = flags.DEFINE_bool("overwrite", False, "Replace a file that exists.")


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags look like --name=value.")
    with plain_errors(stopped="Nothing was written."):
        if not _ENV_NAME.value:
            raise ValueError("of which environment? Give --env_name=<id>, such as Pendulum-v1.")
        _record()


def _record() -> None:
    path = Path(_DATASET.value or re.sub("[:/]", "-", _ENV_NAME.value) + ".npz").expanduser()
    if path.suffix != ".npz":
        raise ValueError(f"--dataset={path} must end in .npz.")
    if path.exists() and not _OVERWRITE.value:
        print(f"{path} exists and is kept; --overwrite replaces it.")
        return
    ensure_writable_dir(path.parent)  # before episodes are recorded in vain
    with contextlib.closing(make_env(_ENV_NAME.value, _ENV_MODULE.value)) as env:
        policy = load_policy(_POLICY.value, env.action_space.shape[0])
        data = record_episodes(env, policy, _NUM_EPISODES.value, seed=_SEED.value)
    write_npz(path, data)
    count, mean = len(data["rewards"]), data["rewards"].sum() / _NUM_EPISODES.value
    print(f"Wrote {path}: {_NUM_EPISODES.value} episodes, {count} steps, mean return {mean:.1f}.")


if __name__ == "__main__":
    run_main(main)
