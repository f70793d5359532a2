"""A run as the entry points make it: training, then results in words and pictures."""

from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from qam_jax.analysis.plots import plot_run
from qam_jax.envs import find_render_backend
from qam_jax.training.evaluation import describe, film_episodes
from qam_jax.training.run import RunResult, train_seeds
from qam_jax.training.settings import RunSettings


def config_file() -> Path:
    """The file that --config names.

    Raises:
      FileNotFoundError: if there is no such file.
    """
    name, *_ = config_flags.get_config_filename(flags.FLAGS["config"]).split(":")
    path = Path(name).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"--config: there is no file {path}.")
    return path


def launch(settings: RunSettings, config: ConfigDict) -> None:
    """Trains or continues to, prints how the policies of each seed do, and draws them.

    Args:
      settings: what the run is.
      config: the algorithm and its hyperparameters.
    """
    if settings.video_episodes:
        find_render_backend()  # fails now rather than at the end of the run
    for result in train_seeds(settings, config):
        _describe(result, settings, config.agent_name)


def _describe(result: RunResult, settings: RunSettings, name: str) -> None:
    prefix = f"seed {result.seed}: " if settings.num_seeds > 1 else ""
    episodes = {name: result.episodes} if result.episodes else {}
    if result.behavior_episodes:
        episodes["behaviour cloning alone"] = result.behavior_episodes
    for policy, runs in episodes.items():
        print(f"{prefix}{policy}: {describe(runs)}")
    pictures = plot_run(result.folder, settings, episodes)
    if settings.video_episodes:
        pictures += film_episodes(
            result.agent,
            result.state,
            settings.env_name,
            result.folder / "videos",
            num_episodes=settings.video_episodes,
            seed=result.seed,
            env_module=settings.env_module,
        )
    print(f"{prefix}Run: {result.folder}")
    if pictures:
        print("Pictures:", *pictures, sep="\n  ")
