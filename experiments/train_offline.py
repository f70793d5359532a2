"""Trains an agent offline: `python experiments/train_offline.py --help`.

Without flags: QAM on OGBench's medium point maze, simulated here, within ten minutes. The paper's
settings: --config=experiments/configs/qam.py.
"""

import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from qam_jax.training import settings as settings_module
from qam_jax.training.console import plain_errors, run_main, start_logging
from qam_jax.training.settings import RunSettings, define_flags, from_flags

# Used where no --config is given, with this schedule for the flags that are not given either.
_QUICK_START = Path(__file__).resolve().parent / "configs" / "quickstart.py"
_QUICK_START_SCHEDULE = {
    "offline_steps": 20_000,
    "log_interval": 500,
    "eval_interval": 4000,
    "save_interval": 4000,
}

define_flags(RunSettings)
flags.adopt_module_key_flags(settings_module)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "File with the algorithm and its hyperparameters; --config.<field>=<value> changes a field; "
    "the fields are listed in qam_jax/agents/base.py and the algorithm's own file there. "
    f"Without it: the quick start, small networks and {_QUICK_START_SCHEDULE}.",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags look like --name=value.")
    start_logging()  # before the libraries, some of which have much to say
    from qam_jax.analysis.plots import plot_run
    from qam_jax.envs import find_render_backend
    from qam_jax.training.evaluation import describe, film_episodes
    from qam_jax.training.offline import train_offline

    with plain_errors():
        config_file = Path(config_flags.get_config_filename(flags.FLAGS["config"])).resolve()
        if not config_file.is_file():
            raise FileNotFoundError(f"--config: there is no file {config_file}.")
        schedule = _QUICK_START_SCHEDULE if config_file == _QUICK_START else {}
        settings, config = from_flags(RunSettings, flags.FLAGS, **schedule), _CONFIG.value
        if settings.video_episodes:
            find_render_backend()  # fails now rather than at the end of the run
        result = train_offline(settings, config)
        episodes = {config.agent_name: result.episodes}
        if result.behavior_episodes:
            episodes["behaviour cloning alone"] = result.behavior_episodes
        for name, runs in episodes.items():
            print(f"{name}: {describe(runs)}")
        pictures = plot_run(result.folder, settings.env_name, episodes)
        if settings.video_episodes:
            pictures += film_episodes(
                result.agent,
                result.state,
                settings.env_name,
                result.folder / "videos",
                num_episodes=settings.video_episodes,
                seed=settings.seed,
            )
    print("Pictures:", *pictures, sep="\n  ")


if __name__ == "__main__":
    config_flag = next(
        (flag for flag in sys.argv if flag.startswith(("--config=", "-config="))), None
    )
    if config_flag is None:
        config_flag = f"--config={_QUICK_START}"
    else:
        sys.argv.remove(config_flag)
    sys.argv.insert(1, config_flag)  # the library wants it before the fields that change it
    run_main(main)
