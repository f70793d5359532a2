"""Generates OGBench datasets with their published recipes (arXiv 2410.20092), and Meta-World's.

The files have OGBench's names and layout, so that OGBench's own loader reads them. Every episode
has its own seed, so the data do not depend on the number of processes.
"""

import concurrent.futures
import contextlib
import difflib
import functools
import importlib.metadata
import itertools
import json
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Generator, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import tqdm

from qam_jax import files
from qam_jax.data import metaworld, scripted
from qam_jax.data.npz import write_npz
from qam_jax.data.scripted import Episode, Recipe
from qam_jax.memory import check_processes

_MANIPULATION = {  # environment: number of episodes, bounds of the probability to stack cubes
    "cube-single": (1000, (0.0, 0.0)),
    "cube-double": (1000, (0.0, 0.25)),
    "cube-triple": (3000, (0.05, 0.35)),
    "cube-quadruple": (5000, (0.1, 0.5)),
    "scene": (1000, (0.5, 0.5)),
    "puzzle-3x3": (1000, (0.5, 0.5)),
    "puzzle-4x4": (1000, (0.5, 0.5)),
    "puzzle-4x5": (3000, (0.5, 0.5)),
    "puzzle-4x6": (5000, (0.5, 0.5)),
}
_EXPERTS = "its data come from trained expert policies, which OGBench does not ship"
_NOT_GENERATED = {  # how a name begins: why it cannot be generated
    "antmaze-": _EXPERTS,
    "humanoidmaze-": _EXPERTS,
    "antsoccer-": _EXPERTS,
    "visual-": "its observations are images; only datasets of states can be generated",
    "powderworld-": "its observations are images, its actions discrete, which is not supported",
}


def get_recipe(dataset_name: str) -> Recipe:
    """Published recipe of a dataset. Raises ValueError, saying why, if it cannot be made here."""
    recipes = _recipes()
    if dataset_name in recipes:
        return recipes[dataset_name]
    for prefix, reason in _NOT_GENERATED.items():
        if dataset_name.startswith(prefix):
            raise ValueError(
                f"the dataset {dataset_name!r} cannot be generated: {reason}. Download it "
                "(--data_source=download), or put OGBench's files "
                f"'{dataset_name}.npz' and '{dataset_name}-val.npz' into --dataset_dir."
            )
    close = difflib.get_close_matches(dataset_name, recipes, n=3)
    names = [name for name in recipes if not name.startswith(metaworld.PREFIX)]
    raise ValueError(
        f"unknown dataset {dataset_name!r}; the datasets that can be generated are: "
        f"{', '.join(names)}; and {metaworld.PREFIX}<task>-<{', '.join(metaworld.QUALITIES)}>-v3."
        + (f" Close names: {', '.join(close)}." if close else "")
    )


def generatable_names() -> list[str]:
    """Names of all datasets that `generate_dataset` can make."""
    return list(_recipes())


def generate_dataset(
    dataset_name: str,
    dataset_dir: str | os.PathLike,
    *,
    num_episodes: int | None = None,
    seed: int = 0,
    num_processes: int | None = None,
    progress: bool = True,
) -> Path:
    """Makes `<dataset_name>.npz` and `<dataset_name>-val.npz` in `dataset_dir`.

    Both files appear only once both are complete, the validation file first. Existing files of
    these names are replaced. Processes are spawned, so a script that calls this function needs the
    usual `if __name__ == "__main__":` guard. Returns the path of the training file.

    Args:
      dataset_name: one of `generatable_names()`.
      dataset_dir: the folder for the files; created where missing.
      num_episodes: training episodes, by default as many as published. The validation file has a
        tenth as many, at least one.
      seed: base seed, not negative.
      num_processes: worker processes, by default one for each usable CPU.
      progress: whether to show a progress bar, in simulator steps.

    Raises:
      ValueError: if an argument is out of range or the dataset cannot be made here.
      OSError: if the folder is not writable; raised before anything is simulated.
      ChildProcessError: if an episode fails, or its process dies; names the episode and its seed.
        No file is left behind.
    """
    recipe = get_recipe(dataset_name)
    if num_episodes is not None:
        recipe = recipe._replace(num_episodes=num_episodes)
    if num_processes is None:
        num_processes = files.num_usable_cpus()
    counts = {"num_episodes": recipe.num_episodes, "num_processes": num_processes, "seed": seed}
    for name, value in counts.items():
        least = 0 if name == "seed" else 1
        if value < least:
            raise ValueError(f"{name} must be at least {least}, but is {value}.")
    check_processes(f"num_processes = {num_processes}", min(num_processes, recipe.num_episodes))
    return _generate(recipe, files.user_path(dataset_dir), seed, num_processes, progress)


