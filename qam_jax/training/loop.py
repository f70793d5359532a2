"""What every stage of a run has in common: rows of metrics, evaluations, checkpoints, stopping."""

import time
from collections.abc import Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from tqdm import tqdm

from qam_jax.agents import Agent, AgentState
from qam_jax.runs.stopping import Stopped, StopRequest
from qam_jax.training import exchange
from qam_jax.training.devices import Lanes
from qam_jax.training.evaluation import headline, score, summarize
from qam_jax.training.run import Member, Pending, Snapshot
from qam_jax.training.update import Tally, averages, empty_tally


class Stage(Protocol):
    """A part of all runs of a program; see `OfflineStage` for the arguments of its methods."""

    name: str
    unit: str
    agent: Agent
    lanes: Lanes
    start: int
    end: int
    overlaps: bool
    brief: bool

    def advance(
        self, state: AgentState, tally: Tally, steps: list[int], limits: list[int]
    ) -> tuple[AgentState, Tally, list[int]]:
        """Goes on by one round; returns where each run then is."""

    def metrics(self, index: int) -> dict[str, float]:
        """What to log about a run beside its tally, by name."""

    def save(self, index: int) -> dict[str, Any]:
        """What a run's checkpoint holds beside the agent's state."""

    def close(self) -> None:
        """Ends what runs in the background."""


def run_stage(stage: Stage, runs: Sequence[Member], stop: StopRequest) -> None:
    """Takes runs from where they are to the end of a stage.

    Rows, evaluations and checkpoints are due at multiples of their intervals and at the end. Where
    a round of the online stage goes beyond such a step, they are written after it, under the
    number of the step that was due. A run that is a row ahead of others waits for them.

    Args:
      stage: what to run.
      runs: in the stage; they change.
      stop: asks whether to stop. A run then goes back to an evaluation that is still at work.

    Raises:
      Stopped: if it was asked to stop; checkpoints have been saved.
      NotFiniteError: if training went wrong.
    """
    lanes, interval = stage.lanes, runs[0].settings.log_interval
    state = lanes.join([run.state for run in runs])
    tally = lanes.join([run.tally for run in runs])
    for run in runs:
        run.state = run.tally = None
    clock, firsts = time.perf_counter(), [run.step for run in runs]
    with _progress_bar(stage, runs) as bar:
        while True:
            dues = [_last_due(stage, run.step, interval) for run in runs]
            seconds = time.perf_counter() - clock
            try:
                for index, due in enumerate(dues):
                    if due > runs[index].reported:
                        speed = (runs[index].step - firsts[index]) / seconds
                        own = lanes.pick(state, index), lanes.pick(tally, index)
                        _report(stage, runs[index], index, own, due, speed)
                        tally = lanes.put(tally, index, empty_tally(tally.sums))
                        clock, firsts[index] = time.perf_counter(), runs[index].step
                    if runs[index].pending and runs[index].pending.episodes.done():
                        _settle(stage, runs[index], index)
                _check_stop(stop)
            except Stopped:
                for index, run in enumerate(runs):
                    own = lanes.pick(state, index), lanes.pick(tally, index)
                    now = Snapshot(*own, run.step, run.reported)
                    _save(stage, run, index, run.pending.before if run.pending else now)
                raise
            bar.n = min(run.step for run in runs) - stage.start
            bar.set_postfix_str(", ".join(headline(run.episodes) for run in runs if run.episodes))
            if all(run.step >= stage.end for run in runs):
                break
            limits = [
                min(stage.end, due + interval) if due == min(dues) else run.step
                for run, due in zip(runs, dues, strict=True)
            ]
            stage.brief = any(run.pending for run in runs)
            state, tally, steps = stage.advance(state, tally, [run.step for run in runs], limits)
            for run, step in zip(runs, steps, strict=True):
                run.step = step
    for index, run in enumerate(runs):
        run.state, run.tally = lanes.local((lanes.pick(state, index), lanes.pick(tally, index)))


def _progress_bar(stage: Stage, runs: Sequence[Member]) -> tqdm:
    return tqdm(
        total=stage.end - stage.start,
        initial=min(run.step for run in runs) - stage.start,
        desc=stage.name,
        unit=stage.unit,
        smoothing=0.1,
        disable=not exchange.is_first(),
    )


def _check_stop(stop: StopRequest) -> None:
    """Raises Stopped, in all processes, if one of them was asked to stop."""
    name = ""
    try:
        stop.check()
    except Stopped as stopped:
        name = str(stopped)
    names = exchange.gather("stop", name)
    if any(names):
        raise Stopped(next(filter(None, names)))


def _report(
    stage: Stage, run: Member, index: int, own: tuple[AgentState, Tally], due: int, speed: float
) -> None:
    """Writes a run's row of metrics of step `due`, and does what else is due there."""
    settings = run.settings
    state, tally = own
    metrics = {**averages(tally), **stage.metrics(index), f"{stage.unit}s_per_second": speed}
    run.write("train", due, metrics)
    known = None
    eval_due = _last_due(stage, due, settings.eval_interval)
    evaluates = settings.env_name and eval_due > run.reported
    saves = _last_due(stage, due, settings.save_interval) > run.reported
    if evaluates or saves:
        _settle(stage, run, index)
    overlaps = settings.overlap_evaluation and stage.overlaps and due < stage.end
    if evaluates and overlaps and not exchange.several():
        before = Snapshot(*jax.tree.map(jnp.copy, own), run.step, run.reported)  # own is donated
        episodes = run.start_evaluation(stage.agent, before.state)
        run.pending = Pending(episodes, before, due, eval_due, saves)
        run.reported = due
        return
    if evaluates:
        run.episodes = run.evaluate(stage.agent, stage.lanes.local(state))
        run.write("eval", eval_due, summarize(run.episodes))
        known = score(run.episodes)
    run.reported = due
    if saves:
        now = Snapshot(state, empty_tally(tally.sums), run.step, due)
        _save(stage, run, index, now, known)


def _settle(stage: Stage, run: Member, index: int) -> None:
    """Waits for the evaluation that is at work, and writes what was due with it."""
    if run.pending is None:
        return
    run.episodes = run.pending.episodes.result()
    (_, before, row, due, save), run.pending = run.pending, None
    run.write("eval", due, summarize(run.episodes))
    if save:
        then = before._replace(tally=empty_tally(before.tally.sums), reported=row)
        _save(stage, run, index, then, score(run.episodes))


def _last_due(stage: Stage, step: int, interval: int) -> int:
    """The last step up to this one at which something was due."""
    return stage.end if step >= stage.end else step - step % interval


def _save(stage: Stage, run: Member, index: int, at: Snapshot, score: float | None = None) -> None:
    progress = {"stage": stage.name, "stage_start": stage.start, "step": at.step}
    progress |= {"reported": at.reported, **stage.save(index)}
    milestone = at.reported == stage.end
    run.checkpoints.save(at.step, at.state, at.tally, progress, score, milestone=milestone)
