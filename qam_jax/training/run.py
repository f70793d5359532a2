"""A run from its first step to its last: behaviour cloning, offline training, fine-tuning."""

import contextlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState, make_agent, parameter_count
from qam_jax.agents.base import check_has_behavior, with_behavior
from qam_jax.agents.bc import behavior_config
from qam_jax.data.shards import open_shards
from qam_jax.data.sources import DataSource, load_ogbench, load_own
from qam_jax.envs import make_env
from qam_jax.training.checkpoints import Checkpoints, init_state
from qam_jax.training.evaluation import Episode, Evaluator
from qam_jax.training.keys import split_seed
from qam_jax.training.loop import Progress, Recorder, Stage, run_stage
from qam_jax.training.metrics import MetricLog
from qam_jax.training.offline import OfflineStage
from qam_jax.training.online import OnlineStage
from qam_jax.training.run_folder import find_folder, lock_folder, record_start
from qam_jax.training.settings import RunSettings, check_settings, resolved
from qam_jax.training.stopping import StopRequest, stop_signals
from qam_jax.training.updates import Tally
from qam_jax.training.warm_start import start_from
from qam_jax.types import TransitionDataset

_logger = logging.getLogger(__name__)


class RunResult(NamedTuple):
    """What a run leaves behind.

    Attributes:
      folder: the run's folder.
      agent: the algorithm.
      state: its last state.
      episodes: of its last evaluation; none without an environment.
      behavior_episodes: of its behaviour flow; none if it has no such flow of its own.
    """

    folder: Path
    agent: Agent
    state: AgentState
    episodes: list[Episode]
    behavior_episodes: list[Episode]


def train(settings: RunSettings, agent_config: ConfigDict) -> RunResult:
    """Trains an agent, or continues to; see the run's folder in the README.

    Args:
      settings: what the run is.
      agent_config: the algorithm and its hyperparameters.

    Raises:
      ValueError: if settings, config, environment, data or run folder do not fit together, or
        training goes wrong.
      OSError: if the run's folder cannot be written to, or another process is at work in it.
      Stopped: if a signal asked the run to stop; the same call continues it.
    """
    check_settings(settings)
    agent = make_agent(agent_config)
    env = make_env(settings.env_name, settings.env_module) if settings.env_name else None
    folder = find_folder(settings, agent_config)
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock_folder(folder))
        source = stack.enter_context(contextlib.closing(_open_source(settings, env)))
        stop = stack.enter_context(stop_signals())
        run = _Run(settings, agent, agent_config, source, folder, stop)
        stack.callback(run.close)
        return run.train()


