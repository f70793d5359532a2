"""Data and environments of a run, and the checks that they fit."""

from pathlib import Path
from typing import Any

import gymnasium
import jax.numpy as jnp
import numpy as np

from qam_jax.data.dataset import DataSource
from qam_jax.data.demonstrations import Choice
from qam_jax.data.normalization import Normalization, fit_normalization
from qam_jax.data.replay import check_replay_fits
from qam_jax.data.shards import Shards
from qam_jax.data.sources import load_ogbench, load_own, no_data
from qam_jax.envs import is_ogbench
from qam_jax.memory import check_processes
from qam_jax.runs import processes
from qam_jax.runs.saved import newest_normalization
from qam_jax.runs.settings import RunSettings
from qam_jax.training.run import Plan, Run
from qam_jax.types import TransitionDataset


def read_source(
    settings: RunSettings, env: gymnasium.Env | None, *, any_actions: bool = False
) -> DataSource:
    """Opens shards, the user's own data, or OGBench's.

    With `any_actions`, the user's actions need not lie in [-1, 1], unless there is an environment.
    """
    common: dict[str, Any] = {"sparse": settings.sparse, "proportion": settings.dataset_proportion}
    if settings.ogbench_dataset_dir:
        interval = settings.dataset_replace_interval
        return Shards(settings.ogbench_dataset_dir, env, replace_interval=interval, **common)
    if settings.dataset:
        keys = [key.strip() for key in settings.obs_keys.split(",") if key.strip()]
        any_actions = env is None and (any_actions or bool(settings.normalize_actions))
        choice = Choice(keys, settings.demos, settings.success, any_actions)
        return load_own(settings.dataset, env, choice=choice, **common)
    if env is not None and not is_ogbench(settings.env_name):
        return no_data(env)
    common |= {"dataset_dir": settings.dataset_dir, "data_source": settings.data_source}
    mirrors = [mirror for mirror in settings.mirrors.split(",") if mirror]
    return load_ogbench(settings.env_name, env, mirrors=mirrors, **common)


def find_normalization(
    settings: RunSettings, folders: list[Path], dataset: TransitionDataset
) -> Normalization:
    """Returns the normalisation of the runs, of the run that they start from, or of the data."""
    if not settings.normalize_observations and not settings.normalize_actions:
        return Normalization.identity(dataset.observations.shape[1], dataset.actions.shape[1])
    for folder in [*folders, Path(settings.run)] if settings.run else folders:
        if found := newest_normalization(folder):
            return found
    return fit_normalization(dataset, settings.normalize_observations, settings.normalize_actions)


def check_environment(plan: Plan, run: Run) -> None:
    """Raises EnvFailure, or OSError, if the environment does not run or cannot be filmed."""
    evaluator, films = plan.evaluator, bool(plan.settings.video_episodes)
    if evaluator is not None:
        chunk = np.zeros(run.state.action_shape, np.float32)  # the policy is compiled when due
        processes.from_first(lambda: evaluator.check(chunk, films=films))


def check_env_processes(settings: RunSettings) -> None:
    """Raises ValueError if this machine cannot hold the processes of the environments."""
    if settings.env_name:
        count = settings.eval_envs
        check_processes(f"--eval_envs={count}", min(count, settings.eval_episodes))
    if settings.online_steps:
        count, seeds = settings.num_envs, settings.num_seeds
        check_processes(f"--num_envs={count} for {seeds} seeds (--num_seeds)", count * seeds)


def check_needs_no_data(plan: Plan, runs: list[Run]) -> None:
    """Raises ValueError if there are no data, but stages or batches that need them."""
    settings = plan.settings
    needs = [f"its {run.stage} stage" for run in runs if run.stage != "online"]
    needs += ["--balanced_sampling or --offline_ratio"] if settings.offline_share else []
    if needs and not plan.source.at(0).num_starts:
        raise ValueError(
            f"there are no data of {settings.env_name}, which {needs[0]} needs: only OGBench's "
            "environments have data of their own. Name yours by --dataset; experiments/"
            f"record_dataset.py --env_name={settings.env_name} records some. Or train on "
            "experience alone: --offline_steps=0 --online_steps=<steps>, without --bc_steps, "
            "--balanced_sampling and --offline_ratio."
        )


def check_replay(plan: Plan, runs: list[Run]) -> None:
    """Raises MemoryError if the experience of the online stage will not fit."""
    waiting = [run for run in runs if plan.settings.online_steps and run.stage != "online"]
    if waiting:
        shape = plan.replay_shape(waiting[0].state.action_shape[0])
        check_replay_fits(*shape, count=len(waiting))


def check_horizon(dataset: TransitionDataset, path: Path, horizon_length: int) -> None:
    """Raises ValueError if no window lies within one episode, so that nothing could be learnt."""
    if not dataset.num_starts:
        return
    starts = dataset.start_rows
    longest = int(jnp.max(dataset.last_rows[starts] - starts)) + 1
    if longest < horizon_length:
        raise ValueError(
            f"horizon_length = {horizon_length} is longer than every episode of {path} (the "
            f"longest has {longest} transitions): choose a shorter one, "
            f"--config.horizon_length={longest} at most."
        )
