"""Trains an agent offline: `python experiments/train_offline.py --help`.

Without flags: QAM on OGBench's medium point maze, simulated here, in about ten minutes.
"""

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from qam_jax.training.settings import RunSettings, define_flags, from_flags

_CONFIGS = Path(__file__).parent / "configs"

define_flags(RunSettings)
_CONFIG = config_flags.DEFINE_config_file(
    "config", str(_CONFIGS / "qam.py"), "Algorithm and hyperparameters.", lock_config=True
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags look like --name=value.")
    from qam_jax.analysis.plots import plot_run
    from qam_jax.training.console import plain_errors, start_logging
    from qam_jax.training.evaluation import describe
    from qam_jax.training.offline import train_offline

    start_logging()
    settings, config = from_flags(RunSettings, flags.FLAGS), _CONFIG.value
    with plain_errors():
        result = train_offline(settings, config)
        pictures = plot_run(result.folder, settings.env_name, result.episodes)
    print(f"{config.agent_name}: {describe(result.episodes)}")
    if result.behavior_episodes:
        print(f"behaviour cloning alone: {describe(result.behavior_episodes)}")
    print("Pictures:", *pictures)


if __name__ == "__main__":
    sys.exit(app.run(main))
