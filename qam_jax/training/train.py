"""Training from the first step to the last: behaviour cloning, offline training, fine-tuning."""

import contextlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState, acts_by_behavior, make_agent
from qam_jax.data.dataset import DataSource
from qam_jax.data.shards import Shards
from qam_jax.data.sources import load_ogbench, load_own
from qam_jax.envs import make_env
from qam_jax.runs import hosts
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.folder import find_folder
from qam_jax.runs.lock import lock_folder
from qam_jax.runs.settings import RunSettings, check_settings, resolved
from qam_jax.runs.stopping import StopRequest, stop_signals
from qam_jax.training.devices import Layout
from qam_jax.training.evaluation import Episode, Evaluator
from qam_jax.training.loop import Stage, run_stage
from qam_jax.training.offline import OfflineStage
from qam_jax.training.online import OnlineStage
from qam_jax.training.run import Plan, Run
from qam_jax.types import TransitionDataset

_logger = logging.getLogger(__name__)


class RunResult(NamedTuple):
    """Result of a run.

    Attributes:
      seed: seed of the run.
      folder: the run's folder.
      agent: the algorithm.
      state: its last state.
      episodes: episodes of its last evaluation; none without an environment.
      behavior_episodes: episodes of its behaviour flow; none if it has none, or acts by it.
    """

    seed: int
    folder: Path
    agent: Agent
    state: AgentState
    episodes: list[Episode]
    behavior_episodes: list[Episode]


def train(settings: RunSettings, agent_config: ConfigDict) -> RunResult:
    """Trains one agent; see `train_seeds`.

    Raises:
      ValueError: also if the settings are of several seeds.
    """
    if settings.num_seeds != 1:
        raise ValueError(f"num_seeds is {settings.num_seeds}: train_seeds trains several.")
    (result,) = train_seeds(settings, agent_config)
    return result


def train_seeds(settings: RunSettings, agent_config: ConfigDict) -> list[RunResult]:
    """Trains an agent for each seed, or continues to; the run's folder is in docs/index.md.

    The runs share one program, data and processes for evaluation. Apart from that each is the run
    that it would be alone, in the folder that it would have alone, and can be continued alone.

    Several processes that train together (`qam_jax.runs.hosts`) all make this call. The first one
    acts, evaluates and writes; checkpoints are written by all.

    Args:
      settings: settings of the runs.
      agent_config: the algorithm and its hyperparameters.

    Returns:
      The results, by seed.

    Raises:
      ValueError: if settings, config, environment, data or run folder do not fit together, or
        training goes wrong.
      OSError: if a run's folder cannot be written to, another process is at work in it, or one
        of the processes that train together has failed.
      Stopped: if a signal asked the runs to stop; the same call continues them.
    """
    check_settings(settings)
    agent = make_agent(agent_config)
    if hosts.several():
        values = resolved(settings, agent_config)
        fields = {f"config.{name}": value for name, value in values.pop("agent").items()}
        hosts.check_same("settings", values | fields)
    each = [settings.of_seed(index) for index in range(settings.num_seeds)]
    layout = _make_layout(settings, agent_config, [own.seed for own in each])
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
        dims = dataset.observations.shape[1], dataset.actions.shape[1]
        evaluator = _make_evaluator(settings, stop) if settings.env_name else None
        if evaluator:
            stack.callback(evaluator.close)
        plan = Plan(settings, agent, agent_config, source, dims, evaluator)
        runs = [
            stack.enter_context(contextlib.closing(Run(plan, *parts)))
            for parts in zip(each, folders, checkpoints, strict=True)
        ]
        for run in runs:
            run.begin()
        _describe_data(plan, runs)
        for run in runs:
            run.record_start()
        _catch_up(plan, runs, stop)
        _train_together(plan, runs, layout, stop)
        return [_evaluate_result(plan, run) for run in runs]


def _train_together(plan: Plan, runs: list[Run], layout: Layout, stop: StopRequest) -> None:
    """Takes runs that are equally far through the stages that are left."""
    for name, end in plan.ends.items():
        if runs[0].stage != name:
            continue
        with contextlib.closing(_make_stage(plan, name, runs, layout)) as stage:
            run_stage(stage, runs, stop)
        if plan.stage_at(end):
            for run in runs:
                run.enter_next_stage()


