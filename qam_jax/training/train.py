"""Runs from their first step to their last: behaviour cloning, offline training, fine-tuning."""

import contextlib
import dataclasses
import logging
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState, make_agent
from qam_jax.data.dataset import DataSource
from qam_jax.data.shards import open_shards
from qam_jax.data.sources import load_ogbench, load_own
from qam_jax.envs import make_env
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.folder import find_folder
from qam_jax.runs.lock import lock_folder
from qam_jax.runs.settings import RunSettings, check_settings, resolved
from qam_jax.runs.stopping import StopRequest, stop_signals
from qam_jax.training import exchange, hosts
from qam_jax.training.devices import Lanes
from qam_jax.training.evaluation import Episode, Evaluator
from qam_jax.training.loop import Stage, run_stage
from qam_jax.training.offline import OfflineStage
from qam_jax.training.online import OnlineStage
from qam_jax.training.run import Member, Plan
from qam_jax.types import TransitionDataset

_logger = logging.getLogger(__name__)

_ACT_BY_IT = ("bc", "fawac", "fbrac")  # whose flow `behavior` is the policy itself


class RunResult(NamedTuple):
    """What a run leaves behind.

    Attributes:
      seed: of the run.
      folder: the run's folder.
      agent: the algorithm.
      state: its last state.
      episodes: of its last evaluation; none without an environment.
      behavior_episodes: of its behaviour flow; none if it has none, or acts by it alone.
    """

    seed: int
    folder: Path
    agent: Agent
    state: AgentState
    episodes: list[Episode]
    behavior_episodes: list[Episode]


def train(settings: RunSettings, agent_config: ConfigDict) -> RunResult:
    """Trains one agent: `train_seeds` of a single seed, see there.

    Raises:
      ValueError: also if the settings are of several seeds.
    """
    if settings.num_seeds != 1:
        raise ValueError(f"num_seeds is {settings.num_seeds}: train_seeds trains several.")
    (result,) = train_seeds(settings, agent_config)
    return result


def train_seeds(settings: RunSettings, agent_config: ConfigDict) -> list[RunResult]:
    """Trains agents, or continues to, one for each seed; see the run's folder in docs/index.md.

    The runs share one program, data and processes for evaluation. Apart from that each is the run
    that it would be alone, in the folder that it would have alone, and can be continued alone.

    Where several processes train together, see `qam_jax.training.hosts`, all make this call; the
    first one acts, evaluates and writes, but for the checkpoints, which all write.

    Args:
      settings: what the runs are.
      agent_config: the algorithm and its hyperparameters.

    Returns:
      The results, by seed.

    Raises:
      ValueError: if settings, config, environment, data or run folder do not fit together, or
        training goes wrong.
      OSError: if a run's folder cannot be written to, another process is at work in it, or one
        of those that train together has failed.
      Stopped: if a signal asked the runs to stop; the same call continues them.
    """
    check_settings(settings)
    agent = make_agent(agent_config)
    if exchange.several():
        hosts.check_same("settings", _flat(settings, agent_config))
    each = [_settings_of(settings, index) for index in range(settings.num_seeds)]
    _make_lanes(settings, agent_config, [own.seed for own in each])  # may raise
    env = make_env(settings.env_name, settings.env_module) if settings.env_name else None
    with contextlib.ExitStack() as stack:
        folders = _claim_folders(each, agent_config, stack)
        source = stack.enter_context(contextlib.closing(_open_source(settings, env)))
        stop = stack.enter_context(stop_signals())
        checkpoints = [
            stack.enter_context(contextlib.closing(Checkpoints(folder, settings.keep_checkpoints)))
            for folder in folders
        ]
        dataset = source.at(max(step for saved in checkpoints for step in (0, *saved.steps)))
        _check_horizon(dataset, source.path, agent_config.horizon_length)
        plan = Plan(
            settings,
            agent,
            agent_config,
            source,
            dims=(dataset.observations.shape[1], dataset.actions.shape[1]),
            evaluator=_make_evaluator(settings, stop) if settings.env_name else None,
        )
        if plan.evaluator:
            stack.callback(plan.evaluator.close)
        runs = [
            stack.enter_context(contextlib.closing(Member(plan, *parts)))
            for parts in zip(each, folders, checkpoints, strict=True)
        ]
        with hosts.guard(folders):
            for run in runs:
                run.begin()
            _describe_data(plan, runs)
            for run in runs:
                run.record_start()
            return _train(plan, runs, stop)


def _flat(settings: RunSettings, config: ConfigDict) -> dict[str, Any]:
    """All that a command line says, by the names of its flags."""
    values = resolved(settings, config)
    fields = values.pop("agent")
    return {**values, **{f"config.{name}": value for name, value in fields.items()}}


