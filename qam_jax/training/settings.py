"""What a run is: every setting outside the agent's own config, each with its help text."""

import dataclasses
from typing import Any

from absl import flags
from ml_collections import ConfigDict


def _setting(default: Any, help_text: str, choices: tuple[str, ...] = ()) -> Any:
    return dataclasses.field(default=default, metadata={"help": help_text, "choices": choices})


@dataclasses.dataclass(frozen=True)
class DataSettings:
    """Where the data come from."""

    dataset: str = _setting("", "An .npz file of your own; empty: OGBench's dataset of env_name.")
    dataset_dir: str = _setting("~/.ogbench/data", "Folder of OGBench's dataset files.")
    data_source: str = _setting(
        "auto",
        "local: only dataset_dir; download: from a mirror; generate: simulate it; "
        "auto: the first of these that works.",
        ("auto", "local", "download", "generate"),
    )
    mirrors: str = _setting("", "Comma-separated URLs of folders to download from, tried first.")
    sparse: bool = _setting(False, "Make every reward that is not 0 a -1.")


@dataclasses.dataclass(frozen=True)
class RunSettings(DataSettings):
    """An offline run."""

    env_name: str = _setting(
        "pointmaze-medium-navigate-singletask-v0", "OGBench's single-task name."
    )
    seed: int = _setting(0, "Seed of networks, batches and noise.")
    offline_steps: int = _setting(1_000_000, "Updates in all.")
    log_interval: int = _setting(1000, "Updates per row of train.csv.")
    eval_interval: int = _setting(
        50_000, "Updates between evaluations; a multiple of log_interval."
    )
    save_interval: int = _setting(
        50_000, "Updates between checkpoints; a multiple of log_interval."
    )
    eval_episodes: int = _setting(50, "Episodes of an evaluation.")
    eval_envs: int = _setting(0, "Environments evaluated side by side; 0: twice the processors.")
    video_episodes: int = _setting(0, "Episodes filmed at the end of the run.")
    save_dir: str = _setting("exp", "Folder of all runs.")
    group: str = _setting("default", "Folder of related runs, inside save_dir.")
    run_id: str = _setting("", "Name of the run's folder; empty: made of algorithm, seed, config.")
    wandb_project: str = _setting("", "Weights & Biases project to log to; empty: none.")


def define_flags(settings_class: type) -> None:
    """Defines one absl flag for each field of a settings class."""
    for field in dataclasses.fields(settings_class):
        default, text = field.default, field.metadata["help"]
        if field.metadata["choices"]:
            flags.DEFINE_enum(field.name, default, list(field.metadata["choices"]), text)
        else:
            define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, str: flags.DEFINE_string}
            define[field.type](field.name, default, text)


def from_flags(settings_class: type, values: flags.FlagValues, **defaults: Any) -> Any:
    """The settings that the command line gave.

    Args:
      settings_class: the class that `define_flags` was called with.
      values: the parsed flags.
      **defaults: for flags that the command line left out, in place of the class's.
    """
    settings = {}
    for field in dataclasses.fields(settings_class):
        flag = values[field.name]
        given = flag.present or field.name not in defaults
        settings[field.name] = flag.value if given else defaults[field.name]
    return settings_class(**settings)


def check_settings(settings: RunSettings) -> None:
    """Raises ValueError, naming the setting and the mend, where settings make no sense."""
    for name in ("offline_steps", "log_interval", "eval_interval", "save_interval"):
        value = getattr(settings, name)
        if value < 1:
            raise ValueError(f"--{name} must be at least 1, got {value}.")
    for name in ("eval_interval", "save_interval"):
        value = getattr(settings, name)
        if value % settings.log_interval:
            raise ValueError(
                f"--{name} must be a multiple of --log_interval ({settings.log_interval}), "
                f"got {value}; the one below is {value - value % settings.log_interval}."
            )
    for name, low, high in (
        ("seed", 0, 2**31 - 1),
        ("eval_episodes", 1, 10**6),
        ("eval_envs", 0, 10**4),
        ("video_episodes", 0, 10**4),
    ):
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ValueError(f"--{name} must lie in [{low}, {high}], got {value}.")
    for name in ("group", "run_id"):
        value = getattr(settings, name)
        if value in (".", "..") or "/" in value or "\\" in value:
            raise ValueError(f"--{name} must be the name of one folder, got {value!r}.")
    if settings.dataset and (settings.data_source != "auto" or settings.mirrors):
        raise ValueError(
            "--dataset names a file of your own; --data_source and --mirrors are for OGBench's: "
            "give one or the other."
        )


def resolved(settings: RunSettings, agent_config: ConfigDict) -> dict[str, Any]:
    """All settings and the agent's config, as they go into config.json."""
    return {**dataclasses.asdict(settings), "agent": agent_config.to_dict()}
