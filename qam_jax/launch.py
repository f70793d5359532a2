"""A run as the entry points make it: training, then results in words and pictures."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from qam_jax import presets
from qam_jax.analysis.plots import plot_run
from qam_jax.data.download import MIRRORS
from qam_jax.envs import find_render_backend
from qam_jax.training.evaluation import describe, film_episodes
from qam_jax.training.run import RunResult, train_seeds
from qam_jax.training.settings import RunSettings, from_flags

_logger = logging.getLogger(__name__)


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


def run_from_flags(**defaults: Any) -> tuple[RunSettings, ConfigDict]:
    """What the command line asks for: its flags, then the preset's settings, then the defaults.

    What a preset changes is printed, and recorded in the settings' `preset` as flags.

    Args:
      **defaults: for settings that neither the command line nor a preset gives.

    Raises:
      ValueError: if there is no such preset, or it does not know the method or environment.
      FileNotFoundError: if the preset's data are not there.
    """
    values = flags.FLAGS
    settings = from_flags(RunSettings, values, **defaults)
    config = values.config
    if not values["preset"].value:
        return settings, config
    given = {f.name for f in dataclasses.fields(RunSettings) if values[f.name].present}
    given |= {f"config.{name}" for name in config_flags.get_override_values(values["config"])}
    return apply_preset(settings, config, given)


def apply_preset(
    settings: RunSettings, config: ConfigDict, given: set[str]
) -> tuple[RunSettings, ConfigDict]:
    """Settings and config with those of the preset that `settings.preset` names.

    Args:
      settings: of the run.
      config: the algorithm and its hyperparameters; not changed.
      given: names of the settings, and `config.<field>` of the fields, that stay as they are.

    Raises:
      ValueError: if there is no such preset, or it does not know the method or environment.
      FileNotFoundError: if the preset's data are not there.
    """
    if settings.preset != "paper":
        raise ValueError(f"there is no preset {settings.preset!r}: give --preset=paper, or none.")
    preset = presets.paper(config.agent_name, settings.env_name, settings.dataset_dir)
    wanted = {**preset.settings, **{f"config.{k}": v for k, v in preset.config.items()}}
    if settings.dataset:
        del wanted["ogbench_dataset_dir"]  # data of one's own take its place
    present = {**dataclasses.asdict(settings), **{f"config.{k}": config[k] for k in config}}
    other = {name: value for name, value in wanted.items() if value != present.get(name)}
    taken = {name: value for name, value in other.items() if name not in given}
    _check_data_folder(taken)
    _logger.info("Preset %s for %s in %s:", settings.preset, config.agent_name, settings.env_name)
    for name, value in other.items():
        now = present.get(name)
        if name in taken:
            _logger.info("  --%s=%s (without it: %s)", name, value, "none" if now == "" else now)
        else:
            _logger.info("  --%s=%s is given and stays; the preset has %s", name, now, value)
    record = " ".join([settings.preset, *(f"--{name}={value}" for name, value in taken.items())])
    changes = {name: value for name, value in taken.items() if name in preset.settings}
    fields = {name: preset.config[name] for name in preset.config if f"config.{name}" in taken}
    config = ConfigDict({**config, **fields})
    return dataclasses.replace(settings, **changes, preset=record), config


def _check_data_folder(taken: dict[str, Any]) -> None:
    """Raises FileNotFoundError if the large dataset that a preset names is not there."""
    folder = taken.get("ogbench_dataset_dir", "")
    if folder and not Path(folder).expanduser().is_dir():
        name = Path(folder).name
        raise FileNotFoundError(
            f"there is no folder {folder}: the paper trains here on 100 files of a million "
            f"transitions each. Download them from {MIRRORS[0]}/{name}/ into it, name their "
            "folder by --ogbench_dataset_dir, or give --ogbench_dataset_dir= (empty) to train on "
            "the dataset of a million transitions instead."
        )


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
