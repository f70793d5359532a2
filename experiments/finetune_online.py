"""Fine-tunes an agent in its environment: `python experiments/finetune_online.py --help`.

--run=exp/<group>/<env_name>/<run id> starts from a run of train_offline.py. Its settings and
hyperparameters hold, except for the flags that are given.

Without --run it starts from nothing, beside a dataset: --config=..., often with --balanced_sampling
or --bc_steps. An environment that is not OGBench's needs no dataset without these two.
--preset=paper makes it the paper's run, which begins with an offline stage for all methods but
RLPD.
"""

import sys
from pathlib import Path

from absl import flags

from qam_jax.runs import settings
from qam_jax.runs.command_line import plain_errors, pop_flag, run_with_config, start_logging
from qam_jax.runs.settings import ProcessSettings, RunSettings, define_flags, from_flags

_CONFIGS = Path(__file__).resolve().parent / "configs"

define_flags(RunSettings)
define_flags(ProcessSettings)
flags.FLAGS.set_default("offline_steps", 0)  # or the steps of --run
flags.FLAGS.set_default("online_steps", 500_000)
flags.adopt_module_key_flags(settings)


def main(_: list[str]) -> None:
    start_logging()  # before the libraries, some of which log much
    with plain_errors():
        from qam_jax.reports.plots import show_result
        from qam_jax.runs.processes import is_first, session
        from qam_jax.training.launch import run_from_flags
        from qam_jax.training.run import inherited_settings
        from qam_jax.training.train import train_seeds

        with session(from_flags(ProcessSettings, flags.FLAGS)):
            source, step = flags.FLAGS.run, flags.FLAGS.run_step
            inherited = inherited_settings(source, step) if source else {}
            run, config = run_from_flags(flags.FLAGS, **inherited)
            for result in train_seeds(run, config):
                if is_first():
                    show_result(result, run, config.agent_name)


if __name__ == "__main__":
    run_folder = pop_flag(list(sys.argv), "run")
    if run_folder and pop_flag(list(sys.argv), "preset"):
        sys.exit(
            f"Error: --run={run_folder} and --preset both give settings and hyperparameters. Give "
            "one of the two, and single flags for changes."
        )
    run_with_config(main, _CONFIGS / (f"of_run.py:{run_folder}" if run_folder else "qam.py"))
