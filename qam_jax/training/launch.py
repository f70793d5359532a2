"""From a command line to the settings of a run, and on to training."""

import dataclasses
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags
from ml_collections import ConfigDict, config_flags

from qam_jax.agents import get_config
from qam_jax.data.download import MIRRORS
from qam_jax.files import user_path
from qam_jax.runs import presets
from qam_jax.runs.settings import RunSettings, from_flags
from qam_jax.training.devices import keep_programs

_logger = logging.getLogger(__name__)


def run_from_flags(values: flags.FlagValues, **defaults: Any) -> tuple[RunSettings, ConfigDict]:
    """Calls `resolve_flags`, logs the preset's changes, and prepares for `train_seeds`.

    Checks that the preset's data are there, and lets JAX keep compiled programs.
    """
    settings, config, notes = resolve_flags(values, **defaults)
    check_data_folder(settings)
    keep_programs(settings.compilation_cache_dir)
    for line in notes:
        _logger.info("%s", line)
    return settings, config


class Resolved(NamedTuple):
    """Settings and config of a command line, and in words what the preset changed."""

    settings: RunSettings
    config: ConfigDict
    notes: list[str]


def resolve_flags(values: flags.FlagValues, **defaults: Any) -> Resolved:
    """Resolves the command line's flags, then the preset's settings, then the `defaults`.

    The flags are those of `RunSettings`, and the algorithm's `config`. Raises as `apply_preset`.
    """
    settings = from_flags(RunSettings, values, **defaults)
    if not values["preset"].value:
        return Resolved(settings, values.config, [])
    given = {f.name for f in dataclasses.fields(RunSettings) if values[f.name].present}
    given |= {f"config.{name}" for name in config_flags.get_override_values(values["config"])}
    return apply_preset(settings, values.config, given)


def apply_preset(settings: RunSettings, config: ConfigDict, given: set[str]) -> Resolved:
    """Applies the preset that `settings.preset` names; it then records the changes, as flags.

    What `given` names stays as it is: settings, and fields as `config.<field>`. Raises ValueError
    if there is no such preset, or it does not know the method or environment.
    """
    if settings.preset != "paper":
        raise ValueError(f"there is no preset {settings.preset!r}: give --preset=paper, or none.")
    method = config.get("agent_name", "")
    preset = presets.paper(method, settings.env_name, settings.dataset_dir)
    wanted = preset.settings | _named(preset.config)
    if settings.dataset:
        del wanted["ogbench_dataset_dir"]  # the user's own data take its place
    present = dataclasses.asdict(settings) | _named(config)
    other = {name: value for name, value in wanted.items() if value != present.get(name)}
    taken = {name: value for name, value in other.items() if name not in given}
    notes = [f"Preset {settings.preset} for {method} in {settings.env_name}:"]
    for name, value in other.items():
        now = "none" if present.get(name) == "" else present.get(name)
        if name in taken:
            notes.append(f"  --{name}={value} (without it: {now})")
        else:
            notes.append(f"  --{name}={now} is given and stays; the preset has {value}")
    for name, value in sorted(get_config(method).items()):
        if name not in preset.config and config[name] != value and f"config.{name}" not in given:
            notes.append(
                f"  not the paper's: --config holds {name}={config[name]}, by default {value}"
            )
    record = " ".join([settings.preset, *(f"--{name}={value}" for name, value in taken.items())])
    changes = {name: value for name, value in taken.items() if name in preset.settings}
    fields = {name: preset.config[name] for name in preset.config if f"config.{name}" in taken}
    settings = dataclasses.replace(settings, **changes, preset=record)
    return Resolved(settings, ConfigDict({**config, **fields}), notes)


def _named(config: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of a config, by the names of their flags."""
    return {f"config.{name}": value for name, value in config.items()}


def check_data_folder(settings: RunSettings) -> None:
    """Raises FileNotFoundError if the large dataset that a preset names is not there."""
    folder = settings.ogbench_dataset_dir
    if settings.preset and folder and not user_path(folder).is_dir():
        raise FileNotFoundError(
            f"there is no folder {folder}: the paper trains {settings.env_name} on 100 files of a "
            f"million transitions each. Download them from {MIRRORS[0]}/{Path(folder).name}/ into "
            "it, name their folder by --ogbench_dataset_dir, or give --ogbench_dataset_dir= "
            "(empty) to train on the dataset of a million transitions instead."
        )
