"""What every stage of a run has in common: rows of metrics, evaluations, checkpoints, stopping."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any, Protocol

from tqdm import tqdm

from qam_jax.agents import Agent, AgentState
from qam_jax.training.checkpoints import Checkpoints
from qam_jax.training.evaluation import Episode, headline, score, summarize
from qam_jax.training.metrics import MetricLog
from qam_jax.training.settings import RunSettings
from qam_jax.training.stopping import Stopped, StopRequest
from qam_jax.training.updates import Tally, averages


class Stage(Protocol):
    """A part of a run; see `OfflineStage` for the arguments of its methods."""

    name: str
    unit: str
    agent: Agent
    start: int
    end: int

    def empty_tally(self, state: AgentState) -> Tally: ...

    def advance(
        self, state: AgentState, tally: Tally, step: int, limit: int
    ) -> tuple[AgentState, Tally, int]: ...

    def metrics(self) -> dict[str, float]: ...

    def save(self) -> dict[str, Any]: ...

    def restore(self, progress: dict[str, Any]) -> None: ...

    def close(self) -> None: ...


@dataclasses.dataclass
class Progress:
    """How far a run has come.

    Attributes:
      step: updates of the earlier stages and environment steps of the online stage.
      reported: the step of the last row of metrics.
      episodes: of the last evaluation of this process.
    """

    step: int = 0
    reported: int = 0
    episodes: list[Episode] = dataclasses.field(default_factory=list)


@dataclasses.dataclass(frozen=True)
class Recorder:
    """Where a run leaves its traces, and who may stop it.

    Attributes:
      settings: the run's.
      checkpoints: of the run.
      log: of its metrics.
      evaluate: runs an agent's policy; None without an environment.
      stop: asks whether the run is to stop.
    """

    settings: RunSettings
    checkpoints: Checkpoints
    log: MetricLog
    evaluate: Callable[[Agent, AgentState], list[Episode]] | None
    stop: StopRequest


def run_stage(
    stage: Stage, state: AgentState, tally: Tally, progress: Progress, recorder: Recorder
) -> AgentState:
    """Runs a stage from where it is to its end.

    Rows, evaluations and checkpoints are due at multiples of their intervals and at the end. Where
    a round of the online stage goes beyond such a step, they are written after it, under the
    number of the step that was due.

    Args:
      stage: what to run.
      state: the agent's, at `progress.step`.
      tally: metrics since the last row.
      progress: of the run; changed.
      recorder: what is recorded, and how.

    Returns:
      The agent's state at the end.

    Raises:
      Stopped: if the run was asked to stop; a checkpoint has been saved.
      NotFiniteError: if training went wrong.
    """
    interval = recorder.settings.log_interval
    bar = tqdm(
        total=stage.end - stage.start,
        initial=min(progress.step, stage.end) - stage.start,
        desc=stage.name,
        unit=stage.unit,
        smoothing=0.1,
    )
    clock, first = time.perf_counter(), progress.step
    with bar:
        while True:
            due = _last_due(stage, progress.step, interval)
            try:
                if due > progress.reported:
                    speed = (progress.step - first) / (time.perf_counter() - clock)
                    _report(stage, state, tally, progress, recorder, due, speed)
                    tally = stage.empty_tally(state)
                    if progress.episodes:
                        bar.set_postfix_str(headline(progress.episodes))
                    clock, first = time.perf_counter(), progress.step
                recorder.stop.check()
            except Stopped:
                _save(stage, state, tally, progress, recorder)
                raise
            if progress.step >= stage.end:
                return state
            limit = min(stage.end, due + interval)
            before = progress.step
            state, tally, progress.step = stage.advance(state, tally, before, limit)
            bar.update(min(progress.step, stage.end) - min(before, stage.end))


def _report(
    stage: Stage,
    state: AgentState,
    tally: Tally,
    progress: Progress,
    recorder: Recorder,
    due: int,
    speed: float,
) -> None:
    """Writes the row of metrics of step `due`, and does what else is due there."""
    settings = recorder.settings
    metrics = {**averages(tally), **stage.metrics(), f"{stage.unit}s_per_second": speed}
    recorder.log.write("train", due, metrics)
    known = None
    eval_due = _last_due(stage, due, settings.eval_interval)
    if recorder.evaluate and eval_due > progress.reported:
        progress.episodes = recorder.evaluate(stage.agent, state)
        recorder.log.write("eval", eval_due, summarize(progress.episodes))
        known = score(progress.episodes)
    save_due = _last_due(stage, due, settings.save_interval) > progress.reported
    progress.reported = due
    if save_due:
        _save(stage, state, stage.empty_tally(state), progress, recorder, known)


def _last_due(stage: Stage, step: int, interval: int) -> int:
    """The last step up to this one at which something was due."""
    return stage.end if step >= stage.end else step - step % interval


def _save(
    stage: Stage,
    state: AgentState,
    tally: Tally,
    progress: Progress,
    recorder: Recorder,
    score: float | None = None,
) -> None:
    saved = {"stage": stage.name, "stage_start": stage.start, "step": progress.step}
    saved |= {"reported": progress.reported, **stage.save()}
    recorder.checkpoints.save(
        progress.step, state, tally, saved, score, milestone=progress.reported == stage.end
    )
