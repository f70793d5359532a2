"""Fine-tunes an agent in its environment: `python experiments/finetune_online.py --help`.

From a run of train_offline.py: --run=exp/<group>/<env_name>/<run id>, whose settings and
hyperparameters hold unless they are given anew. Without --run from nothing, next to a dataset:
--config=..., often with --balanced_sampling or --bc_steps; --preset=paper makes it the paper's run,
which for all methods but RLPD begins with an offline stage.
"""

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from qam_jax.runs import settings as settings_module
from qam_jax.runs.command_line import (
    plain_errors,
    run_main,
    start_logging,
    take_flag,
    with_default_config,
)
from qam_jax.runs.settings import HostSettings, RunSettings, define_flags, from_flags
from qam_jax.training.hosts import session

_CONFIGS = Path(__file__).resolve().parent / "configs"

define_flags(RunSettings)
define_flags(HostSettings)
flags.FLAGS.set_default("offline_steps", 0)  # or those of --run
flags.FLAGS.set_default("online_steps", 500_000)
flags.adopt_module_key_flags(settings_module)
config_flags.DEFINE_config_file(
    "config",
    None,
    "File with the algorithm and its hyperparameters; --config.<field>=<value> changes a field. "
    "Without it: those of --run, or the paper's QAM.",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags look like --name=value.")
    start_logging()  # before the libraries, some of which have much to say
    with plain_errors(), session(from_flags(HostSettings, flags.FLAGS)):
        from qam_jax.training.launch import config_file, launch, run_from_flags
        from qam_jax.training.warm_start import settings_of

        config_file()
        run, step = flags.FLAGS.run, flags.FLAGS.run_step
        if run and flags.FLAGS.preset:
            raise ValueError(
                f"--run={run} goes on with that run's settings and hyperparameters, --preset takes "
                "the preset's: give one of them, and single flags for what is to differ."
            )
        inherited = settings_of(run, step) if run else {}
        launch(*run_from_flags(flags.FLAGS, **inherited))


if __name__ == "__main__":
    run_folder = take_flag(list(sys.argv), "run")
    config = f"of_run.py:{run_folder}" if run_folder else "qam.py"
    with_default_config(sys.argv, str(_CONFIGS / config))
    run_main(main)