def _catch_up(plan: Plan, runs: list[Run], stop: StopRequest) -> None:
    """Continues each run that is behind alone, until it is as far as the run that is ahead."""
    ahead = max(runs, key=lambda run: run.progress)
    for run in runs:
        if run.progress < ahead.progress:
            _logger.info(
                "Seed %d is at step %d, seed %d at step %d: seed %d is continued alone first.",
                run.settings.seed, run.step, ahead.settings.seed, ahead.step, run.settings.seed,
            )  # fmt: skip
        while run.progress < ahead.progress:
            layout = _make_layout(plan.settings, plan.config, [run.settings.seed])
            with contextlib.closing(_make_stage(plan, run.stage, [run], layout)) as stage:
                run_stage(stage, [run], stop, ahead)
            if run.progress < ahead.progress:
                run.enter_next_stage()


def _make_stage(plan: Plan, name: str, runs: list[Run], layout: Layout) -> Stage:
    agent, config = plan.algorithm(name)
    if name == "online":
        pairs = [(run.keys.batches, run.keys.experience) for run in runs]
        acting = [run.acting for run in runs if run.acting is not None]  # each has it in this stage
        return OnlineStage(plan.settings, agent, config, pairs, plan.source, layout, acting)
    keys = [run.keys.batches for run in runs]
    if name == "cloning":
        keys = [jax.random.fold_in(run.keys.cloning, 0) for run in runs]
    return OfflineStage(
        name, agent, config, keys, plan.source, layout, plan.starts[name], plan.ends[name]
    )


def _evaluate_result(plan: Plan, run: Run) -> RunResult:
    behavior_episodes = []
    if plan.evaluator:
        run.episodes = run.episodes or run.evaluate(plan.agent, run.state)
        acts_by_it = acts_by_behavior(plan.config.agent_name)
        if "behavior" in run.state.params and not acts_by_it:
            behavior_episodes = run.evaluate(plan.cloning[0], run.state)
    return RunResult(
        run.settings.seed, run.folder, plan.agent, run.state, run.episodes, behavior_episodes
    )


def _make_layout(settings: RunSettings, config: ConfigDict, seeds: list[int]) -> Layout:
    return Layout(seeds, settings.num_devices, config.batch_size)


def _claim_folders(
    each: list[RunSettings], config: ConfigDict, stack: contextlib.ExitStack
) -> list[Path]:
    """Makes the folders of the runs; they belong to this program until the stack ends."""

    def claim() -> list[Path]:
        folders = [find_folder(own, config) for own in each]
        for folder in folders:
            stack.enter_context(lock_folder(folder))
        return folders

    folders = hosts.from_first(claim)
    for folder in folders:
        if not (folder / "lock").exists():
            raise FileNotFoundError(
                f"process {jax.process_index()} does not see the folder {folder} that process "
                "0 made: all processes need one file system for --save_dir, and, unless that is an "
                "absolute path, the same working directory."
            )
    return folders


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


def _describe_data(plan: Plan, runs: list[Run]) -> None:
    step, size = max(run.step for run in runs), ""
    if plan.source.next_change(step) is None:
        size = f"; {plan.source.at(step).num_starts} transitions"
    _logger.info("Data: %s%s.", plan.source.description, size)


def _open_source(settings: RunSettings, env: gymnasium.Env | None) -> DataSource:
    """Opens the data of the settings, the same in all processes."""
    source = hosts.take_turns(lambda: _read_source(settings, env))
    hosts.check_same("data", {"the fingerprint": source.fingerprint()})
    return source


def _read_source(settings: RunSettings, env: gymnasium.Env | None) -> DataSource:
    """Opens shards, the user's own data, or OGBench's."""
    common: dict[str, Any] = {"sparse": settings.sparse, "proportion": settings.dataset_proportion}
    if settings.ogbench_dataset_dir:
        interval = settings.dataset_replace_interval
        return Shards(settings.ogbench_dataset_dir, env, replace_interval=interval, **common)
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