def _claim_folders(
    each: list[RunSettings], config: ConfigDict, stack: contextlib.ExitStack
) -> list[Path]:
    """The folders of the runs, which belong to this program until the stack ends."""

    def claim() -> list[str]:
        folders = [find_folder(own, config) for own in each]
        for folder in folders:
            stack.enter_context(lock_folder(folder))
        return [str(folder) for folder in folders]

    folders = [Path(folder) for folder in exchange.from_first("folders", claim)]
    for folder in folders:
        if not (folder / "lock").exists():
            raise FileNotFoundError(
                f"process {exchange.process_index()} does not see the folder {folder} that process "
                "0 made: all processes need one file system for --save_dir, and, unless that is an "
                "absolute path, the same working directory."
            )
    return folders


def _settings_of(settings: RunSettings, index: int) -> RunSettings:
    """Those of one of the runs."""
    seed, run_id = settings.seed + index, settings.run_id
    if run_id and settings.num_seeds > 1:
        run_id = f"{run_id}-seed{seed}"
    return dataclasses.replace(settings, seed=seed, run_id=run_id, num_seeds=1)


def _make_lanes(settings: RunSettings, config: ConfigDict, seeds: list[int]) -> Lanes:
    return Lanes(seeds, settings.num_devices, config.batch_size)


def _make_evaluator(settings: RunSettings, stop: StopRequest) -> Evaluator:
    return Evaluator(
        settings.env_name,
        env_module=settings.env_module,
        num_episodes=settings.eval_episodes,
        num_envs=settings.eval_envs,
        seed=settings.seed,
        max_crashes=settings.max_env_crashes,
        on_step=stop.check,
    )


def _describe_data(plan: Plan, runs: list[Member]) -> None:
    step, size = max(run.step for run in runs), ""
    if plan.source.next_change(step) is None:
        size = f"; {plan.source.at(step).num_starts} transitions"
    _logger.info("Data: %s%s.", plan.source.description, size)


def _train(plan: Plan, runs: list[Member], stop: StopRequest) -> list[RunResult]:
    """Runs all stages that are left, and evaluates in the end."""
    for name, end in plan.ends.items():
        going = [run for run in runs if run.stage == name]
        if not going:
            continue
        with contextlib.closing(_make_stage(plan, name, going)) as stage:
            run_stage(stage, going, stop)
        if plan.stage_at(end):
            for run in going:
                run.enter_next_stage()
    return [_result(plan, run) for run in runs]


def _make_stage(plan: Plan, name: str, runs: list[Member]) -> Stage:
    settings = plan.settings
    agent, config = plan.algorithm(name)
    lanes = _make_lanes(settings, config, [run.settings.seed for run in runs])
    if name == "online":
        keys = [(run.keys.batches, run.keys.experience) for run in runs]
        acting = [run.acting for run in runs]
        return OnlineStage(settings, agent, config, keys, plan.source, lanes, acting)
    keys = [run.keys.batches for run in runs]
    if name == "cloning":
        keys = [jax.random.fold_in(run.keys.cloning, 0) for run in runs]
    return OfflineStage(
        name, agent, config, keys, plan.source, lanes, plan.starts[name], plan.ends[name]
    )


def _result(plan: Plan, run: Member) -> RunResult:
    behavior_episodes = []
    if plan.evaluator:
        run.episodes = run.episodes or run.evaluate(plan.agent, run.state)
        if plan.config.agent_name not in _ACT_BY_IT and "behavior" in run.state.params:
            behavior_episodes = run.evaluate(plan.cloning[0], run.state)
    return RunResult(
        run.settings.seed, run.folder, plan.agent, run.state, run.episodes, behavior_episodes
    )


def _open_source(settings: RunSettings, env: gymnasium.Env | None) -> DataSource:
    """The data that the settings name, the same in all processes."""
    if not exchange.several():
        return _read_source(settings, env)
    source = hosts.take_turns(lambda: _read_source(settings, env))
    hosts.check_same("data", {"the fingerprint": source.fingerprint()})
    return source


def _read_source(settings: RunSettings, env: gymnasium.Env | None) -> DataSource:
    """The data that the settings name: shards, data of one's own, or OGBench's."""
    common = {"sparse": settings.sparse, "proportion": settings.dataset_proportion}
    if settings.ogbench_dataset_dir:
        interval = settings.dataset_replace_interval
        return open_shards(settings.ogbench_dataset_dir, env, replace_interval=interval, **common)
    if settings.dataset:
        return load_own(settings.dataset, env, **common)
    return load_ogbench(
        settings.env_name,
        env,
        dataset_dir=settings.dataset_dir,
        data_source=settings.data_source,
        mirrors=[mirror for mirror in settings.mirrors.split(",") if mirror],
        **common,
    )


def _check_horizon(dataset: TransitionDataset, path: Path, horizon_length: int) -> None:
    """Raises ValueError if no window lies within one episode, so that nothing could be learnt."""
    starts = dataset.start_rows
    longest = int(jnp.max(dataset.last_rows[starts] - starts)) + 1
    if longest < horizon_length:
        raise ValueError(
            f"horizon_length = {horizon_length} is longer than every episode of {path} (the "
            f"longest has {longest} transitions): choose a shorter one, "
            f"--config.horizon_length={longest} at most."
        )
