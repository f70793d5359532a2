"""Inspects data before they are trained on: `python experiments/inspect_data.py --dataset=my.npz`.

Prints what the data hold and a plain verdict, and writes one page, inspection.html, with pictures
into --out. Of --ogbench_dataset_dir it inspects the first file.

Example:
  python experiments/inspect_data.py --env_name=pointmaze-medium-navigate-singletask-v0
"""

import contextlib
import dataclasses
import shlex
import sys
from pathlib import Path

from absl import flags

from qam_jax.runs import settings
from qam_jax.runs.command_line import run_with_config, until_closed
from qam_jax.runs.settings import DataSettings, RunSettings, define_flags, from_flags

define_flags(DataSettings)
flags.adopt_module_key_flags(settings)
_ENV_NAME = flags.DEFINE_string(
    "env_name", "", "Environment, as in training; empty: inspect --dataset without one."
)
_ENV_MODULE = flags.DEFINE_string("env_module", "", "Module to import, which registers env_name.")
_OUT = flags.DEFINE_string("out", "inspection", "Folder for the page and the figures.")


def main(_: list[str]) -> None:
    data = dataclasses.asdict(from_flags(DataSettings, flags.FLAGS))
    names = {"env_name": _ENV_NAME.value, "env_module": _ENV_MODULE.value}
    _inspect(RunSettings(**data, **names))


def _inspect(run: RunSettings) -> None:
    from qam_jax.data.dataset import prepare_dataset
    from qam_jax.data.inspection import inspect
    from qam_jax.envs import make_env
    from qam_jax.files import user_path
    from qam_jax.reports import inspection as pages
    from qam_jax.reports.console import make_console
    from qam_jax.training.inputs import find_normalization, read_source

    settings.check_settings(run)
    config = flags.FLAGS.config
    with contextlib.ExitStack() as stack:
        env = make_env(run.env_name, run.env_module) if run.env_name else None
        if env is not None:
            stack.callback(env.close)
        source = stack.enter_context(contextlib.closing(read_source(run, env, any_actions=True)))
        raw = source.at(0)
        normalization = find_normalization(run, [], raw)
        dataset = prepare_dataset(raw, normalization, run.reward_scale, run.reward_bias)
        data = inspect(dataset, config.horizon_length, config.discount)
        figures = pages.inspection_figures(data, dataset, pages.is_plane(env))
    with until_closed():
        pages.print_inspection(data, make_console())
    page = pages.write_page(
        data,
        figures,
        user_path(_OUT.value),
        title=run.dataset or run.ogbench_dataset_dir or run.env_name,
        source=source.description,
        command=shlex.join(["python", "experiments/inspect_data.py", *sys.argv[1:]]),
    )
    with until_closed():
        print(f"\nPage: {page}")


if __name__ == "__main__":
    run_with_config(
        main, Path(__file__).resolve().parent / "configs" / "qam.py", stopped="Nothing was written."
    )