@functools.cache
def _recipes() -> dict[str, Recipe]:
    recipes = []
    for size in ("medium", "large", "giant", "teleport"):
        long = (500, 2001) if size == "giant" else (1000, 1001)
        for kind, episodes in {"navigate": long, "stitch": (5000, 201)}.items():
            name, env_id = f"pointmaze-{size}-{kind}-v0", f"pointmaze-{size}-v0"
            recipes.append(Recipe(name, env_id, kind, *episodes, noise=0.5))
    for environment, (num_episodes, p_stack) in _MANIPULATION.items():
        for kind in ("play", "noisy"):
            p_random = 0.0 if kind == "play" else 0.2 if environment.startswith("puzzle") else 0.1
            name, env_id = f"{environment}-{kind}-v0", f"{environment}-v0"
            recipes.append(Recipe(name, env_id, kind, num_episodes, 1001, 0.1, p_random, p_stack))
    return {recipe.name: recipe for recipe in (*recipes, *metaworld.recipes())}


def _generate(
    recipe: Recipe, dataset_dir: Path, seed: int, num_processes: int, progress: bool
) -> Path:
    files.ensure_writable_dir(dataset_dir)
    num_train, num_val = recipe.num_episodes, max(1, recipe.num_episodes // 10)
    num_steps = (num_train + num_val) * recipe.episode_length
    with (
        contextlib.closing(_episodes(recipe, seed, num_train + num_val, num_processes)) as episodes,
        tqdm.tqdm(
            total=num_steps, unit="step", unit_scale=True, desc=recipe.name, disable=not progress
        ) as bar,
    ):
        train = _collect(episodes, num_train, recipe.episode_length, bar)
        val = _collect(episodes, num_val, recipe.episode_length, bar)
    simulator = "metaworld" if recipe.name.startswith(metaworld.PREFIX) else "ogbench"
    versions = {name: importlib.metadata.version(name) for name in (simulator, "mujoco", "numpy")}
    origin = {"recipe": recipe._asdict(), "seed": seed, "versions": versions}
    generator = np.array(json.dumps(origin, sort_keys=True))
    # The training file comes last: its presence means that both are complete.
    for suffix, data in (("-val", val), ("", train)):
        path = dataset_dir / f"{recipe.name}{suffix}.npz"
        write_npz(path, {"generator": generator, **data})
    return path


def _episodes(
    recipe: Recipe, seed: int, num_episodes: int, num_processes: int
) -> Generator[Episode]:
    """Yields all episodes in order, made by worker processes."""
    context = multiprocessing.get_context("spawn")  # a fork would copy the caller's threads
    executor = concurrent.futures.ProcessPoolExecutor(
        min(num_processes, num_episodes), context, _start_worker
    )
    try:
        make = functools.partial(_make_episode, recipe, seed)
        yield from executor.map(make, range(num_episodes))
    except concurrent.futures.process.BrokenProcessPool as error:
        raise ChildProcessError(
            f"a worker process died while making {recipe.name!r} (seed {seed}); it may have been "
            "killed for lack of memory. Try again with fewer processes (--num_processes)."
        ) from error
    finally:
        executor.shutdown(wait=True, cancel_futures=True)


def _start_worker() -> None:
    os.environ["MUJOCO_GL"] = "disabled"  # nothing is rendered; read when mujoco is imported
    warnings.filterwarnings("ignore", category=UserWarning, module="glfw|gymnasium|metaworld")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(
        target=_exit_with, args=[multiprocessing.parent_process()], daemon=True
    ).start()


def _exit_with(parent: BaseProcess) -> None:
    parent.join()
    os._exit(1)


def _make_episode(recipe: Recipe, seed: int, index: int) -> Episode:
    try:
        family = metaworld if recipe.name.startswith(metaworld.PREFIX) else scripted
        return family.make_episode(family.make_simulator(recipe), recipe, seed, index)
    except Exception as error:
        raise ChildProcessError(
            f"episode {index} of {recipe.name!r} failed (seed {seed}): "
            f"{type(error).__name__}: {error}"
        ) from error


def _collect(
    episodes: Iterator[Episode], num_episodes: int, length: int, bar: tqdm.tqdm
) -> dict[str, np.ndarray]:
    """Joins `num_episodes` episodes of at most `length` rows, without a second copy of them.

    Memory that no row needs is never touched.
    """
    data: dict[str, np.ndarray] = {}
    end = 0
    for episode in itertools.islice(episodes, num_episodes):
        start, end = end, end + len(episode["terminals"])
        for field, values in episode.items():
            if start == 0:
                data[field] = np.empty((num_episodes * length, *values.shape[1:]), values.dtype)
            data[field][start:end] = values
        bar.update(length)
    return {field: values[:end] for field, values in data.items()}
