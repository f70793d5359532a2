"""Training from the first step to the last: behaviour cloning, offline training, fine-tuning."""

import logging
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState, acts_by_behavior, make_agent
from qam_jax.data.dataset import DataSource
from qam_jax.data.demonstrations import Choice
from qam_jax.data.normalization import Normalization, fit_normalization
from qam_jax.data.replay import check_replay_fits
from qam_jax.data.shards import Shards
from qam_jax.data.sources import load_ogbench, load_own, no_data
from qam_jax.envs import is_ogbench, make_env_within
from qam_jax.memory import check_processes
from qam_jax.runs import processes
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.folder import find_folder
from qam_jax.runs.lock import lock_folder
from qam_jax.runs.saved import check_state_fits, newest_normalization
from qam_jax.runs.settings import RunSettings, check_settings, resolved
from qam_jax.runs.stopping import StopRequest, stop_signals
from qam_jax.training.devices import Layout
from qam_jax.training.evaluation import Episode, Evaluator, check_films
from qam_jax.training.loop import run_stage
from qam_jax.training.offline import OfflineStage
from qam_jax.training.online import OnlineStage
from qam_jax.training.run import Plan, Run
from qam_jax.types import TransitionDataset

_logger = logging.getLogger(__name__)


class RunResult(NamedTuple):
    """Result of a run."""

    seed: int
    folder: Path
    agent: Agent
    state: AgentState  # its last one
    episodes: list[Episode]  # of its last evaluation; none without an environment
    behavior_episodes: list[Episode]  # of its behaviour flow; none if it has none, or acts by it
    normalization: Normalization  # of what the agent takes and gives


def train(settings: RunSettings, agent_config: ConfigDict) -> RunResult:
    """Trains one agent, as `train_seeds`. Raises ValueError for settings of several seeds."""
    if settings.num_seeds != 1:
        raise ValueError(f"num_seeds is {settings.num_seeds}: train_seeds trains several.")
    (result,) = train_seeds(settings, agent_config)
    return result


def train_seeds(settings: RunSettings, agent_config: ConfigDict) -> list[RunResult]:
    """Trains an agent for each seed, or continues to; the run's folder is in docs/index.md.

    The runs share one program, data and processes for evaluation. Apart from that each is the run
    that it would be alone, in the folder that it would have alone, and can be continued alone.

    Several processes that train together (`qam_jax.runs.processes`) all make this call. The first
    one acts, evaluates and writes; checkpoints are written by all.

    Raises:
      ValueError: if settings, config, environment, data or run folder do not fit together, or
        training goes wrong.
      EnvFailure: if the environment does not run, or crashes too often.
      MemoryError: if data, networks or experience do not fit into the memory.
      OSError: if a run's folder cannot be written to, another process is at work in it, or one
        of the processes that train together has failed.
      Stopped: if a signal asked the runs to stop; the same call continues them.
    """
    check_settings(settings)
    _check_env_processes(settings)
    agent = make_agent(agent_config)
    values = resolved(settings, agent_config)
    fields = {f"config.{name}": value for name, value in values.pop("agent").items()}
    processes.check_same("settings", values | fields)
    each = [settings.of_seed(index) for index in range(settings.num_seeds)]
    Layout([own.seed for own in each], settings.num_devices, agent_config.batch_size)  # checks
    with ExitStack() as stack:
        env = None
        if settings.env_name:
            env = stack.enter_context(
                closing(
                    make_env_within(settings.env_timeout, settings.env_name, settings.env_module)
                )
            )
        folders = _claim_folders(each, agent_config, stack)
        source = stack.enter_context(closing(_open_source(settings, env)))
        # Several processes have to stop together.
        stop = stack.enter_context(stop_signals(at_once=not processes.several()))
        checkpoints = [
            stack.enter_context(closing(Checkpoints(folder, settings.keep_checkpoints)))
            for folder in folders
        ]
        dataset = source.at(max(step for saved in checkpoints for step in (0, *saved.steps)))
        _check_horizon(dataset, source.path, agent_config.horizon_length)
        dims = dataset.observations.shape[1], dataset.actions.shape[1]
        normalization = processes.from_first(lambda: _normalization(settings, folders, dataset))
        evaluator = None
        if settings.env_name:
            evaluator = _make_evaluator(settings, normalization, stop)
            stack.enter_context(closing(evaluator))
        plan = Plan(settings, agent, agent_config, source, dims, normalization, evaluator, stop)
        check_state_fits(agent, *dims, settings.num_seeds)
        runs = [
            stack.enter_context(closing(Run(plan, *parts)))
            for parts in zip(each, folders, checkpoints, strict=True)
        ]
        _begin(plan, runs)
        _train(plan, runs, stop)
        return [_evaluate_result(plan, run) for run in runs]


def _begin(plan: Plan, runs: list[Run]) -> None:
    """Begins or continues the runs, and records their start if nothing speaks against them."""
    for run in runs:
        run.begin()
    _check_needs_no_data(plan, runs)
    _check_environment(plan, runs[0])
    _check_replay(plan, runs)
    _describe_data(plan, runs)
    for run in runs:
        run.record_start()


def _train(plan: Plan, runs: list[Run], stop: StopRequest) -> None:
    """Takes the runs through their stages: first the runs that are behind, then all together."""
    order = list(plan.stages)

    def place(run: Run) -> tuple[int, int]:
        return order.index(run.stage), run.place

    total = plan.settings.total_steps
    while going := [run for run in runs if run.reported < total or run.owed]:
        hindmost = min(map(place, going))
        group = [run for run in going if place(run) == hindmost]
        name, seeds = group[0].stage, [run.settings.seed for run in group]
        end = plan.stages[name].stop
        until = min(
            (run.place for run in going if run.stage == name and run not in group), default=end
        )
        if len(group) < len(going):
            _logger.info("Seeds %s are behind, at step %d: the others wait.", seeds, group[0].step)
        layout = Layout(seeds, plan.settings.num_devices, plan.config.batch_size)
        stage = (OnlineStage if name == "online" else OfflineStage)(plan, group, layout)
        with closing(stage):
            run_stage(stage, stop, until)
        if until == end and plan.stage_at(end):
            for run in group:
                run.enter_stage()


