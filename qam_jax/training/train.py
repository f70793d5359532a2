"""Training from the first step to the last: behaviour cloning, offline training, fine-tuning."""

import logging
from contextlib import ExitStack, closing
from pathlib import Path
from typing import NamedTuple

import jax
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState, acts_by_behavior, make_agent
from qam_jax.data.normalization import Normalization
from qam_jax.envs import make_env_within
from qam_jax.runs import processes
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.folder import find_folder
from qam_jax.runs.lock import lock_folder
from qam_jax.runs.saved import check_state_fits
from qam_jax.runs.settings import RunSettings, check_settings, resolved
from qam_jax.runs.stopping import StopRequest, stop_signals
from qam_jax.training import inputs
from qam_jax.training.devices import Layout, mesh_shape
from qam_jax.training.evaluation import Episode, make_evaluator
from qam_jax.training.loop import run_stage
from qam_jax.training.online import OnlineStage
from qam_jax.training.run import Plan, Run
from qam_jax.training.stage import Stage

_logger = logging.getLogger(__name__)


class RunResult(NamedTuple):
    """Result of a run."""

    seed: int
    folder: Path
    agent: Agent
    state: AgentState  # at the end of the run
    episodes: list[Episode]  # of the last evaluation; none without an environment
    behavior_episodes: list[Episode]  # of the behaviour flow, unless it is missing or the policy
    normalization: Normalization  # of the agent's observations and actions


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
    inputs.check_env_processes(settings)
    agent = make_agent(agent_config)  # of agents/<agent_name>.py
    values = resolved(settings, agent_config)
    fields = {f"config.{name}": value for name, value in values.pop("agent").items()}
    processes.check_same("settings", values | fields)
    each = [settings.of_seed(index) for index in range(settings.num_seeds)]
    mesh_shape(settings.num_seeds, settings.num_devices, agent_config.batch_size)  # may refuse
    with ExitStack() as stack:
        env = None
        if settings.env_name:
            names = settings.env_name, settings.env_module
            env = stack.enter_context(closing(make_env_within(settings.env_timeout, *names)))
        folders = _claim_folders(each, agent_config, stack)
        source = processes.take_turns(lambda: inputs.read_source(settings, env))
        stack.enter_context(closing(source))
        processes.check_same("data", {"the fingerprint": source.fingerprint()})
        # Several processes have to stop together.
        stop = stack.enter_context(stop_signals(at_once=not processes.several()))
        checkpoints = [
            stack.enter_context(closing(Checkpoints(folder, settings.keep_checkpoints)))
            for folder in folders
        ]
        dataset = source.at(max(step for saved in checkpoints for step in (0, *saved.steps)))
        inputs.check_horizon(dataset, source.path, agent_config.horizon_length)
        dims = dataset.observations.shape[1], dataset.actions.shape[1]
        normalization = processes.from_first(
            lambda: inputs.find_normalization(settings, folders, dataset)
        )
        evaluator = None
        if settings.env_name:
            evaluator = make_evaluator(settings, normalization, stop.check)
            stack.enter_context(closing(evaluator))
        plan = Plan(settings, agent, agent_config, source, dims, normalization, evaluator)
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
    inputs.check_needs_no_data(plan, runs)
    inputs.check_environment(plan, runs[0])
    inputs.check_replay(plan, runs)
    step, size = max(run.step for run in runs), ""
    if plan.source.next_change(step) is None:
        size = f"; {plan.source.at(step).num_starts} transitions"
    _logger.info("Data: %s%s.", plan.source.description, size)
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
        stage = (OnlineStage if name == "online" else Stage)(plan, group, layout)
        with closing(stage):
            run_stage(stage, stop, until)
        if until == end and plan.stage_at(end):
            for run in group:
                run.enter_stage()


def _evaluate_result(plan: Plan, run: Run) -> RunResult:
    behavior_episodes = []
    if plan.evaluator:
        run.episodes = run.episodes or run.evaluate(plan.agent, run.state)
        acts_by_it = acts_by_behavior(plan.config.agent_name)
        if "behavior" in run.state.params and not acts_by_it:
            behavior_episodes = run.evaluate(plan.cloning[0], run.state)
    return RunResult(
        run.settings.seed, run.folder, plan.agent, run.state, run.episodes, behavior_episodes,
        plan.normalization,
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
