"""Trains an agent offline: `python experiments/train_offline.py --help`.

Without flags: QAM on OGBench's medium point maze, simulated here, within ten minutes. The paper's
networks and schedule: --config=experiments/configs/qam.py; all that the paper sets by method and
domain, with fine-tuning: --preset=paper. With --online_steps it goes straight on to fine-tune in
the environment.
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
# Used where no --config is given, with this schedule for the flags that are not given either.
_QUICK_START = _CONFIGS / "quickstart.py"
_QUICK_START_SCHEDULE = {
    "offline_steps": 20_000,
    "log_interval": 500,
    "eval_interval": 4000,
    "save_interval": 4000,
}

define_flags(RunSettings)
define_flags(HostSettings)
flags.adopt_module_key_flags(settings_module)
config_flags.DEFINE_config_file(
    "config",
    None,
    "File with the algorithm and its hyperparameters; --config.<field>=<value> changes a field; "
    "the fields are listed in qam_jax/agents/base.py and the algorithm's own file there. "
    f"Without it: the quick start, small networks and {_QUICK_START_SCHEDULE}; with --preset, QAM.",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags look like --name=value.")
    start_logging()  # before the libraries, some of which have much to say
    with plain_errors(), session(from_flags(HostSettings, flags.FLAGS)):
        from qam_jax.training.launch import config_file, launch, run_from_flags

        schedule = _QUICK_START_SCHEDULE if config_file() == _QUICK_START else {}
        launch(*run_from_flags(flags.FLAGS, **schedule))


if __name__ == "__main__":
    preset = take_flag(list(sys.argv), "preset")
    with_default_config(sys.argv, str(_CONFIGS / "qam.py" if preset else _QUICK_START))
    run_main(main)
