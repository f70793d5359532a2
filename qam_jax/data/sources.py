"""From the name of an environment, or the path of a file, to a `TransitionDataset`."""

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from ogbench.relabel_utils import relabel_dataset

from qam_jax.data.dataset import make_dataset
from qam_jax.data.download import MIRRORS, DownloadError, download_dataset
from qam_jax.data.generate import generatable_names, generate_dataset, get_recipe
from qam_jax.data.names import parse_env_name
from qam_jax.data.npz import FIELDS, load_npz
from qam_jax.types import TransitionDataset

_logger = logging.getLogger(__name__)

_RELABEL_FIELDS = ("qpos", "button_states")  # what OGBench computes rewards from


class LoadedDataset(NamedTuple):
    """A dataset and where it came from.

    Attributes:
      dataset: the transitions.
      source: one plain line, for the log and the run's metadata.
      path: the file that was read.
    """

    dataset: TransitionDataset
    source: str
    path: Path


def load_ogbench(
    env_name: str,
    env: gymnasium.Env,
    *,
    dataset_dir: str | os.PathLike,
    data_source: str = "auto",
    mirrors: Sequence[str] = (),
    sparse: bool = False,
) -> LoadedDataset:
    """Finds, downloads or generates OGBench's dataset of a single-task environment.

    Args:
      env_name: such as `cube-double-play-singletask-task2-v0`.
      env: that environment; its task gives the rewards.
      dataset_dir: folder of OGBench's files; new ones are put there.
      data_source: `local`, `download`, `generate`, or `auto` for the first of these that works.
      mirrors: URLs to try before `qam_jax.data.download.MIRRORS`.
      sparse: makes every reward that is not 0 a -1.

    Raises:
      FileNotFoundError: if `data_source` is `local` and there is no file.
      DownloadError: if no mirror served the file; with `auto`, only where it cannot be generated.
      ValueError: if the name is unknown, cannot be generated, or the file is damaged or does not
        fit the environment.
    """
    dataset_name = parse_env_name(env_name).dataset_name
    path, source = _provide(dataset_name, Path(dataset_dir).expanduser(), data_source, mirrors)
    data = load_npz(path, fields=_RELABEL_FIELDS, require=("qpos",))
    _check_dimensions(data, env, path)
    relabel_dataset(env.spec.id, env.unwrapped, data)
    return LoadedDataset(make_dataset(data, sparse=sparse), source + _generator_note(path), path)


def load_file(
    path: str | os.PathLike, env: gymnasium.Env, *, sparse: bool = False
) -> LoadedDataset:
    """Reads a file of your own; see `qam_jax.data.npz` for its fields.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: naming the first thing wrong with it.
    """
    path = Path(path).expanduser()
    data = load_npz(path, fields=FIELDS, require=("rewards",))
    _check_dimensions(data, env, path)
    return LoadedDataset(make_dataset(data, sparse=sparse), f"your file {path}", path)


def _provide(
    dataset_name: str, folder: Path, data_source: str, mirrors: Sequence[str]
) -> tuple[Path, str]:
    path = folder / f"{dataset_name}.npz"
    if data_source in ("auto", "local") and path.exists():
        return path, f"local file {path}"
    if data_source == "local":
        raise FileNotFoundError(
            f"there is no {path}. Put OGBench's file there, name its folder with --dataset_dir, "
            "or let --data_source=auto download or generate it."
        )
    can_generate = data_source == "auto" and dataset_name in generatable_names()
    if data_source in ("auto", "download"):
        try:
            downloaded = download_dataset(
                dataset_name,
                folder,
                mirrors=(*mirrors, *MIRRORS),
                # Where there is another way, a mirror that does not answer is not waited for.
                **({"timeout": 10.0, "retries": 0} if can_generate else {}),
            )
            mirror = downloaded.mirror
            return path, f"downloaded from {mirror}" if mirror else f"local file {path}"
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


def _check_dimensions(data: dict[str, np.ndarray], env: gymnasium.Env, path: Path) -> None:
    for name, space in (("observations", env.observation_space), ("actions", env.action_space)):
        given, expected = data[name].shape[1], space.shape[0]
        if given != expected:
            raise ValueError(
                f"{path}: its {name} have {given} dimensions, but those of {env.spec.id} have "
                f"{expected}: this is the dataset of another environment. Check --env_name and "
                "the file."
            )


def _generator(path: Path) -> dict[str, Any] | None:
    """How a file was simulated here; None if it was not."""
    with np.load(path, allow_pickle=False) as archive:
        return json.loads(str(archive["generator"])) if "generator" in archive else None


def _generator_note(path: Path) -> str:
    """Says so if the file was simulated here, since its name is that of OGBench's own file."""
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
    return f" (simulated: {made['recipe']['num_episodes']} episodes, seed {made['seed']})"
