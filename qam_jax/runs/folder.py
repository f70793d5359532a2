"""Folder of a run: its name, config.json and metadata.json, and whether a run may continue it."""

import dataclasses
import datetime
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

import jax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from qam_jax import __version__
from qam_jax.agents import complete_config, display_name, later_fields, variant_name
from qam_jax.files import DamagedError, ensure_writable_dir, read_json, user_path, write_json
from qam_jax.runs.settings import RunSettings, names_with_role, resolved

_PACKAGES = (
    "jax jaxlib flax optax chex orbax-checkpoint ml_collections numpy gymnasium ogbench mujoco"
)
_NEEDED = {"starts", "dataset_source", "dataset_fingerprint", "observation_dim", "action_dim"}


def find_folder(settings: RunSettings, agent_config: ConfigDict) -> Path:
    """Creates the run's folder, or finds it with an earlier part of the same run.

    Raises ValueError as `check_folder` or for damaged files, OSError if it cannot be written to.
    """
    folder = ensure_writable_dir(folder_of(settings, agent_config))
    check_folder(folder, settings, agent_config)
    if (folder / "metadata.json").exists():
        read_metadata(folder)  # if it is damaged, the checkpoints are not
    return folder


def folder_of(settings: RunSettings, agent_config: ConfigDict) -> Path:
    """Returns the path of the run's folder, which need not exist."""
    env_name = re.sub("[/:]", "_", settings.env_name) or "no_environment"
    folder = user_path(settings.save_dir) / settings.group / env_name
    return folder / (settings.run_id or _default_run_id(resolved(settings, agent_config)))


def check_folder(folder: Path, settings: RunSettings, agent_config: ConfigDict) -> None:
    """Raises ValueError, naming what differs, if a folder holds a run of another config."""
    if not (folder / "config.json").exists():
        return
    config, earlier = resolved(settings, agent_config), read_config(folder)
    if not earlier["online_steps"]:
        earlier |= {name: config[name] for name in names_with_role("online")}
    before, now = (flatten_dict(json.loads(json.dumps(c)), sep=".") for c in (earlier, config))
    fixed = sorted((before.keys() | now.keys()) - names_with_role("free", "schedule"))
    differences = "; ".join(
        f"{name} is {before.get(name)!r} there and {now.get(name)!r} here"
        for name in fixed
        if before.get(name) != now.get(name)
    )
    if differences:
        raise ValueError(
            f"the run folder {folder} holds a run of another config: {differences}. "
            "Give another --run_id or --group, or the config that it was started with."
        )


def read_config(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads config.json of a run's folder; fills in settings that came after the run.

    Raises FileNotFoundError if it is not a run's folder, DamagedError if the file cannot be read.
    """
    path = user_path(folder) / "config.json"
    config = _read(path, ": give the folder of a run, exp/<group>/<env_name>/<run id>")
    if not isinstance(config.get("agent"), dict) or "agent_name" not in config["agent"]:
        raise _damaged(path, "the settings of a run")
    try:
        agent = complete_config(config["agent"])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    agent = json.loads(json.dumps(agent))  # the same values as from the file
    return {**dataclasses.asdict(RunSettings()), **config, "agent": agent}


def read_metadata(folder: str | os.PathLike) -> dict[str, Any]:
    """Reads metadata.json of a run's folder. Raises as `read_config`."""
    path = user_path(folder) / "metadata.json"
    metadata = _read(path, ", which belongs to this run. Restore it from a copy, or start anew")
    if not metadata.keys() >= _NEEDED or not metadata["starts"]:
        raise _damaged(path, "the metadata of a run")
    return metadata


def record_start(
    folder: Path, settings: RunSettings, agent_config: ConfigDict, **facts: Any
) -> None:
    """Writes config.json and metadata.json: `facts`, method, versions, device and git revision.

    Raises ValueError if the folder's run was trained on other data than `dataset_fingerprint`.
    """
    path = folder / "metadata.json"
    earlier = read_metadata(folder) if path.exists() else {"starts": [], **facts}
    before, now = earlier["dataset_fingerprint"], facts["dataset_fingerprint"]
    if before != now:
        raise ValueError(
            f"the run in {folder} was trained on other data ({earlier['dataset_source']}, "
            f"fingerprint {before}) than those found now ({facts['dataset_source']}, "
            f"fingerprint {now}). Restore the data, or start a new run with another --run_id."
        )
    device = jax.devices()[0]
    versions = {"qam_jax": __version__, **{name: _version(name) for name in _PACKAGES.split()}}
    start = {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": versions,
        "python": platform.python_version(),
        "device": f"{jax.device_count()} x {device.device_kind} ({device.platform})",
        "git_revision": _git("rev-parse", "HEAD"),
        "git_changes": bool(_git("status", "--porcelain")),
    }
    method = display_name(variant_name(agent_config))
    write_json(path, {**facts, "method": method, "starts": [*earlier["starts"], start]})
    write_json(folder / "config.json", resolved(settings, agent_config))


def _read(path: Path, advice: str) -> dict[str, Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}{advice}.")
    return read_json(path)


def _damaged(path: Path, what: str) -> DamagedError:
    return DamagedError(
        f"{path} is damaged (not {what}). Restore it from a copy, or start a new run."
    )


def _default_run_id(config: dict[str, Any]) -> str:
    kept, later = names_with_role("result", "run"), later_fields(config["agent"]["agent_name"])
    identity = {
        field.name: config[field.name]
        for field in dataclasses.fields(RunSettings)
        if field.name in kept
        and not (field.metadata["later"] and config[field.name] == field.default)
    }
    identity["agent"] = {
        name: value
        for name, value in config["agent"].items()
        if name not in later or value != later[name]
    }
    digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]
    return f"{config['agent']['agent_name']}-seed{config['seed']}-{digest}"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str | None:
    """Asks git about the checkout that this code runs from, if it is one."""
    command = ["git", "-C", str(Path(__file__).parent), *arguments]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return result.stdout.strip()