def _check_replay(plan: Plan, runs: list[Run]) -> None:
    """Raises MemoryError if the experience of the online stage will not fit."""
    waiting = [run for run in runs if plan.settings.online_steps and run.stage != "online"]
    if waiting:
        shape = plan.replay_shape(waiting[0].state.action_shape[0])
        check_replay_fits(*shape, count=len(waiting))


def _evaluate_result(plan: Plan, run: Run) -> RunResult:
    behavior_episodes = []
    if plan.evaluator:
        run.episodes = run.episodes or run.evaluate(plan.agent, run.state)
        acts_by_it = acts_by_behavior(plan.config.agent_name)
        if "behavior" in run.state.params and not acts_by_it:
            behavior_episodes = run.evaluate(plan.cloning[0], run.state)
    return RunResult(
        run.settings.seed, run.folder, plan.agent, run.state, run.episodes, behavior_episodes,
        run.normalization,
    )  # fmt: skip


def _claim_folders(each: list[RunSettings], config: ConfigDict, stack: ExitStack) -> list[Path]:
    """Makes the folders of the runs; they belong to this program until the stack ends."""

    def claim() -> list[Path]:
        folders = [find_folder(own, config) for own in each]
        for folder in folders:
            stack.enter_context(lock_folder(folder))
        return folders

    folders = processes.from_first(claim)
    for folder in folders:
        if not (folder / "lock").exists():
            raise FileNotFoundError(
                f"process {jax.process_index()} does not see the folder {folder} that process "
                "0 made: all processes need one file system for --save_dir, and, unless that is an "
                "absolute path, the same working directory."
            )
    return folders


def _normalization(
    settings: RunSettings, folders: list[Path], dataset: TransitionDataset
) -> Normalization:
    """Returns the normalisation of the runs, of the run that they start from, or of the data."""
    if not settings.normalize_observations and not settings.normalize_actions:
        return Normalization.identity(dataset.observations.shape[1], dataset.actions.shape[1])
    for folder in [*folders, Path(settings.run)] if settings.run else folders:
        if found := newest_normalization(folder):
            return found
    return fit_normalization(dataset, settings.normalize_observations, settings.normalize_actions)


def _make_evaluator(
    settings: RunSettings, normalization: Normalization, stop: StopRequest
) -> Evaluator:
    return Evaluator(
        settings.env_name,
        env_module=settings.env_module,
        num_episodes=settings.eval_episodes,
        num_envs=settings.eval_envs,
        seed=settings.seed,
        max_crashes=settings.max_env_crashes,
        env_timeout=settings.env_timeout,
        on_wait=stop.check,
        normalization=normalization,
    )


def _check_environment(plan: Plan, run: Run) -> None:
    """Raises EnvFailure, or OSError, if the environment does not run or cannot be filmed."""
    settings, evaluator = plan.settings, plan.evaluator
    if evaluator is None:
        return
    chunk = np.zeros(run.state.action_shape, np.float32)  # the policy is compiled when it is due
    processes.from_first(lambda: evaluator.check(chunk))
    if settings.video_episodes:
        names = settings.env_name, settings.env_module
        processes.from_first(lambda: check_films(*names, settings.env_timeout))


def _check_env_processes(settings: RunSettings) -> None:
    """Raises ValueError if this machine cannot hold the processes of the environments."""
    if settings.env_name:
        check_processes(
            f"--eval_envs={settings.eval_envs}", min(settings.eval_envs, settings.eval_episodes)
        )
    if settings.online_steps:
        count, seeds = settings.num_envs, settings.num_seeds
        check_processes(f"--num_envs={count} for {seeds} seeds (--num_seeds)", count * seeds)


def _describe_data(plan: Plan, runs: list[Run]) -> None:
    step, size = max(run.step for run in runs), ""
    if plan.source.next_change(step) is None:
        size = f"; {plan.source.at(step).num_starts} transitions"
    _logger.info("Data: %s%s.", plan.source.description, size)


def _check_needs_no_data(plan: Plan, runs: list[Run]) -> None:
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


def _open_source(settings: RunSettings, env: gymnasium.Env | None) -> DataSource:
    """Opens the data of the settings, the same in all processes."""
    source = processes.take_turns(lambda: _read_source(settings, env))
    processes.check_same("data", {"the fingerprint": source.fingerprint()})
    return source


def _read_source(settings: RunSettings, env: gymnasium.Env | None) -> DataSource:
    """Opens shards, the user's own data, or OGBench's."""
    common: dict[str, Any] = {"sparse": settings.sparse, "proportion": settings.dataset_proportion}
    if settings.ogbench_dataset_dir:
        interval = settings.dataset_replace_interval
        return Shards(settings.ogbench_dataset_dir, env, replace_interval=interval, **common)
    if settings.dataset:
        keys = [key.strip() for key in settings.obs_keys.split(",") if key.strip()]
        any_actions = env is None and bool(settings.normalize_actions)  # an environment has a range
        choice = Choice(keys, settings.demos, settings.success, any_actions)
        return load_own(settings.dataset, env, choice=choice, **common)
    if env is not None and not is_ogbench(settings.env_name):
        return no_data(env)
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
