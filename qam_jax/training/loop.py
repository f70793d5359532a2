"""Loop of a stage: rows of metrics, evaluations, checkpoints, and stopping."""

import abc
import datetime
import logging
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from tqdm import tqdm

from qam_jax.agents import AgentState
from qam_jax.envs import EnvFailure
from qam_jax.runs import processes
from qam_jax.runs.metrics import score
from qam_jax.runs.stopping import Stopped, StopRequest
from qam_jax.training.devices import Layout
from qam_jax.training.evaluation import Episode, headline, summarize
from qam_jax.training.run import Plan, Run, Snapshot
from qam_jax.training.update import MetricSums, UpdateBlock, averages, empty_sums
from qam_jax.types import TransitionDataset

_SHORT_SECONDS = 60  # a stage that ends sooner needs no estimate

_logger = logging.getLogger(__name__)


class Stage(abc.ABC):
    """The stage that several runs are in, and how they make its updates together."""

    block: UpdateBlock  # the program of the updates
    unit = "update"  # what a step is
    overlaps = True  # whether evaluations may go on during updates
    brief = False  # whether blocks are to be short, while an evaluation is at work

    def __init__(self, plan: Plan, runs: Sequence[Run], layout: Layout):
        self.name = runs[0].stage
        self.start, self.end = plan.stages[self.name].start, plan.stages[self.name].stop
        self.agent, self.config = plan.algorithm(self.name)
        self.runs, self.layout, self.source = runs, layout, plan.source
        self._prepare = plan.prepare
        self._dataset: TransitionDataset | None = None  # the last one that the source gave,
        self._shared: TransitionDataset | None = None  # and its copy on the devices
        self._estimated = False

    def compile(self, state: AgentState, sums: MetricSums) -> tuple[AgentState, MetricSums]:
        """Compiles the program of the updates, by making none; arguments as `advance`."""
        return self.block(state, sums, self.data(), [0] * len(self.runs))

    @abc.abstractmethod
    def data(self) -> Any:
        """Returns what `block` draws the next batches from."""

    @abc.abstractmethod
    def advance(
        self, state: AgentState, sums: MetricSums, limits: list[int]
    ) -> tuple[AgentState, MetricSums]:
        """Goes on by one block of updates, or one round of acting and updates.

        The stacked states and sums are donated. Each run stops at the step that is its limit; the
        online stage may end somewhat beyond.

        Raises:
          NotFiniteError: if training went wrong.
          Stopped, EnvFailure: from the environments, before anything has changed.
        """

    def dataset(self, step: int) -> TransitionDataset:
        """Returns the data of a step, on all devices."""
        dataset = self.source.at(step)
        if self._shared is None or dataset is not self._dataset:
            self._shared = None  # first, which makes room
            self._dataset, self._shared = dataset, self.layout.share(self._prepare(dataset))
        return self._shared

    def metrics(self, run: Run) -> dict[str, float]:
        """Returns metrics of a run beside the agent's own, by name."""
        return self.source.metrics()

    def save(self, run: Run) -> dict[str, Any]:
        """Returns what a checkpoint of a run needs beside state and metrics."""
        return {}

    def log_estimate(self, num_steps: int, speed: float) -> None:
        """Says, once, how long the remaining steps take at the first speed, in steps per second."""
        seconds = round(num_steps / speed)
        if seconds > _SHORT_SECONDS and not self._estimated:
            _logger.info(
                "%s: about %s for %s %ss at %.3g per second, evaluations aside.",
                self.name, datetime.timedelta(seconds=seconds), f"{num_steps:,}", self.unit, speed,
            )  # fmt: skip
        self._estimated = True

    def close(self) -> None:  # noqa: B027 - most have nothing to end
        """Ends what runs in the background."""


def run_stage(stage: Stage, stop: StopRequest, until: int) -> None:
    """Trains the runs of a stage until the `Run.place` of each is `until`, at most `stage.end`.

    Rows, evaluations and checkpoints are due at multiples of their intervals and at the end. Where
    a round of the online stage passes such a step, they bear the number of the step. A checkpoint
    is saved before the evaluation of its step.

    Raises:
      Stopped: if a signal asked for it. Checkpoints have been saved: of the state of the evaluation
        that was at work, if there was one.
      EnvFailure: if environments crash too often; checkpoints have been saved.
      NotFiniteError: if training went wrong; nothing has been saved.
    """
    runs, layout = stage.runs, stage.layout
    trees = layout.join([(run.state, run.sums) for run in runs])
    for run in runs:
        del run.state, run.sums
    if any(run.place < until for run in runs):
        _logger.info("%s: compiling the updates.", stage.name)
        trees = jax.block_until_ready(stage.compile(*trees))
    with stop.deferred():
        trees = _run(stage, stop, until, trees)
        for run in runs:
            run.checkpoints.wait()  # after this a signal may end the process at once
    for index, run in enumerate(runs):
        run.state, run.sums = layout.local(layout.pick(trees, index))


