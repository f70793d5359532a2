"""One run: how it begins or continues, and what is recorded of it."""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import jax
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState, make_agent, parameter_count
from qam_jax.agents.base import check_has_behavior, with_behavior
from qam_jax.agents.bc import behavior_config
from qam_jax.data.dataset import DataSource
from qam_jax.runs import hosts
from qam_jax.runs.checkpoints import (
    Checkpoints,
    SavedRun,
    check_networks,
    init_state,
    load_run,
)
from qam_jax.runs.folder import record_start
from qam_jax.runs.metrics import MetricLog, read_csv, write_csv
from qam_jax.runs.settings import RunSettings, resolved
from qam_jax.training.evaluation import Episode, Evaluator, split_seed
from qam_jax.training.online import Acting
from qam_jax.training.update import MetricSums, empty_sums, metric_names

_logger = logging.getLogger(__name__)

_ACTION_FIELDS = ("horizon_length", "action_chunking")  # they shape the policy's actions


@dataclasses.dataclass(frozen=True)
class Plan:
    """Everything that the runs of a program share: all but their seeds.

    Attributes:
      settings: settings of the runs, with the first seed.
      agent: the algorithm.
      config: its config.
      source: source of the data.
      dims: `(O, A)`.
      evaluator: None without an environment.
    """

    settings: RunSettings
    agent: Agent
    config: ConfigDict
    source: DataSource
    dims: tuple[int, int]
    evaluator: Evaluator | None

    @property
    def ends(self) -> dict[str, int]:
        """Step at which each stage ends, in their order."""
        settings = self.settings
        border = settings.bc_steps + settings.offline_steps
        return {"cloning": settings.bc_steps, "offline": border, "online": settings.total_steps}

    @property
    def starts(self) -> dict[str, int]:
        """Step at which each stage starts."""
        return dict(zip(self.ends, (0, *self.ends.values()), strict=False))

    def stage_at(self, step: int) -> str | None:
        """Returns the stage that goes on from a step; None at the end."""
        return next((name for name, end in self.ends.items() if step < end), None)

    @functools.cached_property
    def cloning(self) -> tuple[Agent, ConfigDict]:
        """The behaviour flow as an algorithm of its own, with its config."""
        config = behavior_config(self.config)
        return make_agent(config), config

    def algorithm(self, stage: str) -> tuple[Agent, ConfigDict]:
        """Returns the algorithm that a stage trains, with its config."""
        return self.cloning if stage == "cloning" else (self.agent, self.config)

    def empty_sums(self, stage: str, state: AgentState) -> MetricSums:
        """Returns the sums of no updates in a stage, from the shapes of the state alone."""
        agent, config = self.algorithm(stage)
        return empty_sums(metric_names(agent, state, config, self.dims[0]))


class Snapshot(NamedTuple):
    """A run at one step: the agent's state, metrics since the last row, step and last row."""

    state: AgentState
    sums: MetricSums
    step: int
    reported: int


class PendingEvaluation(NamedTuple):
    """An evaluation that is at work while training goes on.

    Attributes:
      episodes: its result.
      before: the run when the evaluation began, before the row of metrics of that step.
      row: step of that row.
      due: step that the evaluation is of.
      save: whether a checkpoint follows.
    """

    episodes: Future[list[Episode]]
    before: Snapshot
    row: int
    due: int
    save: bool


