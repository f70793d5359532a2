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

from qam_jax.agents import Agent, AgentState, cloning_config, make_agent, parameter_count
from qam_jax.agents.base import check_has_behavior, with_behavior
from qam_jax.data.dataset import DataSource, prepare_dataset
from qam_jax.data.normalization import Normalization
from qam_jax.data.replay import Replay
from qam_jax.runs import processes
from qam_jax.runs.checkpoints import Checkpoints
from qam_jax.runs.folder import record_start
from qam_jax.runs.metrics import MetricLog, read_csv, write_csv
from qam_jax.runs.saved import SavedRun, check_unchanged, init_state, load_run
from qam_jax.runs.settings import RunSettings, resolved
from qam_jax.training.collector import Collector
from qam_jax.training.evaluation import Episode, Evaluator, split_seed
from qam_jax.training.update import MetricSums, empty_sums, metric_names
from qam_jax.types import Array, TransitionDataset

_logger = logging.getLogger(__name__)

_POLICY_FIELDS = (  # they say what the policy takes and gives
    "horizon_length", "action_chunking", "normalize_observations", "normalize_actions",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plan:
    """What the runs of a program share: everything but their seeds."""

    settings: RunSettings  # with the first seed
    agent: Agent
    config: ConfigDict  # of the agent
    source: DataSource
    dims: tuple[int, int]  # (O, A)
    normalization: Normalization
    evaluator: Evaluator | None  # None without an environment

    @property
    def stages(self) -> dict[str, range]:
        """Steps of each stage, in their order."""
        start, end = self.settings.bc_steps, self.settings.total_steps
        border = end - self.settings.online_steps
        offline, online = range(start, border), range(border, end)
        return {"cloning": range(start), "offline": offline, "online": online}

    def stage_at(self, step: int) -> str | None:
        """Returns the stage that goes on from a step; None at the end."""
        return next((name for name, steps in self.stages.items() if step < steps.stop), None)

    def prepare(self, dataset: TransitionDataset) -> TransitionDataset:
        """Returns a dataset of the source as the agent is trained on it."""
        scale, bias = self.settings.reward_scale, self.settings.reward_bias
        return prepare_dataset(dataset, self.normalization, scale, bias)

    @functools.cached_property
    def cloning(self) -> tuple[Agent, ConfigDict]:
        """The behaviour flow as an algorithm of its own, with its config."""
        config = cloning_config(self.config)
        return make_agent(config), config

    def replay_shape(self, chunk_length: int) -> tuple[int, int, int]:
        """Returns the size of a run's replay: its capacity, O and A."""
        settings = self.settings
        capacity = settings.buffer_size or settings.online_steps + settings.num_envs * chunk_length
        return capacity, *self.dims

    def algorithm(self, stage: str) -> tuple[Agent, ConfigDict]:
        """Returns the algorithm that a stage trains, with its config."""
        return self.cloning if stage == "cloning" else (self.agent, self.config)

    def empty_sums(self, stage: str, state: AgentState) -> MetricSums:
        """Returns the sums of no updates in a stage, from the shapes of the state alone."""
        agent, config = self.algorithm(stage)
        return empty_sums(metric_names(agent, state, config, self.dims[0]))


class Snapshot(NamedTuple):
    """A run at one step."""

    state: AgentState
    sums: MetricSums  # of metrics since the last row
    step: int
    reported: int  # step of the last row


class Run:
    """One run: where it stands, and what it leaves in its folder."""

    def __init__(self, plan: Plan, settings: RunSettings, folder: Path, checkpoints: Checkpoints):
        self._plan, self.settings = plan, settings  # of this run, with its seed
        self.folder, self.checkpoints = folder, checkpoints
        self.keys = split_seed(settings.seed)
        self.log: MetricLog | None = None  # once its start is recorded; in process 0 alone
        self.stage = ""  # name of the stage that it is in
        self.step = 0  # updates of the earlier stages, plus environment steps of the online stage
        self.reported = 0  # step of its last row of metrics
        self.state: AgentState  # at `step`, while no stage is at work
        self.sums: MetricSums  # of metrics since the last row, while no stage is at work
        self.replay: Replay  # experience, in the online stage
        self.collector: Collector | None = None  # acts in the online stage; in process 0 alone
        self.owed: int | None = None  # step of an evaluation that is due, until it is done
        self.pending: tuple[Snapshot, Future[list[Episode]]] | None = None  # it goes on meanwhile
        self.episodes: list[Episode] = []  # of the last evaluation of this process
        self.failed_evaluations = 0

    def close(self) -> None:
        """Ends its environments and closes its files."""
        if self.collector is not None:
            self.collector.pool.close()
        if self.log is not None:
            self.log.close()

    def begin(self) -> None:
        """Continues from the newest checkpoint, or begins. Raises ValueError if it does not fit."""
        if self.checkpoints.restore_newest(self._restore):
            return
        plan, settings = self._plan, self.settings
        self.state = self._init_state(plan.agent)
        if settings.run:
            self.state, self.step = _start_from(settings, plan.config, self.state, self.folder)
            self.reported = self.step
        if settings.bc_steps > self.step:
            check_has_behavior(plan.config, self.state)
            self.state = self._init_state(plan.cloning[0])
        border = plan.stages["offline"].stop
        if self.step > border or self.step == settings.total_steps:
            raise ValueError(
                f"the checkpoint of {settings.run} has {self.step} steps, but --bc_steps and "
                f"--offline_steps end after {border} and --online_steps="
                f"{settings.online_steps}: raise --offline_steps to {self.step}, or more to "
                "train on, and --online_steps above 0 to fine-tune."
            )
        self.enter_stage()

    def enter_stage(self) -> None:
        """Enters the stage that goes on from its step."""
        plan, stage = self._plan, self._plan.stage_at(self.step)
        assert stage is not None
        if self.stage == "cloning":
            fresh = self._init_state(plan.agent)
            self.state = with_behavior(plan.config, fresh, self.state.params["behavior"])
        self.stage, self.sums = stage, plan.empty_sums(stage, self.state)
        if stage == "online":
            self._start_acting()

    @property
    def place(self) -> int:
        """How far it is in its stage: its step, or online, where seeds differ, its last row."""
        return self.reported if self.stage == "online" else self.step

    @property
    def batch_key(self) -> Array:
        """Key of its batches in this stage."""
        if self.stage == "cloning":
            return jax.random.fold_in(self.keys.cloning, 0)
        return self.keys.batches

    def _restore(self, step: int) -> bool:
        """Reads one checkpoint."""
        saved = self.checkpoints.read_progress(step)
        self._check_continuation(saved)
        self.stage, self.step, self.reported = saved["stage"], saved["step"], saved["reported"]
        owed = saved.get("evaluation")  # earlier versions saved after it
        self.owed = None if self.checkpoints.has_score(step) else owed
        self.failed_evaluations = saved.get("failed_evaluations", 0)
        agent, config = self._plan.algorithm(self.stage)
        to_train = self._plan.stage_at(self.step) is not None
        check_unchanged(self.folder, config, to_train=to_train)
        state = self._init_state(agent)
        sums = self._plan.empty_sums(self.stage, state)
        self.state, self.sums = self.checkpoints.restore(step, state, sums)
        if self.stage == "online":
            self._start_acting(saved)
        return True

    def _check_continuation(self, saved: dict[str, Any]) -> None:
        limit = self.settings.total_steps
        if saved["reported"] > limit:
            raise ValueError(
                f"{self.folder} holds {saved['reported']} steps already, more than the {limit} of "
                "--bc_steps, --offline_steps and --online_steps together: give at least as many, "
                "or another --run_id."
            )
        start = self._plan.stages[saved["stage"]].start
        if saved["stage_start"] != start:
            raise ValueError(
                f"the run in {self.folder} began its {saved['stage']} stage after "
                f"{saved['stage_start']} steps, but --bc_steps and --offline_steps now put it "
                f"after {start}: give the earlier numbers, or another --run_id."
            )

    def _start_acting(self, saved: dict[str, Any] | None = None) -> None:
        """Makes room for experience, and in process 0 the environments; may continue from saved."""
        settings, chunk_length = self.settings, self.state.action_shape[0]
        shape = self._plan.replay_shape(chunk_length)
        self.replay = Replay(*shape, self.folder / "replay", writes=processes.is_first())
        episodes = self.replay.load(saved["transitions"], saved["episodes"]) if saved else {}
        if not processes.is_first():
            return
        assert self._plan.evaluator is not None
        pool = self._plan.evaluator.make_envs(chunk_length, settings.num_envs)
        self.collector = Collector(
            pool, settings.seed, sparse=settings.sparse, reward_scale=settings.reward_scale,
            reward_bias=settings.reward_bias,
        )  # fmt: skip
        if saved:
            self.collector.restore(saved, episodes)

    def _init_state(self, agent: Agent) -> AgentState:
        own = agent is self._plan.agent
        key = self.keys.agent if own else jax.random.fold_in(self.keys.cloning, 1)
        return init_state(agent, key, *self._plan.dims)

    def record_start(self) -> None:
        """Writes what the run is, prints it, and opens its metrics; in process 0 alone.

        Raises ValueError if the run was trained on other data.
        """
        if not processes.is_first():
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

    def evaluate(self, agent: Agent, state: AgentState) -> list[Episode]:
        """Runs the evaluation's episodes, in process 0 for all.

        Returns none if it fails, which is logged and counted.
        """
        evaluator, seed = self._plan.evaluator, self.settings.seed
        assert evaluator is not None

        def attempt() -> list[Episode]:
            try:
                return evaluator.evaluate(agent, state, seed)
            except Exception as error:
                if self.settings.strict_evaluation:
                    raise
                self.failed_evaluations += 1
                _logger.debug("Details of the evaluation's error:", exc_info=True)
                _logger.warning(
                    "The evaluation of step %d failed; %d so far did. The run goes on without it "
                    "(--strict_evaluation stops it). The reason: %s",
                    self.owed or self.step, self.failed_evaluations, error,
                )  # fmt: skip
                return []

        return processes.from_first(attempt)


def inherited_settings(run: str, step: str) -> dict[str, Any]:
    """Returns the settings that a run takes over from the run whose checkpoint it starts from.

    Raises FileNotFoundError if there is no such run or checkpoint.
    """
    saved = load_run(run, step)
    earlier = saved.config.to_dict()
    bc_steps = min(earlier["bc_steps"], saved.step)
    fields = [each for each in dataclasses.fields(RunSettings) if each.metadata["inherited"]]
    steps = {"bc_steps": bc_steps, "offline_steps": saved.step - bc_steps}
    return {field.name: earlier[field.name] for field in fields} | steps


def _start_from(
    settings: RunSettings, config: ConfigDict, state: AgentState, folder: Path
) -> tuple[AgentState, int]:
    """Returns the state and step of the other run's checkpoint; copies its rows, for one curve.

    From a checkpoint of behaviour cloning alone, only the flow is taken.
    """
    run = settings.run
    saved = load_run(run, settings.run_step)
    cloned = set(saved.state.params) == {"behavior"} != set(state.params)
    _check_config(saved, settings, config, cloned)
    if not cloned:
        check_unchanged(run, config, to_train=True)
    there: Any = saved.state.params["behavior"] if cloned else saved.state
    here: Any = state.params["behavior"] if cloned else state
    _check_shapes(run, saved, there, here, config)
    for kind in ("train", "eval", "env") if processes.is_first() else ():
        rows = [row for row in read_csv(Path(run) / f"{kind}.csv") if row["step"] <= saved.step]
        if rows:
            write_csv(folder / f"{kind}.csv", rows[0], rows)
    return with_behavior(config, state, there) if cloned else there, saved.step


def _check_config(saved: SavedRun, settings: RunSettings, config: ConfigDict, cloned: bool) -> None:
    before = {**saved.config, **saved.config.agent}
    now = {**dataclasses.asdict(settings), **config}
    for name in _POLICY_FIELDS if cloned else ("agent_name", *_POLICY_FIELDS):
        there, here = before[name], now[name]
        if there != here:
            mend = f"--{'config.' if name in config else ''}{name}={there}"
            if name == "agent_name":
                mend = f"--config=experiments/configs/{there}.py"
            raise ValueError(
                f"the run {settings.run} has {name} = {there!r}, this one {here!r}: its "
                f"checkpoint cannot be continued so. Give {mend}, or another --run."
            )


def _check_shapes(run: str, saved: SavedRun, there: Any, here: Any, config: ConfigDict) -> None:
    """Raises ValueError, naming the first parameter that differs and the fields behind it."""
    found, expected = _shapes(there), _shapes(here)
    before, now = (json.loads(agent.to_json()) for agent in (saved.config.agent, config))
    fields = "; ".join(
        f"{field} = {before.get(field)!r} there and {now[field]!r} here"
        for field in now
        if before.get(field) != now[field]
    )
    for name in expected | found:
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"the checkpoint of {run} does not fit this run's networks: {name} has the shape "
                f"{found.get(name, 'none')} there and {expected.get(name, 'none')} here. Config "
                f"fields that differ: {fields or 'none, so it is the environment or the data'}."
            )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves
    }