class _Run:
    """A run's parts, and the order of its stages."""

    def __init__(
        self,
        settings: RunSettings,
        agent: Agent,
        config: ConfigDict,
        source: DataSource,
        folder: Path,
        stop: StopRequest,
    ):
        self._settings, self._agent, self._config = settings, agent, config
        self._source, self._folder = source, folder
        self._checkpoints = Checkpoints(folder, settings.keep_checkpoints)
        dataset = source.at(max(self._checkpoints.steps, default=0))
        _check_horizon(dataset, source.path, config.horizon_length)
        self._dims = {
            "observation_dim": dataset.observations.shape[1],
            "action_dim": dataset.actions.shape[1],
        }
        self._stop = stop
        self._keys = split_seed(settings.seed)
        self._stage: Stage | None = None  # the one at work
        self._log: MetricLog | None = None
        self._evaluator = None
        if settings.env_name:
            self._evaluator = Evaluator(
                settings.env_name,
                env_module=settings.env_module,
                num_episodes=settings.eval_episodes,
                num_envs=settings.eval_envs,
                seed=settings.seed,
                max_crashes=settings.max_env_crashes,
                on_step=stop.check,
            )

    def close(self) -> None:
        """Ends what runs in the background, and waits for the last checkpoint."""
        for part in (self._stage, self._evaluator, self._log, self._checkpoints):
            if part is not None:
                part.close()

    def train(self) -> RunResult:
        """Runs all stages that are left, and evaluates in the end."""
        state, tally, progress = self._start()
        self._record_start(state, progress)
        evaluate = self._evaluator.evaluate if self._evaluator else None
        recorder = Recorder(self._settings, self._checkpoints, self._log, evaluate, self._stop)
        while True:
            state = run_stage(self._stage, state, tally, progress, recorder)
            name = self._stage_after(self._stage.name)
            if name is None:
                break
            state = self._enter(name, state, progress.step)
            tally = self._stage.empty_tally(state)
        episodes, behavior_episodes = progress.episodes, []
        if evaluate:
            episodes = episodes or evaluate(self._agent, state)
            if self._config.agent_name != "bc" and "behavior" in state.params:
                behavior = make_agent(behavior_config(self._config))
                behavior_episodes = evaluate(behavior, state)
        return RunResult(self._folder, self._agent, state, episodes, behavior_episodes)

    def _start(self) -> tuple[AgentState, Tally, Progress]:
        """The state that the run begins with or continues from; sets its stage."""
        found = self._checkpoints.restore_newest(self._restore)
        if found is not None:
            state, tally, saved = found
            return state, tally, Progress(saved["step"], saved["reported"])
        state, progress = self._init_state(self._agent), Progress()
        settings = self._settings
        if settings.run:
            state, step = start_from(
                settings.run, settings.run_step, self._config, state, self._folder
            )
            progress = Progress(step, step)
        if settings.bc_steps > progress.step:
            check_has_behavior(self._config, state)
            state = self._init_state(self._make_stage("cloning", 0).agent)
        ends = self._ends()
        if progress.step > ends["offline"] or progress.step == settings.total_steps:
            raise ValueError(
                f"the checkpoint of {settings.run} has {progress.step} steps, but --bc_steps and "
                f"--offline_steps end after {ends['offline']} and --online_steps="
                f"{settings.online_steps}: raise --offline_steps to {progress.step}, or more to "
                "train on, and --online_steps above 0 to fine-tune."
            )
        name = next(name for name in ends if progress.step < ends[name])
        state = self._enter(name, state, progress.step)
        return state, self._stage.empty_tally(state), progress

    def _restore(self, step: int) -> tuple[AgentState, Tally, dict[str, Any]]:
        """Reads one checkpoint; sets the stage."""
        saved = self._checkpoints.read_progress(step)
        self._check_continuation(saved)
        stage = self._make_stage(saved["stage"], step)
        try:
            state = self._init_state(stage.agent)
            state, tally = self._checkpoints.restore(step, state, stage.empty_tally(state))
            stage.restore(saved)
        except BaseException:
            stage.close()
            raise
        self._stage = stage
        return state, tally, saved

    def _check_continuation(self, saved: dict[str, Any]) -> None:
        limit = self._settings.total_steps
        if saved["reported"] > limit:
            raise ValueError(
                f"{self._folder} holds {saved['reported']} steps already, more than the {limit} of "
                "--bc_steps, --offline_steps and --online_steps together: give at least as many, "
                "or another --run_id."
            )
        ends = self._ends()
        starts = {"cloning": 0, "offline": ends["cloning"], "online": ends["offline"]}
        start = starts[saved["stage"]]
        if saved["stage_start"] != start:
            raise ValueError(
                f"the run in {self._folder} began its {saved['stage']} stage after "
                f"{saved['stage_start']} steps, but --bc_steps and --offline_steps now put it "
                f"after {start}: give the earlier numbers, or another --run_id."
            )

    def _record_start(self, state: AgentState, progress: Progress) -> None:
        settings, source = self._settings, self._source
        if self._stage.name == "cloning":
            state = self._init_state(self._agent)  # what the run is about
        count = parameter_count(state)
        record_start(
            self._folder,
            settings,
            self._config,
            dataset_source=source.description,
            dataset_fingerprint=source.fingerprint(),
            seed=settings.seed,
            parameter_count=count,
            **self._dims,
        )
        size = ""
        if source.next_change(progress.step) is None:
            size = f"; {source.at(progress.step).num_starts} transitions"
        _logger.info("Data: %s%s.", source.description, size)
        verb = f"Continuing from step {progress.step}" if progress.step else "Starting"
        _logger.info("%s in %s (%d parameters).", verb, self._folder, count)
        kept = {"train": progress.reported, "eval": progress.reported, "env": progress.step}
        self._log = MetricLog(
            self._folder, kept, settings.wandb_project, resolved(settings, self._config)
        )

    def _ends(self) -> dict[str, int]:
        """At which step each stage ends, in their order."""
        settings = self._settings
        border = settings.bc_steps + settings.offline_steps
        return {"cloning": settings.bc_steps, "offline": border, "online": settings.total_steps}

    def _stage_after(self, name: str) -> str | None:
        ends = self._ends()
        return next((later for later in ends if ends[later] > ends[name]), None)

    def _make_stage(self, name: str, step: int) -> Stage:
        """The stage of this name, entered at a step of the run."""
        settings, config, ends = self._settings, self._config, self._ends()
        if name == "cloning":
            config = behavior_config(config)
            key = jax.random.fold_in(self._keys.cloning, 0)
            agent = make_agent(config)
            return OfflineStage(name, agent, config, key, self._source, 0, ends[name], step)
        if name == "offline":
            start, key = ends["cloning"], self._keys.batches
            return OfflineStage(
                name, self._agent, config, key, self._source, start, ends[name], step
            )
        return OnlineStage(
            settings, self._agent, config, self._source, self._folder, step, self._log_episode
        )

    def _enter(self, name: str, state: AgentState, step: int) -> AgentState:
        """Begins a stage with the state at the end of the one before it, if there was one."""
        before, self._stage = self._stage, self._make_stage(name, step)
        if before is None:
            return state
        before.close()
        if before.name == "cloning":
            fresh = self._init_state(self._agent)
            return with_behavior(self._config, fresh, state.params["behavior"])
        return state

    def _init_state(self, agent: Agent) -> AgentState:
        key = self._keys.agent
        if agent is not self._agent:
            key = jax.random.fold_in(self._keys.cloning, 1)
        return init_state(agent, key, **self._dims)

    def _log_episode(self, step: int, episode: Episode) -> None:
        self._log.write(
            "env",
            step,
            {
                "return": episode.episode_return,
                "length": episode.length,
                "success": episode.success,
            },
        )


def _open_source(settings: RunSettings, env: gymnasium.Env | None) -> DataSource:
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
