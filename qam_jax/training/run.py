"""One of the runs of a program: how it begins or continues, and what is recorded of it."""

import dataclasses
import functools
import json
import logging
from collections.abc import Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from qam_jax.agents import Agent, AgentState, make_agent, parameter_count
from qam_jax.agents.base import check_has_behavior, with_behavior
from qam_jax.agents.bc import behavior_config
from qam_jax.data.dataset import DataSource
from qam_jax.runs.checkpoints import Checkpoints, init_state
from qam_jax.runs.folder import record_start
from qam_jax.runs.keys import split_seed
from qam_jax.runs.metrics import MetricLog
from qam_jax.runs.settings import RunSettings, resolved
from qam_jax.training import exchange
from qam_jax.training.evaluation import Episode, Evaluator
from qam_jax.training.online import Acting
from qam_jax.training.update import Tally, empty_tally, metric_names
from qam_jax.training.warm_start import start_from

_logger = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the runs of a program have in common: all but their seeds.

    Attributes:
      settings: what the runs are; of their seeds it holds the first.
      agent: the algorithm.
      config: its config.
      source: the data.
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
        """At which step each stage ends, in their order."""
        settings = self.settings
        border = settings.bc_steps + settings.offline_steps
        return {"cloning": settings.bc_steps, "offline": border, "online": settings.total_steps}

    @property
    def starts(self) -> dict[str, int]:
        """At which step each stage starts."""
        return dict(zip(self.ends, (0, *self.ends.values()), strict=False))

    def stage_at(self, step: int) -> str | None:
        """The stage that goes on from a step; None at the end."""
        return next((name for name, end in self.ends.items() if step < end), None)

    @functools.cached_property
    def cloning(self) -> tuple[Agent, ConfigDict]:
        """The behaviour flow as an algorithm of its own, with its config."""
        config = behavior_config(self.config)
        return make_agent(config), config

    def algorithm(self, stage: str) -> tuple[Agent, ConfigDict]:
        """What a stage trains, with its config."""
        return self.cloning if stage == "cloning" else (self.agent, self.config)

    @functools.cached_property
    def _metric_names(self) -> dict[str, list[str]]:
        return {}

    def empty_tally(self, stage: str, state: AgentState) -> Tally:
        """A tally of no updates in a stage; of the state only the shapes are looked at."""
        if stage not in self._metric_names:
            agent, config = self.algorithm(stage)
            self._metric_names[stage] = metric_names(agent, state, config, self.dims[0])
        return empty_tally(self._metric_names[stage])


class Snapshot(NamedTuple):
    """A run at one step: the agent's state, its metrics since the last row, and how far it is."""

    state: AgentState
    tally: Tally
    step: int
    reported: int


class Pending(NamedTuple):
    """An evaluation that is at work while training goes on.

    Attributes:
      episodes: what comes of it.
      before: the run when it began, before the row of metrics of that step.
      row: the step of that row.
      due: the step that the evaluation is of.
      save: whether a checkpoint is to follow.
    """

    episodes: Future[list[Episode]]
    before: Snapshot
    row: int
    due: int
    save: bool


class Member:
    """One run.

    Attributes:
      settings: its own, with its seed.
      folder: its folder.
      checkpoints: those in it.
      keys: its sources of randomness.
      log: of its metrics, once its start is recorded; in the first process alone.
      stage: the name of the stage that it is in.
      step: how far it is: updates of the earlier stages and environment steps of the online stage.
      reported: the step of its last row of metrics.
      state: the agent's at `step`, while no stage is at work.
      tally: its metrics since the last row, while no stage is at work.
      acting: what it acts with, in the online stage.
      episodes: of the last evaluation of this process.
      pending: its evaluation that is at work while training goes on.
    """

    def __init__(self, plan: Plan, settings: RunSettings, folder: Path, checkpoints: Checkpoints):
        self._plan, self.settings = plan, settings
        self.folder, self.checkpoints = folder, checkpoints
        self.keys = split_seed(settings.seed)
        self.log: MetricLog | None = None
        self.stage, self.step, self.reported = "", 0, 0
        self.state: AgentState | None = None
        self.tally: Tally | None = None
        self.acting: Acting | None = None
        self.episodes: list[Episode] = []
        self.pending: Pending | None = None

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
        self._enter(plan.stage_at(self.step))

    def enter_next_stage(self) -> None:
        """Goes on to the stage after the one that has ended."""
        before, plan = self.stage, self._plan
        if before == "cloning":
            fresh = self._init_state(plan.agent)
            self.state = with_behavior(plan.config, fresh, self.state.params["behavior"])
        self._enter(plan.stage_at(self.step))

    def _enter(self, stage: str) -> None:
        self.stage, self.tally = stage, self._plan.empty_tally(stage, self.state)
        if stage == "online":
            self.acting = self._make_acting()

    def _restore(self, step: int) -> dict[str, Any]:
        """Reads one checkpoint; returns its progress."""
        saved = self.checkpoints.read_progress(step)
        self._check_continuation(saved)
        stage = saved["stage"]
        state = self._init_state(self._plan.algorithm(stage)[0])
        tally = self._plan.empty_tally(stage, state)
        self.state, self.tally = self.checkpoints.restore(step, state, tally)
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
        """Writes what the run is, prints it, and opens its metrics.

        Raises:
          ValueError: if the run was trained on other data.
        """
        if not exchange.is_first():
            return
        plan, settings = self._plan, self.settings
        state = self.state
        if self.stage == "cloning":
            state = self._init_state(plan.agent)  # what the run is about
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

    def start_evaluation(self, agent: Agent, state: AgentState) -> Future[list[Episode]]:
        """`evaluate` beside training, in an environment, by a single process."""
        return self._plan.evaluator.start(agent, state, self.settings.seed)

    def write(self, kind: str, step: int, metrics: Mapping[str, float]) -> None:
        """Adds a row of metrics; see `MetricLog.write`."""
        if self.log is not None:
            self.log.write(kind, step, metrics)

    def _log_episode(self, step: int, episode: Episode) -> None:
        self.write(
            "env",
            step,
            {
                "return": episode.episode_return,
                "length": episode.length,
                "success": episode.success,
            },
        )

    def evaluate(self, agent: Agent, state: AgentState) -> list[Episode]:
        """Runs the episodes of this run's evaluations, in the first process, for all of them; none
        without an environment. The positions are known to the first alone."""
        evaluator = self._plan.evaluator
        if evaluator is None:
            return []
        return exchange.from_first(
            "evaluation",
            lambda: evaluator.evaluate(agent, state, self.settings.seed),
            lambda episodes: json.dumps([episode[:3] for episode in episodes]).encode(),
            lambda content: [Episode(*each, np.empty((0, 2))) for each in json.loads(content)],
        )
