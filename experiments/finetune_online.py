"""Fine-tunes an agent in its environment: `python experiments/finetune_online.py --help`.

--run=exp/<group>/<env_name>/<run id> starts from a run of train_offline.py. Its settings and
hyperparameters hold, except for the flags that are given.

Without --run it starts from nothing, beside a dataset: --config=..., often with --balanced_sampling
or --bc_steps. An environment that is not OGBench's needs no dataset without these two.
--preset=paper makes it the paper's run, which begins with an offline stage for all methods but
RLPD.
"""

import sys
from functools import partial
from pathlib import Path
from typing import Any

import train_offline
from absl import flags

from qam_jax.runs import settings
from qam_jax.runs.command_line import pop_flag, run_with_config

_CONFIGS = Path(__file__).resolve().parent / "configs"

flags.FLAGS.set_default("offline_steps", 0)  # or the steps of --run
flags.FLAGS.set_default("online_steps", 500_000)
flags.adopt_module_key_flags(settings)


def _inherit() -> dict[str, Any]:
    from qam_jax.training.run import inherited_settings

    source, step = flags.FLAGS.run, flags.FLAGS.run_step
    return inherited_settings(source, step) if source else {}


if __name__ == "__main__":
    run_folder = pop_flag(list(sys.argv), "run")
    if run_folder and pop_flag(list(sys.argv), "preset"):
        sys.exit(
            f"Error: --run={run_folder} and --preset both give settings and hyperparameters. Give "
            "one of the two, and single flags for changes."
        )
    default = _CONFIGS / (f"of_run.py:{run_folder}" if run_folder else "qam.py")
    run_with_config(partial(train_offline.main, inherit=_inherit), default)
