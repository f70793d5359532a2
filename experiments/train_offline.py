"""Trains an agent offline: `python experiments/train_offline.py --help`.

Without flags it trains QAM in OGBench's medium point maze, within ten minutes.

--config=experiments/configs/qam.py takes the paper's networks and schedule. --preset=paper takes
all settings of the paper for a method and a domain, with fine-tuning. With --online_steps the run
goes on to fine-tune in the environment.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags

from qam_jax.runs import settings
from qam_jax.runs.command_line import pop_flag, run_with_config
from qam_jax.runs.settings import ProcessSettings, RunSettings, define_flags, from_flags

_CONFIGS = Path(__file__).resolve().parent / "configs"
_QUICK_START = _CONFIGS / "quickstart.py"  # used without --config and --preset, with this schedule
_QUICK_START_SCHEDULE = {
    "offline_steps": 20_000,
    "log_interval": 500,
    "eval_interval": 4000,
    "save_interval": 4000,
}

define_flags(RunSettings)
define_flags(ProcessSettings)
flags.adopt_module_key_flags(settings)


def main(_: list[str], inherit: Callable[[], dict[str, Any]] = dict) -> None:
    """Trains by the flags, and by the settings of `inherit` where a flag is not given."""
    from qam_jax.reports.plots import show_result
    from qam_jax.runs.processes import is_first, session
    from qam_jax.training.launch import run_from_flags
    from qam_jax.training.train import train_seeds

    with session(from_flags(ProcessSettings, flags.FLAGS)):
        run, config = run_from_flags(flags.FLAGS, **inherit())
        for result in train_seeds(run, config):
            if is_first():
                show_result(result, run, config.agent_name)


if __name__ == "__main__":
    if pop_flag(list(sys.argv), "preset"):
        run_with_config(main, _CONFIGS / "qam.py")
    else:
        run_with_config(main, _QUICK_START, **_QUICK_START_SCHEDULE)
