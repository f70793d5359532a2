"""Loop of a stage: rows of metrics, evaluations, checkpoints, and stopping."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from tqdm import tqdm

from qam_jax.agents import Agent, AgentState
from qam_jax.runs import hosts
from qam_jax.runs.stopping import Stopped, StopRequest
from qam_jax.training.devices import Layout
from qam_jax.training.evaluation import headline, score, summarize
from qam_jax.training.run import PendingEvaluation, Run, Snapshot
from qam_jax.training.update import MetricSums, averages, empty_sums


class Stage(Protocol):
    """A part of all runs of a program; `OfflineStage` describes the arguments of its methods."""

    name: str
    unit: str
    agent: Agent
    layout: Layout
    start: int
    end: int
    overlaps: bool  # whether evaluations may go on during updates
    brief: bool  # whether blocks are to be short, while an evaluation is at work

    def advance(
        self, state: AgentState, sums: MetricSums, steps: list[int], limits: list[int]
    ) -> tuple[AgentState, MetricSums, list[int]]:
        """Goes on by one block or round; returns the new states, sums and steps."""

    def metrics(self, index: int) -> dict[str, float]:
        """Returns metrics of a run beside the agent's own, by name."""

    def save(self, index: int) -> dict[str, Any]:
        """Returns what a checkpoint of a run needs beside state and metrics."""

    def close(self) -> None:
        """Ends what runs in the background."""


def run_stage(
    stage: Stage, runs: Sequence[Run], stop: StopRequest, ahead: Run | None = None
) -> None:
    """Takes runs from where they are to the end of a stage.

    Rows, evaluations and checkpoints are due at multiples of their intervals and at the end. A
    round of the online stage may pass a step that was due: they keep that step's number.

    Args:
      runs: runs in the stage; they change.
      stop: asks whether to stop. A run then goes back to the evaluation that is still at work.
      ahead: a run of another seed; the stage ends early where that run is.

    Raises:
      Stopped: if it was asked to stop; checkpoints have been saved.
      NotFiniteError: if training went wrong.
    """
    layout, interval = stage.layout, runs[0].settings.log_interval
    state, sums = layout.join([run.state for run in runs]), layout.join([r.sums for r in runs])
    for run in runs:
        del run.state, run.sums
    clock, firsts = time.perf_counter(), [run.step for run in runs]
    with _progress_bar(stage, runs) as bar:
        while True:
            dues = [_last_due(stage, run.step, interval) for run in runs]
            seconds = time.perf_counter() - clock
            try:
                for index, (run, due) in enumerate(zip(runs, dues, strict=True)):
                    if due > run.reported:
                        speed = (run.step - firsts[index]) / seconds
                        own = layout.pick(state, index), layout.pick(sums, index)
                        _report(stage, run, index, own, due, speed)
                        sums = layout.put(sums, index, empty_sums(sums.sums))
                        clock, firsts[index] = time.perf_counter(), run.step
                    if run.pending and run.pending.episodes.done():
                        _finish_evaluation(stage, run, index)
                _check_stop(stop)
            except Stopped:
                for index, run in enumerate(runs):
                    own = layout.pick(state, index), layout.pick(sums, index)
                    now = Snapshot(*own, run.step, run.reported)
                    _save(stage, run, index, run.pending.before if run.pending else now)
                raise
            bar.n = min(run.step for run in runs) - stage.start
            bar.set_postfix_str(", ".join(headline(run.episodes) for run in runs if run.episodes))
            if all(run.step >= stage.end or _is_level(run, ahead) for run in runs):
                break
            # A run that is a row ahead of the others waits for them.
            limits = [
                min(stage.end, due + interval) if due == min(dues) else run.step
                for run, due in zip(runs, dues, strict=True)
            ]
            if ahead and stage.overlaps:
                limits = [min(limit, ahead.step) for limit in limits]
            stage.brief = any(run.pending for run in runs)
            state, sums, steps = stage.advance(state, sums, [run.step for run in runs], limits)
            for run, step in zip(runs, steps, strict=True):
                run.step = step
    for index, run in enumerate(runs):
        run.state, run.sums = layout.local((layout.pick(state, index), layout.pick(sums, index)))


def _progress_bar(stage: Stage, runs: Sequence[Run]) -> tqdm:
    return tqdm(
        total=stage.end - stage.start,
        initial=min(run.step for run in runs) - stage.start,
        desc=stage.name,
        unit=stage.unit,
        smoothing=0.1,
        disable=not hosts.is_first(),
    )


def _check_stop(stop: StopRequest) -> None:
    """Raises Stopped, in all processes, if one of them was asked to stop."""
    name = ""
    try:
        stop.check()
    except Stopped as stopped:
        name = str(stopped)
    for each in filter(None, hosts.gather(name)):
        raise Stopped(each)


def _report(
    stage: Stage, run: Run, index: int, own: tuple[AgentState, MetricSums], due: int, speed: float
) -> None:
    """Writes a run's row of metrics of step `due`, evaluates and saves if that is due too."""
    settings = run.settings
    state, sums = own
    metrics = {**averages(sums), **stage.metrics(index), f"{stage.unit}s_per_second": speed}
    run.write("train", due, metrics)
    known = None
    eval_due = _last_due(stage, due, settings.eval_interval)
    evaluates = settings.env_name and eval_due > run.reported
    saves = _last_due(stage, due, settings.save_interval) > run.reported
    if evaluates or saves:
        _finish_evaluation(stage, run, index)
    overlaps = settings.overlap_evaluation and stage.overlaps and due < stage.end
    if evaluates and overlaps and not hosts.several():
        copied: tuple[AgentState, MetricSums] = jax.tree.map(jnp.copy, own)  # own is donated
        before = Snapshot(*copied, run.step, run.reported)
        episodes = run.start_evaluation(stage.agent, before.state)
        run.pending = PendingEvaluation(episodes, before, due, eval_due, saves)
        run.reported = due
        return
    if evaluates:
        run.episodes = run.evaluate(stage.agent, stage.layout.local(state))
        run.write("eval", eval_due, summarize(run.episodes))
        known = score(run.episodes)
    run.reported = due
    if saves:
        now = Snapshot(state, empty_sums(sums.sums), run.step, due)
        _save(stage, run, index, now, known)


def _finish_evaluation(stage: Stage, run: Run, index: int) -> None:
    """Waits for the evaluation that is at work; writes its row and its checkpoint."""
    if run.pending is None:
        return
    run.episodes = run.pending.episodes.result()
    (_, before, row, due, save), run.pending = run.pending, None
    run.write("eval", due, summarize(run.episodes))
    if save:
        then = before._replace(sums=empty_sums(before.sums.sums), reported=row)
        _save(stage, run, index, then, score(run.episodes))


def _is_level(run: Run, ahead: Run | None) -> bool:
    """Whether a run has come as far as the one that was ahead of it."""
    return ahead is not None and run.progress >= ahead.progress


def _last_due(stage: Stage, step: int, interval: int) -> int:
    """Returns the last step up to this one at which something was due."""
    return stage.end if step >= stage.end else step - step % interval


def _save(stage: Stage, run: Run, index: int, at: Snapshot, score: float | None = None) -> None:
    progress = {"stage": stage.name, "stage_start": stage.start, "step": at.step}
    progress |= {"reported": at.reported, **stage.save(index)}
    milestone = at.reported == stage.end
    run.checkpoints.save(at.step, at.state, at.sums, progress, score, milestone=milestone)