class Run:
    """One run.

    Attributes:
      settings: settings of this run, with its seed.
      folder: its folder.
      checkpoints: checkpoints in that folder.
      keys: its sources of randomness.
      log: log of its metrics, once its start is recorded; in process 0 alone.
      stage: name of the stage that it is in.
      step: updates of the earlier stages, plus environment steps of the online stage.
      reported: step of its last row of metrics.
      state: the agent's state at `step`, while no stage is at work.
      sums: metrics since the last row, while no stage is at work.
      acting: environments and experience, in the online stage.
      episodes: episodes of the last evaluation of this process.
      pending: evaluation that is at work while training goes on.
    """

    def __init__(self, plan: Plan, settings: RunSettings, folder: Path, checkpoints: Checkpoints):
        self._plan, self.settings = plan, settings
        self.folder, self.checkpoints = folder, checkpoints
        self.keys = split_seed(settings.seed)
        self.log: MetricLog | None = None
        self.stage, self.step, self.reported = "", 0, 0
        self.state: AgentState
        self.sums: MetricSums
        self.acting: Acting | None = None
        self.episodes: list[Episode] = []
        self.pending: PendingEvaluation | None = None

    def close(self) -> None:
        """Ends its environments and closes its files."""
        for part in (self.acting, self.log):
            if part is not None:
                part.close()

    def begin(self) -> None:
        """Continues from the newest checkpoint, or begins.

        Raises:
          ValueError: if checkpoint and settings do not fit together.
        """
        saved = self.checkpoints.restore_newest(self._restore)
        if saved is not None:
            self.stage, self.step, self.reported = saved["stage"], saved["step"], saved["reported"]
            return
        plan, settings = self._plan, self.settings
        self.state = self._init_state(plan.agent)
        if settings.run:
            self.state, self.step = start_from(
                settings.run, settings.run_step, plan.config, self.state, self.folder
            )
            self.reported = self.step
        if settings.bc_steps > self.step:
            check_has_behavior(plan.config, self.state)
            self.state = self._init_state(plan.cloning[0])
        if self.step > plan.ends["offline"] or self.step == settings.total_steps:
            raise ValueError(
                f"the checkpoint of {settings.run} has {self.step} steps, but --bc_steps and "
                f"--offline_steps end after {plan.ends['offline']} and --online_steps="
                f"{settings.online_steps}: raise --offline_steps to {self.step}, or more to "
                "train on, and --online_steps above 0 to fine-tune."
            )
        self._enter_stage()

    def enter_next_stage(self) -> None:
        """Goes on to the stage after the one that has ended."""
        before, plan = self.stage, self._plan
        if before == "cloning":
            fresh = self._init_state(plan.agent)
            self.state = with_behavior(plan.config, fresh, self.state.params["behavior"])
        self._enter_stage()

    @property
    def progress(self) -> tuple[int, int, int]:
        """How far the run is: stage, last row, and step where seeds make equal steps."""
        step = self.step if self.stage != "online" else 0
        return list(self._plan.ends).index(self.stage), self.reported, step

    def _enter_stage(self) -> None:
        stage = self._plan.stage_at(self.step)
        assert stage is not None
        self.stage, self.sums = stage, self._plan.empty_sums(stage, self.state)
        if stage == "online":
            self.acting = self._make_acting()

    def _restore(self, step: int) -> dict[str, Any]:
        """Reads one checkpoint; returns its progress."""
        saved = self.checkpoints.read_progress(step)
        self._check_continuation(saved)
        stage = saved["stage"]
        agent, config = self._plan.algorithm(stage)
        check_networks(self.folder, config)
        state = self._init_state(agent)
        sums = self._plan.empty_sums(stage, state)
        self.state, self.sums = self.checkpoints.restore(step, state, sums)
        if stage == "online":
            acting = self._make_acting()
            try:
                acting.restore(saved)
            except BaseException:
                acting.close()
                raise
            self.acting = acting
        return saved

    def _check_continuation(self, saved: dict[str, Any]) -> None:
        limit = self.settings.total_steps
        if saved["reported"] > limit:
            raise ValueError(
                f"{self.folder} holds {saved['reported']} steps already, more than the {limit} of "
                "--bc_steps, --offline_steps and --online_steps together: give at least as many, "
                "or another --run_id."
            )
        start = self._plan.starts[saved["stage"]]
        if saved["stage_start"] != start:
            raise ValueError(
                f"the run in {self.folder} began its {saved['stage']} stage after "
                f"{saved['stage_start']} steps, but --bc_steps and --offline_steps now put it "
                f"after {start}: give the earlier numbers, or another --run_id."
            )

    def _make_acting(self) -> Acting:
        plan = self._plan
        return Acting(self.settings, plan.config, plan.dims, self.folder, self._log_episode)

    def _init_state(self, agent: Agent) -> AgentState:
        key = self.keys.agent
        if agent is not self._plan.agent:
            key = jax.random.fold_in(self.keys.cloning, 1)
        return init_state(agent, key, *self._plan.dims)

    def record_start(self) -> None:
        """Writes what the run is, prints it, and opens its metrics; in process 0 alone.

        Raises:
          ValueError: if the run was trained on other data.
        """
        if not hosts.is_first():
            return
        plan, settings = self._plan, self.settings
        state = self.state if self.stage != "cloning" else self._init_state(plan.agent)
        count = parameter_count(state)
        record_start(
            self.folder,
            settings,
            plan.config,
            dataset_source=plan.source.description,
            dataset_fingerprint=plan.source.fingerprint(),
            seed=settings.seed,
            parameter_count=count,
            observation_dim=plan.dims[0],
            action_dim=plan.dims[1],
        )
        verb = f"Continuing from step {self.step}" if self.step else "Starting"
        _logger.info("%s in %s (%d parameters).", verb, self.folder, count)
        kept = {"train": self.reported, "eval": self.reported, "env": self.step}
        self.log = MetricLog(
            self.folder, kept, settings.wandb_project, resolved(settings, plan.config)
        )

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row of metrics; see `MetricLog.write`."""
        if self.log is not None:
            self.log.write(kind, step, metrics)

    def _log_episode(self, step: int, episode: Episode) -> None:
        row = {"return": episode.episode_return, "length": episode.length}
        self.write("env", step, {**row, "success": episode.success})

    def evaluate(self, agent: Agent, state: AgentState) -> list[Episode]:
        """Runs the evaluation's episodes, in process 0 for all; none without an environment."""
        evaluator, seed = self._plan.evaluator, self.settings.seed
        if evaluator is None:
            return []
        return hosts.from_first(lambda: evaluator.evaluate(agent, state, seed))

    def start_evaluation(self, agent: Agent, state: AgentState) -> Future[list[Episode]]:
        """Starts an evaluation beside training, by a single process."""
        assert self._plan.evaluator is not None
        return self._plan.evaluator.start(agent, state, self.settings.seed)