def _run(
    stage: Stage, stop: StopRequest, until: int, trees: tuple[AgentState, MetricSums]
) -> tuple[AgentState, MetricSums]:
    """Makes the updates of `run_stage` from stacked states and sums, and returns the new ones."""
    (state, sums), runs, layout = trees, stage.runs, stage.layout
    interval, last_limit = runs[0].settings.log_interval, until if stage.overlaps else stage.end
    starts = [(time.perf_counter(), run.step) for run in runs]  # of the updates of a row

    def snapshot(index: int) -> Snapshot:
        run = runs[index]
        return Snapshot(*layout.pick((state, sums), index), run.step, run.reported)

    try:
        with _progress_bar(stage) as bar:
            while True:
                now = time.perf_counter()
                dues = [_last_due(stage, run.step, interval) for run in runs]
                new = [index for index, run in enumerate(runs) if dues[index] > run.reported]
                for index in new:
                    run, (began, first) = runs[index], starts[index]
                    speed = (run.step - first) / (now - began)
                    saves = _report(stage, run, snapshot(index).sums, dues[index], speed)
                    sums = layout.put(sums, index, empty_sums(sums.sums))
                    if saves:
                        _save(stage, run, snapshot(index))
                for index, run in enumerate(runs):
                    if run.owed and not run.pending:
                        _evaluate(stage, run, snapshot(index))
                    elif run.pending and run.pending[1].done():
                        _finish_evaluation(run)
                for index in new:
                    starts[index] = time.perf_counter(), runs[index].step
                _check_stop(stop)
                bar.n = min(run.step for run in runs) - stage.start
                episodes = [run.episodes for run in runs if run.episodes]
                bar.set_postfix_str(", ".join(map(headline, episodes)))
                if all(run.place >= until for run in runs):
                    return state, sums
                # A run that is a row ahead of the others waits for them.
                limits = [
                    min(last_limit, due + interval) if due == min(dues) else run.step
                    for run, due in zip(runs, dues, strict=True)
                ]
                stage.brief = any(run.pending for run in runs)
                state, sums = stage.advance(state, sums, limits)
    except (Stopped, EnvFailure):
        for index, run in enumerate(runs):
            _save(stage, run, run.pending[0] if run.pending else snapshot(index))
        raise


def _progress_bar(stage: Stage) -> tqdm:
    return tqdm(
        total=stage.end - stage.start,
        initial=min(run.step for run in stage.runs) - stage.start,
        desc=stage.name,
        unit=stage.unit,
        smoothing=0.1,
        disable=not processes.is_first(),
    )


def _check_stop(stop: StopRequest) -> None:
    """Raises Stopped, in all processes, if one of them was asked to stop."""
    name = ""
    try:
        stop.check()
    except Stopped as stopped:
        name = str(stopped)
    for each in filter(None, processes.gather(name)):
        raise Stopped(each)


def _last_due(stage: Stage, step: int, interval: int) -> int:
    """Returns the last step up to this one at which something was due."""
    return stage.end if step >= stage.end else step - step % interval


def _report(stage: Stage, run: Run, sums: MetricSums, due: int, speed: float) -> bool:
    """Writes a run's row of metrics of step `due`; returns whether a checkpoint is to follow."""
    settings = run.settings
    metrics = {**averages(sums), **stage.metrics(run), f"{stage.unit}s_per_second": speed}
    if run.failed_evaluations:
        metrics["failed_evaluations"] = run.failed_evaluations
    run.write("train", due, metrics)
    eval_due = _last_due(stage, due, settings.eval_interval)
    evaluates = bool(settings.env_name) and eval_due > run.reported
    saves = _last_due(stage, due, settings.save_interval) > run.reported
    if evaluates or saves:
        _finish_evaluation(run)
    if evaluates:
        run.owed = eval_due
    run.reported = due
    return saves


def _evaluate(stage: Stage, run: Run, now: Snapshot) -> None:
    """Makes the evaluation that is due, or starts it beside training."""
    overlaps = run.settings.overlap_evaluation and stage.overlaps and run.reported < stage.end
    if overlaps and not processes.several():
        state, sums = jax.tree.map(jnp.copy, (now.state, now.sums))  # which are donated
        copy = now._replace(state=state, sums=sums)
        run.pending = copy, run.start_evaluation(stage.agent, state)
    else:
        _conclude(run, now, run.evaluate(stage.agent, stage.layout.local(now.state)))


def _finish_evaluation(run: Run) -> None:
    """Waits for the evaluation that is at work, if there is one."""
    if run.pending is not None:
        evaluated, evaluation = run.pending
        episodes = run.result_of(evaluation.result)
        run.pending = None
        _conclude(run, evaluated, episodes)


def _conclude(run: Run, evaluated: Snapshot, episodes: list[Episode]) -> None:
    """Writes the results of an evaluation; there are no episodes if it failed."""
    assert run.owed is not None
    if episodes:
        summary = summarize(episodes)
        run.write("eval", run.owed, summary)
        run.checkpoints.set_score(evaluated.step, score(summary))
    run.episodes, run.owed = episodes, None


def _save(stage: Stage, run: Run, at: Snapshot) -> None:
    progress = {"stage": stage.name, "stage_start": stage.start, "step": at.step}
    progress |= {"reported": at.reported, "evaluation": run.owed}
    progress |= {"failed_evaluations": run.failed_evaluations, **stage.save(run)}
    progress["normalization"] = run.normalization.to_json()
    milestone = at.reported == stage.end
    run.checkpoints.save(at.step, at.state, at.sums, progress, milestone)
