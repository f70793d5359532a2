"""Loop of a stage: rows of metrics, evaluations, checkpoints, and stopping."""

import logging
import time

import jax
import jax.numpy as jnp
from tqdm import tqdm

from qam_jax.envs import EnvFailure
from qam_jax.runs import processes
from qam_jax.runs.metrics import score
from qam_jax.runs.stopping import Stopped, StopRequest
from qam_jax.training.evaluation import Episode, headline, summarize
from qam_jax.training.run import Run, Snapshot
from qam_jax.training.stage import Stage
from qam_jax.training.update import averages

_logger = logging.getLogger(__name__)


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
    if any(run.place < until for run in stage.runs):
        _logger.info("%s: compiling the updates.", stage.name)
        stage.update([0] * len(stage.runs))  # none
        jax.block_until_ready(stage.state)
    with stop.deferred():
        _run(stage, stop, until)
        for run in stage.runs:
            run.checkpoints.wait()  # after this a signal may end the process at once
    stage.release()


def _run(stage: Stage, stop: StopRequest, until: int) -> None:
    """Makes the updates of `run_stage`, and whatever is due between them."""
    runs, interval = stage.runs, stage.runs[0].settings.log_interval
    last_limit = until if stage.overlaps else stage.end
    starts = [(time.perf_counter(), run.step) for run in runs]  # of the updates of a row
    try:
        with tqdm(
            total=stage.end - stage.start,
            initial=min(run.step for run in runs) - stage.start,
            desc=stage.name,
            unit=stage.unit,
            smoothing=0.1,
            disable=not processes.is_first(),
        ) as bar:
            while True:
                now = time.perf_counter()
                dues = [_last_due(stage, run.step, interval) for run in runs]
                new = [index for index, run in enumerate(runs) if dues[index] > run.reported]
                for index in new:
                    began, first = starts[index]
                    speed = (runs[index].step - first) / (now - began)
                    _report(stage, index, dues[index], speed)
                for index, run in enumerate(runs):
                    if run.owed and not run.pending:
                        _evaluate(stage, run, stage.snapshot(index))
                    elif run.pending and run.pending[1].done():
                        _finish_evaluation(run)
                for index in new:
                    starts[index] = time.perf_counter(), runs[index].step
                _check_stop(stop)
                bar.n = min(run.step for run in runs) - stage.start
                episodes = [run.episodes for run in runs if run.episodes]
                bar.set_postfix_str(", ".join(map(headline, episodes)))
                if all(run.place >= until for run in runs):
                    return
                # A run that is a row ahead of the others waits for them.
                limits = [
                    min(last_limit, due + interval) if due == min(dues) else run.step
                    for run, due in zip(runs, dues, strict=True)
                ]
                stage.brief = any(run.pending for run in runs)
                stage.advance(limits)
    except (Stopped, EnvFailure):
        for index, run in enumerate(runs):
            _save(stage, run, run.pending[0] if run.pending else stage.snapshot(index))
        raise


def _check_stop(stop: StopRequest) -> None:
    """Raises Stopped, in all processes, if one of them was asked to stop."""
    for name in filter(None, processes.gather(stop.signal_name)):
        raise Stopped(name)


def _last_due(stage: Stage, step: int, interval: int) -> int:
    """Returns the last step up to this one at which something was due."""
    return stage.end if step >= stage.end else step - step % interval


def _report(stage: Stage, index: int, due: int, speed: float) -> None:
    """Writes a run's row of metrics of step `due`, and saves a checkpoint if one is due."""
    run = stage.runs[index]
    sums = stage.layout.pick(stage.sums, index)
    metrics = {**averages(sums), **stage.metrics(run), f"{stage.unit}s_per_second": speed}
    if run.failed_evaluations:
        metrics["failed_evaluations"] = run.failed_evaluations
    run.write("train", due, metrics)
    stage.clear_sums(index)
    eval_due = _last_due(stage, due, run.settings.eval_interval)
    evaluates = bool(run.settings.env_name) and eval_due > run.reported
    saves = _last_due(stage, due, run.settings.save_interval) > run.reported
    if evaluates or saves:
        _finish_evaluation(run)
    if evaluates:
        run.owed = eval_due
    run.reported = due
    if saves:
        _save(stage, run, stage.snapshot(index))


def _evaluate(stage: Stage, run: Run, now: Snapshot) -> None:
    """Makes the evaluation that is due, or starts it beside training."""
    overlaps = run.settings.overlap_evaluation and stage.overlaps and run.reported < stage.end
    if overlaps and not processes.several():
        assert stage.plan.evaluator is not None
        state, sums = jax.tree.map(jnp.copy, (now.state, now.sums))  # which are donated
        evaluation = stage.plan.evaluator.thread.submit(run.evaluate, stage.agent, state)
        run.pending = now._replace(state=state, sums=sums), evaluation
    else:
        _conclude(run, now, run.evaluate(stage.agent, stage.layout.local(now.state)))


def _finish_evaluation(run: Run) -> None:
    """Waits for the evaluation that is at work, if there is one."""
    if run.pending is not None:
        evaluated, evaluation = run.pending
        episodes = evaluation.result()
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
    progress["normalization"] = stage.plan.normalization.to_json()
    milestone = at.reported == stage.end
    run.checkpoints.save(at.step, at.state, at.sums, progress, milestone)
