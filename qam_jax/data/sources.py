"""Finds the dataset of an environment, or reads data of your own."""

import dataclasses
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from ogbench.relabel_utils import relabel_dataset

from qam_jax.data import checks
from qam_jax.data.dataset import DataSource, make_dataset, take_leading
from qam_jax.data.demonstrations import Choice
from qam_jax.data.download import MIRRORS, DownloadError, download_dataset
from qam_jax.data.generate import generatable_names, generate_dataset, get_recipe
from qam_jax.data.lerobot import load_lerobot
from qam_jax.data.minari import load_minari
from qam_jax.data.npz import find_files, load_npz, read_headers
from qam_jax.data.robomimic import load_robomimic
from qam_jax.data.tasks import parse_task
from qam_jax.files import user_path

_READERS = {"minari": load_minari, "robomimic": load_robomimic, "lerobot": load_lerobot}
_logger = logging.getLogger(__name__)


def load_ogbench(
    env_name: str,
    env: gymnasium.Env,
    *,
    dataset_dir: str | os.PathLike,
    data_source: str = "auto",
    mirrors: Sequence[str] = (),
    sparse: bool = False,
    proportion: float = 1.0,
) -> DataSource:
    """Finds, downloads or generates OGBench's dataset of a single-task environment.

    Args:
      env_name: such as `cube-double-play-singletask-task2-v0`.
      env: this environment; its task gives the rewards.
      dataset_dir: folder of OGBench's files; new ones are put there.
      data_source: `local`, `download`, `generate`, or `auto` for the first of these that works.
      mirrors: URLs to try before `qam_jax.data.download.MIRRORS`.
      sparse: whether every reward that is not 0 becomes -1.
      proportion: how much to use, in (0, 1]: the leading transitions.

    Raises:
      FileNotFoundError: if there is no file with `data_source="local"`.
      DownloadError: if no mirror served it; with `auto` only if it cannot be generated either.
      ValueError: if the name is unknown or cannot be generated, the file is damaged or does not fit
        the environment, or the proportion is out of range or leaves nothing.
    """
    dataset_name = parse_task(env_name).dataset_name
    path, source = _provide(dataset_name, user_path(dataset_dir), data_source, mirrors)
    data = load_npz(path, fields=checks.RELABEL_FIELDS, require=("qpos",))
    checks.check_dimensions(data, env, path)
    data = take_leading(data, proportion, path)
    relabel_dataset(env.spec.id, env.unwrapped, data)
    description = source + _generator_note(path) + _proportion_note(proportion)
    return DataSource(make_dataset(data, sparse=sparse), description, path)


def load_own(
    dataset: str | os.PathLike,
    env: gymnasium.Env | None,
    *,
    choice: Choice = Choice(),  # noqa: B008 - it cannot be changed
    sparse: bool = False,
    proportion: float = 1.0,
) -> DataSource:
    """Reads data of your own.

    Args:
      dataset: an `.npz` file (see `qam_jax.data.checks` for its fields); a folder, whose `.npz`
        files except `*-val.npz` are put together in the order of their names; `minari:<id>`;
        `robomimic:<file>`; or `lerobot:<folder>`.
      env: the environment that the data have to fit; None if there is none.
      choice: what to use of the last two, and whether actions, which will then be normalised,
        may have any range.
      sparse: whether every reward that is not 0 becomes -1.
      proportion: how much to use of each file, in (0, 1]: the leading transitions.

    Raises:
      FileNotFoundError: if there are no such data.
      ImportError: if they need a package that is not installed.
      ValueError: names the first fault in the data, or two files that differ.
    """
    dataset, path = os.fspath(dataset), user_path(dataset)
    kind, _, name = dataset.partition(":")
    if kind in _READERS:
        data, path, description = _READERS[kind](name, choice, env)
        pieces = {dataset: data}
    else:
        paths = find_files(path) if path.is_dir() else [path]
        headers = {each: read_headers(each) for each in paths}
        checks.check_same_fields(headers)
        options: dict[str, Any] = {"fields": checks.FIELDS, "require": ("rewards",)}
        options["any_actions"] = choice.any_actions
        pieces = {str(each): load_npz(each, headers=headers[each], **options) for each in paths}
        description = f"your {len(paths)} files in {path}" if path.is_dir() else f"your file {path}"
    for source, data in pieces.items():
        checks.check_dimensions(data, env, source)
        pieces[source] = take_leading(data, proportion, source)
    data, *others = pieces.values()
    if others:
        data = {name: np.concatenate([data[name], *(o[name] for o in others)]) for name in data}
    laid_out = make_dataset(data, sparse=sparse, any_actions=choice.any_actions)
    return DataSource(laid_out, description + _proportion_note(proportion), path)


def no_data(env: gymnasium.Env) -> DataSource:
    """Makes a dataset without transitions, for training on experience alone."""
    zeros = {
        "observations": np.zeros((2, *env.observation_space.shape)),
        "actions": np.zeros((2, *env.action_space.shape)),
        "rewards": np.zeros(2),
        "terminals": np.array([0, 1]),
    }
    # Arrays must not be empty in compiled programs: one transition is there, and never drawn.
    dataset = dataclasses.replace(make_dataset(zeros), num_starts=np.int32(0))
    return DataSource(dataset, "none but the run's own experience", Path())


def _provide(
    dataset_name: str, folder: Path, data_source: str, mirrors: Sequence[str]
) -> tuple[Path, str]:
    """Path of the training file, and where it is from."""
    path = folder / f"{dataset_name}.npz"
    local = path, f"local file {path}"
    if data_source in ("auto", "local") and path.exists():
        return local
    if data_source == "local":
        raise FileNotFoundError(
            f"there is no {path}. Put OGBench's file there, name its folder with --dataset_dir, "
            "or let --data_source=auto download or generate it."
        )
    if data_source in ("auto", "download"):
        can_generate = data_source == "auto" and dataset_name in generatable_names()
        # Where there is another way, do not wait for a mirror that does not answer.
        patience: dict[str, Any] = {"timeout": 10.0, "retries": 0} if can_generate else {}
        try:
            mirror = download_dataset(
                dataset_name, folder, mirrors=(*mirrors, *MIRRORS), **patience
            )
            return (path, f"downloaded from {mirror}") if mirror else local
        except DownloadError:
            if not can_generate:
                raise
            _logger.info(
                "No mirror served %s (--data_source=download tells why): simulating it instead.",
                dataset_name,
            )
    if not path.exists():
        generate_dataset(dataset_name, folder)
    elif _generator(path) is None:
        raise ValueError(
            f"{path} is there already and was not generated here: it is not replaced. Use it "
            "(--data_source=local), or name another --dataset_dir."
        )
    return path, f"generated into {path}"


def _generator(path: Path) -> dict[str, Any] | None:
    """Recipe, seed and versions of a file that was simulated here; None of any other file."""
    with np.load(path, allow_pickle=False) as archive:
        return json.loads(str(archive["generator"])) if "generator" in archive else None


def _generator_note(path: Path) -> str:
    """Note that a file was simulated here: its name is that of OGBench's own file."""
    made = _generator(path)
    if made is None:
        return ""
    name, count = made["recipe"]["name"], made["recipe"]["num_episodes"]
    published = get_recipe(name).num_episodes
    if count != published:
        _logger.warning(
            "Note: %s was simulated with %d episodes; the published %s has %d.",
            path, count, name, published,
        )  # fmt: skip
    return f" (simulated: {count} episodes, seed {made['seed']})"


def _proportion_note(proportion: float) -> str:
    return f", the leading {proportion:.6g} of it" if proportion < 1 else ""