def start_from(
    run: str, step: str, config: ConfigDict, state: AgentState, folder: Path
) -> tuple[AgentState, int]:
    """Returns the state with which a run starts from the checkpoint of another run.

    From a run of `bc`, or a checkpoint of the cloning stage, only the flow is taken; see
    `with_behavior`. The rows of metrics are copied, so that there is one curve.

    Args:
      run: folder of the other run.
      step: which of its checkpoints: a number, `newest` or `best`.
      config: algorithm and hyperparameters of the new run.
      state: state of the new run before any update.
      folder: folder of the new run.

    Returns:
      The state, and the step of the other run.

    Raises:
      FileNotFoundError: if there is no such run or checkpoint.
      ValueError: if the checkpoint is of another algorithm, horizon or network size; names the
        difference.
    """
    saved = load_run(run, step)
    cloned = set(saved.state.params) == {"behavior"} and config.agent_name != "bc"
    _check_config(run, saved, config, cloned)
    if cloned:
        behavior = saved.state.params["behavior"]
        _check_shapes(run, saved, behavior, state.params["behavior"], config)
        state = with_behavior(config, state, behavior)
    else:
        _check_shapes(run, saved, saved.state, state, config)
        state = saved.state
    for kind in ("train", "eval", "env") if hosts.is_first() else ():
        rows = [row for row in read_csv(Path(run) / f"{kind}.csv") if row["step"] <= saved.step]
        if rows:
            write_csv(folder / f"{kind}.csv", rows[0], rows)
    return state, saved.step


def inherited_settings(run: str, step: str) -> dict[str, Any]:
    """Returns the settings that a run takes over from the run whose checkpoint it starts from.

    Raises:
      FileNotFoundError: if there is no such run or checkpoint.
    """
    saved = load_run(run, step)
    earlier = saved.config.to_dict()
    bc_steps = min(earlier["bc_steps"], saved.step)
    fields = dataclasses.fields(RunSettings)
    return {
        **{field.name: earlier[field.name] for field in fields if field.metadata["inherited"]},
        "bc_steps": bc_steps,
        "offline_steps": saved.step - bc_steps,
    }


def _check_config(run: str, saved: SavedRun, config: ConfigDict, cloned: bool) -> None:
    for name in _ACTION_FIELDS if cloned else ("agent_name", *_ACTION_FIELDS):
        there, here = saved.config.agent[name], config[name]
        if there != here:
            mend = f"--config.{name}={there}"
            if name == "agent_name":
                mend = f"--config=experiments/configs/{there}.py"
            raise ValueError(
                f"the run {run} has {name} = {there!r}, this one {here!r}: its checkpoint cannot "
                f"be continued so. Give {mend}, or another --run."
            )


def _check_shapes(run: str, saved: SavedRun, there: Any, here: Any, config: ConfigDict) -> None:
    """Raises ValueError, naming the first parameter that differs and the fields behind it."""
    found, expected = _shapes(there), _shapes(here)
    if found == expected:
        return
    name = next(name for name in [*expected, *found] if found.get(name) != expected.get(name))
    before, now = (json.loads(agent.to_json()) for agent in (saved.config.agent, config))
    fields = [
        f"{field} = {before.get(field)!r} there and {now[field]!r} here"
        for field in now
        if before.get(field) != now[field]
    ]
    raise ValueError(
        f"the checkpoint of {run} does not fit this run's networks: {name} has the shape "
        f"{found.get(name, 'none')} there and {expected.get(name, 'none')} here. Config fields "
        f"that differ: {'; '.join(fields) or 'none, so it is the environment or the data'}."
    )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }
