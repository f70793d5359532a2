"""Trains an agent offline: `python experiments/train_offline.py --help`.

Without flags: QAM on OGBench's medium point maze, simulated here, within ten minutes. The paper's
settings: --config=experiments/configs/qam.py.
"""

from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from qam_jax.training.console import plain_errors, run_main, start_logging
from qam_jax.training.settings import RunSettings, define_flags, from_flags

_CONFIGS = Path(__file__).parent / "configs"
# Used where neither --config nor the flag itself is given.
_QUICK_START = {
    "offline_steps": 20_000,
    "log_interval": 500,
    "eval_interval": 4000,
    "save_interval": 4000,
}

define_flags(RunSettings)
_CONFIG = config_flags.DEFINE_config_file(
    "config",
    str(_CONFIGS / "quickstart.py"),
    "Algorithm and hyperparameters; fields are set with --config.<field>=<value>. Without it: the "
    f"quick start, small networks and {_QUICK_START}.",
)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        raise app.UsageError(f"unexpected arguments {argv[1:]}; flags look like --name=value.")
    from qam_jax.analysis.plots import plot_run
    from qam_jax.training.evaluation import describe, film_episodes
    from qam_jax.training.offline import train_offline

    start_logging()
    quick_start = not flags.FLAGS["config"].present
    settings = from_flags(RunSettings, flags.FLAGS, **(_QUICK_START if quick_start else {}))
    config = _CONFIG.value
    with plain_errors():
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
    run_main(main)
